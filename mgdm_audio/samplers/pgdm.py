r"""PGDM, pseudo-inverse guided diffusion (Song, Vahdat, Mardani and Kautz, ICLR 2023).

The clean signal given the state is taken as :math:`N(\hat x, \rho_t^2 I)`,
:math:`\hat x = D_t(x_t)`, so that the likelihood of the state is Gaussian and its gradient is

.. math:: g = J^T v,\quad v = A^T (A A^T + \sigma_y^2 / \rho_t^2)^{-1} (y - A \hat x),\quad
          J = \partial \hat x / \partial x_t

up to :math:`1 / \rho_t^2`; v is the correction of :math:`\hat x` by the operator's `proximal`, and
:math:`A^+ (y - A \hat x)` where :math:`\sigma_y = 0`. Two weights of g are offered:

* "published": :math:`x_{t'} = z + \sqrt{a_{t'} a_t}\, g`,
  :math:`z \sim q^\eta(x_{t'} | \hat x, x_t)`: the whole correction in every move;
* "posterior": the bridge is taken with the corrected mean
  :math:`\hat x + \sigma_t^2 \sqrt{a_t}\, g / \rho_t^2` in place of :math:`\hat x`, which is
  Tweedie's formula for the posterior. It is exact, but for the discretisation, if the prior is
  :math:`N(m, s^2 I)` and `prior_std` is s.

The variance is :math:`\rho_t^2 = \sigma_t^2 s^2 / (\sigma_t^2 + s^2)`; for s = 1 (the authors')
that is :math:`1 - a_t`. The output is the denoised last state.

The authors keep the state in the singular basis of A and draw the noise there; white noise is
white in any basis, so that the law is the same and only the seed's meaning differs.
"""

from __future__ import annotations

__all__ = ["PGDM"]

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mgdm_audio.denoise import Denoiser, denoise_vp
from mgdm_audio.draws import Draws
from mgdm_audio.noise import NoiseLevels, bridge, broadcast
from mgdm_audio.samplers._vp import GridSampler, denoise_and_pull, move
from mgdm_audio.samplers.base import Cost, Problem, Progress, Start

if TYPE_CHECKING:
    from typing_extensions import Self

WEIGHTS = ("published", "posterior")


@dataclass(frozen=True, kw_only=True)
class PGDM(GridSampler):
    r"""The sampler and its settings.

    Arguments:
        steps: grid points n, at least 3; n - 1 calls, n - 2 of them with a gradient.
        weight: "published" or "posterior", see the module.
        prior_std: s, the standard deviation that the prior is taken to have, > 0, in units of
            the signal; 1 is the authors'.
        eta: stochasticity of the moves, in [0, 1].

    Raises:
        ValueError: if a setting is out of range.
    """

    name: ClassVar[str] = "pgdm"
    PRESETS: ClassVar[dict[str, Self]]

    weight: str = "published"
    prior_std: float = 1.0
    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight not in WEIGHTS:
            raise ValueError(f"got weight = '{self.weight}', expected one of {', '.join(WEIGHTS)}")
        if not 0 < self.prior_std < float("inf"):
            raise ValueError(f"got prior_std = {self.prior_std}, expected a finite number > 0")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"got eta = {self.eta}, expected a number in [0, 1]")

    def cost(self, sigma: float = math.inf) -> Cost:
        """See `DiffusionSampler.cost`."""
        calls = len(self.grid(sigma))
        return Cost(calls=calls, vjps=calls - 1)

    def _sample(
        self,
        denoise: Denoiser,
        problem: Problem,
        draws: Draws,
        progress: Progress,
        start: Start | None = None,
    ) -> Tensor:
        levels = self.noise_levels()
        grid, x = self._begin(draws, problem, levels, start)
        for t, lower in pairwise(grid):
            clean, slope = self._guide(denoise, problem, levels, t, x)
            coefficients = bridge(levels, 0, lower, t, self.eta)
            a_t = levels.alpha_bar(t)
            if self.weight == "published":
                gain = (levels.alpha_bar(lower) * a_t).sqrt()
            else:
                gain = (
                    coefficients[0] * levels.sigma(t) ** 2 * a_t.sqrt() / self._variance(levels, t)
                )
            x = move(draws, coefficients, clean, x) + broadcast(gain, x) * slope
            progress.advance()
        return denoise_vp(denoise, x, grid[-1], levels)

    def _variance(self, levels: NoiseLevels, t: int) -> Tensor:
        """rho_t^2, float64."""
        noise, prior = levels.sigma(t) ** 2, self.prior_std**2
        return noise * prior / (noise + prior)

    def _guide(
        self, denoise: Denoiser, problem: Problem, levels: NoiseLevels, t: int, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Clean estimate and g."""
        width = float(self._variance(levels, t).sqrt())

        def pull(clean: Tensor) -> Tensor:
            # The correction alone, around 0: as a difference of two estimates it would be rounded
            # to their size.
            residual = problem.y - problem.operator.forward(clean)
            nothing = torch.zeros_like(clean)
            return problem.linear.proximal(nothing, residual, problem.sigma_y, width)

        return denoise_and_pull(denoise, levels, t, x, pull)


PGDM.PRESETS = {
    # The authors' audio experiment: their prior is trained up to sigma 20.
    "paper": PGDM(),
    "fast": PGDM(sigma_max=1.0, steps=30),
    "default": PGDM(sigma_max=1.0, steps=60),
    "best": PGDM(sigma_max=1.0, steps=300),
}
