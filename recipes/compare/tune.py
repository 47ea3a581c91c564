"""Tunes all methods at equal budgets on validation clips: candidates.yaml in, winners.yaml out.

The candidates of a method run at the smallest budget, the best --keep of them go on to the next.
The score is the SI-SDRi of one sample over active stems, mean of the stems. Budgets are network
calls, a vector-Jacobian product counted by what it takes (see budgets.py). Test songs are never
read.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import click
import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))

from mgdm_audio import samplers
from mgdm_audio.hub import ModelError
from mgdm_audio.precision import choose_precision
from mgdm_audio.separate import resolve_device
from recipes.compare.bench import Batch, Bench, Entry, Share
from recipes.compare.budgets import (
    CANDIDATES,
    WINNERS,
    Candidate,
    fit,
    load_candidates,
    measure_vjp_cost,
)
from recipes.compare.clips import LISTS, Clip, clips
from recipes.compare.ledger import Ledger, write_whole
from recipes.compare.options import make_bench, shared
from recipes.compare.report import (
    added,
    identity,
    make_row,
    markdown,
    read_csv,
    write_tables,
)

Winners = dict[str, dict[int, dict[str, Any]]]
"""Settings by method and budget, as winners.yaml has them."""

TUNED = "tuned"
"""What winners.yaml says of settings that were chosen at their budget."""


@dataclass(frozen=True)
class Tried:
    """A candidate at a budget, scored on all clips.

    Attributes:
        entry: its settings there.
        score: SI-SDRi of one sample over active stems, mean of the stems; NaN where it has none.
        lines: its records for tables, see :func:`recipes.compare.report.records`.
    """

    entry: Entry
    score: float
    lines: Sequence[Mapping[str, str]]


def tune(
    bench: Bench,
    candidates: dict[str, list[Candidate]],
    listed: list[Clip],
    budgets: list[int],
    keep: int,
    vjp_cost: float,
    minutes: float | None = None,
    share: Share | None = None,
    table: Sequence[Mapping[str, str]] = (),
) -> tuple[list[Tried], dict[str, dict[int, Tried]]]:
    """Runs all candidates, but for those that an earlier table has with as many clips.

    It ends with the first budget at which something is left to draw, for want of time or because
    it is another process's share: what goes on to the next is not known before.

    Returns:
        What ran on all clips, and the best by method and budget. Of equal scores the first
        candidate wins.
    """
    until = None if minutes is None else time.monotonic() + 60 * minutes
    alive = {method: list(rows) for method, rows in candidates.items()}
    rows: list[Tried] = []
    best: dict[str, dict[int, Tried]] = {method: {} for method in candidates}
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
        tried = partial(_tried, bench, f"tuning at {budget}", listed, vjp_cost, table)
        jobs = [
            (entry, clip, 0)
            for _, entry in entries
            if tried(entry) is None
            for clip in listed
            if not bench.known(entry, clip)
        ]
        left = None if until is None else (until - time.monotonic()) / 60
        bench.fill(jobs, left, share, told=partial(_keep_scores, bench))
        scores: dict[str, list[tuple[float, Candidate]]] = {}
        for candidate, entry in entries:
            if (row := tried(entry)) is None:
                continue
            rows.append(row)
            scores.setdefault(candidate.method, []).append((row.score, candidate))
            known = best[candidate.method].get(budget)
            if known is None or row.score > known.score:
                best[candidate.method][budget] = row
        bench.ledger.save()
        missing = [
            f"{entry.method} {entry.note}"
            for _, entry in entries
            if tried(entry) is None and not all(bench.known(entry, clip) for clip in listed)
        ]
        if missing:
            bench.say(f"not all is drawn at {budget}: {', '.join(missing)}")
            break
        for method, pairs in scores.items():
            order = sorted(pairs, key=lambda pair: -pair[0])
            alive[method] = [candidate for _, candidate in order[:keep]]
    return rows, best


def _tried(
    bench: Bench,
    name: str,
    listed: Sequence[Clip],
    vjp_cost: float,
    table: Sequence[Mapping[str, str]],
    entry: Entry,
) -> Tried | None:
    """What there is of an entry, None unless it has all clips."""
    row = make_row(bench, entry, name, listed, 1, bench.score(entry, listed), vjp_cost)
    lines = added([row], table)
    if not lines or lines[0]["clips"] != str(len(listed)):
        return None
    active = next(line["all"] for line in lines if line["reading"] == "active")
    return Tried(entry, float(active) if active else math.nan, lines)


def _keep_scores(bench: Bench, batch: Batch) -> None:
    """Of a batch that was drawn just now."""
    bench.score(batch.entry, batch.clips)
    bench.ledger.save()


def untried(
    bench: Bench,
    candidates: dict[str, list[Candidate]],
    best: dict[str, dict[int, Tried]],
    budget: int,
    vjp_cost: float,
) -> dict[str, tuple[Entry, str]]:
    """Settings at a budget that was not run, and how they were chosen, by method.

    The best candidate of the largest smaller budget; the first one where none was run.
    """
    result = {}
    for method, rows in candidates.items():
        tried = [b for b in best.get(method, {}) if b < budget]
        name = best[method][max(tried)].entry.note if tried else rows[0].name
        chosen = f"tuned at {max(tried)}" if tried else "not tuned"
        candidate = next(row for row in rows if row.name == name)
        try:
            entry = fit(bench, candidate, budget, vjp_cost)
        except ModelError as error:
            bench.say(f"{method} {name} is left out: {error}")
            continue
        if entry is not None:
            result[method] = (entry, chosen)
    return result


def winners_text(
    best: dict[str, dict[int, Tried]],
    head: dict[str, Any],
    others: dict[int, dict[str, tuple[Entry, str]]] | None = None,
    earlier: Winners | None = None,
) -> str:
    """winners.yaml: the best rows, and by budget what :func:`untried` gave where there is none.

    `earlier` are winners that stay where there is no new one; what was tuned is not replaced by
    what was not.
    """
    winners = {method: dict(rows) for method, rows in (earlier or {}).items()}
    for budget, entries in (others or {}).items():
        for method, (entry, chosen) in entries.items():
            rows = winners.setdefault(method, {})
            if rows.get(budget, {}).get("chosen") != TUNED:
                rows[budget] = _line(entry, chosen)
    for method, found in best.items():
        for budget, row in found.items():
            if math.isfinite(row.score):
                line = {**_line(row.entry, TUNED), "si_sdri": round(row.score, 3)}
                winners.setdefault(method, {})[budget] = line
    ordered = {method: dict(sorted(rows.items())) for method, rows in winners.items()}
    comment = "# Written by recipes/compare/tune.py; settings of the best candidate by budget.\n"
    return comment + yaml.safe_dump({**head, "winners": ordered}, sort_keys=False, width=100)


def earlier_winners(path: Path, sha256: str) -> Winners:
    """The winners in a file, of methods that there are; none if they are another model's."""
    content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if content.get("sha256") != sha256:
        return {}
    return {m: rows for m, rows in content["winners"].items() if m in samplers.names()}


