"""Folders of stems are scored, summarised and written as tables."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from mgdm_audio import STEMS, metrics
from mgdm_audio.evaluate import Evaluation, evaluate_folders, evaluate_track

RATE = 22050


def signals(seconds: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Reference stems and estimates with some of the other stems in them."""
    generator = np.random.default_rng(seed)
    r = generator.standard_normal((4, int(seconds * RATE))) * 0.05
    e = 0.9 * r + 0.1 * r.sum(0) + 0.005 * generator.standard_normal(r.shape)
    return r.astype(np.float32), e.astype(np.float32)


def write(folder: Path, stems: np.ndarray, rate: int = RATE, extension: str = "wav") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    subtype = "FLOAT" if extension == "wav" else "PCM_24"
    for name, samples in zip(STEMS, stems, strict=True):
        sf.write(folder / f"{name}.{extension}", samples.T, rate, subtype=subtype)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for seed, name in enumerate(["a song", "b"]):
        r, e = signals(13 + seed, seed)
        write(tmp_path / "true" / name, r)
        write(tmp_path / "guess" / name, e)
    return tmp_path / "true", tmp_path / "guess"


def test_folders_of_tracks(folders: tuple[Path, Path]) -> None:
    steps: list[tuple[int, int]] = []
    evaluation = evaluate_folders(*folders, callback=lambda *step: steps.append(step))
    assert steps == [(1, 2), (2, 2)]
    assert [track.name for track in evaluation.tracks] == ["a song", "b"]
    pairs = [signals(13 + seed, seed) for seed in (0, 1)]
    windows = [metrics.score_windows(r, e).improvement for r, e in pairs]
    summary = evaluation.summary()
    pooled = np.concatenate(windows).mean(0)
    assert list(summary["track_mean"]) == [*STEMS, "all"]
    np.testing.assert_allclose([summary["track_mean"][s] for s in STEMS], pooled)
    assert summary["track_mean"]["all"] == pytest.approx(pooled.mean())
    # Every stem is active: the readings of the same windows agree.
    assert summary["active_mean"] == pytest.approx(summary["track_mean"])
    chunks = np.concatenate([metrics.chunk_scores(r, e) for r, e in pairs]).mean(0)
    np.testing.assert_allclose([summary["chunk_mean"][s] for s in STEMS], chunks)
    assert summary["chunks"] == 2
    assert summary["windows"] == summary["windows_total"] == 12
    for key in ("track_interval", "active_interval"):
        for stem in (*STEMS, "all"):
            low, high = summary[key][stem]
            assert low <= summary["track_mean"][stem] <= high
    row = evaluation.tracks[1].summary()
    np.testing.assert_allclose([row["track_mean"][s] for s in STEMS], windows[1].mean(0))


def test_one_track_directly_and_flac(tmp_path: Path) -> None:
    r, e = signals(5, 0)
    write(tmp_path / "true", r, extension="flac")
    write(tmp_path / "guess", e)
    (track,) = evaluate_folders(tmp_path / "true", tmp_path / "guess").tracks
    assert track.name == "true"
    expected = metrics.score_windows(r, e).improvement
    np.testing.assert_allclose(track.windows.improvement, expected, atol=1e-3)
    assert track.summary()["chunks"] == 0
    assert np.isnan(track.summary()["chunk_mean"]["all"])


def test_channels_are_averaged(tmp_path: Path) -> None:
    r, e = signals(5, 0)
    write(tmp_path / "true", np.stack([1.5 * r, 0.5 * r], axis=1))
    write(tmp_path / "guess", e)
    (track,) = evaluate_folders(tmp_path / "true", tmp_path / "guess").tracks
    expected = metrics.score_windows(r, e).improvement
    np.testing.assert_allclose(track.windows.improvement, expected, atol=1e-4)


def test_a_stem_that_the_reference_lacks_is_silent(folders: tuple[Path, Path]) -> None:
    true, guess = folders
    (true / "b" / "guitar.wav").unlink()
    e = np.full(14 * RATE, 0.01, dtype=np.float32)
    sf.write(guess / "b" / "guitar.wav", e, RATE, subtype="FLOAT")
    evaluation = evaluate_folders(true, guess)
    row = evaluation.tracks[1].summary()
    assert row["silent_share"]["guitar"] == 1
    assert row["silent_level_db"]["guitar"] == pytest.approx(-40, abs=1e-3)
    assert np.isnan(row["active_mean"]["guitar"])
    assert row["active_mean"]["all"] == pytest.approx(
        np.mean([row["active_mean"][s] for s in STEMS if s != "guitar"])
    )
    # In the published reading silence is scored: the mixture's level over the estimate's.
    r, _ = signals(14, 1)
    r[2] = 0
    level = metrics.level_db(r.sum(0)) + 40
    assert row["track_mean"]["guitar"] == pytest.approx(level, abs=0.1)
    summary = evaluation.summary()
    assert summary["active_mean"]["guitar"] == pytest.approx(
        evaluation.tracks[0].summary()["active_mean"]["guitar"]
    )
    assert 0 < summary["silent_share"]["guitar"] < 1


