"""Repairs: what is kept, what is better, also than classical interpolation."""

import numpy as np
import pytest
import scipy.interpolate
import torch
from posteriors import oracle

from mgdm_audio import audio
from mgdm_audio.filters import LowPass
from mgdm_audio.repair import WAYS, clipping_level, dropouts, repair
from mgdm_audio.separate import Separator

RATE = 22050


LENGTH, SONGS = 40, 6


@pytest.fixture
def linear(prior):
    return Separator(prior, "ding", "fast", window=16384, overlap=4096, precision="float32")


@pytest.fixture
def mix(music):
    return music.sum(0)[:20000]


def error_db(x, truth, where=slice(None)):
    return 10 * np.log10(np.square((x - truth)[where]).sum() / np.square(truth[where]).sum())


def songs(method, preset, **settings):
    """Stems of an exact Gaussian prior, and a separator that has it."""
    separator = oracle(LENGTH, method, preset, True, **settings)
    return separator, [separator.prior.denoise.draw(seed)[3].numpy() for seed in range(SONGS)]


def seeds(song):
    """Eight seeds of its own for each song."""
    return range(8 * song, 8 * song + 8)


def better(errors, than, by=0.0):
    """Mean of paired differences in dB below -by, beyond two standard errors."""
    gain = np.array(than) - np.array(errors)
    return gain.mean() - 2 * gain.std() / len(gain) ** 0.5 > by


def test_gaps_are_filled_better_than_by_a_spline():
    separator, truths = songs("ding", "default")
    gap = slice(15, 25)
    ours, splines = [], []
    for seed, truth in enumerate(truths):
        damaged = truth.copy()
        damaged[gap] = 0
        gaps = [(15 / RATE, 25 / RATE)]
        out = repair(
            separator, damaged, RATE, "gap", seeds(seed), stem="piano", gaps=gaps, way="draw"
        )
        assert np.array_equal(np.flatnonzero(out.damaged[0]), np.arange(15, 25))
        for x in out.samples:
            assert np.array_equal(x[:15], truth[:15])
            assert np.array_equal(x[25:], truth[25:])
        t = np.r_[0:15, 25:LENGTH]
        spline = scipy.interpolate.CubicSpline(t, truth[t])(np.arange(LENGTH))
        ours.append(error_db(np.mean(out.samples, axis=0), truth, gap))
        splines.append(error_db(spline, truth, gap))
    assert better(ours, [0.0] * len(ours))
    assert better(ours, splines, 1)


def test_clipping_is_undone_better_than_by_a_spline():
    separator, truths = songs("daps", "gradient")
    ours, before, splines = [], [], []
    for seed, truth in enumerate(truths):
        level = float(np.float32(0.5 * np.abs(truth).max()))
        clipped = np.clip(truth, -level, level)
        out = repair(
            separator, clipped, RATE, "clip", seeds(seed), stem="piano", level=level, way="draw"
        )
        cut = np.abs(clipped) >= level * (1 - 1e-6)
        for x in out.samples:
            assert np.array_equal(x[~cut], truth[~cut])
            assert (x[cut] * np.sign(truth[cut]) >= level * (1 - 1e-6)).all()
        kept = np.flatnonzero(~cut)
        spline = scipy.interpolate.CubicSpline(kept, truth[kept])(np.arange(LENGTH))
        ours.append(error_db(np.mean(out.samples, axis=0), truth))
        before.append(error_db(clipped, truth))
        splines.append(error_db(spline, truth))
    assert better(ours, before, 1)
    assert better(ours, splines)


def test_rounded_samples_move_inside_their_cells_and_towards_the_truth():
    separator, truths = songs("ding", "default")
    step, ours, before = 2.0**-4, [], []
    for seed, truth in enumerate(truths):
        rounded = (np.round(truth / step) * step).astype(np.float32)
        out = repair(separator, rounded, RATE, "bits", seeds(seed), stem="piano", bits=5)
        for x in out.samples:
            assert np.abs(x - rounded).max() <= step / 2 + 1e-6
        ours.append(error_db(np.mean(out.samples, axis=0), truth))
        before.append(error_db(rounded, truth))
    assert better(ours, before)


def test_a_missing_band_is_added_and_the_band_that_is_there_is_kept():
    separator, truths = songs("daps", "gradient")
    low = LowPass(LENGTH, 0.2).forward(torch.from_numpy(truths[0])[None, None])[0, 0].numpy()
    (x,) = repair(separator, low, RATE, "lowpass", [0], cutoff=0.2 * RATE).samples
    spectrum, before = np.fft.rfft(x), np.fft.rfft(low)
    band = int(0.2 * LENGTH)
    np.testing.assert_allclose(spectrum[:band], before[:band], atol=1e-4)
    top = slice(int(0.25 * LENGTH), None)
    assert np.square(np.abs(before[top])).sum() < 1e-8
    assert np.square(np.abs(spectrum[top])).sum() > 1e-4


