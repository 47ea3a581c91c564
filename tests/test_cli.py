"""The command line as a user meets it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from click.testing import CliRunner

from mgdm_audio import STEMS, cli, cost, hub, separate, write
from mgdm_audio import run as running
from mgdm_audio.samplers.mgdm import MGDM
from mgdm_audio.tree import work_folder

QUICK = MGDM(sigma_max=1.0, steps=6, repetitions=1, gradient_steps=((0, 2),))


@pytest.fixture
def run(monkeypatch, tmp_path, prior):
    """Runs the command in a folder of its own, with a prior that costs nothing."""
    load = hub.load
    monkeypatch.setattr(
        separate.hub, "load", lambda name, device="cpu": prior if name == "default" else load(name)
    )
    monkeypatch.setitem(MGDM.PRESETS, "default", QUICK)
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str):
        return CliRunner().invoke(cli.cli, [*arguments])

    return invoke


@pytest.fixture
def song(tmp_path, music):
    path = tmp_path / "song.wav"
    sf.write(path, music.sum(0), 22050, subtype="PCM_16")
    return path


def test_help_is_quick_and_light():
    code = (
        "import sys, mgdm_audio.cli as c\n"
        "try: c.cli(['separate', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'librosa', 'numpy', 'soundfile'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--seed" in done.stdout


def test_separates_a_file(run, song):
    result = run("separate", "song.wav", "--seed", "3")
    assert result.exit_code == 0, result.output
    paths = [f"separated/song/{name}.wav" for name in STEMS]
    assert result.stdout.split() == paths
    assert "seed 3" in result.stderr
    assert "residual" in result.stderr
    assert "100 %" in result.stderr
    total = sum(sf.read(path, dtype="int16")[0].astype(int) for path in paths)
    assert np.array_equal(total, sf.read(song, dtype="int16")[0])
    assert not list(song.parent.rglob("*.part"))


def test_same_seed_same_bytes(run, song):
    for folder in ("a", "b"):
        assert run("separate", "song.wav", "--seed", "0", "-o", folder, "-q").exit_code == 0
    for name in STEMS:
        a, b = (song.parent / folder / "song" / f"{name}.wav" for folder in ("a", "b"))
        assert a.read_bytes() == b.read_bytes()


def test_existing_stems(run, song):
    assert run("separate", "song.wav", "-q").exit_code == 0
    again = run("separate", "song.wav", "-q")
    assert again.exit_code == 1
    assert "--overwrite" in again.stderr
    assert run("separate", "song.wav", "--skip-existing", "-q").exit_code == 0
    assert run("separate", "song.wav", "--overwrite", "-q").exit_code == 0
    (song.parent / "separated" / "song" / "bass.wav").unlink()
    for option in ("--skip-existing", "--resume"):
        some = run("separate", "song.wav", option, "-q")
        assert some.exit_code == 1
        assert "others are missing; use --overwrite\n" in some.stderr


def test_bad_files_do_not_stop_the_others(run, song, tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("not audio at all")
    sf.write(tmp_path / "none.wav", np.zeros((0, 1)), 22050)
    sf.write(tmp_path / "nan.wav", np.array([0.0, np.nan, 0.1], np.float32), 22050, subtype="FLOAT")
    names = ["missing.wav", "empty.wav", "text.wav", "none.wav", "nan.wav", "song.wav"]
    result = run("separate", *names, "-q")
    assert result.exit_code == 1
    errors = result.stderr.strip().splitlines()
    assert len(errors) == 5
    for name, line in zip(names, errors, strict=False):
        assert line.startswith("error: ")
        assert name in line
    assert sorted(p.name for p in (tmp_path / "separated").iterdir()) == ["song"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_unwritable_folder(run, song, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    result = run("separate", "song.wav", "-o", "locked/out")
    assert result.exit_code == 1
    assert "locked" in result.stderr


def test_output_under_a_file(run, song, tmp_path):
    (tmp_path / "file").write_text("x")
    result = run("separate", "song.wav", "-o", "file/out")
    assert result.exit_code == 1
    assert "file" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "arguments", [("--model", "nothing"), ("--device", "cuda:42"), ("--device", "warp")]
)
def test_what_is_not_there(run, song, tmp_path, arguments):
    result = run("separate", "song.wav", *arguments)
    assert result.exit_code == 1
    assert arguments[1] in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "separated").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--preset", "nothing"),
        ("--method", "nothing"),
        ("--seed", "-1"),
        ("--filename", "{track}.wav"),
        ("--filename", "../{stem}.wav"),
        ("--filename", "{stem}{colour}.wav"),
        ("--filename", "{stem:{track}}.wav"),
        ("--filename", "{stem!r}.wav"),
        ("--filename", "{track}/{stem}.flac"),
        ("--filename", "{track}/{stem}.mp3"),
        ("--overwrite", "--skip-existing"),
        ("--overwrite", "--resume"),
        ("--stems", "flute"),
        ("--drop", "bass,bass"),
        ("--drop", "bass,drums,guitar,piano"),
        ("--sum", "bass"),
        ("--sum", "bass+flute"),
        ("--bits", "8"),
        ("--format", "flac", "--bits", "32f"),
        ("--format", "flac", "--filename", "{stem}.wav"),
        ("--quality", "fast", "--preset", "best"),
        ("--duration", "0"),
        ("--start", "-1"),
        ("--other-level", "-20"),
        ("--overlap", "10"),
        ("--overlap", "10", "--report"),
        ("--method", "regressor", "--warm-start", "ddnm", "--warm-sigma", "0.1"),
        ("--independent", "--method", "isdm"),
        ("--seams", "condition", "--method", "msdm"),
    ],
)
def test_usage_errors(run, song, arguments):
    result = run("separate", "song.wav", *arguments)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert not Path("separated").exists()


def test_names_that_clash(run, song, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "song.flac").write_bytes(b"")
    result = run("separate", "song.wav", "other/song.flac")
    assert result.exit_code == 2
    assert "song.flac" in result.stderr


def test_template(run, song, tmp_path):
    name = "{stem}-{track}-{method}.{ext}"
    assert run("separate", "song.wav", "-q", "--filename", name).exit_code == 0
    assert (tmp_path / "separated" / "bass-song-mgdm.wav").exists()


def test_interrupt(run, song, tmp_path, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(separate.Separator, "_draw", interrupt)
    result = run("separate", "song.wav")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert "--resume" not in result.stderr
    assert not (tmp_path / "separated").exists()


@pytest.mark.parametrize(
    ("options", "place", "name"),
    [
        ((), hub, "load_regressor"),
        (("--report",), hub, "load_regressor"),
        (("--dry-run",), cost, "calibrate"),
    ],
)
def test_interrupt_before_the_work(run, song, monkeypatch, options, place, name):
    """While a model is loaded, or timed."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, name, interrupt)
    result = run("separate", "song.wav", *options)
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert "Aborted" not in result.stderr


