"""Problems with a closed-form posterior, and the checks that hold samples to it."""

from __future__ import annotations

from statistics import NormalDist

import torch
from torch import Tensor

from mgdm_audio.denoise import GaussianDenoiser, MixtureDenoiser
from mgdm_audio.operators import KnownStems, Mixture, PointwiseOperator, Stack
from mgdm_audio.samplers.base import Problem


class BatchDraws:
    """All items from one generator: quick for thousands of samples of a few numbers each."""

    def __init__(self, seed: int, batch: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.batch = batch

    def normal(self, shape, items=None) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def integers(self, low, high) -> Tensor:
        u = torch.rand(self.batch, generator=self.generator, dtype=torch.float64)
        low, high = torch.as_tensor(low), torch.as_tensor(high)
        return (low + (u * (high - low)).floor()).long()


def gaussian_problem(stems: int, batch: int, sigma_y: float):
    """Correlated Gaussian stems of one sample, unit mean variance: prior, problem, posterior."""
    g = torch.Generator().manual_seed(stems)
    w = torch.randn(stems, stems, generator=g, dtype=torch.float64)
    cov = 0.3 * torch.eye(stems, dtype=torch.float64) + w @ w.T / stems
    cov = cov / cov.diagonal().mean()
    prior = GaussianDenoiser(torch.linspace(-0.5, 0.5, stems).double()[:, None], cov)
    operator = Mixture(stems)
    y = torch.full((batch, 1, 1), 1.2, dtype=torch.float64)
    posterior = prior.posterior(operator.matrix((stems, 1)), y[0], sigma_y)
    return prior, Problem(operator, y, sigma_y, (batch, stems, 1)), posterior


def grid_mixture_problem(batch: int, sigma_y: float):
    """25 components at (8i, 8j) / 4 of standard deviation 1/4, 2 stems; y cuts five of them."""
    g = torch.Generator().manual_seed(25)
    axis = torch.arange(-2, 3).double()
    means = 2 * torch.cartesian_prod(axis, axis)[:, :, None]
    weights = torch.rand(25, generator=g, dtype=torch.float64)
    prior = MixtureDenoiser(weights, means, torch.full((25, 2), 1 / 16).double())
    operator = Mixture(2)
    y = torch.full((batch, 1, 1), 0.25, dtype=torch.float64)
    posterior = prior.posterior(operator.matrix((2, 1)), y[0], sigma_y)
    return prior, Problem(operator, y, sigma_y, (batch, 2, 1)), posterior


def moment_excess(
    x: Tensor, posterior: GaussianDenoiser, mean_budget: float, cov_budget: float, alarm: float
) -> tuple[float, float]:
    """How far samples (N, K, T) are beyond what noise and the budget allow; <= 1 is a pass.

    In whitened coordinates w = L^-1 (x - m), exact samples have independent N(0, 1) entries. The
    sample mean then has standard deviation 1 / sqrt(N), a variance sqrt(2 / N) and a covariance
    1 / sqrt(N). Each statistic may deviate by the budget plus z of these, where z makes the chance
    that any of them alarms for an exact sampler at most `alarm`.

    Returns:
        The largest ratio of deviation to allowance, of the mean and of the covariance.
    """
    n, dim = x.shape[0], x[0].numel()
    factor = torch.linalg.cholesky(posterior.cov)
    w = torch.linalg.solve_triangular(factor, (x - posterior.mean).reshape(n, dim).T, upper=False)
    z = NormalDist().inv_cdf(1 - alarm / (dim * (dim + 3)))  # two-sided, dim (dim + 3) / 2 of them
    eye = torch.eye(dim, dtype=torch.float64)
    mean_ratio = w.mean(1).abs() / (mean_budget + z / n**0.5)
    cov_ratio = (w @ w.T / n - eye).abs() / (cov_budget + z * ((1 + eye) / n).sqrt())
    return float(mean_ratio.max()), float(cov_ratio.max())


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 100) -> float:
    """Mean over random unit directions of the 1-D Wasserstein distance of two samples (N, K, T)."""
    g = torch.Generator().manual_seed(0)
    u = torch.randn(a[0].numel(), directions, generator=g, dtype=torch.float64)
    u = u / u.norm(dim=0)
    project = [(s.flatten(1) @ u).sort(dim=0).values for s in (a, b)]
    return float((project[0] - project[1]).abs().mean())


class GaussianRegressor:
    """E[stems | their sum, some of them], exact for the prior N(m, C); a `Regressor`.

    Every item is solved by itself: no batch can change it.
    """

    def __init__(self, prior: GaussianDenoiser) -> None:
        self.prior = prior

    def __call__(self, mix: Tensor, stems: Tensor, known: Tensor) -> Tensor:
        rows = [self._item(*item) for item in zip(mix, stems, known, strict=True)]
        return torch.stack(rows)

    def _item(self, mix: Tensor, stems: Tensor, known: Tensor) -> Tensor:
        k, length = stems.shape
        given = [i for i in range(k) if known[i]]
        if len(given) == k:
            return stems
        operators: list[PointwiseOperator] = [Mixture(k)]
        operators += [KnownStems(given, k)] if given else []
        seen = torch.cat([mix, stems[given]])
        matrix = Stack(operators).matrix((k, length))
        out = self.prior.posterior(matrix, seen, 0.0).mean.to(stems)
        return torch.where(known[:, None], stems, out)
