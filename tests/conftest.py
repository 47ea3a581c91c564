"""A prior that costs nothing: independent Gaussian stems with powers that differ by frequency."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mgdm_audio import STEMS, hub


class BandGaussian(nn.Module):
    """Stationary Gaussian stems: the exact Wiener filter, in the Fourier domain.

    Stem k has its power around a frequency of its own, in cycles a sample: where `music` has it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.tensor([0.0025, 0.3, 0.0115, 0.05]))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        f = torch.fft.rfftfreq(x.shape[-1], device=x.device)
        distance = (f[None] + 1e-3).log() - self.centre.log()[:, None]
        power = 0.01 * torch.exp(-2 * distance**2) + 1e-7
        level = sigma.reshape(len(x), -1, 1) ** 2
        return torch.fft.irfft(torch.fft.rfft(x) * power / (power + level), n=x.shape[-1])


def make_prior(rate: int = 22050) -> hub.Prior:
    info = hub.ModelInfo(
        name="bands",
        summary="independent Gaussian bands",
        path=Path("bands"),
        sample_rate=rate,
        stems=STEMS,
        level=0.1,
        sigma_min=3e-4,
        sigma_max=20.0,
        licence="CC0-1.0",
        score={},
        parameters=0,
        sha256="0" * 64,
        config={},
    )
    return hub.Prior(BandGaussian().requires_grad_(False), info)


@pytest.fixture
def prior() -> hub.Prior:
    return make_prior()


@pytest.fixture
def music() -> np.ndarray:
    """Two seconds at 22050 Hz, (4, T): a low tone, clicks and two chords."""
    rng = np.random.default_rng(3)
    t = np.arange(2 * 22050) / 22050
    clicks = rng.normal(size=t.size) * np.exp(-((t * 4) % 1) * 30)
    chords = [sum(np.sin(2 * np.pi * f * t) for f in fs) for fs in ((220, 277), (880, 1109, 1318))]
    stems = [0.2 * np.sin(2 * np.pi * 55 * t), 0.1 * clicks, 0.05 * chords[0], 0.04 * chords[1]]
    return np.stack(stems).astype(np.float32)
