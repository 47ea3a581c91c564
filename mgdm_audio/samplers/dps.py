r"""DPS, diffusion posterior sampling (Chung et al., ICLR 2023, arXiv:2209.14687).

At each move :math:`t \to t'` of the grid the state follows the prior's bridge and then the
gradient of the residual :math:`r = y - A \hat x`, :math:`\hat x = D_t(x_t)`:

.. math:: x_{t'} = z - \frac{\gamma}{\|r\|} \nabla_{x_t} \|r\|^2,\quad
          z \sim q^\eta(x_{t'} \mid \hat x, x_t)

with a norm and a gradient for each batch item. The noise of the observation is not used. The
output is the denoised last state.

The step is :math:`2 \gamma \sqrt{K}` long at most, whatever the length of the signal: the setting
that suits twelve seconds is far too large for a short one. With ``normalise="rms"``, our
default, the norm is :math:`\|r\| / \sqrt{\text{entries of } r}`, so that the step of each sample
of time, and with it the best :math:`\gamma`, does not depend on the length.
"""

from __future__ import annotations

__all__ = ["DPS"]

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mgdm_audio.denoise import Denoiser, denoise_vp
from mgdm_audio.draws import Draws
from mgdm_audio.noise import NoiseLevels, bridge
from mgdm_audio.samplers._vp import GridSampler, denoise_and_pull, move
from mgdm_audio.samplers.base import Cost, Problem, Progress, Start

if TYPE_CHECKING:
    from typing_extensions import Self

NORMALISATIONS = ("norm", "rms")


@dataclass(frozen=True, kw_only=True)
class DPS(GridSampler):
    r"""The sampler and its settings.

    Arguments:
        steps: grid points n, at least 3; n - 1 calls, n - 2 of them with a gradient.
        gamma: step size :math:`\gamma` along the gradient, >= 0, in units of the state.
        normalise: what :math:`\gamma` is divided by: "norm" (the authors'), the Euclidean norm
            of the residual, or "rms", its root mean square.
        eta: stochasticity of the moves, in [0, 1].

    Raises:
        ValueError: if a setting is out of range.
    """

    name: ClassVar[str] = "dps"
    PRESETS: ClassVar[dict[str, Self]]

    gamma: float = 1.0
    normalise: str = "norm"
    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gamma < float("inf"):
            raise ValueError(f"got gamma = {self.gamma}, expected a finite number >= 0")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"got eta = {self.eta}, expected a number in [0, 1]")
        if self.normalise not in NORMALISATIONS:
            raise ValueError(
                f"got normalise = '{self.normalise}', expected one of {', '.join(NORMALISATIONS)}"
            )

    @property
    def needs_linear(self) -> bool:
        """See `Sampler.needs_linear`."""
        return False

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
            x = move(draws, bridge(levels, 0, lower, t, self.eta), clean, x) - self.gamma * slope
            progress.advance()
        return denoise_vp(denoise, x, grid[-1], levels)

    def _guide(
        self, denoise: Denoiser, problem: Problem, levels: NoiseLevels, t: int, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Clean estimate, and the gradient of |r|^2 divided by the size of r, item by item."""
        operator = problem.operator

        def pull(clean: Tensor) -> Tensor:
            # -A^T r, half the gradient of |r|^2 in the estimate.
            return -operator.pull(clean, problem.y - operator.forward(clean))

        clean, slope = denoise_and_pull(denoise, levels, t, x, pull)
        residual = problem.y - operator.forward(clean)
        size = residual.flatten(1).norm(dim=1)
        if self.normalise == "rms":
            size = size / residual[0].numel() ** 0.5
        # An item that explains its observation already has no slope, and no size to divide by.
        size = torch.where(size > 0, size, 1)
        return clean, 2 * slope / size[:, None, None]


DPS.PRESETS = {
    # The authors' audio experiment: windows of 262144 samples, a prior trained up to sigma 20.
    "paper": DPS(),
    "fast": DPS(sigma_max=1.0, steps=30, gamma=0.005, normalise="rms"),
    "default": DPS(sigma_max=1.0, steps=60, gamma=0.005, normalise="rms"),
    "best": DPS(sigma_max=1.0, steps=300, gamma=0.002, normalise="rms"),
}
