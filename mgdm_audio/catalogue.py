"""Catalogues of any size: what is to do, doing it with an engine, and what became of it.

A run is a folder of its own below the output, named for the fingerprint of its settings, with the
stems, the manifest (:mod:`mgdm_audio.manifest`) and ``settings.json``: songs that were separated
differently never lie together. A second call does what is missing or has failed.
"""

from __future__ import annotations

__all__ = ["Catalogue", "Files", "OptionsError", "Summary", "plan", "run"]

import inspect
import json
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgdm_audio.cost import QUALITIES
from mgdm_audio.engine import Engine, Failed, run_all
from mgdm_audio.manifest import OK, Manifest, Record
from mgdm_audio.model_info import ModelError
from mgdm_audio.places import Place, join
from mgdm_audio.songrun import (
    MANIFEST,
    STEMS_FOLDER,
    Files,
    Run,
    Unit,
    failed_record,
    fetch,
    stamp_of,
)
from mgdm_audio.songs import CatalogueSong
from mgdm_audio.songwork import FULL_DISK, Separate

if TYPE_CHECKING:
    from mgdm_audio.separate import Separator

SETTINGS = "settings.json"
FIXED = ("device", "batch", "residual", "other")
"""Arguments of a separator that a single song cannot change."""

FULL_DISKS = 5
"""Songs in a row, for each worker, that find no room before a run stops."""

_ASKING = 16  # files whose state is asked for at the same time


class OptionsError(ValueError):
    """Options that a separator refuses, whatever the songs."""


@dataclass(frozen=True)
class Catalogue:
    """What is to do.

    Attributes:
        units: songs that go to a worker together.
        runs: folders of the runs, of what is done as well.
        done: songs that are there.
    """

    units: tuple[Unit, ...]
    runs: tuple[Run, ...]
    done: int

    @property
    def songs(self) -> int:
        """Songs that are to do."""
        return sum(len(unit.songs) for unit in self.units)


@dataclass
class Summary:
    """What became of the songs so far.

    Attributes:
        done: songs separated.
        failed: songs without stems.
        audio_seconds: length of what was separated.
        work_seconds: that it took, of all workers together.
    """

    done: int = 0
    failed: int = 0
    audio_seconds: float = 0.0
    work_seconds: float = 0.0

    def count(self, record: Record) -> None:
        """Counts a song."""
        self.done += record.status == OK
        self.failed += record.status != OK
        self.audio_seconds += record.audio_seconds
        self.work_seconds += record.seconds


def plan(
    songs: Sequence[CatalogueSong],
    output: str,
    options: Mapping[str, Any],
    files: Files,
    group: int = 1,
    build: Callable[..., Separator] | None = None,
    keep: Collection[str] = (),
) -> Catalogue:
    """What is to do for songs. Nothing is written.

    Arguments:
        songs: see :func:`mgdm_audio.songs.find_songs`.
        output: folder of the runs.
        options: arguments of :class:`mgdm_audio.Separator`, without device and batch. The
            precision has to be a definite one: machines that differ must not choose for themselves.
        files: what is written of each song.
        group: songs that go to a worker together, whose windows fill its batches.
        build: makes a separator.
        keep: names of options that were chosen on their own: the quality or method of a song does
            not replace them.

    Raises:
        OptionsError: for options that a separator refuses.
        ValueError: for a song's settings that it refuses, a model that there is not, songs that
            ask for what cannot be, and a run's folder whose ``settings.json`` was changed.
        OSError: if the output cannot be read.
    """
    output = Place(output).url
    kinds: dict[str, list[CatalogueSong]] = {}
    for song in songs:
        kinds.setdefault(json.dumps(dict(song.settings), sort_keys=True), []).append(song)
    units: list[Unit] = []
    runs: list[Run] = []
    done = 0
    for members in kinds.values():
        changed = _changed(options, members[0], keep)
        try:
            run = _run(output, changed, files, build)
        except ValueError as error:
            if members[0].settings:
                raise ValueError(f"{members[0].path}: {error}") from error
            if isinstance(error, ModelError):
                raise
            raise OptionsError(str(error)) from error
        # Options that differ may say the same: a quality, or all that it stands for.
        if run.fingerprint in [earlier.fingerprint for earlier in runs]:
            raise ValueError(
                f"{members[0].path}: its settings {dict(members[0].settings)} come to those of "
                "other songs; write them in one way, or leave them out"
            )
        for song in members:
            _check_known(song, run, options)
        runs.append(run)
        _is_begun(run)  # refuses a folder that was changed
        missing = _missing(run, members)
        done += len(members) - len(missing)
        units += [Unit(run, tuple(missing[i : i + group])) for i in range(0, len(missing), group)]
    return Catalogue(tuple(units), tuple(runs), done)


