"""What every sampler shares: the problem it solves, its cost, and how it is run."""

from __future__ import annotations

__all__ = ["Callback", "Cost", "DiffusionSampler", "Problem", "Progress", "Sampler", "Start"]

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, ClassVar, TypeVar

import torch
from torch import Tensor

from mgdm_audio.denoise import Denoiser
from mgdm_audio.draws import Draws
from mgdm_audio.noise import NoiseLevels
from mgdm_audio.observe import LinearOperator, Operator

if TYPE_CHECKING:
    from typing_extensions import Self

Level = TypeVar("Level", int, float)

_KINDS: dict[str, tuple[type, str]] = {
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "bool": (bool, "true or false"),
    "str": (str, "a word"),
}
"""What a setting may be, by its annotation; others are checked where they are used."""

Callback = Callable[[int, int], None]
"""Progress report (done, total) in planned denoiser calls; raising in it cancels the run."""


@dataclass(frozen=True)
class Cost:
    """Planned work for one batch item.

    Attributes:
        calls: denoiser calls, with or without a gradient.
        vjps: those of them that a gradient is taken through.
        regressor: those of them that ask a regressor.
        shared: those of a regressor's that the samples of one mix have in common: about the mix
            alone.
    """

    calls: int
    vjps: int = 0
    regressor: int = 0
    shared: int = 0


@dataclass(frozen=True, eq=False)
class Problem:
    """What is observed of the unknown stems.

    Arguments:
        operator: the observation operator A; some samplers need a linear one (`linear`).
        y: observation, (B, M, T'), floating point, finite. Its type and device are the state's.
        sigma_y: standard deviation of the observation noise, >= 0 (0 is exact), in units of the
            signal; one number, or one for each observed channel, (M,).
        shape: shape (B, K, T) of the unknown stems.

    Raises:
        ValueError: if these do not fit together.
    """

    operator: Operator
    y: Tensor
    sigma_y: float | Tensor
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"got shape {tuple(self.shape)}, expected (B, K, T), all positive")
        if self.y.ndim != 3 or self.y.shape[0] != self.shape[0]:
            raise ValueError(
                f"got an observation of shape {tuple(self.y.shape)}, expected "
                f"({self.shape[0]}, M, T')"
            )
        if not self.y.is_floating_point() or not bool(torch.isfinite(self.y).all()):
            raise ValueError(
                "the observation must be finite floating point numbers; repair the input first"
            )
        noise = torch.as_tensor(self.sigma_y)
        if noise.ndim > 1 or (noise.ndim == 1 and len(noise) != self.y.shape[1]):
            raise ValueError(
                f"got sigma_y of shape {tuple(noise.shape)}, expected one number, or one for each "
                f"of the {self.y.shape[1]} observed channels"
            )
        if not bool((noise >= 0).all()) or not bool(torch.isfinite(noise).all()):
            raise ValueError(f"got sigma_y = {self.sigma_y}, expected finite numbers >= 0")

    @property
    def linear(self) -> LinearOperator:
        """The operator, for samplers that need more than the gradient of the likelihood.

        Raises:
            ValueError: if it is not linear.
        """
        if not isinstance(self.operator, LinearOperator):
            raise ValueError(
                f"this sampler needs a linear operator and got {type(self.operator).__name__}; use "
                "mgdm, dps, reddiff, daps with local='langevin', or pnpdm with "
                "likelihood='langevin', which need no more than the likelihood's gradient"
            )
        return self.operator


@dataclass(frozen=True, eq=False)
class Start:
    r"""Where a warm start begins: at a low noise level, from an estimate of the stems.

    A sampler begins at the highest level of its grid that is not above :math:`\sigma`, with the
    estimate plus noise of that level. The grid below is walked as it always is.

    Arguments:
        estimate: clean stems, (B, K, T).
        sigma: the level, in units of the signal.
    """

    estimate: Tensor
    sigma: float

    def exploding(self, draws: Draws, sigma: float) -> Tensor:
        """The state at level sigma in the VE view."""
        return self.estimate + sigma * draws.normal(tuple(self.estimate.shape)).to(self.estimate)

    def preserving(self, draws: Draws, sigma: float) -> Tensor:
        """The state at level sigma in the VP view."""
        return self.exploding(draws, sigma) / math.sqrt(1 + sigma**2)


