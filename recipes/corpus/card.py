"""Describe a rendered corpus: hours, levels, silence and sounds by stem, sources and licences,
beside Slakh2100."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click
import numpy as np

if __package__ in (None, ""):  # run as a script: make the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from recipes.corpus.midi import STEMS
from recipes.corpus.patches import SPLITS, read_patches
from recipes.corpus.render import read_lines

SLAKH_PRESENT = {"bass": 94.7, "drums": 99.3, "guitar": 100.0, "piano": 99.3}
"""Share of Slakh2100's songs in which a class is present, in percent (Mariani et al., 2024)."""


def read_index(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a split's index, one a song.

    Raises:
        FileNotFoundError: if the split was not rendered.
    """
    index = folder / "index.jsonl"
    if not index.is_file():
        raise FileNotFoundError(f"{index} does not exist; render the split first")
    return list({line["song"]: line for line in read_lines(index)}.values())


def split_table(songs: list[dict[str, Any]]) -> list[str]:
    """Return Markdown rows, one a stem: presence, level and silence over the songs of a split."""
    rms = np.array([song["rms"] for song in songs])
    silent = np.array([song["silent_share"] for song in songs])
    present = rms > 0
    rows = [
        "| stem | songs with it | Slakh2100 | RMS where present, median (10 to 90 %) | silent |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for k, stem in enumerate(STEMS):
        level = 20 * np.log10(rms[present[:, k], k])
        low, middle, high = np.percentile(level, [10, 50, 90])
        rows.append(
            f"| {stem} | {100 * present[:, k].mean():.1f} % | {SLAKH_PRESENT[stem]} % | "
            f"{middle:.1f} dB ({low:.1f} to {high:.1f}) | {100 * silent[:, k].mean():.0f} % |"
        )
    return rows


def use_table(songs: list[dict[str, Any]]) -> list[str]:
    """Return Markdown rows, one a package: parts that its patches play in the songs, by stem."""
    packages = {patch.label: patch.package for patch in read_patches()}
    counts: dict[str, Counter[str]] = {}
    for song in songs:
        for stem, parts in zip(STEMS, song["patches"], strict=True):
            for part in parts:
                label = max((k for k in packages if part.startswith(k)), key=len, default=None)
                name = packages[label] if label else "no longer in sources.tsv"
                counts.setdefault(name, Counter())[stem] += 1
    total = {stem: max(sum(count[stem] for count in counts.values()), 1) for stem in STEMS}
    rows = ["| share of the parts | bass | drums | guitar | piano |"]
    rows.append("| --- | ---: | ---: | ---: | ---: |")
    for package, count in sorted(counts.items(), key=lambda item: -item[1].total()):
        cells = " | ".join(
            f"{100 * count[stem] / total[stem]:.0f} %" if count[stem] else "" for stem in STEMS
        )
        rows.append(f"| {package} | {cells} |")
    return rows


def source_table() -> list[str]:
    """Return Markdown rows, one a package: licence, split, patches by stem."""
    counts: dict[tuple[str, str, str], Counter[str]] = {}
    for patch in read_patches():
        key = (patch.package, patch.licence, patch.split)
        counts.setdefault(key, Counter())[patch.stem] += 1
    rows = ["| package | licence | split | bass | drums | guitar | piano |"]
    rows.append("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    for (package, licence, split), count in sorted(counts.items(), key=lambda item: item[0][2]):
        cells = " | ".join(str(count[stem]) for stem in STEMS)
        rows.append(f"| {package} | {licence} | {split} | {cells} |")
    return rows


@click.command(help=__doc__)
@click.argument("corpus", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(corpus: Path) -> None:
    rendered = [split for split in SPLITS if (corpus / split / "index.jsonl").is_file()]
    if not rendered:
        raise click.ClickException(
            f"{corpus} has no index.jsonl in train, valid or test; render a split first"
        )
    for split in rendered:
        songs = read_index(corpus / split)
        hours = sum(song["samples"] for song in songs) / 22050 / 3600
        versions = Counter(song["version"] for song in songs)
        told = ", ".join(f"{count} of version {v}" for v, count in sorted(versions.items()))
        click.echo(f"### {split}: {len(songs)} songs, {hours:.1f} h ({told})\n")
        click.echo("\n".join(split_table(songs)) + "\n")
        click.echo("\n".join(use_table(songs)) + "\n")
    click.echo("### Sounds\n\n" + "\n".join(source_table()))


if __name__ == "__main__":
    main()
