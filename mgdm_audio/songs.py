"""Which songs a catalogue has: a folder, a pattern, or a table, local or in object storage."""

from __future__ import annotations

__all__ = ["COLUMNS", "CatalogueSong", "find_songs"]

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from mgdm_audio import STEMS
from mgdm_audio.places import Place, Stamp, join
from mgdm_audio.tree import ACCEPTED, InputError, all_below_output, track_name

COLUMNS = ("path", "name", "seed", "settings", "known")
"""Columns of a table of songs; all but the first may be absent, and cells empty."""


@dataclass(frozen=True)
class CatalogueSong:
    """A song to separate.

    Arguments:
        path: path or URL of the recording.
        name: of its folder of stems; parts are joined by ``/``.
        seed: None for the one of the run.
        settings: arguments of :class:`mgdm_audio.Separator` that differ from those of the run.
        known: files of stems that are there already, by stem.
        stamp: of the recording's file, None if it was not looked at.
    """

    path: str
    name: str
    seed: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    known: Mapping[str, str] = field(default_factory=dict)
    stamp: Stamp | None = None


def find_songs(source: str, output: str) -> list[CatalogueSong]:
    """The songs that an input stands for, in order of name.

    Arguments:
        source: a folder with all below it, a pattern (``*``, ``?``, ``[...]``, ``**``), one
            recording, or a table (.csv or .parquet) with the columns `COLUMNS`; paths in a table
            are relative to it. A path or a URL. A local path that is there is no pattern.
        output: where stems go; what lies there is not taken.

    Raises:
        InputError: if there is no song, the input is a path and nothing is there, a table cannot
            be used, or two songs have one name.
        OSError: if it cannot be read.
    """
    place = Place(source)
    files: Mapping[str, Stamp] = {}
    if source.endswith((".csv", ".parquet")):
        songs = list(_from_table(source, place))
    elif place.is_folder():
        root = place.root.rstrip("/")
        files = place.files()
        songs = list(_from_files(place, files, root, Place(output)))
    elif _is_pattern(source) and not (place.local and os.path.lexists(place.root)):
        fixed = source
        while _is_pattern(fixed):
            fixed = fixed.rpartition("/")[0]
        base = Place(fixed or (source[0] if source[0] == "/" else "."))
        names = set(map(str, place.fs.glob(place.root)))
        files = {path: stamp for path, stamp in base.files().items() if path in names}
        songs = list(_from_files(base, files, base.root.rstrip("/"), Place(output)))
    else:
        # Only here: whether an object is there, its worker finds out.
        if place.local and not os.path.lexists(place.root):
            raise InputError(f"{source}: there is no such file or folder")
        name = PurePosixPath(place.root).stem
        songs = [CatalogueSong(place.url, name if name.strip(".") else "song")]
    if not songs:
        if any(map(_is_audio, files)):
            raise InputError(all_below_output(source))
        raise InputError(
            f"{source}: there is no song; files ending in {', '.join(ACCEPTED)} are taken from a "
            "folder, and rows from a table"
        )
    _refuse_clashes(songs)
    return sorted(songs, key=lambda song: song.name)


def _from_files(
    place: Place, files: Mapping[str, Stamp], root: str, output: Place
) -> Iterator[CatalogueSong]:
    protocol = "" if place.local else place.url.split("://", 1)[0] + "://"
    # A local folder may have several names.
    real = os.path.realpath if place.local else str
    out = real(output.root).rstrip("/") + "/"
    inside = output.local == place.local and (output.local or output.url.startswith(protocol))
    for path, stamp in files.items():
        if not _is_audio(path) or (inside and real(path).startswith(out)):
            continue
        relative = PurePosixPath(path[len(root) :].lstrip("/"))
        stem = track_name(relative)
        yield CatalogueSong(
            path if place.local else protocol + path, str(relative.with_name(stem)), stamp=stamp
        )


def _is_pattern(path: str) -> bool:
    return any(character in path for character in "*?[")


def _is_audio(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in ACCEPTED


def _from_table(source: str, place: Place) -> Iterator[CatalogueSong]:
    content = place.read()
    folder = place.url.rpartition("/")[0]
    try:
        if source.endswith(".csv"):
            text = content.decode("utf-8-sig")
            rows: Iterable[Mapping[Any, Any]] = list(csv.DictReader(io.StringIO(text), strict=True))
        else:
            import pyarrow.parquet

            rows = pyarrow.parquet.ParquetFile(io.BytesIO(content)).read().to_pylist()
    except (ValueError, csv.Error) as error:
        raise InputError(f"{source}: cannot be read as a table: {error}") from error
    for number, row in enumerate(rows, 1):
        try:
            yield _from_row(row, folder)
        except ValueError as error:
            raise InputError(f"{source}, row {number}: {error}") from error


def _from_row(row: Mapping[Any, Any], folder: str) -> CatalogueSong:
    if None in row:  # where the csv module puts what is behind the last column
        raise ValueError(
            "has more cells than there are columns; put JSON in quotes, with "
            '"" for each quote in it'
        )
    cells = {key: value for key, value in row.items() if value is not None and value != ""}
    unknown = [str(key) for key in row if key not in COLUMNS]
    if unknown:
        raise ValueError(f"unknown column '{unknown[0]}'; there are {', '.join(COLUMNS)}")
    if "path" not in cells:
        raise ValueError("the path is missing")
    path = _located(str(cells["path"]), folder)
    seed = None
    if "seed" in cells:
        text = str(cells["seed"])
        if not text.isdecimal() or int(text) >= 2**63:
            raise ValueError(f"the seed must be a whole number from 0 to 2^63 - 1, got '{text}'")
        seed = int(text)
    settings = _object(cells, "settings")
    known = _object(cells, "known")
    for stem, file in known.items():
        if stem not in STEMS or not isinstance(file, str):
            raise ValueError(
                f"known stems must be files by stem ({', '.join(STEMS)}), got {stem}: {file!r}"
            )
    name = str(cells.get("name", ""))
    if not name:
        text = str(cells["path"])
        relative = PurePosixPath(text)
        if "://" in text or relative.is_absolute() or ".." in relative.parts:
            relative = PurePosixPath(relative.name)
        name = str(relative.with_suffix(""))
        name += f"/seed-{seed}" if seed is not None else ""
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or any(not part.strip(".") for part in parts):
        raise ValueError(f"'{name}' is no name of a folder below the output")
    return CatalogueSong(
        path, "/".join(parts), seed, settings, {k: _located(v, folder) for k, v in known.items()}
    )


def _object(cells: Mapping[Any, Any], column: str) -> dict[str, Any]:
    """A cell with a JSON object; a Parquet file may hold it as a structure."""
    value = cells.get(column, {})
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"{column}: '{value}' is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{column} must be a JSON object, got {value!r}")
    return {str(k): v for k, v in value.items() if v is not None}


def _located(path: str, folder: str) -> str:
    if "://" in path or path.startswith("/"):
        return path
    return join(folder, path) if folder else path


def _refuse_clashes(songs: Iterable[CatalogueSong]) -> None:
    """Names differ, within what is separated in one way; settings decide which run it is."""
    owners: dict[tuple[str, str], str] = {}
    for song in songs:
        key = (json.dumps(song.settings, sort_keys=True), song.name)
        if key in owners:
            raise InputError(
                f"{owners[key]} and {song.path} have both the name '{song.name}'; give them "
                "different ones in a table, in the column name"
            )
        owners[key] = song.path
