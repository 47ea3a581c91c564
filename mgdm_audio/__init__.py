"""Music source separation by posterior sampling with a waveform diffusion prior.

The public names are loaded on first use, so that importing the package (and with it
``mgdm-audio --help``) costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mgdm_audio._version import __version__

if TYPE_CHECKING:
    from mgdm_audio.separate import Separation, Separator

STEMS = ("bass", "drums", "guitar", "piano")
"""The four stems, in the order of every stem axis."""

_LAZY = {"Separator": "mgdm_audio.separate", "Separation": "mgdm_audio.separate"}

__all__ = ["STEMS", "Separation", "Separator", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mgdm_audio' has no attribute '{name}'")
