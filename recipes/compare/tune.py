"""Tunes all methods at equal budgets on validation clips: candidates.yaml in, winners.yaml out.

The candidates of a method run at the smallest budget, the best --keep of them go on to the next.
The score is the SI-SDRi of one sample over active stems, mean of the stems. Budgets are network
calls, a vector-Jacobian product counted by what it takes (see budgets.py). Test songs are never
read.
"""

from __future__ import annotations

import math
import sys
from datetime import date
from pathlib import Path
from typing import Any

import click
import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))

from mgdm_audio.hub import ModelError
from mgdm_audio.precision import choose_precision
from mgdm_audio.separate import resolve_device
from recipes.compare.bench import Bench, Entry, write_whole
from recipes.compare.budgets import (
    CANDIDATES,
    WINNERS,
    Candidate,
    fit,
    load_candidates,
    measure_vjp_cost,
)
from recipes.compare.clips import LISTS, Clip, clips
from recipes.compare.options import make_bench, shared
from recipes.compare.report import Row, make_row, markdown, write_tables


def tune(
    bench: Bench,
    candidates: dict[str, list[Candidate]],
    listed: list[Clip],
    budgets: list[int],
    keep: int,
    vjp_cost: float,
    minutes: float | None = None,
    share: tuple[int, int] = (0, 1),
) -> tuple[list[Row], dict[str, dict[int, Row]]]:
    """Runs all candidates.

    Returns:
        A row for each candidate and budget that ran on all clips, and the best by method and
        budget. Of equal scores the first candidate wins.
    """
    alive = {method: list(rows) for method, rows in candidates.items()}
    rows: list[Row] = []
    best: dict[str, dict[int, Row]] = {method: {} for method in candidates}
    for budget in budgets:
        entries: list[tuple[Candidate, Entry]] = []
        for candidate in (c for group in alive.values() for c in group):
            try:
                entry = fit(bench, candidate, budget, vjp_cost)
            except ModelError as error:
                bench.say(f"{candidate.method} {candidate.name} is left out: {error}")
                continue
            if entry is not None:
                entries.append((candidate, entry))
        bench.fill([(entry, clip, 0) for _, entry in entries for clip in listed], minutes, share)
        scores: dict[str, list[tuple[float, Candidate]]] = {}
        for candidate, entry in entries:
            scored = bench.score(entry, listed)
            if len(scored[0]) < len(listed):
                continue
            row = make_row(bench, entry, f"tuning at {budget}", len(listed), 1, scored, vjp_cost)
            rows.append(row)
            scores.setdefault(candidate.method, []).append((row.score(), candidate))
            known = best[candidate.method].get(budget)
            if known is None or row.score() > known.score():
                best[candidate.method][budget] = row
        for method, pairs in scores.items():
            order = sorted(pairs, key=lambda pair: -pair[0])
            alive[method] = [candidate for _, candidate in order[:keep]]
    return rows, best


def winners_text(best: dict[str, dict[int, Row]], head: dict[str, Any]) -> str:
    """winners.yaml."""
    winners = {
        method: {
            budget: {
                "candidate": row.entry.note,
                "preset": row.entry.preset,
                "settings": dict(row.entry.settings),
                "equivalents": round(row.equivalents, 1),
                "si_sdri": round(row.score(), 3),
            }
            for budget, row in rows.items()
            if math.isfinite(row.score())
        }
        for method, rows in best.items()
    }
    comment = "# Written by recipes/compare/tune.py; settings of the best candidate by budget.\n"
    kept = {method: rows for method, rows in winners.items() if rows}
    return comment + yaml.safe_dump({**head, "winners": kept}, sort_keys=False, width=100)


@click.command(help=__doc__)
@shared
@click.option(
    "--budget", "budgets", multiple=True, default=(30, 100), show_default=True, type=int,
    help="Network calls; may be given several times.",
)  # fmt: skip
@click.option("--keep", default=2, show_default=True, help="Candidates for the next budget.")
@click.option("--first", type=int, help="Only so many candidates of each method, from the top.")
@click.option("--method", "methods", multiple=True, help="Only this one; may be repeated.")
@click.option("--list", "which", type=click.Choice(list(LISTS)), default="tune", show_default=True)
@click.option(
    "--candidates", "source", type=click.Path(path_type=Path), default=CANDIDATES,
    show_default="candidates.yaml",
)  # fmt: skip
@click.option(
    "--winners", type=click.Path(path_type=Path), default=WINNERS, show_default="winners.yaml"
)
@click.option("--out", type=click.Path(path_type=Path), help="Table of all that ran, no suffix.")
@click.option("--measure", is_flag=True, help="Only measure what a VJP costs, and stop.")
def main(
    corpus: Path,
    budgets: tuple[int, ...],
    keep: int,
    first: int | None,
    methods: tuple[str, ...],
    which: str,
    source: Path,
    winners: Path,
    out: Path | None,
    measure: bool,
    minutes: float | None,
    share: tuple[int, int],
    **options: Any,
) -> None:
    bench = make_bench(**options)
    vjp_cost, candidates = load_candidates(source)
    if measure:
        dtype = choose_precision(resolve_device(options["device"]), options["precision"])
        cost = measure_vjp_cost(bench.prior, LISTS[which].samples, dtype)
        click.echo(f"a VJP takes as long as {cost:.2f} further calls; {source} says {vjp_cost:g}")
        return
    if unknown := set(methods) - set(candidates):
        raise click.BadParameter(f"unknown methods: {', '.join(sorted(unknown))}")
    candidates = {m: rows[:first] for m, rows in candidates.items() if not methods or m in methods}
    listed = clips(corpus / "valid", LISTS[which])
    rows, best = tune(bench, candidates, listed, sorted(budgets), keep, vjp_cost, minutes, share)
    head = {
        "model": bench.prior.name,
        "sha256": bench.prior.sha256,
        "date": str(date.today()),
        "clips": f"{len(listed)} of valid, list {which}",
        "vjp_cost": vjp_cost,
    }
    write_whole(winners, winners_text(best, head).encode())
    click.echo(markdown([row for group in best.values() for row in group.values()]))
    if out is not None:
        write_tables(out, rows, "# Tuning: all candidates\n\n")


if __name__ == "__main__":
    main()
