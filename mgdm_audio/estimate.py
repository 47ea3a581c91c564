r"""Estimates of what gaps held: stems as autoregressions, and the prior beside them.

A draw from a posterior has twice the squared error of the posterior's mean. Where the nearest
signal is asked for, it is made of these, at the prior's level:

- A recording is one autoregression (:mod:`mgdm_audio.autoregression`), which fills its gaps.
- A mix, filled so, is split into stems by the regressor. Each stem is an autoregression of its
  own, of which the sound around a gap says more than of that of the mix; the result is the sum of
  what they are in the gap.
- The gap of a stem is also looked at by the prior, at one noise level:
  :math:`p = E[x_k \mid m + \sigma n]`, m what the autoregression gives, C its covariance. How wrong
  it is, V, is the covariance of what it makes of the known samples around the gap. The result is
  the mean of the product of two Gaussians, :math:`p + V (V + C / c)^{-1} (m - p)`.

The prior is not asked for mixes, which do not gain by it, at any c (docs/restoration.md).

Recordings are at the prior's rate or below it. One below it keeps its own for its autoregression,
to which an empty upper band would say that all is foretold; only what the networks see is brought
to theirs.
"""

from __future__ import annotations

__all__ = ["LONGEST", "SIGMA", "Experts", "combined", "fill"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray

from mgdm_audio import audio, autoregression
from mgdm_audio.denoise import Denoiser
from mgdm_audio.draws import SeededDraws
from mgdm_audio.regress import Regressor
from mgdm_audio.windows import WindowPlan, window_seed

Wave = NDArray[np.float64]

SIGMA = 0.3
"""Noise level at which the prior is asked; mixes have 0.08 at its level."""

NOISES = 2
"""Noises over which its answer is averaged."""

CONFIDENCE = 3.0
"""c, what an autoregression is surer than it says, beside the prior. With 3, 10 and 30, gaps in the
drums of eight validation songs are 0.35, 0.25 and 0.13 dB nearer than with m alone."""

LONGEST = 0.2
"""Seconds of the longest gap that is estimated. What is in the middle of a longer one is not told
by what is around it: the estimate would be silence."""


@dataclass(frozen=True, eq=False)
class Experts:
    """The models that are asked, and how.

    Attributes:
        denoise: the prior.
        regress: the regressor; None where the recording is not split.
        plan: the windows of the recording at the models' rate, see `WindowPlan`.
        rate: of the models, in hertz.
        device: of the models.
        half: whether the networks compute in bfloat16.
        report: told of each network call.
    """

    denoise: Denoiser
    regress: Regressor | None
    plan: WindowPlan
    rate: int
    device: torch.device
    half: bool
    report: Callable[[], None]

    def split(self, mix: Wave, stems: int, rate: int) -> Wave:
        """Stems (K, T) of a mix (T,) at a rate, which add up to it; the mix itself, (1, T), if not
        split."""
        if self.regress is None:
            return mix[None]
        windows, seen = [], audio.resample(mix, rate, self.rate)
        for i in range(len(self.plan.starts)):
            y = self.plan.cut(torch.from_numpy(seen).float(), i)[None, None].to(self.device)
            known = torch.zeros(1, stems, dtype=torch.bool, device=self.device)
            with self._precision():
                x = self.regress(y, y.new_zeros(1, stems, y.shape[2]), known)
            windows.append(x[0].double().cpu())
            self.report()
        whole = audio.resample(self.plan.join(windows).numpy(), self.rate, rate, len(mix))
        return np.asarray(whole + (mix - whole.sum(0)) / stems)

    def heard(self, x: Wave, rate: int, sigma: float, seed: int, where: NDArray[np.bool_]) -> Wave:
        """The prior's mean of the stems (K, T) at a rate given them with noise; only in windows
        with True in `where`, (T,), the others stay as they are."""
        clean, windows = torch.from_numpy(audio.resample(x, rate, self.rate)), []
        for i in range(len(self.plan.starts)):
            part = self.plan.cut(clean, i)
            if not self.looks(i, where, rate):
                windows.append(part)
                continue
            draws = SeededDraws([window_seed(seed, i)], self.device)
            total = torch.zeros_like(part)
            for _ in range(NOISES):
                noisy = part.float()[None].to(self.device)
                noisy = noisy + sigma * draws.normal(tuple(noisy.shape))
                with self._precision():
                    total += self.denoise(noisy, noisy.new_full((1,), sigma))[0].double().cpu()
                self.report()
            windows.append(total / NOISES)
        whole = audio.resample(self.plan.join(windows).numpy(), self.rate, rate, x.shape[1])
        return np.asarray(whole, np.float64)

    def looks(self, index: int, where: NDArray[np.bool_], rate: int) -> bool:
        """Whether a window has True in `where`, (T,), at a rate."""
        start, stop = self.plan.span(index)
        return bool(where[start * rate // self.rate : -(-stop * rate // self.rate)].any())

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)


def fill(
    experts: Experts,
    y: Wave,
    missing: NDArray[np.bool_],
    gains: Wave,
    seeds: Sequence[int],
    rate: int | None = None,
) -> list[Wave]:
    """A recording with its gaps filled, see the module.

    Arguments:
        experts: the models.
        y: the recording, (T,).
        missing: True in the gaps, (T,).
        gains: of the stems in the recording, (K,): all 1 for a mix, 1 for one of them for a stem.
        seeds: of the noise; one for each result. Those of a mix are alike.
        rate: of the recording, in hertz; None for that of the models.

    Returns:
        The recordings, (T,), the same outside of the gaps.
    """
    rate = rate or experts.rate
    filled = autoregression.interpolate(y[None], missing, rate)
    m = filled.signals[0]
    if bool((gains == 1).all()):
        if experts.regress is not None:
            stems = experts.split(m, len(gains), rate)
            m = autoregression.interpolate(stems, missing, rate).signals.sum(0)
        return [np.where(missing, m, y) for _ in seeds]
    x = gains[:, None] * m
    heard = [gains @ experts.heard(x, rate, SIGMA, seed, missing) for seed in seeds]
    out, reach = [np.array(y, np.float64) for _ in seeds], rate // 3
    for gap in filled.gaps:
        here, c = slice(gap.start, gap.stop), gap.covariance() / CONFIDENCE
        near = slice(max(0, gap.start - reach), gap.stop + reach)
        for target, p in zip(out, heard, strict=True):
            wrong = np.where(missing, 0.0, y - p)[near]
            v = _covariance(wrong, int((~missing[near]).sum()), len(c))
            target[here] = combined(m[here], c, p[here], scipy.linalg.toeplitz(v))
    return out


def _covariance(x: Wave, count: int, size: int) -> Wave:
    """Covariances at lags 0 to size - 1 of a signal of which `count` samples are not blank."""
    power = np.abs(np.fft.rfft(x, 2 * max(len(x), size))) ** 2
    return np.asarray(np.fft.irfft(power)[:size] / max(1, count))


def combined(m: Wave, c: Wave, p: Wave, v: Wave) -> Wave:
    """Mean, (n,), of the product of N(m, c) and N(p, v)."""
    both = v + c
    both[np.diag_indices(len(m))] += 1e-9 * float(np.trace(both)) / len(m) + 1e-300
    return np.asarray(p + v @ np.linalg.solve(both, m - p))
