"""Draws of the stems of a song given any evidence, window by window.

Windows are drawn in order. Each is told the stems of the window before it where they overlap, so
that it goes on from them; where a sampler cannot be told, they are cross-faded. What is exact in
the evidence (known stems, undamaged mixes) is met exactly, to the rounding of float32. Every draw
has a seed of its own and depends on nothing else.
"""

from __future__ import annotations

__all__ = [
    "DEFAULTS",
    "SPREAD_OVER_ERROR",
    "Drawn",
    "active_level",
    "described",
    "draw",
    "separator_for",
]

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mgdm_audio.compose import LinearRows
from mgdm_audio.consistency import make_consistent
from mgdm_audio.denoise import CountingDenoiser
from mgdm_audio.draws import SeededDraws
from mgdm_audio.evidence import Evidence, Observed
from mgdm_audio.operators import PointwiseOperator
from mgdm_audio.samplers.base import Problem
from mgdm_audio.windows import WindowPlan, window_seed

if TYPE_CHECKING:
    from mgdm_audio.separate import Separator

_SURE: dict[str, Any] = {
    "method": "mgdm", "preset": "warm", "warm_start": "regressor", "warm_sigma": 0.03,
}  # fmt: skip
_HIGH: dict[str, Any] = {"preset": "default", "warm_sigma": 0.3}
_UNSURE: dict[str, Any] = {
    "method": "ding", "preset": "fast", "warm_start": "regressor", "warm_sigma": 1.0,
}  # fmt: skip

DEFAULTS: dict[str, dict[str, Any]] = {
    "known": _SURE,
    "also": _SURE,
    "redo": _SURE | _HIGH,
    "samples": _UNSURE,
    "generate": {"method": "ding", "preset": "default"},
}
"""What decides a draw, by what is asked. One draw shall be near to the truth, and begins with the
regressor's estimate as a separation does; one that is drawn anew shall be another, and begins
higher; several shall differ by what they do not know, which takes DING and a start from high noise
(docs/uncertainty.md has the figures)."""

SPREAD_OVER_ERROR = 0.62
"""Spread of several draws by `DEFAULTS` over the error of their mean, with the shipped models on
held-out songs: so much of the error is foretold (docs/uncertainty.md)."""

MULTIPLE = 2048
"""A song shorter than a window is padded to a multiple of this."""