def test_evaluate(run, song, music, tmp_path):
    for folder, stems in (("true", music), ("guess", 0.9 * music + 0.1 * music.sum(0) / 4)):
        (tmp_path / folder / "song").mkdir(parents=True)
        for name, stem in zip(STEMS, stems, strict=True):
            sf.write(tmp_path / folder / "song" / f"{name}.wav", stem, 22050, subtype="FLOAT")
    result = run("evaluate", "true", "guess")
    assert result.exit_code == 0, result.output
    assert "| song |" in result.stdout
    assert run("evaluate", "true", "guess", "--csv", "new/scores.csv").exit_code == 0
    assert "si_sdr" in (tmp_path / "new" / "scores.csv").read_text()
    nowhere = run("evaluate", "true", "guess", "--csv", "song.wav/scores.csv")
    assert nowhere.exit_code == 1
    assert "song.wav is not a folder" in nowhere.stderr
    missing = run("evaluate", "true", "separated_not_there")
    assert missing.exit_code == 2
    for folder in ("true", "guess"):
        shutil.copytree(tmp_path / folder / "song", tmp_path / folder / "worse")
    sf.write(tmp_path / "guess/worse/bass.wav", np.nan * music[0], 22050, subtype="FLOAT")
    some = run("evaluate", "true", "guess", "--csv", "some.csv", "-q")
    assert some.exit_code == 1
    assert some.stderr.startswith("error: worse: guess/worse/bass.wav: holds a nan")
    assert "| song |" in some.stdout
    assert "song,bass" in (tmp_path / "some.csv").read_text()


