"""Engines: every item has one result, whatever becomes of its worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from mgdm_audio import engine
from mgdm_audio.engine import EngineError, Failed, LocalEngine, run_all


@dataclass(frozen=True)
class Squares:
    """Work that dies or raises on some numbers; it counts how often it was made and tried."""

    folder: Path
    raises: tuple[int, ...] = ()
    dies: tuple[int, ...] = ()
    times: int = 10**6

    def __call__(self):
        (self.folder / f"made-{os.getpid()}-{time.monotonic_ns()}").touch()
        return self.work

    def work(self, number):
        tried = len(list(self.folder.glob(f"tried-{number}-*")))
        (self.folder / f"tried-{number}-{tried}").touch()
        if number in self.raises:
            raise ValueError(f"no  {number}\nat all")
        if number in self.dies and tried < self.times:
            os.kill(os.getpid(), signal.SIGKILL)
        return number**2


def made(folder):
    return len(list(folder.glob("made-*")))


@pytest.mark.parametrize("workers", [1, 2])
def test_results_and_errors_are_values(tmp_path, workers):
    outcome = dict(run_all(LocalEngine(workers), Squares(tmp_path, raises=(4,)), range(5)))
    assert outcome.pop(4) == Failed("ValueError: no 4 at all")
    assert outcome == {i: i**2 for i in range(5) if i != 4}
    assert made(tmp_path) <= workers  # once a worker, not once an item


def test_a_worker_that_cannot_be_made(tmp_path):
    def make():
        raise OSError("no model")

    assert dict(run_all(LocalEngine(), make, [1, 2])) == dict.fromkeys(
        (0, 1), Failed("OSError: no model")
    )


def test_an_item_that_always_kills_is_a_failure_and_the_others_are_done(tmp_path):
    outcome = dict(
        run_all(LocalEngine(isolate=True), Squares(tmp_path, dies=(3,)), range(5), attempts=2)
    )
    assert "died 2 times" in outcome[3].reason
    assert [outcome[i] for i in (0, 1, 2, 4)] == [0, 1, 4, 16]
    assert len(list(tmp_path.glob("tried-3-*"))) == 2
    assert len(list(tmp_path.glob("tried-0-*"))) == 1


def test_workers_that_always_die_stop_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "DEATHS", 1)
    work = Squares(tmp_path, dies=tuple(range(100)))
    with pytest.raises(EngineError, match="2 worker processes"):
        list(run_all(LocalEngine(isolate=True), work, range(100)))


def test_what_was_kept_before_a_death_is_not_done_again(tmp_path):
    asked = []

    def found(items):
        asked.append(list(items))
        return [(items.index(3), "kept")]

    work = Squares(tmp_path, dies=(1, 3), times=1)
    outcome = dict(run_all(LocalEngine(isolate=True), work, range(5), found=found))
    assert asked == [[1, 3]]
    assert outcome == {0: 0, 1: 1, 2: 4, 3: "kept", 4: 16}
    assert len(list(tmp_path.glob("tried-3-*"))) == 1


def test_no_items_and_no_workers():
    assert list(run_all(LocalEngine(4), Squares(Path()), [])) == []
    with pytest.raises(ValueError, match="at least 1, got 0"):
        LocalEngine(0)


SLEEPER = """
import signal, sys, time
# A shell has what it runs in the background ignore it, tests and all.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_engine import sleeper
from mgdm_audio.engine import LocalEngine, run_all
if __name__ == "__main__":
    list(run_all(LocalEngine(2), sleeper, [Path(sys.argv[2]) / name for name in "ab"]))
"""


def sleeper():
    def work(path):
        path.write_text(str(os.getpid()))
        time.sleep(600)

    return work


@pytest.mark.skipif(os.name != "posix", reason="kills with a signal")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_process_that_started_them(tmp_path, number):
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER)
    command = [sys.executable, str(script), str(Path(__file__).parent), str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as driver:
        files = [tmp_path / name for name in "ab"]
        wait(lambda: all(file.exists() and file.read_text() for file in files))
        driver.send_signal(number)
        driver.wait()
    for file in files:
        pid = int(file.read_text())
        wait(lambda pid=pid: not Path(f"/proc/{pid}").exists() or zombie(pid))


def zombie(pid):
    """Whether it is dead and nobody has asked for its exit code yet."""
    try:
        return " Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


def wait(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
