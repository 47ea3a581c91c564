r"""DiffPIR, denoising diffusion for plug-and-play restoration (Zhu et al., CVPRW 2023,
arXiv:2305.08995).

At each move :math:`t \to t'` the clean estimate is pulled towards the observation by a proximal
step, and the state is made anew from it:

.. math::
    \tilde x = \arg\min_z \frac{|y - A z|^2}{2 \sigma_y^2}
               + \frac{\lambda |z - \hat x|^2}{2 \sigma_t^2},\quad \hat x = D_t(x_t)

    \tilde e = \frac{x_t - \sqrt{a_t}\, \tilde x}{\sqrt{1 - a_t}},\quad
    x_{t'} = \sqrt{a_{t'}}\, \tilde x
             + \sqrt{1 - a_{t'}} \big(\sqrt{1 - \zeta}\, \tilde e + \sqrt{\zeta}\, z\big)

The proximal step is the operator's `proximal`, a correction
:math:`A^T (A A^T + \lambda \sigma_y^2 / \sigma_t^2)^{-1} (y - A \hat x)` added to
:math:`\hat x`. The authors solve the same system for :math:`\tilde x` itself, where the part that
A does not see is divided by a number of the order of :math:`\sigma_y^2`; at their own
:math:`\sigma_y = 10^{-4}` nothing of it survives in float32. The correction is the only form
here, and what single precision recorded of theirs is no target.
"""

from __future__ import annotations

__all__ = ["DiffPIR"]

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from mgdm_audio.denoise import Denoiser, denoise_vp
from mgdm_audio.draws import Draws
from mgdm_audio.noise import broadcast
from mgdm_audio.samplers._vp import GridSampler
from mgdm_audio.samplers.base import Cost, Problem, Progress, Start

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class DiffPIR(GridSampler):
    r"""The sampler and its settings.

    Arguments:
        steps: grid points n, at least 3.
        pull: :math:`\lambda`, weight of the prior in the proximal step, > 0; without effect
            where the observation is exact.
        zeta: :math:`\zeta`, share of fresh noise in a move, in [0, 1].
        finish: whether a last call and a last proximal step take the state to level 0. The
            authors stop one grid point before, which at n = 1000 is at the smallest level, but
            leaves audible noise in a short run.

    Raises:
        ValueError: if a setting is out of range.
    """

    name: ClassVar[str] = "diffpir"
    PRESETS: ClassVar[dict[str, Self]]

    pull: float = 1.0
    zeta: float = 1.0
    finish: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.pull < float("inf"):
            raise ValueError(f"got pull = {self.pull}, expected a finite number > 0")
        if not 0 <= self.zeta <= 1:
            raise ValueError(f"got zeta = {self.zeta}, expected a number in [0, 1]")

    def cost(self, sigma: float = math.inf) -> Cost:
        """See `DiffusionSampler.cost`."""
        return Cost(calls=len(self.grid(sigma)) - 1 + self.finish)

    def noise_range(self, sigma: float = math.inf) -> tuple[float, float]:
        """See `DiffusionSampler.noise_range`."""
        levels, grid = self.noise_levels(), self.grid(sigma)
        last = grid[-1] if self.finish else grid[-2]
        return float(levels.sigma(last)), float(levels.sigma(grid[0]))

    def _sample(
        self,
        denoise: Denoiser,
        problem: Problem,
        draws: Draws,
        progress: Progress,
        start: Start | None = None,
    ) -> Tensor:
        levels = self.noise_levels()

        def corrected(x: Tensor, t: int) -> Tensor:
            clean = denoise_vp(denoise, x, t, levels)
            width = float(levels.sigma(t)) / self.pull**0.5
            return problem.linear.proximal(clean, problem.y, problem.sigma_y, width)

        if start is None:
            # At the top the signal is drowned: the authors begin with noise of unit deviation.
            grid, x = self.grid(), draws.normal(problem.shape).to(problem.y)
        else:
            grid, x = self._begin(draws, problem, levels, start)
        for t, lower in pairwise(grid):
            clean = corrected(x, t)
            scale, std = (
                broadcast(c.sqrt(), x) for c in (levels.alpha_bar(t), levels.one_minus_alpha_bar(t))
            )
            noise = (x - scale * clean) / std
            z = draws.normal(problem.shape).to(x)
            scale, std = (
                broadcast(c.sqrt(), x)
                for c in (levels.alpha_bar(lower), levels.one_minus_alpha_bar(lower))
            )
            x = scale * clean + std * ((1 - self.zeta) ** 0.5 * noise + self.zeta**0.5 * z)
            progress.advance()
        return corrected(x, grid[-1]) if self.finish else x


DiffPIR.PRESETS = {
    # The authors' audio experiment: their prior is trained up to sigma 20.
    "paper": DiffPIR(),
    "fast": DiffPIR(sigma_max=1.0, steps=30, finish=True),
    "default": DiffPIR(sigma_max=1.0, steps=60, finish=True),
    "best": DiffPIR(sigma_max=1.0, steps=300, finish=True),
}
