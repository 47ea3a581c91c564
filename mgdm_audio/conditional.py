"""Stems drawn with more known than one mix, or less: known stems, regions, pairs of mixes, none.

All of it is one prior and one sampler; what differs is the evidence
(:mod:`mgdm_audio.evidence`). Signals are NumPy arrays or torch tensors, (T,) or (C, T), floating
point with full scale at 1, at any rate; results have their shape. Inside the prior's band the mono
mix is what is drawn; panning and the upper band follow :mod:`mgdm_audio.spread`.
"""

from __future__ import annotations

__all__ = [
    "Given",
    "as_channels",
    "generate",
    "redo",
    "separate_known",
    "separate_pair",
    "whole_stems",
]

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mgdm_audio import audio
from mgdm_audio.evidence import Evidence
from mgdm_audio.posterior import Callback, Drawn, active_level, described, draw
from mgdm_audio.recording import gain_to
from mgdm_audio.song import astray
from mgdm_audio.spread import spread_stems

if TYPE_CHECKING:
    from mgdm_audio.separate import Separator

Signal = np.ndarray[Any, Any] | Tensor

FADE = 0.01
"""Seconds over which a redrawn region fades into what was kept, inside the region."""


@dataclass(frozen=True, eq=False)
class Given:
    """Stems drawn for some seeds.

    Attributes:
        draws: one for each seed: by stem name, arrays of the shape that was given, float32.
        sample_rate: in hertz.
        seeds: the seeds.
        settings: model, method and what else decides a draw.
        calls, vjps, windows, residual_db: see `mgdm_audio.posterior.Drawn`.
    """

    draws: tuple[dict[str, np.ndarray[Any, Any]], ...]
    sample_rate: int
    seeds: tuple[int, ...]
    settings: dict[str, Any]
    calls: int
    vjps: int
    windows: int
    residual_db: float

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know about the draws, in sentences."""
        return astray(self.residual_db)


def separate_known(
    separator: Separator,
    mix: Signal,
    known: Mapping[str, Signal],
    sample_rate: int,
    seeds: Sequence[int],
    callback: Callback | None = None,
) -> Given:
    """Separates a mix of which some stems are there already.

    The known stems come out as they were given, and all stems add up to the mix.

    Arguments:
        separator: the prior, the sampler and the windows.
        mix: the mix.
        known: stems by name, of the shape of the mix.
        sample_rate: of all of them, in hertz.
        seeds: one for each draw.
        callback: see `mgdm_audio.posterior.Callback`.

    Raises:
        ValueError: for unknown names, shapes that differ, or all stems known.
    """
    names = separator.prior.stems
    channels = as_channels(mix, "the mix")
    stems = {name: as_channels(x, f"stem '{name}'", channels.shape) for name, x in known.items()}
    free = [k for k, name in enumerate(names) if name not in _checked(names, stems)]
    if not free:
        raise ValueError("all stems are known, there is nothing to separate")
    rest = channels - sum(stems.values(), torch.zeros_like(channels))
    heard = _heard(separator, channels, sample_rate)
    gain = _gain(separator, heard)
    evidence = Evidence(len(names), len(heard)).with_sum(heard * gain)
    for name, x in stems.items():
        mono = _heard(separator, x, sample_rate)
        evidence = evidence.with_stem(names.index(name), mono * gain)
    drawn = draw(separator, evidence, seeds, callback)
    results = []
    for x in drawn.stems:
        parts = _spread(separator, x[free] / gain, rest, sample_rate)
        parts = parts + (rest - parts.sum(0)) / len(free)
        whole = {names[k]: part for k, part in zip(free, parts, strict=True)} | stems
        results.append({name: _like(mix, whole[name]) for name in names})
    return _given(separator, results, sample_rate, seeds, drawn)


def redo(
    separator: Separator,
    stems: Mapping[str, Signal],
    start: float,
    stop: float,
    sample_rate: int,
    seeds: Sequence[int],
    only: Sequence[str] | None = None,
    callback: Callback | None = None,
) -> Given:
    """Draws a region of a separation anew; all else is kept, bit for bit.

    The stems still add up to what they added up to, and the region goes on from what is before
    and after it.

    Arguments:
        separator: the prior, the sampler and the windows.
        stems: all stems by name, of one shape.
        start, stop: the region in seconds.
        sample_rate: of the stems, in hertz.
        seeds: one for each draw.
        only: stems that may change; by default all. At least two.
        callback: see `mgdm_audio.posterior.Callback`.

    Raises:
        ValueError: for names that are missing or unknown, shapes that differ, or no such region.
    """
    names = separator.prior.stems
    if set(stems) != set(names):
        raise ValueError(f"got the stems {sorted(stems)}, expected {', '.join(names)}")
    shape = as_channels(stems[names[0]], f"stem '{names[0]}'").shape
    old = torch.stack([as_channels(stems[name], f"stem '{name}'", shape) for name in names])
    changing = sorted(names.index(n) for n in _checked(names, only if only is not None else names))
    low, high = round(start * sample_rate), round(stop * sample_rate)
    within = high <= shape[1] + FADE * sample_rate  # whoever rounds the length means the end
    high = min(high, shape[1])
    if not 0 <= low < high or not within or len(changing) < 2:
        raise ValueError(
            f"got {start} to {stop} s of {shape[1] / sample_rate:.3f} s and {len(changing)} stems, "
            "expected a region inside and at least two stems that may change"
        )
    rate = separator.prior.sample_rate
    mono = torch.stack([_heard(separator, x, sample_rate) for x in old])
    gain = _gain(separator, mono.sum(0))
    # As much around the region as fills a window, or a window's overlap: the rest is not looked at.
    settings = separator.song_settings
    begin, end = low * rate // sample_rate, -(-high * rate // sample_rate)
    pad = max(settings.overlap, (settings.window - (end - begin)) // 2)
    near = slice(max(0, begin - pad), min(mono.shape[1], end + pad))
    context = mono[:, near] * gain
    time = torch.arange(mono.shape[1])[near]
    outside = (time < begin) | (time >= end)
    evidence = Evidence(len(names), context.shape[1]).with_sum(context.sum(0))
    for k in range(len(names)):
        evidence = evidence.with_stem(k, context[k], outside if k in changing else None)
    drawn = draw(separator, evidence, seeds, callback)
    fade = torch.arange(shape[1])
    size = max(1, min(round(FADE * sample_rate), (high - low) // 4))
    weight = ((fade - low + 1) / size).clamp(0, 1) * ((high - fade) / size).clamp(0, 1)
    results = []
    for x in drawn.stems:
        # Only the change is carried to the recording's rate: where there is none, nothing moves.
        whole = mono.clone()
        whole[:, near] = x / gain
        part = _spread(separator, whole, old.sum(0), sample_rate)
        change = torch.zeros_like(old)
        change[changing] = (part - old)[changing]
        change[changing] -= change[changing].sum(0) / len(changing)
        new = torch.where(weight > 0, old + weight * change, old)
        results.append({n: _like(stems[n], y) for n, y in zip(names, new, strict=True)})
    return _given(separator, results, sample_rate, seeds, drawn)


def separate_pair(
    separator: Separator,
    mixes: Sequence[Signal],
    gains: Sequence[Sequence[float]],
    sample_rate: int,
    seeds: Sequence[int],
    callback: Callback | None = None,
) -> Given:
    """Separates several mixes of one performance at once, each a sum of the stems with gains.

    An album version and its instrumental, or the left and right channel of a mix whose panning is
    known. The prior hears the mean of a mix's channels, and in it every sum is met. If the first
    mix is the plain sum, the stems have its channels and its upper band, and add up to it;
    otherwise they are mono.

    Arguments:
        separator: the prior, the sampler and the windows.
        mixes: the mixes, of one shape and in time with each other.
        gains: of each mix, one number for each stem.
        sample_rate: of the mixes, in hertz.
        seeds: one for each draw.
        callback: see `mgdm_audio.posterior.Callback`.

    Raises:
        ValueError: for shapes or numbers that do not fit.
    """
    names = separator.prior.stems
    if not mixes or len(mixes) != len(gains):
        raise ValueError(
            f"got {len(mixes)} mixes and {len(gains)} rows of gains, expected a row each"
        )
    shape = as_channels(mixes[0], "the first mix").shape
    rows = [as_channels(x, "a mix", shape) for x in mixes]
    heard = [_heard(separator, x, sample_rate) for x in rows]
    gain = _gain(separator, max(heard, key=lambda x: float(x.square().sum())))
    evidence = Evidence(len(names), len(heard[0]))
    for x, g in zip(heard, gains, strict=True):
        evidence = evidence.with_sum(x * gain, g)
    drawn = draw(separator, evidence, seeds, callback)
    plain = all(g == 1 for g in gains[0])
    results = []
    for x in drawn.stems:
        if plain:
            parts = _spread(separator, x / gain, rows[0], sample_rate)
            parts = parts + (rows[0] - parts.sum(0)) / len(names)
            results.append({n: _like(mixes[0], p) for n, p in zip(names, parts, strict=True)})
        else:
            rate = separator.prior.sample_rate
            wide = audio.resample((x / gain).numpy(), rate, sample_rate, shape[1])
            results.append(dict(zip(names, wide, strict=True)))
    return _given(separator, results, sample_rate, seeds, drawn)


def generate(
    separator: Separator,
    given: Mapping[str, Signal],
    seconds: float | None,
    sample_rate: int,
    seeds: Sequence[int],
    wanted: Sequence[str] | None = None,
    silent: Sequence[str] = (),
    level: float | None = None,
    callback: Callback | None = None,
) -> Given:
    """Draws stems that go with given ones, without a mix; or all stems, given nothing.

    Arguments:
        separator: the prior, the sampler and the windows.
        given: stems by name, of one shape; may be empty.
        seconds: length, where nothing is given.
        sample_rate: of the given stems and of the results, in hertz.
        seeds: one for each draw.
        wanted: stems to return; by default all that are not given. The others are drawn as well,
            being unknown, but not returned.
        silent: stems that do not play.
        level: root mean square of the whole mix that the given stems would be part of, full scale
            being 1. By default they are taken to be as loud as their number has it.
        callback: see `mgdm_audio.posterior.Callback`.

    Returns:
        Stems (T,) or, where stems of C channels are given, (C, T) with equal channels.

    Raises:
        ValueError: for unknown or contradicting names, shapes that differ, or no length.
    """
    names = separator.prior.stems
    _checked(names, given)
    quiet = _checked(names, silent)
    chosen = [n for n in names if n not in given and n not in quiet] if wanted is None else wanted
    if set(quiet) & set(given) or set(_checked(names, chosen)) & (set(given) | set(quiet)):
        raise ValueError("a stem is given, silent or wanted, not two of these")
    if not chosen:
        raise ValueError("no stem is left to draw; give fewer, or silence fewer")
    rate = separator.prior.sample_rate
    like: Signal | None = next(iter(given.values()), None)
    if like is None:
        if seconds is None or not seconds > 0:
            raise ValueError(f"got a length of {seconds} s, expected a positive one")
        channels, frames = 1, math.ceil(seconds * sample_rate)
        stems: dict[str, Tensor] = {}
    else:
        channels, frames = as_channels(like, "a stem").shape
        stems = {n: as_channels(x, f"stem '{n}'", (channels, frames)) for n, x in given.items()}
    mono = {n: _heard(separator, x, sample_rate) for n, x in stems.items()}
    length = len(next(iter(mono.values()))) if mono else math.ceil(frames * rate / sample_rate)
    if level is None and mono:
        loud = active_level(sum(mono.values(), torch.zeros(length)), rate)
        playing = len(names) - len(quiet)
        level = loud * math.sqrt(playing / len(mono))
    prior = separator.song_settings.level
    gain = gain_to(prior, level or 0.0)
    evidence = Evidence(len(names), length)
    for n, x in mono.items():
        evidence = evidence.with_stem(names.index(n), x * gain)
    for n in quiet:
        evidence = evidence.with_stem(names.index(n), torch.zeros(length))
    drawn = draw(separator, evidence, seeds, callback)
    results = []
    for x in drawn.stems:
        wide = audio.resample((x / gain).numpy(), rate, sample_rate, frames)
        shaped = {n: torch.from_numpy(wide[names.index(n)]).expand(channels, -1) for n in chosen}
        results.append(
            {n: x[0].numpy() if like is None else _like(like, x) for n, x in shaped.items()}
        )
    return _given(separator, results, sample_rate, seeds, drawn)


def whole_stems(
    draw: Mapping[str, np.ndarray[Any, Any]],
    given: Mapping[str, np.ndarray[Any, Any]],
    mix: np.ndarray[Any, Any],
) -> np.ndarray[Any, Any]:
    """Stems of a draw in the precision of the mix, with the exact sum; given ones as they are.

    Arguments:
        draw: by stem, (C, T), single precision.
        given: those of the stems that were known, as they were read.
        mix: what they add up to, (C, T), float32 or float64.

    Returns:
        (K, C, T).
    """
    stack = np.stack([given.get(name, x) for name, x in draw.items()]).astype(mix.dtype, copy=False)
    if mix.dtype == np.float64:
        free = [k for k, name in enumerate(draw) if name not in given]
        stack[free] += (mix - stack.sum(0)) / len(free)  # what single precision left over
    return stack


def _checked(names: Sequence[str], asked: Sequence[str] | Mapping[str, Any]) -> list[str]:
    unknown = [name for name in asked if name not in names]
    if unknown:
        raise ValueError(f"unknown stem '{unknown[0]}', expected one of {', '.join(names)}")
    return list(asked)


def as_channels(x: Signal, what: str, shape: Sequence[int] | None = None) -> Tensor:
    """A signal as float32 (C, T). Raises ValueError if it is not one of the shape."""
    t = x.detach().cpu() if isinstance(x, Tensor) else torch.from_numpy(np.ascontiguousarray(x))
    if t.ndim not in (1, 2) or t.numel() == 0 or not t.is_floating_point():
        raise ValueError(
            f"{what} has shape {tuple(t.shape)} and type {t.dtype}, expected floats "
            "of shape (T,) or (C, T)"
        )
    t = t.reshape(-1, t.shape[-1]).float()
    if shape is not None and t.shape != torch.Size(shape):
        if t.shape[1] == shape[1]:
            raise ValueError(
                f"{what} has {len(t)} channels, expected {shape[0]}: all recordings need as many"
            )
        raise ValueError(f"{what} has shape {tuple(t.shape)}, expected {tuple(shape)}")
    if not bool(torch.isfinite(t).all()):
        raise ValueError(f"{what} has samples that are not finite")
    return t


def _like(kind: Signal, x: Tensor) -> np.ndarray[Any, Any]:
    return x.reshape(tuple(kind.shape)).numpy()


def _heard(separator: Separator, channels: Tensor, sample_rate: int) -> Tensor:
    """What the prior hears: the mean of the channels at its rate, (T,)."""
    mono = channels.mean(0).numpy()
    return torch.from_numpy(audio.resample(mono, sample_rate, separator.prior.sample_rate))


def _gain(separator: Separator, mix: Tensor) -> float:
    level = active_level(mix, separator.prior.sample_rate)
    return gain_to(separator.song_settings.level, level)


def _spread(separator: Separator, stems: Tensor, channels: Tensor, sample_rate: int) -> Tensor:
    """Stems (K, T) at the prior's rate to every channel at the recording's, (K, C, T)."""
    rate = separator.prior.sample_rate
    if sample_rate == rate and len(channels) == 1:
        return stems[:, None, : channels.shape[1]]
    wide = audio.resample(stems.numpy(), rate, sample_rate, channels.shape[1])
    return spread_stems(torch.from_numpy(wide), channels, sample_rate, rate)


def _given(
    separator: Separator,
    results: Sequence[dict[str, np.ndarray[Any, Any]]],
    sample_rate: int,
    seeds: Sequence[int],
    drawn: Drawn,
) -> Given:
    return Given(
        tuple(results), sample_rate, tuple(seeds), described(separator, drawn.seams),
        drawn.calls, drawn.vjps, drawn.windows, drawn.residual_db,
    )  # fmt: skip
