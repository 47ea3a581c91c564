"""Catalogues: every song once, again only what is missing, whatever stops a run."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from catalogue_fixtures import (
    FILES,
    OPTIONS,
    build,
    check_complete,
    contents,
    records,
    separate,
    write_songs,
)  # fmt: skip
from click.testing import CliRunner

from mgdm_audio import STEMS, Separator, catalogue, cli, songwork, write
from mgdm_audio.cost import QUALITIES
from mgdm_audio.engine import LocalEngine
from mgdm_audio.files import Options, Task, separate_files
from mgdm_audio.manifest import Manifest
from mgdm_audio.places import Place
from mgdm_audio.songs import find_songs


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch):
    monkeypatch.setattr(songwork, "PAUSE", 0.0)


NAMES = ["01", "02", "album/00", "album/03"]


@pytest.fixture
def songs(tmp_path):
    return write_songs(tmp_path / "in", 4)


def test_stems_are_those_of_the_songs_alone(songs, tmp_path):
    told = []
    plan, summary = separate(
        songs, tmp_path / "out", callback=lambda record, summary: told.append(record)
    )
    (run,) = plan.runs
    check_complete(run.url, NAMES)
    assert (summary.done, summary.failed) == (4, 0)
    assert sorted(record.name for record in told) == NAMES
    separator = build(**OPTIONS)
    found = records(run.url)
    for name in NAMES:
        source = next(songs.glob(f"{name}.*"))
        outputs = {stem: tmp_path / "alone" / f"{stem}.wav" for stem in STEMS}
        (alone,) = separate_files(separator, [Task(source, outputs, tmp_path / "w")], Options(5))
        record = found[name]
        for path, size, output in zip(record.outputs, record.sizes, outputs.values(), strict=True):
            assert (Path(run.url) / path).read_bytes() == output.read_bytes()
            assert size == output.stat().st_size
            output.unlink()
        assert record.residual_db == alone.report["residual_db"]
        assert record.calls == alone.report["stats"]["calls"]
        assert record.audio_seconds == pytest.approx(sf.info(source).duration)
        assert (record.seed, record.settings) == (5, run.fingerprint)
    # Anything that reads Parquet reads the manifest.
    assert sorted(pq.read_table(Path(run.url) / "manifest")["name"].to_pylist()) == NAMES
    assert {p.name for p in Path(run.url).iterdir()} == {"manifest", "settings.json", "stems"}
    described = json.loads((Path(run.url) / "settings.json").read_text())
    assert described["separator"]["sampler"]["steps"] == 4


def test_a_second_call_does_what_is_missing_failed_or_changed(songs, tmp_path):
    out = tmp_path / "out"
    (songs / "bad.wav").write_text("no audio")
    url = separate(songs, out)[0].runs[0].url
    check_complete(url, NAMES, ["bad"])
    assert "Format not recognised" in records(url)["bad"].error
    before = contents(url)

    def names(plan):
        return sorted(song.name for unit in plan.units for song in unit.songs)

    assert names(separate(songs, out)[0]) == ["bad"]
    shutil.copy(songs / "01.wav", songs / "bad.wav")
    os.utime(songs / "02.wav", (1, 1))  # the content is the same
    assert names(separate(songs, out)[0]) == ["bad"]
    check_complete(url, [*NAMES, "bad"])
    stems = Path(url) / "stems"
    (stems / "01" / "bass.wav").unlink()
    (stems / "02" / "drums.wav").write_bytes(b"cut off")
    write_songs(songs, 1, start=4)
    shutil.copy(songs / "01.wav", songs / "album" / "00.flac")  # another content
    plan, summary = separate(songs, out)
    assert names(plan) == ["01", "02", "04", "album/00"]
    assert summary.done == 4
    check_complete(url, [*NAMES, "bad", "04"])
    after = contents(url)
    for name in ("01/bass.wav", "02/drums.wav", "album/03/piano.wav"):
        assert after[name] == before[name]
    assert after["album/00/bass.wav"] != before["album/00/bass.wav"]


def test_another_setting_is_another_run(songs, tmp_path):
    out = tmp_path / "out"
    first = separate(songs, out)[0].runs[0].url
    before = contents(first)
    for changed in ({"steps": 5}, {"files": catalogue.Files(STEMS, seed=6)}):
        plan, summary = separate(songs, out, **changed)
        assert summary.done == 4
        assert plan.runs[0].url != first
        assert contents(plan.runs[0].url) != before
    assert contents(first) == before
    (Path(first) / "settings.json").write_text("{}")
    with pytest.raises(ValueError, match="not what its folder is named for"):
        separate(songs, out)
    assert contents(first) == before


def test_a_plan_writes_nothing_and_a_run_says_what_it_is_before_it_works(songs, tmp_path):
    out = tmp_path / "out"
    plan = catalogue.plan(catalogue_songs(songs, tmp_path), str(out), OPTIONS, FILES, build=build)
    assert not out.exists()
    settings = Path(plan.runs[0].url) / "settings.json"
    seen = []

    class Watched(LocalEngine):
        def run(self, make, items):
            seen.append(settings.exists())
            return super().run(make, items)

    make = songwork.Separate("cpu", 1, 1, None, build)
    assert catalogue.run(Watched(), make, plan).done == 4
    assert seen == [True]
    assert json.loads(settings.read_text())["fingerprint"] == plan.runs[0].fingerprint
    # What was changed between plan and run is not worked on.
    settings.write_text("{}")
    with pytest.raises(ValueError, match="not what its folder is named for"):
        catalogue.run(Watched(), make, plan)
    assert seen == [True]


def test_workers_groups_and_order_change_nothing(songs, tmp_path):
    (songs / "bad.wav").write_text("no audio")
    one = separate(songs, tmp_path / "one")[0].runs[0].url
    two = separate(songs, tmp_path / "two", LocalEngine(2), group=3)[0].runs[0].url
    check_complete(two, NAMES, ["bad"])
    assert contents(one) == contents(two)
    workers = {record.worker for record in records(two).values()}
    assert len(workers) == 2
    for name, record in records(one).items():
        assert record.sha256 == records(two)[name].sha256


class Killed(BaseException):
    """As if the process were gone."""


@pytest.mark.parametrize("seed", range(3))
def test_stopped_at_any_moment(songs, tmp_path, monkeypatch, seed):
    whole = separate(songs, tmp_path / "whole", group=2)[0].runs[0].url
    rng = random.Random(seed)
    steps = {"left": 0}

    def stopping(method):
        def stopped(*arguments, **named):
            for after in (False, True):  # before it does anything, or when all is done
                if after:
                    result = method(*arguments, **named)
                steps["left"] -= 1
                if steps["left"] == 0:
                    raise Killed
            return result

        return stopped

    url = ""
    with monkeypatch.context() as patch:
        for owner, name in ((Place, "send"), (Place, "write"), (Place, "remove"), (Place, "fetch")):
            patch.setattr(owner, name, stopping(getattr(owner, name)))
        for attempt in range(40):
            steps["left"] = rng.randint(1, 20 + 10 * attempt)
            try:
                url = separate(songs, tmp_path / "out", group=2)[0].runs[0].url
                break
            except Killed:
                continue
    assert attempt > 0
    steps["left"] = 0
    assert separate(songs, tmp_path / "out")[0].units == ()
    Manifest(f"{url}/manifest").compact()
    check_complete(url, NAMES)
    assert contents(url) == contents(whole)
    assert not list(tmp_path.rglob(".mgdm*/*"))


def test_a_full_disk_is_a_failure_with_its_reason(songs, tmp_path, monkeypatch):
    full = tmp_path / "full"

    def write(self, data, write=sf.SoundFile.write):
        if str(full) in os.fsdecode(self.name.name) and len(data) > 6000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(sf.SoundFile, "write", write)
    url = separate(songs, tmp_path / "out", scratch=str(full))[0].runs[0].url
    check_complete(url, ["01", "02", "album/00"], ["album/03"])
    assert records(url)["album/03"].error == "full disk: [Errno 28] No space left on device"
    monkeypatch.undo()
    assert separate(songs, tmp_path / "out")[1].done == 1
    check_complete(url, NAMES)


def test_the_worker_with_a_full_disk_waits_ever_longer_and_all_full_stop(
    songs, tmp_path, monkeypatch
):
    waits = []
    monkeypatch.setattr(songwork, "PAUSE", 1.0)
    monkeypatch.setattr(songwork.time, "sleep", waits.append)
    monkeypatch.setattr(catalogue, "FULL_DISKS", 1)
    with monkeypatch.context() as patch:
        patch.setattr(write.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(OSError, match=r"the last 3 songs found no room, full disk: .* needed"):
            separate(songs, tmp_path / "out")
    assert waits == [1, 2, 4]
    plan, summary = separate(songs, tmp_path / "out")
    assert summary.done == 4
    check_complete(plan.runs[0].url, NAMES)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts a file system")
def test_a_disk_that_is_full(songs, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        url = separate(songs, tmp_path / "out", scratch=str(small))[0].runs[0].url
        check_complete(url, [], NAMES)
        assert "GB are needed" in records(url)["01"].error
        assert not list(small.rglob("*.wav"))
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_full_output_stops_the_run_in_one_line(songs, tmp_path, monkeypatch):
    def write(self, *_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Manifest, "add", write)
    with pytest.raises(OSError, match="No space left"):
        separate(songs, tmp_path / "out")


def killed_at(draw: int, monkeypatch) -> dict[str, int]:
    """Ends a worker at a draw, the first one being 1; what is left until then can be set anew."""
    calls = {"left": draw}

    def counted(self, *arguments, draw=Separator._draw):
        calls["left"] -= 1
        if calls["left"] == 0:
            raise Killed
        return draw(self, *arguments)

    monkeypatch.setattr(Separator, "_draw", counted)
    return calls


def test_finished_windows_of_a_dead_worker_are_used(songs, tmp_path, monkeypatch):
    long = songs / "long.wav"
    rng = np.random.default_rng(0)
    sf.write(long, 0.1 * rng.standard_normal(50_000), 22050)
    whole = separate(long, tmp_path / "whole")[0].runs[0].url
    calls = killed_at(5, monkeypatch)
    with pytest.raises(Killed):
        separate(long, tmp_path / "out")
    url = separate(long, tmp_path / "out")[0].runs[0].url
    assert 0 < records(url)["long"].calls < records(whole)["long"].calls
    assert contents(url) == contents(whole)
    # While another worker has them, windows are made anew and its own are left alone.
    calls["left"] = 5
    with pytest.raises(Killed):
        separate(long, tmp_path / "busy")
    (work,) = [p.parent for p in (tmp_path / "busy").rglob("state.json")]
    from mgdm_audio.store import FolderStore

    with FolderStore(work):
        url = separate(long, tmp_path / "busy")[0].runs[0].url
        assert list(work.glob("window-*"))
    assert records(url)["long"].calls == records(whole)["long"].calls
    assert contents(url) == contents(whole)


def test_windows_of_what_a_recording_was_make_way(songs, tmp_path, monkeypatch):
    long = songs / "long.wav"
    rng = np.random.default_rng(0)
    sf.write(long, 0.1 * rng.standard_normal(50_000), 22050)
    killed_at(4, monkeypatch)
    with pytest.raises(Killed):
        separate(long, tmp_path / "out")
    assert list(tmp_path.rglob("window-*"))
    sf.write(long, 0.1 * rng.standard_normal(50_000), 22050)
    url = separate(long, tmp_path / "out")[0].runs[0].url
    assert contents(url) == contents(separate(long, tmp_path / "whole")[0].runs[0].url)
    assert not list(tmp_path.rglob(".mgdm*/*"))


def test_only_what_dead_workers_of_this_machine_left_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(songwork.socket, "gethostname", lambda: "node")
    dead = 1 << 23  # above the largest process number there is
    for name in (f"k-node-{dead}", f"k-node-2-{dead}", f"k-node-{os.getpid()}", "k"):
        (tmp_path / name).mkdir()
    songwork._remove_dead(tmp_path, "k")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"k-node-2-{dead}", f"k-node-{os.getpid()}", "k"}


def test_a_worker_with_another_model_separates_nothing(songs, tmp_path):
    plan = catalogue.plan(
        catalogue_songs(songs, tmp_path), str(tmp_path / "out"), OPTIONS, FILES, build=build
    )
    other = songwork.Separate("cpu", 1, 1, None, other_steps)
    summary = catalogue.run(LocalEngine(), other, plan)
    assert summary.failed == 4
    error = records(plan.runs[0].url)["01"].error
    assert "another sampler than where the run was started" in error


def other_steps(**options):
    return build(**{**options, "steps": 6})


def catalogue_songs(songs, tmp_path):
    from mgdm_audio.songs import find_songs

    return find_songs(str(songs), str(tmp_path / "out"))


def test_tables_give_seeds_settings_and_known_stems(songs, tmp_path):
    x, rate = sf.read(songs / "01.wav")
    sf.write(songs / "drums.wav", 0.3 * x, rate, subtype="PCM_16")
    rows = [
        {"path": "01.wav", "seed": 9},
        {"path": "01.wav"},
        {"path": str(songs / "02.wav"), "settings": json.dumps({"steps": 5})},
        {"path": "01.wav", "name": "given", "known": json.dumps({"drums": "drums.wav"})},
    ]
    table = songs / "songs.parquet"
    keys = ("path", "name", "seed", "settings", "known")
    pq.write_table(pa.table({key: [row.get(key) for row in rows] for key in keys}), table)
    plan, summary = separate(table, tmp_path / "out")
    assert (summary.done, summary.failed) == (4, 0), [
        record.error for run in plan.runs for record in records(run.url).values()
    ]
    usual, other = plan.runs
    check_complete(usual.url, ["01", "01/seed-9", "given"])
    check_complete(other.url, ["02"])
    assert [records(usual.url)[name].seed for name in ("01", "01/seed-9")] == [5, 9]
    stems = {s: sf.read(Path(usual.url) / "stems" / "given" / f"{s}.wav")[0] for s in STEMS}
    assert np.abs(stems["drums"] - 0.3 * x).max() < 2**-15
    assert np.abs(sum(stems.values()) - x).max() < 2**-15
    assert separate(table, tmp_path / "out")[0].units == ()
    sf.write(songs / "drums.wav", 0.2 * x, rate, subtype="PCM_16")
    (unit,) = separate(table, tmp_path / "out")[0].units
    assert [song.name for song in unit.songs] == ["given"]


def test_stems_stay_while_their_songs_cannot_be_read(songs, tmp_path):
    """As when a disk is not there: a song is done again where it changed, and nobody says so."""
    table = tmp_path / "songs.csv"
    table.write_text(f"path\n{songs}/01.wav\n{songs}/02.wav\n")
    plan, summary = separate(table, tmp_path / "out")
    assert summary.done == 2
    before = contents(plan.runs[0].url)
    songs.rename(tmp_path / "away")
    again, summary = separate(table, tmp_path / "out")
    assert (again.done, summary.failed) == (2, 0)
    assert contents(plan.runs[0].url) == before


def test_known_stems_of_long_integers_are_kept_and_add_up(songs, tmp_path):
    rng = np.random.default_rng(0)
    drums, rest = rng.integers(-(2**28), 2**28, (2, 6000)) * 2.0**-31
    sf.write(songs / "long.wav", drums + rest, 22050, subtype="PCM_32")
    sf.write(songs / "drums.wav", drums, 22050, subtype="PCM_32")
    table = tmp_path / "songs.csv"
    table.write_text('path,known\nin/long.wav,"{""drums"": ""in/drums.wav""}"\n')
    plan, summary = separate(table, tmp_path / "out")
    assert summary.done == 1
    (folder,) = Path(plan.runs[0].url).rglob("long")
    read = [sf.read(folder / f"{s}.wav", dtype="int32")[0].astype(np.int64) for s in STEMS]
    assert np.array_equal(sum(read), sf.read(songs / "long.wav", dtype="int32")[0])
    assert np.array_equal(
        read[STEMS.index("drums")], sf.read(songs / "drums.wav", dtype="int32")[0]
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "cpu"}, "'device' is the same for all songs"),
        ({"quality": "none"}, "01.wav: unknown quality 'none'; there are fast, default, best"),
        ({"quality": "fast", "average": 3}, "01.wav: quality decides average"),
        ({"quality": "fast", "steps": 4}, "01.wav: quality decides steps"),
        ({"nonsense": 1}, "nonsense"),
        ({"steps": 4}, "come to those of other songs"),
        ({"method": "none"}, "none"),
    ],
)
def test_settings_that_cannot_be(songs, tmp_path, settings, message):
    table = songs / "songs.csv"
    text = json.dumps(settings).replace('"', '""')
    table.write_text(f'path,settings\n02.wav,\n01.wav,"{text}"\n')
    with pytest.raises(ValueError, match=message):
        separate(table, tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"quality": "default"}, "mine"),
        ({"quality": "best"}, "mine"),
        ({"quality": "best", "regressor": "another"}, "another"),
        ({"method": "regressor"}, "mine"),
        ({"average": 3}, "mine"),
    ],
)
def test_a_regressor_that_the_command_names_stays(songs, tmp_path, settings, expected):
    """One that a quality stands for goes with it."""

    def asked(keep, **own):
        given = []

        def make(**options):
            quality = QUALITIES.get(options.get("quality"), {})
            given.append(options.get("regressor") or quality.get("regressor"))
            return build(**OPTIONS)

        song = find_songs(str(songs), str(tmp_path / "out"))[0]
        song = dataclasses.replace(song, settings=settings)
        options = {**QUALITIES["fast"], "precision": "float32", **own}
        catalogue.plan([song], str(tmp_path / "out"), options, FILES, 1, make, keep)
        return given

    assert asked(("regressor",), regressor="mine") == [expected]
    if settings == {"quality": "best"}:
        assert asked(()) == ["regressor-large"]


def settings_table(folder, *settings):
    """A table with a song for each of the settings, None for none."""
    rows = [
        {"path": f"{i}.wav", "settings": json.dumps(own) if own else ""}
        for i, own in enumerate(settings)
    ]
    with (folder / "songs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "settings"])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "songs.csv"


def test_the_quality_of_a_song_is_that_of_a_separator(tmp_path):
    """Whatever the command's options are: a warm start, or settings of its sampler."""
    quick = {**QUALITIES["fast"], "precision": "float32", "window": 8192, "overlap": 2048}
    ddnm = {"method": "ddnm", "steps": 5, "precision": "float32", "window": 8192, "overlap": 2048}
    songs = find_songs(str(settings_table(tmp_path, {"quality": "default"})), "out")
    runs = [
        catalogue.plan(songs, str(tmp_path / "out"), options, FILES).runs
        for options in (quick, ddnm)
    ]
    alone = Separator(
        quality="default", device="cpu", precision="float32", window=8192, overlap=2048
    )
    for (run,) in runs:
        assert run.describes == json.loads(json.dumps(alone.describe()))
    assert runs[0][0].url == runs[1][0].url


