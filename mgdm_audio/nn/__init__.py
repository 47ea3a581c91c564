"""Networks: denoisers of the four stems, built from the name and arguments in a model's config."""

from __future__ import annotations

from typing import Any

from torch import nn

from mgdm_audio.nn.spectral import SpectralDenoiser
from mgdm_audio.nn.token_unet import TokenUNet

_BACKBONES = {"TokenUNet": TokenUNet}

__all__ = ["SpectralDenoiser", "TokenUNet", "build"]


def build(class_name: str, args: dict[str, Any]) -> nn.Module:
    """Builds a denoiser with fresh weights.

    Arguments:
        class_name: the name of a backbone (``network.class`` of a model's config).
        args: ``{"backbone": {...}, "stft": {...}}``, keyword arguments of the backbone and of
            :class:`~mgdm_audio.nn.spectral.SpectralDenoiser`.

    Raises:
        ValueError: for an unknown class or arguments that it does not take.
    """
    if class_name not in _BACKBONES:
        known = ", ".join(sorted(_BACKBONES))
        raise ValueError(f"unknown network class '{class_name}'; known: {known}")
    unknown = set(args) - {"backbone", "stft"}
    if unknown:
        raise ValueError(f"unknown network arguments: {', '.join(sorted(unknown))}")
    try:
        backbone = _BACKBONES[class_name](**args.get("backbone", {}))
        return SpectralDenoiser(backbone, **args.get("stft", {}))
    except TypeError as error:
        raise ValueError(f"{class_name} does not take these arguments: {error}") from error
