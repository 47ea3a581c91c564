"""Catalogues on a cluster of three machines (node processes), whatever fails."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray")
pytest.importorskip("s3fs")
pytest.importorskip("moto")

from catalogue_fixtures import (
    FILES,
    OPTIONS,
    build,
    check_complete,
    contents,
    records,
    separate,
    write_songs,
)
from object_store import object_store
from test_engine import Squares

from mgdm_audio import Separator, catalogue
from mgdm_audio.engine import EngineError, Failed, LocalEngine, run_all
from mgdm_audio.places import Place
from mgdm_audio.songs import find_songs
from mgdm_audio.songwork import Separate

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
COUNT = 9
NAMES = sorted(f"{i:02d}" if i % 3 else f"album/{i:02d}" for i in range(COUNT))


def build_slowly(**options):
    """A separator that takes a while, so that there is a middle of a song."""
    separator = build(**options)
    draw = Separator._draw

    def slow(*arguments):
        time.sleep(0.7)
        return draw(separator, *arguments)

    separator._draw = slow
    return separator


@pytest.fixture(scope="module")
def outside():
    """The environment of all machines: where the tests are, and the object store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parent)]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_raylet_start_wait_time_s", "120")
        with object_store(patch) as app:
            yield app


class Machines:
    """A head without workers and three machines of a core each, one of them with another disk."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        small = 80 * 2**20
        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": small}
        )
        self.nodes = []
        for i in range(3):
            scratch = folder / f"disk-{i}"
            scratch.mkdir()
            environment = {**os.environ, "SCRATCH": str(scratch)}
            self.nodes.append(
                self.cluster.add_node(num_cpus=1, object_store_memory=small, env_vars=environment)
            )
        self.cluster.wait_for_nodes()


@pytest.fixture
def machines(outside, tmp_path, monkeypatch):
    import ray

    made = Machines(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", made.cluster.address)
    try:
        yield made
    finally:
        ray.shutdown()
        made.cluster.shutdown()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, outside):
    """What this process alone makes of the songs."""
    folder = tmp_path_factory.mktemp("whole")
    write_songs(folder / "in", COUNT)
    (folder / "in" / "bad.wav").write_text("no audio")
    url = separate(folder / "in", folder / "out", LocalEngine())[0].runs[0].url
    check_complete(url, NAMES, ["bad"])
    here = Place("s3://bucket/in")
    for path in sorted((folder / "in").rglob("*.*")):
        here.write(path.read_bytes(), str(path.relative_to(folder / "in")))
    return folder / "in", contents(url)


def ray_engine(workers=3, cores=1):
    from mgdm_audio.engine_ray import RayEngine

    return RayEngine(workers, cores)


def test_engine(machines, tmp_path):
    """Errors, deaths and rooms are those of the engine of one machine."""
    folder = tmp_path / "tried"
    folder.mkdir()
    engine = ray_engine(None)
    assert (engine.workers, engine.gpus) == (3, 0)
    outcome = dict(run_all(engine, Squares(folder, raises=(4,), dies=(3,)), range(8), attempts=2))
    assert outcome.pop(4) == Failed("ValueError: no 4 at all")
    assert "died 2 times" in outcome.pop(3).reason
    assert outcome == {i: i**2 for i in (0, 1, 2, 5, 6, 7)}
    assert len(list(folder.glob("made-*"))) <= 3 + 2 + 2  # once a worker
    with pytest.raises(EngineError, match="takes 4 processor cores"):
        ray_engine(None, 4)


def test_files_are_those_of_one_machine(machines, whole, tmp_path):
    songs, expected = whole
    plan, summary = separate(songs, tmp_path / "out", ray_engine(), group=2)
    (run,) = plan.runs
    assert (summary.done, summary.failed) == (COUNT, 1)
    check_complete(run.url, NAMES, ["bad"])
    assert contents(run.url) == expected
    assert len({record.worker for record in records(run.url).values()}) > 1
    assert separate(songs, tmp_path / "out", ray_engine())[1].done == 0


DRIVER = """
import sys
from test_catalogue_ray import go
if __name__ == "__main__":
    go(*sys.argv[1:])
"""


def go(source, output, scratch=None, callback=lambda record, summary: None):
    """What a driver does, with workers that take a while."""
    songs = find_songs(source, output)
    plan = catalogue.plan(songs, output, OPTIONS, FILES, build=build)
    make = Separate("cpu", 1, 1, scratch, build_slowly)
    return plan, catalogue.run(ray_engine(), make, plan, callback)


def test_whatever_fails(machines, whole, outside, tmp_path):
    """A driver killed, a machine lost, a disk full, one request in fifty failing, a bad song."""
    _, expected = whole
    source, output = "s3://bucket/in", "s3://bucket/out"
    rng = random.Random(0)
    limited = machines.nodes[0]
    small = tmp_path / "disk-0"
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    outside.every, failed = 50, outside.failed
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    try:
        command = [sys.executable, str(script), source, output, "$SCRATCH/mgdm"]
        with subprocess.Popen(command) as driver:
            end = time.monotonic() + 240
            while len(list_manifest(output)) < 3:
                assert time.monotonic() < end
                assert driver.poll() is None, reasons(output)
                time.sleep(0.2)
            driver.send_signal(signal.SIGKILL)
        lost = []

        def lose(record, summary):
            if not lost:
                node = machines.nodes[rng.choice([1, 2])]
                machines.cluster.remove_node(node, allow_graceful=False)
                lost.append(node)

        plan, _ = go(source, output, "$SCRATCH/mgdm", lose)
        (run,) = plan.runs
        assert lost != [limited]
        assert outside.failed > failed
        outside.every = 0
        found = records(run.url)
        assert set(found) == {*NAMES, "bad"}
        full = [name for name, record in found.items() if record.status == "failed"]
        check_complete(run.url, sorted({*NAMES} - {*full}), full)
        assert "bad" in full
        for name in full:
            reason = "full disk: " if name != "bad" else "not a WAV"
            assert reason in found[name].error
        assert len(full) < COUNT  # the full disk does not take the songs from the others
        assert bool(mounted) == (len(full) > 1)
        whole_stems = {n: c for n, c in expected.items() if n.rpartition("/")[0] not in full}
        assert contents(run.url) == whole_stems
    finally:
        outside.every = 0
        if mounted:
            subprocess.run(["umount", "-l", str(small)], check=True)
    # With room again, the same command does the rest.
    go(source, output, "$SCRATCH/mgdm")
    check_complete(run.url, NAMES, ["bad"])
    assert contents(run.url) == expected


def list_manifest(output):
    return [path for path in Place(output).files() if path.endswith(".parquet")]


def reasons(output):
    """What the songs of a run failed of."""
    (url,) = {path.split("/manifest/")[0] for path in list_manifest(output)}
    return {name: record.error for name, record in records(f"s3://{url}").items()}