def test_a_quality_that_is_the_command_s_is_no_other_run(tmp_path):
    """The same settings in other words would write into the same folder."""
    songs = find_songs(str(settings_table(tmp_path, None, {"quality": "fast"})), "out")
    options = {**QUALITIES["fast"], "precision": "float32"}
    with pytest.raises(ValueError, match="come to those of other songs"):
        catalogue.plan(songs, str(tmp_path / "out"), options, FILES)


def test_a_method_of_a_song_drops_the_settings_of_the_command_s(songs, tmp_path):
    given = []

    def make(**options):
        given.append(
            {n: v for n, v in options.items() if n in ("method", "steps", "window", "quality")}
        )
        return build(**OPTIONS)

    song = find_songs(str(songs), str(tmp_path / "out"))[0]
    song = dataclasses.replace(song, settings={"method": "dps"})
    options = {"quality": "best", "steps": 5, "window": 8192}
    catalogue.plan([song], str(tmp_path / "out"), options, FILES, 1, make)
    assert given == [{"method": "dps", "window": 8192}]


@pytest.fixture
def run(monkeypatch, tmp_path, prior):
    """Runs the command with a prior that costs nothing."""
    from mgdm_audio import separate as separating
    from mgdm_audio.samplers.mgdm import MGDM

    load = separating.hub.load
    monkeypatch.setattr(
        separating.hub,
        "load",
        lambda name, device="cpu": prior if name == "default" else load(name),
    )
    quick = MGDM(sigma_max=1.0, steps=4, repetitions=1, gradient_steps=((0, 1),))
    monkeypatch.setitem(MGDM.PRESETS, "default", quick)
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments):
        return CliRunner().invoke(cli.cli, ["separate-catalogue", *arguments])

    return invoke


