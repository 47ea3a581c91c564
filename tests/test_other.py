"""The fifth stem: its denoiser, its spectrum, and what it takes from the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mgdm_audio import STEMS, Separator
from mgdm_audio.denoise import GaussianDenoiser
from mgdm_audio.metrics import si_sdr_improvement
from mgdm_audio.other import Spectrum, WithOther

CHEAP = {"steps": 8, "repetitions": 1, "gradient_steps": ((0, 4),), "sigma_max": 1.0}


def test_the_denoiser_is_the_exact_one_of_a_stationary_gaussian():
    n = 64
    power = torch.linspace(0.5, 0.01, n // 2 + 1)
    # Covariance of the circular process with that power.
    row = torch.fft.irfft(power.double(), n=n)
    cov = torch.stack([row.roll(i) for i in range(n)])
    exact = GaussianDenoiser(torch.zeros(1, n).double(), cov)
    both = WithOther(lambda x, sigma: 0 * x + sigma.reshape(len(x), -1, 1), power)
    x = torch.randn(2, 3, n, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.3, 0.7])
    out = both(x, sigma)
    assert out.shape == x.shape
    assert (out[:, 2:] - exact(x[:, 2:].double(), sigma.double())).abs().max() < 1e-5
    assert torch.equal(out[:, 0, 0], sigma)
    each = both(x, torch.stack([sigma, sigma, 2 * sigma], dim=1))
    assert (each[:, 2:] - exact(x[:, 2:].double(), 2 * sigma.double())).abs().max() < 1e-5


def test_the_spectrum_of_white_noise_is_flat_and_at_its_level():
    x = 0.1 * torch.randn(200_000, generator=torch.Generator().manual_seed(1))
    spectrum = Spectrum(x.split(7777))
    power = spectrum.at(5000)
    assert power.shape == (2501,)
    assert (power[50:-50] / 0.01 - 1).abs().max() < 0.5
    assert float(power.mean()) == pytest.approx(0.01, rel=0.05)
    assert torch.allclose(spectrum.at(5000, -10.0), power / 10)


def draw(power, samples, seed):
    """Noise with a power in each bin of its transform."""
    z = np.random.default_rng(seed).standard_normal(samples)
    return np.fft.irfft(np.fft.rfft(z) * np.sqrt(power), samples).astype(np.float32)


@pytest.fixture
def band_stems(prior):
    """Stems as the prior expects them, (4, T), at its level."""
    samples = 44100
    f = np.fft.rfftfreq(samples) + 1e-3
    centres = prior.denoise.centre.numpy()
    return np.stack(
        [draw(0.01 * np.exp(-2 * np.log(f / c) ** 2), samples, i) for i, c in enumerate(centres)]
    )


def test_a_sound_that_no_stem_has_goes_there(prior, band_stems):
    f = np.fft.rfftfreq(44100) * 22050
    strange = draw(0.1 * ((f > 2500) & (f < 3500)), 44100, 9)
    mix = band_stems.sum(0) + strange
    mine = Separator(prior, other=-10.0, **CHEAP).separate(mix, 22050, seed=0)
    without = Separator(prior, **CHEAP).separate(mix, 22050, seed=0)
    assert list(mine.stems) == [*STEMS, "other"]
    assert np.abs(sum(mine.stems.values()) - mix).max() < 1e-6
    assert si_sdr_improvement(mine.stems["other"], strange, mix) > 3
    for name, true in zip(("drums", "piano"), band_stems[[1, 3]], strict=True):
        gains = [si_sdr_improvement(r.stems[name], true, mix) for r in (mine, without)]
        assert gains[0] > gains[1] + 1, name


def test_on_songs_that_need_none_it_is_weak(prior, band_stems):
    mix = band_stems.sum(0)
    result = Separator(prior, other=-20.0, **CHEAP).separate(mix, 22050, seed=0)
    level = 10 * np.log10(np.mean(result.stems["other"] ** 2) / np.mean(mix**2))
    assert level < -12


def test_refusals(prior):
    with pytest.raises(ValueError, match="-100 to 20"):
        Separator(prior, other=50.0, **CHEAP)


def test_silence(prior):
    result = Separator(prior, other=-10.0, **CHEAP).separate(np.zeros(9000, np.float32), 22050)
    assert not any(stem.any() for stem in result.stems.values())
