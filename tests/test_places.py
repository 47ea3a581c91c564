"""Folders in object storage and on disks, their failures, and the records kept there."""

from __future__ import annotations

import dataclasses
import errno
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pyarrow.parquet as pq
import pytest

from mgdm_audio import places
from mgdm_audio.manifest import Manifest, Record
from mgdm_audio.places import Place, is_local, join, patient

pytest.importorskip("s3fs")
pytest.importorskip("moto")

from catalogue_fixtures import check_complete, contents, records, separate, write_songs
from object_store import object_store


@pytest.fixture(scope="module")
def store():
    with pytest.MonkeyPatch.context() as patch, object_store(patch) as app:
        yield app


@pytest.fixture(params=["disk", "s3"])
def folder(request, tmp_path, store):
    name = request.node.name.replace("[", "-").replace("]", "")
    return str(tmp_path / name) if request.param == "disk" else f"s3://bucket/{name}"


def test_files(folder, tmp_path):
    place = Place(folder)
    assert place.local == (not folder.startswith("s3"))
    assert place.files() == {}
    assert not place.is_folder()
    place.write(b"one", "a b", "[1].txt")
    place.write(b"two!", "c.txt")
    assert place.is_folder()
    assert {p[len(place.root) + 1 :]: s[0] for p, s in place.files().items()} == {
        "a b/[1].txt": 3,
        "c.txt": 4,
    }
    assert place.read("a b", "[1].txt") == b"one"
    assert place.read_all([place.path("c.txt"), place.path("gone")]) == {
        place.path("c.txt"): b"two!"
    }
    with pytest.raises(FileNotFoundError):
        place.read("gone")
    before = Place(join(folder, "c.txt")).stamp()
    assert before == place.files()[place.path("c.txt")]
    place.write(b"2222", "c.txt")
    assert Place(join(folder, "c.txt")).stamp() != before
    (tmp_path / "up").write_bytes(b"sent")
    place.send(tmp_path / "up", "a b", "sent")
    assert not (tmp_path / "up").exists()
    fetched = Place(join(folder, "a b/sent")).fetch(tmp_path / "down")
    assert fetched.read_bytes() == b"sent"
    assert fetched.exists()
    place.remove([place.path("c.txt"), place.path("gone")])
    assert len(place.files()) == 2
    assert not list(tmp_path.rglob("*.part"))


def test_from_one_disk_to_another(tmp_path, monkeypatch):
    replace = places.os.replace

    def apart(source, target):
        if "up" in str(source):
            raise OSError(errno.EXDEV, "another disk")
        replace(source, target)

    monkeypatch.setattr(places.os, "replace", apart)
    (tmp_path / "up").write_bytes(b"sent")
    Place(str(tmp_path)).send(tmp_path / "up", "down", "file")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["file"]
    assert (tmp_path / "down" / "file").read_bytes() == b"sent"


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("/a/b", True),
        ("a/b", True),
        ("file:///a", True),
        ("s3://bucket/a", False),
        ("gs://b", False),
        ("simplecache::s3://b", False),
        ("zip::songs.zip", False),
        ("Artist :: Title.wav", True),
        ("/a/C++::notes/b", True),
    ],
)
def test_what_is_local(url, local):
    assert is_local(url) == local


def test_a_name_is_not_taken_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = Place("Artist :: Title.wav")
    assert (place.local, place.root) == (True, str(tmp_path / "Artist :: Title.wav"))
    place.write(b"song")
    assert (tmp_path / "Artist :: Title.wav").read_bytes() == place.read() == b"song"


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (OSError(errno.EIO, "broken"), 4),
        (TimeoutError(), 4),
        (RuntimeError("the connection pool is empty"), 4),
        (OSError(errno.ENOSPC, "full"), 1),
        (FileNotFoundError("gone"), 1),
        (PermissionError("no"), 1),
    ],
)
def test_requests_are_repeated_where_that_helps(monkeypatch, error, tries):
    waits = []
    monkeypatch.setattr(places.time, "sleep", waits.append)
    asked = []

    def ask():
        asked.append(1)
        raise error

    with pytest.raises(type(error)):
        patient(ask, tries=4, first_wait=1)
    assert len(asked) == tries
    assert all(0.5 * 2**i <= wait <= 1.5 * 2**i for i, wait in enumerate(waits))
    answers = iter([error, error, "there"])

    def twice():
        answer = next(answers)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    if tries > 1:
        assert patient(twice, tries=4, first_wait=1) == "there"