def test_command(run, songs, tmp_path):
    plain = ("in", "-o", "out", "--method", "mgdm", "--workers", "1")
    (songs / "bad.wav").write_text("no audio")
    planned = run(*plain, "--dry-run")
    assert "5 songs, 0 done, 5 to do" in planned.stderr
    assert not (tmp_path / "out").exists()
    first = run(*plain)
    assert first.exit_code == 1, first.output
    assert first.stdout.split() == planned.stdout.split()
    assert "bad.wav: is not a WAV" in first.stderr
    assert "5 of 5 songs, 1 failed" in first.stderr
    assert "hours of audio an hour" in first.stderr
    (songs / "bad.wav").unlink()
    again = run(*plain)
    assert (again.exit_code, again.stdout) == (0, first.stdout)
    assert "4 songs, 4 done, 0 to do" in again.stderr
    check_complete(first.stdout.strip(), NAMES, ["bad"])
    summed = run(*plain, "--sum", "piano+guitar", "--format", "flac", "-q")
    assert summed.exit_code == 0
    assert summed.stderr == ""
    (folder,) = map(Path, summed.stdout.split())
    assert {p.name for p in (folder / "stems" / "01").iterdir()} == {
        "bass.flac", "drums.flac", "piano+guitar.flac",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (("gone.csv", "-o", "out"), "gone.csv", 1),
        (("empty", "-o", "out"), "there is no song", 1),
        (("nope", "-o", "out"), "Error: nope: there is no such file or folder", 1),
        (("in", "-o", "in"), "Error: in: all its audio files lie in the output folder", 1),
        (("in", "-o", "out", "--model", "nowhere"), "unknown model 'nowhere'", 1),
        (("in", "-o", "out", "--stems", "voice"), "expected different stems", 2),
        (("in", "-o", "out", "--quality", "fast", "--method", "dps"), "--quality decides", 2),
        (("in", "-o", "out", "--method", "dps", "--regressor", "x"), "needs what asks one", 2),
        (("in", "-o", "out", "--overlap", "10"), "overlap must be between 0 and half", 2),
        (("in", "-o", "out", "--other-level", "-9"), "--other-level needs --other", 2),
        (("in", "-o", "out", "--gpu-share", "0.5"), "--gpu-share needs --engine ray", 2),
        (("in", "-o", "out", "--gpu-share", "nan"), "nan is not a finite number", 2),
        (
            ("in", "-o", "out", "--engine", "ray", "--gpu-share", "1", "--device", "cpu"),
            "--gpu-share and --device cpu exclude each other",
            2,
        ),
        (("in", "-o", "out", "--device", "cuda:42"), "device 'cuda:42' is not available", 1),
        (("in",), "Missing option '-o'", 2),
        (("nonsense://bucket/in", "-o", "out"), "nonsense", 1),
    ],
)
def test_wrong_use_is_one_line(run, songs, tmp_path, arguments, message, code):
    (tmp_path / "empty").mkdir()
    result = run(*arguments)
    assert result.exit_code == code
    assert message in result.stderr.replace(str(tmp_path) + "/", "")
    assert "Traceback" not in result.output


