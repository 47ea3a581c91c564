"""Known stems, regions, pairs of mixes, accompaniment: what is kept, and what it is worth."""

import numpy as np
import pytest
import torch
from posteriors import K, oracle

from mgdm_audio import STEMS
from mgdm_audio.conditional import generate, redo, separate_known, separate_pair
from mgdm_audio.metrics import si_sdr
from mgdm_audio.separate import Separator

RATE = 22050


@pytest.fixture
def separator(prior):
    return Separator(prior, "ding", "fast", window=16384, overlap=4096, precision="float32")


@pytest.fixture
def stems(music):
    return dict(zip(STEMS, music[:, :30000], strict=True))


def total(stems):
    return sum(stems.values())


def test_known_stems_are_kept_and_the_rest_adds_up(separator, stems):
    mix = total(stems)
    result = separate_known(separator, mix, {"drums": stems["drums"]}, RATE, [1, 2])
    assert len(result.draws) == 2
    for drawn in result.draws:
        assert list(drawn) == list(STEMS)
        assert np.array_equal(drawn["drums"], stems["drums"])
        np.testing.assert_allclose(total(drawn), mix, atol=1e-6)
    (alone,) = separate_known(separator, mix, {"drums": stems["drums"]}, RATE, [2]).draws
    assert np.array_equal(alone["bass"], result.draws[1]["bass"])
    assert not np.allclose(alone["bass"], result.draws[0]["bass"], atol=1e-4)
    assert result.settings["method"] == "ding"


def test_settings_are_those_that_were_gone_by(stems):
    """A draw is one sample, whatever the separator averages, and fades if that is asked for."""
    separator = oracle(32, preset="fast", average=2, seams="fade")
    short = {name: x[:32] for name, x in stems.items()}
    result = separate_known(separator, total(short), {"drums": short["drums"]}, RATE, [1])
    assert (result.settings["average"], result.settings["seams"]) == (1, "fade")


def test_a_known_stem_makes_the_others_better():
    """On the exact Gaussian posterior, with 120 songs: less error of the others, beyond chance."""
    length, gains = 32, []
    separator = oracle(length, preset="fast")
    for seed in range(120):
        song = dict(zip(STEMS, separator.prior.denoise.draw(seed).numpy(), strict=True))
        errors = []
        for known in ({}, {"drums": song["drums"]}):
            (drawn,) = separate_known(separator, total(song), known, RATE, [seed]).draws
            errors.append(sum(((drawn[n] - song[n]) ** 2).sum() for n in STEMS if n != "drums"))
        gains.append(10 * np.log10(errors[0] / errors[1]))
    assert np.mean(gains) - 3 * np.std(gains) / 120**0.5 > 0


def test_stereo_at_another_rate(separator, stems):
    from mgdm_audio import audio

    wide = {n: audio.resample(x, RATE, 44100) for n, x in stems.items()}
    pan = {"bass": (1, 1), "drums": (1.4, 0.6), "guitar": (0.5, 1.5), "piano": (1, 1)}
    song = {n: np.outer(pan[n], x).astype(np.float32) for n, x in wide.items()}
    mix = total(song)
    (drawn,) = separate_known(separator, mix, {"guitar": song["guitar"]}, 44100, [0]).draws
    assert np.array_equal(drawn["guitar"], song["guitar"])
    np.testing.assert_allclose(total(drawn), mix, atol=1e-5)
    assert si_sdr(drawn["bass"].mean(0), wide["bass"]) > 10


def test_a_region_is_drawn_anew_and_the_rest_is_the_same_bit_for_bit(separator, stems):
    result = redo(separator, stems, 0.5, 0.9, RATE, [5, 6])
    inside = slice(round(0.5 * RATE), round(0.9 * RATE))
    for drawn in result.draws:
        for name in STEMS:
            same = drawn[name] == stems[name]
            assert same[: inside.start].all()
            assert same[inside.stop :].all()
        changed = [float(np.abs(drawn[n] - stems[n])[inside].max()) for n in STEMS]
        assert min(changed) > 1e-4
        np.testing.assert_allclose(total(drawn), total(stems), atol=1e-6)
        # It goes on from its surroundings: no jump where it begins.
        edge = np.abs(np.diff(drawn["bass"]))[inside.start - 20 : inside.start + 20].max()
        assert edge < 3 * np.abs(np.diff(stems["bass"])).max()
    assert not np.allclose(result.draws[0]["piano"], result.draws[1]["piano"], atol=1e-4)
    (some,) = redo(separator, stems, 0.5, 0.9, RATE, [5], only=["guitar", "piano"]).draws
    assert np.array_equal(some["bass"], stems["bass"])
    assert not np.array_equal(some["piano"], stems["piano"])


def test_two_mixes_say_more_than_one(separator, stems):
    """Left and right of a mix panned by known gains: two equations for four stems."""
    gains = [[1.0, 0.9, 0.3, 1.2], [1.0, 0.9, 1.7, 0.2]]
    mixes = [sum(g * x for g, x in zip(row, stems.values(), strict=True)) for row in gains]
    (two,) = separate_pair(separator, mixes, gains, RATE, [0]).draws
    (one,) = separate_pair(separator, mixes[:1], gains[:1], RATE, [0]).draws
    for mix, row in zip(mixes, gains, strict=True):
        again = sum(g * x for g, x in zip(row, two.values(), strict=True))
        np.testing.assert_allclose(again, mix, atol=1e-5)
    better = [float(si_sdr(two[n], stems[n]) - si_sdr(one[n], stems[n])) for n in STEMS]
    assert np.mean(better) > 1


