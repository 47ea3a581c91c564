r"""What posterior samples say about themselves, held against the true stems.

If the samples of a method and the truth were draws of one posterior, then

- the squared error of a mean of n samples would be :math:`(1 + 1/n)/2` times that of one, a gain
  of :math:`10 \log_{10} (2 / (1 + 1/n))` dB;
- the rank of the truth among n samples would be uniform on 0, ..., n, coordinate by coordinate;
- the truth would lie between the smallest and the largest in (n - 1)/(n + 1) of the cases;
- the spread :math:`\sqrt{(1 + 1/n) V}`, V the samples' variance, would be the error of their mean.

Nearness and honesty together are what a proper score rewards: the continuous ranked probability
score :math:`E|X - x| - E|X - X'| / 2` of two samples X, X' and the truth x (Gneiting and Raftery,
JASA 2007), of all laws the least for the one that the truth is drawn from.

The coordinates are the real and imaginary parts of time-frequency bins in which the mixture
sounds, by stem and band. Both sides are NumPy or torch arrays on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mgdm_audio.nn.stft import TightFrame

Floats = NDArray[np.float64]

BANDS = ((0.0, 250.0), (250.0, 1000.0), (1000.0, 4000.0), (4000.0, 11025.0))
"""Edges of the bands in hertz."""

AUDIBLE_DB = -60.0
"""A bin counts where the mixture is within this of its loudest bin in the clip."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Ranks and spreads by stem and band; sums, so that clips can be added.

    Attributes:
        ranks: how often the truth had each rank among n samples, int (K, bands, n + 1).
        variance: sum over coordinates of the samples' (unbiased) variance, (K, bands).
        error: sum over coordinates of the squared error of their mean, (K, bands).
        crps: sum over coordinates of the ranked probability score (unbiased), (K, bands).
        size: sum over coordinates of the truth's magnitude: the score of silence, (K, bands).
    """

    ranks: NDArray[np.int64]
    variance: Floats
    error: Floats
    crps: Floats
    size: Floats

    def __add__(self, other: Calibration) -> Calibration:
        return Calibration(
            self.ranks + other.ranks, self.variance + other.variance, self.error + other.error,
            self.crps + other.crps, self.size + other.size,
        )  # fmt: skip

    @property
    def samples(self) -> int:
        """The number n."""
        return self.ranks.shape[-1] - 1

    def coverage(self) -> Floats:
        """Share of coordinates with the truth inside the samples' range, (K, bands)."""
        total = self.ranks.sum(-1)
        inside = self.ranks[..., 1:-1].sum(-1)
        return np.where(total > 0, inside / np.maximum(total, 1), np.nan)

    def nominal_coverage(self) -> float:
        """What :meth:`coverage` would be for exact samples."""
        return (self.samples - 1) / (self.samples + 1)

    def spread_ratio(self) -> Floats:
        """Spread over error, (K, bands): 1 for exact samples, below 1 for too sure ones."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.sqrt((1 + 1 / self.samples) * self.variance / self.error)

    def whole_coverage(self) -> float:
        """:meth:`coverage` over all coordinates."""
        return int(self.ranks[..., 1:-1].sum()) / max(1, int(self.ranks.sum()))

    def whole_ratio(self) -> float:
        """:meth:`spread_ratio` over all coordinates; nan where nothing sounds."""
        error = float(self.error.sum())
        if error == 0:
            return math.nan
        return math.sqrt((1 + 1 / self.samples) * float(self.variance.sum()) / error)

    def relative_crps(self) -> Floats:
        """The ranked probability score over that of silence, (K, bands): the less the better."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.crps / self.size


def calibrate(samples: Floats, truth: Floats, rate: int, n_fft: int = 2048) -> Calibration:
    """Ranks and spreads of one clip.

    Arguments:
        samples: n posterior samples, with shape (n, K, T), n at least 2.
        truth: true stems, with shape (K, T).
        rate: sample rate in hertz.
        n_fft: window of the transform in samples.

    Raises:
        ValueError: for shapes that do not fit, or fewer than two samples.
    """
    if samples.ndim != 3 or samples.shape[1:] != truth.shape or len(samples) < 2:
        raise ValueError(
            f"got samples {samples.shape} and truth {truth.shape}, expected (n, K, T) and (K, T) "
            "with n at least 2"
        )
    frame = TightFrame(n_fft)
    length = truth.shape[-1] - truth.shape[-1] % frame.hop

    def bins(x: Floats) -> Floats:
        """(..., T) to real and imaginary parts (..., bins, frames * 2)."""
        z = frame(torch.from_numpy(np.ascontiguousarray(x[..., :length], dtype=np.float32)))
        return torch.view_as_real(z.transpose(-1, -2)).flatten(-2).double().numpy()

    true, drawn = bins(truth), bins(samples)
    mix = true.sum(0).reshape(*true.shape[1:-1], -1, 2)
    power = np.repeat(np.square(mix).sum(-1), 2, axis=-1)
    audible = power > power.max() * 10 ** (AUDIBLE_DB / 10)
    frequency = np.arange(frame.bins) * rate / n_fft
    n, stems = len(samples), len(truth)
    ranks = np.zeros((stems, len(BANDS), n + 1), np.int64)
    variance, error, crps, size = np.zeros((4, stems, len(BANDS)))
    # Sum over pairs of |x_i - x_j|, from the sorted samples.
    weight = (2 * np.arange(1, n + 1) - n - 1)[:, None] / (n * (n - 1))
    for b, (low, high) in enumerate(BANDS):
        chosen = audible & ((frequency >= low) & (frequency < high))[:, None]
        for k in range(stems):
            t, d = true[k][chosen], drawn[:, k][:, chosen]
            ranks[k, b] = np.bincount((d < t).sum(0), minlength=n + 1)
            variance[k, b] = d.var(0, ddof=1).sum()
            error[k, b] = np.square(d.mean(0) - t).sum()
            apart = (weight * np.sort(d, 0)).sum()
            crps[k, b] = np.abs(d - t).mean(0).sum() - apart
            size[k, b] = np.abs(t).sum()
    return Calibration(ranks, variance, error, crps, size)


def averaging_gain(samples: Floats, truth: Floats, count: int) -> tuple[Floats, Floats]:
    """Squared errors (K,) of one sample and of the mean of the first `count`.

    The first is the mean over those samples.
    """
    first = samples[:count]
    one = np.square(first - truth).sum(-1).mean(0)
    mean = np.square(first.mean(0) - truth).sum(-1)
    return one, mean


def theoretical_gain(count: int) -> float:
    """10 log10(2 / (1 + 1/n)) in dB."""
    return 10 * math.log10(2 / (1 + 1 / count))


def powers_of_two(count: int) -> list[int]:
    """1, 2, 4, ... up to `count`, and `count` itself."""
    return sorted({1 << k for k in range(count.bit_length()) if 1 << k <= count} | {count})


def best_of(improvements: Sequence[Floats]) -> Floats:
    """The oracle's choice: for each window and stem the best of n scores (windows, K)."""
    return np.max(np.stack(improvements), axis=0)
