"""Runs all methods on the held-out songs and writes the table: plan.yaml in, CSV and Markdown out.

Methods are those of the registry, settings those of their presets and of winners.yaml (tune.py).
Everything goes through mgdm_audio.Separator with one prior. A run that was killed goes on where it
was; --only-tables writes the tables of what there is. A table at --out is added to: its rows stay
where the plan still has them, with the same models and settings, and no more clips were separated.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))

from mgdm_audio import samplers
from recipes.compare.bench import Batch, Bench, Entry, Share, tuples
from recipes.compare.budgets import WINNERS, load_candidates, load_winners
from recipes.compare.clips import LISTS, Clip, clips
from recipes.compare.ledger import Ledger
from recipes.compare.options import make_bench, shared
from recipes.compare.report import (
    REFERENCE,
    Row,
    added,
    make_row,
    markdown,
    read_csv,
    write_tables,
)

PLAN = Path(__file__).parent / "plan.yaml"
RESULTS = Path(__file__).parent / "results"
TABLE = RESULTS / "table"

TUNED = "tuned"


@dataclass(frozen=True)
class Group:
    """A part of the plan; see plan.yaml."""

    clips: str
    settings: str
    methods: Sequence[str] = ()
    budgets: Sequence[int] = ()
    samples: Sequence[int] = (1,)
    minutes: float | None = None
    note: str = ""
    replace: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.clips not in LISTS:
            raise ValueError(f"unknown list '{self.clips}', expected one of {', '.join(LISTS)}")
        if self.settings == TUNED and not self.budgets:
            raise ValueError("a group of tuned settings needs its budgets")
        if unknown := {*self.methods} - {*samplers.names()}:
            raise ValueError(
                f"unknown methods {', '.join(sorted(unknown))}; there are "
                f"{', '.join(samplers.names())}"
            )

    def entries(self, winners: Path = WINNERS) -> list[Entry]:
        """The methods with their settings; those without such a preset or winner are left out.

        Raises:
            FileNotFoundError: if nothing was tuned and tuned settings are asked for.
        """
        entries = []
        tuned = load_winners(winners) if self.settings == TUNED else {}
        for method in self.methods or samplers.names():
            if self.settings == TUNED:
                rows = tuned.get(method, {})
                entries += [rows[budget] for budget in self.budgets if budget in rows]
            elif self.settings in samplers.sampler_class(method).PRESETS:
                changed = {k: tuples(v) for k, v in self.replace.get(method, {}).items()}
                note = self.note or self.settings
                entries.append(Entry(method, self.settings, changed, note))
        return entries


def load_plan(path: str | Path = PLAN) -> list[Group]:
    """The groups of a plan.

    Raises:
        ValueError: for a field, list or method that is not known; it names the file.
    """
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    try:
        return [Group(**group) for group in content["groups"]]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def draw_group(
    bench: Bench,
    group: Group,
    entries: Sequence[Entry],
    listed: Sequence[Clip],
    minutes: float | None = None,
    share: Share | None = None,
    together: int = 1,
) -> None:
    """Draws what is missing of a group; scores are in the ledger as soon as a batch is drawn.

    Clip by clip, or so many clips together, for all methods, first samples first: whenever it is
    stopped, methods have nearly the same clips.
    """

    def told(batch: Batch) -> None:
        for count in group.samples:
            bench.score(batch.entry, batch.clips, count)
        bench.ledger.save()

    limits = [limit for limit in (minutes, group.minutes) if limit is not None]
    jobs = [
        (entry, clip, number)
        for number in range(max(group.samples))
        for clip in listed
        for entry in entries
        if not all(bench.known(entry, clip, c) for c in group.samples if c > number)
    ]
    bench.fill(jobs, min(limits) if limits else None, share, together, told)


def rows_of(
    bench: Bench,
    group: Group,
    entries: Sequence[Entry],
    listed: Sequence[Clip],
    name: str,
    vjp_cost: float,
    against: Entry | None = None,
) -> list[Row]:
    """The rows of what there is of a group, on the clips that all methods have.

    One that has less than half as many as another does not keep the others from their clips: it
    was drawn elsewhere, or not at all, and its row says how many it has. Leads are over one sample
    of `against`, where it was separated.
    """
    rows = []
    for count in sorted(group.samples):
        for entry in entries:
            bench.score(entry, listed, count)  # kept, also where other methods are not there yet
        # A group that was stopped: what has been separated by all methods, so that they compare.
        ready = [
            {clip for clip in listed if _ready(bench, entry, clip, count)} for entry in entries
        ]
        most = max(map(len, ready), default=0)
        in_step = [clips for clips in ready if 2 * len(clips) >= most]
        common = [clip for clip in listed if all(clip in clips for clips in in_step)]
        reference = bench.score(against, common) if against is not None else ()
        for entry in entries:
            scored = bench.score(entry, common, count)
            rows.append(make_row(bench, entry, name, listed, count, scored, vjp_cost, reference))
    return rows


def _ready(bench: Bench, entry: Entry, clip: Clip, count: int) -> bool:
    """Whether nothing is left to draw for a clip's score."""
    return (
        bench.known(entry, clip, count)
        or bench.done(entry, clip) >= count
        or bench.failed(entry, clip)
    )