def test_an_instrumental_beside_the_album_gives_the_missing_stem_away(separator, stems):
    full, without = total(stems), total(stems) - stems["piano"]
    gains = [[1, 1, 1, 1], [1, 1, 1, 0]]
    (drawn,) = separate_pair(separator, [full, without], gains, RATE, [0]).draws
    np.testing.assert_allclose(drawn["piano"], stems["piano"], atol=1e-5)


def test_two_stereo_mixes_at_another_rate(separator, stems):
    from mgdm_audio import audio

    wide = {n: audio.resample(x, RATE, 44100) for n, x in stems.items()}
    pan = {"bass": (1, 1), "drums": (1.4, 0.6), "guitar": (0.5, 1.5), "piano": (1, 1)}
    song = {n: np.outer(pan[n], x).astype(np.float32) for n, x in wide.items()}
    mixes, gains = [total(song), total(song) - song["guitar"]], [[1, 1, 1, 1], [1, 1, 0, 1]]
    (drawn,) = separate_pair(separator, mixes, gains, 44100, [0]).draws
    np.testing.assert_allclose(total(drawn), mixes[0], atol=1e-5)
    assert si_sdr(drawn["guitar"].mean(0), wide["guitar"]) > 30
    assert drawn["bass"].shape == mixes[0].shape


def test_accompaniment(separator, stems):
    bass = {"bass": stems["bass"]}
    result = generate(separator, bass, None, RATE, [3, 4], wanted=["drums"], silent=["piano"])
    assert [list(d) for d in result.draws] == [["drums"], ["drums"]]
    drums = result.draws[0]["drums"]
    assert drums.shape == stems["bass"].shape
    assert 1e-4 < np.sqrt(np.mean(drums**2)) < 1
    assert not np.allclose(drums, result.draws[1]["drums"], atol=1e-3)
    (louder,) = generate(separator, bass, None, RATE, [3], wanted=["drums"], level=0.5).draws
    (softer,) = generate(separator, bass, None, RATE, [3], wanted=["drums"], level=0.05).draws
    assert np.square(louder["drums"]).mean() > 10 * np.square(softer["drums"]).mean()


def test_accompaniment_follows_what_is_given():
    """The prior's stems lean on each other: given one, the mean of the others is not 0."""
    separator = oracle(16)
    cov = separator.prior.denoise.exact.cov
    given = separator.prior.denoise.draw(0)[0]
    gain = cov[16:, :16] @ torch.linalg.solve(cov[:16, :16], given.double())
    level = separator.song_settings.level
    stems = {"bass": given.numpy()}
    drawn = generate(separator, stems, None, RATE, range(60), level=level).draws
    mean = np.stack([np.stack([d[n] for n in STEMS[1:]]) for d in drawn]).mean(0)
    expected = gain.reshape(K - 1, 16).numpy()
    assert np.corrcoef(mean.ravel(), expected.ravel())[0, 1] > 0.8


def test_out_of_nothing(separator):
    (drawn,) = generate(separator, {}, 1.0, 44100, [8]).draws
    assert list(drawn) == list(STEMS)
    assert all(x.shape == (44100,) and np.abs(x).max() > 1e-3 for x in drawn.values())


@pytest.mark.parametrize("rate", [RATE, 44100])
def test_silence(separator, stems, rate):
    """Of what is left when the known stems are the whole mix, and of everything."""
    mix = np.stack([stems["drums"], 0.5 * stems["drums"]])
    (drawn,) = separate_known(separator, mix, {"drums": mix}, rate, [0]).draws
    assert np.array_equal(drawn["drums"], mix)
    assert not any(drawn[name].any() for name in STEMS if name != "drums")
    silent = np.zeros_like(mix)
    gains = [[1, 1, 1, 1], [1, 0, 1, 1]]
    (drawn,) = separate_pair(separator, [silent, silent], gains, rate, [0]).draws
    assert all(np.array_equal(x, silent) for x in drawn.values())
    (drawn,) = redo(separator, dict.fromkeys(STEMS, silent), 0.2, 0.5, rate, [0]).draws
    assert all(np.array_equal(x, silent) for x in drawn.values())


def short(**change):
    stems = dict.fromkeys(STEMS, np.zeros(100, np.float32))
    return stems | change


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda s: separate_known(s, np.zeros(100), {"flute": np.zeros(100)}, RATE, [0]), "flute"),
        (lambda s: separate_known(s, np.zeros(100), {"bass": np.zeros(99)}, RATE, [0]), "expected"),
        (lambda s: separate_known(s, np.zeros(100), short(), RATE, [0]), "all stems are known"),
        (lambda s: separate_known(s, np.full(9, np.nan), {}, RATE, [0]), "not finite"),
        (lambda s: separate_known(s, np.full(9, 1e-44), {}, RATE, [0]), "too quiet"),
        (lambda s: separate_known(s, np.zeros(9, np.int16), {}, RATE, [0]), "floats"),
        (lambda s: redo(s, short(), 1.0, 2.0, RATE, [0]), "region inside"),
        (lambda s: redo(s, {"bass": np.zeros(9)}, 0.0, 2.0, RATE, [0]), "expected bass"),
        (lambda s: redo(s, short(), 0.0, 1.0, RATE, [0], ["bass"]), "at least two"),
        (lambda s: separate_pair(s, [np.zeros(9)], [], RATE, [0]), "rows of gains"),
        (lambda s: generate(s, {}, None, RATE, [0]), "length"),
        (lambda s: generate(s, short(), None, RATE, [0]), "no stem is left"),
        (lambda s: generate(s, {}, 1.0, RATE, [0], wanted=["bass"], silent=["bass"]), "two of"),
    ],
)
def test_errors_say_what_was_expected(call, text, separator):
    with pytest.raises(ValueError, match=text):
        call(separator)
