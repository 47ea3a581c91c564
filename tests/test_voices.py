"""Sung parts: what they hold, how they are cut, and that they sing the notes they are given."""

import numpy as np
import pytest

pytest.importorskip("mido")

from recipes.corpus import voices
from recipes.corpus.others import VOICES, draw_patch
from recipes.corpus.patches import OTHERS, SPLITS, read_patches
from recipes.corpus.voices import Syllable, analyse, contour, hold, phrases, syllables

RATE = voices.RATE


def syllable(frames=60, first=20, last=40):
    return Syllable(np.ones(frames, bool), np.ones((frames, 3)), np.zeros((frames, 3)), first, last)


def vowel(seconds=0.5, hertz=150.0, rate=RATE):
    """A pulse train through three formants, silence before and after."""
    from scipy import signal

    pulses = np.zeros(int(seconds * rate))
    pulses[np.arange(0, len(pulses), rate / hertz).astype(int)] = 1.0
    for formant in (700, 1200, 2600):
        radius, angle = np.exp(-np.pi * 90 / rate), 2 * np.pi * formant / rate
        pulses = signal.lfilter([1 - radius], [1, -2 * radius * np.cos(angle), radius**2], pulses)
    quiet = np.random.default_rng(0).normal(0, 1e-6, int(0.2 * rate))
    return np.concatenate([quiet, 0.3 * pulses / np.abs(pulses).max(), quiet])


def test_syllables_are_different_and_always_the_same():
    words = syllables(60, 0)
    assert len(set(words)) == 60
    assert words == syllables(60, 0)
    assert all(2 <= len(word) <= 3 for word in words)


@pytest.mark.parametrize("frames", [1, 7, 40, 400])
def test_a_held_syllable_is_as_long_as_asked(frames):
    sung = syllable()
    order = hold(sung, frames, np.random.default_rng(frames))
    assert list(order[:20]) == list(range(20))  # the consonant, before the note
    assert len(order) == 20 + max(frames, 1 + min(19, frames // 4))
    assert order.min() >= 0
    assert order.max() < 60
    held = order[20 : len(order) - min(19, frames // 4)]
    assert held.min() >= 20
    assert held.max() <= 40


def test_a_long_vowel_moves_without_jumps():
    order = hold(syllable(), 400, np.random.default_rng(0))
    held = order[20 : len(order) - 19]
    assert np.abs(np.diff(held)).max() <= 1
    assert len(set(held)) > 10


def test_pitch_stays_with_the_note():
    for seed in range(30):
        line = contour(60.0, 55.0, 300, np.random.default_rng(seed))
        assert abs(line[0] - 55.0) < 0.5  # it comes from the note before
        assert abs(line[100:].mean() - 60.0) < 0.5
        assert np.abs(line[100:] - 60.0).max() < 1.5


def test_phrases_end_where_the_line_rests():
    notes = np.array(
        [
            [0.0, 0.5, 60, 90],
            [0.01, 0.5, 64, 90],  # a second voice: left out
            [0.5, 1.2, 62, 90],
            [1.0, 1.5, 64, 90],  # begins before the one before it ends
            [2.5, 3.0, 65, 90],
        ]
    )
    cut = phrases(notes)
    assert [len(p) for p in cut] == [3, 1]
    assert (cut[0][1:, 0] >= cut[0][:-1, 1]).all()
    assert phrases(notes[:0]) == []


def test_every_split_has_speakers_of_its_own():
    rows = [p for p in read_patches(OTHERS) if p.kind == "voice"]
    assert {p.split for p in rows} == set(SPLITS)
    assert len({p.name for p in rows}) == len(rows)
    for split in SPLITS:
        drawn = {draw_patch(split, np.random.default_rng(s), False, VOICES).name for s in range(40)}
        assert drawn == {p.name for p in rows if p.split == split}


def test_a_split_without_a_permitted_voice_says_so():
    with pytest.raises(ValueError, match="permissive-only"):
        draw_patch("valid", np.random.default_rng(0), True, VOICES)


def test_a_program_that_is_absent_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(voices.MissingProgram, match="Debian package `flite`"):
        voices.speak("flite:rms", ["ma"], tmp_path)


def test_a_sung_note_has_its_pitch(monkeypatch):
    pyworld = pytest.importorskip("pyworld")
    heard = analyse(vowel())
    assert heard is not None
    assert 0 <= heard.first < heard.last < len(heard.pitched)
    monkeypatch.setattr(voices, "repertoire", lambda speaker: [heard])
    notes = np.array([[0.5, 2.5, 57.0, 100.0]])
    out = voices.render_voice("flite:none", notes, 3 * 44100, 0.0, np.random.default_rng(1))
    assert out.shape == (3 * 44100,)
    again = voices.render_voice("flite:none", notes, 3 * 44100, 0.0, np.random.default_rng(1))
    assert np.array_equal(again, out)
    assert np.abs(out[: int(0.3 * 44100)]).max() < 1e-3 * np.abs(out).max()
    sound = out[44100 : 2 * 44100].astype(np.float64)
    pitch, _ = pyworld.harvest(sound, 44100)
    assert abs(12 * np.log2(np.median(pitch[pitch > 0]) / 220)) < 0.5


def test_silence_is_no_syllable():
    pytest.importorskip("pyworld")
    assert analyse(np.zeros(RATE // 2)) is None
