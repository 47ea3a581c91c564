"""The fifth stem: its denoiser, its spectrum, and what it takes from the others."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from conftest import make_prior
from torch import nn

from mgdm_audio import STEMS, Separator, hub
from mgdm_audio.denoise import GaussianDenoiser
from mgdm_audio.metrics import si_sdr_improvement
from mgdm_audio.models import Models
from mgdm_audio.nn import SpectralRegressor, build
from mgdm_audio.nn.stft import TightFrame
from mgdm_audio.other import Spectrum, WithOther

CHEAP = {"steps": 8, "repetitions": 1, "gradient_steps": ((0, 4),), "sigma_max": 1.0}


def test_the_denoiser_is_the_exact_one_of_a_stationary_gaussian():
    n = 64
    power = torch.linspace(0.5, 0.01, n // 2 + 1)
    # Covariance of the circular process with that power.
    row = torch.fft.irfft(power.double(), n=n)
    cov = torch.stack([row.roll(i) for i in range(n)])
    exact = GaussianDenoiser(torch.zeros(1, n).double(), cov)
    both = WithOther(lambda x, sigma: 0 * x + sigma.reshape(len(x), -1, 1), lambda samples: power)
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


@pytest.mark.parametrize("length", [20, 1000, 2048, 4410, 30_000])
def test_the_spectrum_of_a_short_signal_has_its_level(length):
    x = torch.randn(400, length, generator=torch.Generator().manual_seed(1))
    assert float(Spectrum([x]).power.mean()) == pytest.approx(1, rel=0.05)


def test_the_spectrum_of_a_long_signal_is_that_of_whole_frames():
    """As it always was: or seeds would not give the stems again that they gave."""
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    filled = nn.functional.pad(x, (0, -len(x) % 4096))
    assert torch.equal(Spectrum([x]).power, Spectrum([filled]).power)


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


def test_spectra_of_several_signals_are_theirs():
    x = torch.randn(3, 20_000, generator=torch.Generator().manual_seed(0))
    x[1] = x[1].cumsum(0) / 100
    together = Spectrum([x[:, :9000], x[:, 9000:]]).at(2048, -10.0)
    assert together.shape == (3, 1025)
    for row, power in zip(x, together, strict=True):
        assert torch.allclose(power, Spectrum([row[:9000], row[9000:]]).at(2048, -10.0))


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


# --- with a regressor that knows of other sounds --------------------------------------------------

SMALL = {
    "backbone": {
        "bins": 128, "channels": [8, 8], "blocks": [1, 1], "width": 16, "depth": 2,
        "embedding": 16, "parts": 5,
    },
    "stft": {"n_fft": 256, "beside": 60.0},
}  # fmt: skip


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = build("TokenUNetRegressor", SMALL)
    assert isinstance(net, SpectralRegressor)
    net.sigma_data.copy_(0.02 + 0.1 * torch.rand(net.sigma_data.shape))
    return net


def test_the_network_begins_as_the_wiener_filter_of_five(net):
    x = 0.1 * torch.randn(2, 4, 1024, generator=torch.Generator().manual_seed(1))
    mix, known = x.sum(1, keepdim=True), torch.zeros(2, 4, dtype=torch.bool)
    known[1, 2] = True
    power = torch.rand(2, 129, generator=torch.Generator().manual_seed(2)) * 0.01
    torch.nn.init.zeros_(net.backbone.outputs.bias)
    out = net(mix, x, known, power)
    data = torch.where(known[:, :, None], 0, net.sigma_data.square())
    share = data / (data.sum(1, keepdim=True) + power[:, None])
    rest = net.frame(mix) - net.frame(torch.where(known[:, :, None], x, 0)).sum(1, keepdim=True)
    expected = net.frame.inverse(share[:, :, None] * rest)
    assert torch.allclose(out[0], expected[0], atol=1e-6)
    assert torch.equal(out[1, 2], x[1, 2])
    # Without another sound the share is the whole.
    assert (net(mix, x, known).sum(1) - mix[:, 0]).abs().max() < 1e-6
    assert (out.sum(1) - mix[:, 0]).abs().max() > 1e-3


def test_the_network_has_a_say_in_what_is_beside(net):
    x = 0.1 * torch.randn(1, 4, 1024, generator=torch.Generator().manual_seed(1))
    mix, known = x.sum(1, keepdim=True), torch.zeros(1, 4, dtype=torch.bool)
    power = torch.full((129,), 0.01)
    net.backbone.outputs.bias.requires_grad_(True)
    rest = mix[:, 0] - net(mix, x, known, power).sum(1)
    (rest * mix[:, 0]).sum().backward()
    # Gain, real and imaginary part, of five signals: more gain for the last is more of it.
    gradient = net.backbone.outputs.bias.grad.unflatten(0, (3, 5, -1))[0].sum(1)
    assert gradient[4] > 1e-3
    assert (gradient[:4] < 0).all()


def test_the_network_is_told_which_kind_of_mix_it_sees(net):
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x = 0.1 * torch.randn(1, 4, 1024, generator=torch.Generator().manual_seed(1))
    mix, known = x.sum(1, keepdim=True), torch.zeros(1, 4, dtype=torch.bool)
    out, closed = net(mix, x, known, torch.zeros(129)), net(mix, x, known)
    assert (out - closed).abs().max() > 1e-3
    net.beside = net.unknown
    assert torch.allclose(net(mix, x, known, torch.zeros(129)), closed, atol=1e-6)
    net.beside = None
    with pytest.raises(ValueError, match="stems alone"):
        net(mix, x, known, torch.zeros(129))


def test_the_regressor_of_five_answers_in_both_cases(net):
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    spectrum = Spectrum([torch.ones(8192)])
    info = dataclasses.replace(make_prior().info, kind="regressor")
    models = Models(None, hub.Regressor(net, info))
    five = WithOther(models.asked(), lambda n: spectrum.at(n, -10.0))
    regress = five.regress
    x = 0.1 * torch.randn(2, 5, 1024, generator=torch.Generator().manual_seed(1))
    mix, known = x.sum(1, keepdim=True), torch.zeros(2, 5, dtype=torch.bool)
    known[1, 4] = known[1, 0] = True
    out = regress(mix, x, known)
    assert (out.sum(1) - mix[:, 0]).abs().max() < 1e-6
    power = spectrum.at(256, -10.0)
    assert torch.allclose(out[:1, :4], net(mix[:1], x[:1, :4], known[:1, :4], power), atol=1e-6)
    closed = net(mix[1:] - x[1:, 4:], x[1:, :4], known[1:, :4])
    assert torch.allclose(out[1:, :4], closed, atol=1e-6)
    assert torch.equal(out[1, 4], x[1, 4])
    assert WithOther(lambda x, sigma: x, spectrum.at).regress is None


def test_an_estimate_says_where_the_power_is():
    """White noise in one half of the time: the filter is the Wiener filter of each half."""
    g = torch.Generator().manual_seed(0)
    n = 65_536
    estimate = 0.1 * torch.randn(1, 1, n, generator=g)
    estimate[..., n // 2 :] = 0
    nothing = WithOther(lambda x, sigma: x, lambda samples: torch.zeros(samples // 2 + 1))
    five = nothing.knowing(estimate)
    noise = 0.1 * torch.randn(1, 5, n, generator=g)
    out = five(noise, torch.tensor([0.1]))[0, 4]
    half = noise[0, 4]
    played, silent = slice(4096, n // 2 - 4096), slice(n // 2 + 4096, n)
    # E[P / (P + 0.01)] with P a smoothed periodogram of mean 0.01: half, less what it fluctuates.
    gain = float((out[played] * half[played]).sum() / half[played].square().sum())
    assert gain == pytest.approx(0.5, abs=0.06)
    assert out[silent].abs().max() < 1e-4
    # Without noise it changes nothing where there is power.
    clean = five(noise, torch.tensor([1e-4]))[0, 4]
    assert (clean - half)[played].abs().max() < 1e-3


class FiveBands(nn.Module):
    """The Wiener filter of the powers of `conftest.BandGaussian` and of another sound."""

    def __init__(self):
        super().__init__()
        self.frame, self.beside = TightFrame(2048), 60.0
        self.asked = 0

    def forward(self, mix, x, known, other=None):
        self.asked += len(mix)
        f = torch.fft.rfftfreq(mix.shape[-1])
        centre = torch.tensor([0.0025, 0.3, 0.0115, 0.05])
        distance = (f[None] + 1e-3).log() - centre.log()[:, None]
        power = torch.where(known[:, :, None], 0, 0.01 * torch.exp(-2 * distance**2) + 1e-7)
        given = torch.where(known[:, :, None], x, 0)
        rest = torch.fft.rfft(mix - given.sum(1, keepdim=True))
        total = power.sum(1, keepdim=True)
        if other is not None:
            # Unlike a stationary share it knows what it looks for.
            total = total + 0.1 * ((f > 0.113) & (f < 0.159))
        share = power / total.clamp_min(1e-20)
        return given + torch.fft.irfft(share * rest, n=mix.shape[-1])


def knowing_regressor():
    return hub.Regressor(
        FiveBands(), dataclasses.replace(make_prior().info, name="five", kind="regressor")
    )


def test_the_default_quality_has_the_other_stem(prior, band_stems):
    f = np.fft.rfftfreq(44100) * 22050
    strange = draw(0.1 * ((f > 2500) & (f < 3500)), 44100, 9)
    mix = band_stems.sum(0) + strange
    five = knowing_regressor()
    options = {"warm_start": "regressor:paper", "warm_sigma": 0.3, "average": 2}
    separator = Separator(prior, other=-10.0, regressor=five, window=32768, overlap=8192, **options)
    result = separator.separate(mix, 22050, seed=0)
    assert list(result.stems) == [*STEMS, "other"]
    assert np.abs(sum(result.stems.values()) - mix).max() < 1e-6
    assert si_sdr_improvement(result.stems["other"], strange, mix) > 10
    planned = separator.sampler.cost().calls
    windows = result.stats["windows"]
    # The two samples of a window share what the regressor answers to its mix.
    assert five.regress.asked == windows
    assert result.stats["calls"] == windows * (2 * (planned - 1) + 1)
    # ... and what it answers first says how loud the other sounds are, whatever it is asked later.
    again = Separator(five, "regressor", "paper", other=-10.0, passes=2)
    again.separate(mix[:20000], 22050, seed=0)
    assert five.regress.asked == windows + 1 + 5  # five sets of two of five stems
    alone = Separator(five, "regressor", "paper", other=-10.0).separate(mix, 22050, seed=0)
    assert si_sdr_improvement(alone.stems["other"], strange, mix) > 10


def test_a_regressor_of_the_stems_alone_is_refused(prior):
    known = knowing_regressor()
    known.regress.beside = None
    with pytest.raises(ValueError, match="'five', which knows its own stems alone"):
        Separator(prior, other=-10.0, regressor=known, warm_start="regressor", warm_sigma=0.3)


def test_a_backbone_without_an_output_for_it_is_refused():
    four = {**SMALL, "backbone": {**SMALL["backbone"], "parts": 4}}
    with pytest.raises(ValueError, match="needs a backbone of 5 parts"):
        build("TokenUNetRegressor", four)


def test_a_regressor_that_is_named_decides_where_it_begins(prior):
    named = Separator(prior, other=-10.0, regressor=knowing_regressor())
    assert named.models.regressor is None  # a prior is named too: MGDM from noise
    both = Separator(other=-10.0, regressor=knowing_regressor())
    assert both.models.regressor.name == "five"
    shipped = Separator(other=-10.0).models.regressor
    assert shipped is not None
    assert shipped.knows_other
