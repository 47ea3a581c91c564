"""Slakh2100 to four stems: on a miniature of the official layout, with its faults."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from mini_slakh import RATE, ROOT, Mini, entry, tone

from recipes.prior.data import StemCorpus
from recipes.slakh2100 import download, prepare
from recipes.slakh2100.prepare import read_list
from recipes.slakh2100.tracks import load_record, prepare_track, stem_of


@pytest.fixture
def mini(tmp_path: Path) -> Mini:
    """Four tracks: whole ones in two splits, one with every fault, one omitted from redux."""
    mini = Mini(tmp_path / "tree")
    mini.standard(1, "train", 1.0)
    mini.standard(1876, "test", 1.0)
    mini.track(1501, "validation", {
        "S00": (entry(34, "Bass"), tone(60, 0.5)),
        "S01": (entry(128, "Drums", drum=True), b"fLaC, but no more than that"),
        "S02": (entry(26, "Guitar"), np.stack([tone(330, 1.0, 0.2), tone(330, 1.0, 0.4)], 1)),
        "S03": (entry(27, "Guitar"), tone(330, 1.0, 0.9)),
        "S04": (entry(28, "Guitar"), None),
        "S05": (entry(29, "Guitar"), b""),
        "S06": (entry(31, "Guitar"), np.zeros(RATE)),
        "S07": (entry(80, "Synth Lead"), tone(990, 1.0)),
    })  # fmt: skip
    mini.standard(49, "omitted", 0.5)
    return mini


def run(*args: str) -> str:
    result = CliRunner().invoke(prepare.main, [*args, "--workers", "1"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_lists_have_the_published_sizes():
    sizes = {
        name: dict(Counter(read_list(name).values())) for name in ("redux", "original", "split2")
    }
    assert sizes["redux"] == {"train": 1289, "valid": 270, "test": 151}
    assert sizes["original"] == sizes["split2"] == {"train": 1500, "valid": 375, "test": 225}
    original, second = read_list("original"), read_list("split2")
    moved = Counter(original[track] for track in original if original[track] != second[track])
    assert moved == {"train": 151, "valid": 107, "test": 70}
    assert original["Track01500"] == "train"
    assert original["Track01501"] == "valid"
    assert original["Track01876"] == "test"
    assert "Track02098" in read_list("redux")
    assert "Track02099" not in read_list("redux")


@pytest.mark.parametrize(
    ("program", "stem"),
    [
        (0, "piano"), (7, "piano"), (8, None), (23, None), (24, "guitar"), (31, "guitar"),
        (32, "bass"), (39, "bass"), (40, None), (128, "drums"), (None, None), ("33", None),
    ],
)  # fmt: skip
def test_classes_by_program(program, stem):
    assert stem_of({"program_num": program, "is_drum": False}) == stem


def test_drum_flag_counts():
    assert stem_of({"program_num": 5, "is_drum": True}) == "drums"
    assert stem_of("not a mapping") is None


def test_archive_to_stems(mini: Mini, tmp_path: Path) -> None:
    archive = mini.archive(tmp_path / "slakh.tar.gz")
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    out = tmp_path / "data"
    output = run(str(archive), "--out", str(out), "--md5", md5, "--list", "all")
    assert "4 of 4 tracks" in output
    unpacked = sorted(p.relative_to(out / "unpacked") for p in (out / "unpacked").rglob("*.*"))
    assert all(p.suffix in (".flac", ".yaml") and "mix" not in p.name for p in unpacked)
    corpus = StemCorpus(out / "redux" / "train")
    assert [song["track"] for song in corpus.songs] == ["Track00001"]
    stems = corpus.stems(0) / 32768
    assert stems.shape == (4, 22050)
    rng = np.random.default_rng([1, 0])
    rng.normal(size=RATE)
    f = float(rng.uniform(0.9, 1.1))
    t = np.arange(22050) / 22050
    inner = slice(500, -500)  # away from the resampler's ends
    expected = {
        0: 0.2 * np.sin(2 * np.pi * 60 * f * t),
        2: 0.1 * (np.sin(2 * np.pi * 330 * f * t) + np.sin(2 * np.pi * 495 * f * t)),
        3: 0.1 * (np.sin(2 * np.pi * 880 * f * t) + np.sin(2 * np.pi * 1100 * f * t)),
    }
    for row, wave in expected.items():
        assert np.abs(stems[row] - wave)[inner].max() < 2e-4
    assert stems[1].any()
    # Omitted from redux, but in the other lists.
    tracks = {
        (name, split): [song["track"] for song in StemCorpus(out / name / split).songs]
        for name in prepare.NAMES
        for split in prepare.SPLITS.values()
    }
    assert tracks["original", "train"] == ["Track00001", "Track00049"]
    assert not any("Track00049" in tracks["redux", split] for split in prepare.SPLITS.values())
    for name in prepare.NAMES:
        assert tracks[name, read_list(name)["Track01501"]] == ["Track01501"]


def test_faults_are_counted_and_stop_nothing(mini: Mini, tmp_path: Path) -> None:
    (mini.folder / ROOT / "train" / "Track00002").mkdir()
    broken = mini.track(4, "train", {"S00": (entry(33, "Bass"), None)})
    (broken / "metadata.yaml").write_text("stems: [unclosed")
    mini.track(5, "train", {"S00": (entry(48, "Strings"), tone(60, 0.1))})
    output = run(str(mini.folder / ROOT), "--out", str(tmp_path / "data"), "--list", "all")
    assert "4 of 7 tracks" in output
    track = load_record(tmp_path / "data" / "tracks" / "Track01501.json")
    assert track is not None
    assert dict(track.counts()) == {
        "unreadable": 2, "missing": 1, "channels": 1, "unequal": 1, "silent": 1, "clipped": 1,
    }  # fmt: skip
    assert track.sources == {"bass": 1, "guitar": 3}
    assert track.others == 1
    stems = np.load(tmp_path / "data" / "tracks" / "Track01501.npy")
    assert stems.dtype == np.int16
    assert not stems[[1, 3]].any()  # no drums could be read, no piano there is
    assert stems[0, :11000].any()
    assert not stems[0, 11100:].any()  # the shorter source was padded
    assert stems[2].max() == 32767  # the mean of two channels 0.3, and 0.9: beyond full scale
    for kind in ("metadata missing", "no source of the four classes"):
        assert kind in output
    summary = (tmp_path / "data" / "summary.md").read_text()
    assert "| source file empty or not audio | 2 | Track01501 |" in summary
    assert "Track00002, Track00004" in summary


def test_sources_of_different_rates(tmp_path: Path) -> None:
    mini = Mini(tmp_path)
    path = mini.track(1, "train", {
        "S00": (entry(33, "Bass"), tone(60, 0.2)), "S01": (entry(0, "Piano"), tone(60, 0.2)),
    })  # fmt: skip
    import soundfile

    soundfile.write(path / "stems" / "S01.flac", np.zeros(1600), 16000)
    (tmp_path / "out").mkdir()
    track = prepare_track(str(path), "Track00001", str(tmp_path / "out"))
    assert track.samples == 0
    assert track.counts()["rates"] == 1


def test_any_order_any_number_of_processes_interrupted(mini: Mini, tmp_path: Path) -> None:
    source = str(mini.folder / ROOT)
    run(source, "--out", str(tmp_path / "a"), "--list", "all")
    result = CliRunner().invoke(
        prepare.main, [source, "--out", str(tmp_path / "b"), "--list", "all", "--workers", "2"]
    )
    assert result.exit_code == 0
    # Interrupted: one track is not there, another was cut off before its record was written.
    run(source, "--out", str(tmp_path / "c"), "--list", "all")
    for name in ("Track00001.npy", "Track00001.json", "Track01501.json"):
        (tmp_path / "c" / "tracks" / name).unlink()
    run(source, "--out", str(tmp_path / "c"), "--list", "all")
    files = sorted(
        p.relative_to(tmp_path / "a")
        for p in (tmp_path / "a").rglob("*.*")
        if "unpacked" not in p.parts
    )
    assert len(files) > 10
    for other in ("b", "c"):
        for file in files:
            assert (tmp_path / other / file).read_bytes() == (tmp_path / "a" / file).read_bytes()


def test_a_second_call_does_nothing(mini: Mini, tmp_path: Path) -> None:
    archive = mini.archive(tmp_path / "slakh.tar.gz")
    args = [str(archive), "--out", str(tmp_path / "data"), "--unverified"]
    run(*args)
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "data" / "tracks").iterdir()}
    assert "0 files unpacked" in run(*args)
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "data" / "tracks").iterdir()}


def test_what_is_all_there_is_not_unpacked_again(mini, tmp_path, monkeypatch) -> None:
    """The unpacked archive may be deleted."""
    listed = {"Track00001": "train", "Track01876": "test", "Track01501": "valid"}
    monkeypatch.setattr(prepare, "read_list", lambda name: listed)
    archive = mini.archive(tmp_path / "slakh.tar.gz")
    args = [str(archive), "--out", str(tmp_path / "data"), "--unverified"]
    first = run(*args)
    shutil.rmtree(tmp_path / "data" / "unpacked")
    again = run(*args)
    assert not (tmp_path / "data" / "unpacked").exists()
    assert first.endswith(again)  # the summary
    (tmp_path / "data" / "tracks" / "Track01876.npy").unlink()
    assert "files unpacked" in run(*args)
    assert (tmp_path / "data" / "tracks" / "Track01876.npy").is_file()


def test_a_repaired_source_is_taken_up(mini: Mini, tmp_path: Path) -> None:
    source = str(mini.folder / ROOT)
    run(source, "--out", str(tmp_path / "data"))
    before = np.load(tmp_path / "data" / "tracks" / "Track01501.npy")
    stem = mini.folder / ROOT / "validation" / "Track01501" / "stems" / "S04.flac"
    import soundfile

    soundfile.write(stem, tone(500, 1.0, 0.1), RATE)
    run(source, "--out", str(tmp_path / "data"))
    assert not np.array_equal(np.load(tmp_path / "data" / "tracks" / "Track01501.npy"), before)


def test_nothing_usable_is_an_error_and_can_be_mended(mini, tmp_path, monkeypatch) -> None:
    """A tree without metadata leaves every track out; the archive then brings them."""
    listed = {"Track00001": "train", "Track01876": "test", "Track01501": "valid"}
    monkeypatch.setattr(prepare, "read_list", lambda name: listed)
    archive = mini.archive(tmp_path / "slakh.tar.gz")
    for path in (mini.folder / ROOT).glob("*/*/metadata.yaml"):
        path.unlink()
    args = ["--out", str(tmp_path / "data"), "--workers", "1"]
    result = CliRunner().invoke(prepare.main, [str(mini.folder / ROOT), *args])
    assert result.exit_code == 1
    assert "none of the 3 tracks could be used" in result.output
    assert "summary.md" in result.output
    output = run(str(archive), *args[:2], "--unverified")
    assert "3 of 3 tracks" in output


def ready(folder: Path, stems: dict[str, np.ndarray], rate: int = 22050) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, samples in stems.items():
        soundfile.write(folder / f"{stem}.wav", samples, rate, subtype="FLOAT")
    return folder


def test_ready_stems_of_the_authors_of_msdm(tmp_path: Path) -> None:
    """Four files a track at 22.05 kHz; a stem that is absent is silent."""
    rng = np.random.default_rng(0)
    bass, drums = rng.normal(0, 0.1, 22050), rng.normal(0, 0.1, 22050 + 2205)
    tree = tmp_path / "slakh2100"
    first = ready(tree / "train" / "Track00001", {"bass": bass, "drums": drums})
    ready(tree / "test" / "Track01876", {"piano": bass, "guitar": rng.normal(0, 0.1, 24256)})
    ready(tree / "validation" / "Track01501", {"bass": bass}, rate=44100)
    ready(tree / "train" / "Track00002", {"guitar": bass})
    out = tmp_path / "data"
    output = run(str(tree), "--out", str(out))
    assert "2 of 4 tracks" in output
    assert (
        "| ready stems that differ by more than 0.1 s (track left out) | 1 | Track01876 |" in output
    )
    assert "than 22050 Hz (track left out) | 1 | Track01501 |" in output
    corpus = StemCorpus(out / "redux" / "train")
    assert [song["track"] for song in corpus.songs] == ["Track00001", "Track00002"]
    assert [song["sources"] for song in corpus.songs] == [[1, 1, 0, 0], [0, 0, 1, 0]]
    stems = corpus.stems(0)
    assert stems.shape == (4, 22050)
    assert np.array_equal(stems[0], np.rint(bass.astype(np.float32) * 32768.0))
    assert np.array_equal(stems[1], np.rint(drums[:22050].astype(np.float32) * 32768.0))
    assert not stems[2:].any()
    track = load_record(out / "tracks" / "Track00001.json")
    assert track is not None
    assert track.faults == [("ready_longer", "drums")]
    # What has changed is taken up, and nothing else.
    times = {p: p.stat().st_mtime_ns for p in (out / "tracks").iterdir()}
    run(str(tree), "--out", str(out))
    assert times == {p: p.stat().st_mtime_ns for p in (out / "tracks").iterdir()}
    ready(first, {"piano": bass})
    run(str(tree), "--out", str(out))
    assert StemCorpus(out / "redux" / "train").stems(0)[3].any()
    changed = {p for p, time in times.items() if p.stat().st_mtime_ns != time}
    assert {p.stem for p in changed} == {"Track00001"}


def test_metadata_goes_before_ready_stems(mini: Mini, tmp_path: Path) -> None:
    folder = ready(tmp_path / "Track00001", {"bass": np.full(22050, 0.1)})
    (tmp_path / "out").mkdir()
    assert prepare_track(str(folder), "Track00001", str(tmp_path / "out")).samples == 22050
    shutil.copytree(mini.folder / ROOT / "train" / "Track00001", folder, dirs_exist_ok=True)
    again = prepare_track(str(folder), "Track00001", str(tmp_path / "out"))
    assert again.sources == {"bass": 1, "drums": 1, "guitar": 2, "piano": 2}


def test_tracks_of_a_list_that_are_absent() -> None:
    listed = [track for track, split in read_list("original").items() if split == "test"]
    assert prepare.absent("original", "test", listed[:-2]) == listed[-2:]
    assert prepare.absent("redux", "test", listed) == []
    assert prepare.absent("my own", "test", []) == []


def test_wrong_checksum_is_refused(mini: Mini, tmp_path: Path) -> None:
    archive = mini.archive(tmp_path / "slakh2100_flac_redux.tar.gz")
    result = CliRunner().invoke(prepare.main, [str(archive), "--out", str(tmp_path / "data")])
    assert result.exit_code == 1
    assert "f4b71b6c45ac9b506f59788456b3f0c4" in result.output
    assert not (tmp_path / "data").exists()
    other = archive.rename(tmp_path / "other.tar.gz")
    with pytest.raises(ValueError, match="no checksum is known"):
        download.verify(other)


def hostile(path: Path) -> Path:
    """An archive whose members try to get out of the folder."""
    with tarfile.open(path, "w:gz") as tar:

        def add(name: str, data: bytes = b"x", **fields: object) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(data) if not fields else 0
            for key, value in fields.items():
                setattr(member, key, value)
            tar.addfile(member, None if fields else io.BytesIO(data))

        add("../../evil.txt")
        add("/tmp/Track00001/stems/S00.flac", b"absolute")
        add("a/../../../Track00002/stems/S00.flac", b"up")
        add("Track00003/stems/S01.flac", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add("Track00003/stems/S02.flac", type=tarfile.LNKTYPE, linkname="../../evil.txt")
        add("Track00003/stems/S03.flac", type=tarfile.CHRTYPE)
        add("Track00003/stems/S04.flac/../../../evil.flac")
        add("Track00003/stems/S99999.flac")
        add("Track00004/metadata.yaml", b"stems: {}")
    return path


def test_an_archive_cannot_leave_its_folder(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "data"
    assert download.extract(hostile(tmp_path / "evil.tar.gz"), target) == 3
    written = sorted(str(p.relative_to(target)) for p in target.rglob("*") if p.is_file())
    assert written == [
        "Track00001/stems/S00.flac", "Track00002/stems/S00.flac", "Track00004/metadata.yaml",
    ]  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "evil.tar.gz"]
    assert not any(p.is_symlink() for p in target.rglob("*"))


def test_damaged_archives(mini: Mini, tmp_path: Path) -> None:
    archive = mini.archive(tmp_path / "slakh.tar.gz")
    data = archive.read_bytes()
    archive.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="damaged"):
        download.extract(archive, tmp_path / "out")
    archive.write_bytes(data)
    download.extract(archive, tmp_path / "out")
    fresh = tmp_path / "fresh"
    download.extract(archive, fresh)
    for path in fresh.rglob("*.*"):
        assert (tmp_path / "out" / path.relative_to(fresh)).read_bytes() == path.read_bytes()
    (tmp_path / "text.tar.gz").write_text("hello")
    with pytest.raises(ValueError, match="not a tar archive"):
        download.extract(tmp_path / "text.tar.gz", tmp_path / "out2")
    with tarfile.open(tmp_path / "empty.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("readme"))
    with pytest.raises(ValueError, match="holds no TrackNNNNN"):
        download.extract(tmp_path / "empty.tar", tmp_path / "out2")


def test_folders_without_tracks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no folders"):
        download.find_tracks(tmp_path)
    for split in ("train", "test"):
        (tmp_path / split / "Track00001").mkdir(parents=True)
    with pytest.raises(ValueError, match="twice"):
        download.find_tracks(tmp_path)


def test_yaml_runs_nothing(tmp_path: Path) -> None:
    mini = Mini(tmp_path)
    path = mini.track(1, "train", {"S00": (entry(33, "Bass"), tone(60, 0.1))})
    (path / "metadata.yaml").write_text(
        f"stems: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']"
    )
    (tmp_path / "out").mkdir()
    track = prepare_track(str(path), "Track00001", str(tmp_path / "out"))
    assert track.faults == [("metadata", "")]
    assert not (tmp_path / "made").exists()
    record = json.loads((tmp_path / "out" / "Track00001.json").read_text())
    assert record["samples"] == 0
