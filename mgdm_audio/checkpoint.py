"""Published checkpoints of MSDM and ISDM, turned into model folders.

The authors of MSDM (Mariani et al., ICLR 2024, arXiv:2302.02257) share Lightning checkpoints: one
of the joint prior over four stems that their separation uses, one that their generation uses, and
four of single-stem priors (ISDM). They hold the raw weights, which the published evaluation uses;
there are no averaged ones. Every tensor stands there twice, since two modules hold the network.

Nothing in a file is executed (see :mod:`mgdm_audio.archive`), every key and shape is checked, and
the network's widths are those of the file's hyper-parameters.
"""

from __future__ import annotations

__all__ = ["PUBLISHED", "Checkpoint", "import_checkpoints", "read_checkpoint"]

import hashlib
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgdm_audio import STEMS, hub
from mgdm_audio import nn as networks
from mgdm_audio.archive import Archive, Placeholder, TensorRecord

PUBLISHED = {
    "avid-darkness-164": "joint prior, of the published separation table",
    "glorious-star-335": "joint prior, of the published generation examples",
    "laced-dream-329": "bass",
    "ancient-voice-289": "drums",
    "honest-fog-332": "guitar",
    "ruby-dew-290": "piano",
}
"""The published runs, by the name of a checkpoint's folder; the single-stem ones by stem."""

LEVEL = 0.08
"""RMS of the mixtures of Slakh2100's four stems, an estimate; prepare measures it on the data."""

SIGMA_MIN, SIGMA_MAX = 1e-4, 20.0
"""The noise levels at which the published experiments ask these priors."""

PREFIXES = ("model.unet.", "model.diffusion.net.")
_NETWORK = (
    "channels", "patch_factor", "multipliers", "factors", "num_blocks", "attentions",
    "attention_heads", "attention_features", "attention_multiplier", "resnet_groups",
    "kernel_multiplier_downsample",
)  # fmt: skip
_FIXED = {
    "patch_blocks": 1,
    "use_nearest_upsample": False,
    "use_skip_scale": True,
    "use_attention_bottleneck": True,
    "use_context_time": True,
    "use_classifier_free_guidance": False,
    "diffusion_dynamic_threshold": 0.0,
    "out_channels": None,
    "context_features": None,
    "context_channels": None,
    "context_embedding_features": None,
}
"""Hyper-parameters that `UNet1d` and its denoiser know one value of."""

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_LISTED = 8

_IGNORE = ".gitignore"
_FILES = (hub.CONFIG, hub.WEIGHTS, hub.CARD, _IGNORE)
"""What is written into a model's folder."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose keys and shapes are right.

    Attributes:
        path: the file.
        stems: stems of its network, 4 or 1.
        run: the published run it is from, judged by its folder's name; "" if none.
        backbone: arguments of :class:`mgdm_audio.nn.UNet1d`.
        edm: arguments of :class:`mgdm_audio.nn.WaveformDenoiser`.
        assumed: hyper-parameters that the file does not state as plain values; they are taken to
            be the published ones.
        progress: epoch and step, where the file has them.
        tensors: the network's parameters, float32.
    """

    path: Path
    stems: int
    run: str
    backbone: Mapping[str, Any]
    edm: Mapping[str, Any]
    assumed: tuple[str, ...]
    progress: Mapping[str, int]
    tensors: Mapping[str, Tensor]


