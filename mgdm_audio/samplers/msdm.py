r"""MSDM with the Dirac likelihood (Mariani et al., ICLR 2024, arXiv:2302.02257).

An observation :math:`y = \sum_k g_k x_k` without noise is solved for one stem c,

.. math:: x_c = \big(y - \sum_{k \ne c} g_k x_k\big) / g_c,

and the other stems follow the slope of the joint prior along this constraint. With
:math:`\delta = (x - D(x, \hat\sigma)) / \hat\sigma`, which is :math:`-\hat\sigma` times the score,

.. math:: d_k = \delta_k - \frac{g_k}{g_c}\,\delta_c .

The constrained stem is written into the state before each call; its own slope is 0. The moves are
those of `ChurnSampler`. The stems add up to y but for the very last move, whose size is of the
order of the smallest noise level times the denoiser's error there.

A stem that is moved moves the constrained one the other way, so that a move multiplies what all
stems share by up to :math:`1 - K (1 - \sigma_{i+1} / \hat\sigma)` for a plain sum of K. This must
stay above -1 or the state blows up: for 4 stems no level may be below half of the raised one
before it.
"""

from __future__ import annotations

__all__ = ["MSDM", "constrained_row", "dirac_slope"]

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mgdm_audio.denoise import Denoiser
from mgdm_audio.draws import Draws
from mgdm_audio.operators import PointwiseOperator
from mgdm_audio.samplers._ve import ChurnSampler, ask, check
from mgdm_audio.samplers.base import Problem

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class MSDM(ChurnSampler):
    r"""The sampler and its settings.

    The observation is taken as exact, whatever its `sigma_y`, as the authors do.

    Arguments:
        constrained: index c of the stem that the observation is solved for, from 0.

    Raises:
        ValueError: if a setting is out of range; when sampling, if the operator is not one
            weighted sum of the stems that holds the constrained one at all times.
    """

    name: ClassVar[str] = "msdm"
    PRESETS: ClassVar[dict[str, Self]]

    constrained: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check("constrained", self.constrained, 0)

    @property
    def takes_parts(self) -> bool:
        """See `Sampler.takes_parts`."""
        return False

    def _prior(self, denoise: Denoiser, problem: Problem, draws: Draws) -> Denoiser:
        constrained_row(problem, self.constrained, self.name)
        return denoise

    def _slope(
        self, denoise: Denoiser, problem: Problem, x: Tensor, sigma: float
    ) -> tuple[Tensor, Tensor]:
        return dirac_slope(denoise, problem, x, sigma, self.constrained, self.name)


def constrained_row(problem: Problem, c: int, name: str) -> Tensor:
    """Weights g / g_c of the stems in the observation, (B or 1, K, T or 1), float64.

    Arguments:
        problem: the observation.
        c: constrained stem.
        name: of the sampler, for the message.

    Raises:
        ValueError: if the operator is not one weighted sum at each sample of time, the stem does
            not exist, or it is missing from the sum somewhere.
    """
    operator = problem.operator
    if not isinstance(operator, PointwiseOperator) or operator.rows != 1:
        what = type(operator).__name__
        rows = f" with {operator.rows} rows" if isinstance(operator, PointwiseOperator) else ""
        raise ValueError(
            f"sampler '{name}' solves one weighted sum of the stems for one of them and got the "
            f"operator {what}{rows}; choose another sampler, such as 'mgdm'"
        )
    if c >= operator.stems:
        raise ValueError(f"got constrained = {c}, expected a stem from 0 to {operator.stems - 1}")
    g = operator.field[:, 0]
    pivot = g[:, c : c + 1]
    if bool((pivot == 0).any()):
        raise ValueError(
            f"stem {c} is missing from the observation somewhere, so that sampler '{name}' cannot "
            "solve for it; choose another `constrained` stem or another sampler"
        )
    return g / pivot


def dirac_slope(
    denoise: Denoiser, problem: Problem, x: Tensor, sigma: float, c: int, name: str
) -> tuple[Tensor, Tensor]:
    """State with stem c solved for, and the slope along the constraint."""
    ratio = constrained_row(problem, c, name).to(x)
    residual = problem.y - problem.operator.forward(x)
    # constrained_row has refused every operator without a field.
    pivot = problem.operator.field[:, 0, c : c + 1].to(x)  # type: ignore[attr-defined]
    unit = torch.zeros(1, x.shape[1], 1, dtype=x.dtype, device=x.device)
    unit[:, c] = 1
    x = x + unit * (residual / pivot)
    delta = (x - ask(denoise, x, sigma)) / sigma
    return x, delta - ratio * delta[:, c : c + 1]


MSDM.PRESETS = {
    # The authors' separation experiment: one correction step.
    "paper": MSDM(levels=150, churn=20.0, repetitions=2),
    "fast": MSDM(levels=30, churn=2.0, repetitions=1, sigma_min=5e-4),
    "default": MSDM(levels=40, churn=5.3, sigma_min=5e-4),
    "best": MSDM(levels=150, churn=20.0, sigma_min=5e-4),
}
