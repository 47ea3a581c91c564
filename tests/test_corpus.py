"""The corpus recipe: deterministic, in level, and with splits that share nothing."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections import defaultdict
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

mido = pytest.importorskip("mido")

from recipes.corpus import human  # noqa: E402  (needs mido)
from recipes.corpus.card import read_index, use_table  # noqa: E402
from recipes.corpus.charts import random_chart  # noqa: E402
from recipes.corpus.effects import apply_chain, loudness  # noqa: E402
from recipes.corpus.grooves import MissingProgram, form_of, read_catalogue  # noqa: E402
from recipes.corpus.lead import lead_line  # noqa: E402
from recipes.corpus.midi import STEMS, Track, empty_notes, read_tracks, stem_of  # noqa: E402
from recipes.corpus.patches import SPLITS, Palette, check_files, read_patches  # noqa: E402
from recipes.corpus.render import (  # noqa: E402
    Render,
    balance,
    main,
    read_lines,
    render_missing,
    render_song,
    song_seed,
)
from recipes.corpus.sfz import sfizz  # noqa: E402
from recipes.corpus.song import fold, humanise, split_of  # noqa: E402
from recipes.corpus.synth import soundfont  # noqa: E402

RATE = 22050
LISTS = Path(__file__).parents[1] / "recipes/corpus/lists"


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
    assert set(pinned) == {*used, human.REPOSITORY}
    assert all(re.fullmatch(r"[0-9a-f]{40}", commit) for commit in pinned.values())
    assert all(file.startswith(name.split("/")[1] + "/") for name, file in used.items())


@pytest.mark.parametrize("stem", STEMS)
def test_kinds_of_sounds_have_their_shares(stem):
    # Binomial: spread 0.012 over 1500 draws.
    share = 0.3 if stem in ("bass", "drums") else 0.05
    synths = {"bass": 0.2, "drums": 0.0, "guitar": 0.1, "piano": 0.2}[stem]
    for split, computed, played in (("train", share, synths), ("valid", 0.0, 0.0)):
        palette, rng = Palette(split), np.random.default_rng(0)
        kinds = [palette.draw(stem, rng).kind for _ in range(1500)]
        assert np.mean([kind == "zyn" for kind in kinds]) == pytest.approx(played, abs=0.05)
        others = [kind for kind in kinds if kind != "zyn"]
        assert np.mean([kind == "model" for kind in others]) == pytest.approx(computed, abs=0.05)
        fonts = np.mean([kind == "sf2" for kind in others])
        assert fonts == pytest.approx((1 - computed) / 3, abs=0.05)


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


def groove_folder(root: Path, bars: int = 10) -> None:
    """Write a data set of two beats of drums: kick and open hat on quarters, at 100 and 160."""
    folder = root / human.FOLDER
    folder.mkdir(parents=True)
    rows = ["id,style,bpm,beat_type,time_signature,midi_filename,duration,split"]
    for tempo in (100, 160):
        track = mido.MidiTrack()
        for beat in range(4 * bars):
            key = 36 if beat % 4 == 0 else 26
            track.append(mido.Message("note_on", channel=9, note=key, velocity=80, time=0))
            track.append(mido.Message("note_off", channel=9, note=key, time=480))
        mido.MidiFile(ticks_per_beat=480, tracks=[track]).save(folder / f"{tempo}.mid")
        seconds = 4 * bars * 60 / tempo
        rows.append(f"d/{tempo},rock,{tempo},beat,4-4,{tempo}.mid,{seconds},train")
        rows.append(f"d/fill,rock,{tempo},fill,4-4,none.mid,{seconds},train")
        rows.append(f"d/held,rock,{tempo},beat,4-4,none.mid,{seconds},test")
    (folder / "info.csv").write_text("\n".join(rows) + "\n")


@pytest.fixture
def grooves(tmp_path, monkeypatch):
    monkeypatch.setenv("MGDM_CORPUS_SOURCES", str(tmp_path))
    human.performances.cache_clear()
    yield tmp_path
    human.performances.cache_clear()


@pytest.mark.parametrize("bars", [4, 25])
def test_human_drums_keep_to_the_bars(grooves, bars):
    groove_folder(grooves)
    notes, name = human.human_drums(105, bars, np.random.default_rng(0))
    assert name == "groove/d/100 rock"
    assert set(notes[:, 2]) == {36, 46}  # the TD-11's edge of the open hat is General MIDI's 46
    kicks = notes[notes[:, 2] == 36, 0]
    assert np.allclose(kicks, 4 * np.arange(bars))
    assert notes[:, 0].max() < 4 * bars
    assert (np.diff(notes[:, 0]) >= 0).all()
    assert human.human_drums(300, bars, np.random.default_rng(0))[1] == "groove/d/160 rock"


def test_human_drums_name_what_is_missing(grooves):
    with pytest.raises(MissingProgram, match="zharry29/drums-with-llm"):
        human.human_drums(100, 8, np.random.default_rng(0))


def test_card_counts_songs_once_and_parts_by_package(tmp_path):
    label = next(p.label for p in read_patches() if p.package == "deb:freepats")
    line = json.dumps({"song": 3, "patches": [[f"{label} (reverb)"], [], ["gone"], []]})
    (tmp_path / "index.jsonl").write_text(line + "\n" + line + "\n")
    songs = read_index(tmp_path)
    assert len(songs) == 1
    rows = use_table(songs)
    stem = next(p.stem for p in read_patches() if p.label == label)
    assert any(row.startswith("| deb:freepats | ") and "100 %" in row for row in rows), stem
    assert any(row.startswith("| no longer in sources.tsv") for row in rows)


def _rendering_is_possible() -> bool:
    try:
        check_files(Palette("test").patches)
        sfizz()
    except RuntimeError:
        return False
    return bool(shutil.which("mma")) and bool(shutil.which("fluidsynth"))


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


def test_a_folder_keeps_to_the_options_of_its_songs(tmp_path):
    def render(split, number, seed, permissive_only):
        line = {"song": number, "seed": seed, "file": f"{number:06d}.npy", "samples": 22050}
        return np.zeros((4, 22050), np.int16), line

    index = tmp_path / "index.jsonl"
    work = Render(tmp_path, "train", 0, False, render)
    render_missing(work, 0, 2, "local", 1)
    whole = index.read_text()
    assert [line["song"] for line in read_lines(index)] == [0, 1]
    # A line that was cut off is a song that is missing.
    index.write_text(whole + '{"song": 2, "se')
    render_missing(work, 0, 3, "local", 1)
    assert [line["song"] for line in read_lines(index)] == [0, 1, 2]
    assert index.read_text().startswith(whole)
    for other in ({"seed": 5}, {"permissive_only": True}, {"split": "test"}, {"voices": True}):
        with pytest.raises(click.ClickException, match=f"{next(iter(other))} = .*another folder"):
            render_missing(dataclasses.replace(work, **other), 0, 4, "local", 1)
    # Other numbers of a folder may be others' business.
    render_missing(dataclasses.replace(work, voices=True), 3, 1, "local", 1)
    assert [line["song"] for line in read_lines(index)] == [0, 1, 2, 3]