def read_checkpoint(path: str | os.PathLike[str], skip: Collection[str] = ()) -> Checkpoint:
    """Reads and checks a checkpoint.

    Arguments:
        path: the file.
        skip: names in its pickle to pass over, see :class:`mgdm_audio.archive.Archive`.

    Raises:
        OSError: if the file cannot be opened.
        ModelError: if a key is missing, unknown or misshapen, or its network is of another kind.
        ArchiveError: if it is damaged or not to be trusted.
    """
    file = Path(path)
    archive = Archive(file, skip)
    try:
        content = archive.content
        state = content.get("state_dict") if isinstance(content, dict) else None
        if not isinstance(state, dict) or not state:
            raise hub.ModelError(f"{file} has no 'state_dict': it is not a Lightning checkpoint")
        records, doubles = _split(file, state)
        hyper = content.get("hyper_parameters")
        hyper = dict(hyper) if isinstance(hyper, dict) else {}
        stems = _stems(file, records)
        backbone, edm, assumed = _arguments(file, hyper, stems)
        with torch.device("meta"):
            try:
                network = networks.build("UNet1d", {"backbone": backbone, "edm": edm})
            except ValueError as error:
                raise hub.ModelError(f"{file}: cannot build its network: {error}") from error
        expected = {k.removeprefix("unet."): v for k, v in network.state_dict().items()}
        _check(file, records, {key: tuple(value.shape) for key, value in expected.items()})
        tensors = {key: archive.tensor(record) for key, record in records.items()}
        for key, record in doubles.items():
            # Normally the same storage, which need not be read again.
            if record != records[key] and not torch.equal(archive.tensor(record), tensors[key]):
                raise hub.ModelError(
                    f"{file}: '{PREFIXES[0]}{key}' and '{PREFIXES[1]}{key}' must be the same "
                    "tensor and differ; the file is not as its training wrote it"
                )
        progress = {k: content[k] for k in ("epoch", "global_step") if type(content.get(k)) is int}
        run = file.resolve().parent.name
        return Checkpoint(
            path=file,
            stems=stems,
            run=run if run in PUBLISHED else "",
            backbone=backbone,
            edm=edm,
            assumed=assumed,
            progress=progress,
            tensors={key: tensor.float() for key, tensor in tensors.items()},
        )
    finally:
        archive.close()


def _split(
    file: Path, state: Mapping[Any, Any]
) -> tuple[dict[str, TensorRecord], dict[str, TensorRecord]]:
    """The parameters by name without prefix, from either prefix, and what the other repeats."""
    parts: tuple[dict[str, TensorRecord], ...] = ({}, {})
    unknown = []
    for key, value in state.items():
        for prefix, part in zip(PREFIXES, parts, strict=True):
            if isinstance(key, str) and key.startswith(prefix):
                if not isinstance(value, TensorRecord) or value.dtype not in _FLOATS:
                    raise hub.ModelError(f"{file}: '{key}' is not a tensor of floating point")
                part[key.removeprefix(prefix)] = value
                break
        else:
            unknown.append(str(key))
    if unknown:
        raise hub.ModelError(
            f"{file} holds keys that are not of MSDM's network: {_listed(unknown)}; expected all "
            f"to begin with {' or '.join(PREFIXES)}"
        )
    first, second = parts
    if first and second and first.keys() != second.keys():
        raise hub.ModelError(
            f"{file}: its two copies of the network have different keys: "
            f"{_listed(first.keys() ^ second.keys())}"
        )
    return (first, second) if first else (second, {})


def _stems(file: Path, records: Mapping[str, TensorRecord]) -> int:
    key = "to_in.module_list.0.block.block1.groupnorm.weight"
    if key not in records:
        raise hub.ModelError(f"{file} lacks '{key}': it is not a checkpoint of MSDM's network")
    shape = records[key].shape
    if shape not in ((len(STEMS),), (1,)):
        raise hub.ModelError(
            f"{file}: '{key}' has shape {shape}; expected {len(STEMS)} stems ({', '.join(STEMS)}) "
            "or 1"
        )
    return shape[0]


def _arguments(
    file: Path, hyper: Mapping[str, Any], stems: int
) -> tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """Arguments of network and denoiser from the hyper-parameters, and what they do not state."""
    for key, value in _FIXED.items():
        got = hyper.get(key, value)
        if not isinstance(got, Placeholder) and got != value:
            raise hub.ModelError(
                f"{file} was trained with {key} = {got!r}; only {value!r}, as in the published "
                "priors, is supported"
            )
    if hyper.get("in_channels", stems) != stems and not isinstance(
        hyper["in_channels"], Placeholder
    ):
        raise hub.ModelError(
            f"{file} says in_channels = {hyper['in_channels']}, but its weights are of {stems}"
        )
    backbone: dict[str, Any] = {"in_channels": stems}
    stated = {key: hyper[key] for key in _NETWORK if key in hyper and _is_plain(hyper[key])}
    backbone.update({k: list(v) if isinstance(v, tuple) else v for k, v in stated.items()})
    edm: dict[str, Any] = {}
    sigma_data = hyper.get("diffusion_sigma_data")
    if isinstance(sigma_data, (int, float)) and not isinstance(sigma_data, bool):
        edm["sigma_data"] = float(sigma_data)
    assumed = tuple(key for key in _NETWORK if key not in stated)
    return backbone, edm, assumed if edm else (*assumed, "diffusion_sigma_data")


