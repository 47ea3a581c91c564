"""One song of a catalogue, from its recording to its record, wherever the two are.

The work is that of :func:`mgdm_audio.files.separate_files`, in a scratch folder of the worker. Its
files are then sent to their place, and the record follows when all are there: what has a record
is complete. An error is a record too. A worker that dies leaves the finished windows of its song
in the scratch folder, for the next one on that machine.
"""

from __future__ import annotations

__all__ = ["Separate"]

import hashlib
import json
import math
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgdm_audio.manifest import OK, Manifest, Record
from mgdm_audio.places import FULL, Place, is_local, join
from mgdm_audio.songrun import (
    MANIFEST,
    Fetched,
    Run,
    Unit,
    failed_record,
    fetch,
    sha256_of,
)
from mgdm_audio.songs import CatalogueSong
from mgdm_audio.write import NoSpace

if TYPE_CHECKING:
    from mgdm_audio.separate import Separator

FULL_DISK = "full disk: "
"""What the reason of a failure begins with that is the machine's."""

PAUSE = 1.0
"""Seconds after such a failure, doubled with each: else the worker that does nothing would take the
songs from those that work."""

LONGEST_PAUSE = 60.0

Build = Callable[..., "Separator"]


@dataclass(frozen=True)
class Separate:
    """Makes workers that separate the songs of units, see :data:`mgdm_audio.engine.Make`.

    Arguments:
        device: see :class:`mgdm_audio.Separator`; it is where the worker lives that decides.
        batch: windows at a time; None for what suits the device.
        threads: of a worker on a processor.
        scratch: folder for what is not finished; variables of the environment of the worker's
            machine are put in. None is a hidden folder in the run's where that is local, else the
            machine's folder for temporary files.
        build: makes a separator.
    """

    device: str = "auto"
    batch: int | None = None
    threads: int = 1
    scratch: str | None = None
    build: Build | None = None

    def __call__(self) -> Callable[[Unit], list[Record]]:
        """A worker: it gives a record of each song, which it has added to the run's manifest."""
        return _Worker(self)

    def folder(self, run: Run) -> Path:
        """The scratch folder on this machine."""
        if self.scratch is not None:
            folder = Path(os.path.expandvars(self.scratch)).expanduser()
        elif is_local(run.url):
            folder = Path(Place(run.url).root)
        else:
            folder = Path(tempfile.gettempdir())
        return folder / f".mgdm-{run.fingerprint[:12]}"


@dataclass(frozen=True)
class _Ready:
    """A song whose files are here.

    New ones go to a folder of this worker's alone. Finished windows are in another one, which is
    locked, and which any worker can go on with.
    """

    song: CatalogueSong
    began: float
    folder: Path
    windows: Path
    files: Fetched


class _Worker:
    def __init__(self, make: Separate) -> None:
        from mgdm_audio.files import versions

        self.make = make
        self.separator: Separator | None = None
        self.options: Mapping[str, Any] = {}
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.versions = json.dumps(versions(), sort_keys=True)
        self.full = 0

    def __call__(self, unit: Unit) -> list[Record]:
        with _threads(self.make.threads):
            return list(self._records(unit))

    def _records(self, unit: Unit) -> Iterator[Record]:
        run = unit.run
        manifest = Manifest(join(run.url, MANIFEST))
        ready: list[_Ready] = []
        try:
            for song in unit.songs:
                began = time.monotonic()
                key = hashlib.sha256(f"{run.url} {song.name}".encode()).hexdigest()[:16]
                folder = self.make.folder(run) / f"{key}-{self.name.replace(':', '-')}"
                try:
                    separator = self._opened(run)
                    _remove_dead(folder.parent, key)
                    folder.mkdir(parents=True, exist_ok=True)
                    files = fetch(song, folder)
                    ready.append(_Ready(song, began, folder, folder.with_name(key), files))
                except Exception as error:
                    shutil.rmtree(folder, ignore_errors=True)
                    record = self._failed(run, song, _reason(song, error), began)
                    yield self._kept(run, manifest, record)
            for seed in dict.fromkeys(run.seed_of(each.song) for each in ready):
                group = [each for each in ready if run.seed_of(each.song) == seed]
                for each, outcome in _separated(separator, run, group, seed):
                    try:
                        if isinstance(outcome, BaseException):
                            raise outcome
                        record = self._sent(run, each, outcome, separator)
                    except Exception as error:
                        record = self._failed(
                            run, each.song, _reason(each.song, error), each.began, each.files
                        )
                    finally:
                        shutil.rmtree(each.folder, ignore_errors=True)
                    yield self._kept(run, manifest, record)
        finally:
            for each in ready:  # of those that an interruption left
                shutil.rmtree(each.folder, ignore_errors=True)

    def _kept(self, run: Run, manifest: Manifest, record: Record) -> Record:
        """The record, which is in the manifest now; without stems if it failed."""
        if record.status != OK:
            place = Place(run.url)
            with suppress(Exception):  # of an earlier try; the record says that they do not count
                place.remove([place.path(stem) for stem in run.outputs(record.name)])
        manifest.add([record])
        self.full = self.full + 1 if (record.error or "").startswith(FULL_DISK) else 0
        if self.full:
            time.sleep(min(PAUSE * 2 ** (self.full - 1), LONGEST_PAUSE))
        return record

    def _opened(self, run: Run) -> Separator:
        if self.separator is None or self.options != run.options:
            from mgdm_audio.separate import Separator

            self.separator = None
            build: Build = self.make.build or Separator
            separator = build(device=self.make.device, batch=self.make.batch, **run.options)
            here = json.loads(json.dumps(separator.describe()))
            different = [key for key in run.describes if here.get(key) != run.describes[key]]
            if different:
                raise RuntimeError(
                    f"on {socket.gethostname()} the settings give another "
                    f"{' and '.join(different)} than where the run was started; are model and "
                    "package the same there?"
                )
            self.separator, self.options = separator, run.options
        return self.separator

    def _sent(self, run: Run, each: _Ready, report: Mapping[str, Any], by: Separator) -> Record:
        """Sends the files of a song to their place, and says so."""
        place = Place(run.url)
        names = run.outputs(each.song.name)
        sizes, sums = [], []
        for name in names:
            file = each.folder / "out" / Path(name).name
            sizes.append(file.stat().st_size)
            sums.append(sha256_of(file))
            place.send(file, name)
        stats = report["stats"]
        return replace(
            self._failed(run, each.song, "", each.began, each.files),
            status=OK,
            error=None,
            residual_db=report["residual_db"],
            calls=stats["calls"],
            vjps=stats["vjps"],
            windows=stats["windows"],
            audio_seconds=report["frames"] / report["sample_rate"],
            outputs=tuple(names),
            sizes=tuple(sizes),
            output_bytes=sum(sizes),
            sha256=tuple(sums),
            warnings=tuple(report["warnings"]),
            device=str(by.device),
        )

    def _failed(
        self,
        run: Run,
        song: CatalogueSong,
        reason: str,
        began: float,
        files: Fetched | None = None,
    ) -> Record:
        return failed_record(
            run, song, reason, self.name, self.make.threads, time.monotonic() - began, files,
            self.versions,
        )  # fmt: skip


