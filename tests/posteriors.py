"""Gaussian priors as models, and what their posterior is under any evidence."""

from __future__ import annotations

import torch
from conftest import make_prior
from torch import Tensor, nn

from mgdm_audio import hub
from mgdm_audio.denoise import GaussianDenoiser
from mgdm_audio.evidence import Evidence
from mgdm_audio.observe import LinearOperator
from mgdm_audio.separate import Separator

K = 4


class Smooth(nn.Module):
    """Stems that are smooth to different degrees and lean on each other; exact."""

    def __init__(self, length: int) -> None:
        super().__init__()
        t = torch.arange(length).double()
        time = [torch.exp(-((t[:, None] - t) ** 2) / (2 * w**2)) for w in (0.1, 1.0, 2.0, 4.0)]
        tie = torch.full((K, K), 0.4).double() + 0.6 * torch.eye(K).double()
        level = torch.tensor([1.0, 0.6, 0.8, 0.5]).double()
        factors = [torch.linalg.cholesky(c + 1e-3 * torch.eye(length)) for c in time]
        blocks = [
            [tie[i, j] * level[i] * level[j] * factors[i] @ factors[j].T for j in range(K)]
            for i in range(K)
        ]
        cov = 0.1**2 * torch.cat([torch.cat(row, 1) for row in blocks])
        self.exact = GaussianDenoiser(torch.zeros(K, length).double(), (cov + cov.T) / 2)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.exact(x.double(), sigma.double()).to(x)

    def draw(self, seed: int) -> Tensor:
        """One song, (K, T)."""
        g = torch.Generator().manual_seed(seed)
        z = torch.randn(self.exact.cov.shape[0], generator=g, dtype=torch.float64)
        values, basis = torch.linalg.eigh(self.exact.cov)
        return (basis @ (values.clamp_min(0).sqrt() * z)).reshape(self.exact.mean.shape).float()


class Tonal(nn.Module):
    """Independent stems that ring at frequencies of their own; exact."""

    def __init__(self, length: int) -> None:
        super().__init__()
        t = torch.arange(length).double()
        apart = (t[:, None] - t).abs()
        ring = torch.exp(-apart / 40)
        blocks = [0.05**2 * ring * torch.cos(2 * torch.pi * apart / p) for p in (20, 3, 8, 5)]
        cov = torch.block_diag(*blocks) + 1e-8 * torch.eye(K * length).double()
        self.exact = GaussianDenoiser(torch.zeros(K, length).double(), cov)
        self.factor = torch.linalg.cholesky(cov)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.exact(x.double(), sigma.double()).to(x)

    def draw(self, seed: int) -> Tensor:
        """One song, (K, T)."""
        g = torch.Generator().manual_seed(seed)
        z = torch.randn(len(self.factor), generator=g, dtype=torch.float64)
        return (self.factor @ z).reshape(K, -1).float()


def oracle(
    length: int, method: str = "ding", preset: str = "best", tonal: bool = False, **options
) -> Separator:
    """A separator whose prior is `Smooth` or `Tonal`, with one window of that length."""
    info = make_prior().info
    network = Tonal(length) if tonal else Smooth(length)
    model = hub.Prior(network.requires_grad_(False), info)
    options = {"window": length, "overlap": 0, "batch": 512, "device": "cpu", **options}
    return Separator(model, method, preset, precision="float32", **options)


def exact_posterior(separator: Separator, evidence: Evidence) -> GaussianDenoiser:
    """The posterior of the stems given linear evidence that fits one window."""
    smooth = separator.prior.denoise
    assert isinstance(smooth, Smooth)
    seen = evidence.window(0, evidence.length)
    assert isinstance(seen.operator, LinearOperator)
    a = seen.operator.matrix((K, evidence.length))
    noise = torch.as_tensor(seen.sigma_y).double().reshape(-1, 1)
    noise = noise.expand(seen.y.shape[1], seen.y.shape[2]).flatten()
    c = smooth.exact.cov
    s = a @ c @ a.T + torch.diag(noise**2)
    gain = c @ a.T @ torch.linalg.pinv(s, rtol=1e-11, hermitian=True)
    mean = gain @ seen.y.double().flatten()
    cov = c - gain @ a @ c
    return GaussianDenoiser(mean.reshape(K, -1), (cov + cov.T) / 2)