def test_the_device_of_workers_elsewhere_need_not_be_here(run, songs):
    there = ("in", "-o", "out", "--engine", "ray", "--device", "cuda:42", "--dry-run")
    undecided = run(*there, "--method", "mgdm")
    assert undecided.exit_code == 1
    assert "device 'cuda:42' is not available" in undecided.stderr
    assert "name --precision float32 or bfloat16" in undecided.stderr
    decided = run(*there, "--method", "mgdm", "--precision", "bfloat16")
    assert decided.exit_code == 0, decided.output
    assert "4 songs, 0 done, 4 to do" in decided.stderr


def test_settings_of_a_row_are_no_wrong_usage_of_the_command(run, songs, tmp_path):
    (tmp_path / "table.csv").write_text('path,settings\nin/01.wav,"{""overlap"": 200000}"\n')
    result = run("table.csv", "-o", "out", "--method", "mgdm")
    assert result.exit_code == 1
    assert "01.wav: " in result.stderr


def test_interrupted(run, songs, monkeypatch):
    def stop(self, *arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Separator, "_draw", stop)
        result = run("in", "-o", "out", "--method", "mgdm", "--workers", "1")
    assert result.exit_code == 130
    assert "the same command goes on" in result.stderr


@pytest.mark.parametrize(
    ("module", "extra", "arguments"),
    [
        ("pyarrow", "catalogue", ()),
        ("fsspec", "catalogue", ()),
        ("ray", "ray", ("--engine", "ray")),
        ("s3fs", "s3", ("-o", "s3://bucket/out")),
    ],
)
def test_an_absent_package_is_named_with_what_installs_it(
    run, songs, monkeypatch, module, extra, arguments
):
    import fsspec

    assert fsspec
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    for name in [name for name in sys.modules if name.startswith(module + ".")]:
        monkeypatch.delitem(sys.modules, name)
    result = run("in", "-o", "out", "--method", "mgdm", *arguments)
    assert result.exit_code == 1
    assert f"pip install 'mgdm-audio[{extra}]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1
