"""Several plausible separations of one recording, each with a seed of its own."""

from __future__ import annotations

__all__ = ["Samples", "parse_seeds", "several"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mgdm_audio.uncertainty import Uncertainty, assess

if TYPE_CHECKING:
    from mgdm_audio.separate import Separation, Separator


@dataclass(frozen=True, eq=False)
class Samples:
    """Separations of one recording.

    Attributes:
        separations: one for each seed, in their order; each is what its seed alone gives.
        uncertainty: what they say together.
    """

    separations: tuple[Separation, ...]
    uncertainty: Uncertainty

    @property
    def seeds(self) -> tuple[int, ...]:
        """Their seeds."""
        return tuple(s.seed for s in self.separations)

    @property
    def best(self) -> Separation:
        """The separation that is nearest to all others."""
        return self.separations[self.uncertainty.ranking[0]]

    @property
    def mean(self) -> dict[str, Any]:
        """The mean stems by name; they add up to the recording as each separation does."""
        return dict(zip(self.uncertainty.names, self.uncertainty.mean, strict=True))


def several(
    separator: Separator,
    source: Any,
    seeds: Sequence[int],
    sample_rate: int | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> Samples:
    """Separates a recording once for each seed.

    Arguments:
        separator: see :func:`mgdm_audio.posterior.separator_for` with the task ``samples``, whose
            spread means most; with `average` 1, or each sample is a mean already and their spread
            is not that of the posterior.
        source: see `Separator.separate`.
        seeds: at least two, all different.
        sample_rate: see `Separator.separate`.
        callback: told (done, total) in planned network calls of all.

    Raises:
        ValueError: for fewer than two seeds or equal ones, and for a separator that averages.
    """
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise ValueError(f"got seeds {list(seeds)}, expected at least two different ones")
    if separator.song_settings.average > 1:
        raise ValueError(
            "got a separator that averages: the spread of means is not that of the posterior; set "
            "average to 1 and take the mean of the samples"
        )
    separations = []
    for i, seed in enumerate(seeds):

        def report(done: int, total: int, before: int = i) -> None:
            if callback is not None:
                callback(before * total + done, total * len(seeds))

        separations.append(separator.separate(source, sample_rate, seed=seed, callback=report))
    names = tuple(separations[0].stems)
    draws = [np.stack([np.asarray(s.stems[n]) for n in names]) for s in separations]
    return Samples(tuple(separations), assess(draws, names, separations[0].sample_rate))


def parse_seeds(text: str) -> list[int]:
    """Seeds written as numbers and ranges: ``0-7`` or ``3,5,10-12``.

    Raises:
        ValueError: if it is not such a list, or names a seed twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(f"got seeds '{text}', expected numbers and ranges such as 0-7 or 3,5")
        low, high = int(first), int(last if dash else first)
        if high < low or high - low >= 1000:
            raise ValueError(f"got seeds '{part}', expected an ascending range of at most 1000")
        seeds += range(low, high + 1)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"got seeds '{text}', in which one comes twice")
    return seeds