def _reason(song: CatalogueSong, error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, NoSpace) or getattr(error, "errno", None) in FULL:
        return FULL_DISK + text
    if text.startswith(song.path):  # it says what it is about
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _separated(
    separator: Separator, run: Run, group: Sequence[_Ready], seed: int
) -> Iterator[tuple[_Ready, Mapping[str, Any] | BaseException]]:
    """Each song with its report or its error; the files are in the folder ``out`` of its own."""
    from mgdm_audio.files import Options, Task, separate_files
    from mgdm_audio.store import BusyError, StateError

    owners = {}
    for each in group:
        if each.files.known:
            yield each, _with_known(separator, run, each, seed)
        else:
            owners[each.windows] = each
    wanted = run.files
    options = Options(
        seed, wanted.start, wanted.duration, wanted.container, wanted.bits, resume=True
    )
    tasks = [Task(each.files.source, _files(run, each), work) for work, each in owners.items()]
    for result in separate_files(separator, tasks, options):
        each, anew = owners[result.task.work], replace(options, resume=False)
        if isinstance(result.error, StateError):
            # Windows of another version, or of what the recording was: they make way.
            (result,) = separate_files(separator, [result.task], anew)
        if isinstance(result.error, BusyError):
            # They are those of a worker that is not dead yet.
            apart = Task(each.files.source, result.task.outputs, each.folder / "windows")
            (result,) = separate_files(separator, [apart], anew)
        elif result.error is not None:
            shutil.rmtree(each.windows, ignore_errors=True)
        yield each, result.error or result.report


def _files(run: Run, each: _Ready) -> dict[str, Path]:
    files = run.files
    return {name: each.folder / "out" / f"{name}.{files.container}" for name in files.names}


def _with_known(
    separator: Separator, run: Run, each: _Ready, seed: int
) -> Mapping[str, Any] | BaseException:
    """Separates a song some of whose stems are known, in memory."""
    from mgdm_audio import audio, write
    from mgdm_audio.conditional import separate_known, whole_stems
    from mgdm_audio.files import output_format

    try:
        read = audio.read(each.files.source)
        given = {}
        for stem, path in each.files.known.items():
            other = audio.read(path)
            if other.sample_rate != read.sample_rate:
                raise ValueError(
                    f"known {stem} has {other.sample_rate} Hz and the song {read.sample_rate}"
                )
            given[stem] = other.samples
        mix = read.samples
        made = separate_known(separator, mix, given, read.sample_rate, [seed])
        names, stack = list(made.draws[0]), whole_stems(made.draws[0], given, mix)
        groups = [[names.index(part) for part in name.split("+")] for name in run.files.names]
        paths = list(_files(run, each).values())
        subtype = output_format(read.subtype, run.files.container, run.files.bits)
        used = write.write_stems(
            paths, stack, mix, read.sample_rate, subtype, groups, run.files.container
        )
        warnings = [*read.warnings, *made.warnings]
        if used != subtype:
            warnings.append(f"a stem exceeds full scale; the files are {used}, not {subtype}")
        return {
            "stats": {"calls": made.calls, "vjps": made.vjps, "windows": made.windows},
            "residual_db": made.residual_db if math.isfinite(made.residual_db) else None,
            "frames": mix.shape[1],
            "sample_rate": read.sample_rate,
            "warnings": warnings,
        }
    except Exception as error:
        return error


def _remove_dead(scratch: Path, key: str) -> None:
    """Removes what workers of this machine that are dead left of a song, but its windows."""
    mine = f"{key}-{socket.gethostname()}"
    for folder in scratch.glob(f"{mine}-*"):
        owner, _, pid = folder.name.rpartition("-")
        if owner != mine:
            continue  # of a machine whose name begins with this one's: its processes are not here
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # somebody else's


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many threads of torch; the last bits of a sum depend on them."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
