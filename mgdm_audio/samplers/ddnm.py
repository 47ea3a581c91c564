r"""DDNM+, denoising diffusion null-space model (Wang, Yu and Zhang, ICLR 2023, arXiv:2212.00490).

At each move :math:`t \to t'` the part of the clean estimate :math:`\hat x = D_t(x_t)` that the
observation determines is replaced, and the rest follows the prior. With
:math:`\sigma' = \sqrt{1 - a_{t'}}`, :math:`b = \sqrt{a_{t'}}`, the noise estimate
:math:`e = (x_t - \sqrt{a_t}\,\hat x) / \sqrt{1 - a_t}`, and :math:`P = A^+ A`:

.. math::
    x_{t'} = b\,(\hat x + \Lambda A^+ (y - A \hat x)) + \Gamma P z
             + (I - P)\,\sigma' \big(\eta z + \sqrt{1 - \eta^2}\, e\big)

:math:`\Lambda` and :math:`\Gamma` act on each singular direction of A, of singular value s:

* :math:`\lambda = 1` and :math:`\gamma^2 = \sigma'^2 - b^2 \sigma_y^2 / s^2` where
  :math:`\sigma' > b \sigma_y / s`: the noise of the observation is part of the state's;
* :math:`\lambda = s \sigma' \sqrt{1 - \eta^2} / (b \sigma_y)` and :math:`\gamma = \sigma' \eta`
  where the observation is noisier than the state may be.

The last move, to :math:`\sigma' = 0`, would by that rule leave out an observation that has any
noise at all; there the operator's `proximal` corrects :math:`\hat x`, taken to be
:math:`\sigma_t` wide, which is the same where the observation is exact. The authors' walk ends
before (`DDNM.published_grid`).

:math:`\Lambda` and :math:`\Gamma` are functions of :math:`A A^T`, which for a mix of K stems is
the number K, and are applied with the operator's `gram_function`. No gradient is taken.
"""

from __future__ import annotations

__all__ = ["DDNM"]

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mgdm_audio.denoise import Denoiser, denoise_vp
from mgdm_audio.draws import Draws
from mgdm_audio.noise import NoiseLevels, broadcast
from mgdm_audio.samplers._vp import GridSampler, noise_at_the_top
from mgdm_audio.samplers.base import Cost, Problem, Progress, Start, at_or_below

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class DDNM(GridSampler):
    r"""The sampler and its settings.

    Arguments:
        steps: grid points n, at least 3; n - 1 calls.
        eta: stochasticity in the part that is not observed, in [0, 1].
        published_grid: whether to walk the authors' grid: the indices j k with
            k = (levels + 1) // n, j = n - 1, ..., 0, where the network is asked at an index but
            the state is taken to be at the level one index later. The walk then ends at the
            smallest positive level. Otherwise it is the grid of the other samplers, without the
            shift, and ends with the corrected clean estimate.

    Raises:
        ValueError: if a setting is out of range.
    """

    name: ClassVar[str] = "ddnm"
    PRESETS: ClassVar[dict[str, Self]]

    eta: float = 0.85
    published_grid: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"got eta = {self.eta}, expected a number in [0, 1]")

    @property
    def takes_levels(self) -> bool:
        """See `Sampler.takes_levels`."""
        return False

    def cost(self, sigma: float = math.inf) -> Cost:
        """See `DiffusionSampler.cost`."""
        return Cost(calls=len(self.grid(sigma)))

    def grid(self, sigma: float = math.inf) -> list[int]:
        """See `GridSampler.grid`; of the authors' grid, a state is one index above its call."""
        levels = self.noise_levels()
        if not self.published_grid:
            return super().grid(sigma)
        stride = len(levels) // self.steps
        indices = [j * stride for j in range(self.steps - 1, 0, -1)]
        return at_or_below(sigma, indices, lambda t: float(levels.sigma(t + 1)), 1)

    def _sample(
        self,
        denoise: Denoiser,
        problem: Problem,
        draws: Draws,
        progress: Progress,
        start: Start | None = None,
    ) -> Tensor:
        sigma_y = _single_level(problem)
        levels = self.noise_levels()
        shift = int(self.published_grid)
        if start is None:
            grid, x = self.grid(), noise_at_the_top(draws, problem, levels)
        else:
            grid = self.grid(start.sigma)
            x = start.preserving(draws, float(levels.sigma(grid[0] + shift)))
        for t, lower in pairwise([*grid, 0]):
            clean, noise = self._estimate(denoise, levels, t, shift, x)
            z = draws.normal(problem.shape).to(x)
            if lower + shift:
                x = self._renew(problem, levels, lower + shift, sigma_y, clean, noise, z)
            else:
                x = problem.linear.proximal(clean, problem.y, sigma_y, float(levels.sigma(t)))
            progress.advance()
        return x

    def _estimate(
        self, denoise: Denoiser, levels: NoiseLevels, t: int, shift: int, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Clean and noise estimate of a state that is at the level of index t + shift."""
        clean = denoise_vp(denoise, x, t, levels)
        here, there = levels.sigma(t), levels.sigma(t + shift)
        scale, scale_there = (1 + here**2).sqrt(), (1 + there**2).sqrt()
        noise = (broadcast(scale, x) * x - clean) / broadcast(here, x)
        # The network's noise estimate, taken out at the other level; nothing without a shift.
        clean = clean + broadcast(scale_there - scale, x) * x - broadcast(there - here, x) * noise
        return clean, noise

    def _renew(
        self,
        problem: Problem,
        levels: NoiseLevels,
        t: int,
        sigma_y: float,
        clean: Tensor,
        noise: Tensor,
        z: Tensor,
    ) -> Tensor:
        """The state at level t; `levels` are read at t itself."""
        operator = problem.linear
        width = float(levels.one_minus_alpha_bar(t).sqrt())
        scale = float(levels.alpha_bar(t).sqrt())
        kept = (1 - self.eta**2) ** 0.5
        observed = scale * sigma_y  # noise that the observation brings, before the 1 / s

        def pull(g: Tensor) -> Tensor:
            if observed == 0:
                return 1 / g
            s = g.sqrt()
            return torch.where(width * s >= observed, 1, s * width * kept / observed) / g

        def fresh(g: Tensor) -> Tensor:
            room = width**2 - observed**2 / g
            return torch.where(room > 0, room.clamp_min(0).sqrt(), width * self.eta) / g

        def through(v: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
            return operator.adjoint(operator.gram_function(v, function))

        residual = problem.y - operator.forward(clean)
        prior = width * (self.eta * z + kept * noise)
        return (
            scale * (clean + through(residual, pull))
            + through(operator.forward(z), fresh)
            + prior
            - operator.range_projection(prior)
        )


def _single_level(problem: Problem) -> float:
    """The noise level of an observation whose rows are equally noisy."""
    sigma_y = torch.as_tensor(problem.sigma_y, dtype=torch.float64).flatten()
    if bool((sigma_y != sigma_y[0]).any()):
        raise ValueError(
            f"got sigma_y = {sigma_y.tolist()}, but sampler 'ddnm' is defined for one noise level; "
            "scale the rows of the operator to equal noise, or choose another sampler"
        )
    return float(sigma_y[0])


DDNM.PRESETS = {
    # The authors' audio experiment: their prior is trained up to sigma 20.
    "paper": DDNM(published_grid=True),
    "fast": DDNM(sigma_max=1.0, steps=30),
    "default": DDNM(sigma_max=1.0, steps=60),
    "best": DDNM(sigma_max=1.0, steps=300),
}
