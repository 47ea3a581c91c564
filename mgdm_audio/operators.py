r"""What is observed of the stems: linear operators :math:`y = A x + \sigma_y n`.

A sampler sees the observation only through a `LinearOperator`: forward, adjoint, pseudo-inverse,
norm, and the exact Gaussian answers (`proximal`, `posterior`, `posterior_sample`).

Mixing, masking and giving stems all act on each sample of time by itself:
:math:`y_m(t) = \sum_k A_{mk}(t)\,x_k(t)`. A `PointwiseOperator` is that field of small matrices,
and everything is solved exactly for each sample, in the M x M form

.. math:: x + V A^T (A V A^T + \Sigma_y)^{-1} (y - A x),

a correction of x rather than a new x, in which nothing cancels when :math:`\sigma_y` is small
(the other form, :math:`(A^T A / \sigma_y^2 + V^{-1})^{-1}(\dots)`, loses the part of x that A does
not see already at :math:`\sigma_y = 10^{-4}` in float32). :math:`\sigma_y = 0` is a hard
constraint and is allowed everywhere. Corrections are computed in float64.
"""

from __future__ import annotations

__all__ = ["KnownStems", "LinearOperator", "Mask", "Mixture", "PointwiseOperator", "Stack"]

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mgdm_audio.draws import Draws

Variance = float | Tensor
"""Variance of a Gaussian over stems: a number, or a tensor (B,), (B, K) or (B, K, T)."""

NoiseLevel = float | Tensor
"""Standard deviation of the observation noise: a number, or one for each row, (M,)."""


