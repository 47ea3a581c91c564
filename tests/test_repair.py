"""Repairs: what is kept, what is better, also than classical interpolation."""

import numpy as np
import pytest
import scipy.interpolate
import torch
from posteriors import oracle

from mgdm_audio import audio, autoregression, estimate
from mgdm_audio.autoregression import runs
from mgdm_audio.filters import LowPass
from mgdm_audio.repair import WAYS, _Damage, clipping_levels, dropouts, repair
from mgdm_audio.separate import Separator
from mgdm_audio.windows import WindowPlan

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


@pytest.mark.parametrize("rate", [8000, 16000])
def test_a_low_rate_is_kept_by_estimates(rate, linear, mix):
    """After upsampling the band above is empty, and an autoregression sure of what is wrong."""
    low = audio.resample(mix, RATE, rate)
    at = slice(rate // 2, rate // 2 + rate // 50)
    hole = low.copy()
    hole[at] = 0
    gaps = [(at.start / rate, at.stop / rate)]
    (x,) = repair(linear, hole, rate, "gap", [0], gaps=gaps).samples
    missing = hole != low
    assert error_db(x, low, at) < -6
    own = autoregression.interpolate(hole[None], missing, rate).signals[0]
    np.testing.assert_allclose(x, own, atol=1e-3)
    level = 0.4 * float(np.abs(low).max())
    cut = np.clip(low, -level, level)
    (x,) = repair(linear, cut, rate, "clip", [0], level=level).samples
    own = autoregression.declip(cut, np.abs(low) >= level)
    np.testing.assert_allclose(x, own, atol=1e-3)
    assert error_db(x, low) < error_db(cut, low) - 2
    # A stem is looked at by the prior, which is at its own rate.
    (x,) = repair(linear, hole, rate, "gap", [0], gaps=gaps, stem="piano").samples
    assert np.array_equal(x[hole != 0], low[hole != 0])
    assert error_db(x, low, at) < -3


def test_a_split_at_a_low_rate(music, prior):
    """The regressor hears its own rate; what it splits is filled at the recording's."""
    truth = audio.resample(music[:, :20000].astype(np.float64), RATE, 11025)
    mix, heard = truth.sum(0), []
    missing = np.zeros(len(mix), bool)
    missing[4000:4100] = True

    def regress(y, stems, known):
        heard.append(y.shape[2])
        return y * torch.tensor([1.0, 0.0, 0.0, 0.0]).reshape(1, 4, 1)

    experts = estimate.Experts(
        prior.denoise, regress, WindowPlan(20000, 65536, 4096, 2048), RATE, torch.device("cpu"),
        False, lambda: None,
    )  # fmt: skip
    (x,) = estimate.fill(experts, np.where(missing, 0, mix), missing, np.ones(4), [0], 11025)
    assert heard == [20480]
    assert np.array_equal(x[~missing], mix[~missing])
    assert error_db(x, mix, missing) < -3


def test_a_draw_leaves_out_what_a_gap_rings_into(mix, linear):
    """Three samples of the lower rate, on both sides."""
    low = audio.resample(mix, RATE, 8000)
    low[3000:3100] = 0
    for x, rate, reach in ((mix, 44100, 3), (low, 8000, 9)):
        gaps = [(3000 / rate, 3100 / rate)]
        damage = _Damage.of(
            torch.from_numpy(x)[None], rate, RATE, "gap", gaps, None, None, None
        )  # fmt: skip
        (out,) = runs(~damage.kept(0, len(x) * RATE // rate).numpy())
        assert out == (3000 * RATE // rate - reach, 3099 * RATE // rate + reach + 1)


def test_silence_stays_silence(linear, mix):
    """No level can be told of it: it got sound of the prior's level."""
    stereo = np.stack([mix, 0 * mix])
    (x,) = repair(linear, np.round(stereo * 32) / np.float32(32), RATE, "bits", [0], bits=6).samples
    assert x[0].any()
    assert not x[1].any()
    for way in WAYS:
        (x,) = repair(linear, stereo, RATE, "gap", [0], gaps=[(0.1, 0.2)], way=way).samples
        assert not x[1].any()


def test_only_windows_with_gaps_are_drawn(linear, music):
    damaged = music.sum(0)
    damaged[30000:30100] = 0
    out = repair(linear, damaged, RATE, "gap", [0], gaps=[(30000 / RATE, 30100 / RATE)], way="draw")
    assert out.calls == 2 * linear.sampler.cost().calls  # of four windows two have the gap
    changed = np.flatnonzero(out.samples[0] != damaged)
    assert set(changed) == set(range(30000, 30100))


def clipped(above, below, peak=1.0):
    """Noise that is cut off above and below zero."""
    x = np.random.default_rng(1).normal(size=4000)
    smooth = np.convolve(x, np.hanning(30), "same").astype(np.float32)
    return np.clip(peak * smooth / np.abs(smooth).max(), -below, above).astype(np.float32)


def test_clipping_levels_are_looked_for_in_each_channel_above_and_below(linear):
    left, right = clipped(0.8, 0.8), clipped(0.6, 0.6)
    level = np.float32
    both = clipping_levels(torch.from_numpy(np.stack([left, right])))
    assert both == ((level(0.8), level(0.8)), (level(0.6), level(0.6)))
    loud = clipped(9.0, 9.0)
    loud[[1000, 2000]] = 0.95, -0.97
    one = clipping_levels(torch.from_numpy(np.stack([left, loud])))
    assert one == ((level(0.8), level(0.8)), (np.inf, np.inf))
    eight = np.round(clipped(127 / 128, 1.0, 1.5) * 128) / 128
    assert clipping_levels(torch.from_numpy(eight)[None]) == ((127 / 128, 1.0),)
    # A side that reaches the level for a sample or two is clipped as well; rounding is not.
    short = np.minimum(clipped(9.0, 9.0, 0.5), 0.5)
    short[100] = 0.8
    found = clipping_levels(torch.from_numpy(np.stack([left, short])))
    assert found == ((level(0.8), level(0.8)), (level(0.8), np.inf))
    dither = np.random.default_rng(2).integers(-1, 2, 4000).astype(np.float32) / 32768
    found = clipping_levels(torch.from_numpy(np.stack([left, dither])))
    assert found[1] == (np.inf, np.inf)
    stereo = np.stack([left, right])
    out = repair(linear, stereo, RATE, "clip", [0])
    assert np.array_equal(out.damaged, np.abs(stereo) >= [[level(0.8)], [level(0.6)]])
    (x,) = out.samples
    assert (np.abs(x) >= np.abs(stereo)).all()
    truth = np.stack([clipped(9, 9)] * 2)
    assert all(
        error_db(a, t) < error_db(b, t) - 3 for a, b, t in zip(x, stereo, truth, strict=True)
    )
    # Drawn, one side alone.
    half = clipped(9.0, 0.5)[: LENGTH * 50]
    gradient = Separator(linear.prior, "daps", "gradient", levels=8, precision="float32")
    out = repair(gradient, half, RATE, "clip", [0], way="draw")
    assert np.array_equal(out.damaged[0], half == -np.float32(0.5))
    assert (out.samples[0][out.damaged[0]] <= -0.5).all()


@pytest.mark.parametrize("kind", ["gap", "clip", "bits", "lowpass"])
def test_precision_is_kept(kind, prior, music):
    """What was not damaged stays as it is, of more than 24 bits, too."""
    x = music.sum(0)[:6000].astype(np.float64) + 2.0**-30
    options = {"gap": {"gaps": [(0.1, 0.11)]}, "clip": {"level": 0.2}, "bits": {"bits": 8}}
    options["lowpass"] = {"cutoff": 4000.0}
    x = np.clip(x, -0.2, 0.2) if kind == "clip" else x
    separator = Separator(prior, "daps", "gradient", levels=8, precision="float32")
    out = repair(separator, x, RATE, kind, [0], **options[kind])
    (y,) = out.samples
    assert y.dtype == np.float64
    assert not np.array_equal(y, x)
    assert np.array_equal(y[~out.damaged[0]], x[~out.damaged[0]])
    if kind == "bits":
        assert np.abs(y - x).max() <= 2.0**-8
    assert np.abs(y - repair(separator, x.astype(np.float32), RATE, kind, [0],
                             **options[kind]).samples[0]).max() < 1e-6  # fmt: skip


def test_dropouts_are_runs_of_zeros_inside():
    x = torch.ones(1, 1000)
    x[0, :100] = x[0, 900:] = 0
    x[0, 300:302] = 0
    x[0, 500:560] = 0
    found = dropouts(x, RATE)[0].nonzero()[:, 0]
    assert found.tolist() == list(range(500, 560))
    assert clipping_levels(torch.zeros(1, 10)) == ((np.inf, np.inf),)
    assert clipping_levels(torch.linspace(-1, 1, 50)[None]) == ((np.inf, np.inf),)


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
