"""The corpus recipe: deterministic, in level, and with splits that share nothing."""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

mido = pytest.importorskip("mido")

from recipes.corpus.charts import random_chart  # noqa: E402  (needs mido)
from recipes.corpus.effects import apply_chain, loudness  # noqa: E402
from recipes.corpus.grooves import MissingProgram, form_of, read_catalogue  # noqa: E402
from recipes.corpus.kits import Kit, role_of, sfz_notes  # noqa: E402
from recipes.corpus.lead import lead_line  # noqa: E402
from recipes.corpus.midi import STEMS, Track, empty_notes, read_tracks, stem_of  # noqa: E402
from recipes.corpus.models import render_model  # noqa: E402
from recipes.corpus.patches import SPLITS, Palette, Patch, check_files, read_patches  # noqa: E402
from recipes.corpus.render import (  # noqa: E402
    balance,
    main,
    perform,
    playable,
    render_song,
    song_seed,
)
from recipes.corpus.sfz import flatten, missing_samples, only_keys, render_sfz, sfizz  # noqa: E402
from recipes.corpus.song import Layer, draw_shift, fold, humanise, split_of  # noqa: E402
from recipes.corpus.synth import RENDER_RATE, soundfont  # noqa: E402

RATE = 22050
LISTS = Path(__file__).parents[1] / "recipes/corpus/lists"


def has_sfizz() -> bool:
    try:
        sfizz()
    except MissingProgram:
        return False
    return True


needs_sfizz = pytest.mark.skipif(not has_sfizz(), reason="needs sfizz_render (pysfizz)")


def cents_off(sound: np.ndarray, pitch: float) -> float:
    """Return how far the strongest partial near a note's fundamental is from it, in cents."""
    frequency = 440 * 2 ** ((pitch - 69) / 12)
    size = 1 << 20
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), size))
    low, high = (int(frequency * ratio * size / RENDER_RATE) for ratio in (0.9, 1.1))
    found = (low + spectrum[low:high].argmax()) * RENDER_RATE / size
    return float(1200 * np.log2(found / frequency))


def tone(level: float, frequency: float = 997.0, seconds: float = 4.0) -> np.ndarray:
    t = np.arange(int(RATE * seconds)) / RATE
    return (level * np.sin(2 * np.pi * frequency * t)).astype(np.float32)


def test_splits_share_no_sounds():
    splits = defaultdict(set)
    for patch in read_patches():
        splits[patch.package, patch.file].add(patch.split)
    assert all(len(used) == 1 for used in splits.values())
    sets = defaultdict(set)  # the recordings of a repository belong to one split, whatever the file
    for patch in read_patches():
        if patch.package.startswith("github:"):
            sets[patch.package].add(patch.split)
    assert all(len(used) == 1 for used in sets.values())
    for split in SPLITS:
        for stem in STEMS:
            sources = {p.package for p in Palette(split).patches if p.stem == stem}
            assert len(sources) >= 2, (split, stem)


def test_every_repository_is_pinned():
    lines = (LISTS / "repositories.txt").read_text().splitlines()
    pinned = dict(line.split() for line in lines)
    used = {
        p.package.removeprefix("github:"): p.file
        for p in read_patches()
        if p.package.startswith("github:")
    }
    assert set(pinned) == set(used)
    assert all(re.fullmatch(r"[0-9a-f]{40}", commit) for commit in pinned.values())
    assert all(file.startswith(name.split("/")[1] + "/") for name, file in used.items())


def test_two_thirds_of_the_guitars_are_not_from_soundfonts():
    palette, rng = Palette("train"), np.random.default_rng(0)
    kinds = [palette.draw("guitar", rng).kind for _ in range(1500)]
    # Binomial with p = 2/3: spread 0.012 over 1500 draws.
    assert np.mean([kind != "sf2" for kind in kinds]) == pytest.approx(2 / 3, abs=0.05)


def test_splits_share_no_grooves():
    files = {groove.file for groove in read_catalogue()}
    by_split = defaultdict(int)
    for file in files:
        by_split[split_of(file)] += 1
    assert set(by_split) == set(SPLITS)
    assert by_split["train"] > 3 * by_split["test"]


def test_no_two_songs_share_a_seed():
    seeds = {tuple(song_seed(0, split, n)) for split in SPLITS for n in range(50)}
    assert len(seeds) == 150


