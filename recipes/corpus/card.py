"""Data card of a rendered split: hours, levels, silence and presence per stem, licences.

Run as `python -m recipes.corpus.card FOLDER [FOLDER ...]`; the card goes to standard output.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import click
import numpy as np

from recipes.corpus.midi import STEMS
from recipes.corpus.patches import read_patches

RATE = 22050
# Share of Slakh2100's songs in which a class is present, in the order of STEMS, in percent.
SLAKH_PRESENT = (94.7, 99.3, 100.0, 99.3)


def read_index(folder: Path) -> list[dict[str, Any]]:
    """Read a split's index.

    Raises:
        ValueError: The folder has no index or an empty one.
    """
    path = folder / "index.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if not lines:
        raise ValueError(f"{path} is missing or empty: render the split first")
    return lines


def _decibels(values: np.ndarray) -> str:
    low, middle, high = np.percentile(20 * np.log10(np.maximum(values, 1e-9)), (10, 50, 90))
    return f"{middle:.1f} ({low:.1f} .. {high:.1f})"


def card(folder: Path) -> str:
    """Write the card of one folder as Markdown."""
    lines = read_index(folder)
    hours = sum(line["samples"] for line in lines) / RATE / 3600
    rms = np.array([line["rms"] for line in lines])
    silent = np.array([line["silent_share"] for line in lines])
    present = rms > 0
    # Stems are all but uncorrelated: the power of the mixture is the sum of theirs.
    mixture = np.sqrt(np.square(rms).sum(1))
    versions = Counter(line["version"] for line in lines)
    out = [
        f"## {folder.name}",
        "",
        f"{len(lines)} songs, {hours:.2f} h, 22050 Hz mono, int16; version(s) "
        + ", ".join(f"{v}: {n} songs" for v, n in sorted(versions.items()))
        + f". Mixture RMS, dBFS, median (10 % .. 90 %): {_decibels(mixture)}.",
        "",
        "| stem | songs with it % | Slakh2100 % | RMS dBFS, median (10 % .. 90 %) "
        "| silent 0.1 s frames %, where present |",
        "|---|---|---|---|---|",
    ]
    for index, stem in enumerate(STEMS):
        here = present[:, index]
        if not here.any():
            out.append(f"| {stem} | 0.0 | {SLAKH_PRESENT[index]} | - | - |")
            continue
        out.append(
            f"| {stem} | {100 * here.mean():.1f} | {SLAKH_PRESENT[index]} "
            f"| {_decibels(rms[here, index])} | {100 * silent[here, index].mean():.1f} |"
        )
    used: Counter[str] = Counter()
    for line in lines:
        for number, patches in enumerate(line["patches"]):
            used.update({f"{STEMS[number]} {p.split(' (')[0]}" for p in patches})
    licences = {
        f"{p.stem} {p.label}".split(" (")[0]: (p.package, p.licence) for p in read_patches()
    }
    packages: Counter[tuple[str, str]] = Counter()
    for patch, count in used.items():
        packages[licences.get(patch, ("not in sources.tsv", "unknown"))] += count
    out += ["", f"{len(used)} patches in use. Parts a source plays:", ""]
    out += [f"- {package} ({licence}): {n}" for (package, licence), n in packages.most_common()]
    grooves = {g for line in lines for g in line["grooves"]}
    files = {g.split(":")[0] for g in grooves}
    out += ["", f"{len(grooves)} grooves of {len(files)} groove files."]
    return "\n".join(out) + "\n"


@click.command(help="Print the data card of rendered splits as Markdown.")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
def main(folders: tuple[Path, ...]) -> None:
    try:
        click.echo("\n".join(card(folder) for folder in folders))
    except ValueError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
