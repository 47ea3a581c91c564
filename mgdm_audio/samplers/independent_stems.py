r"""Any sampler, with the product of single-stem priors in the place of a joint one.

.. math:: p(x_1, \ldots, x_K) \to p(x_1) \cdots p(x_K)

What the stems of a song tell about each other is left out, as in ISDM; what the sampler makes of
the mix is the same. The single-stem priors are those that the joint one holds
(:class:`~mgdm_audio.denoise.MarginalDenoiser`), so a call of the sampler is K of the network. A
model of independent networks is such a product already, and needs none of this.

References:
    Multi-Source Diffusion Models for Simultaneous Music Generation and Separation
    (Mariani et al., 2024)
    https://arxiv.org/abs/2302.02257
"""

from __future__ import annotations

__all__ = ["IndependentStems"]

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from mgdm_audio.denoise import Denoiser, MarginalDenoiser
from mgdm_audio.draws import Draws
from mgdm_audio.samplers._ve import check
from mgdm_audio.samplers.base import Cost, DiffusionSampler, Problem, Progress, Sampler, Start
from mgdm_audio.samplers.isdm import ISDM

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class IndependentStems(Sampler):
    """The sampler and the level of the stems that are left out.

    Arguments:
        sampler: what asks the prior.
        stems: number of stems K.
        marginal_sigma: noise level of the stems that are left out: far above the stems, and where
            the network was still trained well.

    Raises:
        ValueError: if the sampler asks no prior alone, or single-stem ones already, or a setting is
            out of range.
    """

    name: ClassVar[str] = "independent-stems"
    PRESETS: ClassVar[dict[str, Self]] = {}

    sampler: DiffusionSampler
    stems: int = 4
    marginal_sigma: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check("stems", self.stems, 1)
        check("marginal_sigma", self.marginal_sigma, 1e-12)
        if not isinstance(self.sampler, DiffusionSampler) or self.sampler.needs != ("prior",):
            raise ValueError(
                f"sampler '{self.sampler.name}' asks no prior whose stems could be independent, or "
                "not that alone; choose another method, such as 'mgdm'"
            )
        if isinstance(self.sampler, ISDM) and self.sampler.priors == "marginal":
            raise ValueError(
                "sampler 'isdm' asks the single-stem priors by itself; leave out independent"
            )

    @property
    def takes_parts(self) -> bool:
        """See `Sampler.takes_parts`."""
        return self.sampler.takes_parts

    @property
    def needs_linear(self) -> bool:
        """See `Sampler.needs_linear`."""
        return self.sampler.needs_linear

    @property
    def solves(self) -> bool:
        """See `Sampler.solves`."""
        return self.sampler.solves

    @property
    def takes_levels(self) -> bool:
        """See `Sampler.takes_levels`."""
        return self.sampler.takes_levels

    def noise_range(self, sigma: float = math.inf) -> tuple[float, float]:
        """See `DiffusionSampler.noise_range`."""
        low, high = self.sampler.noise_range(sigma)
        return min(low, self.marginal_sigma), max(high, self.marginal_sigma)

    def cost(self, sigma: float = math.inf) -> Cost:
        """See `DiffusionSampler.cost`; in calls of the joint network."""
        cost = self.sampler.cost(sigma)
        return Cost(self.stems * cost.calls, self.stems * cost.vjps)

    def _sample(
        self,
        denoise: Denoiser,
        problem: Problem,
        draws: Draws,
        progress: Progress,
        start: Start | None = None,
    ) -> Tensor:
        """See `DiffusionSampler._sample`."""
        if problem.shape[1] != self.stems:
            raise ValueError(
                f"got a problem of {problem.shape[1]} stems, and independent priors of {self.stems}"
            )
        single = MarginalDenoiser(denoise, self.marginal_sigma, draws)
        progress.weight = self.stems
        return self.sampler._sample(single, problem, draws, progress, start)