def run(
    engine: Engine,
    make: Separate,
    catalogue: Catalogue,
    callback: Callable[[Record, Summary], None] = lambda record, summary: None,
) -> Summary:
    """Separates what is to do; errors of songs are in the manifests.

    Arguments:
        engine: where.
        make: how.
        catalogue: what.
        callback: told what became of each song, and of all so far; raising in it stops, and what
            is done stays.

    Raises:
        EngineError: if workers die whatever they are given.
        ValueError: if a run's folder has another ``settings.json``; nothing was separated then.
        OSError: if settings or a manifest cannot be read or written, or the disks of all workers
            are full.
    """
    for each in catalogue.runs:
        _begin(each)
    summary = Summary()
    units = catalogue.units
    full = 0
    found = _Found(catalogue.runs)
    try:
        for number, outcome in run_all(engine, make, units, found=found):
            if isinstance(outcome, Failed):
                records = found.lost(units[number], outcome)
            else:
                records = outcome
            for record in records:
                summary.count(record)
                callback(record, summary)
                full = full + 1 if (record.error or "").startswith(FULL_DISK) else 0
            if full > FULL_DISKS * (engine.workers + 1):
                raise OSError(
                    f"the last {full} songs found no room, {records[-1].error}; free some, or name "
                    "another folder (--scratch), and start again"
                )
    finally:
        for each in catalogue.runs:
            Manifest(join(each.url, MANIFEST)).compact()
            with suppress(OSError):  # others are at work there, or it is not on this machine
                make.folder(each).rmdir()
    return summary


def _changed(
    options: Mapping[str, Any], song: CatalogueSong, keep: Collection[str]
) -> dict[str, Any]:
    """The options of a run with what a song says instead."""
    own = dict(song.settings)
    if fixed := [name for name in own if name in FIXED]:
        raise ValueError(f"{song.path}: '{fixed[0]}' is the same for all songs of a catalogue")
    if "quality" in own or "method" in own:
        # Each stands for all that goes with it: a warm start, or a setting of a sampler, belongs
        # to the one that is replaced.
        options = {name: v for name, v in options.items() if name in keep or not _decided(name)}
    return {**options, **own}


def _decided(name: str) -> bool:
    """Whether a quality or a method decides an argument of a separator."""
    from mgdm_audio.separate import Separator

    named = inspect.signature(Separator).parameters
    return name == "quality" or name in QUALITIES["default"] or name not in named


def _run(
    output: str,
    options: Mapping[str, Any],
    files: Files,
    build: Callable[..., Separator] | None,
) -> Run:
    if build is None:
        from mgdm_audio.separate import Separator

        build = Separator
    try:
        separator = build(device="cpu", **options)
    except TypeError as error:
        raise ValueError(f"settings {dict(options)}: {error}") from error
    if unknown := {part for name in files.names for part in name.split("+")} - {*separator.names}:
        raise ValueError(
            f"there is no stem '{sorted(unknown)[0]}'; there are {', '.join(separator.names)}"
        )
    describes = json.loads(json.dumps(separator.describe()))
    return Run(output, dict(options), describes, files)


