"""Observations made of others: one after another, and several at once.

`compose` is one observation of the channels of another, such as the clipped mix. `stack` is several
observations of the same stems, such as the clipped mix and a given stem; `join` puts what was seen
into the one tensor that the stack expects. Both give an operator that solves exactly where there
is one (see the class of the result), and one that knows its forward map alone otherwise.
"""

from __future__ import annotations

__all__ = [
    "Chain",
    "LinearChain",
    "LinearRows",
    "Masked",
    "Rows",
    "compose",
    "join",
    "masked",
    "stack",
]

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mgdm_audio.filters import FilterOperator
from mgdm_audio.observe import LinearOperator, Operator
from mgdm_audio.operators import Mask, PointwiseOperator, Stack


def compose(outer: Operator, inner: LinearOperator) -> Operator:
    """The operator that observes the channels of `inner` by `outer`.

    Arguments:
        outer: an operator on as many stems as `inner` has channels.
        inner: a linear operator on the stems, such as `Mixture`.

    Returns:
        A `PointwiseOperator` or `FilterOperator` where the product is one, else a `LinearChain`
        or a `Chain`.
    """
    if isinstance(inner, PointwiseOperator):
        steady = inner.field.shape[0] == inner.field.shape[3] == 1
        if isinstance(outer, PointwiseOperator):
            return PointwiseOperator(torch.einsum("bmnt,bnkt->bmkt", *_broadcast(outer, inner)))
        if isinstance(outer, FilterOperator) and steady:
            gains = outer.gains @ inner.field[0, :, :, 0].to(outer.gains)
            return FilterOperator(outer.response, outer.length, gains, outer.factor)
    if isinstance(outer, LinearOperator):
        return LinearChain(outer, inner)
    return Chain(outer, inner)


def masked(operator: Operator, keep: Tensor) -> Operator:
    """The operator of which only some samples are seen; the others are 0 in the observation.

    Arguments:
        operator: the operator.
        keep: 1 (or True) where a sample is seen, (M, T').
    """
    if isinstance(operator, LinearOperator):
        return compose(Mask(keep), operator)
    return Masked(operator, keep)


def stack(operators: Sequence[Operator], shape: tuple[int, int, int]) -> Operator:
    """The operator that makes several observations; its channels follow one another.

    Channels that are shorter than the longest are filled up with zeros at the end, also in y
    (`join`), which observe nothing.

    Arguments:
        operators: the operators.
        shape: (B, K, T) of the stems.

    Raises:
        ValueError: if there is none.
    """
    if not operators:
        raise ValueError("got no operators to stack, expected at least one")
    if len(operators) == 1:
        return operators[0]
    if all(isinstance(o, PointwiseOperator) for o in operators):
        return Stack([o for o in operators if isinstance(o, PointwiseOperator)])
    filters = [o for o in operators if isinstance(o, FilterOperator)]
    if len(filters) == len(operators) and len({(f.length, f.factor) for f in filters}) == 1:
        return FilterOperator(
            torch.cat([f.response for f in filters]),
            filters[0].length,
            torch.cat([f.gains for f in filters]),
            filters[0].factor,
        )
    linear = [o for o in operators if isinstance(o, LinearOperator)]
    return LinearRows(linear, shape) if len(linear) == len(operators) else Rows(operators, shape)


def join(observations: Sequence[Tensor]) -> Tensor:
    """Observations (B, M_i, T_i) as the one (B, sum M_i, max T_i) that a `stack` expects."""
    longest = max(y.shape[2] for y in observations)
    return torch.cat([F.pad(y, (0, longest - y.shape[2])) for y in observations], dim=1)


class Chain(Operator):
    """One operator after a linear one; see `compose`."""

    def __init__(self, outer: Operator, inner: LinearOperator) -> None:
        self.outer, self.inner = outer, inner

    def forward(self, x: Tensor) -> Tensor:
        """See `Operator.forward`."""
        return self.outer.forward(self.inner.forward(x))

    def first_guess(self, y: Tensor) -> Tensor:
        """The pseudo-inverse of the first guess."""
        return self.inner.pinv(self.outer.first_guess(y))

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """The nearest stems whose channels are the outer operator's nearest ones."""
        return self.inner.project(x, self.outer.project(self.inner.forward(x), y))


