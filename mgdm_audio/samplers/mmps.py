r"""MMPS, moment matching posterior sampling (Rozet et al., NeurIPS 2024, arXiv:2405.13712).

The clean signal given the state is taken as Gaussian, with the denoiser's own mean and covariance
(Tweedie's second formula):

.. math:: p(x_0 | x) \approx N\big(D(x, \sigma), C\big), \qquad
          C = \sigma^2\, \nabla_x^T D(x, \sigma) .

Its mean under the observation, :math:`\hat x = D + C A^T v` with
:math:`(\sigma_y^2 I + A C A^T)\, v = y - A D`, is the denoiser of the posterior, and x moves to the
next level by the bridge to it. v is found by conjugate gradients; C is applied by one
vector-Jacobian product of the network, C as a matrix is never formed. The result is the last
:math:`\hat x`.

For a Gaussian prior this is exact but for the finite number of levels (and of iterations).
"""

from __future__ import annotations

__all__ = ["MMPS"]

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mgdm_audio.denoise import Denoiser
from mgdm_audio.draws import Draws
from mgdm_audio.samplers._ve import ask, begin, check, descending, move
from mgdm_audio.samplers.base import Cost, DiffusionSampler, Problem, Progress, Start

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class MMPS(DiffusionSampler):
    """The sampler and its settings.

    Arguments:
        iterations: steps of the conjugate gradients at each level, at least 1. Each level costs
            one call and `iterations` + 1 vector-Jacobian products.
        eta: stochasticity of the moves, in [0, 1].

    Raises:
        ValueError: if a setting is out of range.
    """

    name: ClassVar[str] = "mmps"
    PRESETS: ClassVar[dict[str, Self]]

    levels: int = 30
    sigma_min: float = 5e-4
    sigma_max: float = 1.0
    rho: float = 7.0
    iterations: int = 1
    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check("iterations", self.iterations, 1)
        check("eta", self.eta, 0, 1)

    def cost(self, sigma: float = math.inf) -> Cost:
        """See `DiffusionSampler.cost`."""
        levels = len(descending(self, sigma)) - 1
        return Cost(calls=levels, vjps=levels * (self.iterations + 1))

    def noise_range(self, sigma: float = math.inf) -> tuple[float, float]:
        """See `DiffusionSampler.noise_range`."""
        levels = descending(self, sigma)
        return levels[-2], levels[0]

    def _sample(
        self,
        denoise: Denoiser,
        problem: Problem,
        draws: Draws,
        progress: Progress,
        start: Start | None = None,
    ) -> Tensor:
        levels, x = begin(self, draws, problem, start)
        for sigma, lower in pairwise(levels):
            clean = self._posterior_mean(denoise, problem, x, sigma)
            x = move(draws, clean, x, sigma, lower, self.eta) if lower > 0 else clean
            progress.advance()
        return x

    def _posterior_mean(
        self, denoise: Denoiser, problem: Problem, x: Tensor, sigma: float
    ) -> Tensor:
        """E[x_0 | x, y] under the Gaussian with the denoiser's mean and covariance."""
        operator = problem.linear
        noise = torch.as_tensor(problem.sigma_y, dtype=x.dtype, device=x.device)
        variance = noise.reshape(1, -1, 1) ** 2
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            answer = ask(denoise, leaf, sigma)
        clean = answer.detach()

        def spread(v: Tensor) -> Tensor:
            """C A^T v."""
            (slope,) = torch.autograd.grad(answer, leaf, operator.adjoint(v), retain_graph=True)
            return sigma**2 * slope

        def system(v: Tensor) -> Tensor:
            return variance * v + operator.forward(spread(v))

        residual = problem.y - operator.forward(clean)
        v = conjugate_gradients(system, residual, self.iterations)
        return clean + spread(v)


def conjugate_gradients(
    system: Callable[[Tensor], Tensor], right: Tensor, iterations: int
) -> Tensor:
    """Approximate solution of system(v) = right, from v = 0, each batch item by itself.

    Arguments:
        system: symmetric positive definite map of (B, M, T) tensors.
        right: right-hand side, (B, M, T).
        iterations: applications of `system`.

    Returns:
        v, (B, M, T). An item that is solved, or whose system fails to be positive, rests.
    """
    v = torch.zeros_like(right)
    residual = direction = right
    energy = _dot(residual, residual)
    for _ in range(iterations):
        image = system(direction)
        curvature = _dot(direction, image)
        step = torch.where(curvature > 0, energy / curvature, 0)
        v = v + step * direction
        residual = residual - step * image
        left = _dot(residual, residual)
        direction = residual + torch.where(energy > 0, left / energy, 0) * direction
        energy = left
    return v


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each item, (B, 1, 1)."""
    return (a * b).sum((1, 2), keepdim=True)


MMPS.PRESETS = {
    # The authors recommend one to five iterations; the grid is the one used here.
    "paper": MMPS(levels=100, iterations=5),
    "fast": MMPS(levels=15),
    "default": MMPS(levels=25),
    "best": MMPS(levels=100, iterations=3),
}