def record(name, finished="1", **changes):
    values = dict.fromkeys([f.name for f in dataclasses.fields(Record)][:13], "")
    values |= {"name": name, "status": "ok", "error": None, "finished": finished, "input_bytes": 1}
    return Record(**{**values, "seed": 2**62, **changes})


def test_records_come_back_and_the_latest_counts(folder):
    manifest = Manifest(folder)
    assert manifest.read() == {}
    kept = record(
        "a/ü", outputs=("x", "y"), sizes=(1, 2), sha256=("0", "1"), residual_db=-1.5, warnings=()
    )
    manifest.add([kept, record("b", "3")])
    manifest.add([record("b", "2", status="failed", error="late\nagain")])
    assert Manifest(folder).read() == {"a/ü": kept, "b": record("b", "3")}
    manifest.compact()
    assert Manifest(folder).read() == {"a/ü": kept, "b": record("b", "3")}
    ((path, _),) = Place(folder).files().items()
    content = Place(folder).read_all([path])[path]
    assert pq.read_table(io.BytesIO(content))["name"].to_pylist() == ["a/ü", "b"]


def test_many_write_while_others_make_one_file_of_many(folder):
    stop = threading.Event()

    def compact(_):
        while not stop.is_set():
            with suppress(OSError):  # of too many at it at a time
                Manifest(folder).compact()

    def add(i):
        Manifest(folder).add([record(f"{i}")])

    with ThreadPoolExecutor(6) as pool:
        compacting = [pool.submit(compact, i) for i in range(2)]
        for done in [pool.submit(add, i) for i in range(40)]:
            done.result()
        stop.set()
        for done in compacting:
            done.result()
    manifest = Manifest(folder)
    assert set(manifest.read()) == {f"{i}" for i in range(40)}
    manifest.compact()
    assert len(manifest.place.files()) == 1


def test_a_compaction_that_stops_loses_nothing(folder, monkeypatch):
    manifest = Manifest(folder)
    for name in "abc":
        manifest.add([record(name)])
    with monkeypatch.context() as patch:
        patch.setattr(Place, "remove", lambda self, paths: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            manifest.compact()
    assert len(manifest.place.files()) == 4
    assert set(manifest.read()) == {*"abc"}


def test_a_file_that_is_no_record_is_named(folder):
    Manifest(folder).add([record("a")])
    Place(folder).write(b"no table", "bad.parquet")
    with pytest.raises(ValueError, match=r"bad\.parquet is no file of a manifest"):
        Manifest(folder).read()


def test_a_catalogue_from_and_to_a_store_that_fails_one_request_in_twenty_five(store, tmp_path):
    names = ["01", "02", "04", "05", "album/00", "album/03"]
    write_songs(tmp_path / "in", 6)
    (tmp_path / "in" / "bad.wav").write_text("no audio")
    local = separate(tmp_path / "in", tmp_path / "out")[0].runs[0].url
    here = Place("s3://bucket/in")
    for path in sorted((tmp_path / "in").rglob("*.*")):
        here.write(path.read_bytes(), str(path.relative_to(tmp_path / "in")))
    store.every, before = 25, store.failed
    try:
        plan, summary = separate("s3://bucket/in", "s3://bucket/out")
        (run,) = plan.runs
        assert (summary.done, summary.failed) == (6, 1)
        assert store.failed - before >= 2
        store.every = 0
        check_complete(run.url, names, ["bad"])
        assert contents(run.url) == contents(local)
        assert records(run.url)["01"].input_stamp == Place("s3://bucket/in/01.wav").stamp()[1]
        (unit,) = separate("s3://bucket/in/**/*.wav", "s3://bucket/out")[0].units
        assert [song.name for song in unit.songs] == ["bad"]
    finally:
        store.every = 0


def test_a_store_that_is_away_is_a_failure_of_each_song(store, tmp_path, monkeypatch):
    write_songs(tmp_path / "in", 2)
    send = Place.send

    def away(self, file, *parts):
        if parts[0].endswith("01/drums.wav"):
            raise OSError(errno.EIO, "the store is away")
        send(self, file, *parts)

    monkeypatch.setattr(Place, "send", away)
    url = separate(tmp_path / "in", "s3://bucket/away")[0].runs[0].url
    assert records(url)["01"].error == "OSError: [Errno 5] the store is away"
    assert records(url)["album/00"].status == "ok"
