"""Sounds of the corpus recipe: in tune, in time, complete, and the same on every run."""

from __future__ import annotations

import gzip
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("mido")

from recipes.corpus.drum_synth import ComputedKit
from recipes.corpus.grooves import MissingProgram
from recipes.corpus.kits import ROLES, Kit, role_of, sfz_notes
from recipes.corpus.midi import STEMS
from recipes.corpus.models import INSTRUMENTS, render_model
from recipes.corpus.patches import OTHERS, TABLE, Patch, read_patches
from recipes.corpus.render import perform, playable
from recipes.corpus.sfz import flatten, missing_samples, only_keys, render_sfz, sfizz
from recipes.corpus.song import Layer, draw_shift
from recipes.corpus.struck import draw_piano, strike
from recipes.corpus.synth import RENDER_RATE
from recipes.corpus.zyn import BAR, HIGHEST, TICK, instrument, project, render_zyn


def has_sfizz() -> bool:
    try:
        sfizz()
    except MissingProgram:
        return False
    return True


needs_sfizz = pytest.mark.skipif(not has_sfizz(), reason="needs sfizz_render (pysfizz)")
needs_lmms = pytest.mark.skipif(shutil.which("lmms") is None, reason="needs lmms")


def cents_off(sound: np.ndarray, pitch: float) -> float:
    """Return how far the strongest partial near a note's fundamental is from it, in cents."""
    frequency = 440 * 2 ** ((pitch - 69) / 12)
    size = 1 << 20
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), size))
    low, high = (int(frequency * ratio * size / RENDER_RATE) for ratio in (0.9, 1.1))
    found = (low + spectrum[low:high].argmax()) * RENDER_RATE / size
    return float(1200 * np.log2(found / frequency))


def write_tone(path: Path, frequency: float, level: float = 0.25) -> None:
    t = np.arange(RENDER_RATE) / RENDER_RATE
    soundfile.write(path, level * np.sin(2 * np.pi * frequency * t), RENDER_RATE)


def test_sfz_is_flattened_without_chance(tmp_path):
    (tmp_path / "map.txt").write_text("sample=$DIR/$KEY.wav pitch_keycenter=$KEY\n")
    (tmp_path / "x.sfz").write_text(
        "#define $DIR tones // where they are\n<group> amp_random=3\n"
        '<region> #define $KEY 60 lokey=59 hikey=61 #include "map.txt"\n'
        "<region> sample=a.wav hirand=0.5\n<region> sample=b.wav lorand=0.5\n"
    )
    text = flatten(tmp_path / "x.sfz")
    assert "sample=tones/60.wav pitch_keycenter=60" in text
    assert "rand" not in text
    assert [m.split()[-2:] for m in re.findall(r"sample=[ab].*?(?=<|$)", text, re.DOTALL)] == [
        ["seq_length=2", "seq_position=1"],
        ["seq_length=2", "seq_position=2"],
    ]
    assert missing_samples(text, tmp_path) == ["a.wav", "b.wav", "tones/60.wav"]
    with pytest.raises(MissingProgram, match="absent"):
        flatten(tmp_path / "y.sfz")


def test_regions_out_of_reach_are_left_out():
    text = (
        "<global> lokey=30\n<group> hikey=40\n<region> sample=low.wav\n"
        "<group>\n<region> sample=one.wav key=c4\n<region> sample=any.wav\n"
    )
    kept = only_keys(text, {60})
    assert "low.wav" not in kept
    assert "one.wav" in kept
    assert "any.wav" in kept
    assert re.findall(r"\w+\.wav", only_keys(text, {35})) == ["low.wav", "any.wav"]
    assert re.findall(r"\w+\.wav", only_keys(text, {20})) == []


