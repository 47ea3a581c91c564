"""What known stems and repairs are worth: the tasks, the classical ways, resuming, the table."""

import numpy as np
import pytest

from mgdm_audio import STEMS, repair
from mgdm_audio.metrics import si_sdr
from mgdm_audio.separate import Separator
from recipes.restoration import features

RATE = 22050


@pytest.fixture
def clip(music):
    return music[:, 2000 : 2000 + 33600]


@pytest.fixture
def make(prior):
    """A quick separator for every task, on the exact Gaussian prior."""
    options = {"window": 36864, "overlap": 4096, "precision": "float32"}
    linear = Separator(prior, "ding", "fast", **options)
    gradient = Separator(prior, "daps", "gradient", levels=8, **options)
    return lambda task: gradient if task in ("clip", "lowpass") else linear


def test_known_stems_regions_and_second_mixes(clip, make):
    for task, way in (
        ("known", "with the known stem"),
        ("redo", "with the stems around it"),
        ("also", "with the instrumental"),
        ("panned", "with the left channel"),
    ):
        scores = dict(features.TASKS[task](clip, RATE, make))
        names = set(STEMS) - ({features.GIVEN} if task in ("known", "also") else set())
        assert set(scores["the mix alone"]) == names
        gain = np.mean(list(scores[way].values())) - np.mean(list(scores["the mix alone"].values()))
        # The prior has no memory: what is around a region says nothing of it.
        assert abs(gain) < 1 if task == "redo" else gain > 1


@pytest.mark.parametrize("kind", repair.METHODS)
def test_repairs_and_what_is_done_without_a_prior(kind, clip, make):
    truth = clip.sum(0)
    damaged, _, where = features.damage(kind, truth, RATE)
    assert not np.array_equal(damaged, truth)
    assert np.array_equal(damaged[~where], truth[~where])
    scores = dict(features.TASKS[f"{kind} mix"](clip, RATE, make))
    assert list(scores)[-1] == "repaired"
    assert all(np.isfinite(list(s.values())).all() for s in scores.values())
    assert ("snr" in scores["damaged"]) == (kind == "gap")
    assert kind != "gap" or scores["damaged"]["snr"] == 0


def test_linear_prediction_goes_on_with_a_tone():
    t = np.arange(22050) / RATE
    tone = (np.sin(2 * np.pi * 440 * t) + 0.3 * np.sin(2 * np.pi * 1234 * t)).astype(np.float32)
    tone = tone + np.float32(1e-4) * np.random.default_rng(0).normal(size=len(t)).astype(np.float32)
    damaged, options, where = features.damage("gap", np.tile(tone, 2), RATE)
    *_, predicted, fitted = features.classical("gap", damaged, where, options, RATE)
    truth = np.tile(tone, 2)
    assert "librosa" in predicted[0]
    for _, filled in (predicted, fitted):
        assert np.array_equal(filled[~where], damaged[~where].astype(np.float64))
        # One gap is half a second from where the tone begins anew.
        assert float(si_sdr(filled[where], truth[where])) > 10


def test_results_are_kept_and_resumed(clip, make, tmp_path):
    output, told = tmp_path / "features.jsonl", []
    arguments = ([("test-000", "a", clip)], RATE, make, output, "model", ["known", "bits drums"])
    first = features.run(*arguments, told.append)
    again = features.run(*arguments, told.append)
    assert first == again
    assert len(told) == 2
    assert features.run(*arguments[:4], "other", ["known"], told.append, minutes=-1) == []
    shorter = [("test-000", "b", clip[:, :1000])]
    assert features.run(shorter, *arguments[1:], told.append, minutes=-1) == []
    text = features.table(first)
    assert "| known | with the known stem | SI-SDR improvement |" in text
    assert "| bits drums | repaired | log-spectral distance (less is better) |" in text
    before, after = (first[0]["scores"][w] for w in ("the mix alone", "with the known stem"))
    gain = np.mean(list(after.values())) - np.mean(list(before.values()))
    assert f"{gain:+.2f} ± 0.00 | 1 |" in text
