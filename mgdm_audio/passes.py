r"""A regressor asked again, given its own estimates.

Asked about a mix alone, a regressor answers each stem without knowing what it answers for the
others. Given the stems of a set K it says what is left for the others, and so its answers can be
made to agree. One more pass gives it, in turn, every set K of half of the stems, and takes for each
stem the mean of what it says where that stem is not given:

.. math:: x_k \leftarrow \frac{1}{|\{K \not\ni k\}|} \sum_{K \not\ni k} R(y, x_K)_k

Of four stems these are the six pairs, and each stem has three answers; of five the five pairs of
neighbours in a circle. Every stem is given as often as any other, so the means add up to the mix as
the answers do. It is the mean of one block-Gibbs sweep (:mod:`mgdm_audio.samplers.gibbs`) over its
random sets: what is wrong of one answer, because what it was given was wrong, is in part something
else in another.

So it is at another speed (:mod:`mgdm_audio.varispeed`), and both are had for the price of one: the
two pairs of four stems that complete each other are asked at the original speed, the next two at
the next speed, and so on, and each stem has an answer at each of three speeds.
"""

from __future__ import annotations

__all__ = ["CALLS", "asked_again"]

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from mgdm_audio.regress import Regressor
from mgdm_audio.varispeed import SPEEDS, check_speeds, played

CALLS = 6
"""Calls of one pass at most, of up to five stems."""


def asked_again(
    regress: Regressor,
    mix: Tensor,
    stems: Tensor,
    known: Tensor,
    speeds: int = 1,
    report: Callable[[], object] = lambda: None,
) -> Tensor:
    """One more pass.

    Arguments:
        regress: the regressor.
        mix: sum of the stems, (B, 1, T).
        stems: its estimates, which add up to the mix, (B, K, T); those of known stems are exact.
        known: which stems are known, bool (B, K).
        speeds: at how many speeds the sets are asked, see :class:`mgdm_audio.varispeed.Varispeed`.
        report: told of each call.

    Returns:
        (B, K, T): the new estimates, which add up to the mix; of fewer than three unknown stems
        the old ones, since one that is given then says what the other is.

    Raises:
        ValueError: if there are not so many speeds.
    """
    check_speeds(speeds)
    if bool((known != known[:1]).any()):
        out = stems.clone()
        for row in known.unique(dim=0):
            items = (known == row).all(1).nonzero()[:, 0]
            part = mix[items], stems[items], known[items]
            out[items] = asked_again(regress, *part, speeds, report)
        return out
    unknown = [k for k in range(stems.shape[1]) if not bool(known[0, k])]
    if len(unknown) < 3:
        return stems
    total, answers = torch.zeros_like(stems), torch.zeros_like(stems[0, :, :1])
    for turn, sets in enumerate(_turns(unknown)):
        speed = (Fraction(1), *SPEEDS)[turn % speeds]
        plain = speed == 1
        heard, guess = (mix, stems) if plain else (played(mix, speed), played(stems, speed))
        for given in sets:
            told = known.clone()
            told[:, list(given)] = True
            answer = regress(heard, torch.where(told[:, :, None], guess, 0), told)
            report()
            if not plain:
                # What a change of speed loses is left to the estimate at the original speed.
                change = played(answer - guess, 1 / speed)
                answer = stems + change[..., : mix.shape[2]]
            total += torch.where(told[:, :, None], 0, answer)
            answers += ~told[0, :, None]
    return torch.where(known[:, :, None], stems, total / answers.clamp_min(1))


def _turns(unknown: list[int]) -> list[list[tuple[int, ...]]]:
    """Sets of half of the stems, each stem in as many as any other, by the speed they go at."""
    n, half = len(unknown), len(unknown) // 2
    if n == 4:
        a, b, c, d = unknown
        return [[(a, b), (c, d)], [(a, c), (b, d)], [(a, d), (b, c)]]
    return [[tuple(unknown[(i + j) % n] for j in range(half))] for i in range(n)]
