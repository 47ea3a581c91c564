"""The samplers by name. A sampler's module is imported when it is first asked for."""

from __future__ import annotations

__all__ = ["get", "independent", "names", "sampler_class", "warm"]

import dataclasses
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mgdm_audio.samplers.base import Sampler

_CLASSES = {
    "mgdm": "MGDM",
    "dps": "DPS",
    "pgdm": "PGDM",
    "ddnm": "DDNM",
    "diffpir": "DiffPIR",
    "reddiff": "REDDiff",
    "msdm": "MSDM",
    "msdm-gaussian": "MSDMGaussian",
    "isdm": "ISDM",
    "projdiff": "ProjDiff",
    "ding": "DING",
    "mmps": "MMPS",
    "split-gibbs": "SplitGibbs",
    "daps": "DAPS",
    "pnpdm": "PnPDM",
    "regressor": "Regression",
    "gibbs": "Gibbs",
}
"""Name and class of each sampler; its module is the name, with _ for -."""


def names() -> list[str]:
    """Names of all samplers, in the order in which they are listed to a user."""
    return list(_CLASSES)


def sampler_class(name: str) -> type[Sampler]:
    """Class of the sampler called `name`.

    Raises:
        ValueError: if there is none, listing what there is.
    """
    if name not in _CLASSES:
        raise ValueError(f"unknown sampler '{name}', expected one of {', '.join(_CLASSES)}")
    module = import_module(f"mgdm_audio.samplers.{name.replace('-', '_')}")
    return getattr(module, _CLASSES[name])


def get(name: str, preset: str = "default", **overrides: Any) -> Sampler:
    """A sampler with the settings of a preset, some of them replaced.

    Arguments:
        name: one of `names`.
        preset: a key of the class's PRESETS.
        overrides: settings that replace those of the preset.

    Raises:
        ValueError: if the name, the preset or a setting is unknown, listing what there is, or if
            a value is out of range.
    """
    cls = sampler_class(name)
    if preset not in cls.PRESETS:
        raise ValueError(
            f"sampler '{name}' has no preset '{preset}', expected one of {', '.join(cls.PRESETS)}"
        )
    fields = [field.name for field in dataclasses.fields(cls)]
    for key in overrides:
        if key not in fields:
            raise ValueError(
                f"sampler '{name}' has no setting '{key}', expected one of {', '.join(fields)}"
            )
    return dataclasses.replace(cls.PRESETS[preset], **overrides)


def independent(sampler: Sampler, stems: int) -> Sampler:
    """A sampler that takes the stems as independent: the product of single-stem priors.

    Arguments:
        sampler: what asks the prior; no warm start, which is made of the result.
        stems: number of stems K.

    Raises:
        ValueError: if `sampler` asks no prior.
    """
    from mgdm_audio.samplers.independent_stems import IndependentStems

    # IndependentStems itself refuses a sampler that asks no prior.
    return IndependentStems(sampler=sampler, stems=stems)  # type: ignore[arg-type]


def warm(sampler: Sampler, first: str, sigma: float) -> Sampler:
    """A sampler that begins at a low noise level from the estimate of another one.

    Arguments:
        sampler: what goes on from the estimate.
        first: name of the other one, one of `names`; its preset `fast` is taken, or another one
            that is written after a colon, such as "ddnm:default".
        sigma: noise level to begin at, in units of the signal.

    Raises:
        ValueError: if there is no such sampler or preset, or `sampler` cannot begin there.
    """
    from mgdm_audio.samplers.warm_start import WarmStart

    name, _, preset = first.partition(":")
    # WarmStart itself refuses a sampler that has no noise levels.
    return WarmStart(first=get(name, preset or "fast"), sampler=sampler, sigma=sigma)  # type: ignore[arg-type]