@needs_sfizz
def test_sfz_notes_sound_where_they_are_written(tmp_path):
    for name, frequency in (("A4", 440.0), ("A5", 880.0)):
        write_tone(tmp_path / f"{name}.wav", frequency)
    notes = np.array([[0.5, 1.2, 72, 100], [1.5, 2.2, 81, 100]])
    sound = render_sfz(tmp_path, notes, 3 * RENDER_RATE)
    assert np.abs(sound[: int(0.49 * RENDER_RATE)]).max() < 2**-14  # 2 steps of its 16 bits
    assert abs(cents_off(sound[int(0.6 * RENDER_RATE) : RENDER_RATE], 72)) < 3
    assert abs(cents_off(sound[int(1.6 * RENDER_RATE) : 2 * RENDER_RATE], 81)) < 3
    assert np.array_equal(sound, render_sfz(tmp_path, notes, 3 * RENDER_RATE))


@needs_sfizz
def test_sfz_never_clips(tmp_path):
    write_tone(tmp_path / "A4.wav", 440, level=0.9)
    chord = np.array([[0.1, 0.9, pitch, 127] for pitch in range(60, 76)])
    loud = render_sfz(tmp_path, chord, RENDER_RATE, gain=20)
    soft = render_sfz(tmp_path, chord, RENDER_RATE, gain=-28)
    assert np.abs(loud).max() < 0.99
    # Apart from its level the loud one is the soft one; 16-bit noise bounds the difference.
    scaled = soft * (loud @ soft / (soft @ soft))
    assert np.sum((loud - scaled) ** 2) < 1e-4 * np.sum(loud**2)


@needs_sfizz
def test_sfz_without_its_samples_is_refused(tmp_path):
    (tmp_path / "x.sfz").write_text("<region> sample=gone.wav\n")
    with pytest.raises(MissingProgram, match="lacks 1 samples"):
        render_sfz(tmp_path / "x.sfz", np.array([[0, 1, 60, 90.0]]), RENDER_RATE)


SINE = """<?xml version="1.0f" encoding="UTF-8"?>
<!DOCTYPE ZynAddSubFX-data>
<ZynAddSubFX-data version-major="2" version-minor="4" version-revision="1">
<INSTRUMENT><INSTRUMENT_KIT><par name="kit_mode" value="0"/>
<INSTRUMENT_KIT_ITEM id="0"><par_bool name="enabled" value="yes"/>
<par_bool name="add_enabled" value="yes"/><ADD_SYNTH_PARAMETERS><VOICE id="0">
<par_bool name="enabled" value="yes"/></VOICE></ADD_SYNTH_PARAMETERS></INSTRUMENT_KIT_ITEM>
</INSTRUMENT_KIT></INSTRUMENT></ZynAddSubFX-data>
"""


def test_a_synthesisers_project_has_the_notes_and_the_length(tmp_path):
    (tmp_path / "plain.xiz").write_text(SINE)
    (tmp_path / "packed.xiz").write_bytes(gzip.compress(SINE.encode()))
    notes = np.array([[0.5, 1.2, 60, 127], [1.5, 1.5, 72, 1.0]])
    for name in ("plain", "packed"):
        root = project(tmp_path / f"{name}.xiz", notes, 2 * RENDER_RATE).getroot()
        assert len(root.findall(".//PART/INSTRUMENT/INSTRUMENT_KIT")) == 1
        played = [dict(note.attrib) for note in root.iter("note")]
        assert [(n["key"], n["vol"]) for n in played] == [("60", "100"), ("72", "1")]
        for note, (start, end, *_) in zip(played, notes, strict=True):
            assert abs(int(note["pos"]) * TICK - start) <= TICK / 2
            assert abs(int(note["len"]) * TICK - (end - start)) <= TICK
        ends = [int(p.get("pos", "0")) + int(p.get("len", "0")) for p in root.iter("pattern")]
        assert 2 <= max(ends) * TICK < 2 + 2 * BAR * TICK


def test_a_synthesisers_broken_or_absent_file_is_named(tmp_path):
    with pytest.raises(MissingProgram, match=r"none\.xiz.*yoshimi-data"):
        instrument(tmp_path / "none.xiz")
    for text in ("no xml", "<ZynAddSubFX-data><MASTER>", "<ZynAddSubFX-data/>"):
        (tmp_path / "broken.xiz").write_text(text)
        with pytest.raises(ValueError, match=r"broken\.xiz"):
            instrument(tmp_path / "broken.xiz")
        instrument.cache_clear()


