r"""Repair of recordings with the prior: gaps, clipping, a missing upper band, few bits.

Every channel is repaired by itself. What was not damaged stays as it is, bit for bit:

- ``gap``: samples in given intervals, or in dropouts (runs of digital silence), are replaced;
- ``clip``: samples at the clipping level are replaced by ones at or beyond it;
- ``lowpass``: what is missing above a cutoff is added;
- ``bits``: samples move inside the interval that was rounded to them.

There are two ways. A *draw* is a sample of the stems given the damaged recording, the damage being
an operator on the mix, or on one stem; their sum is the repaired recording. An *estimate* is as
near to what was there as can be: short gaps are filled by :mod:`mgdm_audio.estimate`; clipped
samples are those of an autoregression, the mean of what they can have been at and beyond the level
(:mod:`mgdm_audio.autoregression`), without the prior, which makes them worse at every noise level
(docs/restoration.md).

The prior works at its own rate. Recordings at another rate are repaired there and the change is
brought back; what a gap held above the prior's band is not replaced. Estimates of recordings at a
lower rate are made at that rate: above its band there is nothing to tell them apart.
"""

from __future__ import annotations

__all__ = ["METHODS", "WAYS", "Repaired", "clipping_levels", "dropouts", "repair"]

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mgdm_audio import audio, autoregression, estimate, hub
from mgdm_audio.conditional import Signal, as_channels
from mgdm_audio.degradations import Clip, Quantise
from mgdm_audio.denoise import CountingDenoiser
from mgdm_audio.evidence import Damage, Evidence
from mgdm_audio.filters import LowPass
from mgdm_audio.models import Models
from mgdm_audio.posterior import MULTIPLE, Callback, active_level, described, draw
from mgdm_audio.song import astray
from mgdm_audio.windows import WindowPlan

if TYPE_CHECKING:
    from mgdm_audio.separate import Separator

KINDS = ("gap", "clip", "lowpass", "bits")

METHODS = {
    "gap": ("diffpir", "default"),
    "clip": ("daps", "gradient"),
    "lowpass": ("daps", "gradient"),
    "bits": ("diffpir", "default"),
}
"""Method and preset that suit draws of each kind: DiffPIR was nearer to the truth than DING on
validation songs, by 1.3 dB in gaps and by 1.3 dB after rounding."""

WAYS = ("estimate", "draw")

NOISE = 1e-3
"""Standard deviation that observations which are not solved exactly are given, at the prior's
level (mixtures have 0.1 there)."""

RIPPLE = 0.05
"""Share by which clipped samples may be below the level after the sample rate was changed."""

SHORTEST = 0.001
"""Seconds of digital silence that make a dropout."""

QUIET = 0.01
"""Share of the recording's peak below which equal samples at a channel's peak are no clipping: what
is little more than rounding has few levels."""


@dataclass(frozen=True, eq=False)
class Repaired:
    """A repaired recording.

    Attributes:
        samples: one array for each seed, of the shape that was given: float32, or float64 if that
            was given.
        sample_rate: in hertz.
        seeds: the seeds.
        way: one of `WAYS`.
        damaged: True at the samples that may have changed, (C, T).
        settings: model, method and what else decides a draw, and the damage.
        calls, vjps: what it cost.
        warnings: what a user should know about the draws, in sentences.
    """

    samples: tuple[NDArray[Any], ...]
    sample_rate: int
    seeds: tuple[int, ...]
    way: str
    damaged: NDArray[np.bool_]
    settings: dict[str, Any]
    calls: int
    vjps: int
    warnings: tuple[str, ...] = ()


