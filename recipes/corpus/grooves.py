"""Accompaniment from MMA (Musical MIDI Accompaniment): grooves and the call of the program."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from recipes.corpus.midi import STEMS, Track, read_tracks, stem_of

LIBRARY = Path("/usr/share/mma/lib")
COLLECTIONS = ("stdlib", "kara", "pflib", "alexis")  # the sets with a clear origin
CATALOGUE = Path(__file__).parent / "lists" / "grooves.tsv"
SECONDARY = re.compile(r"(intro|end|fill|break|cresc|count(?!ry)|tag)", re.IGNORECASE)


class MissingProgram(RuntimeError):
    """A program or a file of a Debian package is absent; the message names the package."""


@dataclass(frozen=True)
class Groove:
    """One line of the catalogue.

    `name` is the extended MMA name (`stdlib/8beat:8Beat1`), `file` its library file, `beats` the
    quarter notes a bar, `form` one of main, fill, intro, end; the counts are notes a bar per stem
    and of `other` parts.
    """

    name: str
    file: str
    beats: int
    form: str
    bass: float
    drums: float
    guitar: float
    piano: float
    other: float


def mma_tracks(text: str) -> list[Track]:
    """Run MMA on a song text and return its tracks.

    Raises:
        MissingProgram: mma is not installed.
        ValueError: MMA refused the song; the message carries its last line.
    """
    if shutil.which("mma") is None:
        raise MissingProgram("mma was not found: install the Debian package `mma`")
    with tempfile.TemporaryDirectory(prefix="mma") as folder:
        source, target = Path(folder, "song.mma"), Path(folder, "song.mid")
        source.write_text(text)
        done = subprocess.run(
            ["mma", "-f", str(target), str(source)],
            capture_output=True,
            text=True,
            cwd=folder,
            timeout=60,
        )
        if not target.exists():
            raise ValueError(f"mma refused the song: {done.stdout.strip()[-300:]}")
        return read_tracks(target)


def form_of(name: str) -> str:
    """Sort a groove name into main, fill, intro, end or other secondary forms."""
    match = SECONDARY.search(name.rsplit(":", 1)[-1])
    return match.group(1).lower() if match else "main"


def scan() -> list[Groove]:
    """Run every groove of the collections for four bars and count what it plays."""
    grooves: list[Groove] = []
    for path in sorted(p for c in COLLECTIONS for p in LIBRARY.glob(f"{c}/**/*.mma")):
        file = str(path.relative_to(LIBRARY).with_suffix(""))
        text = path.read_text(errors="replace")
        beats = re.findall(r"(?im)^\s*time\s+(\d+)", text)
        names = re.findall(r"(?im)^\s*defgroove\s+(\S+)", text)
        if not beats or len(set(beats)) > 1:
            continue
        for short in dict.fromkeys(names):
            name = f"{file}:{short}"
            song = f"Tempo 120\nRndSeed 1\nGroove {name}\n1 C\n2 Am\n3 F\n4 G7\n"
            try:
                tracks = mma_tracks(song)
            except (ValueError, OSError, EOFError, subprocess.TimeoutExpired):
                continue
            counts = dict.fromkeys((*STEMS, "other"), 0.0)
            for track in tracks:
                counts[stem_of(track) or "other"] += len(track.notes) / 4
            grooves.append(Groove(name, file, int(beats[0]), form_of(short), **counts))
    return grooves


def write_catalogue(grooves: list[Groove], path: Path = CATALOGUE) -> None:
    """Write the catalogue as a table of tab-separated values."""
    columns = list(Groove.__dataclass_fields__)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(columns)
        for groove in grooves:
            writer.writerow([getattr(groove, column) for column in columns])


def read_catalogue(path: Path = CATALOGUE) -> list[Groove]:
    """Read the catalogue of grooves."""
    with path.open(newline="") as stream:
        return [
            Groove(
                row["name"],
                row["file"],
                int(row["beats"]),
                row["form"],
                *(float(row[key]) for key in (*STEMS, "other")),
            )
            for row in csv.DictReader(stream, delimiter="\t")
        ]


if __name__ == "__main__":
    write_catalogue(scan())
