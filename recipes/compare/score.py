"""Separates a crop of each held-out song with one method and writes SI-SDRi tables.

Each crop goes through mgdm_audio.Separator as a user's file does. All of --average come out of one
run; a run that was killed goes on where it was.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parents[2]))

from recipes.compare.bench import Entry, Share
from recipes.compare.budgets import load_candidates
from recipes.compare.clips import LISTS, clips
from recipes.compare.options import make_bench, parse_setting, shared
from recipes.compare.report import make_row, markdown, records, write_tables


@click.command(help=__doc__)
@shared
@click.option("--split", type=click.Choice(["valid", "test"]), default="valid", show_default=True)
@click.option("--list", "which", type=click.Choice(list(LISTS)), default="full", show_default=True)
@click.option("--method", default="mgdm", show_default=True)
@click.option("--preset", default="default", show_default=True)
@click.option("--set", "settings", multiple=True, help="Sampler setting, name=JSON.")
@click.option(
    "--average",
    "averages",
    multiple=True,
    default=(1,),
    show_default=True,
    type=click.IntRange(1),
    help="Posterior samples to average; may be given several times.",
)
@click.option("--first", type=click.IntRange(1), help="Only so many clips, from the list's start.")
@click.option("--out", type=click.Path(path_type=Path), help="Results file without suffix.")
def main(
    corpus: Path,
    split: str,
    which: str,
    method: str,
    preset: str,
    settings: tuple[str, ...],
    averages: tuple[int, ...],
    first: int | None,
    out: Path | None,
    minutes: float | None,
    share: Share,
    **options: Any,
) -> None:
    bench = make_bench(**options)
    entry = Entry(method, preset, dict(map(parse_setting, settings)))
    listed = clips(corpus / split, LISTS[which])[:first]
    jobs = [(entry, clip, s) for s in range(max(averages)) for clip in listed]
    bench.fill(jobs, minutes, share)
    vjp_cost, _ = load_candidates()
    name = f"{split} {which}"
    rows = []
    songs = [["samples", "song", *bench.prior.stems]]
    for count in sorted(averages):
        scored = bench.score(entry, listed, count)
        rows.append(make_row(bench, entry, name, listed, count, scored, vjp_cost))
        for one in scored:
            means = one.track.summary()["active_mean"]
            songs.append(
                [str(count), one.track.name, *(f"{means[s]:.2f}" for s in bench.prior.stems)]
            )
    lines = records(rows)
    click.echo(markdown(lines))
    if out is not None:
        table = "\n".join(
            "| " + " | ".join(cells) + " |"
            for cells in [songs[0], ["---"] * len(songs[0]), *songs[1:]]
        )
        write_tables(
            out, lines, f"# {method}\n\n", f"\n**Single songs, active stems**\n\n{table}\n"
        )


if __name__ == "__main__":
    main()
