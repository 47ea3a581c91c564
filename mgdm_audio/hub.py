"""Trained priors and regressors: found by name, checked, and loaded.

A model is a folder with ``config.json``, the weights in safetensors format, and its card
``README.md``. Nothing is ever downloaded, nothing is ever unpickled, and weights are only used
when their SHA-256 is the one in the config. Reading configs (:func:`models`) does not import torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgdm_audio.model_info import CONFIG, FORMAT, ModelError, ModelInfo, checked, read_config

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

PATH_VARIABLE = "MGDM_AUDIO_PRETRAINED"
"""Environment variable with folders of models that come before the shipped ones."""

WEIGHTS = "model.safetensors"
CARD = "README.md"

_DTYPES = ("int8", "float16", "bfloat16", "float32")
_LISTED = 8  # names shown of a long list of keys


class _Loaded:
    """What is said of any loaded model by its config."""

    info: ModelInfo

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def sample_rate(self) -> int:
        return self.info.sample_rate

    @property
    def stems(self) -> tuple[str, ...]:
        return self.info.stems

    @property
    def level(self) -> float:
        return self.info.level

    @property
    def sigma_min(self) -> float:
        return self.info.sigma_min

    @property
    def sigma_max(self) -> float:
        return self.info.sigma_max

    @property
    def sha256(self) -> str:
        return self.info.sha256


@dataclass(frozen=True)
class Prior(_Loaded):
    """A loaded prior.

    Attributes:
        denoise: the denoiser, a module in evaluation mode without trainable parameters that maps
            x of shape (B, K, T) and sigma of shape (B,) or (B, K) to E[x0 | x], (B, K, T).
        info: what its config says.
    """

    denoise: nn.Module
    info: ModelInfo


@dataclass(frozen=True)
class Regressor(_Loaded):
    """A loaded regressor.

    Attributes:
        regress: the network, a module in evaluation mode without trainable parameters; see
            :class:`mgdm_audio.regress.Regressor`.
        info: what its config says.
    """

    regress: nn.Module
    info: ModelInfo

    @property
    def knows_other(self) -> bool:
        """Whether it was trained on mixes with sounds beside its stems."""
        return getattr(self.regress, "beside", None) is not None


def search_path() -> list[Path]:
    """The folders in which models are looked for, the first that has a name wins.

    Those of the environment variable ``MGDM_AUDIO_PRETRAINED``, then ``pretrained`` beside the
    package in a checkout, then ``pretrained`` inside the installed package.
    """
    package = Path(__file__).resolve().parent
    folders = [Path(p) for p in os.environ.get(PATH_VARIABLE, "").split(os.pathsep) if p]
    # Installed, the folder above is site-packages: what lies there belongs to somebody else.
    if (package.parent / "setup.cfg").is_file():
        folders.append(package.parent / "pretrained")
    folders.append(package / "pretrained")
    return folders


def _folders() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in search_path():
        if folder.is_dir():
            for path in sorted(folder.iterdir()):
                if (path / CONFIG).is_file():
                    found.setdefault(path.name, path)
    return found


def models() -> list[ModelInfo]:
    """The models that can be loaded by name, in order of name; weights are not read.

    Raises:
        ModelError: if a config cannot be used; it names the file.
    """
    return [read_config(path) for _, path in sorted(_folders().items())]


def find(name: str | os.PathLike[str]) -> Path:
    """The folder of a model, given its name or the path of its folder.

    A string is a path only if it has a separator in it and a folder is there.

    Raises:
        ModelError: if there is no such model; it lists those there are.
    """
    text = os.fspath(name)
    is_path = isinstance(name, os.PathLike) or os.sep in text or "/" in text
    if is_path:
        if Path(text).is_dir():
            return Path(text)
    else:
        known = _folders()
        if text in known:
            return known[text]
    names = ", ".join(sorted(_folders())) or "none"
    raise ModelError(
        f"unknown model '{text}'; models here: {names}. "
        f"A model elsewhere is given by the path of its folder (./name or /path/to/name)"
    )


def load(name: str | os.PathLike[str] = "default", device: str | torch.device = "cpu") -> Prior:
    """Loads a prior in float32, whatever precision its weights are stored in.

    Arguments:
        name: a model's name, or the path of its folder.
        device: where to put the network.

    Raises:
        ModelError: if there is no such model, it is a regressor, its config is not usable or newer
            than this code, or its weights are missing, differ from the checksum, are not in
            safetensors format, do not fit the network, or are not finite.
    """
    info = read_config(find(name))
    if info.kind != "prior":
        raise ModelError(
            f"model '{info.name}' is a {info.kind}, and a prior is wanted: choose a prior, or a "
            "method that asks a regressor ('regressor' or 'gibbs')"
        )
    return Prior(_network(info, device), info)


def load_regressor(
    name: str | os.PathLike[str] = "regressor", device: str | torch.device = "cpu"
) -> Regressor:
    """Loads a regressor; see :func:`load`.

    Raises:
        ModelError: as :func:`load` does, and if the model is a prior.
    """
    info = read_config(find(name))
    if info.kind != "regressor":
        raise ModelError(
            f"model '{info.name}' is a {info.kind}, and a regressor is wanted: choose a "
            "regressor, or a method that asks a prior, such as 'mgdm'"
        )
    return Regressor(_network(info, device), info)


def _network(info: ModelInfo, device: str | torch.device) -> nn.Module:
    data = _verified_weights(info)

    import safetensors
    import safetensors.torch
    import torch

    from mgdm_audio import nn as networks
    from mgdm_audio.eight_bits import decoded

    file = info.path / info.config["weights"]["file"]
    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ModelError(f"{file} is not a safetensors file ({error})") from error
    del data  # a large model has hardly room in memory twice
    try:
        tensors = decoded(tensors)
    except ValueError as error:
        raise ModelError(f"{file}: {error}; get the model again") from error
    network_config = info.config["network"]
    try:
        # A fresh network draws weights, which are replaced: the caller's generator must not move.
        with torch.random.fork_rng(devices=[]):
            network = networks.build(network_config["class"], network_config["args"])
    except (ValueError, TypeError) as error:
        raise ModelError(f"{info.path / CONFIG}: cannot build the network: {error}") from error
    regressors = (networks.SpectralRegressor, networks.RegressorMean)
    if isinstance(network, regressors) != (info.kind == "regressor"):
        raise ModelError(
            f"{info.path / CONFIG}: the network {network_config['class']} is no {info.kind}; the "
            "field 'kind' is wrong"
        )
    _check_tensors(file, tensors, network.state_dict())
    network.load_state_dict(tensors)  # into the network's own float32
    return network.float().eval().requires_grad_(False).to(device)


def _verified_weights(info: ModelInfo) -> bytes:
    """The weights' file, read once: what was checked is what is used."""
    path = info.path / info.config["weights"]["file"]
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{path}: cannot read the weights of model '{info.name}': {error.strerror}"
        ) from error
    actual = hashlib.sha256(data).hexdigest()
    if actual != info.sha256:
        hint = ""
        if data.startswith(b"version https://git-lfs"):
            hint = " (the file is a Git LFS pointer: run git lfs pull)"
        raise ModelError(
            f"{path} is damaged or not the file that was published: SHA-256 is {actual}, "
            f"{CONFIG} says {info.sha256} ({len(data)} bytes read){hint}; "
            f"get the model again"
        )
    return data


