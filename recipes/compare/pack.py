"""Packs the clips of some lists for a machine that the corpus does not go to: FLAC and an index.

The folder stands in for the corpus; clips are the same to the last bit. Where the clips of two
lists overlap in a song, what they share is kept once.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import soundfile as sf
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2]))

from recipes.compare.clips import LISTS, PACKED, RATE, Clip, ClipList, clips
from recipes.prior.data import FULL_SCALE


def pack(folder: Path, lists: Sequence[ClipList], out: Path) -> int:
    """Packs lists of a split's folder into `out`, which is emptied first; gives its bytes."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    listed = [(which, clips(folder, which)) for which in lists]
    files: dict[int, list[tuple[int, int, str]]] = {}
    for song in sorted({clip.song for _, found in listed for clip in found}):
        for start, sound in _joined([c for _, found in listed for c in found if c.song == song]):
            name = f"{song:03d}-{start}.flac"
            sf.write(out / name, sound.T, RATE, "PCM_16", format="FLAC", compression_level=1.0)
            files.setdefault(song, []).append((start, start + sound.shape[1], name))

    def line(clip: Clip) -> Mapping[str, Any]:
        end = clip.start + clip.stems.shape[1]
        start, _, file = next(x for x in files[clip.song] if x[0] <= clip.start and end <= x[1])
        place = {"file": file, "from": start, "start": clip.start}
        return {"song": clip.song, **place, "digest": clip.digest}

    index = [
        {"list": dataclasses.asdict(which), "clips": [line(clip) for clip in found]}
        for which, found in listed
    ]
    (out / PACKED).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    for which in lists:
        clips(out, which)  # raises where one is not what it was
    return sum(path.stat().st_size for path in out.iterdir())


def _joined(found: Sequence[Clip]) -> list[tuple[int, NDArray[np.int16]]]:
    """The stretches of a song that its clips cover: first sample, and stems (4, n)."""
    stretches: list[tuple[int, NDArray[np.int16]]] = []
    for clip in sorted(found, key=lambda clip: clip.start):
        stems = np.round(clip.stems * FULL_SCALE).astype(np.int16)
        start, sound = stretches[-1] if stretches else (0, stems[:, :0])
        if stretches and clip.start <= start + sound.shape[1]:
            known = start + sound.shape[1] - clip.start
            stretches[-1] = start, np.concatenate([sound, stems[:, known:]], axis=1)
        else:
            stretches.append((clip.start, stems))
    return stretches


@click.command(help=__doc__)
@click.option(
    "--corpus", type=click.Path(path_type=Path), required=True, help="Folder of the splits."
)
@click.option("--split", type=click.Choice(["valid", "test"]), default="test", show_default=True)
@click.option(
    "--list",
    "names",
    multiple=True,
    type=click.Choice(list(LISTS)),
    default=("full", "small"),
    show_default=True,
    help="May be given several times.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("work/gpu/clips"),
    show_default=True,
    help="Folder of the packed splits.",
)
def main(corpus: Path, split: str, names: tuple[str, ...], out: Path) -> None:
    size = pack(corpus / split, [LISTS[name] for name in names], out / split)
    click.echo(f"{out / split}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
