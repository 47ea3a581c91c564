"""The store of finished windows: locked, checked, and only for what it was made from."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from mgdm_audio.store import BusyError, FolderStore, MemoryStore, StateError

X = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("in_memory", [True, False])
def test_keeps_results_by_name(tmp_path, in_memory):
    store = MemoryStore() if in_memory else FolderStore(tmp_path / "a")
    assert store.get("one") is None
    assert not store.has("one")
    store.put("one", X)
    assert store.has("one")
    assert torch.equal(store.get("one"), X)
    store.drop("one")
    store.drop("one")
    assert store.get("one") is None


def test_a_later_process_goes_on(tmp_path):
    with FolderStore(tmp_path / "a") as store:
        store.start({"seed": 1, "sizes": (1, 2)}, resume=False)
        store.put("one", X)
        assert store.holds_results()
    with FolderStore(tmp_path / "a") as store:
        assert store.made_from == {"seed": 1, "sizes": [1, 2]}
        store.start({"seed": 1, "sizes": (1, 2)}, resume=True)
        assert torch.equal(store.get("one"), X)
    with FolderStore(tmp_path / "a") as store:
        with pytest.raises(StateError, match="seed was 1 and is now 2"):
            store.start({"seed": 2, "sizes": (1, 2)}, resume=True)
        assert store.has("one")
        store.start({"seed": 2, "sizes": (1, 2)}, resume=False)
        assert not store.has("one")


def test_damage_counts_as_absence(tmp_path):
    with FolderStore(tmp_path) as store:
        store.start({}, resume=False)
        for name in ("flipped", "cut", "empty"):
            store.put(name, X)
        for name, change in {
            "flipped": lambda data: data[:99] + bytes([data[99] ^ 1]) + data[100:],
            "cut": lambda data: data[:-7],
            "empty": lambda data: b"",
        }.items():
            path = tmp_path / f"{name}.f32"
            path.write_bytes(change(path.read_bytes()))
            assert store.get(name) is None


def test_results_of_nobody_knows_what_go(tmp_path):
    with FolderStore(tmp_path) as store:
        store.start({"seed": 1}, resume=False)
        store.put("one", X)
    (tmp_path / "state.json").write_text('{"seed": ')
    (tmp_path / "two.part").write_bytes(b"half")
    with FolderStore(tmp_path) as store:
        assert store.made_from is None
        assert not store.has("one")
        assert not (tmp_path / "two.part").exists()


def test_one_process_at_a_time(tmp_path):
    with FolderStore(tmp_path / "a"), pytest.raises(BusyError, match="another process"):
        FolderStore(tmp_path / "a")
    FolderStore(tmp_path / "a").close()


def test_a_dead_process_holds_no_lock(tmp_path):
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom mgdm_audio.store import FolderStore\n"
        "store = FolderStore(Path(sys.argv[1]))\nos.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a"])
    assert done.returncode == -9
    FolderStore(tmp_path / "a").close()


def test_removing_leaves_nothing_that_it_made(tmp_path):
    (tmp_path / "kept").mkdir()
    store = FolderStore(tmp_path / "kept" / "made" / "too")
    store.start({}, resume=False)
    store.put("one", X)
    store.close(remove=True)
    assert not list((tmp_path / "kept").iterdir())
