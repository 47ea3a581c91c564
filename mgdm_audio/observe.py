r"""What an observation is to a sampler: :math:`y = A(x) + \sigma_y n`.

An `Operator` is any map A that can be differentiated; it gives its likelihood, and the product of
its Jacobian's transpose with a vector (`pull`), which is all that methods by gradients need. A
`LinearOperator` has an adjoint besides, a pseudo-inverse, a norm, and the exact answers for a
Gaussian prior (`proximal`, `posterior`, `posterior_sample`).

The Gaussian answers are written

.. math:: x + V A^T (A V A^T + \Sigma_y)^{-1} (y - A x),

a correction of x rather than a new x, in which nothing cancels when :math:`\sigma_y` is small
(the other form, :math:`(A^T A / \sigma_y^2 + V^{-1})^{-1}(\dots)`, loses the part of x that A does
not see already at :math:`\sigma_y = 10^{-4}` in float32). :math:`\sigma_y = 0` is a hard
constraint and is allowed everywhere. Corrections are computed in float64.

Operators whose systems fall apart into small ones solve those (see :mod:`mgdm_audio.operators` and
:mod:`mgdm_audio.filters`); for all others `LinearOperator` solves by conjugate gradients.
"""

from __future__ import annotations

__all__ = ["LinearOperator", "NoiseLevel", "Operator", "Variance"]

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from mgdm_audio.draws import Draws

Variance = float | Tensor
"""Variance of a Gaussian over stems: a number, or a tensor (B,), (B, K) or (B, K, T)."""

NoiseLevel = float | Tensor
"""Standard deviation of the observation noise: a number, or one for each row, (M,)."""

DENSE = 4096
"""Largest number of unknowns for which a matrix is written out."""

ITERATIONS = 1000
"""Conjugate gradient steps at most."""

TOLERANCE = 1e-10
"""Conjugate gradients end when the residual is this far below the right-hand side."""

FAILURE = 1e-4
"""They have failed if it is still above this, relative to the right-hand side."""


