"""Folders and files by path or URL, local or in object storage, through fsspec.

A file appears complete under its name or not at all: locally it is renamed, and object storage
puts objects whole. Requests to anything but the local disk are repeated, ever later, when they
fail for a reason that may pass.
"""

from __future__ import annotations

__all__ = ["Place", "Stamp", "is_local", "join", "patient"]

import errno
import os
import random
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

R = TypeVar("R")

TRIES = 7
FIRST_WAIT = 0.25  # seconds; doubles, so that all tries take some 15 s

FINAL = (
    FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError,
    ValueError, TypeError, NotImplementedError, ImportError, MemoryError,
)  # fmt: skip
"""Errors that come again if a request is repeated."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

Stamp = tuple[int, str]
"""Size in bytes, and what changes when the content does: time of writing, or the store's tag."""


def join(folder: str, *parts: str) -> str:
    """A path below a folder or URL."""
    return "/".join([folder.rstrip("/"), *parts])


def is_local(url: str) -> bool:
    """Whether a path or URL is on a local file system.

    ``::`` alone makes no URL of a name: it chains protocols that fsspec knows.
    """
    if "://" in url:
        return url.startswith(("file://", "local://"))
    first, chained, _ = url.partition("::")
    if not chained:
        return True

    import fsspec

    return first not in fsspec.available_protocols()


def patient(ask: Callable[[], R], tries: int = TRIES, first_wait: float = FIRST_WAIT) -> R:
    """What a request gives, which is repeated after errors that may pass.

    Waits double, with chance in them, so that a thousand workers do not come back at once.

    Raises:
        Exception: of the last try, or at once if it would come again.
    """
    for attempt in range(tries):
        try:
            return ask()
        except FINAL:
            raise
        except Exception as error:
            if getattr(error, "errno", None) in FULL or attempt == tries - 1:
                raise
            time.sleep(first_wait * 2**attempt * random.uniform(0.5, 1.5))
    raise AssertionError("the last try returns or raises")


class Place:
    """A folder, or a file, with all that is below it.

    Arguments:
        url: a path, or a URL that fsspec knows, such as ``s3://bucket/folder``. Credentials and
            endpoints are those of the environment, by the store's own convention.

    Raises:
        ImportError: if what reads this kind of URL is not installed.
        ValueError: for an unknown kind.
    """

    def __init__(self, url: str) -> None:
        import fsspec
        from fsspec.implementations.local import LocalFileSystem

        self.local = is_local(url)
        self.url = os.path.abspath(url.split("://", 1)[-1]) if self.local else url
        self.fs: Any
        if self.local:  # fsspec would take a name with :: apart
            self.fs, self.root = LocalFileSystem(), Path(self.url).as_posix()
        else:
            self.fs, self.root = fsspec.core.url_to_fs(self.url)

    def path(self, *parts: str) -> str:
        """The path of something below it, as its file system takes it."""
        return join(self.root, *parts) if parts else self.root

    def read(self, *parts: str) -> bytes:
        """The content of a file."""
        path = self.path(*parts)
        return self._ask(lambda: self.fs.cat_file(path))

    def read_all(self, paths: Sequence[str]) -> dict[str, bytes]:
        """The contents of files; those that went away are left out."""
        found: dict[str, bytes] = {}
        if self.local:
            for path in paths:
                try:
                    found[path] = Path(path).read_bytes()
                except FileNotFoundError:
                    continue
            return found
        # All at once, which object storage answers in parallel; what failed is asked for alone.
        asked: dict[str, Any] = self.fs.cat(list(paths), on_error="return") if paths else {}
        for path, content in asked.items():
            try:
                if isinstance(content, BaseException):
                    content = self._ask(partial(self.fs.cat_file, path))
                found[path] = content
            except FileNotFoundError:
                continue
        return found

    def write(self, content: bytes, *parts: str) -> None:
        """A file with this content, complete or not at all."""
        path = self.path(*parts)
        if not self.local:
            self._ask(lambda: self.fs.pipe_file(path, content))
            return
        target = Path(path)
        part = _part(target)
        try:
            part.write_bytes(content)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)

    def send(self, file: Path, *parts: str) -> None:
        """Moves a local file there, complete or not at all."""
        path = self.path(*parts)
        if not self.local:
            self._ask(lambda: self.fs.put_file(str(file), path))
            file.unlink()
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.replace(file, target)
        except OSError as error:
            if error.errno != errno.EXDEV:  # another file system
                raise
            part = _part(target)
            try:
                shutil.copyfile(file, part)
                os.replace(part, target)
            finally:
                part.unlink(missing_ok=True)
            file.unlink()

    def fetch(self, target: Path) -> Path:
        """The file as a local one: itself, or a copy at `target`."""
        if self.local:
            return Path(self.root)
        self._ask(lambda: self.fs.get_file(self.root, str(target)))
        return target

    def stamp(self) -> Stamp:
        """Of the file."""
        if self.local:
            status = os.stat(self.root)
            return status.st_size, str(status.st_mtime_ns)
        self.fs.invalidate_cache()
        return _stamp(self._ask(lambda: self.fs.info(self.root)))

    def files(self, *parts: str) -> dict[str, Stamp]:
        """All files below, by path; none if there is no such folder.

        Locally also those in folders behind links; a folder that there are several ways to counts
        once.
        """
        path = self.path(*parts)
        if self.local:
            found = {}
            for folder, names in _folders(path):
                for name in names:
                    try:
                        file = os.path.join(folder, name)
                        status = os.stat(file)
                    except FileNotFoundError:
                        continue
                    found[file] = (status.st_size, str(status.st_mtime_ns))
            return found
        self.fs.invalidate_cache()
        listed = self._ask(lambda: self.fs.find(path, detail=True))
        return {name: _stamp(info) for name, info in listed.items()}

    def is_folder(self) -> bool:
        """Whether there is a folder."""
        if self.local:
            return os.path.isdir(self.root)
        self.fs.invalidate_cache()
        return bool(self._ask(lambda: self.fs.isdir(self.root)))

    def remove(self, paths: Sequence[str]) -> None:
        """Removes files; it does not matter whether they are there."""
        for path in paths:
            try:
                self._ask(partial(self.fs.rm_file, path))
            except FileNotFoundError:
                continue

    def _ask(self, ask: Callable[[], R]) -> R:
        return ask() if self.local else patient(ask)


def _folders(root: str) -> Iterator[tuple[str, list[str]]]:
    """A folder and all below it, each once and with the names of its files."""
    # Links come after the tree itself, so that they change no name that there is without them.
    waiting, seen = [root], set()
    while waiting:
        for folder, inner, names in os.walk(waiting.pop(0)):
            real = os.path.realpath(folder)
            if real in seen:
                inner.clear()
                continue
            seen.add(real)
            inner.sort()
            paths = [os.path.join(folder, name) for name in inner]
            waiting += [path for path in paths if os.path.islink(path)]
            yield folder, names


def _part(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.parent / f".{uuid.uuid4().hex}.part"


def _stamp(info: dict[str, Any]) -> Stamp:
    tag = info.get("ETag") or info.get("etag") or info.get("md5Hash") or info.get("md5")
    tag = tag or info.get("LastModified") or info.get("updated") or info.get("mtime") or ""
    tag = tag or info.get("created") or ""
    return int(info.get("size") or 0), str(tag).strip('"')