Callback = Callable[[int, int], None]
"""Told (done, total) in planned network calls; raising in it cancels."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """Draws and what they cost.

    Attributes:
        stems: (N, K, T).
        calls: network calls.
        vjps: those of them with a gradient.
        windows: windows that were sampled, of each draw.
        residual_db: what the sampler left of the evidence before it was met, relative to it.
        seams: how neighbouring windows were made to agree, see :data:`mgdm_audio.song.SEAMS`.
    """

    stems: Tensor
    calls: int
    vjps: int
    windows: int
    residual_db: float
    seams: str


class _Missed:
    """How far draws are from the evidence, so far."""

    def __init__(self) -> None:
        self.rest = self.whole = 0.0

    def add(self, seen: Observed, stems: Tensor) -> None:
        """Counts stems (N, K, T) that were drawn for an observation of one item."""
        error = seen.y.to(stems) - seen.operator.forward(stems)
        self.rest += float(error.double().square().sum())
        self.whole += len(stems) * float(seen.y.double().square().sum())

    @property
    def db(self) -> float:
        if not self.rest or not self.whole:
            return -math.inf
        return 10 * math.log10(self.rest / self.whole)


def separator_for(task: str, model: Any = None, **options: Any) -> Separator:
    """The separator that suits a task.

    Arguments:
        task: one of `DEFAULTS`.
        model: name or folder of a prior, or a loaded one, which is then asked alone, without the
            regressor, that is trained for the shipped one's stems; None for the shipped one.
        options: others of :class:`mgdm_audio.separate.Separator`, which go before the defaults.
    """
    from mgdm_audio.separate import Separator

    chosen = dict(DEFAULTS[task])
    own = all(options.get(name, chosen[name]) == chosen[name] for name in ("method", "preset"))
    if chosen["preset"] == "warm" and (model is not None or not own):
        # No other preset or method has levels enough below so low a start.
        chosen |= _HIGH
    if model is not None:
        del chosen["warm_start"], chosen["warm_sigma"]
    return Separator(model, **(chosen | options))


def draw(
    separator: Separator,
    evidence: Evidence,
    seeds: Sequence[int],
    callback: Callback | None = None,
    wanted: Tensor | None = None,
) -> Drawn:
    """Draws stems given evidence.

    Arguments:
        separator: the prior, the sampler and the windows; an average that it is to make is left
            out: each draw is one sample.
        evidence: what is known, at the prior's rate and level.
        seeds: one for each draw.
        callback: see `Callback`.
        wanted: True at the samples that are asked for, (T,): windows without any are not drawn,
            their stems are 0; None for all.

    Returns:
        One draw for each seed; draw i is what its seed alone gives.

    Raises:
        ValueError: if there is no seed, the separator has an other stem or a residual, which are
            not drawn, or the sampler cannot take the evidence.
        FloatingPointError: if the sampler gives values that are not finite.
    """
    if not seeds:
        raise ValueError("got no seeds, expected at least one")
    settings = separator.song_settings
    if settings.other is not None or settings.residual:
        raise ValueError(
            f"got other = {settings.other} and residual = {settings.residual}: what is drawn here "
            "is the prior's stems alone; leave them out"
        )
    plan = WindowPlan(evidence.length, settings.window, settings.overlap, MULTIPLE)
    told = _told(separator, evidence, plan)
    planned = separator.sampler.cost().calls
    total = planned * len(plan.starts) * len(seeds)
    denoise, missed = CountingDenoiser(separator.models.asked()), _Missed()
    done = sampled = 0
    tails: list[Tensor | None] = [None] * len(seeds)
    windows: list[Tensor] = []
    for index, start in enumerate(plan.starts):
        skipped = wanted is not None and not bool(wanted[slice(*plan.span(index))].any())
        if skipped or evidence.silent(start, start + plan.size):
            windows.append(torch.zeros(len(seeds), evidence.stems, plan.size))
            tails = [None] * len(seeds)
            done += planned * len(seeds)
            continue
        drawn: list[Tensor] = []
        for first in range(0, len(seeds), separator.batch):
            group = range(first, min(first + separator.batch, len(seeds)))

            def report(calls: int, _: int, so_far: int = done, many: int = len(group)) -> None:
                if callback is not None:
                    callback(so_far + calls * many, total)

            drawn += _sample(
                separator, denoise, evidence, start, plan.size, [tails[i] for i in group],
                [window_seed(seeds[i], index) for i in group], report, missed,
            )  # fmt: skip
            done += planned * len(group)
        sampled += 1
        windows.append(torch.stack(drawn))
        if told and index + 1 < len(plan.starts):
            _, end = plan.fades()[index]
            following = plan.starts[index + 1]
            tails = [stems[:, following - start : end - start].clone() for stems in drawn]
    if callback is not None:
        callback(total, total)
    seams = "condition" if told else "fade"
    return Drawn(plan.join(windows), denoise.calls, denoise.vjps, sampled, missed.db, seams)


def described(separator: Separator, seams: str) -> dict[str, Any]:
    """What decides a draw: of the separator's settings those that `draw` goes by.

    Arguments:
        separator: see `draw`.
        seams: see `Drawn`.
    """
    return separator.describe() | {"average": 1, "seams": seams}


def _told(separator: Separator, evidence: Evidence, plan: WindowPlan) -> bool:
    """Whether windows are told the stems of the one before them, or are cross-faded: because that
    is asked for, or because the sampler could not solve what it is then told."""
    if separator.song_settings.seams == "fade":
        return False
    if len(plan.starts) == 1:  # nothing is told, whatever the sampler
        return True
    seen = evidence.window(0, plan.size, torch.zeros(evidence.stems, 1))
    if isinstance(seen.operator, LinearRows):
        # A filter beside exact samples is solved by conjugate gradients, which do not come to an
        # end with it.
        return not separator.sampler.solves
    # What is told has no noise, beside a recording that has.
    return separator.sampler.takes_levels or not isinstance(seen.sigma_y, Tensor)


def _sample(
    separator: Separator,
    denoise: CountingDenoiser,
    evidence: Evidence,
    start: int,
    size: int,
    tails: list[Tensor | None],
    seeds: list[int],
    report: Callback,
    missed: _Missed,
) -> list[Tensor]:
    """Stems (K, size) of one window, one for each seed."""
    seen = [evidence.window(start, size, tail) for tail in tails]
    alike = all(torch.equal(s.y, seen[0].y) for s in seen)
    if not alike:  # each draw has a past of its own, and an operator with it
        one = [
            _sample(separator, denoise, evidence, start, size, [tail], [seed], report, missed)
            for tail, seed in zip(tails, seeds, strict=True)
        ]
        return [stems for (stems,) in one]
    shape = (len(seeds), evidence.stems, size)
    y = seen[0].y.expand(len(seeds), -1, -1).contiguous().to(separator.device)
    draws = SeededDraws(seeds, separator.device, y.dtype)
    half = separator.dtype != torch.float32
    with torch.autocast(separator.device.type, torch.bfloat16, enabled=half):
        stems = separator.sampler.sample(
            denoise, Problem(seen[0].operator, y, seen[0].sigma_y, shape), draws, report
        ).cpu()
    missed.add(seen[0], stems)
    return [_settled(evidence, x, start, tail) for x, tail in zip(stems, tails, strict=True)]


def _settled(evidence: Evidence, x: Tensor, start: int, tail: Tensor | None) -> Tensor:
    """Stems that meet what is exact; what one mix is short of is shared by bins of time and
    frequency before the rest is settled sample by sample."""
    only = evidence.sums[0] if len(evidence.sums) == 1 else None
    if only is not None and only.exact and set(only.gains) == {1.0}:
        keep = evidence.window(start, x.shape[1], tail)
        free = torch.ones(evidence.stems, dtype=torch.bool)
        known = torch.zeros(evidence.stems, x.shape[1])
        if isinstance(keep.operator, PointwiseOperator) and keep.y.shape[1] > 1:
            told = keep.operator.field[0, 1:].diagonal(dim1=0, dim2=1).mT != 0
            free = ~told.all(1)
            known = keep.y[0, 1:]
        if bool(free.any()):
            rest = keep.y[0, 0] - known[~free].sum(0)
            x = x.clone()
            x[free] = make_consistent(x[free], rest)
    return evidence.settle(x, start, tail)


def active_level(mix: Tensor, rate: int) -> float:
    """Root mean square of a signal (T,) over its tenths of a second within 60 dB of the loudest.

    It is 0 for digital silence.
    """
    # Shorter than a block, it is one: silence that filled it up would be no part of the signal.
    block = max(1, min(rate // 10, len(mix)))
    padded = torch.nn.functional.pad(mix, (0, -len(mix) % block))
    power = padded.double().unflatten(0, (-1, block)).square().mean(-1)
    return float(power[power >= power.max() * 1e-6].mean().sqrt())
