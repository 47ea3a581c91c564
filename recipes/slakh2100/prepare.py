"""Turns Slakh2100 into stems for training and scoring.

SOURCE is the official archive (slakh2100_flac_redux.tar.gz, or babyslakh_16k.tar.gz to try things
out), the folder of an unpacked one, or that of the ready stems of MSDM's authors
(SPLIT/TrackNNNNN/{bass,drums,guitar,piano}.wav). Any call continues where an earlier one stopped.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from mgdm_audio import STEMS
from mgdm_audio.engine import Engine, EngineError
from recipes.parallel import chosen_engine, engine_options, results
from recipes.slakh2100 import download
from recipes.slakh2100.tracks import FAULTS, RATE, VERSION, Track, load_record, prepare_track

LISTS = Path(__file__).parent / "lists" / "splits.tsv"
NAMES = ("redux", "original", "split2")
SPLITS = {"train": "train", "validation": "valid", "test": "test"}


def read_list(name: str) -> dict[str, str]:
    """The split of each track by a list: train, valid or test; omitted tracks are not in it.

    Arguments:
        name: "redux" (no song twice), "original" (1500, 375 and 225 tracks in order) or "split2"
            (the same sizes, duplicates within one split).
    """
    header, *rows = [line.split("\t") for line in LISTS.read_text().splitlines()]
    column = header.index(name)
    return {row[0]: SPLITS[row[column]] for row in rows if row[column] in SPLITS}


def absent(name: str, split: str, there: Iterable[str]) -> list[str]:
    """The tracks of a split by a list that are not among those that are there.

    Arguments:
        name: of the list; of one that is not this recipe's nothing is known to be absent.
        split: train, valid or test.
        there: names of tracks.
    """
    listed = read_list(name) if name in NAMES else {}
    return sorted({track for track, part in listed.items() if part == split} - {*there})


def warn_of_absent(name: str, split: str, there: Collection[str]) -> None:
    """Says on stderr where a split that is to be used has not all tracks of its list."""
    if missing := absent(name, split, there):
        click.echo(
            f"{len(there)} of {len(there) + len(missing)} tracks of the list '{name}', split "
            f"'{split}'; run prepare.py --list {name} for the others",
            err=True,
        )


def write_indices(out: Path) -> None:
    """Writes ``LIST/SPLIT/index.jsonl`` for every list, of the tracks that are there.

    A line a track, in order, whatever order they were converted in; a folder of a split is a
    corpus as `recipes/prior` reads it.
    """
    records = [load_record(path) for path in sorted((out / "tracks").glob("Track*.json"))]
    tracks = {track.name: track for track in records if track is not None and track.samples}
    for name in NAMES:
        split_of = read_list(name)
        lines: dict[str, list[str]] = {split: [] for split in SPLITS.values()}
        for track in tracks.values():
            if track.name in split_of:
                line = {
                    "song": int(track.name.removeprefix("Track")),
                    "track": track.name,
                    "file": f"../../tracks/{track.name}.npy",
                    "samples": track.samples,
                    "rms": [track.rms[stem] for stem in STEMS],
                    "mixture_rms": track.mixture_rms,
                    "sources": [track.sources.get(stem, 0) for stem in STEMS],
                }
                lines[split_of[track.name]].append(json.dumps(line))
        for split, rows in lines.items():
            folder = out / name / split
            folder.mkdir(parents=True, exist_ok=True)
            part = folder / f".index.{os.getpid()}.part"
            part.write_text("".join(f"{row}\n" for row in rows))
            os.replace(part, folder / "index.jsonl")


def summary(tracks: list[Track], wanted: int) -> str:
    """What was found, in Markdown: hours, classes, levels, faults."""
    good = [track for track in tracks if track.samples]
    hours = sum(track.samples for track in good) / RATE / 3600
    lines = [
        f"{len(good)} of {wanted} tracks, {hours:.1f} hours at {RATE} Hz, "
        f"{sum(t.others for t in good)} sources of other classes left out.",
        "",
        "| stem | tracks with it | sources | RMS where present, median |",
        "| --- | ---: | ---: | ---: |",
    ]
    for stem in STEMS:
        present = [track for track in good if track.sources.get(stem)]
        level = np.median([max(t.rms[stem], 1e-9) for t in present]) if present else np.nan
        lines.append(
            f"| {stem} | {100 * len(present) / max(1, len(good)):.1f} % | "
            f"{sum(t.sources[stem] for t in present)} | {20 * np.log10(level):.1f} dB |"
        )
    power = sum(t.mixture_rms**2 * t.samples for t in good) / max(1, sum(t.samples for t in good))
    lines += [
        "",
        f"RMS of the mixtures: {np.sqrt(power):.4f} (`mgdm-audio import-checkpoint --level`).",
        "",
        "| fault | count | tracks |",
        "| --- | ---: | --- |",
    ]
    counts: Counter[str] = sum((track.counts() for track in tracks), Counter())
    for kind, text in FAULTS.items():
        names = [track.name for track in tracks if track.counts()[kind]]
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        lines.append(f"| {text} | {counts[kind]} | {shown or '-'} |")
    return "\n".join(lines) + "\n"


class Progress:
    """A line on stderr every ten seconds: share done and time left."""

    def __init__(self, label: str) -> None:
        self.label, self.start, self.shown = label, time.monotonic(), time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.shown > 10 or done == total:
            self.shown = now
            left = (now - self.start) * (total - done) / max(1, done) / 60
            share = 100 * done / max(1, total)
            click.echo(f"{self.label}: {share:.1f} %, {left:.0f} min left", err=True)


@dataclass(frozen=True)
class Convert:
    """Makes workers that convert tracks into a folder, see :data:`mgdm_audio.engine.Make`."""

    folder: Path

    def __call__(self) -> Callable[[tuple[str, Path]], Track]:
        """The worker, which is given name and folder of a track."""
        return self._convert

    def _convert(self, track: tuple[str, Path]) -> Track:
        name, path = track
        return prepare_track(str(path), name, str(self.folder))


def convert_all(folders: dict[str, Path], out: Path, engine: Engine) -> list[Track]:
    """Converts tracks; the result is the same for any engine.

    Raises:
        EngineError: if workers die.
    """
    target = (out / "tracks").resolve()
    target.mkdir(parents=True, exist_ok=True)
    progress, tracks = Progress("converting"), []
    items = [(name, path.resolve()) for name, path in folders.items()]
    converted = results(engine, Convert(target), items, lambda item: item[0])
    for count, (_, track) in enumerate(converted, 1):
        tracks.append(track)
        progress(count, len(items))
    return sorted(tracks, key=lambda track: track.name)


def finish(out: Path, tracks: list[Track]) -> None:
    """Writes indices and summary of converted tracks.

    Raises:
        ClickException: if not one of them has stems.
    """
    write_indices(out)
    text = summary(sorted(tracks, key=lambda track: track.name), len(tracks))
    (out / "summary.md").write_text(text)
    click.echo(text)
    if not any(track.samples for track in tracks):
        raise click.ClickException(
            f"none of the {len(tracks)} tracks could be used; the faults above (also in "
            f"{out / 'summary.md'}) say why. Mend the source or name another, and call again"
        )


@click.command(help=__doc__)
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the data.")
@click.option(
    "--list",
    "name",
    type=click.Choice([*NAMES, "all"]),
    default="redux",
    show_default=True,
    help="Convert the tracks of this list; indices of all lists are written.",
)
@engine_options
@click.option("--md5", help="Expected checksum of an archive of another name.")
@click.option("--unverified", is_flag=True, help="Do not check the archive's checksum.")
@click.option(
    "--unpacked",
    type=click.Path(path_type=Path),
    help="Where an archive is unpacked, by default OUT/unpacked; may be deleted afterwards.",
)
def main(
    source: Path,
    out: Path,
    name: str,
    engine: str,
    workers: int | None,
    md5: str | None,
    unverified: bool,
    unpacked: Path | None,
) -> None:
    listed = None if name == "all" else read_list(name)
    # The archive is not unpacked again for tracks that are all there. One that was left out may
    # have been so for its source, and is not there.
    made = {track: load_record(out / "tracks" / f"{track}.json") for track in listed or ()}
    tracks = [r for r in made.values() if r and r.samples and r.version == VERSION]
    if made and len(tracks) == len(made) and source.is_file():
        finish(out, tracks)
        return
    try:
        folder = source
        if source.is_file():
            if not unverified:
                click.echo(f"MD5 {download.verify(source, md5, Progress('checksum'))}", err=True)
            folder = unpacked or out / "unpacked"
            written = download.extract(source, folder, Progress("unpacking"))
            click.echo(f"{written} files unpacked into {folder}", err=True)
        folders = download.find_tracks(folder)
        if listed is not None:
            folders = {track: path for track, path in folders.items() if track in listed}
        if not folders:
            raise ValueError(f"{folder} holds no track of the list '{name}'")
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    if engine == "local":
        workers = workers or os.cpu_count()
    try:
        tracks = convert_all(folders, out, chosen_engine(engine, workers))
    except EngineError as error:
        raise click.ClickException(str(error)) from error
    finish(out, tracks)


if __name__ == "__main__":
    # By its own name, by which workers elsewhere find what they are sent.
    from recipes.slakh2100.prepare import main as by_name

    by_name()