def repair(
    separator: Separator,
    recording: Signal,
    sample_rate: int,
    kind: str,
    seeds: Sequence[int],
    *,
    stem: str | None = None,
    gaps: Sequence[tuple[float, float]] | None = None,
    level: float | None = None,
    cutoff: float | None = None,
    bits: int | None = None,
    way: str | None = None,
    regressor: hub.Regressor | None = None,
    callback: Callback | None = None,
) -> Repaired:
    """Repairs a recording.

    Arguments:
        separator: the prior, the windows, and the sampler that draws; see `METHODS`. For ``clip``
            and ``lowpass`` a sampler that follows the likelihood's gradient: the damage is not
            linear, or not solved in closed form where windows meet.
        recording: a mix or a stem, (T,) or (C, T), floating point with full scale at 1.
        sample_rate: in hertz.
        kind: one of ``gap``, ``clip``, ``lowpass``, ``bits``.
        seeds: one for each draw or estimate.
        stem: name of the stem that the recording is; None for a mix.
        gaps: intervals in seconds for ``gap``; None looks for dropouts.
        level: clipping level for ``clip``, of all channels; None looks for it in each, above and
            below zero.
        cutoff: end of the band that is there, in hertz, for ``lowpass``.
        bits: of the recording, for ``bits``.
        way: one of `WAYS`; by default an estimate for ``clip``, and for ``gap`` where none is
            longer than `mgdm_audio.estimate.LONGEST`, and a draw for all else.
        regressor: splits mixes for the estimate of gaps; None: they are not split.
        callback: see `mgdm_audio.posterior.Callback`.

    Raises:
        ValueError: for an unknown kind, way or stem, a way that the kind does not have, a setting
            that is missing or out of range, or a recording without that damage.
    """
    channels = as_channels(recording, "the recording")
    source = _as_given(recording, channels)
    names, rate = separator.prior.stems, separator.prior.sample_rate
    if stem is not None and stem not in names:
        raise ValueError(f"unknown stem '{stem}', expected one of {', '.join(names)}")
    damage = _Damage.of(channels, sample_rate, rate, kind, gaps, level, cutoff, bits)
    if not bool(damage.where.any()):
        raise ValueError(f"the recording has no samples that are damaged by '{kind}'")
    estimable = kind == "clip" or (kind == "gap" and damage.longest() <= estimate.LONGEST)
    way = way or ("estimate" if estimable else "draw")
    if way not in WAYS or (way == "estimate" and kind not in ("gap", "clip")):
        raise ValueError(
            f"got way '{way}' for '{kind}', expected one of {', '.join(WAYS)}; estimates are made "
            "of gaps and clipping alone"
        )
    gains = [1.0 if stem in (None, name) else 0.0 for name in names]
    if way == "estimate":
        # To an autoregression an empty upper band says that all is foretold.
        damage = replace(damage, rate=min(rate, sample_rate))
    low = torch.from_numpy(audio.resample(channels.numpy(), sample_rate, damage.rate))
    if kind == "lowpass":
        # What is left above the cutoff is not looked at.
        low = LowPass(low.shape[1], damage.value / rate).forward(low[:, None])[:, 0]
    outputs = [source.clone() for _ in seeds]
    touched = [c for c in range(len(channels)) if bool(damage.where[c].any())]
    calls = vjps = 0
    missed, seams = -math.inf, separator.song_settings.seams
    for position, c in enumerate(touched):

        def report(done: int, total: int, before: int = position) -> None:
            if callback is not None:
                callback(before * total + done, total * len(touched))

        if way == "estimate" and kind == "clip":
            cut = damage.cut(c, low[c])
            whole = torch.from_numpy(autoregression.declip(low[c].numpy(), cut.numpy())).to(low)
            for output in outputs:
                output[c] = damage.patched(c, source[c], low[c], whole)
            report(1, 1)
            continue
        kept = damage.kept(c, low.shape[1])
        loud = active_level(low[c] if kept is None else low[c] * kept, damage.rate)
        # One stem is part of a mix that is louder than it.
        target = separator.song_settings.level / (1 if stem is None else len(names) ** 0.5)
        gain = target / loud if loud > 0 else 1.0
        sums = [torch.zeros_like(low[c]) for _ in seeds]
        y = low[c] * gain if kept is None else torch.where(kept, low[c], 0) * gain
        if loud == 0:  # silence, of which no level can be told, is left as silence
            report(1, 1)
        elif way == "estimate":
            assert kept is not None
            sums, more = _filled(separator, regressor, y, ~kept, damage.rate, gains, seeds, report)
            calls += more
        else:
            evidence = Evidence(len(names), low.shape[1]).with_sum(
                y, gains, kept, damage.operator(gain, c), damage.noise(gain)
            )
            drawn = draw(separator, evidence, seeds, report, None if kept is None else ~kept)
            calls, vjps = calls + drawn.calls, vjps + drawn.vjps
            missed, seams = max(missed, drawn.residual_db), drawn.seams
            sums = [(torch.tensor(gains)[:, None] * x).sum(0) for x in drawn.stems]
        for output, whole in zip(outputs, sums, strict=True):
            output[c] = damage.patched(c, source[c], low[c], whole / gain)
    return Repaired(
        tuple(x.reshape(tuple(recording.shape)).numpy() for x in outputs),
        sample_rate, tuple(seeds), way, damage.where.numpy(),
        _settings(separator, regressor, way, seams) | {"repair": damage.describe(), "stem": stem},
        calls, vjps, astray(missed),
    )  # fmt: skip