def test_output_never_leaves_its_folder(run, song, tmp_path):
    (tmp_path / "...wav").write_bytes(song.read_bytes())
    assert run("separate", "...wav", "-q").exit_code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["...wav", "separated", "song.wav"]


def test_truncation_is_always_reported(run, song):
    data = song.read_bytes()
    song.write_bytes(data[: len(data) // 2])
    result = run("separate", "song.wav", "-q")
    assert result.exit_code == 0
    assert "44100 frames" in result.stderr
    assert "22" in result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="needs file names that are bytes")
def test_names_that_are_not_text(run, song, tmp_path):
    name = os.fsdecode(b"caf\xe9.wav")
    (tmp_path / name).write_bytes(song.read_bytes())
    result = run("separate", name, os.fsdecode(b"\xe9.wav"))
    assert result.exit_code == 1
    assert b"separated/caf\xe9/bass.wav" in result.stdout_bytes
    assert "No such file" in result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="needs file names that are bytes")
def test_tracks_and_models_with_names_that_are_not_text(run, music, tmp_path, monkeypatch):
    name = os.fsdecode(b"caf\xe9")
    for folder in ("true", "guess"):
        (tmp_path / folder / name).mkdir(parents=True)
        for stem, x in zip(STEMS, music, strict=True):
            sf.write(f"{stem}.wav", x, 22050, subtype="FLOAT")
            os.replace(f"{stem}.wav", tmp_path / folder / name / f"{stem}.wav")
    result = run("evaluate", "true", "guess", "--csv", "scores.csv", "-q")
    assert result.exit_code == 0, result.output
    assert "| caf\N{REPLACEMENT CHARACTER} |" in result.stdout
    assert b"\ncaf\xe9,bass," in (tmp_path / "scores.csv").read_bytes()
    shipped = hub.find("default")
    (tmp_path / name / "own").mkdir(parents=True)
    shutil.copy(shipped / "config.json", tmp_path / name / "own")
    monkeypatch.setenv(hub.PATH_VARIABLE, str(tmp_path / name))
    listed = run("models")
    assert listed.exit_code == 0, listed.output
    assert b"caf\xe9/own\n" in listed.stdout_bytes


@pytest.mark.parametrize("folder", ["occupied", "/proc/nowhere"])
def test_folders_are_tried_before_the_model_is_loaded(run, song, tmp_path, monkeypatch, folder):
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "song").write_text("a file where a folder must be")
    monkeypatch.setattr(separate.hub, "load", lambda *_: pytest.fail("the model was loaded"))
    result = run("separate", "song.wav", "-o", folder)
    assert result.exit_code == 1
    assert "song.wav" in result.stderr
    assert folder in result.stderr