class LinearChain(LinearOperator):
    """A linear operator after a linear one, solved by conjugate gradients; see `compose`."""

    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        self.outer, self.inner = outer, inner

    def forward(self, x: Tensor) -> Tensor:
        """See `Operator.forward`."""
        return self.outer.forward(self.inner.forward(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """See `LinearOperator.adjoint`."""
        return self.inner.adjoint(self.outer.adjoint(y))

    def norm(self) -> float:
        """An upper bound: the product of both norms."""
        return self.outer.norm() * self.inner.norm()


class Masked(Operator):
    """An operator of which only some samples are seen; see `masked`."""

    def __init__(self, operator: Operator, keep: Tensor) -> None:
        self.operator, self.keep = operator, keep.to(torch.bool)

    def forward(self, x: Tensor) -> Tensor:
        """See `Operator.forward`."""
        return self.operator.forward(x) * self.keep.to(x)

    def first_guess(self, y: Tensor) -> Tensor:
        """The operator's."""
        return self.operator.first_guess(y)

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """The operator's, with its own answer for x where nothing is seen."""
        keep = self.keep.to(x.device)
        return self.operator.project(x, torch.where(keep, y.to(x), self.operator.forward(x)))


class Rows(Operator):
    """Several operators at once; see `stack`.

    Arguments:
        operators: the operators.
        shape: (B, K, T) of the stems.
    """

    def __init__(self, operators: Sequence[Operator], shape: tuple[int, int, int]) -> None:
        self.operators = tuple(operators)
        self.shapes = _shapes(operators, shape)

    def forward(self, x: Tensor) -> Tensor:
        """See `Operator.forward`."""
        return join([o.forward(x) for o in self.operators])

    def first_guess(self, y: Tensor) -> Tensor:
        """The first operator's."""
        return self.operators[0].first_guess(_split(y, self.shapes)[0])

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """Each operator's nearest stems in turn; the last one's observation is met exactly."""
        for operator, part in zip(self.operators, _split(y, self.shapes), strict=True):
            x = operator.project(x, part)
        return x


class LinearRows(LinearOperator):
    """Several linear operators at once, solved by conjugate gradients; see `stack`.

    Arguments:
        operators: the operators.
        shape: (B, K, T) of the stems.
    """

    def __init__(self, operators: Sequence[LinearOperator], shape: tuple[int, int, int]) -> None:
        self.operators = tuple(operators)
        self.shapes = _shapes(operators, shape)

    def forward(self, x: Tensor) -> Tensor:
        """See `Operator.forward`."""
        return join([o.forward(x) for o in self.operators])

    def adjoint(self, y: Tensor) -> Tensor:
        """See `LinearOperator.adjoint`."""
        parts = zip(self.operators, _split(y, self.shapes), strict=True)
        return torch.stack([operator.adjoint(part) for operator, part in parts]).sum(0)

    def norm(self) -> float:
        """An upper bound: the root of the sum of the squared norms."""
        return math.sqrt(sum(o.norm() ** 2 for o in self.operators))


def _shapes(operators: Sequence[Operator], shape: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Channels and length of what each operator sees of stems (B, K, T)."""
    seen = [o.forward(torch.zeros(shape)) for o in operators]
    return [(y.shape[1], y.shape[2]) for y in seen]


def _split(y: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """What each operator sees of y, without the filling."""
    parts = y.split([rows for rows, _ in shapes], dim=1)
    return [part[..., :length] for part, (_, length) in zip(parts, shapes, strict=True)]


def _broadcast(outer: PointwiseOperator, inner: PointwiseOperator) -> tuple[Tensor, Tensor]:
    batch = max(len(outer.field), len(inner.field))
    length = max(outer.field.shape[3], inner.field.shape[3])
    fields = (outer.field, inner.field.to(outer.field))
    return (
        fields[0].expand(batch, -1, -1, length),
        fields[1].expand(batch, -1, -1, length),
    )
