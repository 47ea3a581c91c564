"""What the variance-exploding samplers share: grid, begin, moves, and the loop with churn."""

from __future__ import annotations

__all__ = ["ChurnSampler", "ask", "begin", "check", "descending", "move", "remaining", "white"]

import math
from abc import abstractmethod
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from mgdm_audio.denoise import Denoiser
from mgdm_audio.draws import Draws
from mgdm_audio.noise import bridge_ve, broadcast
from mgdm_audio.samplers.base import (
    Cost,
    DiffusionSampler,
    Problem,
    Progress,
    Start,
    at_or_below,
)


def descending(sampler: DiffusionSampler, sigma: float = math.inf, least: int = 1) -> list[float]:
    """The sampler's noise levels from the largest down to the smallest, and 0 after them.

    Arguments:
        sampler: whose grid it is.
        sigma: level of a warm start, which leaves out the levels above it.
        least: positive levels that a walk needs.
    """
    levels = sampler.noise_levels().sigmas.flip(0).tolist()
    return [*at_or_below(sigma, levels[:-1], float, least), 0.0]


def white(draws: Draws, problem: Problem, sigma: float) -> Tensor:
    """Noise of standard deviation sigma, (B, K, T)."""
    return sigma * draws.normal(problem.shape).to(problem.y)


def begin(
    sampler: DiffusionSampler, draws: Draws, problem: Problem, start: Start | None, least: int = 1
) -> tuple[list[float], Tensor]:
    """The levels to walk, 0 at the end, and the state at the first of them."""
    if start is None:
        levels = descending(sampler)
        return levels, white(draws, problem, levels[0])
    levels = descending(sampler, start.sigma, least)
    return levels, start.exploding(draws, levels[0])


def ask(denoise: Denoiser, x: Tensor, sigma: float) -> Tensor:
    """D(x, sigma) with one noise level for all items."""
    return denoise(x, x.new_full((x.shape[0],), sigma))


def move(
    draws: Draws,
    clean: Tensor,
    x: Tensor,
    sigma: float,
    lower: float,
    eta: float = 1.0,
    spread: float = 0.0,
) -> Tensor:
    """From level sigma to `lower` > 0 by the bridge to the clean estimate, see `bridge_ve`.

    Arguments:
        draws: where the normal comes from, which is drawn also where it has no weight.
        clean: estimate of the clean signal, (B, K, T).
        x: state at level sigma, (B, K, T).
        sigma: its level.
        lower: level to go to.
        eta: stochasticity of the bridge.
        spread: standard deviation of the clean signal about its estimate; 0 takes it at its word.
    """
    zero, s, u = torch.tensor([0.0, lower, sigma], dtype=torch.float64)
    c_s, c_u, std = bridge_ve(zero, s, u, eta)
    std = (std**2 + (c_s * spread) ** 2).sqrt()
    c_s, c_u, std = (broadcast(c, x) for c in (c_s, c_u, std))
    return c_s * clean + c_u * x + std * draws.normal(tuple(x.shape)).to(x)


def remaining(sigma: float, prior_std: float | None) -> float:
    r"""Standard deviation of white stems given their noisy state.

    :math:`r^2 = \sigma^2 s^2 / (\sigma^2 + s^2)` for a prior of standard deviation s; sigma itself
    where s is None, which knows of no prior.
    """
    return sigma if prior_std is None else sigma / math.hypot(1, sigma / prior_std)


def check(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise ValueError unless low <= value <= high and value is finite."""
    if not (low <= value <= high and math.isfinite(value)):
        limit = f"at least {low}" if high == math.inf else f"from {low} to {high}"
        raise ValueError(f"got {name} = {value}, expected a number {limit}")


@dataclass(frozen=True, kw_only=True)
class ChurnSampler(DiffusionSampler):
    r"""Euler moves down the grid with churn and correction steps (Mariani et al. 2024).

    At each level :math:`\sigma_i`, `repetitions` times: noise is added up to
    :math:`\hat\sigma = \sigma_i (1 + g)`, :math:`g = \min(churn / levels, \sqrt 2 - 1)`; a move
    :math:`x \leftarrow x + (\sigma_{i+1} - \hat\sigma)\, d(x, \hat\sigma)`; and, but for the last
    time, noise from :math:`\sigma_{i+1}` back to :math:`\sigma_i`.

    Arguments:
        churn: noise that is added and removed on the whole way, at least 0. What counts is its
            ratio to `levels`.
        repetitions: moves at each level R, at least 1: R - 1 of them are corrections.

    Raises:
        ValueError: if a setting is out of range.
    """

    levels: int = 150
    sigma_min: float = 1e-4
    sigma_max: float = 1.0
    rho: float = 7.0
    churn: float = 20.0
    repetitions: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check("churn", self.churn, 0)
        check("repetitions", self.repetitions, 1)

    def cost(self, sigma: float = math.inf) -> Cost:
        """See `DiffusionSampler.cost`."""
        levels = len(descending(self, sigma)) - 1
        return Cost(calls=levels * self.repetitions * self._calls_of_a_move())

    def noise_range(self, sigma: float = math.inf) -> tuple[float, float]:
        """See `DiffusionSampler.noise_range`; the churn goes above the grid."""
        levels = descending(self, sigma)
        return levels[-2] * self._growth, levels[0] * self._growth

    @property
    def _growth(self) -> float:
        """Factor by which churn raises a level."""
        return 1 + min(self.churn / self.levels, math.sqrt(2) - 1)

    def _calls_of_a_move(self) -> int:
        return 1

    def _prior(self, denoise: Denoiser, problem: Problem, draws: Draws) -> Denoiser:
        """The prior that the moves ask; raises ValueError if the problem does not suit."""
        return denoise

    @abstractmethod
    def _slope(
        self, denoise: Denoiser, problem: Problem, x: Tensor, sigma: float
    ) -> tuple[Tensor, Tensor]:
        """The state, perhaps corrected, and the slope d at it."""

    def _sample(
        self,
        denoise: Denoiser,
        problem: Problem,
        draws: Draws,
        progress: Progress,
        start: Start | None = None,
    ) -> Tensor:
        prior = self._prior(denoise, problem, draws)
        levels, x = begin(self, draws, problem, start)
        for sigma, lower in pairwise(levels):
            for repetition in range(self.repetitions):
                raised = sigma * self._growth
                x = x + white(draws, problem, math.sqrt(raised**2 - sigma**2))
                x, slope = self._slope(prior, problem, x, raised)
                x = x + (lower - raised) * slope
                if repetition + 1 < self.repetitions:
                    x = x + white(draws, problem, math.sqrt(sigma**2 - lower**2))
                progress.advance(self._calls_of_a_move())
        return x
