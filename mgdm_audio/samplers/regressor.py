r"""A regressor alone: the mean of the stems given the mix.

.. math:: \hat x = R(y, \varnothing) \approx E[x \mid y]

Not a sampler but what samplers are measured against: the network is trained on mixes and their
stems, which a prior never needs. It has the least squared error, and blurs what it is unsure of.
No number is drawn. It is asked about the mix at one speed or several
(:mod:`mgdm_audio.varispeed`), and may be asked again, given its own estimates
(:mod:`mgdm_audio.passes`). Stems that are observed whole are passed to the network as given ones;
so is one that is all that a second sum, with gains, has less or more of than the mix. Parts of
stems are put in their place in what it answers, and it is brought to what other sums say by least
squares.

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
from mgdm_audio.passes import CALLS, asked_again
from mgdm_audio.regress import regressor_of
from mgdm_audio.samplers._ve import check
from mgdm_audio.samplers.base import Cost, Problem, Progress, Sampler
from mgdm_audio.varispeed import Varispeed, check_speeds

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class Regression(Sampler):
    """The estimate and how it is made.

    The observation is taken as exact, whatever its `sigma_y`.

    Arguments:
        speeds: at how many speeds the regressor is asked, from 1 (the mix as it is) to 7.
        passes: how often, from 1; from the second pass on it is given its own estimates, six calls
            a pass.

    Raises:
        ValueError: if the setting is out of range; when sampling, if the observation is not the
            plain sum of the stems, with or without parts of them and other sums of them beside it.
    """

    name: ClassVar[str] = "regressor"
    PRESETS: ClassVar[dict[str, Self]]

    speeds: int = 1
    passes: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_speeds(self.speeds)
        check("passes", self.passes, 1)

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
        calls = self.speeds + CALLS * (self.passes - 1)
        return Cost(calls=calls, regressor=calls, shared=calls)

    def _sample(
        self, denoise: Denoiser, problem: Problem, draws: Draws, progress: Progress
    ) -> Tensor:
        seen = Seen.of(problem, self.name)
        regress = regressor_of(denoise, self.name)
        told = seen.mix, seen.stems, seen.known
        x = Varispeed(regress, self.speeds, progress.advance)(*told)
        for _ in range(self.passes - 1):
            # Of parts of stems it is told nothing, so that the samples of a mean, which know parts
            # of their own, share its answers.
            x = asked_again(regress, seen.mix, x, seen.known, self.speeds, progress.advance)
        return seen.keep(x)


@dataclass(frozen=True, eq=False)
class Seen:
    """An observation as a regressor takes it.

    Attributes:
        mix: sum of the stems, (B, 1, T).
        stems: what is observed of the stems, 0 elsewhere, (B, K, T).
        parts: where that is, bool (B, K, T).
        known: the stems that are observed whole, bool (B, K).
        others: the problem, where it has sums that say more; None if it has not.
    """

    mix: Tensor
    stems: Tensor
    parts: Tensor
    known: Tensor
    others: Problem | None = None

    @classmethod
    def of(cls, problem: Problem, name: str) -> Seen:
        """What a problem shows.

        Arguments:
            problem: an observation by a `Mixture` without gains, alone or stacked with
                `KnownStems`, a `Mask` or a `Mixture` with gains.
            name: of the sampler, for the message.

        Raises:
            ValueError: if the operator is another one.
        """
        operator, y = problem.operator, problem.y
        stems = torch.zeros(problem.shape).to(y)
        parts = torch.zeros(problem.shape, dtype=torch.bool, device=y.device)
        rows = operator.field.unbind(1) if isinstance(operator, PointwiseOperator) else ()
        pairs = list(zip(rows, y.unbind(1), strict=False))
        mix = next((seen for row, seen in pairs if bool((row == 1).all())), None)
        if mix is None:
            raise ValueError(
                f"sampler '{name}' takes the plain sum of the stems, with or without parts of the "
                f"stems beside it, and got the operator {type(operator).__name__}; choose another "
                "sampler, such as 'mgdm'"
            )
        more = False
        for row, seen in pairs:
            weighed, varied = ((row != value).any(2).any(0) for value in (0, 1))
            if weighed.sum() <= 1 and bool(((row == 0) | (row == 1)).all()):
                k = int(weighed.int().argmax())
                here = (row[:, k] == 1).to(y.device).expand(parts[:, k].shape)
                parts[:, k] = parts[:, k] | here
                stems[:, k] = torch.where(here, seen, stems[:, k])
            elif varied.sum() == 1 and bool((row == row[:, :, :1]).all()):
                k = int(varied.int().argmax())
                parts[:, k] = True
                stems[:, k] = (mix - seen) / (1 - row[:, k]).to(y)
            elif bool(varied.any()):
                more = True
        others = problem if more else None
        return cls(mix[:, None], stems, parts, parts.all(2), others)

    def keep(self, x: Tensor) -> Tensor:
        """Stems with what is observed of them in its place, as near as can be to what other sums
        say; the sum is the mix where all stems are observed."""
        kept = torch.where(self.parts, self.stems, x)
        return kept if self.others is None else self.others.linear.project(kept, self.others.y)


# More than three speeds gain next to nothing (recipes/regressor).
Regression.PRESETS = {
    "paper": Regression(),
    **{key: Regression(speeds=3) for key in ("fast", "default")},
    "best": Regression(speeds=3, passes=2),
}
