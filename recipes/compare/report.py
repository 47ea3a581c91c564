"""Rows of scores and their tables: CSV with everything, Markdown in the form of Table 3."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from mgdm_audio import STEMS
from mgdm_audio.evaluate import Evaluation, TrackScores
from recipes.compare.bench import Bench, Entry, Outcome, Spent, write_whole
from recipes.compare.budgets import equivalents

READINGS = {
    "active": "SI-SDRi in dB, stems that are active in the window (active-stem reading)",
    "track": "SI-SDRi in dB, all stems of windows with two active ones (MSDM reading); in "
    "parentheses the paper's Table 3",
}
COLUMNS = (*STEMS, "all")

PAPER = {
    "mgdm": (18.49, 18.07, 16.68, 16.17, 17.35),
    "dps": (16.50, 18.29, 9.90, 10.41, 13.77),
    "pgdm": (16.41, 18.14, 12.84, 12.31, 14.92),
    "ddnm": (14.94, 19.05, 14.38, 11.46, 14.96),
    "msdm": (17.12, 18.68, 15.38, 14.73, 16.48),
    "isdm": (19.36, 20.90, 14.70, 14.13, 17.27),
    "gibbs": (17.16, 19.61, 17.82, 16.32, 17.73),
}
"""Table 3 of Janati, Moufad et al. (2025): slakh2100's test songs, the 405 M prior of MSDM."""


@dataclass(frozen=True)
class Row:
    """Scores of a method on a list of clips.

    Attributes:
        entry: the method and its settings.
        listed: split and name of the list, such as "test small".
        clips: number of clips scored, and of those in the list.
        samples: posterior samples that were averaged.
        summary: scores, see :meth:`mgdm_audio.evaluate.Evaluation.summary`; None if the sampler
            failed or no clip was scored.
        residual_db: of the sampler, before the stems are made to add up; mean over clips.
        spent: cost a clip.
        vjp_cost: see :mod:`recipes.compare.budgets`.
        run: model, its checksum, precision, seed, date.
    """

    entry: Entry
    listed: str
    clips: tuple[int, int]
    samples: int
    summary: dict[str, Any] | None
    residual_db: float
    spent: Spent
    vjp_cost: float
    run: dict[str, Any]

    def score(self, reading: str = "active", column: str = "all") -> float:
        """A mean; NaN without a summary."""
        return math.nan if self.summary is None else self.summary[f"{reading}_mean"][column]

    def interval(self, reading: str, column: str) -> tuple[float, float]:
        """Its 95 % bootstrap interval over songs."""
        if self.summary is None:
            return math.nan, math.nan
        return self.summary[f"{reading}_interval"][column]

    @property
    def equivalents(self) -> float:
        return equivalents(self.spent, self.vjp_cost)


def make_row(
    bench: Bench,
    entry: Entry,
    listed: str,
    total: int,
    samples: int,
    scored: tuple[list[TrackScores], list[Outcome]],
    vjp_cost: float,
) -> Row:
    """The row of what :meth:`Bench.score` gave for a list of `total` clips."""
    tracks, outcomes = scored
    spent = sum((outcome.spent for outcome in outcomes), Spent())
    n = max(1, len(outcomes))
    main = bench.separator(entry).prior
    residuals = [outcome.residual_db for outcome in outcomes if math.isfinite(outcome.residual_db)]
    return Row(
        entry=entry,
        listed=listed,
        clips=(len(tracks), total),
        samples=samples,
        summary=Evaluation(tuple(tracks)).summary() if tracks else None,
        residual_db=float(np.mean(residuals)) if residuals else -math.inf,
        spent=Spent(
            spent.calls / n,
            spent.vjps / n,
            spent.seconds / n,
            spent.cpu_seconds / n,
            spent.peak_mib,
        ),
        vjp_cost=vjp_cost,
        run={
            "model": main.name,
            "sha256": main.sha256,
            "precision": bench.describe(entry)["precision"],
            "seed": bench.seed,
            "date": str(date.today()),
        },
    )