def test_residual_and_silent_estimates() -> None:
    r, e = signals(5, 0)
    e[1] = 0
    track = evaluate_track(r, e, RATE)
    expected = metrics.level_db(r.sum(0) - e.sum(0)) - metrics.level_db(r.sum(0))
    assert track.residual_db == pytest.approx(expected, abs=1e-4)
    assert track.summary()["silent_estimates"] == {
        "bass": 0,
        "drums": 1,
        "guitar": 0,
        "piano": 0,
        "all": 0.25,
    }


def test_tables(folders: tuple[Path, Path], tmp_path: Path) -> None:
    evaluation = evaluate_folders(*folders)
    evaluation.to_csv(tmp_path / "scores.csv")
    with open(tmp_path / "scores.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["track"], row["stem"]) for row in rows] == [
        (track, stem) for track in ("a song", "b") for stem in STEMS
    ]
    first = evaluation.tracks[0].summary()
    assert float(rows[0]["active_mean"]) == pytest.approx(first["active_mean"]["bass"], abs=1e-5)
    assert rows[0]["silent_level_db"] == ""

    evaluation.windows_to_csv(tmp_path / "windows.csv")
    with open(tmp_path / "windows.csv", newline="", encoding="utf-8") as file:
        windows = list(csv.DictReader(file))
    assert len(windows) == 12
    assert windows[1]["start_sample"] == "44100"
    assert windows[0]["piano_active"] == "1"
    assert not list(tmp_path.glob(".*.part"))

    text = evaluation.to_markdown()
    assert "| a song |" in text
    assert f"{evaluation.summary()['track_mean']['all']:.2f} [" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {7}

    data = evaluation.to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["summary"]["silent_level_db"]["all"] is None
    assert list(data["tracks"]) == ["a song", "b"]


def test_a_single_track_has_no_interval() -> None:
    evaluation = Evaluation((evaluate_track(*signals(5, 0), RATE),))
    assert "[" not in evaluation.to_markdown().split("\n| SI-SDRi, chunk")[0].split("brackets")[1]
    assert evaluation.to_dict()["summary"]["track_interval"]["all"] == [None, None]


def test_museval_is_part_of_the_tables(tmp_path: Path) -> None:
    rate = 1000
    r = np.random.default_rng(0).standard_normal((4, 3 * rate))
    r[3] = 0
    e = r + 0.1 * np.random.default_rng(1).standard_normal(r.shape)
    e[2] = 0
    try:
        track = evaluate_track(r, e, rate, museval=True)
    except RuntimeError as error:
        pytest.skip(str(error))
    evaluation = Evaluation((track,))
    sdr = evaluation.summary()["museval"]["sdr"]
    assert sdr["bass"] == pytest.approx(20, abs=4)
    assert sdr["guitar"] == 0
    assert np.isnan(sdr["piano"])
    text = evaluation.to_markdown()
    assert "museval SDR" in text
    assert "museval left out 1 stems" in text
    assert "1 estimates are silent throughout" in text
    evaluation.to_csv(tmp_path / "scores.csv")
    assert "museval_sdr" in (tmp_path / "scores.csv").read_text()


def test_missing_estimates_are_named(folders: tuple[Path, Path]) -> None:
    true, guess = folders
    (guess / "b" / "drums.wav").unlink()
    with pytest.raises(FileNotFoundError, match=r"guess/b/drums\.wav"):
        evaluate_folders(true, guess)
    with pytest.raises(FileNotFoundError, match="and 4 more"):
        evaluate_folders(true, true.parent)


