"""What is separated in one way, and what is known of its songs: folder, files, checksums."""

from __future__ import annotations

__all__ = [
    "MANIFEST",
    "STEMS_FOLDER",
    "Fetched",
    "Files",
    "Run",
    "Unit",
    "failed_record",
    "fetch",
    "sha256_of",
    "stamp_of",
]

import datetime
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mgdm_audio.manifest import FAILED, Record
from mgdm_audio.places import Place, Stamp, join
from mgdm_audio.songs import CatalogueSong

MANIFEST, STEMS_FOLDER = "manifest", "stems"


@dataclass(frozen=True)
class Files:
    """What is written of each song.

    Arguments:
        names: files of each song: stems, or stems joined by ``+``.
        seed: of songs that have none of their own.
        start, duration: what is separated of each recording, in seconds; None is to its end.
        container, bits: see :class:`mgdm_audio.files.Options`.
    """

    names: tuple[str, ...]
    seed: int = 0
    start: float = 0.0
    duration: float | None = None
    container: str = "wav"
    bits: str | None = None


@dataclass(frozen=True)
class Run:
    """Songs that are separated in one way, and the folder where they go.

    Arguments:
        output: folder of all runs.
        options: arguments of :class:`mgdm_audio.Separator`.
        describes: what such a separator says of itself, see `Separator.describe`.
        files: what is written of each song.
    """

    output: str
    options: Mapping[str, Any]
    describes: Mapping[str, Any]
    files: Files

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides what a song becomes, as JSON has it."""
        content = {"separator": dict(self.describes), **asdict(self.files)}
        settings: dict[str, Any] = json.loads(json.dumps(content))
        return settings

    @cached_property
    def fingerprint(self) -> str:
        """A checksum of the settings."""
        text = json.dumps(self.settings, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def url(self) -> str:
        """The folder."""
        return join(self.output, f"run-{self.fingerprint[:12]}")

    def seed_of(self, song: CatalogueSong) -> int:
        """The seed of a song's samples."""
        return self.files.seed if song.seed is None else song.seed

    def outputs(self, name: str) -> list[str]:
        """The files of a song by its name, relative to the folder."""
        files = self.files
        return [join(STEMS_FOLDER, name, f"{file}.{files.container}") for file in files.names]


@dataclass(frozen=True)
class Unit:
    """Songs that go to a worker together, whose windows share batches."""

    run: Run
    songs: tuple[CatalogueSong, ...]


@dataclass(frozen=True)
class Fetched:
    """The files of a song on this machine.

    Attributes:
        source, known: the recording and the known stems.
        sha256, known_sha256: their checksums; that of no stems is empty.
        stamp: see `stamp_of`.
    """

    source: Path
    known: Mapping[str, Path]
    sha256: str
    known_sha256: str
    stamp: Stamp


def stamp_of(song: CatalogueSong) -> Stamp:
    """What changes when a file of a song does: bytes of the recording, and a text for all."""
    size, text = song.stamp or Place(song.path).stamp()
    for stem in sorted(song.known):
        bytes_, stamp = Place(song.known[stem]).stamp()
        text += f" {stem} {bytes_} {stamp}"
    return size, text


def fetch(song: CatalogueSong, folder: Path) -> Fetched:
    """Brings a song's files to this machine; local ones stay where they are.

    Raises:
        OSError: if one cannot be read.
    """
    # The stamp is older than the content: a file that changes meanwhile is read again next time.
    stamp = stamp_of(replace(song, stamp=None))
    source = Place(song.path).fetch(folder / f"input{Path(song.path).suffix}")
    known, sums = {}, hashlib.sha256()
    for stem in sorted(song.known):
        url = song.known[stem]
        known[stem] = Place(url).fetch(folder / f"known-{stem}{Path(url).suffix}")
        sums.update(f"{stem} {sha256_of(known[stem])} ".encode())
    return Fetched(source, known, sha256_of(source), sums.hexdigest() if known else "", stamp)


def failed_record(
    run: Run,
    song: CatalogueSong,
    reason: str,
    worker: str,
    threads: int,
    seconds: float = 0.0,
    files: Fetched | None = None,
    versions: str = "",
) -> Record:
    """The record of a song without stems."""
    return Record(
        name=song.name,
        source=song.path,
        status=FAILED,
        error=reason,
        finished=_now(),
        settings=run.fingerprint,
        model=str(run.describes["model"]),
        model_sha256=str(run.describes["sha256"]),
        input_sha256=files.sha256 if files else "",
        input_bytes=files.stamp[0] if files else 0,
        input_stamp=files.stamp[1] if files else "",
        known_sha256=files.known_sha256 if files else "",
        seed=run.seed_of(song),
        seconds=seconds,
        worker=worker,
        threads=threads,
        versions=versions,
    )


def _now() -> str:
    """The time in UTC, which sorts as text."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds")


def sha256_of(file: Path) -> str:
    """The checksum of a file's content."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