def all_lines(
    bench: Bench, rows: Sequence[Tried], table: Sequence[Mapping[str, str]]
) -> list[Mapping[str, str]]:
    """Records of what ran, and those of an earlier table that it did not touch.

    Of the same models and seed; by budget, and by method within it.
    """
    lines = [line for row in rows for line in row.lines]
    known = {identity(line) for line in lines}
    regressor = "" if bench.regressor is None else bench.regressor.sha256
    lines += [
        line
        for line in table
        if identity(line) not in known
        and line["sha256"] in (bench.prior.sha256, regressor)
        and line["regressor"] in ("", regressor)
        and line["seed"] == str(bench.seed)
        and line["method"] in samplers.names()
    ]
    places = {method: place for place, method in enumerate(samplers.names())}
    return sorted(lines, key=lambda line: (int(line["list"].split()[-1]), places[line["method"]]))


def _line(entry: Entry, chosen: str) -> dict[str, Any]:
    settings = dict(entry.settings)
    return {
        "candidate": entry.note, "chosen": chosen, "preset": entry.preset, "settings": settings,
    }  # fmt: skip


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
@click.option(
    "--out", type=click.Path(path_type=Path),
    help="Table of all that ran, no suffix. What is in there is not run again and stays.",
)  # fmt: skip
@click.option(
    "--untried", "further", multiple=True, type=int,
    help="A budget that is not run: settings of the best candidate at a smaller one.",
)  # fmt: skip
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
    further: tuple[int, ...],
    measure: bool,
    minutes: float | None,
    share: Share,
    **options: Any,
) -> None:
    bench = make_bench(**options, ledger=None if out is None else Ledger(f"{out}-songs.jsonl"))
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
    table = [] if out is None else read_csv(f"{out}.csv")
    rows, best = tune(
        bench, candidates, listed, sorted(budgets), keep, vjp_cost, minutes, share, table
    )
    head = {
        "model": bench.prior.name,
        "sha256": bench.prior.sha256,
        "date": str(date.today()),
        "clips": f"{len(listed)} of valid, list {which}",
        "vjp_cost": vjp_cost,
    }
    others = {b: untried(bench, candidates, best, b, vjp_cost) for b in further}
    earlier = earlier_winners(winners, bench.prior.sha256)
    write_whole(winners, winners_text(best, head, others, earlier).encode())
    winning = [line for group in best.values() for row in group.values() for line in row.lines]
    click.echo(markdown(winning))
    if out is not None:
        write_tables(out, all_lines(bench, rows, table), "# Tuning: all candidates\n\n")


if __name__ == "__main__":
    main()