@click.command(help=__doc__)
@shared
@click.option("--split", type=click.Choice(["valid", "test"]), default="test", show_default=True)
@click.option(
    "--plan", "source", type=click.Path(path_type=Path), default=PLAN, show_default="plan.yaml"
)
@click.option(
    "--winners", type=click.Path(path_type=Path), default=WINNERS, show_default="winners.yaml"
)
@click.option("--group", "numbers", multiple=True, type=int, help="Only this group, from 1.")
@click.option(
    "--list", "which", type=click.Choice(list(LISTS)), help="All groups on this list instead."
)
@click.option(
    "--together",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Clips that are drawn in one batch, at most: for GPUs.",
)
@click.option(
    "--merge",
    "others",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="OUT-songs.jsonl of a run elsewhere: its scores are added to this one's.",
)
@click.option("--only-tables", is_flag=True, help="Draw nothing.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=TABLE,
    show_default="results/table",
)
def main(
    corpus: Path,
    split: str,
    source: Path,
    winners: Path,
    numbers: tuple[int, ...],
    which: str | None,
    together: int,
    others: tuple[Path, ...],
    only_tables: bool,
    out: Path,
    minutes: float | None,
    share: Share,
    **options: Any,
) -> None:
    if out == TABLE and (which is not None or split != "test" or options["model"] != "default"):
        raise click.UsageError(
            "name --out: with --list, --split or --model the table is another one than "
            f"{TABLE.name}.csv, whose rows it would replace"
        )
    start = time.monotonic()
    ledger = Ledger(f"{out}-songs.jsonl")
    for path in others:
        ledger.merge(path)
    bench = make_bench(**options, ledger=ledger)
    vjp_cost, _ = load_candidates()
    lists: dict[str, list[Clip]] = {}
    parts = []
    for number, group in enumerate(load_plan(source), start=1):
        entries, chosen = bench.possible(group.entries(winners)), which or group.clips
        if chosen not in lists:
            lists[chosen] = clips(corpus / split, LISTS[chosen])
        click.echo(f"group {number}: {len(entries)} entries, {len(lists[chosen])} clips", err=True)
        parts.append((number, group, entries, chosen))
    for number, group, entries, chosen in parts:
        if only_tables or (numbers and number not in numbers):
            continue
        click.echo(f"drawing group {number}", err=True)
        left = None if minutes is None else minutes - (time.monotonic() - start) / 60
        draw_group(bench, group, entries, lists[chosen], left, share, together)
    against = next(iter(bench.possible([REFERENCE])), None)
    rows: list[Row] = []
    for _, group, entries, chosen in parts:
        name = f"{split} {chosen}"
        rows += rows_of(bench, group, entries, lists[chosen], name, vjp_cost, against)
    bench.ledger.save()
    lines = added(rows, read_csv(f"{out}.csv"))
    click.echo(markdown(lines))
    write_tables(out, lines, "# All methods on the same prior and clips\n\n")


if __name__ == "__main__":
    main()