def test_a_failing_device_does_not_stop_the_others(run, song, tmp_path, monkeypatch):
    (tmp_path / "other.wav").write_bytes(song.read_bytes())
    whole = separate.Separator._draw
    calls = []

    def fail_once(self, jobs, progress):
        calls.append(jobs)
        if len(calls) == 1:
            raise RuntimeError("the device failed\nwith details")
        return whole(self, jobs, progress)

    monkeypatch.setattr(separate.Separator, "_draw", fail_once)
    result = run("separate", "song.wav", "other.wav", "-q")
    assert result.exit_code == 1
    assert result.stderr == "error: song.wav: the device failed with details\n"
    assert len(result.stdout.split()) == len(STEMS)
    assert [p.name for p in (tmp_path / "separated").iterdir()] == ["other"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("CUDA error: out of memory\nmore"), "CUDA error: out of memory more"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_models_that_cannot_be_loaded_are_told(run, song, monkeypatch, error, message):
    def load(*_):
        raise error

    monkeypatch.setattr(separate.hub, "load", load)
    result = run("separate", "song.wav", "--model", "default")
    assert result.exit_code == 1
    assert result.stderr == f"Error: {message}\n"


def test_devices_that_are_not_known_are_refused(run, song):
    result = run("separate", "song.wav", "--device", "meta")
    assert result.exit_code == 1
    assert result.stderr == "Error: device 'meta' is not supported; use auto, cpu, cuda or cuda:N\n"


def read(path):
    return sf.read(path, dtype="int32", always_2d=True)[0].astype(int)


def test_a_folder_keeps_its_tree(run, song, tmp_path):
    for name in ("in/a/x.wav", "in/b/x.FLAC", "in/b/note.txt", "in/top.wav"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".FLAC"):
            sf.write(path, sf.read(song)[0], 22050, format="FLAC")
        else:
            path.write_bytes(song.read_bytes())
    result = run("separate", "in", "--stems", "bass", "-o", "in/out", "-q")
    assert result.exit_code == 0, result.output
    assert sorted(result.stdout.split()) == [
        "in/out/a/x/bass.wav",
        "in/out/b/x/bass.wav",
        "in/out/top/bass.wav",
    ]
    # What was written is not taken for an input, and what is done is left out.
    again = run("separate", "in", "--stems", "bass", "-o", "in/out", "--skip-existing")
    assert again.exit_code == 0
    assert again.stderr.count("skipped, its stems exist") == 3
    assert "3 skipped" in again.stderr


def test_folders_with_braces_are_no_templates(run, song, tmp_path):
    for folder in ("a{b", "{stem}", "}"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        (tmp_path / "in" / folder / "x.wav").write_bytes(song.read_bytes())
    result = run("separate", "in", "--stems", "bass", "-q")
    assert result.exit_code == 0, result.output
    assert sorted(result.stdout.split()) == [
        f"separated/{folder}/x/bass.wav" for folder in ("a{b", "{stem}", "}")
    ]


@pytest.fixture
def tasks(monkeypatch):
    """What is to do, which is not done."""
    found = []

    def keep(request, tasks, failed=()):
        found.extend(tasks)
        return 0

    monkeypatch.setattr(running, "run", keep)
    return found


def test_work_folders_keep_their_names(run, song, tmp_path, tasks):
    """So that --resume finds what an earlier version left."""
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "x.wav").write_bytes(song.read_bytes())
    assert run("separate", "in").exit_code == 0
    assert run("separate", "song.wav", "--filename", "{{{method}}} {track}-{stem}.{ext}",
               "--method", "mgdm").exit_code == 0  # fmt: skip
    assert [task.work for task in tasks] == [
        work_folder(Path("separated"), "a/x/*.*"),
        work_folder(Path("separated"), "{mgdm} song-*.*"),
    ]


@pytest.mark.parametrize(
    ("model", "name"), [("./", "mine"), ("../mine/", "mine"), ("../link", "link"), ("x", "x")]
)
def test_models_are_called_like_their_folders(run, song, tmp_path, tasks, monkeypatch, model, name):
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to("mine")
    monkeypatch.chdir(tmp_path / "mine")
    options = ("--model", model, "--filename", "{model}/{stem}.{ext}", "--stems", "bass")
    result = run("separate", "../song.wav", *options)
    assert result.exit_code == 0, result.output
    assert [task.outputs for task in tasks] == [{"bass": Path("separated", name, "bass.wav")}]


def test_names_that_cannot_be_looked_at_do_not_stop_the_others(run, song, tmp_path):
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    long = "x" * 300
    result = run("separate", long, "loop.wav", "song.wav", "--stems", "bass", "-q")
    assert result.exit_code == 1
    assert result.stdout.split() == ["separated/song/bass.wav"]
    lines = result.stderr.splitlines()
    assert [line.split(":")[:2] for line in lines] == [
        ["error", f" {long}"],
        ["error", " loop.wav"],
    ]


def test_patterns_and_what_they_do_not_match(run, song, tmp_path):
    (tmp_path / "[x].wav").write_bytes(song.read_bytes())
    (tmp_path / "empty").mkdir()
    result = run(
        "separate", "so*.wav", "song.wav", "[x].wav", "no*.wav", "empty", "--stems", "bass"
    )
    assert result.exit_code == 1
    assert result.stdout.split() == ["separated/song/bass.wav", "separated/[x]/bass.wav"]
    assert "no*.wav: no file matches" in result.stderr
    assert "empty: there is no audio file in this folder" in result.stderr
    assert "2 separated" in result.stderr
    assert "2 failed" in result.stderr


def test_an_input_is_never_overwritten(run, song, tmp_path):
    (tmp_path / "song").mkdir()
    (tmp_path / "song" / "bass.wav").write_bytes(song.read_bytes())
    result = run("separate", "song.wav", "song/bass.wav", "-o", ".", "--overwrite")
    assert result.exit_code == 2
    assert "one of the files that are read" in result.stderr


def test_sums_and_residual_null(run, song):
    result = run("separate", "song.wav", "--sum", "piano+guitar", "--residual", "--seed", "1", "-q")
    assert result.exit_code == 0, result.output
    names = [path.split("/")[-1] for path in result.stdout.split()]
    assert names == ["bass.wav", "drums.wav", "piano+guitar.wav", "residual.wav"]
    total = sum(read(path) for path in result.stdout.split())
    assert np.array_equal(total, read(song))
    assert np.abs(read("separated/song/residual.wav")).max() > 0


def test_some_stems_are_those_of_all(run, song):
    assert run("separate", "song.wav", "--seed", "1", "-q").exit_code == 0
    assert run("separate", "song.wav", "--seed", "1", "-q", "-o", "some",
               "--drop", "bass,drums", "--sum", "piano+guitar").exit_code == 0  # fmt: skip
    both = read("separated/song/piano.wav") + read("separated/song/guitar.wav")
    assert np.array_equal(read("some/song/piano+guitar.wav"), both)
    assert run("separate", "song.wav", "--seed", "1", "-q", "-o", "two",
               "--stems", "drums").exit_code == 0  # fmt: skip
    assert np.array_equal(read("two/song/drums.wav"), read("separated/song/drums.wav"))


@pytest.mark.parametrize(
    ("options", "subtype", "container"),
    [
        ((), "PCM_16", "WAV"),
        (("--bits", "24"), "PCM_24", "WAV"),
        (("--bits", "32f"), "FLOAT", "WAV"),
        (("--format", "flac"), "PCM_16", "FLAC"),
        (("--format", "flac", "--bits", "24"), "PCM_24", "FLAC"),
    ],
)
def test_formats(run, song, options, subtype, container):
    result = run("separate", "song.wav", "--seed", "1", "-q", *options)
    assert result.exit_code == 0, result.output
    info = sf.info(result.stdout.split()[0])
    assert (info.subtype, info.format, info.frames) == (subtype, container, 44100)
    parts = [sf.read(path, dtype="float64")[0] for path in result.stdout.split()]
    limit = 1e-6 if subtype == "FLOAT" else 0
    assert np.abs(sum(parts) - sf.read(song, dtype="float64")[0]).max() <= limit


def test_a_part(run, song):
    result = run("separate", "song.wav", "--start", "0.5", "--duration", "1", "--seed", "0", "-q")
    assert result.exit_code == 0, result.output
    total = sum(read(path) for path in result.stdout.split())
    assert np.array_equal(total, read(song)[11025:33075])
    late = run("separate", "song.wav", "--start", "5", "-o", "late")
    assert late.exit_code == 1
    assert "ends at 2.000 s" in late.stderr


def test_report(run, song):
    result = run("separate", "song.wav", "--preset", "default", "--seed", "7", "--json", "-q")
    assert result.exit_code == 0, result.output
    assert result.stdout.split()[-1] == "separated/song/report.json"
    report = json.loads((song.parent / "separated/song/report.json").read_text())
    assert report["seed"] == 7
    assert report["frames"] == 44100
    assert report["settings"]["sha256"] == "0" * 64
    assert report["settings"]["sampler"]["steps"] == 6
    assert report["stats"]["calls"] == QUICK.cost().calls
    assert report["residual_db"] < 0
    assert set(report["versions"]) >= {"mgdm_audio", "torch", "numpy"}
    assert list(report["outputs"]) == list(STEMS)


def test_the_default_begins_from_the_regressor(run, song):
    # A song shorter than a window: two samples, each of the rest of MGDM's grid and one call.
    result = run("separate", "song.wav", "--seed", "7", "--json", "-q", "-o", "plain")
    assert result.exit_code == 0, result.output
    named = run("separate", "song.wav", "--seed", "7", "-q", "-o", "named", "--quality", "default")
    assert named.exit_code == 0, named.output
    report = json.loads((song.parent / "plain/song/report.json").read_text())
    assert report["settings"]["warm_start"] == "regressor"
    assert report["settings"]["average"] == 2
    assert len(report["settings"]["regressor_sha256"]) == 64
    for stem in STEMS:
        plain, same = (song.parent / f"{folder}/song/{stem}.wav" for folder in ("plain", "named"))
        assert plain.read_bytes() == same.read_bytes()


def test_independent_stems(run, song):
    arguments = ["--preset", "default", "--seed", "7", "--json"]
    result = run("separate", "song.wav", *arguments, "--independent")
    assert result.exit_code == 0, result.output
    assert "(default, independent stems)" in result.stderr
    report = json.loads((song.parent / "separated/song/report.json").read_text())
    assert report["settings"]["independent"] is True
    assert report["stats"]["calls"] == 4 * QUICK.cost().calls
    refused = run("separate", "song.wav", "--method", "regressor", "--independent", "-o", "other")
    assert refused.exit_code == 2
    assert "--independent needs a prior" in refused.stderr
    refused = run("separate", "song.wav", "--other", "--independent", "-o", "other")
    assert refused.exit_code == 2


def test_dry_run_writes_nothing(run, song, tmp_path):
    result = run("separate", "song.wav", "--dry-run", "--average", "2")
    assert result.exit_code == 0, result.output
    assert f"{2 * QUICK.cost().calls} network calls" in result.stdout
    assert "separated/song/bass.wav" in result.stdout
    assert not (tmp_path / "separated").exists()
    late = run("separate", "song.wav", "--dry-run", "--start", "100")
    assert late.exit_code == 1
    assert "no audio after 100 s" in late.stderr
    (tmp_path / "separated" / "song").mkdir(parents=True)
    (tmp_path / "separated" / "song" / "bass.wav").write_bytes(b"mine")
    there = run("separate", "song.wav", "--dry-run")
    assert there.exit_code == 1
    assert "bass.wav exists" in there.stderr
    assert run("separate", "song.wav", "--dry-run", "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--duration", "nan"), "'--duration': nan is not a finite number"),
        (("--start", "inf"), "'--start': inf is not a finite number"),
        (("--window", "inf"), "'--window': inf is not a finite number"),
        (("--overlap", "inf"), "'--overlap': inf is not a finite number"),
        (("--window", "nan"), "'--window': nan is not a finite number"),
        (("--warm-start", "ddnm", "--warm-sigma", "inf"), "'--warm-sigma': inf is not"),
        (("--other", "--other-level", "nan"), "'--other-level': nan is not"),
        (("--other-level", "-20"), "--other-level needs --other"),
        (("--warm-start", "none", "--warm-sigma", "0.1"), "none"),
        (("--warm-start", "ddnm:none", "--warm-sigma", "0.1"), "none"),
    ],
)
def test_wrong_use_is_told_as_such(run, song, options, message):
    result = run("separate", "song.wav", *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_full_scale_is_never_clipped(run, song, tmp_path):
    # What the prior explains of a click at full scale rings above and below it.
    square = np.zeros(44100)
    square[20000:20400] = np.sign(np.sin(np.arange(400))) * 32767
    sf.write(tmp_path / "loud.wav", square.astype(np.int16), 22050, subtype="PCM_16")
    result = run("separate", "loud.wav", "--seed", "0", "-q")
    assert result.exit_code == 0, result.output
    assert "exceeds full scale" in result.stderr
    assert sf.info("separated/loud/bass.wav").subtype == "FLOAT"
    flac = run("separate", "loud.wav", "--seed", "0", "-q", "--format", "flac", "-o", "f")
    assert flac.exit_code == 1
    assert "--format wav --resume" in flac.stderr
    more = run("separate", "loud.wav", "--seed", "0", "-q", "-o", "f", "--resume")
    assert more.exit_code == 0, more.output
    assert (tmp_path / "f/loud/bass.wav").read_bytes() == (
        tmp_path / "separated/loud/bass.wav"
    ).read_bytes()


def test_too_little_space(run, song, tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage(10, 9, 1)
    monkeypatch.setattr(write.shutil, "disk_usage", lambda _: usage)
    result = run("separate", "song.wav", "-q")
    assert result.exit_code == 1
    assert "are needed" in result.stderr
    assert not (tmp_path / "separated").exists()
