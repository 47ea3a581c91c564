"""Reruns Figures 3 and 4 of the paper on validation clips: CSV, Markdown and PNG.

Figure 3: SI-SDRi of MGDM against the Gibbs repetitions R, beside the control that spends the same
compute on gradient steps instead (R = 1 and as many times more gradient steps). Figure 4: the laws
that the guided index is drawn from, at R = 1 and 2.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parents[2]))

from mgdm_audio import samplers
from mgdm_audio.samplers.mgdm import INDEX_LAWS, MGDM
from recipes.compare.bench import Bench, Entry, Share
from recipes.compare.budgets import equivalents, load_candidates
from recipes.compare.clips import LISTS, clips
from recipes.compare.options import make_bench, parse_setting, shared
from recipes.compare.report import Row, make_row, markdown, records, write_tables

RESULTS = Path(__file__).parent / "results"


def control(base: MGDM, repetitions: int, vjp_cost: float) -> MGDM:
    """R = 1 with the gradient steps that cost most nearly as much as `repetitions` sweeps."""
    wanted = equivalents(dataclasses.replace(base, repetitions=repetitions).cost(), vjp_cost)
    best = dataclasses.replace(base, repetitions=1)
    for factor in range(1, 4 * repetitions + 1):
        steps = tuple((idx, g * factor) for idx, g in base.gradient_steps)
        sampler = dataclasses.replace(base, repetitions=1, gradient_steps=steps)
        if abs(equivalents(sampler.cost(), vjp_cost) - wanted) < abs(
            equivalents(best.cost(), vjp_cost) - wanted
        ):
            best = sampler
    return best


def figure_3(base: MGDM, repetitions: Sequence[int], vjp_cost: float) -> dict[str, list[Entry]]:
    """Entries of the sweep over R and of the control, in the same order; R = 1 in both."""
    sweep, other = [], []
    for r in repetitions:
        sweep.append(_entry(dataclasses.replace(base, repetitions=r), f"R={r}"))
        steps = control(base, r, vjp_cost)
        gradients = ",".join(str(g) for _, g in steps.gradient_steps)
        other.append(_entry(steps, f"R=1 G={gradients} (cost of R={r})"))
    return {"repetitions R": sweep, "R = 1, more gradient steps": other}


def figure_4(base: MGDM, repetitions: Sequence[int]) -> dict[str, list[Entry]]:
    """Entries by index law; a law that has no index to draw on this grid is left out."""
    series: dict[str, list[Entry]] = {}
    for law in INDEX_LAWS:
        try:
            own = [dataclasses.replace(base, index=law, repetitions=r) for r in repetitions]
        except ValueError:
            continue
        series[law] = [
            _entry(sampler, f"{law} R={r}") for sampler, r in zip(own, repetitions, strict=True)
        ]
    return series


def _entry(sampler: MGDM, note: str) -> Entry:
    """An entry with all settings of a sampler that differ from its default preset."""
    default = MGDM.PRESETS["default"]
    settings = {
        f.name: getattr(sampler, f.name)
        for f in dataclasses.fields(sampler)
        if getattr(sampler, f.name) != getattr(default, f.name)
    }
    return Entry("mgdm", "default", settings, note)


def draw(series: dict[str, list[Row]], xs: Sequence[int], out: Path, title: str) -> None:
    """Writes the plot as PNG: mean and 95 % interval of all stems."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for shift, (name, rows) in enumerate(series.items()):
        scores = [row.score() for row in rows]
        bounds = [row.interval("active", "all") for row in rows]
        below = [score - low for score, (low, _) in zip(scores, bounds, strict=True)]
        above = [high - score for score, (_, high) in zip(scores, bounds, strict=True)]
        at = [x * 1.02**shift for x in xs]
        axes.errorbar(at, scores, yerr=[below, above], fmt="-o", capsize=3, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(xs, [str(x) for x in xs])
    axes.set_xlabel("R (and compute of R)")
    axes.set_ylabel("SI-SDRi in dB, active stems, one sample")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(out, dpi=130)
    plt.close(figure)


def run(
    bench: Bench,
    series: dict[str, list[Entry]],
    listed: list[Any],
    name: str,
    vjp_cost: float,
    minutes: float | None,
    share: Share,
) -> dict[str, list[Row]]:
    """Draws what is missing, one sample a clip, and the rows of each series."""
    columns = [entry for group in zip(*series.values(), strict=True) for entry in group]
    bench.fill([(entry, clip, 0) for entry in columns for clip in listed], minutes, share)
    return {
        key: [
            make_row(bench, e, name, listed, 1, bench.score(e, listed), vjp_cost) for e in entries
        ]
        for key, entries in series.items()
    }


@click.command(help=__doc__)
@shared
@click.option("--preset", default="default", show_default=True, help="MGDM's other settings.")
@click.option("--set", "settings", multiple=True, help="MGDM setting, name=JSON.")
@click.option(
    "--repetitions", multiple=True, type=click.IntRange(1), default=(1, 2, 4, 6),
    show_default=True,
)  # fmt: skip
@click.option("--list", "which", type=click.Choice(list(LISTS)), default="tune", show_default=True)
@click.option("--figure", type=click.Choice(["3", "4", "both"]), default="both")
@click.option(
    "--out", type=click.Path(path_type=Path), default=RESULTS, show_default="results",
    help="Folder.",
)  # fmt: skip
def main(
    corpus: Path,
    preset: str,
    settings: tuple[str, ...],
    repetitions: tuple[int, ...],
    which: str,
    figure: str,
    out: Path,
    minutes: float | None,
    share: Share,
    **options: Any,
) -> None:
    bench = make_bench(**options)
    until = None if minutes is None else time.monotonic() + 60 * minutes
    vjp_cost, _ = load_candidates()
    base = samplers.get("mgdm", preset, **dict(map(parse_setting, settings)))
    assert isinstance(base, MGDM)
    listed = clips(corpus / "valid", LISTS[which])
    few = sorted(repetitions)[:2]
    plans = {
        "3": ("Repetitions against gradient steps", figure_3(base, repetitions, vjp_cost),
              repetitions),
        "4": ("Laws of the guided index", figure_4(base, few), few),
    }  # fmt: skip
    for number, (title, series, xs) in plans.items():
        if figure not in (number, "both"):
            continue
        left = None if until is None else (until - time.monotonic()) / 60
        rows = run(bench, series, listed, f"valid {which}", vjp_cost, left, share)
        flat = records([row for group in rows.values() for row in group])
        click.echo(markdown(flat))
        write_tables(out / f"figure{number}", flat, f"# {title}\n\n")
        draw(rows, xs, out / f"figure{number}.png", f"MGDM, {preset}: {title.lower()}")


if __name__ == "__main__":
    main()
