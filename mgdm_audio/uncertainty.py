r"""What several draws of one separation say together.

Draws :math:`x^{(1)}, \dots, x^{(N)}` of the posterior are all plausible; where they agree the mix
decides, where they differ it does not. From them come

- the mean, which has the least squared error of all estimates: that of one draw is twice the
  posterior variance, that of the mean of N is :math:`1 + 1/N` times it;
- the spread of each stem by time and band, :math:`\frac{1}{N-1} \sum_i |X^{(i)} - \bar X|^2`, an
  unbiased estimate of the posterior variance;
- for each stem, the probability that it plays: the share of draws in which it is audible;
- a ranking: the draw that is nearest to all others first, the one of least expected squared error
  if the truth is one of the draws' kind.

They mean as much as the sampler's and the prior's spread does: see docs/uncertainty.md for which
one is exact enough, how that is tested, and by how much real songs are further off than foretold.
"""

from __future__ import annotations

__all__ = ["BANDS", "FRAME", "Uncertainty", "assess"]

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BANDS = (0.0, 125.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0, math.inf)
"""Edges of the bands in hertz: octaves."""

FRAME = 0.1
"""Seconds of a frame of time."""

AUDIBLE_DB = -50.0
"""A stem plays where it is within this of the mix's level over the whole recording."""


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """Statistics of N draws of K stems, by frames of `FRAME` seconds and by `BANDS`.

    Attributes:
        names: of the stems.
        sample_rate: in hertz.
        mean: the mean stems, (K, ...) of the shape of the draws.
        power: mean power of the draws, (K, bands, frames).
        spread: posterior variance by the draws, in the same units, (K, bands, frames).
        level_db: levels of the stems in dB re full scale, of each draw, (N, K, frames).
        present: probability that a stem plays, (K, frames).
        presence: probability that it plays anywhere, (K,).
        ranking: indices of the draws, the nearest to all others first.
        distance: root mean square distance of each draw to the others, (N,), relative to the mix.
        spread_over_error: what the spread was measured to be of the error it foretells, where that
            is known; 1 is exact.
    """

    names: tuple[str, ...]
    sample_rate: int
    mean: NDArray[Any]
    power: Floats
    spread: Floats
    level_db: Floats
    present: Floats
    presence: Floats
    ranking: tuple[int, ...]
    distance: Floats
    spread_over_error: float = 1.0

    @property
    def draws(self) -> int:
        """Number of draws N."""
        return len(self.distance)

    def interval_db(self, probability: float = 0.9) -> tuple[Floats, Floats]:
        """Levels between which a stem lies with this probability, each (K, frames), in dB.

        Between the quantiles of the draws, placed so that another draw of the same posterior
        falls between them with at least this probability, or between the extremes, where N draws
        cannot say more: then :meth:`interval_probability` is what they stand for.

        Raises:
            ValueError: unless the probability is between 0 and 1.
        """
        if not 0 < probability < 1:
            raise ValueError(f"got a probability of {probability}, expected 0 to 1")
        order = np.sort(self.level_db, axis=0)
        below = self._rank(probability)
        return order[below], order[-1 - below]

    def interval_probability(self, probability: float = 0.9) -> float:
        """What :meth:`interval_db` stands for: the share of rank statistics between its ends."""
        return (self.draws - 1 - 2 * self._rank(probability)) / (self.draws + 1)

    def _rank(self, probability: float) -> int:
        """Draws that are left out at each end: P(inside) = (N - 1 - 2 r) / (N + 1)."""
        return max(0, math.floor((self.draws - 1 - probability * (self.draws + 1)) / 2 + 1e-9))

    def relative(self) -> Floats:
        """Spread over mean power in each stem, band and frame, 0 (sure) to about 1, (K, bands,
        frames); 0 where there is nothing."""
        return np.divide(
            self.spread, self.power, out=np.zeros_like(self.spread), where=self.power > 1e-12
        ).clip(0, 1)

    def error_db(self) -> Floats:
        """SNR of the mean stems that the spread foretells, (K,), in dB; with the share of the error
        that it was measured to foretell.

        The true stems are taken to be as loud as the draws, which are their equals: the mean's
        power would be too little.
        """
        signal = self.power.sum((1, 2))
        noise = self.spread.sum((1, 2)) * (1 + 1 / self.draws) / self.spread_over_error**2
        with np.errstate(divide="ignore", invalid="ignore"):
            return 10 * np.log10(signal / noise)

    def to_dict(self) -> dict[str, Any]:
        """What fits a report: everything but the waves and the bands by time."""
        return {
            "draws": self.draws,
            "spread_over_error": self.spread_over_error,
            "ranking": list(self.ranking),
            "distance": [round(float(d), 6) for d in self.distance],
            "stems": {
                name: {
                    "probability_present": round(float(self.presence[k]), 4),
                    "expected_snr_db": _finite(float(self.error_db()[k])),
                    "uncertain_share": round(
                        float(self.spread[k].sum() / max(self.power[k].sum(), 1e-300)), 4
                    ),
                }
                for k, name in enumerate(self.names)
            },
        }


