r"""MSDM with the Gaussian likelihood (Mariani et al., ICLR 2024, arXiv:2302.02257).

The observation is taken to be as uncertain as the state is noisy, :math:`\gamma = c\,\hat\sigma`:

.. math:: d = \frac{x - D(x, \hat\sigma)}{\hat\sigma}
              - \frac{\hat\sigma}{2 \gamma^2}\, A^T (y - A x)

The factor 2 is the authors': in terms of a Gaussian of standard deviation :math:`\gamma_e` the
weight is that of :math:`\gamma_e = \sqrt 2\,\gamma`. The moves are those of `ChurnSampler`.
"""

from __future__ import annotations

__all__ = ["MSDMGaussian", "gaussian_slope"]

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from mgdm_audio.denoise import Denoiser
from mgdm_audio.samplers._ve import ChurnSampler, ask, check
from mgdm_audio.samplers.base import Problem

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class MSDMGaussian(ChurnSampler):
    r"""The sampler and its settings.

    The noise of the observation, `sigma_y`, plays no part, as with the authors.

    Arguments:
        gamma: width c of the likelihood in units of :math:`\hat\sigma`, positive; the authors
            found 0.75 to 1 best. A move multiplies the residual of a plain mix of K stems by
            :math:`1 - K (1 - \sigma_{i+1} / \hat\sigma) / (2 c^2)`, which must stay above -1:
            few levels need a larger width. The move to 0 multiplies it by
            :math:`1 - K / (2 c^2)` on any grid, once in each repetition: -2.6 for four stems and
            c = 0.75, so that more than three repetitions need a larger width as well.

    Raises:
        ValueError: if a setting is out of range.
    """

    name: ClassVar[str] = "msdm-gaussian"
    PRESETS: ClassVar[dict[str, Self]]

    churn: float = 40.0
    gamma: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        check("gamma", self.gamma, 1e-3)

    def _slope(
        self, denoise: Denoiser, problem: Problem, x: Tensor, sigma: float
    ) -> tuple[Tensor, Tensor]:
        return x, gaussian_slope(denoise, problem, x, sigma, self.gamma)


def gaussian_slope(
    denoise: Denoiser, problem: Problem, x: Tensor, sigma: float, gamma: float
) -> Tensor:
    """Slope of prior and likelihood, with a likelihood of width gamma * sigma."""
    residual = problem.y - problem.operator.forward(x)
    pull = problem.linear.adjoint(residual) / (2 * gamma**2 * sigma)
    return (x - ask(denoise, x, sigma)) / sigma - pull


MSDMGaussian.PRESETS = {
    # The authors' separation experiment: one correction step.
    "paper": MSDMGaussian(),
    "fast": MSDMGaussian(levels=30, churn=4.0, repetitions=1, sigma_min=5e-4),
    "default": MSDMGaussian(levels=40, churn=10.7, sigma_min=5e-4),
    "best": MSDMGaussian(sigma_min=5e-4),
}
