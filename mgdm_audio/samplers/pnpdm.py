r"""PnP-DM (Wu et al., NeurIPS 2024, arXiv:2405.18782): split Gibbs, the authors' discretisation.

N iterations with a falling width :math:`\omega_i = \max(\omega_0\, c^i, \omega_{min})` alternate

1. :math:`z \sim N(x, \omega_i^2)` given the observation,
2. x: the prior's reverse diffusion from z at level :math:`\omega_i`, by Euler moves in
   :math:`t = \sigma^2` on a geometric grid,
   :math:`x \leftarrow x + (t_j - t_{j+1}) (D(x, \sqrt{t_j}) - x) / t_j
   + \sqrt{t_j - t_{j+1}}\, z`, without noise in the last move to 0.

Step 1 is Gaussian and is drawn exactly ("exact", as in the paper). What MGDM's authors ran on audio
is "published": Langevin moves
:math:`v \leftarrow v + \gamma A^T (y - A v) / \sigma_y^2 + \gamma (v - x) / \omega_0^2
+ \sqrt{2 \gamma}\, z`, in which the tie to x repels instead of attracting and keeps its first
width; at :math:`\omega_0 = 10` and :math:`\gamma = 10^{-9}` it hardly acts either way. "langevin"
has the sign and the width right.

Euler moves add the noise of the whole interval at its lower end. On a grid of ratio q that is q
times the noise of the level they arrive at, so they are for fine grids, such as the authors'; the
exact conditional of the noise given the clean estimate takes any ("bridge").
"""

from __future__ import annotations

__all__ = ["PnPDM"]

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mgdm_audio.denoise import Denoiser
from mgdm_audio.draws import Draws
from mgdm_audio.noise import NoiseLevels
from mgdm_audio.samplers._ve import ask, check, move, white
from mgdm_audio.samplers.base import Cost, DiffusionSampler, Problem, Progress, Start, at_or_below

if TYPE_CHECKING:
    from typing_extensions import Self

LIKELIHOODS = ("exact", "langevin", "published")
ENTRIES = ("width", "grid")
MOVES = ("bridge", "euler")

_FLOOR = 1e-4
"""Smallest width of the likelihood that Langevin moves follow, in units of the signal."""