def _check_tensors(
    file: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """All keys, shapes and values at once, so that nothing is ever loaded in part."""
    problems = []
    if missing := expected.keys() - tensors.keys():
        problems.append(f"missing: {_listed(missing)}")
    if extra := tensors.keys() - expected.keys():
        problems.append(f"not in the network: {_listed(extra)}")
    shapes = [
        f"{key} is {tuple(tensors[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in expected.keys() & tensors.keys()
        if tensors[key].shape != expected[key].shape
    ]
    if shapes:
        problems.append(f"wrong shape: {_listed(shapes)}")
    if problems:
        raise ModelError(
            f"{file} does not fit the network of {CONFIG}; " + "; ".join(problems) + "; "
            "the two come from different versions, get the model again"
        )
    if broken := [key for key, t in tensors.items() if not t.isfinite().all()]:
        raise ModelError(f"{file} holds NaN or infinite weights in {_listed(broken)}")


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _LISTED} more" if len(ordered) > _LISTED else ""
    return ", ".join(ordered[:_LISTED]) + more


def save_model(
    folder: str | os.PathLike[str],
    network: nn.Module,
    config: Mapping[str, Any],
    dtype: str = "float16",
) -> ModelInfo:
    """Writes a model's folder: weights, checksum and config; the card is left alone.

    Both files are written completely beside the old ones before either is replaced, so a failure
    leaves the old model. (Between the two replacements the checksum does not fit and
    :func:`load` refuses.)

    Arguments:
        folder: created if absent.
        network: the denoiser; it is not changed. Parameters are stored as ``dtype``, buffers,
            which hold measured scales, in float32. "int8" is of the matrices and kernels
            (:mod:`mgdm_audio.eight_bits`), and what else there is has float16.
        config: everything but ``format``, ``weights`` and ``parameters``, which are filled in.
        dtype: "int8", "float16", "bfloat16" or "float32".

    Returns:
        What the config says.

    Raises:
        ModelError: if the config is not usable, or weights are not finite in that precision.
        ValueError: for another dtype.
    """
    import safetensors.torch
    import torch

    from mgdm_audio.eight_bits import encoded

    if dtype not in _DTYPES:
        raise ValueError(f"unknown dtype '{dtype}'; weights are stored as {', '.join(_DTYPES)}")
    target = Path(folder)
    buffers = {name for name, _ in network.named_buffers()}
    other = getattr(torch, "float16" if dtype == "int8" else dtype)
    tensors: dict[str, Tensor] = {}
    places: set[int] = set()
    for key, value in network.state_dict().items():
        tensor = value.detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float32 if key in buffers else other)
        if not tensor.isfinite().all():
            raise ModelError(
                f"cannot save {target}: '{key}' is NaN, infinite, or too large for {dtype}"
            )
        if dtype == "int8" and key not in buffers and tensor.ndim > 1:
            tensors |= encoded(key, value.detach().cpu())
            continue
        tensor = tensor.contiguous()
        # A copy only where modules share their memory, which safetensors does not take.
        place = tensor.untyped_storage().data_ptr()
        tensors[key] = tensor.clone() if place in places else tensor
        places.add(place)
    data = safetensors.torch.save(tensors)
    full = {
        **config,
        "format": FORMAT if dtype == "int8" else 1,  # the first can be read by older versions too
        "parameters": sum(p.numel() for p in network.parameters()),
        "weights": {
            "file": WEIGHTS,
            "sha256": hashlib.sha256(data).hexdigest(),
            "dtype": dtype,
        },
    }
    info = checked(full, target / CONFIG)
    text = json.dumps(full, indent=2, allow_nan=False) + "\n"

    target.mkdir(parents=True, exist_ok=True)
    parts = {target / WEIGHTS: data, target / CONFIG: text.encode("utf-8")}
    token = secrets.token_hex(6)
    temporary = {path: path.with_name(f".{path.name}.{token}.part") for path in parts}
    try:
        for path, content in parts.items():
            with open(temporary[path], "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path in parts:
            os.replace(temporary[path], path)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
    return info
