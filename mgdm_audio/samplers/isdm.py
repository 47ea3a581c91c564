r"""ISDM, the sampler of MSDM with an independent prior for each stem (Mariani et al., ICLR 2024).

The moves are those of `MSDM` or `MSDMGaussian` (arXiv:2302.02257, "weakly supervised"), with the
denoiser :math:`D(x, \sigma) = (D_1(x_1, \sigma), \dots, D_K(x_K, \sigma))` of K single-stem priors:
what one stem does says nothing of another but through the mix.

The authors trained K networks; they are handed over as a `StackedDenoiser`, with ``priors =
"given"``. A joint network that knows a noise level for each stem holds the single-stem priors as
well: with pure noise in all other stems it can only tell what is likely of this one
(`MarginalDenoiser`, ``priors = "marginal"``). It is asked K times a move.
"""

from __future__ import annotations

__all__ = ["ISDM"]

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from mgdm_audio.denoise import Denoiser, MarginalDenoiser
from mgdm_audio.draws import Draws
from mgdm_audio.samplers._ve import ChurnSampler, check
from mgdm_audio.samplers.base import Problem
from mgdm_audio.samplers.msdm import constrained_row, dirac_slope
from mgdm_audio.samplers.msdm_gaussian import gaussian_slope

if TYPE_CHECKING:
    from typing_extensions import Self

RULES = ("dirac", "gaussian")
PRIORS = ("marginal", "given")


@dataclass(frozen=True, kw_only=True)
class ISDM(ChurnSampler):
    """The sampler and its settings.

    Arguments:
        rule: "dirac" (see `MSDM`) or "gaussian" (see `MSDMGaussian`).
        constrained: index of the stem that "dirac" solves for, from 0.
        gamma: width of the likelihood of "gaussian".
        priors: "marginal": the denoiser is a joint one and is asked once for each stem;
            "given": it consists of independent priors already and is asked once a move.
        stems: number of stems K, which "marginal" needs to state its cost.
        marginal_sigma: noise level of the stems that are left out with "marginal": far above the
            stems, and where the network was still trained well.

    Raises:
        ValueError: if a setting is out of range; when sampling, if the problem has another number
            of stems, or an operator that "dirac" cannot solve.
    """

    name: ClassVar[str] = "isdm"
    PRESETS: ClassVar[dict[str, Self]]

    churn: float = 40.0
    rule: str = "dirac"
    constrained: int = 0
    gamma: float = 0.75
    priors: str = "marginal"
    stems: int = 4
    marginal_sigma: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, known in (("rule", RULES), ("priors", PRIORS)):
            if getattr(self, field) not in known:
                raise ValueError(
                    f"got {field} = '{getattr(self, field)}', expected one of {', '.join(known)}"
                )
        check("constrained", self.constrained, 0)
        check("gamma", self.gamma, 1e-3)
        check("stems", self.stems, 1)
        check("marginal_sigma", self.marginal_sigma, self.sigma_min)

    @property
    def takes_parts(self) -> bool:
        """See `Sampler.takes_parts`."""
        return False

    def noise_range(self, sigma: float = math.inf) -> tuple[float, float]:
        """See `DiffusionSampler.noise_range`."""
        low, high = super().noise_range(sigma)
        if self.priors == "marginal":
            return min(low, self.marginal_sigma), max(high, self.marginal_sigma)
        return low, high

    @property
    def takes_product(self) -> bool:
        """See `Sampler.takes_product`."""
        return self.priors == "given"

    def _calls_of_a_move(self) -> int:
        return self.stems if self.priors == "marginal" else 1

    def _prior(self, denoise: Denoiser, problem: Problem, draws: Draws) -> Denoiser:
        if self.rule == "dirac":
            constrained_row(problem, self.constrained, self.name)
        if self.priors == "given":
            return denoise
        if problem.shape[1] != self.stems:
            raise ValueError(
                f"got a problem of {problem.shape[1]} stems, but stems = {self.stems}; set `stems`"
            )
        return MarginalDenoiser(denoise, self.marginal_sigma, draws)

    def _slope(
        self, denoise: Denoiser, problem: Problem, x: Tensor, sigma: float
    ) -> tuple[Tensor, Tensor]:
        if self.rule == "dirac":
            return dirac_slope(denoise, problem, x, sigma, self.constrained, self.name)
        return x, gaussian_slope(denoise, problem, x, sigma, self.gamma)


ISDM.PRESETS = {
    # The authors' separation experiment with the Dirac rule: four networks, one correction step.
    "paper": ISDM(priors="given"),
    # So few levels are stable (see `MSDM`) only on a nearly geometric grid.
    "fast": ISDM(levels=15, churn=0.0, repetitions=1, sigma_min=5e-4, rho=50.0),
    "default": ISDM(levels=25, churn=2.5, repetitions=1, sigma_min=5e-4, rho=50.0),
    "best": ISDM(levels=75, churn=20.0, sigma_min=5e-4),
}