@dataclass(frozen=True, kw_only=True)
class PnPDM(DiffusionSampler):
    r"""The sampler and its settings.

    Arguments:
        levels: levels of the geometric grid from `sigma_max` to `sigma_min`; `rho` is not used.
        iterations: iterations N, at least 1.
        width_start: first width :math:`\omega_0`, in units of the signal.
        width_decay: factor c from one width to the next, in (0, 1].
        width_min: smallest width.
        likelihood: "exact", "langevin" or "published", see above. The result of "published"
            follows the observation and hardly knows the state of the prior. The moves of the two
            latter take the likelihood no narrower than 1e-4, the authors' value for a mix without
            noise: an exact observation has no density to follow.
        langevin_steps: moves of the two latter.
        langevin_rate: their step size :math:`\gamma`, in squared units of the signal.
        langevin_scaled: whether :math:`\gamma` is instead a share of the squared width of the
            local law, :math:`(1 / \sigma_y^2 + 1 / \omega_i^2)^{-1}`: stable below 1 at every
            width, for operators of norm 1.
        entry: where a reverse diffusion begins: at "width" itself, below which the grid
            follows; or, as with the authors, at the first level of the "grid" below the width,
            although the state is noisier. From a width below the grid no move is made.
        moves: how a reverse diffusion goes down: by the authors' Euler moves ("euler"), whose
            noise :math:`\sqrt{t_j - t_{j+1}}` is too large by :math:`\sigma_j / \sigma_{j+1}`,
            so that the grid has to be fine; or by the exact conditional of the noise given the
            clean estimate ("bridge"), which any grid allows.

    Raises:
        ValueError: if a setting is out of range.
    """

    name: ClassVar[str] = "pnpdm"
    PRESETS: ClassVar[dict[str, Self]]

    levels: int = 99
    sigma_min: float = 0.02
    sigma_max: float = 20.0
    iterations: int = 99
    width_start: float = 10.0
    width_decay: float = 0.9
    width_min: float = 1e-3
    likelihood: str = "exact"
    langevin_steps: int = 100
    langevin_rate: float = 1e-9
    langevin_scaled: bool = False
    entry: str = "width"
    moves: str = "euler"

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, known in (
            ("likelihood", LIKELIHOODS),
            ("entry", ENTRIES),
            ("moves", MOVES),
        ):
            if getattr(self, field) not in known:
                raise ValueError(
                    f"got {field} = '{getattr(self, field)}', expected one of {', '.join(known)}"
                )
        check("iterations", self.iterations, 1)
        check("width_min", self.width_min, 1e-12)
        check("width_start", self.width_start, self.width_min)
        check("width_decay", self.width_decay, 1e-6, 1)
        check("langevin_steps", self.langevin_steps, 1)
        check("langevin_rate", self.langevin_rate, 0)

    def noise_levels(self) -> NoiseLevels:
        """The ascending geometric grid of the settings, index 0 clean."""
        if self.levels < 2 or not 0 < self.sigma_min < self.sigma_max:
            return super().noise_levels()  # which says what is wrong
        ramp = torch.arange(self.levels, dtype=torch.float64) / (self.levels - 1)
        top, ratio = self.sigma_max**2, (self.sigma_min / self.sigma_max) ** 2
        squares = (top * ratio**ramp).flip(0)
        return NoiseLevels(torch.cat([squares.new_zeros(1), squares.sqrt()]))

    def widths(self, sigma: float = math.inf) -> list[float]:
        """Widths of all iterations, in order; those above a warm start at `sigma` are left out."""
        widths = [
            max(self.width_start * self.width_decay**i, self.width_min)
            for i in range(self.iterations)
        ]
        return at_or_below(sigma, widths, float, 1)

    @property
    def needs_linear(self) -> bool:
        """See `Sampler.needs_linear`."""
        return self.likelihood == "exact"

    def cost(self, sigma: float = math.inf) -> Cost:
        """See `DiffusionSampler.cost`."""
        return Cost(calls=sum(len(chain) - 1 for chain in self._chains(sigma)))

    def noise_range(self, sigma: float = math.inf) -> tuple[float, float]:
        """See `DiffusionSampler.noise_range`."""
        asked = [level for chain in self._chains(sigma) for level in chain[:-1]]
        return min(asked), max(asked)

    def _chains(self, sigma: float) -> list[list[float]]:
        """Levels of the reverse diffusions of all iterations."""
        grid = self.noise_levels().sigmas.flip(0).tolist()
        chains = [self._chain(grid, width) for width in self.widths(sigma)]
        if not any(len(chain) > 1 for chain in chains):
            raise ValueError(
                f"no width is above sigma_min = {self.sigma_min:g}, so that the prior is never "
                "asked; raise the widths or the warm start's level, or lower sigma_min"
            )
        return chains

    def _chain(self, grid: list[float], width: float) -> list[float]:
        """Levels of a reverse diffusion from `width`, 0 at the end."""
        below = [s for s in grid if s < width]
        return [width, *below] if self.entry == "width" and len(below) > 1 else below

    def _sample(
        self,
        denoise: Denoiser,
        problem: Problem,
        draws: Draws,
        progress: Progress,
        start: Start | None = None,
    ) -> Tensor:
        grid = self.noise_levels().sigmas.flip(0).tolist()
        if start is None:
            # Unit scale, whatever the first width: what the authors' samplers share.
            x = white(draws, problem, self.sigma_max / math.sqrt(1 + self.sigma_max**2))
            widths = self.widths()
        else:  # the likelihood step adds noise of the first width
            x, widths = start.estimate, self.widths(start.sigma)
        for width in widths:
            x = self._likelihood_step(problem, draws, x, width)
            for sigma, lower in pairwise(self._chain(grid, width)):
                clean = ask(denoise, x, sigma)
                progress.advance()
                if self.moves == "bridge":
                    x = move(draws, clean, x, sigma, lower) if lower > 0 else clean
                    continue
                x = x + (1 - (lower / sigma) ** 2) * (clean - x)
                if lower > 0:
                    x = x + white(draws, problem, math.sqrt(sigma**2 - lower**2))
        return x

    def _likelihood_step(self, problem: Problem, draws: Draws, x: Tensor, width: float) -> Tensor:
        operator, y = problem.operator, problem.y
        if self.likelihood == "exact":
            return problem.linear.posterior_sample(x, width**2, y, problem.sigma_y, draws)
        sigma_y = torch.as_tensor(problem.sigma_y, dtype=x.dtype, device=x.device)
        precision = sigma_y.clamp_min(_FLOOR).reshape(1, -1, 1) ** -2
        tie = -1 / width**2 if self.likelihood == "langevin" else 1 / self.width_start**2
        rate = self.langevin_rate
        if self.langevin_scaled:
            rate /= float(precision.max()) + width**-2
        v = x
        for _ in range(self.langevin_steps):
            pull = operator.pull(v, precision * (y - operator.forward(v)))
            v = v + rate * (pull + tie * (v - x)) + white(draws, problem, math.sqrt(2 * rate))
        return v


# Grids this coarse need moves whose noise is right: by Euler moves the stems of preset `fast` come
# out many times too loud and explain nothing of a real mix.
_CHEAP = PnPDM(sigma_min=1e-3, sigma_max=1.0, width_start=1.0, width_min=2e-3, moves="bridge")

PnPDM.PRESETS = {
    # What the authors of MGDM ran on audio, wrong sign included.
    "paper": PnPDM(likelihood="published", entry="grid"),
    "fast": replace(_CHEAP, levels=7, iterations=8, width_decay=0.45),
    "default": replace(_CHEAP, levels=12, iterations=12, width_decay=0.57),
    "best": replace(_CHEAP, levels=20, iterations=30, width_decay=0.8),
}