@pytest.mark.parametrize("split", ["valid", "test"])
def test_fixed_lists(split):
    text = (LISTS / f"{split}.txt").read_text()
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    assert [line[:2] for line in lines] == [["0", str(n)] for n in range(24)]
    assert len({line[2] for line in lines}) == 24
    assert all(re.fullmatch(r"[0-9a-f]{64}", line[2]) for line in lines)


def test_charts_are_deterministic_and_whole():
    first, again, other = (random_chart(np.random.default_rng(s), 4, 60) for s in (1, 1, 2))
    assert first == again
    assert first != other
    assert len(first.bars) % 4 == 0
    assert 40 < len(first.bars) * 4 * 60 / first.tempo < 90


def test_lead_line_stays_in_its_bars():
    chart = random_chart(np.random.default_rng(0), 4, 60)
    notes = lead_line(chart, 4, 4, 70, np.random.default_rng(0))
    assert len(notes) > 4
    assert notes[:, 0].min() >= 16
    assert notes[:, 0].max() < 32
    assert np.abs(notes[:, 2] - 70).max() <= 19


@pytest.mark.parametrize(
    ("name", "channel", "program", "stem"),
    [
        ("Drum", 9, 0, "drums"),
        ("Walk", 3, 33, "bass"),
        ("Chord-Guitar", 4, 27, "guitar"),
        ("Bass", 3, 25, "guitar"),
        ("Chord", 5, 0, "piano"),
        ("Bass", 2, 58, "bass"),
        ("Strings", 6, 48, None),
    ],
)
def test_stem_by_channel_program_and_name(name, channel, program, stem):
    assert stem_of(Track(name, channel, program, empty_notes())) == stem


def test_reads_notes_and_program_changes(tmp_path):
    track = mido.MidiTrack(
        [
            mido.MetaMessage("track_name", name="Chord"),
            mido.Message("program_change", channel=2, program=27),
            mido.Message("note_on", channel=2, note=60, velocity=90, time=96),
            mido.Message("note_off", channel=2, note=60, time=96),
            mido.Message("program_change", channel=2, program=0),
            mido.Message("note_on", channel=2, note=64, velocity=80, time=0),
            mido.Message("note_on", channel=2, note=64, velocity=0, time=48),
        ]
    )
    mido.MidiFile(ticks_per_beat=192, tracks=[track]).save(tmp_path / "x.mid")
    guitar, piano = read_tracks(tmp_path / "x.mid")
    assert (guitar.program, piano.program) == (27, 0)
    assert guitar.notes.tolist() == [[0.5, 1.0, 60, 90]]
    assert piano.notes.tolist() == [[1.0, 1.25, 64, 80]]


def test_loudness_of_a_tone():
    """ITU-R BS.1770-4: a full-scale tone of 997 Hz in one channel has -3.01 LUFS."""
    assert loudness(tone(1.0), RATE) == pytest.approx(-3.01, abs=0.1)
    assert loudness(tone(0.1), RATE) == pytest.approx(-23.01, abs=0.1)
    assert loudness(np.zeros(RATE, np.float32), RATE) == -np.inf


def test_balance_evens_out_loudness():
    silence = np.zeros(88200, np.float32)
    stems = np.stack([tone(0.9, 200), tone(0.001, 997), tone(0.1, 440), silence])
    offsets = []
    for seed in range(100):
        out = balance(stems, np.random.default_rng(seed))
        assert np.abs(out.sum(0)).max() <= 10 ** (-1 / 20) + 1e-6
        assert not out[3].any()
        offsets.append(loudness(out[0], RATE) - loudness(out[1], RATE))
    # The difference of two N(0, 3.5 dB): spread 4.9 dB; 100 draws give it to 7 %, its mean to 0.5.
    assert abs(np.mean(offsets)) < 1.7
    assert 3.7 < np.std(offsets) < 6.2


def test_effects_are_deterministic_and_finite():
    x = tone(0.2, 220)
    for seed in range(12):
        first, names = apply_chain("guitar", 27, x, RATE, np.random.default_rng(seed))
        again, _ = apply_chain("guitar", 27, x, RATE, np.random.default_rng(seed))
        assert np.array_equal(first, again), names
        assert np.isfinite(first).all()
        assert len(first) == len(x)


