"""Uncertainty: what it is of exact draws, how exact the samplers' are, and seeds."""

import numpy as np
import pytest
import torch
from oracles import BatchDraws
from posteriors import K, exact_posterior, oracle

from mgdm_audio import STEMS, samplers
from mgdm_audio.denoise import MixtureDenoiser
from mgdm_audio.evidence import Evidence
from mgdm_audio.operators import Mixture
from mgdm_audio.posterior import DEFAULTS, draw
from mgdm_audio.samplers.base import Problem
from mgdm_audio.samples import parse_seeds, several
from mgdm_audio.separate import Separator
from mgdm_audio.uncertainty import BANDS, assess

RATE = 8000


def exact_draws(n, songs=200, seed=0):
    """Truth and n draws of the same Gaussians: noise about a mean that is known, (songs, n+1)."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=(songs, 1, K, 800)) * 0.1
    return mean + rng.normal(size=(songs, n + 1, K, 800)) * [[[0.02], [0.05], [0.1], [0.0]]]


def test_spread_is_the_variance_and_the_mean_s_error_is_foretold():
    draws = exact_draws(4)
    spreads, errors = [], []
    for truth, *rest in draws:
        u = assess(rest, STEMS, RATE)
        spreads.append(u.spread.sum(1).mean(1))
        errors.append(np.square(u.mean - truth).mean(1))
        assert u.power.sum(1).mean(1) == pytest.approx(np.square(rest).mean((0, 2)), rel=1e-9)
    # Mean of 200 songs x 800 samples: within 2 % at more than five standard deviations.
    np.testing.assert_allclose(np.mean(spreads, 0), [4e-4, 2.5e-3, 1e-2, 0], rtol=0.02, atol=1e-12)
    np.testing.assert_allclose(
        np.mean(errors, 0), 1.25 * np.mean(spreads, 0), rtol=0.03, atol=1e-12
    )


def test_bands_hold_the_power_of_their_frequencies():
    t, tones_at = np.arange(RATE) / RATE, (60, 300, 1500, 3000)
    tones = np.stack([np.sin(2 * np.pi * f * t) for f in tones_at])
    u = assess([tones, tones], STEMS, RATE)
    loudest = u.power.sum(2).argmax(1)
    assert [BANDS[i] <= f < BANDS[i + 1] for i, f in zip(loudest, tones_at, strict=True)]
    assert list(loudest) == [0, 2, 4, 5]
    np.testing.assert_allclose(u.power.sum(1).mean(1), 0.5, rtol=1e-6)
    assert not u.relative().any()


@pytest.mark.parametrize(("n", "probability"), [(4, 0.5), (9, 0.8), (20, 0.9)])
def test_intervals_hold_another_draw_as_often_as_they_say(n, probability):
    inside = []
    for truth, *rest in exact_draws(n, songs=80):
        u = assess(rest, STEMS, RATE)
        low, high = u.interval_db(probability)
        level = assess([truth, truth], STEMS, RATE).level_db[0]
        inside.append(((level >= low) & (level <= high))[:3])
    assert u.interval_probability(probability) >= min(probability, (n - 1) / (n + 1)) - 1e-9
    assert np.mean(inside) == pytest.approx(u.interval_probability(probability), abs=0.06)


def test_presence_is_the_share_of_draws_in_which_a_stem_plays():
    rng = np.random.default_rng(0)
    draws = 0.1 * rng.normal(size=(8, K, 1600))
    draws[:, 1] = 0
    draws[:3, 2] *= 1e-5
    draws[:, 3, 800:] = 0
    u = assess(draws, STEMS, RATE)
    assert list(u.presence) == [1, 0, 5 / 8, 1]
    assert list(u.present[3]) == [1, 0]


def test_ranking_puts_the_odd_one_last():
    rng = np.random.default_rng(1)
    centre = rng.normal(size=(K, 800))
    draws = [centre + e * rng.normal(size=(K, 800)) for e in (0.3, 0.1, 2.0, 0.2)]
    u = assess(draws, STEMS, RATE)
    assert u.ranking == (1, 3, 0, 2)
    pairs = [np.square(draws[2] - d).sum() for i, d in enumerate(draws) if i != 2]
    whole = np.square(u.mean.sum(0)).sum()
    assert u.distance[2] == pytest.approx((np.mean(pairs) / whole) ** 0.5)


def test_a_report_is_plain_and_stereo_is_taken():
    rng = np.random.default_rng(2)
    u = assess(rng.normal(size=(3, K, 2, 900)).astype(np.float32), STEMS, RATE)
    assert u.mean.shape == (K, 2, 900)
    report = u.to_dict()
    assert list(report["stems"]) == list(STEMS)
    assert report["draws"] == 3


def test_a_measured_shortfall_lowers_what_is_foretold():
    draws = np.random.default_rng(4).normal(size=(5, 2, 4000)) + np.ones((1, 2, 4000))
    plain, short = assess(draws, ["a", "b"], 8000), assess(draws, ["a", "b"], 8000, 0.5)
    np.testing.assert_allclose(plain.error_db() - short.error_db(), 20 * np.log10(2))
    assert short.to_dict()["spread_over_error"] == 0.5


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_the_expected_snr_is_that_of_the_mean_of_exact_draws(share):
    """Truth and draws are alike: a mean of its own, and noise that has a share of the power."""
    rng, n = np.random.default_rng(5), 4
    centre = rng.normal(size=(1, K, 40_000)) * (1 - share) ** 0.5
    truth, *draws = centre + rng.normal(size=(n + 1, K, 40_000)) * share**0.5
    u = assess(draws, STEMS, RATE)
    snr = 10 * np.log10(np.square(truth).sum(1) / np.square(u.mean - truth).sum(1))
    np.testing.assert_allclose(u.error_db(), snr, atol=0.15)


def test_a_shorter_last_frame_has_the_power_that_it_has():
    draws = np.stack([np.full((K, 1000), x) for x in (0.1, 0.3)])
    u = assess(draws, STEMS, RATE)  # frames of 800 and 200
    np.testing.assert_allclose(u.power.sum(1), 0.05)
    np.testing.assert_allclose(u.spread.sum(1), 0.02)
    np.testing.assert_allclose(u.level_db, u.level_db[:, :, :1] + np.zeros(2))


UNCERTAIN = DEFAULTS["samples"]["method"]


# --- how exact the samplers' spread is ------------------------------------------------------------
def dispersion(name, preset, n=96, length=48, **settings):
    """Variance over the exact one, and cover of 90 % intervals, of mixed stems of all powers."""
    g = torch.Generator().manual_seed(0)
    v = torch.empty(K, length).uniform_(-10, -3.5, generator=g).double().exp()
    prior = MixtureDenoiser(
        torch.ones(1).double(), torch.zeros(1, K, length).double(), v.reshape(1, -1)
    )
    truth = v.sqrt() * torch.randn(K, length, generator=g).double()
    y = truth.sum(0)[None, None].expand(n, 1, length).contiguous()
    mean, variance = Mixture(K).posterior(torch.zeros(1, K, length).double(), v[None], y[:1], 0.0)
    x = samplers.get(name, preset, **settings).sample(
        prior, Problem(Mixture(K), y, 0.0, (n, K, length)), BatchDraws(1, n)
    )
    z = (x - mean) / variance.sqrt()
    return float(x.var(0).sum() / variance.sum()), float((z.abs() < 1.645).double().mean())


def test_the_method_for_uncertainty_is_nearly_exact():
    quick, cover = dispersion(UNCERTAIN, DEFAULTS["samples"]["preset"])
    assert 0.65 < quick < 0.85
    assert 0.85 < cover < 0.94
    ratio, cover = dispersion(UNCERTAIN, "default")
    assert 0.8 < ratio < 1.1
    assert 0.87 < cover < 0.94
    best, cover = dispersion(UNCERTAIN, "best")
    assert 0.9 < best < 1.08
    assert 0.88 < cover < 0.93


def test_mgdm_is_too_sure_of_itself_and_wide_is_less_so():
    """What docs/uncertainty.md says: half of the variance by default, most of it by `wide`."""
    ratio, _ = dispersion("mgdm", "default")
    wide, cover = dispersion("mgdm", "wide", n=48)
    assert 0.4 < ratio < 0.7
    assert wide > ratio + 0.1
    assert 0.88 < cover < 0.97


def test_averaging_gains_what_theory_says():
    """Gaussian songs: N draws of each gain 10 log10(2 / (1 + 1/N)) dB by their mean."""
    separator, n = oracle(16, UNCERTAIN, "default"), 4
    single, averaged, spread = 0.0, 0.0, 0.0
    for seed in range(30):
        song = separator.prior.denoise.draw(seed)
        x = draw(
            separator, Evidence(K, 16).with_sum(song.sum(0)), range(n * seed, n * seed + n)
        ).stems
        single += float((x - song).square().mean(0).sum())
        averaged += float((x.mean(0) - song).square().sum())
        spread += float(x.var(0).sum())
    gain = 10 * np.log10(single / averaged)
    assert gain == pytest.approx(10 * np.log10(2 / (1 + 1 / n)), abs=0.5)
    exact = exact_posterior(separator, Evidence(K, 16).with_sum(song.sum(0)))
    assert spread / 30 == pytest.approx(float(exact.cov.diagonal().sum()), rel=0.25)


# --- seeds ----------------------------------------------------------------------------------------
def test_each_sample_is_what_its_seed_alone_gives(prior, music):
    separator = Separator(prior, "ding", "fast", window=16384, overlap=4096, precision="float32")
    mix, told = music.sum(0)[:20000], []
    samples = several(separator, mix, [7, 3], 22050, lambda d, t: told.append((d, t)))
    assert samples.seeds == (7, 3)
    for seed, separation in zip((7, 3), samples.separations, strict=True):
        alone = separator.separate(mix, 22050, seed=seed)
        for name in STEMS:
            assert np.array_equal(alone.stems[name], separation.stems[name])
    np.testing.assert_allclose(sum(samples.mean.values()), mix, atol=1e-6)
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]
    assert samples.best in samples.separations


def test_seeds():
    assert parse_seeds("0-3") == [0, 1, 2, 3]
    assert parse_seeds("3, 5,10-11") == [3, 5, 10, 11]
    for text in ("", "a", "3-1", "1,1", "1-", "-1", "0-5000"):
        with pytest.raises(ValueError, match="seeds"):
            parse_seeds(text)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: assess([np.zeros((4, 9))], STEMS, RATE), "at least two"),
        (lambda: assess([np.zeros((4, 9)), np.zeros((4, 8))], STEMS, RATE), "shapes"),
        (lambda: assess(np.zeros((2, 3, 9)), STEMS, RATE), "3 stems and 4 names"),
        (lambda: assess(np.ones((2, 4, 9)), STEMS, RATE).interval_db(1.0), "probability"),
        (lambda: several(oracle(8), np.zeros(8), [1], RATE), "two different"),
        (lambda: several(oracle(8, average=2), np.zeros(8), [1, 2], RATE), "averages"),
    ],
)
def test_errors_say_what_was_expected(call, text):
    with pytest.raises(ValueError, match=text):
        call()