def test_folders_without_stems_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        evaluate_folders(tmp_path / "nowhere", folders[1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no reference stems: expected bass\.wav"):
        evaluate_folders(tmp_path / "empty", folders[1])


def test_lengths_rates_and_nan_are_refused_with_the_path(folders: tuple[Path, Path]) -> None:
    true, guess = folders
    path = guess / "b" / "bass.wav"
    good = path.read_bytes()
    samples, _ = sf.read(path, dtype="float32")
    sf.write(path, samples[:-1], RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"guess/b/bass\.wav has 308699 samples"):
        evaluate_folders(true, guess)
    sf.write(path, samples, 44100, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"guess/b/bass\.wav is at 44100 Hz"):
        evaluate_folders(true, guess)
    samples[5] = np.nan
    sf.write(path, samples, RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"bass\.wav"):
        evaluate_folders(true, guess)
    path.write_text("not audio")
    with pytest.raises(ValueError, match=r"bass\.wav"):
        evaluate_folders(true, guess)
    path.write_bytes(good)
    evaluate_folders(true, guess)


def test_what_headers_tell_is_named_at_once_before_anything_is_scored(
    folders: tuple[Path, Path],
) -> None:
    true, guess = folders
    steps: list[tuple[int, int]] = []
    samples = np.zeros(14 * RATE, dtype=np.float32)
    sf.write(guess / "b" / "bass.wav", samples[1:], RATE)
    sf.write(guess / "b" / "drums.wav", samples, 44100)
    (guess / "a song" / "piano.wav").write_text("not audio")
    with pytest.raises(ValueError, match="before scoring") as caught:
        evaluate_folders(true, guess, callback=lambda *step: steps.append(step))
    for text in ("a song/piano.wav: is not", "b/bass.wav has 308699", "b/drums.wav is at 44100"):
        assert text in str(caught.value)
    assert not steps


def test_a_header_that_declares_no_length_is_no_mismatch(tmp_path: Path) -> None:
    r, e = signals(5, 0)
    write(tmp_path / "true", r, extension="flac")
    write(tmp_path / "guess", e)
    path = tmp_path / "true" / "drums.flac"
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # 36 bits: what an encoder leaves that writes to a pipe
    data[22:26] = bytes(4)
    path.write_bytes(data)
    assert len(evaluate_folders(tmp_path / "true", tmp_path / "guess").tracks) == 1


def test_a_track_that_fails_does_not_stop_the_others(folders: tuple[Path, Path]) -> None:
    true, guess = folders
    failed: list[tuple[str, str]] = []
    for at, name in ((5, "b"), (6, "a song")):
        path = guess / name / "bass.wav"
        samples, _ = sf.read(path, dtype="float32")
        samples[at] = np.nan
        sf.write(path, samples, RATE, subtype="FLOAT")
        with pytest.raises(ValueError, match=r"bass\.wav: holds a nan"):
            evaluate_folders(true, guess)
        if name == "b":
            one = evaluate_folders(
                true, guess, failed=lambda name, error: failed.append((name, str(error)))
            )
            assert [track.name for track in one.tracks] == ["a song"]
            assert failed[0][0] == "b"
            assert "b/bass.wav: holds a nan" in failed[0][1]
    with pytest.raises(ValueError, match="none of the 2 tracks"):
        evaluate_folders(true, guess, failed=lambda *_: None)


def test_a_silent_mixture_has_no_residual() -> None:
    silence = np.zeros((4, 3 * RATE))
    silent = evaluate_track(silence, silence, RATE)
    assert np.isnan(silent.residual_db)
    track = evaluate_track(*signals(3, 0), RATE)
    assert track.residual_db < -9
    assert Evaluation((silent, track)).summary()["residual_db"] == track.residual_db
    assert Evaluation((silent,)).to_dict()["summary"]["residual_db"] is None


def test_a_stem_that_plays_in_no_track_leaves_the_others_their_interval() -> None:
    tracks = []
    for seed in range(3):
        r, e = signals(5, seed)
        r[2] = 0
        tracks.append(evaluate_track(r, e, RATE, name=str(seed)))
    summary = Evaluation(tuple(tracks)).summary()
    low, high = summary["active_interval"]["all"]
    assert low <= summary["active_mean"]["all"] <= high
    assert np.isnan(summary["active_interval"]["guitar"]).all()


def test_arrays_that_do_not_fit_are_refused() -> None:
    r, e = signals(2, 0)
    with pytest.raises(ValueError, match="bass, drums, guitar, piano"):
        evaluate_track(r[:3], e[:3], RATE)
    with pytest.raises(ValueError, match="same number of samples"):
        evaluate_track(r, e[:, 1:], RATE)
    with pytest.raises(ValueError, match="at least one track"):
        Evaluation(())
