"""What the variance-preserving samplers share: their grid, their start and their moves."""

from __future__ import annotations

__all__ = ["Adam", "GridSampler", "move", "start"]

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from mgdm_audio.draws import Draws
from mgdm_audio.noise import NoiseLevels, broadcast
from mgdm_audio.samplers.base import Problem, Sampler


@dataclass(frozen=True, kw_only=True)
class GridSampler(Sampler):
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

    def _moves(self, levels: NoiseLevels) -> list[tuple[int, int]]:
        """Moves (t, t') from the top of the grid down to its first positive index."""
        grid = levels.subgrid(self.steps)[:0:-1]
        return list(pairwise(grid))


def start(draws: Draws, problem: Problem, levels: NoiseLevels) -> Tensor:
    """Noise of the standard deviation that the topmost level leaves to noise, (B, K, T)."""
    z = draws.normal(problem.shape).to(problem.y)
    return broadcast(levels.one_minus_alpha_bar(len(levels) - 1).sqrt(), z) * z


def move(
    draws: Draws, coefficients: tuple[Tensor, Tensor, Tensor], cleaner: Tensor, noisier: Tensor
) -> Tensor:
    """c_s x_s + c_u x_u + std z of a bridge; the normal is drawn also where std is 0."""
    c_s, c_u, std = (broadcast(c, cleaner) for c in coefficients)
    z = draws.normal(tuple(cleaner.shape)).to(cleaner)
    return c_s * cleaner + c_u * noisier + std * z


class Adam:
    """Adam (Kingma and Ba, 2015, arXiv:1412.6980), each coordinate by itself.

    Arguments:
        like: a tensor of the shape, type and device of the value that is moved.
        rate: step size, in units of the value.
        betas: forgetting factors of the first and second moment.
        eps: added to the scale, in units of the slope.
    """

    def __init__(
        self, like: Tensor, rate: float, betas: tuple[float, float], eps: float = 1e-8
    ) -> None:
        self.rate, self.betas, self.eps = rate, betas, eps
        self.first = torch.zeros_like(like)
        self.second = torch.zeros_like(like)
        self.count = 0

    def step(self, value: Tensor, slope: Tensor) -> Tensor:
        """`value` after one descent step."""
        self.count += 1
        b_1, b_2 = self.betas
        self.first = b_1 * self.first + (1 - b_1) * slope
        self.second = b_2 * self.second + (1 - b_2) * slope**2
        mean = self.first / (1 - b_1**self.count)
        scale = (self.second / (1 - b_2**self.count)).sqrt()
        return value - self.rate * mean / (scale + self.eps)
