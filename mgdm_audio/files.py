"""From files to files: many recordings, each in flat memory, complete or not at all, resumable.

Finished windows wait in a hidden folder beside the outputs (:class:`mgdm_audio.store.FolderStore`).
It is locked while a process works in it, goes away when the song is done, and stays when the song
is interrupted after its first window, for a later call with ``resume``: a window's stems depend on
nothing that an interruption changes, so the files are those of an uninterrupted run.
"""

from __future__ import annotations

__all__ = ["Options", "Result", "Task", "separate_files", "versions"]

import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mgdm_audio import __version__, write
from mgdm_audio.audio import AudioFile
from mgdm_audio.separate import Separator, check_seed, draw_seed, stats
from mgdm_audio.song import Song
from mgdm_audio.store import FolderStore

Progress = Callable[["Task", int, int], None]


@dataclass(frozen=True)
class Task:
    """One file to separate.

    Arguments:
        source: the recording.
        outputs: the files to write, by what is in them: a stem, or stems joined by ``+``.
        work: the folder for what is not finished, on the file system of the outputs; it says
            which outputs these are, since it is what keeps two processes apart.
        report: a JSON file that says how the stems were made, or None.
    """

    source: Path
    outputs: Mapping[str, Path]
    work: Path
    report: Path | None = None


@dataclass(frozen=True)
class Options:
    """What is the same for all files of a call.

    Arguments:
        seed: 0 to 2^63 - 1; None draws one for each file.
        start: where to begin in each file, in seconds.
        duration: how much of it to separate at most, in seconds; None is to its end.
        container: ``wav`` or ``flac``.
        bits: a key of :data:`mgdm_audio.write.BITS`; None keeps the sample format of the source
            where the container has it (see :func:`output_format`).
        resume: go on from the finished windows of an earlier call.
    """

    seed: int | None = None
    start: float = 0.0
    duration: float | None = None
    container: str = "wav"
    bits: str | None = None
    resume: bool = False


@dataclass(frozen=True)
class Result:
    """What became of one file.

    Attributes:
        task: which file.
        error: why nothing was written, or None.
        kept: whether finished windows are kept for a call with ``resume``.
        report: settings, seed, model, versions, residual, network calls, times (empty on error).
    """

    task: Task
    error: BaseException | None = None
    kept: bool = False
    report: dict[str, Any] = field(default_factory=dict)


def output_format(source_subtype: str, container: str, bits: str | None) -> str:
    """The sample format to write: the one asked for, or the source's where the container has it.

    FLAC has integers of 16 and 24 bits alone: it gets 24 for anything finer than 16.
    """
    if bits is not None:
        return write.BITS[bits]
    own = write.output_subtype(source_subtype)
    return own if container == "wav" or own == "PCM_16" else "PCM_24"


def separate_files(
    separator: Separator,
    tasks: Sequence[Task],
    options: Options,
    callback: Progress | None = None,
) -> Iterator[Result]:
    """Separates files; an error of one does not stop the others.

    Arguments:
        separator: how.
        tasks: the files, in the order in which they are begun.
        options: what is the same for all.
        callback: told (task, done, total) in planned network calls; raising in it cancels the
            call, and what is finished of the songs under way is kept.

    Returns:
        A result for each task, when it is done or has failed.

    Raises:
        ValueError: if the seed is out of range.
    """
    if options.seed is not None:
        check_seed(options.seed)
    with ExitStack() as stack:
        yield from _Call(separator, options, callback, stack).results(tasks)


class _Opened:
    """A task under way."""

    def __init__(self, task: Task, began: float, store: FolderStore) -> None:
        self.task, self.began, self.store = task, began, store
        self.song: Song | None = None
        self.subtype = ""

    def close(self, remove: bool | None = None) -> bool:
        """Closes; by default the folder stays if a window is finished. Returns whether it did."""
        if self.song is not None:
            self.song.close()
        keep = self.store.holds_results() if remove is None else not remove
        self.store.close(remove=not keep)
        return keep


