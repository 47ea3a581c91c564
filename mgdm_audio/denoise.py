r"""What a prior is to the samplers, and priors whose answer is known exactly.

A denoiser answers :math:`D(x, \sigma) = E[x_0 \mid x_0 + \sigma n = x]`; this is all that a
sampler knows about the sounds (Tweedie's formula turns it into the score). It is stated in the
variance-exploding view; `denoise_vp` is the same answer for a variance-preserving state.

`GaussianDenoiser` and `MixtureDenoiser` are exact, and so is their `posterior` under a linear
observation: they are the oracles that samplers are tested against. They compute every batch item
by the same sequence of operations, whatever the batch, so that an item does not depend on its
company even in the last bit.
"""

from __future__ import annotations

__all__ = [
    "CountingDenoiser",
    "Denoiser",
    "GaussianDenoiser",
    "MarginalDenoiser",
    "MixtureDenoiser",
    "StackedDenoiser",
    "denoise_vp",
]

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from mgdm_audio.draws import Draws
from mgdm_audio.noise import NoiseLevels, broadcast

if TYPE_CHECKING:
    from mgdm_audio.regress import Regressor


class Denoiser(Protocol):
    r"""A prior over stems: any callable :math:`(x, \sigma) \mapsto D(x, \sigma)`."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        r"""Posterior mean of the clean signal.

        Arguments:
            x: noisy stems :math:`x_0 + \sigma n`, (B, K, T).
            sigma: noise level :math:`\sigma > 0` of each item, (B,), or of each stem, (B, K).

        Returns:
            :math:`E[x_0 | x]`, (B, K, T), differentiable in x.
        """
        ...


def of_items(
    denoise: Callable[[Tensor, Tensor], Tensor], items: Sequence[int] | None
) -> Callable[[Tensor, Tensor], Tensor]:
    """The denoiser for a call with some of a batch's items alone, ascending; None is all of them.

    One that has something of its own for each item has a method `of_items`, which is asked.
    """
    narrowed = None if items is None else getattr(denoise, "of_items", None)
    return denoise if narrowed is None else narrowed(items)


def denoise_vp(
    denoise: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: int | Tensor, levels: NoiseLevels
) -> Tensor:
    r"""Denoise a variance-preserving state: :math:`D_t(x) = D(x / \sqrt{a_t}, \sigma_t)`.

    Arguments:
        denoise: the prior, a `Denoiser`.
        x: :math:`\sqrt{a_t}(x_0 + \sigma_t n)`, (B, K, T).
        t: index of the grid, at least 1, int or int64 (B,).
        levels: the grid.

    Returns:
        :math:`E[x_0 | x_t = x]`, (B, K, T).

    Raises:
        ValueError: if an index is 0, where there is no noise to remove.
    """
    sigma = levels.sigma(t)
    if bool((sigma <= 0).any()):
        raise ValueError(f"got index {t}: a denoiser is never asked at noise level 0")
    scale = broadcast((1 + sigma**2).sqrt(), x)
    return denoise(x * scale, sigma.expand(x.shape[0]).to(device=x.device, dtype=x.dtype))


class GaussianDenoiser:
    r"""Exact denoiser of the prior :math:`N(m, C)`.

    :math:`D(x, \sigma) = m + C (C + \Sigma)^{-1} (x - m)`, with :math:`\Sigma = \sigma^2 I`, or
    :math:`\sigma_k^2` on the samples of stem k.

    Arguments:
        mean: m, (K, T).
        cov: C, (K T, K T), symmetric positive semidefinite, stem-major.

    Raises:
        ValueError: if the shapes disagree.
    """

    def __init__(self, mean: Tensor, cov: Tensor) -> None:
        n = mean.numel()
        if mean.ndim != 2 or cov.shape != (n, n):
            raise ValueError(
                f"got mean {tuple(mean.shape)} and cov {tuple(cov.shape)}, expected (K, T) and "
                "(K T, K T)"
            )
        self.mean = mean
        self.cov = cov
        self._mixture = MixtureDenoiser(mean.new_ones(1), mean[None], cov[None])

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """See `Denoiser`."""
        return self._mixture(x, sigma)

    def posterior(self, matrix: Tensor, y: Tensor, sigma_y: float) -> GaussianDenoiser:
        r"""Posterior under :math:`y = A x + \sigma_y n`; its `mean` and `cov` are exact.

        Arguments:
            matrix: A, (m, K T), as `LinearOperator.matrix` gives it.
            y: observation, any shape with m entries.
            sigma_y: standard deviation of the noise, may be 0.
        """
        mixture = self._mixture.posterior(matrix, y, sigma_y)
        return GaussianDenoiser(mixture.means[0], mixture.covs[0])

    def sample(self, draws: Draws, n: int) -> Tensor:
        """n independent draws of the prior itself, (n, K, T); `draws` has n items."""
        return self._mixture.sample(draws, n)


class MixtureDenoiser:
    r"""Exact denoiser of the Gaussian mixture :math:`\sum_j w_j N(m_j, C_j)`.

    :math:`D(x, \sigma) = \sum_j w_j(x) D_j(x, \sigma)`, the Gaussian answers weighted with the
    probability :math:`w_j(x) \propto w_j N(x; m_j, C_j + \Sigma)` of each component.

    Arguments:
        weights: w, (J,), non-negative; normalised here.
        means: m, (J, K, T).
        covs: C, diagonals (J, K T) or full matrices (J, K T, K T), stem-major.

    Raises:
        ValueError: if the shapes disagree or the weights are not a distribution.
    """

    def __init__(self, weights: Tensor, means: Tensor, covs: Tensor) -> None:
        if means.ndim != 3 or weights.shape != means.shape[:1]:
            raise ValueError(
                f"got weights {tuple(weights.shape)} and means {tuple(means.shape)}, expected "
                "(J,) and (J, K, T)"
            )
        j, n = means.shape[0], means[0].numel()
        if covs.shape not in ((j, n), (j, n, n)):
            raise ValueError(
                f"got covs {tuple(covs.shape)}, expected diagonals {(j, n)} or matrices {(j, n, n)}"
            )
        if bool((weights < 0).any()) or not bool(weights.sum() > 0):
            raise ValueError("weights must be non-negative and not all zero")
        self.weights = weights / weights.sum()
        self.means = means
        self.covs = covs
        self._full = covs.ndim == 3
        if self._full:
            variances, self._basis = torch.linalg.eigh(covs)
            self._variances = variances.clamp_min(0)
        else:
            self._variances = covs

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """See `Denoiser`."""
        answers, log_weights = self._components(x, sigma)
        if len(self.weights) == 1:
            return answers[:, 0].reshape(x.shape)
        w = torch.softmax(log_weights, dim=1)
        return (w[:, :, None] * answers).sum(1).reshape(x.shape)

    def responsibilities(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Probability of each component given the noisy x, (B, J)."""
        return torch.softmax(self._components(x, sigma)[1], dim=1)

    def _components(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Answers of the components (B, J, n) and their unnormalised log weights (B, J)."""
        means = self.means.flatten(1).to(x)
        delta = x.flatten(1)[:, None] - means  # (B, J, n)
        log_prior = self.weights.log().to(x)
        if self._full and sigma.ndim == 2:
            return self._components_dense(x, delta, means, sigma, log_prior)
        variances = self._variances.to(x)
        noise = _per_coordinate(sigma.to(x), x)[:, None]  # (B, 1, 1 or n)
        total = variances + noise
        z = _matvec(self._basis.mT.to(x), delta) if self._full else delta
        shrunk = z * (variances / total)
        answers = means + (_matvec(self._basis.to(x), shrunk) if self._full else shrunk)
        return answers, log_prior - 0.5 * (z**2 / total + total.log()).sum(-1)

    def _components_dense(
        self, x: Tensor, delta: Tensor, means: Tensor, sigma: Tensor, log_prior: Tensor
    ) -> tuple[Tensor, Tensor]:
        covs = self.covs.to(x)
        total = covs + torch.diag_embed(_per_coordinate(sigma.to(x), x))[:, None]
        factor = torch.linalg.cholesky(total)  # (B, J, n, n)
        solved = torch.cholesky_solve(delta[..., None], factor)[..., 0]
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return (
            means + _matvec(covs, solved),
            log_prior - 0.5 * ((delta * solved).sum(-1) + log_det),
        )

    def posterior(self, matrix: Tensor, y: Tensor, sigma_y: float) -> MixtureDenoiser:
        r"""Posterior under :math:`y = A x + \sigma_y n`: again a mixture, with full covariances.

        Arguments:
            matrix: A, (m, K T), as `LinearOperator.matrix` gives it, of full row rank if
                sigma_y is 0.
            y: observation, any shape with m entries.
            sigma_y: standard deviation of the noise, may be 0.
        """
        a = matrix.to(self.means)
        covs = self.covs if self._full else torch.diag_embed(self.covs)
        s = a @ covs @ a.mT + sigma_y**2 * torch.eye(len(a)).to(a)
        factor = torch.linalg.cholesky(s)  # (J, m, m)
        gain = torch.cholesky_solve(a @ covs, factor).mT  # (J, n, m)
        flat = self.means.flatten(1)
        residual = y.reshape(-1).to(a) - flat @ a.mT  # (J, m)
        means = flat + _matvec(gain, residual)
        new = covs - gain @ (a @ covs)
        solved = torch.cholesky_solve(residual[..., None], factor)[..., 0]
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_weights = self.weights.log() - 0.5 * ((residual * solved).sum(-1) + log_det)
        return MixtureDenoiser(
            torch.softmax(log_weights, 0), means.reshape(self.means.shape), (new + new.mT) / 2
        )

    def sample(self, draws: Draws, n: int) -> Tensor:
        """n independent draws of the prior itself, (n, K, T); `draws` has n items."""
        k, length = self.means.shape[1:]
        z = draws.normal((n, k, length + 1))
        # The extra column of normals picks the component by its distribution function.
        uniform = 0.5 * (1 + torch.erf(z[:, 0, -1].double() / math.sqrt(2)))
        edges = self.weights.double().cumsum(0)[:-1].to(z.device)
        j = torch.bucketize(uniform, edges)
        scaled = z[:, :, :-1].flatten(1) * self._variances.to(z).sqrt()[j]
        if self._full:
            scaled = _matvec(self._basis.to(z)[j], scaled)
        return self.means.to(z)[j] + scaled.reshape(n, k, length)


class StackedDenoiser:
    """Independent single-stem priors as one joint prior over K stems.

    Arguments:
        denoisers: K denoisers of one stem each: (B, 1, T), (B,) -> (B, 1, T).

    Raises:
        ValueError: if there is none.
    """

    def __init__(self, denoisers: Sequence[Callable[[Tensor, Tensor], Tensor]]) -> None:
        if not denoisers:
            raise ValueError("got no denoisers, expected one for each stem")
        self.denoisers = tuple(denoisers)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """See `Denoiser`. Raises ValueError if x has another number of stems."""
        if x.shape[1] != len(self.denoisers):
            raise ValueError(
                f"got {x.shape[1]} stems, expected {len(self.denoisers)}, one for each prior"
            )
        per_stem = sigma if sigma.ndim == 2 else sigma[:, None].expand(x.shape[:2])
        parts = [d(x[:, k : k + 1], per_stem[:, k]) for k, d in enumerate(self.denoisers)]
        return torch.cat(parts, dim=1)


class CountingDenoiser:
    """Passes a denoiser through and counts what was asked of it, per batch item.

    Attributes:
        calls: items that were denoised (a call with B items counts B), and those that were asked
            of the regressor beside it, if it has one (see `mgdm_audio.regress`).
        vjps: items for which a gradient was taken through the denoiser.
        lowest_sigma: smallest noise level asked for so far, infinity before the first call.
        highest_sigma: largest noise level asked for so far, 0 before the first call.
    """

    def __init__(self, denoise: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.denoise = denoise
        self.calls = 0
        self.vjps = 0
        self.lowest_sigma = math.inf
        self.highest_sigma = 0.0

    @property
    def regress(self) -> Regressor | None:
        """The regressor beside the denoiser, counted; None if it has none."""
        inner = getattr(self.denoise, "regress", None)
        if inner is None:
            return None

        def counted(mix: Tensor, stems: Tensor, known: Tensor, *other: Any) -> Tensor:
            self.calls += mix.shape[0]
            return inner(mix, stems, known, *other)

        return counted

    def of_items(self, items: Sequence[int]) -> Callable[[Tensor, Tensor], Tensor]:
        """See `of_items`; what is asked of it is counted here."""
        return partial(self._ask, of_items(self.denoise, items))

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """See `Denoiser`."""
        return self._ask(self.denoise, x, sigma)

    def _ask(self, denoise: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor) -> Tensor:
        self.calls += x.shape[0]
        self.lowest_sigma = min(self.lowest_sigma, float(sigma.min()))
        self.highest_sigma = max(self.highest_sigma, float(sigma.max()))
        out = denoise(x, sigma)
        if out.requires_grad:
            batch = x.shape[0]

            def count(_: Any) -> None:
                self.vjps += batch

            out.register_hook(count)
        return out


class MarginalDenoiser:
    r"""The single-stem priors that a joint prior holds, as one denoiser of independent stems.

    Stem k is denoised with all other stems replaced by noise of level :math:`\sigma_m`, from
    which nothing can be told of them where it is far above their power: what is left is the
    marginal prior of stem k. The joint denoiser is asked K times, and must know per-stem levels.

    Arguments:
        denoise: the joint prior, a `Denoiser`.
        sigma: level :math:`\sigma_m` of the stems that are left out.
        draws: where their noise comes from; fresh in every call, so that what little of it
            leaks into an answer averages out over a run.
        items: the batch items that calls are about, ascending; None for all.

    Raises:
        ValueError: if sigma is not positive.
    """

    def __init__(
        self,
        denoise: Callable[[Tensor, Tensor], Tensor],
        sigma: float,
        draws: Draws,
        items: Sequence[int] | None = None,
    ) -> None:
        if not 0 < sigma < math.inf:
            raise ValueError(f"got sigma = {sigma}, expected a positive noise level")
        self.denoise = denoise
        self.sigma = sigma
        self.draws = draws
        self.items = items

    def of_items(self, items: Sequence[int]) -> MarginalDenoiser:
        """See `of_items`."""
        return MarginalDenoiser(of_items(self.denoise, items), self.sigma, self.draws, items)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """See `Denoiser`; K calls of the joint denoiser."""
        per_stem = sigma if sigma.ndim == 2 else sigma[:, None].expand(x.shape[:2])
        noise = self.sigma * self.draws.normal(tuple(x.shape), self.items).to(x)
        parts = []
        for k in range(x.shape[1]):
            kept = torch.arange(x.shape[1], device=x.device) == k
            alone = torch.where(kept[:, None], x, noise)
            levels = torch.where(kept, per_stem, self.sigma)
            parts.append(self.denoise(alone, levels)[:, k : k + 1])
        return torch.cat(parts, dim=1)


def _per_coordinate(sigma: Tensor, x: Tensor) -> Tensor:
    """Noise variances (B, 1) or, per stem, spread over the samples, (B, K T)."""
    if sigma.ndim == 1:
        return sigma[:, None] ** 2
    return (sigma**2).repeat_interleave(x.shape[2], dim=1)


def _matvec(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrices (..., m, n) times vectors (..., n), summed in an order that no batch can change.

    A library product would pick its kernel, and with it the last bit, by the size of the batch.
    """
    return (matrix.mT * vector[..., :, None]).sum(-2)
