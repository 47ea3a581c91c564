r"""What is observed of the stems sample by sample: mixes, masks and given stems.

Mixing, masking and giving stems all act on each sample of time by itself:
:math:`y_m(t) = \sum_k A_{mk}(t)\,x_k(t)`. A `PointwiseOperator` is that field of small matrices,
and everything is solved exactly for each sample, in the M x M form of :mod:`mgdm_audio.observe`.
"""

from __future__ import annotations

__all__ = [
    "Given",
    "KnownStems",
    "LinearOperator",
    "Mask",
    "Mixture",
    "NoiseLevel",
    "Nothing",
    "Operator",
    "PointwiseOperator",
    "Stack",
    "Variance",
]

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mgdm_audio.observe import (
    LinearOperator,
    NoiseLevel,
    Operator,
    Variance,
    as_variance,
    divide,
    noise_column,
    precise,
    solve_singular,
    where_positive,
)


class PointwiseOperator(LinearOperator):
    """A field of small matrices, one for each sample of time.

    Arguments:
        matrix: A, (M, K, T), or (M, K, 1) where it is the same at all times, or with a leading
            batch axis (B, ...) where items differ. Kept in float64.

    Raises:
        ValueError: if the shape is another one or an entry is not finite.
    """

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim not in (3, 4) or 0 in matrix.shape:
            raise ValueError(
                f"got an operator field of shape {tuple(matrix.shape)}, expected (M, K, T), "
                "(M, K, 1) or either with a leading batch axis"
            )
        if not bool(torch.isfinite(matrix).all()):
            raise ValueError("the operator has entries that are not finite")
        field = matrix.detach().to(torch.float64)
        self.field = field if field.ndim == 4 else field[None]  # (B or 1, M, K, T or 1)

    @property
    def rows(self) -> int:
        """Number of observed channels M."""
        return self.field.shape[1]

    @property
    def stems(self) -> int:
        """Number of stems K."""
        return self.field.shape[2]

    def forward(self, x: Tensor) -> Tensor:
        """A x, (B, K, T) -> (B, M, T). Raises ValueError if K, T or B do not fit."""
        self._check(x, self.stems, "stems")
        return (self._field(x) * x[:, None]).sum(2)

    def adjoint(self, y: Tensor) -> Tensor:
        """Aᵀ y, (B, M, T) -> (B, K, T). Raises ValueError if M, T or B do not fit."""
        self._check(y, self.rows, "observed channels")
        return (self._field(y) * y[:, :, None]).sum(1)

    def pinv(self, y: Tensor) -> Tensor:
        """See `LinearOperator.pinv`."""
        self._check(y, self.rows, "observed channels")
        work = y.to(precise(y))
        a = self._field(work)
        gram = torch.einsum("bmkt,bnkt->btmn", a, a)
        solved = solve_singular(gram, work.mT, equilibrate=False).mT
        return (a * solved[:, :, None]).sum(1).to(y)

    def gram_function(self, y: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """See `LinearOperator.gram_function`."""
        self._check(y, self.rows, "observed channels")
        work = y.to(precise(y))
        a = self._field(work)
        if self.rows == 1:
            return (where_positive(function, (a**2).sum(2), 0.0) * work).to(y)
        values, basis = torch.linalg.eigh(torch.einsum("bmkt,bnkt->btmn", a, a))
        floor = values[..., -1:] * values.shape[-1] * 1e-13
        weights = where_positive(function, values, floor)
        rotated = (basis.mT @ work.mT[..., None])[..., 0]
        return (basis @ (weights * rotated)[..., None])[..., 0].mT.to(y)

    def norm(self) -> float:
        """See `LinearOperator.norm`."""
        return float(torch.linalg.matrix_norm(self.field.permute(0, 3, 1, 2), ord=2).max())

    def posterior_mean(self, mean: Tensor, var: Variance, y: Tensor, sigma_y: NoiseLevel) -> Tensor:
        """See `LinearOperator.posterior_mean`."""
        a, v, gain_input = self._system(mean, var, y)
        solved = self._solve(a, v, sigma_y, gain_input)
        return mean + (v * (a * solved[:, :, None]).sum(1)).to(mean)

    def posterior(
        self, mean: Tensor, var: Variance, y: Tensor, sigma_y: NoiseLevel
    ) -> tuple[Tensor, Tensor]:
        """See `LinearOperator.posterior`."""
        a, v, _ = self._system(mean, var, y)
        # One right-hand side for each stem: the columns of A give the marginal variances.
        explained = torch.zeros_like(v)
        for k in range(self.stems):
            column = a[:, :, k].expand(v.shape[0], -1, v.shape[2])
            solved = self._solve(a, v, sigma_y, column)
            explained[:, k] = (column * solved).sum(1)
        variance = (v - v**2 * explained).clamp_min(0)
        return self.posterior_mean(mean, var, y, sigma_y), variance.to(mean)

    def _system(self, mean: Tensor, var: Variance, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Field, variances and residual y - A mean, all in the working precision."""
        self._check(y, self.rows, "observed channels")
        work = mean.to(precise(mean))
        residual = y.to(work) - self.forward(work)
        return self._field(work), as_variance(var, work).expand(mean.shape), residual

    def _solve(self, a: Tensor, v: Tensor, sigma_y: NoiseLevel, r: Tensor) -> Tensor:
        """(A V Aᵀ + Σ)⁻¹ r at each sample of time; r and the result are (B, M, T)."""
        noise = noise_column(sigma_y, r) ** 2
        if self.rows == 1:  # the mix: worth its own line, being asked at every step of a sampler
            return divide(r, (a**2 * v[:, None]).sum(2) + noise)
        wide = a.expand(len(v), -1, -1, v.shape[2])
        system = torch.einsum("bmkt,bnkt->btmn", a * v[:, None], wide)
        system = system + torch.diag_embed(noise.mT.expand(*system.shape[:3]))
        if bool((noise > 0).all()):
            factor, failed = torch.linalg.cholesky_ex(system)
            # Rows that say the same, and so little noise that it is lost beside them.
            if not bool(failed.any()):
                return torch.cholesky_solve(r.mT[..., None], factor)[..., 0].mT
        return solve_singular(system, r.mT, equilibrate=True).mT

    def _field(self, like: Tensor) -> Tensor:
        field = self.field.to(like)
        # One that was made in inference mode can enter no gradient.
        return field.clone() if field.is_inference() else field

    def _check(self, x: Tensor, channels: int, what: str) -> None:
        batch, _, _, length = self.field.shape
        if (
            x.ndim != 3
            or x.shape[1] != channels
            or length not in (1, x.shape[2])
            or batch not in (1, x.shape[0])
        ):
            raise ValueError(
                f"got shape {tuple(x.shape)}, expected ({'B' if batch == 1 else batch}, "
                f"{channels}, {'T' if length == 1 else length}) with {channels} {what}"
            )


class Mixture(PointwiseOperator):
    """The mix of K stems, y = sum_k g_k x_k (M = 1).

    Arguments:
        stems: number of stems K.
        gains: g, K numbers, or None for the plain sum.

    Raises:
        ValueError: if there is no stem, or not one finite gain for each.
    """

    def __init__(self, stems: int = 4, gains: Sequence[float] | Tensor | None = None) -> None:
        if stems < 1:
            raise ValueError(f"got {stems} stems, expected at least 1")
        g = torch.ones(stems) if gains is None else torch.as_tensor(gains, dtype=torch.float64)
        if g.shape != (stems,):
            raise ValueError(
                f"got gains of shape {tuple(g.shape)}, expected one number for each of the "
                f"{stems} stems"
            )
        super().__init__(g.reshape(1, stems, 1))


class Mask(PointwiseOperator):
    """Stems of which parts are given: y_k(t) = w_k(t) x_k(t) (M = K).

    Arguments:
        keep: w, (K, T) or (K, 1), or with a leading batch axis: 1 (or True) where the sample is
            observed and 0 where it is missing. The observation is expected to be 0 there.
    """

    def __init__(self, keep: Tensor) -> None:
        if keep.ndim not in (2, 3):
            raise ValueError(
                f"got a mask of shape {tuple(keep.shape)}, expected (K, T), (K, 1) or either "
                "with a leading batch axis"
            )
        super().__init__(torch.diag_embed(keep.to(torch.float64).mT).movedim(-3, -1))


class Nothing(PointwiseOperator):
    """No observation at all: y is one channel of zeros, whatever the stems.

    Arguments:
        stems: number of stems K.
    """

    def __init__(self, stems: int = 4) -> None:
        super().__init__(torch.zeros(1, stems, 1))


class KnownStems(PointwiseOperator):
    """Some stems are given whole: y_m = x_{k_m}.

    Arguments:
        known: indices k_m of the given stems, in the order of the observed channels.
        stems: number of stems K.

    Raises:
        ValueError: if no index is given, one is out of range or comes twice.
    """

    def __init__(self, known: Sequence[int], stems: int = 4) -> None:
        if not known or len(set(known)) != len(known) or not all(0 <= k < stems for k in known):
            raise ValueError(
                f"got known stems {list(known)}, expected different indices from 0 to {stems - 1}"
            )
        super().__init__(torch.eye(stems, dtype=torch.float64)[list(known)][:, :, None])


class Stack(PointwiseOperator):
    """Several observations of the same stems at once; their channels follow one another.

    Arguments:
        operators: pointwise operators with the same number of stems.

    Raises:
        ValueError: if there is none, or their stems, lengths or batches do not fit together.
    """

    def __init__(self, operators: Sequence[PointwiseOperator]) -> None:
        if not operators:
            raise ValueError("got no operators to stack, expected at least one")
        fields = [o.field for o in operators]
        length = max(f.shape[3] for f in fields)
        batch = max(f.shape[0] for f in fields)
        for f in fields:
            if (
                f.shape[2] != fields[0].shape[2]
                or f.shape[3] not in (1, length)
                or f.shape[0] not in (1, batch)
            ):
                raise ValueError(
                    f"got fields {[tuple(f.shape) for f in fields]} (batch, rows, stems, time), "
                    "expected equal stems, and equal or unit lengths and batches"
                )
        super().__init__(torch.cat([f.expand(batch, -1, -1, length) for f in fields], dim=1))


class Given(Stack):
    """The mix, and parts of stems that are given beside it: y = (sum_k g_k x_k, w_k x_k).

    The same as a `Stack` of `Mixture` and `Mask`, solved without its systems where the given parts
    are exact: they are put in place, and the mix divides what is left of it among the others.

    Arguments:
        keep: w, see `Mask`.
        gains: g, K numbers, or None for the plain sum.
    """

    def __init__(self, keep: Tensor, gains: Sequence[float] | Tensor | None = None) -> None:
        super().__init__([Mixture(keep.shape[-2], gains), Mask(keep)])

    def posterior_mean(self, mean: Tensor, var: Variance, y: Tensor, sigma_y: NoiseLevel) -> Tensor:
        """See `LinearOperator.posterior_mean`."""
        noise = noise_column(sigma_y, y)
        if bool((noise[:, 1:] > 0).any()) or (noise.shape[1] == 1 and bool((noise > 0).any())):
            return super().posterior_mean(mean, var, y, sigma_y)
        a, v, residual = self._system(mean, var, y)
        weight = a[:, 1:].diagonal(dim1=1, dim2=2).mT
        keep = weight != 0
        g = a[:, 0]
        known = torch.where(keep & (v > 0), residual[:, 1:] / torch.where(keep, weight, 1), 0)
        left = residual[:, :1] - (g * known).sum(1, keepdim=True)
        free = torch.where(keep | (v == 0), 0, v)
        total = (g**2 * free).sum(1, keepdim=True) + noise[:, :1].to(v) ** 2
        return mean + (known + free * g * divide(left, total)).to(mean)