def csv_text(rows: Sequence[Row]) -> str:
    """One line per row and reading; cells without a value are empty."""
    header = ["method", "settings", "note", "list", "clips", "clips_in_list", "samples", "reading"]
    for column in COLUMNS:
        header += [column, f"{column}_low", f"{column}_high", f"{column}_paper"]
    header += ["calls", "vjps", "equivalents", "seconds", "cpu_seconds", "peak_mib"]
    header += ["residual_db", "silent_level_db", "silent_share"]
    header += ["model", "sha256", "precision", "seed", "date"]
    lines: list[list[object]] = [[*header]]
    for row in rows:
        silent = {"silent_level_db": math.nan, "silent_share": math.nan}
        if row.summary is not None:
            silent = {key: row.summary[key]["all"] for key in silent}
        for reading in READINGS:
            line: list[object] = [row.entry.method, row.entry.text(), row.entry.note]
            line += [row.listed, *row.clips, row.samples, reading]
            for k, column in enumerate(COLUMNS):
                low, high = row.interval(reading, column)
                published = PAPER.get(row.entry.method, (math.nan,) * 5)[k]
                line += [_cell(v) for v in (row.score(reading, column), low, high, published)]
            spent = row.spent
            line += [f"{spent.calls:.1f}", f"{spent.vjps:.1f}", f"{row.equivalents:.1f}"]
            line += [f"{spent.seconds:.2f}", f"{spent.cpu_seconds:.2f}", f"{spent.peak_mib:.0f}"]
            line += [_cell(row.residual_db), *(_cell(v) for v in silent.values())]
            line += [str(row.run[key]) for key in ("model", "sha256", "precision", "seed", "date")]
            lines.append(line)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def markdown(rows: Sequence[Row]) -> str:
    """A table for each reading with the paper's figures beside ours, then a table of cost."""
    parts = [_head(rows)]
    for reading, title in READINGS.items():
        lines = [f"**{title}**", ""]
        lines.append(_line(["method", "settings", "list", "clips", "mean of", *COLUMNS]))
        lines.append(_line(["---"] * 3 + ["---:"] * (2 + len(COLUMNS))))
        for row in rows:
            cells = [_scored(row, reading, column) for column in COLUMNS]
            if reading == "track" and row.entry.method in PAPER:
                published = PAPER[row.entry.method]
                cells = [f"{a} ({b:.2f})" for a, b in zip(cells, published, strict=True)]
            lines.append(_line([*_names(row), *cells]))
        parts.append("\n".join(lines))
    lines = ["**Cost of a clip, and what is left of the mixture**", ""]
    titles = ["calls", "VJPs", "call-equivalents", "CPU s", "s", "peak MiB", "residual dB"]
    titles.append("silent stems dB")
    lines.append(_line(["method", "settings", "list", "clips", "mean of", *titles]))
    lines.append(_line(["---"] * 3 + ["---:"] * (2 + len(titles))))
    for row in rows:
        spent = row.spent
        silent = math.nan if row.summary is None else row.summary["silent_level_db"]["all"]
        cells = [f"{spent.calls:.0f}", f"{spent.vjps:.0f}", f"{row.equivalents:.0f}"]
        cells += [f"{spent.cpu_seconds:.1f}", f"{spent.seconds:.1f}", f"{spent.peak_mib:.0f}"]
        cells += [_decibel(row.residual_db), _decibel(silent)]
        lines.append(_line([*_names(row), *cells]))
    parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def settings_text(rows: Sequence[Row]) -> str:
    """The settings of each row, once, as a list."""
    seen = {f"- `{r.entry.method}`, {r.entry.note or 'as named'}: `{r.entry.text()}`" for r in rows}
    return "\n".join(sorted(seen)) + "\n"


def write_tables(out: Path, rows: Sequence[Row], before: str = "", after: str = "") -> None:
    """Writes `out`.csv and `out`.md."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out.with_name(out.name + ".csv"), csv_text(rows).encode())
    text = before + markdown(rows) + "\n**Settings**\n\n" + settings_text(rows) + after
    write_whole(out.with_name(out.name + ".md"), text.encode())


def _head(rows: Sequence[Row]) -> str:
    runs = {
        f"model {r.run['model']} ({r.run['sha256'][:8]}), {r.run['precision']}, "
        f"seed {r.run['seed']}, {r.run['date']}"
        for r in rows
    }
    return (
        f"{'; '.join(sorted(runs))}. In brackets the 95 % bootstrap interval over songs. "
        '"Mean of" counts the posterior samples that were averaged. The paper\'s figures are of '
        f"other songs and another prior. A VJP is counted as {rows[0].vjp_cost:g} further calls."
        if rows
        else "No rows."
    )


def _names(row: Row) -> list[str]:
    clips = str(row.clips[0]) if row.clips[0] == row.clips[1] else f"{row.clips[0]}/{row.clips[1]}"
    return [row.entry.method, row.entry.note or row.entry.text(), row.listed, clips,
            str(row.samples)]  # fmt: skip


def _scored(row: Row, reading: str, column: str) -> str:
    value = row.score(reading, column)
    if math.isnan(value):
        return "not finite" if row.summary is None and column == "all" else "-"
    low, high = row.interval(reading, column)
    return f"{value:.2f}" + ("" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]")


def _decibel(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "-"


def _cell(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else ""


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