class Operator(ABC):
    """A map from stems (B, K, T) to an observation (B, M, T'), linear or not."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A(x), (B, K, T) -> (B, M, T'), differentiable."""

    @abstractmethod
    def first_guess(self, y: Tensor) -> Tensor:
        """Stems to begin an optimisation with, (B, M, T') -> (B, K, T)."""

    @abstractmethod
    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """The nearest stems to x that explain y, (B, K, T), see the operator for how exactly."""

    def pull(self, x: Tensor, r: Tensor) -> Tensor:
        """J(x)ᵀ r, the Jacobian of `forward` at x, (B, K, T), and r, (B, M, T')."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            seen = self.forward(leaf)
            (slope,) = torch.autograd.grad(seen, leaf, grad_outputs=r.to(seen))
        return slope

    def log_likelihood(self, x: Tensor, y: Tensor, sigma_y: NoiseLevel) -> Tensor:
        r""":math:`-|y - A(x)|^2 / (2 \sigma_y^2)`, (B,): log p(y | x) up to a constant.

        Arguments:
            x: stems, (B, K, T).
            y: observation, (B, M, T').
            sigma_y: noise, see `NoiseLevel`, positive.

        Raises:
            ValueError: if a noise level is 0: an exact observation has no density.
        """
        width = noise_column(sigma_y, y)
        if bool((width == 0).any()):
            raise ValueError(f"got sigma_y = {sigma_y}, expected positive noise for a likelihood")
        return -0.5 * ((y - self.forward(x)) / width).square().sum((1, 2))


class LinearOperator(Operator):
    """A linear map from stems (B, K, T) to an observation (B, M, T')."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Aᵀ y, (B, M, T') -> (B, K, T)."""

    @abstractmethod
    def norm(self) -> float:
        """Largest singular value of A, or an upper bound where the operator says so."""

    def pinv(self, y: Tensor) -> Tensor:
        """A⁺ y, (B, M, T') -> (B, K, T): of all x that explain y best, the smallest."""
        # Least squares from 0 stays in the range of A transposed, whatever y contradicts.
        work = y.to(precise(y))
        right = self.adjoint(work)
        return conjugate_gradients(lambda x: self.adjoint(self.forward(x)), right).to(y)

    def gram_function(self, y: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """f(A Aᵀ) y, (B, M, T') -> (B, M, T'), for methods that treat each singular value apart.

        Arguments:
            y: observation, (B, M, T').
            function: f, taken of a tensor of eigenvalues of A Aᵀ (squared singular values),
                float64, >= 0, entry by entry. It is not asked where the eigenvalue is 0: what
                A does not reach stays 0.

        Raises:
            ValueError: if the operator has no closed form of its singular values.
        """
        raise ValueError(
            f"operator {type(self).__name__} has no closed form of its singular values, which "
            "sampler 'ddnm' needs; choose another sampler"
        )

    def posterior_mean(self, mean: Tensor, var: Variance, y: Tensor, sigma_y: NoiseLevel) -> Tensor:
        """Mean of N(mean, diag var) after y was observed, (B, K, T); see `posterior`."""
        work = mean.to(precise(mean))
        v = as_variance(var, work)
        noise = noise_column(sigma_y, y.to(work)) ** 2
        residual = y.to(work) - self.forward(work)

        def system(s: Tensor) -> Tensor:
            return self.forward(v * self.adjoint(s)) + noise * s

        correction = v * self.adjoint(conjugate_gradients(system, residual))
        return mean + correction.to(mean)

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

        Raises:
            ValueError: if the operator has no closed form of the variances and is too large for
                its matrix to be written out.
        """
        matrix = self.matrix((mean.shape[1], mean.shape[2])).to(mean.device)
        v = as_variance(var, mean).expand(mean.shape).flatten(1)
        noise = (noise_column(sigma_y, y).double() ** 2).expand(y.shape).flatten(1)
        scaled = matrix * v[:, None]  # A V
        gram = scaled @ matrix.T + torch.diag_embed(noise)
        explained = torch.linalg.pinv(gram, rtol=1e-12, hermitian=True) @ scaled
        variance = (v - (scaled * explained).sum(1)).clamp_min(0)
        return self.posterior_mean(mean, var, y, sigma_y), variance.reshape(mean.shape).to(mean)

    def posterior_sample(
        self, mean: Tensor, var: Variance, y: Tensor, sigma_y: NoiseLevel, draws: Draws
    ) -> Tensor:
        """Exact draw from the `posterior`, by Matheron's rule.

        A draw of the prior is corrected towards a noisy copy of the observation. Two normals are
        drawn, of the shape of `mean` and of the shape of `y`, also where `sigma_y` is 0.

        Returns:
            One sample for each item, (B, K, T).
        """
        spread = as_variance(var, mean).sqrt()
        prior = mean + spread.to(mean) * draws.normal(tuple(mean.shape)).to(mean)
        noise = draws.normal(tuple(y.shape)).to(y)
        return self.posterior_mean(prior, var, y + noise_column(sigma_y, y) * noise, sigma_y)

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

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """The nearest stems to x that explain y exactly, (B, K, T)."""
        return self.posterior_mean(x, 1.0, y, 0.0)

    def first_guess(self, y: Tensor) -> Tensor:
        """The pseudo-inverse, see `Operator.first_guess`."""
        return self.pinv(y)

    def pull(self, x: Tensor, r: Tensor) -> Tensor:
        """Aᵀ r, the same at every x."""
        return self.adjoint(r)

    def range_projection(self, x: Tensor) -> Tensor:
        """A⁺ A x, the part of x that the observation determines, (B, K, T)."""
        return self.pinv(self.forward(x))

    def matrix(self, shape: tuple[int, int]) -> Tensor:
        """A as a dense matrix (M T', K T) in float64, stem-major; for small shapes and tests.

        Arguments:
            shape: (K, T) of the unknown.

        Raises:
            ValueError: if K T is above 4096.
        """
        k, length = shape
        if k * length > DENSE:
            raise ValueError(
                f"got {k} x {length} unknowns, expected at most {DENSE} for a dense matrix"
            )
        columns = torch.eye(k * length, dtype=torch.float64).reshape(-1, k, length)
        return self.forward(columns).flatten(1).T.contiguous()


def conjugate_gradients(system: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
    """Solution of system(s) = right from s = 0, each batch item by itself until all are solved.

    Arguments:
        system: symmetric positive semidefinite map of (B, ...) tensors.
        right: right-hand side, in the range of `system` where it is singular.

    Raises:
        ArithmeticError: if it does not converge.
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))

    s = torch.zeros_like(right)
    residual = direction = right
    energy = first = dot(residual, residual)
    goal = TOLERANCE**2 * first
    for _ in range(ITERATIONS):
        if not bool((energy > goal).any()):
            return s
        image = system(direction)
        curvature = dot(direction, image)
        # An item that is solved rests, so that it does not depend on its company.
        moving = (energy > goal) & (curvature > 0)
        step = torch.where(moving, energy / torch.where(moving, curvature, 1), 0)
        s = s + step * direction
        residual = residual - step * image
        left = torch.where(moving, dot(residual, residual), energy)
        direction = residual + torch.where(energy > 0, left / energy, 0) * direction
        stuck = bool((curvature[energy > goal] <= 0).all())
        energy = left
        if stuck:
            break
    if bool((energy > FAILURE**2 * first).any()):
        raise ArithmeticError(
            f"conjugate gradients left {float((energy / first).max()) ** 0.5:.1e} of the "
            "right-hand side; the observation contradicts itself or the operator is close to "
            "singular: a positive sigma_y helps"
        )
    return s


def precise(x: Tensor) -> torch.dtype:
    """float64, or the type of x on a device that has no float64."""
    return x.dtype if x.device.type == "mps" else torch.float64


def as_variance(var: Variance, like: Tensor) -> Tensor:
    """Variance with trailing axes of length 1, in the working precision of `like` (B, K, T)."""
    v = torch.as_tensor(var, device=like.device, dtype=precise(like))
    if v.ndim > 3 or any(n not in (1, m) for n, m in zip(v.shape, like.shape, strict=False)):
        raise ValueError(
            f"got a variance of shape {tuple(v.shape)} for stems {tuple(like.shape)}, expected a "
            "number, (B,), (B, K) or (B, K, T)"
        )
    if bool((v < 0).any()):
        raise ValueError("got a negative variance, expected values >= 0")
    return v.reshape(*v.shape, *[1] * (3 - v.ndim)) if v.ndim else v.reshape(1, 1, 1)


def noise_column(sigma_y: NoiseLevel, y: Tensor) -> Tensor:
    """Noise level as (1, 1, 1) or (1, M, 1), like y (B, M, T)."""
    s = torch.as_tensor(sigma_y, device=y.device, dtype=y.dtype).reshape(1, -1, 1)
    if s.shape[1] not in (1, y.shape[1]) or bool((s < 0).any()):
        raise ValueError(
            f"got sigma_y {sigma_y}, expected one number >= 0, or one for each of the "
            f"{y.shape[1]} observed channels"
        )
    return s


def solve_singular(system: Tensor, r: Tensor, equilibrate: bool) -> Tensor:
    """Hermitian solve (..., M, M), (..., M) that leaves out the directions without weight.

    Rows may be empty (nothing observed there) or say the same thing twice. With `equilibrate` the
    rows are brought to unit weight first, so that what counts as weightless does not depend on
    the units of a row; any such inverse gives the same answer where the rows do not contradict
    each other. Without it, it is the Moore-Penrose inverse.
    """
    diagonal = system.diagonal(dim1=-2, dim2=-1).real
    if bool((system == torch.diag_embed(diagonal)).all()):
        if not equilibrate:  # what is weightless is so in any company
            floor = diagonal.amax(-1, keepdim=True) * diagonal.shape[-1] * 1e-13
            diagonal = torch.where(diagonal > floor, diagonal, 0)
        return divide(r, diagonal)
    scale = diagonal.clamp_min(0).sqrt() if equilibrate else torch.ones_like(diagonal)
    scale = torch.where(scale > 0, scale, 1)
    values, basis = torch.linalg.eigh(system / (scale[..., :, None] * scale[..., None, :]))
    floor = values[..., -1:] * values.shape[-1] * 1e-13
    inverse = torch.where(values > floor, 1 / torch.where(values > floor, values, 1), 0)
    coefficients = (basis.mH @ (r / scale)[..., None])[..., 0] * inverse
    return (basis @ coefficients[..., None].to(basis))[..., 0] / scale


def where_positive(
    function: Callable[[Tensor], Tensor], values: Tensor, floor: float | Tensor
) -> Tensor:
    """function(values) where they are above the floor, and 0 elsewhere."""
    positive = values > floor
    return torch.where(positive, function(torch.where(positive, values, 1)), 0)


def divide(r: Tensor, s: Tensor) -> Tensor:
    """r / s, and 0 where s is 0: nothing is observed there, or everything is certain."""
    return torch.where(s > 0, r / torch.where(s > 0, s, 1), 0)