def test_notes_stay_playable():
    notes = np.array([[0, 0.5, 20.0, 90], [0, 0.5, 110, 90], [1, 1.5, 60, 127]])
    before = notes.copy()
    folded = fold(notes, "guitar")
    assert folded[:, 2].min() >= 40
    assert folded[:, 2].max() <= 88
    human = humanise(folded, "guitar", np.random.default_rng(0))
    assert np.array_equal(notes, before)
    assert (human[:, 0] >= 0).all()
    assert (human[:, 1] > human[:, 0]).all()
    assert human[:, 3].max() <= 127
    assert np.abs(human[:, 0] - folded[:, 0]).max() < 0.12


def test_forms_of_grooves():
    assert form_of("8BeatFill") == "fill"
    assert form_of("CountryBlues") == "main"
    assert form_of("stdlib/8beat:8BeatIntro") == "intro"


def test_permissive_sources_alone():
    palette = Palette("train", permissive_only=True)
    assert {patch.stem for patch in palette.patches} == set(STEMS)
    assert not any(p.licence.startswith(("GPL", "CC-BY-SA")) for p in palette.patches)
    assert {patch.stem for patch in Palette("test", permissive_only=True).patches} == set(STEMS)


def test_a_split_without_a_source_is_refused(monkeypatch):
    bass = [patch for patch in read_patches() if patch.stem == "bass"]
    monkeypatch.setattr("recipes.corpus.patches.read_patches", lambda: bass)
    with pytest.raises(ValueError, match="no source for drums, guitar, piano"):
        Palette("test")


def test_a_missing_source_names_its_package(monkeypatch, tmp_path):
    monkeypatch.setenv("MGDM_CORPUS_SOURCES", str(tmp_path))
    with pytest.raises(MissingProgram, match="alphatab"):
        check_files(Palette("valid").patches)
    done = CliRunner().invoke(main, ["--split", "valid", "--out", str(tmp_path / "valid")])
    assert done.exit_code == 1
    assert "alphatab" in done.output
    assert not (tmp_path / "valid").exists()


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


@pytest.mark.parametrize("name", ["acoustic guitar", "electric guitar", "electric piano"])
def test_models_are_in_tune_and_end(name):
    notes = np.array([[0.1, 1.0, 45, 90.0], [1.5, 2.4, 76, 90]])
    for seed in (0, 1):
        sound = render_model(name, notes, 4 * RENDER_RATE, 20.0, np.random.default_rng(seed))
        assert not sound[: int(0.09 * RENDER_RATE)].any()
        for start, pitch in ((0.2, 45.2), (1.6, 76.2)):
            part = sound[int(start * RENDER_RATE) : int((start + 0.75) * RENDER_RATE)]
            assert abs(cents_off(part, pitch)) < 4
        assert np.abs(sound[-RENDER_RATE // 2 :]).max() < 1e-3 * np.abs(sound).max()
    again = render_model(name, notes, 4 * RENDER_RATE, 20.0, np.random.default_rng(1))
    assert np.array_equal(sound, again)


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


def _rendering_is_possible() -> bool:
    try:
        check_files(Palette("test").patches)
    except RuntimeError:
        return False
    return has_sfizz() and bool(shutil.which("mma")) and bool(shutil.which("fluidsynth"))


@pytest.mark.slow
@pytest.mark.skipif(not _rendering_is_possible(), reason="needs mma, fluidsynth and soundfonts")
def test_a_song_is_always_the_same():
    first, line = render_song("test", 0, 0, False)
    again, _ = render_song("test", 0, 0, False)
    assert np.array_equal(first, again)
    assert first.shape == (4, line["samples"])
    assert np.abs(first.astype(int).sum(0)).max() < 32768


@pytest.mark.slow
@pytest.mark.skipif(not _rendering_is_possible(), reason="needs mma, fluidsynth and soundfonts")
def test_nothing_is_left_of_the_rendering_before():
    font = soundfont(next(str(p.path) for p in Palette("test").patches))
    notes = np.array([[0.2 * i, 0.2 * i + 0.15, 60 + i % 12, 90] for i in range(10)])
    first = font.render(notes, 0, 0, 44100)
    font.render(notes, 0, 5, 44100)
    assert np.array_equal(first, font.render(notes, 0, 0, 44100))
