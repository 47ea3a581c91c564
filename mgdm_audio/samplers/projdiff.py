r"""ProjDiff (Zhang et al., NeurIPS 2024, arXiv:2406.06907), the form without observation noise.

The sampler holds one clean estimate :math:`x_0`. At each level :math:`\sigma_i`, N times, it is
noised, denoised, moved towards the answer with momentum, and projected on the observation:

.. math::
    m &\leftarrow \beta m + (1 - \beta) \big(D(x_0 + \sigma_i z, \sigma_i) - x_0\big) \\
    x_0 &\leftarrow P(x_0 + \lambda m), \qquad
    P(x) = \operatorname{argmin}_u \tfrac{|y - A u|^2}{2 \sigma_y^2}
                                 + \tfrac{|u - x|^2}{2 \sigma_i^2}

With :math:`\sigma_y = 0` P is the projection :math:`x + A^+ (y - A x)` of the authors. It begins
with :math:`x_0 = D(z', \sigma_0)` and the estimate :math:`D(z, \sigma_0)` of another draw, whose
difference is the first m. No gradient is taken. A point is sought, not a sample: the spread of the
results is too small by far.
"""

from __future__ import annotations

__all__ = ["ProjDiff"]

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mgdm_audio.denoise import Denoiser
from mgdm_audio.draws import Draws
from mgdm_audio.samplers._ve import ask, check, descending, white
from mgdm_audio.samplers.base import Cost, DiffusionSampler, Problem, Progress, Start

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class ProjDiff(DiffusionSampler):
    r"""The sampler and its settings.

    Arguments:
        repetitions: moves N at each level, at least 1.
        rate: step size :math:`\lambda`, in (0, 1]. The authors take 0.5 / N for N = 5.
        momentum: :math:`\beta`, in [0, 1).

    Raises:
        ValueError: if a setting is out of range.
    """

    name: ClassVar[str] = "projdiff"
    PRESETS: ClassVar[dict[str, Self]]

    levels: int = 150
    sigma_min: float = 1e-4
    sigma_max: float = 1.0
    rho: float = 7.0
    repetitions: int = 5
    rate: float = 0.1
    momentum: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check("repetitions", self.repetitions, 1)
        check("rate", self.rate, 1e-6, 1)
        check("momentum", self.momentum, 0, 1 - 1e-6)

    def cost(self, sigma: float = math.inf) -> Cost:
        """See `DiffusionSampler.cost`."""
        calls = (len(descending(self, sigma)) - 1) * self.repetitions
        return Cost(calls=calls + 1 if sigma == math.inf else calls)

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
        operator, y, sigma_y = problem.linear, problem.y, problem.sigma_y
        if start is None:
            top, levels = self.sigma_max, descending(self)
            estimate = ask(denoise, white(draws, problem, top), top)
            x = ask(denoise, white(draws, problem, top), top)
            progress.advance(2)
            drift, first = estimate - x, True
        else:  # it holds a clean estimate anyway; there is no first drift to have momentum
            levels = descending(self, start.sigma)
            x, drift, first = start.estimate, torch.zeros_like(start.estimate), False
        for sigma in levels[:-1]:
            for _ in range(self.repetitions):
                if not first:
                    estimate = ask(denoise, x + white(draws, problem, sigma), sigma)
                    drift = self.momentum * drift + (1 - self.momentum) * (estimate - x)
                    progress.advance()
                first = False
                x = operator.proximal(x + self.rate * drift, y, sigma_y, sigma)
        return x


ProjDiff.PRESETS = {
    # The authors' separation experiment.
    "paper": ProjDiff(),
    "fast": ProjDiff(levels=30, repetitions=1, rate=0.6, sigma_min=5e-4),
    "default": ProjDiff(levels=30, repetitions=2, rate=0.3, sigma_min=5e-4),
    "best": ProjDiff(levels=60, repetitions=5, sigma_min=5e-4),
}
