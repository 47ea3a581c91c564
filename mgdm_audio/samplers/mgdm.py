r"""MGDM, the mixture-guided diffusion model (Janati, Moufad et al., ICML 2025, arXiv:2502.03332).

Between the state :math:`x_t` and the clean signal :math:`x_0` the method puts a guided state
:math:`x_\ell` at a drawn index :math:`0 < \ell < t`. The joint law of the three, with likelihood
:math:`g_0(y | D_\ell(x_\ell))`, is sampled by R sweeps of a Gibbs sampler:

1. :math:`x_\ell \sim g_0(y | D_\ell(x_\ell))\, q(x_\ell | x_0, x_t)`, by a Gaussian
   :math:`N(\mu, e^{2v})` fitted with G steps of Adam to the evidence bound (one reparameterised
   draw a step),
2. :math:`x_0 \sim p(x_0 | x_\ell)`, by a short DDIM chain of the prior alone,
3. :math:`x_t` given :math:`x_\ell`, see `MGDM.noising`.

States are variance preserving, indices are those of `NoiseLevels`. Every batch item draws its own
indices and is sent through the denoiser only for the moves its own chain has, so that a batch is
the same as its items sampled one by one.
"""

from __future__ import annotations

__all__ = ["MGDM", "Breakpoints"]

import math
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor

from mgdm_audio.denoise import Denoiser, denoise_vp, of_items
from mgdm_audio.draws import Draws
from mgdm_audio.noise import NoiseLevels, bridge, broadcast, forward, int_linspace
from mgdm_audio.samplers._ve import check
from mgdm_audio.samplers._vp import Adam, move, noise_at_the_top
from mgdm_audio.samplers.base import (
    Cost,
    DiffusionSampler,
    Problem,
    Progress,
    Start,
    at_or_below,
)

if TYPE_CHECKING:
    from typing_extensions import Self

Number = TypeVar("Number", int, float)
Breakpoints = tuple[tuple[int, Number], ...]
"""A step function of the outer index: (first index, value), ascending, the first index 0."""

INDEX_LAWS = ("uniform", "mix", "zero", "deterministic", "mix-det", "midpoint")
NOISINGS = ("bridge", "forward")


