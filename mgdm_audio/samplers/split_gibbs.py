r"""Split Gibbs sampling (Vono et al. 2019, arXiv:1804.05809) with an exact likelihood step.

The diffusion prior in it is that of Wu et al. (NeurIPS 2024, arXiv:2405.18782), see `PnPDM`.

A copy z of the stems carries the observation and is tied to the stems x by a Gaussian of width
:math:`\omega`:

.. math:: \pi_\omega(x, z) \propto p(x)\, \exp\!\Big(-\frac{|x - z|^2}{2 \omega^2}\Big)
          \exp\!\Big(-\frac{|y - A z|^2}{2 \sigma_y^2}\Big)

The two are drawn in turn, while the width falls from `sigma_max` to `width_min`:

1. :math:`z | x`: the operator's exact draw from :math:`N(x, \omega^2)` given y. (A point in its
   place would halve the spread of the result.)
2. :math:`x | z`: z is a noisy x of level :math:`\omega`, so that the prior's own reverse diffusion
   from there down samples x: a chain of ancestral moves on a Karras grid that starts at
   :math:`\omega` itself.

At the last width x is a sample of the posterior smeared by it; nothing else is approximated but
the chain. `PnPDM` is the same sampler in its authors' discretisation.
"""

from __future__ import annotations

__all__ = ["SplitGibbs"]

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from mgdm_audio.denoise import Denoiser
from mgdm_audio.draws import Draws
from mgdm_audio.noise import karras_sigmas
from mgdm_audio.samplers._ve import ask, check, move, remaining
from mgdm_audio.samplers.base import Cost, DiffusionSampler, Problem, Progress, Start, at_or_below

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class SplitGibbs(DiffusionSampler):
    r"""The sampler and its settings.

    Arguments:
        levels: number of widths, a Karras grid from `sigma_max` to `width_min`, at least 2.
        sigma_min: level at which a chain of the prior takes its last, clean estimate.
        sigma_max: first width.
        width_min: last width, above `sigma_min`; what a result is smeared by.
        sweeps: further sweeps at the last width, at least 0.
        denoising_steps: levels of a chain; 1 takes :math:`x = D(z, \omega)`, a point.
        eta: stochasticity of the chain, in [0, 1].
        prior_std: None to take the chain's clean estimates at their word, which costs spread; or
            the standard deviation of the stems, in units of the signal, with which a move adds
            what white stems would have left about their estimate (`remaining`). Stems of narrow
            spectrum have less.

    Raises:
        ValueError: if a setting is out of range.
    """

    name: ClassVar[str] = "split-gibbs"
    PRESETS: ClassVar[dict[str, Self]]

    levels: int = 20
    sigma_min: float = 5e-4
    sigma_max: float = 1.0
    rho: float = 7.0
    width_min: float = 2e-3
    sweeps: int = 0
    denoising_steps: int = 3
    eta: float = 1.0
    prior_std: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigma_min < self.width_min < self.sigma_max:
            raise ValueError(
                f"got width_min = {self.width_min}, expected a width between sigma_min = "
                f"{self.sigma_min} and sigma_max = {self.sigma_max}"
            )
        check("sweeps", self.sweeps, 0)
        check("denoising_steps", self.denoising_steps, 1)
        check("eta", self.eta, 0, 1)
        if self.prior_std is not None:
            check("prior_std", self.prior_std, 1e-12)

    def cost(self, sigma: float = math.inf) -> Cost:
        """See `DiffusionSampler.cost`."""
        return Cost(calls=len(self.widths(sigma)) * self.denoising_steps)

    def noise_range(self, sigma: float = math.inf) -> tuple[float, float]:
        """See `DiffusionSampler.noise_range`."""
        widths = self.widths(sigma)
        return self.sigma_min if self.denoising_steps > 1 else widths[-1], widths[0]

    def widths(self, sigma: float = math.inf) -> list[float]:
        """Widths of all sweeps, in order; those above a warm start at `sigma` are left out."""
        grid = karras_sigmas(self.levels, self.width_min, self.sigma_max, self.rho).tolist()[:-1]
        return at_or_below(sigma, grid + grid[-1:] * self.sweeps, float, 1)

    def _sample(
        self,
        denoise: Denoiser,
        problem: Problem,
        draws: Draws,
        progress: Progress,
        start: Start | None = None,
    ) -> Tensor:
        # Noise of the first width is added by the first draw of z, also to an estimate.
        x = problem.y.new_zeros(problem.shape) if start is None else start.estimate
        for width in self.widths(math.inf if start is None else start.sigma):
            z = problem.linear.posterior_sample(x, width**2, problem.y, problem.sigma_y, draws)
            x = self._reverse(denoise, draws, progress, z, width)
        return x

    def _reverse(
        self, denoise: Denoiser, draws: Draws, progress: Progress, x: Tensor, width: float
    ) -> Tensor:
        """A draw of the clean signal given that x is noisy at level `width`."""
        chain = [width, 0.0]
        if self.denoising_steps > 1:
            chain = karras_sigmas(self.denoising_steps, self.sigma_min, width, self.rho).tolist()
        for sigma, lower in pairwise(chain):
            clean = ask(denoise, x, sigma)
            progress.advance()
            if lower > 0:
                spread = 0.0 if self.prior_std is None else remaining(sigma, self.prior_std)
                x = move(draws, clean, x, sigma, lower, self.eta, spread)
            else:
                x = clean
        return x


SplitGibbs.PRESETS = {
    # No audio experiment was published; many sweeps and long chains.
    "paper": SplitGibbs(levels=100, denoising_steps=20),
    "fast": SplitGibbs(levels=15, denoising_steps=2),
    "default": SplitGibbs(levels=25, denoising_steps=3),
    "best": SplitGibbs(levels=60, denoising_steps=5),
}
