"""Where the finished windows of a recording wait until all are there: in memory, or in a folder.

The folder outlives the process, so that an interrupted separation can go on. It is locked while a
process works in it, says in ``state.json`` what it was made from, and holds one file for each
result, which appears under its name when it is complete and carries its own checksum.
"""

from __future__ import annotations

__all__ = ["BusyError", "FolderStore", "MemoryStore", "StateError", "Store"]

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from torch import Tensor

STATE = "state.json"
LOCK = "lock"
_SUFFIX = ".f32"
_DIGEST = 32


class BusyError(OSError):
    """Another process works in the folder."""


class StateError(ValueError):
    """A folder that was made from something else than what is asked for now."""


class Store(Protocol):
    """Finished results (rows, samples), float32, by name."""

    def put(self, name: str, value: Tensor) -> None:
        """Keeps a result under a name."""
        ...

    def get(self, name: str) -> Tensor | None:
        """The result of a name, or None if there is none that can be used."""
        ...

    def has(self, name: str) -> bool:
        """Whether a result was put under a name."""
        ...

    def drop(self, name: str) -> None:
        """Forgets a result, if there is one."""
        ...


class MemoryStore:
    """A store in memory."""

    def __init__(self) -> None:
        self._values: dict[str, Tensor] = {}

    def put(self, name: str, value: Tensor) -> None:
        """See `Store.put`."""
        self._values[name] = value

    def get(self, name: str) -> Tensor | None:
        """See `Store.get`."""
        return self._values.get(name)

    def has(self, name: str) -> bool:
        """See `Store.has`."""
        return name in self._values

    def drop(self, name: str) -> None:
        """See `Store.drop`."""
        self._values.pop(name, None)


class FolderStore:
    """A store in a folder, for one process at a time; close it, or use it as a context.

    Arguments:
        folder: is made if it is not there.

    Attributes:
        made_from: what an earlier process said that the folder's results were made from, or None
            where none did.

    Raises:
        BusyError: if another process works in the folder.
        OSError: if the folder cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made = [path for path in folder.parents if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(folder)
        self.made_from: dict[str, Any] | None = None
        try:
            self.made_from = json.loads((folder / STATE).read_text())
        except (OSError, ValueError):
            self.clear()  # without it nobody knows what the results belong to
        for path in folder.iterdir():
            if path.suffix == ".part":
                path.unlink(missing_ok=True)

    def start(self, made_from: Mapping[str, Any], resume: bool) -> None:
        """Says what the results are made from, keeping those that are there only on `resume`.

        Raises:
            StateError: on `resume`, if those that are there were made from something else.
        """
        wanted = json.loads(json.dumps(dict(made_from)))
        if resume and self.made_from is not None:
            differing = [
                f"{key} was {self.made_from.get(key)!r} and is now {wanted.get(key)!r}"
                for key in {**self.made_from, **wanted}
                if self.made_from.get(key) != wanted.get(key)
            ]
            if differing:
                raise StateError(
                    f"cannot resume, the finished windows were made otherwise: "
                    f"{'; '.join(differing)}. Use the same settings, or leave out --resume to "
                    "start anew"
                )
            return
        self.clear()
        self._write(self.folder / STATE, json.dumps(wanted, indent=1).encode())
        self.made_from = wanted

    def put(self, name: str, value: Tensor) -> None:
        """See `Store.put`."""
        data = np.ascontiguousarray(value.numpy(), dtype="<f4")
        head = np.array([data.ndim, *data.shape], dtype="<i8").tobytes()
        body = head + data.tobytes()
        self._write(self._path(name), hashlib.sha256(body).digest() + body)

    def get(self, name: str) -> Tensor | None:
        """See `Store.get`; what does not carry its checksum counts as not there."""
        try:
            content = self._path(name).read_bytes()
        except FileNotFoundError:
            return None
        digest, body = content[:_DIGEST], content[_DIGEST:]
        if hashlib.sha256(body).digest() != digest:
            return None
        ndim = int(np.frombuffer(body, "<i8", 1)[0])
        shape = np.frombuffer(body, "<i8", ndim, offset=8).tolist()
        data = np.frombuffer(body, "<f4", offset=8 * (1 + ndim)).astype(np.float32)
        return torch.from_numpy(data.reshape(shape))

    def has(self, name: str) -> bool:
        """See `Store.has`."""
        return self._path(name).exists()

    def drop(self, name: str) -> None:
        """See `Store.drop`."""
        self._path(name).unlink(missing_ok=True)

    def holds_results(self) -> bool:
        """Whether there is any result."""
        return any(path.suffix == _SUFFIX for path in self.folder.iterdir())

    def clear(self) -> None:
        """Removes all results, and what is said of what they were made from."""
        for path in self.folder.iterdir():
            if path.name != LOCK:
                path.unlink(missing_ok=True)
        self.made_from = None

    def close(self, remove: bool = False) -> None:
        """Lets other processes in; with `remove` the folder and all that is in it go away."""
        if remove:
            shutil.rmtree(self.folder, ignore_errors=True)
            for path in self._made:
                if path.is_dir() and not any(path.iterdir()):
                    path.rmdir()
        self._lock.close()

    def __enter__(self) -> FolderStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{_SUFFIX}"

    def _write(self, path: Path, content: bytes) -> None:
        temporary = path.with_suffix(".part")
        with temporary.open("wb") as stream:
            stream.write(content)
        os.replace(temporary, path)


def _locked(folder: Path) -> IO[bytes]:
    """The lock file of a folder, open and locked; the system lets go of it when a process dies."""
    lock = (folder / LOCK).open("a+b")
    try:
        _take(lock)
        # A process that has just finished may have removed the folder under us.
        if not (folder / LOCK).exists():
            raise BlockingIOError
    except (BlockingIOError, PermissionError) as error:
        lock.close()
        raise BusyError(
            f"{folder} is in use: another process is separating to the same files; wait for it, "
            "or choose another folder (-o)"
        ) from error
    return lock


def _take(lock: IO[bytes]) -> None:
    if os.name == "posix":
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        import msvcrt

        # Not there where mypy runs.
        msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
