r"""A regressor alone: the mean of the stems given the mix, in one network call.

.. math:: \hat x = R(y, \varnothing) \approx E[x \mid y]

Not a sampler but what samplers are measured against: the network is trained on mixes and their
stems, which a prior never needs. It has the least squared error, and blurs what it is unsure of.
No number is drawn. Stems that are observed whole are passed to the network as given ones; parts of
stems are put in their place in what it answers.

Reference: the direct estimate of Manilow et al., ICASSP 2022, arXiv:2203.15140; their network is
Demucs, ours has the prior's backbone (:mod:`mgdm_audio.nn.regressor`).
"""

from __future__ import annotations

__all__ = ["Regression", "Seen"]

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mgdm_audio.denoise import Denoiser
from mgdm_audio.draws import Draws
from mgdm_audio.operators import PointwiseOperator
from mgdm_audio.regress import regressor_of
from mgdm_audio.samplers.base import Cost, Problem, Progress, Sampler

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class Regression(Sampler):
    """The estimate; it has no settings.

    The observation is taken as exact, whatever its `sigma_y`.

    Raises:
        ValueError: when sampling, if the observation is not the plain sum of the stems, with or
            without parts of the stems beside it.
    """

    name: ClassVar[str] = "regressor"
    PRESETS: ClassVar[dict[str, Self]]

    @property
    def needs(self) -> tuple[str, ...]:
        """See `Sampler.needs`."""
        return ("regressor",)

    @property
    def takes_parts(self) -> bool:
        """See `Sampler.takes_parts`."""
        return False

    def cost(self) -> Cost:
        """See `Sampler.cost`."""
        return Cost(calls=1)

    def _sample(
        self, denoise: Denoiser, problem: Problem, draws: Draws, progress: Progress
    ) -> Tensor:
        seen = Seen.of(problem, self.name)
        return seen.keep(regressor_of(denoise, self.name)(seen.mix, seen.stems, seen.known))


@dataclass(frozen=True, eq=False)
class Seen:
    """An observation as a regressor takes it.

    Attributes:
        mix: sum of the stems, (B, 1, T).
        stems: what is observed of the stems, 0 elsewhere, (B, K, T).
        parts: where that is, bool (B, K, T).
        known: the stems that are observed whole, bool (B, K).
    """

    mix: Tensor
    stems: Tensor
    parts: Tensor
    known: Tensor

    @classmethod
    def of(cls, problem: Problem, name: str) -> Seen:
        """What a problem shows.

        Arguments:
            problem: an observation by a `Mixture` without gains, alone or stacked with
                `KnownStems` or a `Mask`.
            name: of the sampler, for the message.

        Raises:
            ValueError: if the operator is another one.
        """
        operator, y = problem.operator, problem.y
        stems = torch.zeros(problem.shape).to(y)
        parts = torch.zeros(problem.shape, dtype=torch.bool, device=y.device)
        mix = None
        rows = operator.field.unbind(1) if isinstance(operator, PointwiseOperator) else ()
        for row, seen in zip(rows, y.unbind(1), strict=False):
            weighed = (row != 0).any(2).any(0)
            if bool((row == 1).all()):
                mix = seen[:, None]
            elif weighed.sum() <= 1 and bool(((row == 0) | (row == 1)).all()):
                k = int(weighed.int().argmax())
                here = (row[:, k] == 1).to(y.device).expand(parts[:, k].shape)
                parts[:, k] = parts[:, k] | here
                stems[:, k] = torch.where(here, seen, stems[:, k])
            else:
                mix = None
                break
        if mix is None:
            raise ValueError(
                f"sampler '{name}' takes the plain sum of the stems, with or without parts of the "
                f"stems beside it, and got the operator {type(operator).__name__}; choose another "
                "sampler, such as 'mgdm'"
            )
        return cls(mix, stems, parts, parts.all(2))

    def keep(self, x: Tensor) -> Tensor:
        """Stems with what is observed of them in its place; the sum is the mix where all are."""
        return torch.where(self.parts, self.stems, x)


# One call has nothing to choose from.
Regression.PRESETS = {key: Regression() for key in ("paper", "fast", "default", "best")}