@dataclass(frozen=True, kw_only=True)
class MGDM(DiffusionSampler):
    r"""The sampler and its settings.

    The `steps` grid points run down from the largest level; three consecutive ones
    :math:`t_{next} > t > t_{prev}` make an outer step, `outer_steps` = `steps` - 3 in all,
    counted by idx = 0, 1, ...

    Arguments:
        steps: grid points n, at least 4.
        repetitions: Gibbs sweeps R in each outer step, at least 1.
        gradient_steps: Adam steps G of one fit, by idx, see `Breakpoints`.
        learning_rate: step size of Adam, by idx, in units of the variance-preserving state.
        rate_limit: upper limit of the learning rate of :math:`\mu` in units of the noise level of
            :math:`x_\ell` (VP), or None. Adam's moves have the size of its rate whatever the
            gradient, so a rate that suits the coarse levels leaves that much error at the fine
            ones; the authors' grid ends at sigma 0.0098, where theirs is still below it.
        denoising_steps: grid points of the chain from :math:`x_\ell` to :math:`x_0`, including
            both ends: one call fewer. 1 takes :math:`x_0 = D_\ell(x_\ell)`.
        eta: stochasticity of that chain and of the first move of an outer step, in [0, 1].
        index: law of the guided index :math:`\ell`:
            "uniform" on {min_index, ..., t_prev - 1};
            "mix" (the authors') uniform while idx < threshold, then t_prev;
            "zero" uniform on {1, ..., t_prev // 5 - 1};
            "deterministic" t_prev;
            "mix-det" 3/4 of t_prev while idx < threshold, then t_prev;
            "midpoint" t // 2.
        threshold: idx at which "mix" and "mix-det" change over.
        min_index: smallest index of the uniform draws, at least 1.
        noising: how :math:`x_t` is renewed at the end of a sweep: "bridge", as in the authors'
            code, from :math:`q(x_t | x_\ell, x_{t_{next}})`, which keeps the state it came from;
            or "forward", as in the paper, from :math:`q(x_t | x_\ell)`, which forgets it. Both
            are Gibbs samplers, of slightly different targets.
        sigma_floor: the likelihood is never taken narrower than this, in units of the signal: an
            exact observation (sigma_y = 0) has no density to follow. 1e-4 is the authors' value
            for a mix without noise; at least 1e-8.

    Raises:
        ValueError: if a setting is out of range, or an index law has no index to draw from.
    """

    name: ClassVar[str] = "mgdm"
    PRESETS: ClassVar[dict[str, Self]]

    steps: int = 20
    repetitions: int = 2
    gradient_steps: Breakpoints[int] = ((0, 3), (11, 10))
    learning_rate: Breakpoints[float] = ((0, 0.01),)
    rate_limit: float | None = None
    denoising_steps: int = 2
    eta: float = 1.0
    index: str = "deterministic"
    threshold: int = 13
    min_index: int = 10
    noising: str = "bridge"
    sigma_floor: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, low in (("steps", 4), ("repetitions", 1), ("denoising_steps", 1)):
            if getattr(self, field) < low:
                raise ValueError(f"got {field} = {getattr(self, field)}, expected at least {low}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"got eta = {self.eta}, expected a number in [0, 1]")
        # Adam squares slopes of 1 / sigma_floor^2, which float32 has to hold.
        check("sigma_floor", self.sigma_floor, 1e-8)
        for field, known in (("index", INDEX_LAWS), ("noising", NOISINGS)):
            if getattr(self, field) not in known:
                raise ValueError(
                    f"got {field} = '{getattr(self, field)}', expected one of {', '.join(known)}"
                )
        _check_breakpoints("gradient_steps", self.gradient_steps, low=0)
        _check_breakpoints("learning_rate", self.learning_rate, low=1e-12)
        if self.rate_limit is not None and not self.rate_limit > 0:
            raise ValueError(f"got rate_limit = {self.rate_limit}, expected a positive number")
        grid = self.noise_levels().subgrid(self.steps)
        if len(set(grid)) < len(grid):
            raise ValueError(
                f"got steps = {self.steps} on {self.levels} levels, which uses a level twice; "
                "lower `steps` or raise `levels`"
            )
        for idx in range(self.outer_steps):
            low, high = self.index_range(idx)
            if not 1 <= low <= high:
                raise ValueError(
                    f"index law '{self.index}' has nothing to draw at outer step {idx}: the "
                    f"indices {low} to {high}, of which the first must be at least 1 and the last "
                    "no smaller; change `min_index`, lower `steps` or `threshold`, raise "
                    "`levels`, or choose another `index`"
                )

    @property
    def outer_steps(self) -> int:
        """Number of outer steps, idx = 0, ..., outer_steps - 1."""
        return self.steps - 3

    def index_range(self, idx: int) -> tuple[int, int]:
        """Smallest and largest guided index of an outer step; equal where nothing is drawn."""
        grid = self.noise_levels().subgrid(self.steps)
        t, t_prev = grid[-2 - idx], grid[-3 - idx]
        before = idx < self.threshold
        if self.index == "uniform" or (self.index == "mix" and before):
            return self.min_index, t_prev - 1
        if self.index == "zero":
            return 1, t_prev // 5 - 1
        if self.index == "mix-det" and before:
            return 75 * t_prev // 100, 75 * t_prev // 100
        if self.index == "midpoint":
            return t // 2, t // 2
        return t_prev, t_prev

    @property
    def needs_linear(self) -> bool:
        """See `Sampler.needs_linear`."""
        return False

    def cost(self, sigma: float = math.inf) -> Cost:
        """See `Sampler.cost`; exact unless a drawn index is below `denoising_steps` - 1."""
        first = self._first_step(sigma)
        vjps = sum(
            self.repetitions * _at(self.gradient_steps, idx)
            for idx in range(first, self.outer_steps)
        )
        return Cost(calls=self._planned_calls(sigma)[-1], vjps=vjps)

    def noise_range(self, sigma: float = math.inf) -> tuple[float, float]:
        """See `DiffusionSampler.noise_range`."""
        first = self._first_step(sigma)
        ranges = [self.index_range(idx) for idx in range(first, self.outer_steps)]
        low = min(low for low, _ in ranges)
        if self.denoising_steps > 2:
            low = int_linspace(low, min(self.denoising_steps, low + 1))[1]
        high = max(high for _, high in ranges)
        levels = self.noise_levels()
        if sigma == math.inf:
            high = levels.subgrid(self.steps)[-1]
        return float(levels.sigma(low)), float(levels.sigma(high))

    def _first_step(self, sigma: float) -> int:
        """Outer step that a warm start at level sigma begins with, the first one for infinity."""
        levels = self.noise_levels()
        # The noisier ends of the outer steps.
        ends = levels.subgrid(self.steps)[:2:-1]
        return len(ends) - len(at_or_below(sigma, ends, lambda t: float(levels.sigma(t)), 1))

    def _planned_calls(self, sigma: float) -> list[int]:
        """Calls after the beginning and after each outer step."""
        done = [1 if sigma == math.inf else 0]
        for idx in range(self._first_step(sigma), self.outer_steps):
            chain = max(min(self.denoising_steps, self.index_range(idx)[1] + 1) - 1, 1)
            done.append(done[-1] + self.repetitions * (_at(self.gradient_steps, idx) + chain))
        return done

    def _sample(
        self,
        denoise: Denoiser,
        problem: Problem,
        draws: Draws,
        progress: Progress,
        start: Start | None = None,
    ) -> Tensor:
        levels = self.noise_levels()
        grid = levels.subgrid(self.steps)
        sigma = math.inf if start is None else start.sigma
        first, plan = self._first_step(sigma), self._planned_calls(sigma)
        if start is None:
            x = noise_at_the_top(draws, problem, levels)
            x0 = denoise_vp(denoise, x, grid[-1], levels)
        else:
            x = start.preserving(draws, float(levels.sigma(grid[-1 - first])))
            x0 = start.estimate
        progress.reach(plan[0])
        for idx in range(first, self.outer_steps):
            t_next, t = grid[-1 - idx], grid[-2 - idx]
            low, high = self.index_range(idx)
            ell = torch.full((problem.shape[0],), low)
            if self._draws_index(idx):
                ell = draws.integers(low, high + 1)
            x_next = x
            x = move(draws, bridge(levels, 0, t, t_next, self.eta), x0, x_next)
            for _ in range(self.repetitions):
                x_ell = self._guide(denoise, problem, draws, progress, levels, idx, (ell, t), x0, x)
                x0 = self._denoise_down(denoise, draws, progress, levels, ell, x_ell)
                if self.noising == "bridge":
                    x = move(draws, bridge(levels, ell, t, t_next), x_ell, x_next)
                else:
                    scale, std = forward(levels, ell, t)
                    x = move(draws, (scale, torch.zeros_like(scale), std), x_ell, x_ell)
            progress.reach(plan[1 + idx - first])
        return x0

    def _draws_index(self, idx: int) -> bool:
        """Whether the index is drawn, which it is also where only one value is possible."""
        return self.index in ("uniform", "zero") or (self.index == "mix" and idx < self.threshold)

    def _guide(
        self,
        denoise: Denoiser,
        problem: Problem,
        draws: Draws,
        progress: Progress,
        levels: NoiseLevels,
        idx: int,
        indices: tuple[Tensor, int],
        x0: Tensor,
        x: Tensor,
    ) -> Tensor:
        """Draw x_ell from the Gaussian fitted to likelihood times prior bridge."""
        ell, t = indices
        c_0, c_t, std = bridge(levels, 0, ell, t)
        m = broadcast(c_0, x) * x0 + broadcast(c_t, x) * x
        s = broadcast(std, x)
        mu, v = m.clone(), s.log().expand_as(m).clone()
        adam_mu, adam_v = Adam(mu), Adam(v)
        rate = torch.full((len(ell),), _at(self.learning_rate, idx), dtype=torch.float64)
        if self.rate_limit is not None:
            rate = rate.clamp_max(self.rate_limit * levels.one_minus_alpha_bar(ell).sqrt())
        rate = broadcast(rate, x)
        for _ in range(_at(self.gradient_steps, idx)):
            z = draws.normal(tuple(x.shape))
            spread = v.exp() * z
            sample = mu + spread
            # The bound's quadratic term uses the same draw as the likelihood; only the entropy,
            # the sum of v, is in closed form.
            slope = self._likelihood_gradient(denoise, problem, levels, ell, sample)
            slope = slope + (sample - m) / s**2
            mu = adam_mu.step(mu, slope, rate)
            v = adam_v.step(v, slope * spread - 1, _at(self.learning_rate, idx))
            progress.advance()
        return mu + v.exp() * draws.normal(tuple(x.shape))

    def _likelihood_gradient(
        self, denoise: Denoiser, problem: Problem, levels: NoiseLevels, ell: Tensor, x: Tensor
    ) -> Tensor:
        """Gradient in x of |y - A D_ell(x)|^2 / (2 sigma_y^2), item by item."""
        # In float64, which not every device has.
        sigma_y = problem.sigma_y.cpu() if isinstance(problem.sigma_y, Tensor) else problem.sigma_y
        width = torch.as_tensor(sigma_y, dtype=torch.float64)
        width = width.clamp_min(self.sigma_floor).reshape(1, -1, 1)
        finest = width.min()
        weight = ((finest / width) ** 2).to(x.dtype).to(x.device)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            residual = problem.y - problem.operator.forward(denoise_vp(denoise, leaf, ell, levels))
            # 1 / sigma_y^2 is taken out of the network's backward pass, where 1e8 would not fit
            # a half-precision number.
            loss = 0.5 * (weight * residual**2).sum()
            (slope,) = torch.autograd.grad(loss, leaf)
        return slope / float(finest) ** 2

    def _denoise_down(
        self,
        denoise: Denoiser,
        draws: Draws,
        progress: Progress,
        levels: NoiseLevels,
        ell: Tensor,
        x_ell: Tensor,
    ) -> Tensor:
        """x_0 given x_ell: a DDIM chain over each item's own sub-grid from ell down to 0."""
        if self.denoising_steps == 1:
            x0 = denoise_vp(denoise, x_ell, ell, levels)
            progress.advance()
            return x0
        grids = [int_linspace(i, min(self.denoising_steps, i + 1))[::-1] for i in ell.tolist()]
        x = x_ell.clone()
        for j in range(max(len(g) for g in grids) - 1):
            # The shorter chains have arrived: they rest, and neither draw nor call.
            items = [i for i, g in enumerate(grids) if j + 1 < len(g)]
            everyone = len(items) == len(grids)
            u = torch.tensor([grids[i][j] for i in items])
            t = torch.tensor([grids[i][j + 1] for i in items])
            part, own = (x, None) if everyone else (x[items], items)
            clean = denoise_vp(of_items(denoise, own), part, u, levels)
            coefficients = bridge(levels, torch.zeros_like(t), t, u, self.eta)
            part = move(draws, coefficients, clean, part, own)
            if everyone:
                x = part
            else:
                x[items] = part
            progress.advance()
        return x


def _at(breakpoints: Breakpoints[Number], idx: int) -> Number:
    """Value of a step function at the outer index idx."""
    value = breakpoints[0][1]
    for first, candidate in breakpoints:
        if first <= idx:
            value = candidate
    return value


def _check_breakpoints(field: str, breakpoints: Breakpoints[Number], low: float) -> None:
    firsts: list[int] = [first for first, _ in breakpoints]
    if not firsts or firsts[0] != 0 or any(a >= b for a, b in pairwise(firsts)):
        raise ValueError(
            f"got {field} = {breakpoints}, expected (first outer index, value) pairs with "
            "ascending indices from 0, such as ((0, 3), (10, 20))"
        )
    if any(not low <= value < float("inf") for _, value in breakpoints):
        raise ValueError(f"got {field} = {breakpoints}, expected finite values of at least {low}")
    whole: list[float] = list(firsts)
    if field == "gradient_steps":
        whole += [value for _, value in breakpoints]
    if not all(isinstance(count, Integral) for count in whole):
        raise ValueError(f"got {field} = {breakpoints}, expected whole numbers of steps")


_TUNED: dict[str, Any] = {
    "sigma_max": 3.0,
    "learning_rate": ((0, 0.01),),
    "rate_limit": 0.3,
    "denoising_steps": 1,
    "index": "midpoint",
    "noising": "forward",
}

MGDM.PRESETS = {
    # The authors' audio experiment: their prior is trained up to sigma 20.
    "paper": MGDM(
        steps=20,
        repetitions=6,
        gradient_steps=((0, 3), (10, 20)),
        learning_rate=((0, 0.005),),
        denoising_steps=15,
        index="mix",
        threshold=13,
        min_index=10,
    ),
    # Ours, chosen on Gaussian stems and on validation songs with checkpoints of the shipped prior:
    # the midpoint index, forward noising and one call from x_ell to x_0 give stems nearer to the
    # posterior mean than exact samples are, at the price of too little spread.
    "fast": MGDM(steps=8, repetitions=1, gradient_steps=((0, 4),), **_TUNED),
    "default": MGDM(steps=10, repetitions=1, gradient_steps=((0, 4),), **_TUNED),
    "best": MGDM(steps=20, repetitions=2, gradient_steps=((0, 5),), **_TUNED),
    # For spread: the state remembers where it was, the guided level is the next one, and there are
    # many of them. On Gaussian stems it has 4/5 of the posterior's variance, "best" half.
    "wide": MGDM(
        **{**_TUNED, "index": "deterministic", "noising": "bridge", "sigma_floor": 1e-2},
        steps=60,
        repetitions=1,
        gradient_steps=((0, 5),),
    ),
    # "default" with its levels where warm starts begin: that one has hardly any below 0.1.
    "warm": MGDM(
        **{**_TUNED, "sigma_max": 0.3},
        steps=10,
        repetitions=1,
        gradient_steps=((0, 4),),
    ),
    # The same with one step of the fit at each level, for starts so low and estimates so good that
    # more of them change nothing: from the regressor at 0.03 validation songs have 2.97 dB with
    # four and 2.96 with one, and as much of the mix is left.
    "light": MGDM(
        **{**_TUNED, "sigma_max": 0.3},
        steps=10,
        repetitions=1,
        gradient_steps=((0, 1),),
    ),
}