class _Call:
    def __init__(
        self,
        separator: Separator,
        options: Options,
        callback: Progress | None,
        stack: ExitStack,
    ) -> None:
        self.separator, self.options, self.callback = separator, options, callback
        self.failed: list[Result] = []
        self.under_way: dict[Song, _Opened] = {}
        stack.callback(self._close)

    def _close(self) -> None:
        for opened in self.under_way.values():
            opened.close()

    def results(self, tasks: Sequence[Task]) -> Iterator[Result]:
        for song, error in self.separator.run(self._songs(tasks)):
            yield from self._failures()
            opened = self.under_way[song]
            try:
                if error is not None:
                    raise error
                report = self._write(opened, song)
            except Exception as problem:
                del self.under_way[song]
                yield Result(opened.task, problem, kept=opened.close())
                continue
            del self.under_way[song]
            opened.close(remove=True)
            yield Result(opened.task, report=report)
        yield from self._failures()

    def _failures(self) -> Iterator[Result]:
        while self.failed:
            yield self.failed.pop(0)

    def _songs(self, tasks: Sequence[Task]) -> Iterator[Song]:
        for task in tasks:
            began = time.monotonic()
            opened: _Opened | None = None
            try:
                file = AudioFile(task.source, self.options.start, self.options.duration)
                opened = _Opened(task, began, FolderStore(task.work))
                song = self._open(opened, file)
            except Exception as error:
                kept = opened.close() if opened is not None else False
                self.failed.append(Result(task, error, kept=kept))
                continue
            except BaseException:
                if opened is not None:
                    opened.close()
                raise
            self.under_way[song] = opened
            yield song

    def _open(self, opened: _Opened, file: AudioFile) -> Song:
        task, options, settings = opened.task, self.options, self.separator.song_settings
        opened.subtype = output_format(file.subtype, options.container, options.bits)
        write.check_format(options.container, opened.subtype, file.sample_rate, file.channels)
        earlier = opened.store.made_from if options.resume else None
        seed = options.seed
        if seed is None:
            seed = draw_seed() if earlier is None else int(earlier["seed"])
        report = None
        if (told := self.callback) is not None:

            def report(done: int, total: int) -> None:
                told(task, done, total)

        song = opened.song = Song(
            file, settings, seed, opened.store, self.separator.sampler.cost().calls, report,
            task.work,
        )  # fmt: skip
        song.scan()
        # What an earlier call left in the folder is used again, or makes room.
        there = sum(path.stat().st_size for path in task.work.glob("*.f32"))
        scratch = max(0.0, 4 * settings.stems * song.kept * 1.1 - there)
        outputs = write.file_bytes(file.channels, song.frames, opened.subtype) * len(task.outputs)
        write.check_space(task.work, round(1.01 * (scratch + outputs)) + (1 << 20))
        made_from = {
            **self.separator.describe(),
            "seed": seed,
            "start": options.start,
            "duration": options.duration,
            "heard": song.digest,
            "frames": song.frames,
            "sample_rate": file.sample_rate,
            "channels": file.channels,
            "mgdm_audio": __version__,
            "torch": torch.__version__,
        }
        opened.store.start(made_from, options.resume)
        song.resume()
        return song

    def _write(self, opened: _Opened, song: Song) -> dict[str, Any]:
        """Writes the files of a sampled song; returns its report."""
        task, options = opened.task, self.options
        names = self.separator.names
        groups = [[names.index(part) for part in name.split("+")] for name in task.outputs]
        paths = list(task.outputs.values())
        everything = [*paths, task.report] if task.report is not None else paths
        rate, channels = song.source.sample_rate, song.source.channels

        def blocks() -> Iterator[tuple[NDArray[np.floating], NDArray[np.floating]]]:
            for stems, mix in song.output():
                yield stems.numpy(), mix.numpy()

        more: list[str] = []
        subtype = opened.subtype
        for attempt in (subtype, "FLOAT"):
            try:
                with write.staged(everything, task.work) as temporary:
                    write.write_blocks(
                        temporary[: len(paths)], groups, blocks(), rate, channels, song.frames,
                        attempt, options.container,
                    )  # fmt: skip
                    report = self._report(opened, song, attempt, more)
                    if task.report is not None:
                        text = json.dumps(report, indent=2, allow_nan=False)
                        temporary[-1].write_text(text + "\n")
                return report
            except write.OutOfRange:
                if options.container != "wav":
                    raise ValueError(
                        f"{task.source}: a stem exceeds full scale, which FLAC cannot hold; run "
                        "again with --format wav --resume"
                    ) from None
                more.append(
                    f"{task.source}: a stem exceeds full scale, which {subtype} cannot hold; its "
                    "files are written as FLOAT"
                )
        raise AssertionError("floats have no range to leave")

    def _report(
        self, opened: _Opened, song: Song, subtype: str, more: Sequence[str]
    ) -> dict[str, Any]:
        residual = song.residual_db
        return {
            "source": str(opened.task.source),
            "outputs": {name: str(path) for name, path in opened.task.outputs.items()},
            "sample_rate": song.source.sample_rate,
            "channels": song.source.channels,
            "frames": song.frames,
            "subtype": subtype,
            "start": self.options.start,
            "duration": self.options.duration,
            "seed": song.seed,
            "residual_db": residual if math.isfinite(residual) else None,
            "settings": self.separator.describe(),
            "stats": stats(song, time.monotonic() - opened.began),
            "versions": versions(),
            "warnings": [*song.warnings, *more],
        }


def versions() -> dict[str, str]:
    """Versions of what the stems depend on."""
    return {
        "mgdm_audio": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
    }