def _as_given(recording: Signal, channels: Tensor) -> Tensor:
    """The recording as (C, T) in its own precision: what is not damaged stays as it is."""
    if recording.dtype not in (np.float64, torch.float64):
        return channels
    numbers = recording.detach().cpu() if isinstance(recording, Tensor) else recording
    return torch.from_numpy(np.ascontiguousarray(numbers)).reshape(channels.shape)


def _filled(
    separator: Separator,
    regressor: hub.Regressor | None,
    y: Tensor,
    missing: Tensor,
    rate: int,
    gains: Sequence[float],
    seeds: Sequence[int],
    report: Callback,
) -> tuple[list[Tensor], int]:
    """Estimates of a recording (T,) with gaps, and the network calls that they took."""
    settings, prior = separator.song_settings, separator.prior
    if not isinstance(prior, hub.Prior):
        raise ValueError(f"model '{prior.name}' is a regressor, and gaps are filled with a prior")
    asked = CountingDenoiser(Models(prior, regressor).asked())
    length = -(-len(y) * prior.sample_rate // rate)
    plan = WindowPlan(length, settings.window, settings.overlap, MULTIPLE)
    split = regressor is not None and 0 not in gains
    experts = estimate.Experts(
        asked, asked.regress if split else None, plan, prior.sample_rate, separator.device,
        separator.dtype != torch.float32, lambda: report(asked.calls, planned),
    )  # fmt: skip
    here = sum(experts.looks(i, missing.numpy(), rate) for i in range(len(plan.starts)))
    planned = len(plan.starts) if split else here * estimate.NOISES * len(seeds)
    with torch.no_grad():
        found = estimate.fill(
            experts, y.double().numpy(), missing.numpy(), np.array(gains), seeds, rate
        )
    return [torch.from_numpy(x).to(y) for x in found], asked.calls


def _settings(
    separator: Separator, regressor: hub.Regressor | None, way: str, seams: str
) -> dict[str, Any]:
    """What decides the result, but for the damage."""
    if way == "draw":
        return described(separator, seams) | {"way": way}
    settings = separator.describe() | {"way": way}
    for name in ("method", "preset", "sampler", "average", "seams", "residual", "other"):
        del settings[name]
    if regressor is not None:
        settings |= {"regressor": regressor.name, "regressor_sha256": regressor.sha256}
    return settings | {"sigma": estimate.SIGMA, "noises": estimate.NOISES}


@dataclass(frozen=True, eq=False)
class _Damage:
    """What was done to the recording (C, T), and the way back from a repair at another rate.

    Attributes:
        kind: one of `KINDS`.
        where: True at the samples that are damaged, (C, T).
        sample_rate: of the recording, in hertz.
        rate: that it is repaired at.
        value: the lowest clipping level, the cutoff, or the bits.
        levels: of clipping, above and below zero, for each channel; see `clipping_levels`.
    """

    kind: str
    where: Tensor
    sample_rate: int
    rate: int
    value: float = 0.0
    levels: tuple[tuple[float, float], ...] = ()

    @classmethod
    def of(
        cls,
        channels: Tensor,
        sample_rate: int,
        rate: int,
        kind: str,
        gaps: Sequence[tuple[float, float]] | None,
        level: float | None,
        cutoff: float | None,
        bits: int | None,
    ) -> _Damage:
        if kind == "gap":
            where = dropouts(channels, sample_rate) if gaps is None else torch.zeros_like(
                channels, dtype=torch.bool
            )  # fmt: skip
            for start, stop in gaps or ():
                first, last = round(start * sample_rate), round(stop * sample_rate)
                if not 0 <= first < last <= channels.shape[1]:
                    raise ValueError(
                        f"got a gap from {start} to {stop} s, expected one inside the "
                        f"{channels.shape[1] / sample_rate:.3f} s of the recording"
                    )
                where[:, first:last] = True
            return cls(kind, where, sample_rate, rate)
        if kind == "clip":
            found = ((math.inf if level is None else level,) * 2,) * len(channels)
            if level is None:
                found = clipping_levels(channels)
            lowest = min(map(min, found))
            if not 0 < lowest < math.inf:
                raise ValueError("found no level at which samples pile up; give the clipping level")
            cut = [_beyond(x, pair, 1 - 1e-6) for x, pair in zip(channels, found, strict=True)]
            return cls(kind, torch.stack(cut), sample_rate, rate, lowest, found)
        if kind == "lowpass":
            most = min(rate / 2.5, sample_rate / 2)
            if cutoff is None or not 0 < cutoff < most:
                raise ValueError(
                    f"got a cutoff of {cutoff} Hz, expected one below {most:.0f} Hz, from where on "
                    "prior and recording have a band to add"
                )
            everywhere = torch.ones_like(channels, dtype=torch.bool)
            return cls(kind, everywhere, sample_rate, rate, cutoff)
        if kind == "bits":
            if bits is None or not 2 <= bits <= 16:
                raise ValueError(f"got {bits} bits, expected 2 to 16")
            everywhere = torch.ones_like(channels, dtype=torch.bool)
            return cls(kind, everywhere, sample_rate, rate, float(bits))
        raise ValueError(f"unknown damage '{kind}', expected one of {', '.join(KINDS)}")

    def longest(self) -> float:
        """Seconds of the longest run of damaged samples."""
        found = [run for row in self.where.numpy() for run in autoregression.runs(row)]
        return max((stop - start for start, stop in found), default=0) / self.sample_rate

    def kept(self, c: int, length: int) -> Tensor | None:
        """True at the samples at the repair's rate that no damaged sample has a part in."""
        if self.kind != "gap":
            return None
        # What a sample rings into is as long as three samples of the lower rate.
        reach = math.ceil(3 * max(1, self.rate / self.sample_rate))
        reach = reach if self.rate != self.sample_rate else 0
        at = torch.nonzero(self.where[c])[:, 0] * self.rate // self.sample_rate
        near = torch.zeros(length, dtype=torch.bool)
        for shift in range(-reach, reach + 1):
            near[(at + shift).clamp(0, length - 1)] = True
        return ~near

    def cut(self, c: int, x: Tensor) -> Tensor:
        """True where a channel at the repair's rate, (T,), is clipped."""
        return _beyond(x, self.levels[c], self.share())

    def operator(self, gain: float, c: int) -> Damage | None:
        """What was done to a window, at the prior's level."""
        if self.kind == "clip":
            above, below = (level * gain * self.share() for level in self.levels[c])
            return lambda y: Clip.beyond(y, above, below)
        if self.kind == "lowpass":
            return lambda y: LowPass(y.shape[2], self.value / self.rate)
        return None

    def share(self) -> float:
        """Of the clipping level, from where on samples at the repair's rate are clipped ones: a
        plateau that was converted ripples about its level."""
        return 1 - (1e-6 if self.rate == self.sample_rate else RIPPLE)

    def noise(self, gain: float) -> float:
        """Noise of the observation, at the prior's level."""
        if self.kind == "bits":
            # Rounding to a step is nearly white noise of a twelfth of its square, of which the
            # prior's band holds a share.
            share = min(1.0, self.rate / self.sample_rate)
            return gain * Quantise(int(self.value)).step * math.sqrt(share / 12)
        return 0.0 if self.kind == "gap" else NOISE

    def patched(self, c: int, source: Tensor, low: Tensor, whole: Tensor) -> Tensor:
        """The channel (T,) with the repair (at its rate) where it was damaged."""
        where = self.where[c]
        if self.kind == "gap":
            wide = self._up(whole, len(source))
            return torch.where(where, wide.to(source), source)
        change = self._up(whole - low, len(source)).to(source)
        fixed = source + change
        if self.kind == "clip":
            above, below = self.levels[c]
            beyond = torch.where(source > 0, fixed.clamp_min(above), fixed.clamp_max(-below))
            return torch.where(where, beyond, source)
        if self.kind == "bits":
            return Quantise(int(self.value)).project(fixed[None, None], source[None, None])[0, 0]
        # The band that is there is kept: only what is above it is added.
        n = len(source)
        response = LowPass(n, self.value / self.sample_rate).response[0].real
        spectrum = torch.fft.rfft(change.double()) * (1 - response)
        return (source.double() + torch.fft.irfft(spectrum, n=n)).to(source)

    def _up(self, x: Tensor, length: int) -> Tensor:
        return torch.from_numpy(audio.resample(x.numpy(), self.rate, self.sample_rate, length))

    def describe(self) -> dict[str, Any]:
        """For reports."""
        share = float(self.where.double().mean())
        return {"kind": self.kind, "value": self.value, "damaged_share": round(share, 6)}


def dropouts(channels: Tensor, sample_rate: int) -> Tensor:
    """True in runs of exact zeros of a millisecond or more inside a recording (C, T).

    Silence at its beginning and end is not a dropout.
    """
    size = max(2, round(SHORTEST * sample_rate))
    where = torch.zeros_like(channels, dtype=torch.bool)
    for row, out in zip(channels, where, strict=True):
        sounding = torch.nonzero(row)[:, 0]
        if not len(sounding):
            continue
        lengths = sounding.diff() - 1
        for i in torch.nonzero(lengths >= size)[:, 0].tolist():
            out[int(sounding[i]) + 1 : int(sounding[i + 1])] = True
    return where


def clipping_levels(channels: Tensor) -> tuple[tuple[float, float], ...]:
    """The levels at which the samples of a recording (C, T) pile up, above and below zero, for each
    channel; infinite where they do not.

    The largest magnitude there, where runs of three or more equal samples stand at it, of these or
    of others whose largest magnitude is the same.
    """
    sides = torch.stack([channels, -channels], 1).flatten(0, 1)
    peaks = sides.amax(1)
    levels = torch.full((len(sides),), math.inf)
    left = (peaks > 0) & (peaks >= QUIET * float(peaks.max()))
    while bool(left.any()):
        least = float(peaks[left].max()) * (1 - 1e-4)
        alike = left & (peaks >= least)
        top = sides[alike] >= least
        if bool((top[:, :-2] & top[:, 1:-1] & top[:, 2:]).any()):
            levels[alike] = sides[alike][top].min()
        left &= ~alike
    return tuple((above, below) for above, below in levels.reshape(-1, 2).tolist())


def _beyond(x: Tensor, levels: tuple[float, float], share: float) -> Tensor:
    """True where a signal (T,) is at or beyond a share of its levels above and below zero."""
    above, below = levels
    return (x >= above * share) | (x <= -below * share)