def test_synthesisers_are_asked_no_key_that_lmms_leaves_out():
    patches = [p for table in (TABLE, OTHERS) for p in read_patches(table) if p.kind == "zyn"]
    assert all(0 <= p.low + p.transpose < p.high + p.transpose <= HIGHEST for p in patches)


@needs_lmms
def test_synthesisers_are_in_tune_and_in_time_and_always_the_same(tmp_path):
    (tmp_path / "sine.xiz").write_text(SINE)
    notes = np.array([[0.5, 1.2, 60, 100], [1.5, 2.2, 69, 50]])
    sound = render_zyn(tmp_path / "sine.xiz", notes, 3 * RENDER_RATE)
    assert sound.shape == (3 * RENDER_RATE,)
    assert not sound[: int(0.49 * RENDER_RATE)].any()
    first, second = (sound[int(t * RENDER_RATE) :][: RENDER_RATE // 2] for t in (0.6, 1.6))
    assert abs(cents_off(first, 60)) < 3
    assert abs(cents_off(second, 69)) < 3
    assert first.std() > 1.2 * second.std() > 0
    assert np.array_equal(sound, render_zyn(tmp_path / "sine.xiz", notes, 3 * RENDER_RATE))
    higher = render_zyn(tmp_path / "sine.xiz", notes, 3 * RENDER_RATE, cents=40)
    assert abs(cents_off(higher[int(0.6 * RENDER_RATE) :][: RENDER_RATE // 2], 60) - 40) < 3


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("BassDrum", "kick"),
        ("Hat Semi-Open", "hat_open"),
        ("ohihat", "hat_open"),
        ("VariBreaks Hat 1 Pd", "hat_pedal"),
        ("hhclosed short", "hat_closed"),
        ("conga hh", "conga"),
        ("Floor Tom", "tom_low"),
        ("tomhi3", "tom_high"),
        ("Ride Bell", "ride"),
        ("Cowbell", "cowbell"),
        ("Snare Rimshot", "snare"),
        ("Snare Roll", None),
        ("Djembe1 Slap", None),
    ],
)
def test_roles_of_drums(name, role):
    assert role_of(name) == role


def test_sfz_kits_get_their_own_keys():
    notes = np.array([[0, 1, 36, 90.0], [1, 2, 42, 90], [2, 3, 81, 90]])
    before = notes.copy()
    moved = sfz_notes("github:freepats/muldjordkit", notes, np.random.default_rng(0))
    assert np.array_equal(notes, before)
    assert moved[0, 2] in (48, 49)
    assert moved[1:, 2].tolist() == [52]
    assert np.array_equal(sfz_notes("elsewhere", notes, np.random.default_rng(0)), notes)


def test_a_closed_hat_stops_an_open_one(tmp_path):
    for name in ("hat open", "hat closed", "kick"):
        write_tone(tmp_path / f"{name}.ogg", 1000)
    kit = Kit(tmp_path)
    rng = np.random.default_rng(0)
    alone = kit.render(np.array([[0.0, 0.1, 46, 127]]), RENDER_RATE, rng)
    both = kit.render(np.array([[0.0, 0.1, 46, 127], [0.3, 0.4, 42, 1]]), RENDER_RATE, rng)
    late = slice(int(0.35 * RENDER_RATE), int(0.9 * RENDER_RATE))
    assert np.abs(both[late]).max() < 0.1 * np.abs(alone[late]).max()
    first = int(0.29 * RENDER_RATE)
    assert np.allclose(alone[:first], both[:first])


# Cents, by their several strings; the two of a plucked one beat, which moves a peak of 0.75 s.
DETUNED = {"piano": 25, "synth bass": 25}


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_models_are_in_tune_and_end(name):
    notes = np.array([[0.1, 1.0, 45, 90.0], [1.5, 2.4, 76, 90]])
    for seed in (0, 1):
        sound = render_model(name, notes, 4 * RENDER_RATE, 20.0, np.random.default_rng(seed))
        assert not sound[: int(0.09 * RENDER_RATE)].any()
        for start, pitch in ((0.2, 45.2), (1.6, 76.2)):
            part = sound[int(start * RENDER_RATE) : int((start + 0.75) * RENDER_RATE)]
            assert abs(cents_off(part, pitch)) < DETUNED.get(name, 6)
        assert np.abs(sound[-RENDER_RATE // 2 :]).max() < 1e-3 * np.abs(sound).max()
    again = render_model(name, notes, 4 * RENDER_RATE, 20.0, np.random.default_rng(1))
    assert np.array_equal(sound, again)


def test_a_computed_kit_has_every_role_and_is_louder_where_it_is_hit_harder():
    keys = sorted(ROLES)
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        kit = ComputedKit(rng)
        assert all(any(role in kit.instruments for role in ROLES[key]) for key in keys)
        for key in keys:
            levels = []
            for velocity in (30, 80, 127):
                note = np.array([[0.0, 0.1, key, velocity]])
                sound = kit.render(note, 6 * RENDER_RATE, rng)
                assert np.isfinite(sound).all()
                levels.append(float(np.square(sound).sum()))
            assert levels[0] < levels[1] < levels[2], key
    notes = np.array([[0.0, 0.1, 36, 100.0]])
    one, other = (
        render_model("drum kit", notes, RENDER_RATE, 0.0, np.random.default_rng(seed))
        for seed in (0, 1)
    )
    assert not np.allclose(one, other, atol=0.05)


def test_a_struck_string_is_sharp_above_and_dies_from_the_top():
    stiff = replace(
        draw_piano(np.random.default_rng(0)), stiff=1e-3, strings=(0.0,), knock=0.0, damping=2.0
    )
    sound = strike(stiff, 57.0, 2, 2.0, np.random.default_rng(1))[-1]
    early, late = (
        np.abs(np.fft.rfft(sound[at : at + 44_100] * np.hanning(44_100))) for at in (0, 44_100)
    )
    tenth = 2200 + int(np.argmax(early[2200:2420]))  # Hz: one bin is one
    expected = 2200 * np.sqrt((1 + 1e-3 * 100) / (1 + 1e-3))
    assert tenth == pytest.approx(expected, abs=3)
    assert late[tenth] / early[tenth] < 0.5 * late[220] / early[220]


def test_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match="no model 'organ'"):
        render_model("organ", np.zeros((0, 4)), 100, 0.0, np.random.default_rng(0))


def model(name: str, low: int = 0, high: int = 127) -> Patch:
    return Patch(
        "piano", "model", "models.py", "-", 0, 4, name, "MIT", "train", True, low=low, high=high
    )


def test_a_shift_changes_the_instrument_but_not_the_notes():
    notes = np.array([[0.2, 1.2, 57, 100.0]])
    sounds = []
    for shift in (0.0, 4.0, -3.0):
        layer = Layer(notes, model("electric piano"), 0.0, shift)
        sound = perform(layer, 2 * RENDER_RATE, np.random.default_rng(3))
        assert len(sound) == 2 * RENDER_RATE
        assert abs(cents_off(sound[int(0.3 * RENDER_RATE) : RENDER_RATE], 57)) < 2
        onset = np.flatnonzero(np.abs(sound) > 0.01 * np.abs(sound).max())[0] / RENDER_RATE
        assert onset == pytest.approx(0.2, abs=0.005)
        sounds.append(sound)
    assert not np.allclose(sounds[0], sounds[1], atol=0.05)


def test_held_out_sounds_are_not_shifted():
    rng = np.random.default_rng(0)
    assert not any(draw_shift(split, stem, rng) for split in ("valid", "test") for stem in STEMS)
    assert any(draw_shift("train", "guitar", rng) for _ in range(20))


def test_notes_out_of_range_move_by_octaves():
    notes = np.array([[0, 1, 30.0, 90], [1, 2, 50, 90], [2, 3, 99, 90]])
    moved = playable(notes, model("electric piano", 41, 86))
    assert moved[:, 2].tolist() == [42, 50, 75]
    narrow = playable(notes, model("electric piano", 50, 55))
    assert narrow[:, 2].tolist() == [54, 50, 51]