def _check_known(song: CatalogueSong, run: Run, options: Mapping[str, Any]) -> None:
    if not song.known:
        return
    other = options.get("residual") or options.get("other") is not None
    if other or run.files.start or run.files.duration is not None:
        raise ValueError(
            f"{song.path}: songs with known stems are separated whole and into the prior's stems; "
            "leave out start, duration, residual and other"
        )


def _described(run: Run) -> dict[str, Any]:
    """What ``settings.json`` says of a run."""
    return {"fingerprint": run.fingerprint, **run.settings}


def _is_begun(run: Run) -> bool:
    """Whether the folder says what the run is. Raises ValueError if it says something else."""
    try:
        earlier = json.loads(Place(run.url).read(SETTINGS))
    except FileNotFoundError:
        return False
    if earlier != _described(run):
        raise ValueError(
            f"{join(run.url, SETTINGS)} is not what its folder is named for; was it changed? "
            "Move the folder away, or choose another output"
        )
    return True


def _begin(run: Run) -> None:
    """Writes what the run is, if it is a new one."""
    if not _is_begun(run):
        content = json.dumps(_described(run), indent=2) + "\n"
        Place(run.url).write(content.encode(), SETTINGS)


def _missing(run: Run, songs: Sequence[CatalogueSong]) -> list[CatalogueSong]:
    """Those of the songs that have no stems yet, or stems of something else."""
    records = Manifest(join(run.url, MANIFEST)).read()
    place = Place(run.url)
    there = {path: stamp[0] for path, stamp in place.files(STEMS_FOLDER).items()}

    def is_done(song: CatalogueSong) -> bool:
        record = records.get(song.name)
        if record is None or record.status != OK or record.seed != run.seed_of(song):
            return False
        if list(record.outputs) != run.outputs(song.name):
            return False
        sizes = [there.get(place.path(output)) for output in record.outputs]
        return sizes == list(record.sizes) and _is_unchanged(song, record)

    with ThreadPoolExecutor(_ASKING) as pool:
        return [
            song for song, done in zip(songs, pool.map(is_done, songs), strict=True) if not done
        ]


def _is_unchanged(song: CatalogueSong, record: Record) -> bool:
    """Whether a song is what it was; its files are read only if they look changed.

    One that cannot be read is taken to be: done again it would fail, and lose the stems it has.
    """
    try:
        if stamp_of(song) == (record.input_bytes, record.input_stamp):
            return True
        with tempfile.TemporaryDirectory() as folder:
            read = fetch(song, Path(folder))
            return (read.sha256, read.known_sha256) == (record.input_sha256, record.known_sha256)
    except OSError:
        return True


class _Found:
    """Records that workers kept but did not live to tell."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self._manifests = {run.fingerprint: Manifest(join(run.url, MANIFEST)) for run in runs}
        self._before = {mark: manifest.read() for mark, manifest in self._manifests.items()}

    def __call__(self, units: Sequence[Unit]) -> Iterator[tuple[int, list[Record]]]:
        """See `found` of :func:`mgdm_audio.engine.run_all`."""
        after = {mark: manifest.read() for mark, manifest in self._manifests.items()}
        for position, unit in enumerate(units):
            fresh = self._fresh(unit, after[unit.run.fingerprint])
            if len(fresh) == len(unit.songs):
                yield position, fresh

    def lost(self, unit: Unit, failed: Failed) -> list[Record]:
        """Records of the songs of a unit that gave none, all in the manifest then."""
        manifest = self._manifests[unit.run.fingerprint]
        fresh = self._fresh(unit, manifest.read())
        known = {record.name for record in fresh}
        added = [
            failed_record(unit.run, song, failed.reason, worker="", threads=0)
            for song in unit.songs
            if song.name not in known
        ]
        if added:
            manifest.add(added)
        return fresh + added

    def _fresh(self, unit: Unit, after: Mapping[str, Record]) -> list[Record]:
        before = self._before[unit.run.fingerprint]
        records = [after.get(song.name) for song in unit.songs]
        return [r for r in records if r is not None and r != before.get(r.name)]
