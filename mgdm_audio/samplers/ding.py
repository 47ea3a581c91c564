r"""DING for linear operators (Moufad et al., ICLR 2026, arXiv:2512.18365, inpainting), no gradient.

From level :math:`\sigma_t` to :math:`\sigma_s < \sigma_t` the prior move is
:math:`N(\mu, \eta_s^2)` with

.. math:: \mu = D(x_t, \sigma_t) + \sqrt{\sigma_s^2 - \eta_s^2}\,
                \frac{x_t - D(x_t, \sigma_t)}{\sigma_t} .

The likelihood of the state to come, :math:`p(y | D(x_s, \sigma_s))`, becomes Gaussian when the
noise of :math:`x_s` is taken from a draw :math:`z = \mu + \eta_s \xi` instead of from
:math:`x_s` itself: :math:`D(x_s, \sigma_s) \approx x_s - \sigma_s e`,
:math:`e = (z - D(z, \sigma_s)) / \sigma_s`. So :math:`x_s` is drawn exactly from the posterior of
:math:`N(\mu, \eta_s^2)` under :math:`y + \sigma_s A e = A x_s + \sigma_y n`.

The authors state this for missing pixels; here A is any operator, as the operator's own exact
Gaussian draw is all that is needed. The result is the clean estimate at the smallest level.
"""

from __future__ import annotations

__all__ = ["DING"]

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from mgdm_audio.denoise import Denoiser
from mgdm_audio.draws import Draws
from mgdm_audio.samplers._ve import ask, begin, descending, white
from mgdm_audio.samplers.base import Cost, DiffusionSampler, Problem, Progress, Start

if TYPE_CHECKING:
    from typing_extensions import Self

SPREADS = ("bridge", "published")

_LEAST = 2
"""Levels of a walk: the observation is seen in the moves between them."""


@dataclass(frozen=True, kw_only=True)
class DING(DiffusionSampler):
    r"""The sampler and its settings.

    Arguments:
        spread: :math:`\eta_s` of a prior move: "bridge",
            :math:`\eta\,\sigma_s \sqrt{1 - \sigma_s^2 / \sigma_t^2}`, the exact conditional of
            the noise; or "published", the authors' :math:`\eta\,\sigma_s \sqrt{1 - \alpha_s}`,
            :math:`\alpha_s = 1 / (1 + \sigma_s)`, which is for states of unit scale: at small
            levels it is nearly deterministic.
        eta: factor of the spread, in (0, 1]. What a move leaves certain the observation cannot
            correct.
        delayed: whether e is the noise estimate of :math:`x_t`, which was made already: half the
            calls, more bias.

    Raises:
        ValueError: if a setting is out of range.
    """

    name: ClassVar[str] = "ding"
    PRESETS: ClassVar[dict[str, Self]]

    levels: int = 50
    sigma_min: float = 5e-4
    sigma_max: float = 1.0
    rho: float = 7.0
    spread: str = "bridge"
    eta: float = 1.0
    delayed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spread not in SPREADS:
            raise ValueError(f"got spread = '{self.spread}', expected one of {', '.join(SPREADS)}")
        if not 0 < self.eta <= 1:
            raise ValueError(
                f"got eta = {self.eta}, expected a number in (0, 1]: a move without spread leaves "
                "the observation nothing to correct"
            )

    def cost(self, sigma: float = math.inf) -> Cost:
        """See `DiffusionSampler.cost`."""
        levels = len(descending(self, sigma, _LEAST)) - 1
        return Cost(calls=levels if self.delayed else 2 * levels - 1)

    def noise_range(self, sigma: float = math.inf) -> tuple[float, float]:
        """See `DiffusionSampler.noise_range`."""
        levels = descending(self, sigma, _LEAST)
        return levels[-2], levels[0]

    def _width(self, sigma: float, lower: float) -> float:
        """Standard deviation of the prior move."""
        if self.spread == "published":
            return self.eta * lower * math.sqrt(lower / (1 + lower))
        return self.eta * lower * math.sqrt(1 - (lower / sigma) ** 2)

    def _sample(
        self,
        denoise: Denoiser,
        problem: Problem,
        draws: Draws,
        progress: Progress,
        start: Start | None = None,
    ) -> Tensor:
        operator, y = problem.linear, problem.y
        levels, x = begin(self, draws, problem, start, _LEAST)
        levels.pop()  # the 0
        for sigma, lower in pairwise(levels):
            clean = ask(denoise, x, sigma)
            progress.advance()
            noise = (x - clean) / sigma
            width = self._width(sigma, lower)
            mean = clean + math.sqrt(lower**2 - width**2) * noise
            if not self.delayed:
                trial = mean + white(draws, problem, width)
                noise = (trial - ask(denoise, trial, lower)) / lower
                progress.advance()
            seen = y + lower * operator.forward(noise)
            x = operator.posterior_sample(mean, width**2, seen, problem.sigma_y, draws)
        clean = ask(denoise, x, levels[-1])
        progress.advance()
        return clean


DING.PRESETS = {
    # The authors' spread; their experiments are on images, the grid is the one used here.
    "paper": DING(levels=100, spread="published"),
    "fast": DING(levels=15),
    "default": DING(levels=40),
    "best": DING(levels=150),
}
