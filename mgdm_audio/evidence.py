"""What is known about the stems of a song: mixes, whole or damaged, and parts of stems.

`Evidence` is put together piece by piece, cut into windows, and turned into the operator that a
sampler sees. All signals are mono, at the prior's rate and level.

- a separation is one mix;
- with stems that are known, a mix and those stems;
- a new draw of a region, a mix and all stems outside of the region;
- two mixes of one song, two sums with their gains;
- an accompaniment, some stems and no mix;
- a repair, a mix or a stem through what damaged it.
"""

from __future__ import annotations

__all__ = ["Damage", "Evidence", "Observed", "Sum"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mgdm_audio.compose import compose, masked, stack
from mgdm_audio.observe import NoiseLevel, Operator
from mgdm_audio.operators import Given, Mask, Mixture, Nothing, PointwiseOperator

Damage = Callable[[Tensor], Operator]
"""The operator on one channel that made a window of a recording, given that window (1, 1, n)."""


@dataclass(frozen=True, eq=False)
class Sum:
    """A weighted sum of the stems that was recorded, whole or damaged.

    Attributes:
        signal: what was recorded, (T,).
        gains: of the stems, K numbers.
        keep: True at the samples that count, (T,); None for all.
        damage: what was done to the sum, see `Damage`; None for nothing.
        noise: standard deviation of the noise of the recording.
    """

    signal: Tensor
    gains: tuple[float, ...]
    keep: Tensor | None = None
    damage: Damage | None = None
    noise: float = 0.0

    @property
    def exact(self) -> bool:
        """Whether it is the sum itself, at all times."""
        return self.keep is None and self.damage is None and self.noise == 0


@dataclass(frozen=True, eq=False)
class Observed:
    """A window of evidence as a sampler sees it.

    Attributes:
        operator: the operator.
        y: the observation, (1, M, n).
        sigma_y: its noise.
    """

    operator: Operator
    y: Tensor
    sigma_y: NoiseLevel


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known, see the module.

    Attributes:
        stems: number of stems K.
        length: samples T.
        sums: recorded sums.
        known: the stems where they are known, (K, T), 0 elsewhere; None for nowhere.
        keep: True where a stem is known, (K, T).
    """

    stems: int
    length: int
    sums: tuple[Sum, ...] = ()
    known: Tensor | None = None
    keep: Tensor | None = None

    def with_sum(
        self,
        signal: Tensor,
        gains: Sequence[float] | None = None,
        keep: Tensor | None = None,
        damage: Damage | None = None,
        noise: float = 0.0,
    ) -> Evidence:
        """The same and one more recorded sum, see `Sum`; all gains are 1 by default.

        Raises:
            ValueError: if a shape does not fit.
        """
        g = (1.0,) * self.stems if gains is None else tuple(float(x) for x in gains)
        shapes = [signal.shape] + ([] if keep is None else [keep.shape])
        if len(g) != self.stems or any(s != (self.length,) for s in shapes):
            raise ValueError(
                f"got signals of shapes {[tuple(s) for s in shapes]} and {len(g)} gains, expected "
                f"({self.length},) and {self.stems}"
            )
        return replace(self, sums=(*self.sums, Sum(signal, g, keep, damage, noise)))

    def with_stem(self, stem: int, signal: Tensor, keep: Tensor | None = None) -> Evidence:
        """The same and one stem, exactly, where `keep` (T,) says so, or everywhere.

        Raises:
            ValueError: if a shape does not fit or there is no such stem.
        """
        where = torch.ones(self.length, dtype=torch.bool) if keep is None else keep
        if signal.shape != (self.length,) or where.shape != (self.length,):
            raise ValueError(
                f"got a stem of shape {tuple(signal.shape)}, expected ({self.length},)"
            )
        if not 0 <= stem < self.stems:
            raise ValueError(f"got stem {stem}, expected 0 to {self.stems - 1}")
        empty = torch.zeros(self.stems, self.length)
        known = (empty if self.known is None else self.known).clone()
        kept = (empty.bool() if self.keep is None else self.keep).clone()
        known[stem] = torch.where(where, signal.to(known), known[stem])
        kept[stem] |= where
        return replace(self, known=known, keep=kept)

    def silent(self, start: int, stop: int) -> bool:
        """Whether an exact mix of all stems is digital silence there, and so are its stems."""
        return any(
            s.exact and 0 not in s.gains and not bool(s.signal[start:stop].any()) for s in self.sums
        )

    def window(self, start: int, size: int, tail: Tensor | None = None) -> Observed:
        """What is known of `size` samples from `start` on; there is silence behind the end.

        Arguments:
            start: first sample.
            size: number of samples.
            tail: stems of the window's first samples, (K, n), which are then known as well.
        """
        known, keep = torch.zeros(self.stems, size), torch.zeros(self.stems, size).bool()
        if self.known is not None and self.keep is not None:
            known = _cut(self.known, start, size).clone()
            keep = _cut(self.keep, start, size, True).clone()
        if tail is not None:
            known[:, : tail.shape[1]] = tail
            keep[:, : tail.shape[1]] = True
        told = bool(keep.any())
        if not self.sums:
            if not told:
                return Observed(Nothing(self.stems), torch.zeros(1, 1, size), 0.0)
            return Observed(Mask(keep), known[None], 0.0)
        if len(self.sums) == 1 and self.sums[0].exact:
            only = self.sums[0]
            y = _cut(only.signal, start, size)[None]
            if not told:
                return Observed(Mixture(self.stems, only.gains), y[None], 0.0)
            return Observed(Given(keep, only.gains), torch.cat([y, known])[None], 0.0)
        operators: list[Operator] = []
        rows, noise = [], []
        for s in self.sums:
            y = _cut(s.signal, start, size)
            operator: Operator = Mixture(self.stems, s.gains)
            if s.damage is not None:
                operator = compose(s.damage(y[None, None]), Mixture(self.stems, s.gains))
            if s.keep is not None:
                kept = _cut(s.keep, start, size, True)
                operator, y = masked(operator, kept[None]), torch.where(kept, y, 0)
            operators.append(operator)
            rows.append(y[None])
            noise.append(s.noise)
        if told:
            operators.append(Mask(keep))
            rows.append(known)
            noise += [0.0] * self.stems
        sigma = torch.tensor(noise, dtype=torch.float64)
        level: NoiseLevel = float(sigma[0]) if bool((sigma == sigma[0]).all()) else sigma
        return Observed(stack(operators, (1, self.stems, size)), torch.cat(rows)[None], level)

    def settle(self, x: Tensor, start: int, tail: Tensor | None = None) -> Tensor:
        """Stems that meet everything exact in a window, (K, size), as near to x as can be.

        What a sum is short of goes to the stems that are not known, by their running power.
        Sums that are damaged or noisy are left as they are.
        """
        exact = replace(self, sums=tuple(s for s in self.sums if s.damage is None and not s.noise))
        seen = exact.window(start, x.shape[1], tail)
        if not isinstance(seen.operator, PointwiseOperator):
            raise TypeError(f"got {type(seen.operator).__name__}, expected a pointwise operator")
        power = F.avg_pool1d(x.double().square()[:, None], 513, 1, 256)[:, 0]
        power = power + power.mean() * 1e-6 + 1e-24
        fitted = seen.operator.posterior_mean(x.double()[None], power[None], seen.y.double(), 0.0)
        fitted = seen.operator.posterior_mean(fitted, power[None], seen.y.double(), 0.0)
        return fitted[0].to(x)


def _cut(x: Tensor, start: int, size: int, fill: bool = False) -> Tensor:
    """`size` samples from `start` on, with zeros (or True) behind the end."""
    part = x[..., start : start + size]
    return F.pad(part, (0, size - part.shape[-1]), value=1 if fill else 0)
