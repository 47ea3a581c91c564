r"""RED-diff, regularisation by a diffusion denoiser (Mardani, Song, Kautz and Vahdat, ICLR 2024,
arXiv:2305.04391).

One clean estimate :math:`\mu` is optimised, not sampled. It starts at :math:`A^+ y`; for t down
the grid one step of Adam is taken on

.. math::
    w \sqrt{\tfrac{1 - b_t}{b_t}}\, \frac{\langle e - z, \mu \rangle}{K T}
    + \frac{v}{2 M T'}\, |y - A \mu|^2,\quad
    e = \frac{x_t - \sqrt{a_t} D_t(x_t)}{\sqrt{1 - a_t}},\quad
    x_t = \sqrt{b_t}\, (\mu + s z') + \sqrt{1 - b_t}\, z

with e held constant, so that no gradient goes through the network, and with sums over each batch
item alone. The noise of the observation is not used: the two weights stand for it.

:math:`b_t = a_t` is the state's own level. The authors' audio run takes :math:`b_t` from the
table of an image model instead (DDPM, :math:`\beta` from 1e-4 to 2e-2 in 1000 steps) while their
network is asked at :math:`a_t`, so that it is told a noise level that is not there. We take the
levels of the grid; ``noise_table="ddpm"`` is theirs, in their single precision.
"""

from __future__ import annotations

__all__ = ["REDDiff"]

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mgdm_audio.denoise import Denoiser, denoise_vp
from mgdm_audio.draws import Draws
from mgdm_audio.noise import NoiseLevels, broadcast
from mgdm_audio.samplers._vp import Adam, GridSampler
from mgdm_audio.samplers.base import Cost, Problem, Progress, Start

if TYPE_CHECKING:
    from typing_extensions import Self

TABLES = ("grid", "ddpm")
DDPM_LEVELS = 1000
BETAS = (0.9, 0.99)


@dataclass(frozen=True, kw_only=True)
class REDDiff(GridSampler):
    r"""The optimiser and its settings.

    Arguments:
        steps: grid points n, at least 3; n - 1 calls.
        learning_rate: step size of Adam, > 0, in units of the signal.
        prior_weight: w, >= 0.
        data_weight: v, >= 0.
        spread: s, standard deviation that :math:`\mu` is taken to have, >= 0, in units of the
            signal; its normal is drawn also where it is 0.
        noise_table: where :math:`b_t` is from: "grid", the levels of the grid, or "ddpm", the
            authors' table, which needs ``levels=1000``.

    Raises:
        ValueError: if a setting is out of range.
    """

    name: ClassVar[str] = "reddiff"
    PRESETS: ClassVar[dict[str, Self]]

    learning_rate: float = 0.1
    prior_weight: float = 0.25
    data_weight: float = 1.0
    spread: float = 0.0
    noise_table: str = "grid"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(
                f"got learning_rate = {self.learning_rate}, expected a finite number > 0"
            )
        for field in ("prior_weight", "data_weight", "spread"):
            if not 0 <= getattr(self, field) < float("inf"):
                raise ValueError(
                    f"got {field} = {getattr(self, field)}, expected a finite number >= 0"
                )
        if self.noise_table not in TABLES:
            raise ValueError(
                f"got noise_table = '{self.noise_table}', expected one of {', '.join(TABLES)}"
            )
        if self.noise_table == "ddpm" and self.levels != DDPM_LEVELS:
            raise ValueError(
                f"got levels = {self.levels} with noise_table = 'ddpm', which has {DDPM_LEVELS}; "
                f"set levels to {DDPM_LEVELS} or noise_table to 'grid'"
            )

    @property
    def needs_linear(self) -> bool:
        """See `Sampler.needs_linear`."""
        return False

    @property
    def solves(self) -> bool:
        """See `Sampler.solves`; it begins with the pseudo-inverse of a linear operator."""
        return True

    def cost(self, sigma: float = math.inf) -> Cost:
        """See `DiffusionSampler.cost`."""
        return Cost(calls=len(self.grid(sigma)))

    def _sample(
        self,
        denoise: Denoiser,
        problem: Problem,
        draws: Draws,
        progress: Progress,
        start: Start | None = None,
    ) -> Tensor:
        levels = self.noise_levels()
        # An optimiser holds a clean estimate: a warm start is that, and the levels below.
        mean = problem.operator.first_guess(problem.y) if start is None else start.estimate
        adam = Adam(mean, BETAS)
        for t in self.grid(math.inf if start is None else start.sigma):
            scale, std, weight = (broadcast(c, mean) for c in self._coefficients(levels, t))
            clean = mean + self.spread * draws.normal(problem.shape).to(mean)
            z = draws.normal(problem.shape).to(mean)
            x = scale * clean + std * z
            guess = denoise_vp(denoise, x, t, levels)
            true_scale = broadcast((1 + levels.sigma(t) ** 2).sqrt(), x)
            noise = (true_scale * x - guess) / broadcast(levels.sigma(t), x)
            residual = problem.y - problem.operator.forward(mean)
            # Means, not sums: the size decides where Adam's eps begins to matter.
            slope = self.prior_weight * weight * (noise - z) / z[0].numel()
            slope = slope - self.data_weight * problem.operator.pull(mean, residual) / (
                residual[0].numel()
            )
            mean = adam.step(mean, slope, self.learning_rate)
            progress.advance()
        return mean

    def _coefficients(self, levels: NoiseLevels, t: int) -> tuple[Tensor, Tensor, Tensor]:
        """sqrt(b), sqrt(1 - b) and sqrt((1 - b) / b), float64."""
        if self.noise_table == "grid":
            sigma = levels.sigma(t)
            return levels.alpha_bar(t).sqrt(), levels.one_minus_alpha_bar(t).sqrt(), sigma
        beta = torch.linspace(1e-4, 2e-2, DDPM_LEVELS, dtype=torch.float64).float()
        b = torch.cumprod(1 - beta, 0)[t]
        scale, std = b.sqrt(), (1 - b).sqrt()
        return scale.double(), std.double(), (std / scale).double()


REDDiff.PRESETS = {
    # The authors' audio experiment: their prior is trained up to sigma 20.
    "paper": REDDiff(noise_table="ddpm"),
    "fast": REDDiff(sigma_max=1.0, steps=30, learning_rate=0.02, prior_weight=1.0),
    "default": REDDiff(sigma_max=1.0, steps=60, learning_rate=0.01, prior_weight=1.0),
    "best": REDDiff(sigma_max=1.0, steps=300, learning_rate=0.003, prior_weight=1.0),
}
