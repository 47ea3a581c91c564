"""Draws quality against compute from tables of this folder (CSV), and prints the Pareto front.

One line a method through its best rows: of each budget in a tuning, else those that no cheaper one
of the method beats. Rows of different clips do not compare: give tables of one list, or --list;
rows that have fewer of its clips than others, because a run was stopped, are left out.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[2]))


@dataclass(frozen=True)
class Point:
    """A row of a table: its method, call-equivalents a clip, SI-SDRi, and the row's list."""

    method: str
    label: str
    cost: float
    score: float
    listed: str = ""


def read_points(
    paths: Sequence[Path], reading: str = "active", listed: str | None = None
) -> list[Point]:
    """Rows with a score, in order.

    Raises:
        ValueError: if the rows are of several lists of clips, which do not compare.
    """
    points, lists = [], set()
    for row in _whole(paths, reading):
        of_list = row["list"].split(" at ")[0]
        if listed not in (None, of_list):
            continue
        lists.add(of_list)
        mean = f", mean of {row['samples']}" if row["samples"] != "1" else ""
        label = f"{row['note'] or row['settings']}{mean}"
        cost, score = float(row["equivalents"]), float(row["all"])
        points.append(Point(row["method"], label, cost, score, row["list"]))
    if len(lists) > 1:
        raise ValueError(
            f"the tables are of different clips: {', '.join(sorted(lists))}; name one with --list"
        )
    return points


def _whole(paths: Sequence[Path], reading: str) -> list[dict[str, str]]:
    """Rows that have a score, of as many clips as any other of their list."""
    rows = []
    for path in paths:
        with open(path, newline="", encoding="utf-8") as file:
            rows += [r for r in csv.DictReader(file) if r["reading"] == reading and r["all"]]
    most: dict[str, int] = {}
    for row in rows:
        most[row["list"]] = max(most.get(row["list"], 0), int(row["clips"]))
    return [row for row in rows if int(row["clips"]) == most[row["list"]]]


def front(points: Sequence[Point]) -> list[Point]:
    """Points that no other beats at the same or a lower cost, by rising cost."""
    result: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.score)):
        if not result or point.score > result[-1].score:
            result.append(point)
    return result


def best_by_list(points: Sequence[Point]) -> list[Point]:
    """The best of each list (a budget of the tuning), by rising cost."""
    best: dict[str, Point] = {}
    for point in points:
        if point.listed not in best or point.score > best[point.listed].score:
            best[point.listed] = point
    return sorted(best.values(), key=lambda p: p.cost)


def draw(points: Sequence[Point], out: Path, title: str) -> None:
    """Writes the plot as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    # Rows of a tuning are joined from budget to budget, also where more compute makes them worse.
    tuning = len({point.listed for point in points}) > 1
    methods = list(dict.fromkeys(point.method for point in points))
    colours = plt.get_cmap("tab20")(range(len(methods)))
    for k, method in enumerate(methods):
        own = [point for point in points if point.method == method]
        best = best_by_list(own) if tuning else front(own)
        width = 2.5 if method == "mgdm" else 1.2
        axes.plot([p.cost for p in best], [p.score for p in best], "-o", color=colours[k],
                  label=method, linewidth=width, markersize=4)  # fmt: skip
        axes.plot([p.cost for p in own], [p.score for p in own], ".", color=colours[k], alpha=0.6)
    edge = front(points)
    # What costs more than its last point and is no better leaves the front where it is.
    reach = [(p.cost, p.score) for p in edge] + [(max(p.cost for p in points), edge[-1].score)]
    axes.step(*zip(*reach, strict=True), where="post", color="black", linestyle=":", linewidth=1,
              label="Pareto front")  # fmt: skip
    axes.set_xscale("log")
    # Methods that broke down are left below the plot.
    bottom = max(min(p.score for p in points), min(edge[0].score, 0.0) - 3)
    margin = 0.05 * max(edge[-1].score - bottom, 0.1)
    axes.set_ylim(bottom - margin, edge[-1].score + margin)
    axes.set_xlabel("network calls a clip (a VJP counted by its time)")
    axes.set_ylabel("SI-SDRi in dB, active stems")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    figure.savefig(out, dpi=130)
    plt.close(figure)


@click.command(help=__doc__)
@click.argument("tables", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--list", "listed", help="Only rows of this list.")
@click.option("--reading", type=click.Choice(["active", "track"]), default="active")
@click.option("--title", default="Quality against compute", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="PNG file.")
def main(tables: tuple[Path, ...], listed: str | None, reading: str, title: str, out: Path) -> None:
    points = read_points(tables, reading, listed)
    if not points:
        raise click.ClickException("no row of these tables has a score there")
    draw(points, out, title)
    for point in front(points):
        click.echo(f"{point.cost:8.0f}  {point.score:6.2f} dB  {point.method} {point.label}")


if __name__ == "__main__":
    main()
