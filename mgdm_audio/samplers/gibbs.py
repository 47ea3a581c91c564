r"""Gibbs sampling with a regressor (Manilow, Hawthorne, Huang, Pardo, Engel, ICASSP 2022,
arXiv:2203.15140).

An orderless NADE answers :math:`R(y, x_K) \approx E[x_{\neg K} \mid y, x_K]` for every set K of
stems. N times, a random set of the current estimates is kept and the others are estimated anew,
from the mix and what is kept:

.. math:: x_{\neg K} \leftarrow R(y, x_K), \quad P(k \in K) = n / N, \quad n = 0, \dots, N - 1,

each stem by itself. The first estimate is that of the mix alone; at the end nearly all are kept.
The schedule is the annealing that the authors of MSDM wrote down for their trial of it, in which
the constants cancel: :math:`1 - \max(0, p_{max} - (n - 1)(p_{max} - p_{min}) / (\alpha (N - 1)))`
with :math:`p_{max} = (N - 1) / N` and :math:`p_{min} = p_{max} (1 - \alpha)` is n / N for every
:math:`\alpha`.

With a network that gives a mean and not a draw this is no sampler: the mean stays the mean where
the answers are exact, and where they are not, they are made to agree with each other.

The regressor's answers add up to the mix, so a single stem that is estimated anew is what it was.
Such steps make no call: of N, some 0.6 N remain.
"""

from __future__ import annotations

__all__ = ["Gibbs"]

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mgdm_audio.denoise import Denoiser
from mgdm_audio.draws import Draws
from mgdm_audio.regress import regressor_of
from mgdm_audio.samplers._ve import check
from mgdm_audio.samplers.base import Cost, Problem, Progress, Sampler
from mgdm_audio.samplers.regressor import Seen

if TYPE_CHECKING:
    from typing_extensions import Self

_RESOLUTION = 2**30
"""Uniform numbers are drawn as integers below it."""


@dataclass(frozen=True, kw_only=True)
class Gibbs(Sampler):
    """The sampler and its settings.

    The observation is taken as exact, whatever its `sigma_y`.

    Arguments:
        steps: N, at least 1; 1 is the regressor alone.

    Raises:
        ValueError: if the setting is out of range; when sampling, if the observation is not the
            plain sum of the stems, with or without parts of the stems beside it.
    """

    name: ClassVar[str] = "gibbs"
    PRESETS: ClassVar[dict[str, Self]]

    steps: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check("steps", self.steps, 1)

    @property
    def needs(self) -> tuple[str, ...]:
        """See `Sampler.needs`."""
        return ("regressor",)

    @property
    def takes_parts(self) -> bool:
        """See `Sampler.takes_parts`."""
        return False

    def cost(self) -> Cost:
        """See `Sampler.cost`; an upper bound, as no call is made where nothing would change."""
        return Cost(calls=self.steps, regressor=self.steps)

    def _sample(
        self, denoise: Denoiser, problem: Problem, draws: Draws, progress: Progress
    ) -> Tensor:
        regress = regressor_of(denoise, self.name)
        seen = Seen.of(problem, self.name)
        mix, x = seen.mix, seen.stems
        for n in range(self.steps):
            limit = n * _RESOLUTION // self.steps
            kept = torch.stack(
                [draws.integers(0, _RESOLUTION) < limit for _ in range(problem.shape[1])], dim=1
            )
            known = seen.known | kept.to(x.device)
            items = ((~known).sum(1) > (1 if n else 0)).nonzero()[:, 0]
            if len(items) == len(x):
                x = regress(mix, x, known)
            elif len(items):
                x = x.index_copy(0, items, regress(mix[items], x[items], known[items]))
            progress.advance()
        return seen.keep(x)


Gibbs.PRESETS = {
    # The column "Demucs + Gibbs (512 steps)" of MSDM's and MGDM's tables.
    "paper": Gibbs(steps=512),
    "fast": Gibbs(steps=8),
    "default": Gibbs(steps=32),
    "best": Gibbs(steps=128),
}
