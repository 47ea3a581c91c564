r"""What a regressor is to the samplers.

A regressor answers :math:`R(y, x, K) = E[x_{\neg K} \mid y, x_K]`: the stems outside K given their
mix and the stems in K. It takes the observation as exact and its answers add up to it. It knows no
noise levels. A prior is asked by calling it; a sampler that wants a regressor asks the attribute
`regress` of what it is given, which a `WithRegressor` has.
"""

from __future__ import annotations

__all__ = ["Answers", "Regressor", "WithRegressor", "regressor_of"]

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from mgdm_audio.denoise import Denoiser, of_items


class Regressor(Protocol):
    r"""Any callable :math:`(y, x, K) \mapsto` all stems."""

    def __call__(self, mix: Tensor, stems: Tensor, known: Tensor) -> Tensor:
        """Stems given their sum and some of them.

        One that knows of sounds beside the stems (:mod:`mgdm_audio.other`) takes a fourth argument,
        the power of such a sound: its answers then leave of the mix what they take for it.

        Arguments:
            mix: sum of the stems, (B, 1, T).
            stems: the given stems in their places, (B, K, T); the others are not read.
            known: which are given, bool (B, K).

        Returns:
            (B, K, T): the given stems as they are, estimates of the others; all add up to the mix
            unless all are given.
        """
        ...


class WithRegressor:
    """A regressor, and a prior beside it where one is needed, as the model of a sampler.

    Arguments:
        regress: the regressor.
        denoise: the prior, or None for samplers that ask the regressor alone.
    """

    def __init__(self, regress: Regressor, denoise: Denoiser | None = None) -> None:
        self.regress = regress
        self.denoise = denoise

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The prior's answer, see `Denoiser`. Raises ValueError if there is no prior."""
        if self.denoise is None:
            raise ValueError("got a regressor alone, but this sampler asks a prior; give it one")
        return self.denoise(x, sigma)

    def of_items(self, items: Sequence[int]) -> WithRegressor:
        """See `mgdm_audio.denoise.of_items`."""
        if self.denoise is None:
            return self
        narrowed: Any = of_items(self.denoise, items)
        return WithRegressor(self.regress, narrowed)


class Answers:
    """The latest answers of a regressor: the samples of a window ask for the same.

    Arguments:
        size: answers that are kept.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._kept: list[_Answer] = []
        self._about: object = None

    def of(self, regress: Regressor, about: object = None) -> Regressor:
        """The regressor, which is asked once for each of the latest questions; always the same one.

        Arguments:
            regress: the regressor.
            about: what else its answers depend on; those about another are forgotten.
        """
        if about is not self._about:
            self._kept, self._about = [], about

        def answer(mix: Tensor, stems: Tensor, known: Tensor) -> Tensor:
            kept = self._kept[:]
            found = [_find(kept, *row) for row in zip(mix, stems, known, strict=True)]
            asked: list[int] = []
            place: dict[int, int] = {}  # of a question that is new, among those that are asked
            for i, one in enumerate(found):
                if one is not None:
                    continue
                alike = (
                    n
                    for n, j in enumerate(asked)
                    if _same(mix[i], stems[i], known[i], mix[j], stems[j], known[j])
                )
                place[i] = next(alike, len(asked))
                if place[i] == len(asked):
                    asked.append(i)
            fresh: list[Tensor] = []
            if asked:
                out = regress(mix[asked], stems[asked], known[asked])
                fresh = [
                    torch.where(known[i][:, None], stems[i], one)
                    for i, one in zip(asked, out, strict=True)
                ]
                kept += [
                    (mix[i].clone(), one, known[i].clone())
                    for i, one in zip(asked, fresh, strict=True)
                ]
                self._kept = kept[-self.size :]
            # By their place, not looked up: a question that holds NaN is not even like itself.
            answers = [fresh[place[i]] if one is None else one for i, one in enumerate(found)]
            return torch.stack(answers)

        return answer


_Answer = tuple[Tensor, Tensor, Tensor]
"""A mix, all its stems, and which of them were given."""


def _find(kept: list[_Answer], mix: Tensor, stems: Tensor, known: Tensor) -> Tensor | None:
    for about, answer, given in kept:
        if about.device == mix.device and _same(mix, stems, known, about, answer, given):
            return answer
    return None


def _same(
    mix: Tensor, stems: Tensor, known: Tensor, about: Tensor, others: Tensor, given: Tensor
) -> bool:
    """Whether two questions are the same: the mix, which stems are given, and those."""
    return (
        torch.equal(mix, about)
        and torch.equal(known, given)
        and torch.equal(stems[known], others[given])
    )


def regressor_of(model: Any, name: str) -> Regressor:
    """The regressor that a model has.

    Arguments:
        model: what a sampler was given.
        name: of the sampler, for the message.

    Raises:
        ValueError: if there is none.
    """
    regress = getattr(model, "regress", None)
    if regress is None:
        raise ValueError(
            f"sampler '{name}' asks a regressor and got a prior alone; give it a WithRegressor"
        )
    return regress
