"""What the variance-preserving samplers share: their grid, their beginning, their moves, Adam."""

from __future__ import annotations

__all__ = ["Adam", "GridSampler", "denoise_and_pull", "move", "noise_at_the_top"]

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mgdm_audio.denoise import Denoiser, denoise_vp
from mgdm_audio.draws import Draws
from mgdm_audio.noise import NoiseLevels, broadcast
from mgdm_audio.samplers.base import DiffusionSampler, Problem, Start, at_or_below


@dataclass(frozen=True, kw_only=True)
class GridSampler(DiffusionSampler):
    """A sampler that walks once down a grid of variance-preserving levels.

    Arguments:
        steps: grid points n, at least 3; the network is first asked at the largest of them.

    Raises:
        ValueError: if a setting is out of range.
    """

    steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 3:
            raise ValueError(f"got steps = {self.steps}, expected at least 3")
        grid = self.noise_levels().subgrid(self.steps)
        if len(set(grid)) < len(grid):
            raise ValueError(
                f"got steps = {self.steps} on {self.levels} levels, which uses a level twice; "
                "lower `steps` or raise `levels`"
            )

    def grid(self, sigma: float = math.inf) -> list[int]:
        """Indices of the walk, descending: the denoiser is asked at each; index 0 is left out.

        Arguments:
            sigma: level of a warm start, which leaves out the indices above it.

        Raises:
            ValueError: if fewer than two are left.
        """
        levels = self.noise_levels()
        indices = levels.subgrid(self.steps)[:0:-1]
        return at_or_below(sigma, indices, lambda t: float(levels.sigma(t)), 2)

    def noise_range(self, sigma: float = math.inf) -> tuple[float, float]:
        """See `DiffusionSampler.noise_range`."""
        levels, grid = self.noise_levels(), self.grid(sigma)
        return float(levels.sigma(grid[-1])), float(levels.sigma(grid[0]))

    def _begin(
        self, draws: Draws, problem: Problem, levels: NoiseLevels, start: Start | None
    ) -> tuple[list[int], Tensor]:
        """The walk and the state that it begins with."""
        if start is None:
            # The noise is that of the topmost level, one index above the first call.
            return self.grid(), noise_at_the_top(draws, problem, levels)
        grid = self.grid(start.sigma)
        return grid, start.preserving(draws, float(levels.sigma(grid[0])))


def noise_at_the_top(draws: Draws, problem: Problem, levels: NoiseLevels) -> Tensor:
    """Noise of the standard deviation that the topmost level leaves to noise, (B, K, T)."""
    z = draws.normal(problem.shape).to(problem.y)
    return broadcast(levels.one_minus_alpha_bar(len(levels) - 1).sqrt(), z) * z


def denoise_and_pull(
    denoise: Denoiser,
    levels: NoiseLevels,
    t: int,
    x: Tensor,
    pull: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Clean estimate D_t(x), and the gradient in x of its inner product with a pull.

    Arguments:
        denoise: the prior.
        levels: the grid.
        t: index of the state.
        x: the state, (B, K, T).
        pull: from the estimate to the direction v, (B, K, T); it is held constant.

    Returns:
        The estimate and J^T v, J the derivative of the estimate, without a graph.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        clean = denoise_vp(denoise, leaf, t, levels)
    mean = clean.detach()
    (slope,) = torch.autograd.grad(clean, leaf, grad_outputs=pull(mean))
    return mean, slope


def move(
    draws: Draws,
    coefficients: tuple[Tensor, Tensor, Tensor],
    cleaner: Tensor,
    noisier: Tensor,
    items: list[int] | None = None,
) -> Tensor:
    """c_s x_s + c_u x_u + std z of a bridge; the normal is drawn also where std is 0.

    Arguments:
        draws: where z comes from.
        coefficients: c_s, c_u and std, each scalar or one for each item.
        cleaner: x_s, (B, K, T).
        noisier: x_u.
        items: the batch items that these are, if not all.
    """
    c_s, c_u, std = (broadcast(c, cleaner) for c in coefficients)
    shape = tuple(cleaner.shape)
    z = draws.normal(shape) if items is None else draws.normal(shape, items)
    return c_s * cleaner + c_u * noisier + std * z.to(cleaner)


class Adam:
    """Adam (Kingma and Ba, 2015, arXiv:1412.6980), each coordinate by itself.

    Arguments:
        like: a tensor of the shape, type and device of the value that is moved.
        betas: forgetting factors of the first and second moment.
        eps: added to the scale, in units of the slope.
    """

    def __init__(
        self, like: Tensor, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        self.betas, self.eps = betas, eps
        self.first = torch.zeros_like(like)
        self.second = torch.zeros_like(like)
        self.count = 0

    def step(self, value: Tensor, slope: Tensor, rate: float | Tensor) -> Tensor:
        """`value` after one descent step of size `rate`, in units of the value."""
        self.count += 1
        b_1, b_2 = self.betas
        self.first = b_1 * self.first + (1 - b_1) * slope
        self.second = b_2 * self.second + (1 - b_2) * slope**2
        mean = self.first / (1 - b_1**self.count)
        scale = (self.second / (1 - b_2**self.count)).sqrt()
        return value - rate * mean / (scale + self.eps)