def assess(
    draws: Sequence[NDArray[Any]] | NDArray[Any],
    names: Sequence[str],
    sample_rate: int,
    spread_over_error: float = 1.0,
) -> Uncertainty:
    """Statistics of several draws.

    Arguments:
        draws: N draws of the stems, each (K, T) or (K, C, T), at least two.
        names: of the K stems.
        sample_rate: in hertz.
        spread_over_error: see `Uncertainty`.

    Raises:
        ValueError: for fewer than two draws, or shapes that differ.
    """
    if len(draws) < 2:
        raise ValueError(f"got {len(draws)} draws, expected at least two to tell a spread")
    shapes = {np.shape(x) for x in draws}
    if len(shapes) > 1 or len(next(iter(shapes))) not in (2, 3):
        raise ValueError(f"got draws of shapes {sorted(shapes)}, expected one (K, T) or (K, C, T)")
    stack = [np.asarray(x) for x in draws]
    if len(stack[0]) != len(names):
        raise ValueError(f"got {len(stack[0])} stems and {len(names)} names")
    n = len(stack)
    # Draw by draw: a song's draws take gigabytes.
    mean = np.zeros(stack[0].shape)
    for x in stack:
        mean += x
    mean /= n
    mono = [x if x.ndim == 2 else x.mean(1) for x in stack]
    centre = mean if mean.ndim == 2 else mean.mean(1)
    power = np.mean([_bands(x, sample_rate) for x in mono], axis=0)
    spread = sum(_bands(x - centre, sample_rate) for x in mono) / (n - 1)
    levels = np.stack([_bands(x, sample_rate).sum(1) for x in mono])
    floor = 10 ** (AUDIBLE_DB / 10) * max(float(np.square(centre.sum(0)).mean()), 1e-20)
    whole = max(float(np.square(mean.sum(0)).sum()), 1e-300)
    # Mean squared distance to the others, by the distance to the mean: no N^2 comparisons.
    about = np.array([np.square(x - mean).sum() for x in stack])
    distance = np.sqrt((n * about + about.sum()) / (n - 1) / whole)
    return Uncertainty(
        names=tuple(names),
        sample_rate=sample_rate,
        mean=mean.astype(stack[0].dtype),
        power=power,
        spread=np.asarray(spread),
        level_db=10 * np.log10(np.maximum(levels, 1e-20)),
        present=(levels > floor).mean(0),
        presence=(levels.mean(2) > floor).mean(0),
        ranking=tuple(int(i) for i in np.argsort(distance, kind="stable")),
        distance=distance,
        spread_over_error=spread_over_error,
    )


def _bands(x: NDArray[Any], sample_rate: int) -> Floats:
    """Power by band and frame, (K, bands, frames), that adds up to the mean square of a frame, also
    of the last one, which may be shorter."""
    size = max(2, round(FRAME * sample_rate))
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % size))).reshape(len(x), -1, size)
    # Frames side by side: no leakage between them, and power is kept exactly (Parseval).
    spectrum = torch.fft.rfft(torch.from_numpy(padded).double()).abs().square() / size**2
    spectrum[..., 1 : (size + 1) // 2] *= 2
    if rest := x.shape[1] % size:
        spectrum[:, -1] *= size / rest  # of zeros behind it, that count for nothing
    frequencies = np.arange(size // 2 + 1) * sample_rate / size
    index = torch.from_numpy(np.searchsorted(BANDS, frequencies, side="right") - 1)
    out = spectrum.new_zeros(*spectrum.shape[:2], len(BANDS) - 1)
    out.index_add_(2, index, spectrum)
    return out.mT.numpy()


def _finite(value: float) -> float | None:
    return round(value, 2) if math.isfinite(value) else None
