r"""Any sampler, begun at a low noise level from another one's estimate.

.. math:: \hat x = \text{first}(y), \quad x_\sigma = \hat x + \sigma n

and from there `sampler` walks what is left of its grid (:class:`~mgdm_audio.samplers.base.Start`).
The coarse levels, which decide what plays, are taken from the first method, such as a regressor or
a cheap sampler; the fine ones, which decide how it sounds, from the second. Where the estimate is
a sample of the posterior and the second method is exact, the result is a sample of the posterior,
whatever :math:`\sigma`. Where it is a mean, :math:`\sigma` decides how much of its error and of
its blur is drawn anew.

Samplers that hold a clean estimate (RED-diff, ProjDiff, split Gibbs, PnP-DM) take it as it is, and
begin with the first of their levels or widths that is not above :math:`\sigma`.

References:
    SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations
    (Meng, He, Song, Song, Wu, Zhu, Ermon, 2022)
    https://arxiv.org/abs/2108.01073
"""

from __future__ import annotations

__all__ = ["WarmStart"]

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from mgdm_audio.denoise import Denoiser
from mgdm_audio.draws import Draws
from mgdm_audio.samplers._ve import check
from mgdm_audio.samplers.base import Cost, DiffusionSampler, Problem, Progress, Sampler, Start
from mgdm_audio.samplers.independent_stems import IndependentStems

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class WarmStart(Sampler):
    """The two samplers and the level between them.

    Arguments:
        first: gives the estimate.
        sampler: goes on from it.
        sigma: level at which it begins, in units of the signal; it takes the highest of its own
            levels that is not above.

    Raises:
        ValueError: if sigma is not positive, if too little of the sampler's grid is at or below
            it, or if the sampler has no noise levels.
    """

    name: ClassVar[str] = "warm-start"
    PRESETS: ClassVar[dict[str, Self]] = {}

    first: Sampler
    sampler: DiffusionSampler | IndependentStems
    sigma: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check("sigma", self.sigma, 1e-12)
        if not isinstance(self.sampler, (DiffusionSampler, IndependentStems)):
            raise ValueError(
                f"sampler '{self.sampler.name}' has no noise levels to begin at; give the warm "
                "start to a sampler that has, such as 'mgdm'"
            )
        self.sampler.cost(self.sigma)  # raises where too little of the grid is left

    @property
    def needs(self) -> tuple[str, ...]:
        """See `Sampler.needs`."""
        return tuple(dict.fromkeys((*self.sampler.needs, *self.first.needs)))

    @property
    def takes_parts(self) -> bool:
        """See `Sampler.takes_parts`; a regressor's estimate is replaced where parts are known."""
        first = self.first.takes_parts or "regressor" in self.first.needs
        return first and self.sampler.takes_parts

    @property
    def takes_product(self) -> bool:
        """See `Sampler.takes_product`; of either sampler."""
        return self.first.takes_product or self.sampler.takes_product

    @property
    def needs_linear(self) -> bool:
        """See `Sampler.needs_linear`; of both samplers."""
        return self.first.needs_linear or self.sampler.needs_linear

    @property
    def solves(self) -> bool:
        """See `Sampler.solves`; of either sampler."""
        return self.first.solves or self.sampler.solves

    @property
    def takes_levels(self) -> bool:
        """See `Sampler.takes_levels`; of both samplers."""
        return self.first.takes_levels and self.sampler.takes_levels

    @property
    def speeds(self) -> int:
        """See `Sampler.speeds`; of the first sampler."""
        return self.first.speeds

    def noise_range(self) -> tuple[float, float]:
        """See `Sampler.noise_range`; of both samplers."""
        low, high = self.sampler.noise_range(self.sigma)
        before = self.first.noise_range()
        return (low, high) if before is None else (min(low, before[0]), max(high, before[1]))

    def cost(self) -> Cost:
        """See `Sampler.cost`; of both samplers."""
        first, then = self.first.cost(), self.sampler.cost(self.sigma)
        return Cost(
            first.calls + then.calls,
            first.vjps + then.vjps,
            first.regressor + then.regressor,
            first.shared,
        )

    def _sample(
        self, denoise: Denoiser, problem: Problem, draws: Draws, progress: Progress
    ) -> Tensor:
        estimate = self.first._sample(denoise, problem, draws, progress)
        progress.next_part(self.first.cost().calls)
        return self.sampler._sample(denoise, problem, draws, progress, Start(estimate, self.sigma))
