"""Networks of the four stems, built from the name and arguments in a model's config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from mgdm_audio.nn.regressor import SpectralRegressor
from mgdm_audio.nn.regressor_mean import RegressorMean
from mgdm_audio.nn.spectral import SpectralDenoiser
from mgdm_audio.nn.token_unet import TokenUNet
from mgdm_audio.nn.unet1d import UNet1d
from mgdm_audio.nn.unet2d import UNet2d
from mgdm_audio.nn.waveform import (
    StackedWaveformDenoiser,
    WaveformDenoiser,
    unet1d,
    unet1d_stack,
)

_NETWORKS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "TokenUNet": (TokenUNet, SpectralDenoiser),
    "TokenUNetRegressor": (TokenUNet, SpectralRegressor),
    "UNet2d": (UNet2d, SpectralDenoiser),
    "UNet2dRegressor": (UNet2d, SpectralRegressor),
}
"""Backbone, and what is built around it, of each network class that works on STFT bins."""

_WAVEFORM: dict[str, Callable[..., nn.Module]] = {"UNet1d": unet1d, "UNet1dStack": unet1d_stack}
"""What builds each network class that works on waveforms."""

__all__ = [
    "RegressorMean",
    "SpectralDenoiser",
    "SpectralRegressor",
    "StackedWaveformDenoiser",
    "TokenUNet",
    "UNet1d",
    "UNet2d",
    "WaveformDenoiser",
    "build",
]


def build(class_name: str, args: dict[str, Any]) -> nn.Module:
    """Builds a denoiser or a regressor with fresh weights.

    Arguments:
        class_name: ``network.class`` of a model's config.
        args: ``{"backbone": {...}, "stft": {...}}``, keyword arguments of the backbone and of
            what is around it, :class:`~mgdm_audio.nn.spectral.SpectralDenoiser` or
            :class:`~mgdm_audio.nn.regressor.SpectralRegressor`. For ``UNet1d`` and
            ``UNet1dStack``: ``{"backbone": {...}, "edm": {...}}``, of
            :class:`~mgdm_audio.nn.unet1d.UNet1d` and
            :class:`~mgdm_audio.nn.waveform.WaveformDenoiser`, and for a stack ``"stems"``. For
            ``RegressorMean``: ``{"of": [{"class": ..., "args": ...}, ...], "shares": [...]}``, a
            share being a number or a list of one for each stem.

    Raises:
        ValueError: for an unknown class or arguments that it does not take.
    """
    if class_name == "RegressorMean":
        try:
            return _mean(**args)
        except (TypeError, KeyError) as error:
            raise ValueError(f"{class_name} does not take these arguments: {error}") from error
    if class_name in _WAVEFORM:
        try:
            return _WAVEFORM[class_name](**{"backbone": {}, "edm": {}, **args})
        except TypeError as error:
            raise ValueError(f"{class_name} does not take these arguments: {error}") from error
    if class_name not in _NETWORKS:
        known = ", ".join(sorted([*_NETWORKS, *_WAVEFORM, "RegressorMean"]))
        raise ValueError(f"unknown network class '{class_name}'; known: {known}")
    unknown = set(args) - {"backbone", "stft"}
    if unknown:
        raise ValueError(f"unknown network arguments: {', '.join(sorted(unknown))}")
    backbone, network = _NETWORKS[class_name]
    try:
        return network(backbone(**args.get("backbone", {})), **args.get("stft", {}))
    except TypeError as error:
        raise ValueError(f"{class_name} does not take these arguments: {error}") from error


def _mean(of: list[dict[str, Any]], shares: list[float | list[float]]) -> RegressorMean:
    networks = [build(part["class"], part["args"]) for part in of]
    regressors = [net for net in networks if isinstance(net, SpectralRegressor)]
    if len(regressors) < len(networks):
        raise ValueError("a mean is of regressors, and not all of these networks are")
    return RegressorMean(regressors, shares)
