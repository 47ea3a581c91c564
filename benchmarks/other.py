"""The fifth stem, on songs with an instrument that no stem is, and on the same songs without.

Clips are those of the corpus (recipes/corpus/render.py), the instruments' parts those of
recipes/corpus/others.py for the same songs, brought to the mean loudness of the four stems; songs
whose clip has no note of the part are left out. Printed are the SI-SDR improvement of the four
stems and of the other one with and without the fifth stem, each with the standard error of the
change, what the fifth stem costs the four where there is no such instrument, and its level relative
to the mix.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.speed import models
from mgdm_audio import STEMS, Separator
from mgdm_audio.cost import QUALITIES
from mgdm_audio.metrics import is_silent, level_db, si_sdr_improvement
from mgdm_audio.other import LEVEL
from recipes.compare.clips import RATE, ClipList, clips
from recipes.corpus.effects import loudness
from recipes.prior.data import FULL_SCALE, StemCorpus

WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "fast": QUALITIES["fast"],
    "regressor": {"method": "regressor"},
    "from noise": {"method": "mgdm"},
}
"""Arguments of the separator."""


def with_parts(
    corpus: Path, parts: Path, songs: int, seconds: float
) -> list[tuple[int, NDArray[np.float32], NDArray[np.float32]]]:
    """Song numbers, stems (4, T) and other parts (T,) of clips in which all five sound."""
    others = StemCorpus(parts)
    rows = {int(line["song"]): n for n, line in enumerate(others.songs)}
    found = []
    for clip in clips(corpus, ClipList(10_000, round(seconds * RATE))):
        if clip.song not in rows or is_silent(clip.stems).any():
            continue
        row = others.stems(rows[clip.song])[0, clip.start : clip.start + clip.stems.shape[1]]
        part = row.astype(np.float32) / np.float32(FULL_SCALE)
        if is_silent(part[None]).any() or not np.isfinite(loudness(part, RATE)):
            continue
        target = float(np.mean([loudness(stem, RATE) for stem in clip.stems]))
        gain = 10 ** ((target - loudness(part, RATE)) / 20)
        found.append((clip.song, clip.stems, part * np.float32(gain)))
    return found[:songs]


def measure(
    separator: Separator,
    stems: NDArray[np.float32],
    part: NDArray[np.float32] | None,
    seed: int,
) -> dict[str, float]:
    """Improvement of each stem, and the level of the other one, in dB."""
    mix = stems.sum(0) if part is None else stems.sum(0) + part
    estimate = separator.separate(mix, RATE, seed=seed).stems
    pairs = zip(STEMS, stems, strict=True)
    row = {name: float(si_sdr_improvement(estimate[name], x, mix)) for name, x in pairs}
    row["four"] = float(np.mean([row[name] for name in STEMS]))
    if "other" in estimate:
        row["level"] = float(level_db(estimate["other"]) - level_db(mix))
        if part is not None:
            row["other"] = float(si_sdr_improvement(estimate["other"], part, mix))
    return row


@click.command(help=__doc__)
@click.option("--corpus", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--others", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--songs", "count", default=24, show_default=True, help="At most so many.")
@click.option("--seconds", default=6.0, show_default=True)
@click.option("--way", type=click.Choice(list(WAYS)), default="default", show_default=True)
@click.option("--level", default=LEVEL, show_default=True, help="Of the prior, in dB.")
@click.option("--regressor", help="Another regressor than the shipped one.")
@click.option("--precision", default="auto", show_default=True, help="See Separator.")
def main(
    corpus: Path,
    others: Path,
    count: int,
    seconds: float,
    way: str,
    level: float,
    regressor: str | None,
    precision: str,
) -> None:
    options: dict[str, Any] = {**WAYS[way], "precision": precision}
    if regressor is not None:
        options["model" if way == "regressor" else "regressor"] = regressor
    columns = (*STEMS, "four", "other", "level")
    found = with_parts(corpus, others, count, seconds)
    if not found:
        raise click.ClickException(f"{others} has no part of a song of {corpus}")
    click.echo(f"{models(Separator(**options))}, {way}, {len(found)} songs of {seconds:g} s\n")
    click.echo("| songs | fifth stem | " + " | ".join(columns) + " | change of the four |")
    click.echo("| --- | --- |" + " ---: |" * (len(columns) + 1))
    for added in (True, False):
        first: list[float] = []
        for fifth in (None, level):
            separator = Separator(**options, other=fifth)
            rows = [measure(separator, x, part if added else None, n) for n, x, part in found]
            cells = [
                f"{np.mean([row[c] for row in rows]):.2f}" if c in rows[0] else "" for c in columns
            ]
            four = [row["four"] for row in rows]
            first = first or four
            change = np.subtract(four, first)
            error = np.std(change) / max(1, len(change) - 1) ** 0.5
            cells.append("" if fifth is None else f"{np.mean(change):+.2f} ± {error:.2f}")
            name = "with an added instrument" if added else "without"
            shown = "no" if fifth is None else "yes"
            click.echo(f"| {name} | {shown} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