def at_or_below(
    sigma: float, levels: Sequence[Level], level: Callable[[Level], float], least: int
) -> list[Level]:
    """The part of a descending grid that a warm start walks.

    Arguments:
        sigma: the level to start at; infinity for the whole grid.
        levels: grid points, in the order in which they are walked.
        level: noise level of a point.
        least: points that a walk needs.

    Raises:
        ValueError: if fewer are left.
    """
    # A level of the grid that was written down in decimals is that level.
    left = [t for t in levels if level(t) <= sigma * (1 + 1e-9)]
    if len(left) < least:
        lowest = level(levels[-least]) if len(levels) >= least else math.nan
        raise ValueError(
            f"got a warm start at noise level {sigma:g}, expected at least {lowest:g}, below which "
            "too little of the sampler's grid is left; raise it, or take more steps"
        )
    return left


class Progress:
    """Counts planned denoiser calls and reports them, never backwards and never past the total.

    Arguments:
        callback: told (done, total) at every advance, or None.
        total: planned calls for one item.

    Attributes:
        weight: how many of them one of the calls stands for that are reported here.
    """

    def __init__(self, callback: Callback | None, total: int) -> None:
        self._callback = callback
        self.total = total
        self.weight = 1
        self.done = 0
        self._before = 0

    def next_part(self, calls: int) -> None:
        """A first sampler has ended, `calls` of the plan were its; another one takes over."""
        self.weight = 1
        self.reach(calls)
        self._before += calls

    def advance(self, calls: int = 1) -> None:
        """`calls` more were made."""
        self.reach((self.done - self._before) // self.weight + calls)

    def reach(self, done: int) -> None:
        """This part is fulfilled up to `done` calls, whether or not all had to be made."""
        self.done = min(max(self.done, self._before + self.weight * done), self.total)
        if self._callback is not None:
            self._callback(self.done, self.total)


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """A posterior sampler; its fields are its settings.

    A subclass is a frozen, keyword-only dataclass in a file of its own. It states `name`, fills
    `PRESETS`, and implements `cost` and `_sample`; `sample` is the public entry, which guards
    what all share: no gradient graph outside a step, no state shared between batch items, no
    global randomness, a finite result.
    """

    name: ClassVar[str]
    PRESETS: ClassVar[dict[str, Self]]

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            value = getattr(self, setting.name)
            kind, word = _KINDS.get(str(setting.type), (object, ""))
            number = kind in (Integral, Real)
            # A truth value is a number to Python.
            if not isinstance(value, kind) or (number and isinstance(value, bool)):
                raise ValueError(f"got {setting.name} = {value!r}, expected {word}")

    @property
    def needs(self) -> tuple[str, ...]:
        """What the sampler asks: "prior" (it is given a `Denoiser`), "regressor" (it is given a
        `WithRegressor`), or both (a `WithRegressor` that has a prior)."""
        return ("prior",)

    @property
    def needs_linear(self) -> bool:
        """Whether the operator must be linear: more than the likelihood's gradient is used."""
        return True

    @property
    def solves(self) -> bool:
        """Whether the observation is solved for, by a proximal step or a pseudo-inverse: products
        with the operator and its adjoint are not enough."""
        return self.needs_linear

    @property
    def takes_levels(self) -> bool:
        """Whether observed channels may differ in their noise level, ``Problem.sigma_y``."""
        return True

    @property
    def takes_product(self) -> bool:
        """Whether the prior has to be a product of single-stem priors; a joint one is refused."""
        return False

    @property
    def takes_parts(self) -> bool:
        """Whether parts of stems that are observed beside the mix inform what it makes of the
        rest. Windows of other samplers cannot be told the one before them and are cross-faded."""
        return True

    @property
    def speeds(self) -> int:
        """At how many speeds a regressor is asked about the mix alone, if it is asked at all; see
        :class:`mgdm_audio.varispeed.Varispeed`."""
        return 1

    def noise_range(self) -> tuple[float, float] | None:
        """Lowest and highest noise level at which the prior is asked; None if it never is."""
        return None

    @abstractmethod
    def cost(self) -> Cost:
        """Planned denoiser calls and VJPs for one item (an upper bound where draws decide)."""

    def sample(
        self,
        denoise: Denoiser,
        problem: Problem,
        draws: Draws,
        callback: Callback | None = None,
    ) -> Tensor:
        """Draw stems from the posterior, one sample for each batch item.

        Arguments:
            denoise: the prior, or what else the sampler `needs`.
            problem: the observation.
            draws: randomness, one stream per item, in the type and on the device of ``problem.y``.
            callback: progress in planned calls, see `Callback`.

        Returns:
            Stems, (B, K, T), without a gradient graph.

        Raises:
            ValueError: if the operator is not linear and the sampler needs it to be.
            FloatingPointError: if the result is not finite.
        """
        if self.needs_linear:
            _ = problem.linear
        # Tensors made in inference mode can never enter a gradient, which some samplers take.
        with torch.inference_mode(False), torch.no_grad():
            if problem.y.is_inference():
                problem = Problem(
                    problem.operator, problem.y.clone(), problem.sigma_y, problem.shape
                )
            progress = Progress(callback, self.cost().calls)
            x = self._sample(denoise, problem, draws, progress)
            progress.reach(progress.total)
        if not bool(torch.isfinite(x).all()):
            raise FloatingPointError(
                f"sampler '{self.name}' gave values that are not finite; a larger sigma_y, a "
                "smaller step setting, or float32 instead of a half type usually helps"
            )
        return x

    @abstractmethod
    def _sample(
        self, denoise: Denoiser, problem: Problem, draws: Draws, progress: Progress
    ) -> Tensor:
        """The method itself; gradients are off and are switched on only where one is taken."""


@dataclass(frozen=True, kw_only=True)
class DiffusionSampler(Sampler):
    """A sampler that goes down a grid of noise levels, from any level of it.

    A subclass implements `cost`, `noise_range` and `_sample`, each for the whole grid and for
    what a warm start leaves of it.

    Arguments:
        levels: number of positive noise levels of the grid.
        sigma_min: smallest of them, in units of the signal; the denoiser is never asked below.
        sigma_max: largest of them.
        rho: exponent of the Karras grid.

    Raises:
        ValueError: if a setting is out of range, naming it.
    """

    levels: int = 1000
    sigma_min: float = 5e-4
    sigma_max: float = 20.0
    rho: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.noise_levels()  # raises where the grid fields do not make a grid

    def noise_levels(self) -> NoiseLevels:
        """The ascending grid of the settings, index 0 clean; see `NoiseLevels.karras`."""
        return NoiseLevels.karras(self.levels, self.sigma_min, self.sigma_max, self.rho)

    @abstractmethod
    def cost(self, sigma: float = math.inf) -> Cost:
        """See `Sampler.cost`.

        Arguments:
            sigma: level of a warm start, infinity for none.

        Raises:
            ValueError: if there is too little of the grid at and below it.
        """

    @abstractmethod
    def noise_range(self, sigma: float = math.inf) -> tuple[float, float]:
        """See `Sampler.noise_range`; `sigma` as in `cost`."""

    @abstractmethod
    def _sample(
        self,
        denoise: Denoiser,
        problem: Problem,
        draws: Draws,
        progress: Progress,
        start: Start | None = None,
    ) -> Tensor:
        """See `Sampler._sample`; from the top of the grid, or from a `Start`."""
