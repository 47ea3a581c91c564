"""Which files a command line means, and where their stems go."""

from __future__ import annotations

__all__ = [
    "ACCEPTED",
    "Input",
    "InputError",
    "all_below_output",
    "find_inputs",
    "track_name",
    "work_folder",
]

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

ACCEPTED = (".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff", ".w64", ".rf64")
"""Ends of the names of the files that are taken from a folder; a file that is named is tried."""


class InputError(ValueError):
    """An argument that stands for no file."""


@dataclass(frozen=True)
class Input:
    """A file to separate.

    Attributes:
        path: the file.
        folder: where it lies below the folder that was named; its stems go to the same place
            below the output folder.
    """

    path: Path
    folder: Path = Path()


def find_inputs(
    arguments: Sequence[str], output: Path
) -> tuple[list[Input], list[tuple[str, InputError]]]:
    """The files that arguments stand for: files, folders with all below them, and patterns.

    A file that is there is taken by its name, whatever characters it has; a pattern (``*``, ``?``,
    ``[...]``, ``**``) is what is none. Nothing is taken twice, nor from the output folder.

    Arguments:
        arguments: as given.
        output: the output folder.

    Returns:
        The files in the order of the arguments, by name within a folder or pattern, and the
        arguments that stand for none, each with the reason.
    """
    found: dict[Path, Input] = {}
    errors: list[tuple[str, InputError]] = []
    output = output.resolve()
    for argument in arguments:
        try:
            for item in _expand(Path(argument), argument, output):
                found.setdefault(item.path.resolve(), item)
        except InputError as error:
            errors.append((argument, error))
        except (OSError, RuntimeError) as error:  # up to Python 3.12 a loop of links is the second
            errors.append((argument, _out_of_reach(argument, error)))
    return list(found.values()), errors


def _out_of_reach(argument: str, error: OSError | RuntimeError) -> InputError:
    """Why an argument cannot even be looked at."""
    if not isinstance(error, OSError) or error.strerror is None:
        return InputError(f"{argument}: {error}")
    at = "" if error.filename in (None, argument) else f" at {error.filename}"
    return InputError(f"{argument}: {error.strerror}{at}")


def _expand(path: Path, argument: str, output: Path) -> Iterator[Input]:
    if path.is_dir():
        every = sorted(
            file for file in path.rglob("*") if file.suffix.lower() in ACCEPTED and file.is_file()
        )
        if not every:
            raise InputError(
                f"{argument}: there is no audio file in this folder; files ending in "
                f"{', '.join(ACCEPTED)} are taken"
            )
        files = _outside(every, argument, output)
        yield from (Input(file, file.parent.relative_to(path)) for file in files)
    elif os.path.lexists(path) or not glob.has_magic(argument):
        yield Input(path)
    else:
        names = sorted(glob.glob(argument, recursive=True))
        every = [Path(name) for name in names if Path(name).is_file()]
        if not every:
            raise InputError(f"{argument}: no file matches this pattern")
        yield from map(Input, _outside(every, argument, output))


def _outside(files: Sequence[Path], argument: str, output: Path) -> list[Path]:
    """Those of the files that are not below the output folder. Raises InputError if none is."""
    found = [file for file in files if output not in file.resolve().parents]
    if not found:
        raise InputError(all_below_output(argument))
    return found


def all_below_output(argument: str) -> str:
    """The message for a folder or pattern whose files are all below the output folder."""
    return f"{argument}: all its audio files lie in the output folder; choose another one (-o)"


def track_name(path: PurePath) -> str:
    """What the files of a song are called: like its file, without the ending."""
    # A file called "...wav" has the stem "..", which would lead out of the output folder.
    return path.stem if path.stem.strip(".") else path.name.replace(".", "_")


def work_folder(output: Path, pattern: str) -> Path:
    """The hidden folder for what is not finished of one song.

    Arguments:
        output: the output folder.
        pattern: what names the song's files there, with a place holder for the stem.
    """
    name = hashlib.sha256(os.fsencode(pattern)).hexdigest()[:16]
    return output / f".mgdm-{name}"