def _is_plain(value: Any) -> bool:
    """Whether a value is an integer or a list of them; omegaconf's containers are not."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(isinstance(item, int) for item in value)
    return isinstance(value, int)


def _check(
    file: Path, records: Mapping[str, TensorRecord], expected: Mapping[str, tuple[int, ...]]
) -> None:
    problems = []
    if missing := expected.keys() - records.keys():
        problems.append(f"missing: {_listed(missing)}")
    if extra := records.keys() - expected.keys():
        problems.append(f"not in the network: {_listed(extra)}")
    if shapes := [
        f"{key} is {records[key].shape}, expected {expected[key]}"
        for key in expected.keys() & records.keys()
        if records[key].shape != expected[key]
    ]:
        problems.append(f"wrong shape: {_listed(shapes)}")
    if problems:
        raise hub.ModelError(f"{file} does not fit the network of MSDM; " + "; ".join(problems))


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _LISTED} more" if len(ordered) > _LISTED else ""
    return ", ".join(ordered[:_LISTED]) + more


def import_checkpoints(
    paths: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str] | None = None,
    *,
    level: float = LEVEL,
    dtype: str = "float32",
    skip: Collection[str] = (),
    overwrite: bool = False,
) -> tuple[hub.ModelInfo, tuple[str, ...]]:
    """Writes a model folder (weights, config, card) from published checkpoints.

    Arguments:
        paths: one joint checkpoint, or four single-stem ones in the order of the stems (bass,
            drums, guitar, piano).
        folder: the model's folder; by default ``msdm`` or ``isdm`` in the first folder of
            :func:`mgdm_audio.hub.search_path`.
        level: RMS of the mixtures that the prior was trained on.
        dtype: stored type of the weights; "float32" changes nothing.
        skip: names in the pickles to pass over, see :class:`mgdm_audio.archive.Archive`.
        overwrite: whether an existing model is replaced.

    Returns:
        What the new config says, and the hyper-parameters that no file states.

    Raises:
        ModelError: see `read_checkpoint`; also for another number of files, stems in another
            order than their runs are known to have, networks that differ, or a level that is none.
        FileExistsError: if the folder holds files that a model has.
    """
    if len(paths) not in (1, len(STEMS)):
        raise hub.ModelError(
            f"got {len(paths)} checkpoints, expected one joint one, or one for each stem in the "
            f"order {', '.join(STEMS)}"
        )
    if not 0 < level < math.inf:
        raise hub.ModelError(f"the level must be positive and finite, got {level}")
    joint = len(paths) == 1
    target = Path(folder) if folder else hub.search_path()[0] / ("msdm" if joint else "isdm")
    there = [name for name in _FILES if os.path.lexists(target / name)]
    if there and not overwrite:
        raise FileExistsError(
            f"{target} holds {', '.join(there)} already; --overwrite replaces what is there"
        )
    checkpoints = [read_checkpoint(path, skip) for path in paths]
    first = checkpoints[0]
    for checkpoint, stem in zip(checkpoints, STEMS, strict=False):
        _check_role(checkpoint, None if joint else stem)
        if (checkpoint.backbone, checkpoint.edm) != (first.backbone, first.edm):
            raise hub.ModelError(
                f"{checkpoint.path} has another network than {first.path}: {checkpoint.backbone}"
            )
    args = {"backbone": dict(first.backbone), "edm": dict(first.edm)}
    if joint:
        name, tensors = "UNet1d", {f"unet.{k}": v for k, v in first.tensors.items()}
    else:
        name = "UNet1dStack"
        tensors = {
            f"priors.{index}.unet.{key}": value
            for index, checkpoint in enumerate(checkpoints)
            for key, value in checkpoint.tensors.items()
        }
    with torch.device("meta"):
        network = networks.build(name, args)
    network.load_state_dict(tensors, assign=True)
    # Of a folder that is given as "." or "..", too.
    called = os.path.basename(os.path.abspath(target))
    config = _config(called, joint, name, args, level, checkpoints)
    info = hub.save_model(target, network, config, dtype)
    (target / hub.CARD).write_text(_card(info, checkpoints), encoding="utf-8")
    # The weights carry no licence that allows passing them on: git is to leave them alone, and
    # nothing else that the folder may hold.
    ignored = "".join(f"/{name}\n" for name in _FILES)
    (target / _IGNORE).write_text(ignored, encoding="utf-8")
    return info, tuple(dict.fromkeys(key for c in checkpoints for key in c.assumed))


def _check_role(checkpoint: Checkpoint, stem: str | None) -> None:
    """Raises if a checkpoint is not what its place says."""
    expected = len(STEMS) if stem is None else 1
    if checkpoint.stems != expected:
        raise hub.ModelError(
            f"{checkpoint.path} is a network of {checkpoint.stems} stems, expected {expected}: "
            f"give one joint checkpoint, or four single-stem ones ({', '.join(STEMS)})"
        )
    role = PUBLISHED.get(checkpoint.run, "")
    if stem is not None and role in STEMS and role != stem:
        raise hub.ModelError(
            f"{checkpoint.path} is the published prior of {role}, but stands in the place of "
            f"{stem}; the order is {', '.join(STEMS)}"
        )


def _config(
    name: str,
    joint: bool,
    network: str,
    args: Mapping[str, Any],
    level: float,
    checkpoints: Sequence[Checkpoint],
) -> dict[str, Any]:
    kind = "Joint prior" if joint else "Four independent priors"
    return {
        "name": name,
        "summary": f"{kind} of {', '.join(STEMS)} at 22.05 kHz, imported from published weights",
        "network": {"class": network, "args": args},
        "sample_rate": 22050,
        "stems": list(STEMS),
        "level": level,
        "sigma_min": SIGMA_MIN,
        "sigma_max": SIGMA_MAX,
        "licence": "none stated by its authors",
        "score": {},
        "source": [
            {
                "file": checkpoint.path.name,
                "run": checkpoint.run,
                "sha256": _sha256(checkpoint.path),
                **checkpoint.progress,
            }
            for checkpoint in checkpoints
        ],
    }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def _card(info: hub.ModelInfo, checkpoints: Sequence[Checkpoint]) -> str:
    lines = [
        f"# {info.name}",
        "",
        f"{info.summary}, {info.parameters / 1e6:.1f} M parameters: the waveform U-Net of MSDM",
        "(Mariani et al., ICLR 2024, arXiv:2302.02257); raw weights, as the published evaluation "
        "uses.",
        "",
        "- **Licence of the weights:** none stated by their authors. Do not pass them on.",
        "- **Training data:** Slakh2100 (CC BY 4.0), 22050 Hz mono, windows of 262144 samples.",
        f"- **Noise levels:** used from {info.sigma_min:g} to {info.sigma_max:g} by the published "
        "experiments; trained with ln sigma ~ N(-3, 1).",
        f"- **Level:** mixtures of RMS {info.level:g}. The authors separate without bringing "
        "recordings to a level.",
        "- **Scores:** none measured here yet.",
        "",
        "| file | published run | SHA-256 |",
        "| --- | --- | --- |",
    ]
    for source in info.config["source"]:
        role = PUBLISHED.get(source["run"], "not a published run by its folder's name")
        lines.append(f"| {source['file']} | {source['run']} ({role}) | {source['sha256']} |")
    assumed = sorted({key for checkpoint in checkpoints for key in checkpoint.assumed})
    if assumed:
        lines += ["", f"Not stated in the files, taken as published: {', '.join(assumed)}."]
    return "\n".join(lines) + "\n"