@pytest.mark.parametrize("way", WAYS)
def test_one_stem_and_stereo_at_another_rate(way, linear, prior, music):
    bass = audio.resample(music[0, :6000], RATE, 44100)
    stereo = np.stack([bass, 0.5 * bass]).astype(np.float32)
    damaged = stereo.copy()
    damaged[0, 5000:5300] = 0
    told = []
    out = repair(
        linear, damaged, 44100, "gap", [0], stem="bass", way=way,
        callback=lambda *a: told.append(a),
    )  # fmt: skip
    (x,) = out.samples
    assert x.shape == stereo.shape
    assert np.array_equal(x[1], stereo[1])
    assert np.array_equal(x[0, :5000], stereo[0, :5000])
    assert np.array_equal(x[0, 5300:], stereo[0, 5300:])
    # A tone of 55 Hz goes on through the gap.
    assert error_db(x[0], stereo[0], slice(5000, 5300)) < -2
    assert told[-1][0] == told[-1][1]
    assert out.settings["repair"]["kind"] == "gap"
    assert out.way == out.settings["way"] == way
    # A low tone alone, of which most is clipped, does not tell an autoregression how high it was.
    level = 0.1 if way == "draw" else 0.9 * float(np.abs(stereo).max())
    clip = np.clip(stereo, -level, level)
    gradient = Separator(
        prior, "daps", "gradient", levels=20, window=16384, overlap=4096, precision="float32"
    )
    (declipped,) = repair(gradient, clip, 44100, "clip", [0], stem="bass", way=way).samples
    assert error_db(declipped[0], stereo[0]) < error_db(clip[0], stereo[0]) - 0.5


def test_what_is_estimated_and_what_is_drawn(linear, mix):
    """By default an estimate, but for gaps that are too long for one; draws differ by seed."""
    short = mix.copy()
    short[5000:6000] = 0
    out = repair(linear, short, RATE, "gap", [0])
    assert (out.way, out.calls) == ("estimate", 0)
    assert "sampler" not in out.settings
    (drawn,) = repair(linear, short, RATE, "gap", [0], way="draw").samples
    gap = slice(5000, 6000)
    assert error_db(out.samples[0], mix, gap) < error_db(drawn, mix, gap)
    long = mix.copy()
    long[5000:10000] = 0
    assert repair(linear, long, RATE, "gap", [0]).way == "draw"
    clipped = np.clip(mix, -0.1, 0.1)
    # No model is asked, and no sampler need be able to.
    out = repair(linear, clipped, RATE, "clip", [0])
    assert (out.way, out.calls) == ("estimate", 0)
    assert error_db(out.samples[0], mix) < error_db(clipped, mix) - 3


def test_dropouts_are_runs_of_zeros_inside():
    x = torch.ones(1, 1000)
    x[0, :100] = x[0, 900:] = 0
    x[0, 300:302] = 0
    x[0, 500:560] = 0
    found = dropouts(x, RATE)[0].nonzero()[:, 0]
    assert found.tolist() == list(range(500, 560))
    assert clipping_level(torch.zeros(1, 10)) is None
    assert clipping_level(torch.linspace(-1, 1, 50)[None]) is None


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kind": "scratch"}, "unknown damage"),
        ({"kind": "gap"}, "no samples that are damaged"),
        ({"kind": "gap", "gaps": [(1.0, 99.0)]}, "inside"),
        ({"kind": "clip"}, "clipping level"),
        ({"kind": "lowpass"}, "cutoff"),
        ({"kind": "lowpass", "cutoff": 10000.0}, "cutoff"),
        ({"kind": "bits"}, "bits"),
        ({"kind": "bits", "bits": 8, "way": "estimate"}, "of gaps and clipping alone"),
        ({"kind": "gap", "gaps": [(0.1, 0.2)], "way": "guess"}, "expected one of"),
        ({"kind": "gap", "stem": "flute"}, "unknown stem"),
    ],
)
def test_errors_say_what_was_expected(options, text, linear, mix):
    options = dict(options)
    with pytest.raises(ValueError, match=text):
        repair(linear, mix + 1e-9, RATE, options.pop("kind"), [0], **options)


def test_a_sampler_that_cannot_is_named(linear, mix):
    with pytest.raises(ValueError, match="needs a linear operator"):
        repair(linear, np.clip(mix, -0.1, 0.1), RATE, "clip", [0], way="draw")


def test_a_band_above_the_recording_s_own_is_refused(linear):
    x = np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    with pytest.raises(ValueError, match="expected one below 4000 Hz"):
        repair(linear, x, 8000, "lowpass", [0], cutoff=4000)