class LinearOperator(ABC):
    """A linear map from stems (B, K, T) to an observation (B, M, T')."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A x, (B, K, T) -> (B, M, T'), differentiable."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Aᵀ y, (B, M, T') -> (B, K, T)."""

    @abstractmethod
    def pinv(self, y: Tensor) -> Tensor:
        """A⁺ y, (B, M, T') -> (B, K, T): of all x that explain y best, the smallest."""

    @abstractmethod
    def norm(self) -> float:
        """Largest singular value of A."""

    @abstractmethod
    def gram_function(self, y: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """f(A Aᵀ) y, (B, M, T') -> (B, M, T'), for methods that treat each singular value apart.

        Arguments:
            y: observation, (B, M, T').
            function: f, taken of a tensor of eigenvalues of A Aᵀ (squared singular values),
                float64, >= 0, entry by entry. It is not asked where the eigenvalue is 0: what
                A does not reach stays 0.
        """

    @abstractmethod
    def posterior_mean(self, mean: Tensor, var: Variance, y: Tensor, sigma_y: NoiseLevel) -> Tensor:
        """Mean of N(mean, diag var) after y was observed, (B, K, T); see `posterior`."""

    @abstractmethod
    def posterior(
        self, mean: Tensor, var: Variance, y: Tensor, sigma_y: NoiseLevel
    ) -> tuple[Tensor, Tensor]:
        """Posterior of a Gaussian N(mean, diag var) under y = A x + sigma_y n.

        Arguments:
            mean: prior mean, (B, K, T).
            var: prior variance, see `Variance`; may be 0 where the mean is certain.
            y: observation, (B, M, T').
            sigma_y: noise, see `NoiseLevel`; 0 is a hard constraint.

        Returns:
            The posterior mean and the marginal posterior variances, both (B, K, T).
        """

    def posterior_sample(
        self, mean: Tensor, var: Variance, y: Tensor, sigma_y: NoiseLevel, draws: Draws
    ) -> Tensor:
        """Exact draw from the `posterior`, by Matheron's rule.

        A draw of the prior is corrected towards a noisy copy of the observation. Two normals are
        drawn, of the shape of `mean` and of the shape of `y`, also where `sigma_y` is 0.

        Returns:
            One sample for each item, (B, K, T).
        """
        spread = _variance(var, mean).sqrt()
        prior = mean + spread.to(mean) * draws.normal(tuple(mean.shape)).to(mean)
        noise = draws.normal(tuple(y.shape)).to(y)
        return self.posterior_mean(prior, var, y + _noise_column(sigma_y, y) * noise, sigma_y)

    def proximal(self, x: Tensor, y: Tensor, sigma_y: NoiseLevel, rho: Variance) -> Tensor:
        r"""Minimiser z of :math:`|y - A z|^2 / (2 \sigma_y^2) + |z - x|^2 / (2 \rho^2)`.

        Arguments:
            x: centre, (B, K, T).
            y: observation, (B, M, T').
            sigma_y: noise, see `NoiseLevel`.
            rho: standard deviation of the pull towards x: number, (B,), (B, K) or (B, K, T).

        Returns:
            z, (B, K, T), computed as x plus a correction.
        """
        return self.posterior_mean(x, rho**2, y, sigma_y)

    def range_projection(self, x: Tensor) -> Tensor:
        """A⁺ A x, the part of x that the observation determines, (B, K, T)."""
        return self.pinv(self.forward(x))

    def matrix(self, shape: tuple[int, int]) -> Tensor:
        """A as a dense matrix (M T', K T) in float64, stem-major; for small shapes and tests.

        Arguments:
            shape: (K, T) of the unknown.
        """
        k, length = shape
        columns = torch.eye(k * length, dtype=torch.float64).reshape(-1, k, length)
        return self.forward(columns).flatten(1).T.contiguous()


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
        work = y.to(_precise(y))
        a = self._field(work)
        gram = torch.einsum("bmkt,bnkt->btmn", a, a)
        solved = _solve_singular(gram, work.mT, equilibrate=False).mT
        return (a * solved[:, :, None]).sum(1).to(y)

    def gram_function(self, y: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """See `LinearOperator.gram_function`."""
        self._check(y, self.rows, "observed channels")
        work = y.to(_precise(y))
        a = self._field(work)
        if self.rows == 1:
            return (_where_positive(function, (a**2).sum(2), 0.0) * work).to(y)
        values, basis = torch.linalg.eigh(torch.einsum("bmkt,bnkt->btmn", a, a))
        floor = values[..., -1:] * values.shape[-1] * 1e-13
        weights = _where_positive(function, values, floor)
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
        work = mean.to(_precise(mean))
        residual = y.to(work) - self.forward(work)
        return self._field(work), _variance(var, work).expand(mean.shape), residual

    def _solve(self, a: Tensor, v: Tensor, sigma_y: NoiseLevel, r: Tensor) -> Tensor:
        """(A V Aᵀ + Σ)⁻¹ r at each sample of time; r and the result are (B, M, T)."""
        noise = _noise_column(sigma_y, r) ** 2
        if self.rows == 1:  # the mix: worth its own line, being asked at every step of a sampler
            return _divide(r, (a**2 * v[:, None]).sum(2) + noise)
        wide = a.expand(len(v), -1, -1, v.shape[2])
        system = torch.einsum("bmkt,bnkt->btmn", a * v[:, None], wide)
        system = system + torch.diag_embed(noise.mT.expand(*system.shape[:3]))
        if bool((noise > 0).all()):
            factor = torch.linalg.cholesky(system)
            return torch.cholesky_solve(r.mT[..., None], factor)[..., 0].mT
        return _solve_singular(system, r.mT, equilibrate=True).mT

    def _field(self, like: Tensor) -> Tensor:
        return self.field.to(like)

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


def _precise(x: Tensor) -> torch.dtype:
    """float64, or the type of x on a device that has no float64."""
    return x.dtype if x.device.type == "mps" else torch.float64


def _variance(var: Variance, like: Tensor) -> Tensor:
    """Variance with trailing axes of length 1, in the working precision of `like` (B, K, T)."""
    v = torch.as_tensor(var, device=like.device, dtype=_precise(like))
    if v.ndim > 3 or any(n not in (1, m) for n, m in zip(v.shape, like.shape, strict=False)):
        raise ValueError(
            f"got a variance of shape {tuple(v.shape)} for stems {tuple(like.shape)}, expected a "
            "number, (B,), (B, K) or (B, K, T)"
        )
    if bool((v < 0).any()):
        raise ValueError("got a negative variance, expected values >= 0")
    return v.reshape(*v.shape, *[1] * (3 - v.ndim)) if v.ndim else v.reshape(1, 1, 1)


def _noise_column(sigma_y: NoiseLevel, y: Tensor) -> Tensor:
    """Noise level as (1, 1, 1) or (1, M, 1), like y (B, M, T)."""
    s = torch.as_tensor(sigma_y, device=y.device, dtype=y.dtype).reshape(1, -1, 1)
    if s.shape[1] not in (1, y.shape[1]) or bool((s < 0).any()):
        raise ValueError(
            f"got sigma_y {sigma_y}, expected one number >= 0, or one for each of the "
            f"{y.shape[1]} observed channels"
        )
    return s


def _solve_singular(system: Tensor, r: Tensor, equilibrate: bool) -> Tensor:
    """Symmetric solve (..., M, M), (..., M) that leaves out the directions without weight.

    Rows may be empty (nothing observed there) or say the same thing twice. With `equilibrate` the
    rows are brought to unit weight first, so that what counts as weightless does not depend on
    the units of a row; any such inverse gives the same answer where the rows do not contradict
    each other. Without it, it is the Moore-Penrose inverse.
    """
    diagonal = system.diagonal(dim1=-2, dim2=-1)
    if bool((system == torch.diag_embed(diagonal)).all()):
        return _divide(r, diagonal)
    scale = diagonal.sqrt() if equilibrate else torch.ones_like(diagonal)
    scale = torch.where(scale > 0, scale, 1)
    values, basis = torch.linalg.eigh(system / (scale[..., :, None] * scale[..., None, :]))
    floor = values[..., -1:] * values.shape[-1] * 1e-13
    inverse = torch.where(values > floor, 1 / torch.where(values > floor, values, 1), 0)
    coefficients = (basis.mT @ (r / scale)[..., None])[..., 0] * inverse
    return (basis @ coefficients[..., None])[..., 0] / scale


def _where_positive(
    function: Callable[[Tensor], Tensor], values: Tensor, floor: float | Tensor
) -> Tensor:
    """function(values) where they are above the floor, and 0 elsewhere."""
    positive = values > floor
    return torch.where(positive, function(torch.where(positive, values, 1)), 0)


def _divide(r: Tensor, s: Tensor) -> Tensor:
    """r / s, and 0 where s is 0: nothing is observed there, or everything is certain."""
    return torch.where(s > 0, r / torch.where(s > 0, s, 1), 0)
