r"""A regressor asked about a mix at several speeds, and the mean of what it answers.

A mix that is played faster or slower is a mix, of smaller or larger instruments in another key, and
so are its stems. What a regressor gets wrong of it is in part something else each time. With
:math:`V_i` the change of speed,

.. math:: \hat x = R(y) + \frac{1}{n} \sum_{i=2}^n V_i^{-1} \left( R(V_i y) - V_i R(y) \right).

What a change of speed loses, the top of the band, is so left to the answer at the original speed;
and as the answers add up to their mixes, each bracket adds up to nothing, and the mean to the mix.

This is test-time augmentation, which helps as far as training has shown other speeds
(recipes/regressor does); of separation with Demucs it is known for shifts in time.
"""

from __future__ import annotations

__all__ = ["SPEEDS", "Varispeed", "check_speeds"]

from collections.abc import Callable
from fractions import Fraction

import torch
import torchaudio
from torch import Tensor

from mgdm_audio.regress import Regressor

SPEEDS = (
    *(Fraction(3, 4), Fraction(4, 3)),
    *(Fraction(5, 6), Fraction(6, 5)),
    *(Fraction(2, 3), Fraction(3, 2)),
)
"""The other speeds, those that gain most first (recipes/regressor); of small numbers."""

_ZEROS = 32
"""Zero crossings of the resampling filter on each side."""


def check_speeds(speeds: int) -> None:
    """Raises ValueError if there are not so many speeds, the original one counted."""
    if not 1 <= speeds <= 1 + len(SPEEDS):
        raise ValueError(f"speeds must be from 1 to {1 + len(SPEEDS)}, got {speeds}")


class Varispeed:
    """A `Regressor` that asks another one several times.

    Arguments:
        regress: the other one.
        speeds: how often it is asked, at the original speed and at the first of `SPEEDS`.
        report: told of each time.

    Raises:
        ValueError: if it is asked less than once, or at more speeds than there are.
    """

    def __init__(
        self, regress: Regressor, speeds: int, report: Callable[[], object] = lambda: None
    ) -> None:
        check_speeds(speeds)
        self.regress, self.speeds, self.report = regress, SPEEDS[: speeds - 1], report

    def __call__(self, mix: Tensor, stems: Tensor, known: Tensor) -> Tensor:
        """See `Regressor`."""
        plain = self._asked(mix, stems, known)
        total = torch.zeros_like(plain)
        for speed in self.speeds:
            given = torch.where(known[:, :, None], stems, 0)
            answer = self._asked(played(mix, speed), played(given, speed), known)
            total += played(answer - played(plain, speed), 1 / speed)[..., : mix.shape[2]]
        mean = plain + total / (1 + len(self.speeds))
        return torch.where(known[:, :, None], stems, mean)

    def _asked(self, mix: Tensor, stems: Tensor, known: Tensor) -> Tensor:
        answer = self.regress(mix, stems, known)
        self.report()
        return answer


def played(x: Tensor, speed: Fraction) -> Tensor:
    """A signal at another speed: (B, K, T) to (B, K, ceil(T / speed)).

    Every signal by itself, so that a batch changes nothing.
    """
    resample = torchaudio.functional.resample
    with torch.autocast(x.device.type, enabled=False):
        rows = [
            resample(row, speed.numerator, speed.denominator, lowpass_filter_width=_ZEROS)
            for row in x.float().flatten(0, 1)
        ]
    return torch.stack(rows).unflatten(0, x.shape[:2]).to(x)
