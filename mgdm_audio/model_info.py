"""What the config of a model says, read and checked; torch is not imported."""

from __future__ import annotations

__all__ = ["CONFIG", "FORMAT", "KINDS", "ModelError", "ModelInfo", "checked", "read_config"]

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = 2
"""Newest layout of a model that this code reads and writes: since 2 weights may have eight bits."""

CONFIG = "config.json"

KINDS = ("prior", "regressor")
"""What a model is: a denoiser of stems, or a network that is trained on mixes (field ``kind``)."""


class ModelError(ValueError):
    """A model that is unknown, broken, or not to be trusted; the message says which and why."""


@dataclass(frozen=True)
class ModelInfo:
    """What a model's config says.

    Attributes:
        name: the model's name.
        summary: one line about it.
        path: its folder.
        sample_rate: in hertz.
        stems: the names along the stem axis.
        level: RMS of the mixtures that the prior was trained on (full scale is 1).
        sigma_min, sigma_max: the noise levels that it was trained on; never go outside. 0 for a
            regressor, which knows none.
        licence: licence of the weights.
        score: scores by name, as measured (see the card).
        parameters: number of weights.
        sha256: checksum of the weights' file.
        config: the whole config.
        kind: one of `KINDS`.
    """

    name: str
    summary: str
    path: Path
    sample_rate: int
    stems: tuple[str, ...]
    level: float
    sigma_min: float
    sigma_max: float
    licence: str
    score: Mapping[str, Any]
    parameters: int
    sha256: str
    config: Mapping[str, Any]
    kind: str = "prior"


def read_config(folder: Path) -> ModelInfo:
    """Reads and checks the config of a model's folder.

    Raises:
        ModelError: if it is missing, not JSON, of a newer format, or lacks a field.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: cannot read the model's config: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    return checked(config, path)


def checked(config: Any, path: Path) -> ModelInfo:
    """What a config says; ``path`` is where it is or will be."""
    if not isinstance(config, dict):
        raise ModelError(f"{path} must hold a JSON object, got {type(config).__name__}")
    version = config.get("format")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ModelError(f"{path}: 'format' must be a positive integer, got {version!r}")
    if version > FORMAT:
        raise ModelError(
            f"{path} has format {version}, this version reads up to format {FORMAT}: "
            f"the model is newer than the installed mgdm_audio; upgrade it"
        )

    def field(key: str, kind: type | tuple[type, ...], within: str = "") -> Any:
        place = config[within] if within else config
        label = f"{within}.{key}" if within else key
        if key not in place:
            raise ModelError(f"{path}: the field '{label}' is missing")
        value = place[key]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or isinstance(value, bool):
            wanted = " or ".join(k.__name__ for k in kinds)
            raise ModelError(f"{path}: '{label}' must be of type {wanted}, got {value!r}")
        return value

    def positive(key: str) -> float:
        value = float(field(key, (int, float)))
        if not (value > 0 and math.isfinite(value)):
            raise ModelError(f"{path}: '{key}' must be positive and finite, got {value}")
        return value

    kind = field("kind", str) if "kind" in config else "prior"
    if kind not in KINDS:
        raise ModelError(f"{path}: 'kind' must be one of {', '.join(KINDS)}, got '{kind}'")
    for section in ("network", "weights"):
        field(section, dict)
    field("class", str, "network")
    field("args", dict, "network")
    stems = field("stems", list)
    if not stems or len(set(map(str, stems))) < len(stems) or not all(map(_is_file_name, stems)):
        raise ModelError(f"{path}: 'stems' must be distinct plain names, got {stems}")
    file = field("file", str, "weights")
    if not _is_file_name(file) or not file.endswith(".safetensors"):
        raise ModelError(
            f"{path}: 'weights.file' must name a .safetensors file in the model's folder, "
            f"got '{file}'; other formats are not loaded"
        )
    sha256 = str(field("sha256", str, "weights")).lower()
    if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
        raise ModelError(f"{path}: 'weights.sha256' must be 64 hexadecimal digits, got '{sha256}'")
    info = ModelInfo(
        name=field("name", str),
        summary=field("summary", str),
        path=path.parent,
        sample_rate=int(field("sample_rate", int)),
        stems=tuple(stems),
        level=positive("level"),
        sigma_min=positive("sigma_min") if kind == "prior" else 0.0,
        sigma_max=positive("sigma_max") if kind == "prior" else 0.0,
        licence=field("licence", str),
        score=field("score", dict),
        parameters=int(field("parameters", int)),
        sha256=sha256,
        config=config,
        kind=kind,
    )
    if info.sample_rate <= 0:
        raise ModelError(f"{path}: 'sample_rate' must be positive, got {info.sample_rate}")
    if kind == "prior" and info.sigma_min >= info.sigma_max:
        raise ModelError(
            f"{path}: 'sigma_min' must be below 'sigma_max', "
            f"got {info.sigma_min} and {info.sigma_max}"
        )
    return info


def _is_file_name(name: object) -> bool:
    """Whether a name stays in its folder: no separator, not '.' or '..'."""
    return isinstance(name, str) and bool(name) and not set(name) & set("/\\\0") and name[0] != "."
