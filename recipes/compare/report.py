"""Rows of scores and their tables: CSV with everything, Markdown in the form of Table 3."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from mgdm_audio import STEMS, metrics
from mgdm_audio.evaluate import Evaluation
from recipes.compare.bench import Bench, Entry
from recipes.compare.budgets import equivalents
from recipes.compare.clips import Clip
from recipes.compare.ledger import Scored, Spent, write_whole

READINGS = {
    "active": "SI-SDRi in dB, stems that are active in the window (active-stem reading)",
    "track": "SI-SDRi in dB, all stems of windows with two active ones (MSDM reading); in "
    "parentheses the paper's Table 3",
}
COLUMNS = (*STEMS, "all")

REFERENCE = Entry("regressor")
"""What the methods of a table are compared with song by song: the best that there is."""

LEAD = "all, less the regressor's on the same songs"

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
        failed: number of clips for which the sampler gave values that are not finite.
        samples: posterior samples that were averaged.
        summary: scores, see :meth:`mgdm_audio.evaluate.Evaluation.summary`; None if the sampler
            failed or no clip was scored.
        residual_db: of the sampler, before the stems are made to add up; mean over clips.
        spent: cost a clip.
        vjp_cost: see :mod:`recipes.compare.budgets`.
        lead: mean of the stems' SI-SDRi less that of the reference on the same clips, active-stem
            reading, with its 95 % bootstrap interval over songs; see :func:`lead`.
        run: model and its checksum, that of the regressor that it asks (or ""), precision, seed,
            the last day on which a clip was scored.
    """

    entry: Entry
    listed: str
    clips: tuple[int, int]
    failed: int
    samples: int
    summary: dict[str, Any] | None
    residual_db: float
    spent: Spent
    vjp_cost: float
    lead: tuple[float, float, float]
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
    name: str,
    listed: Sequence[Clip],
    samples: int,
    scored: Sequence[Scored],
    vjp_cost: float,
    reference: Sequence[Scored] = (),
) -> Row:
    """The row of what :meth:`Bench.score` gave for the clips of a list with this name.

    `reference` is what it gave for another entry, of these clips or more.
    """
    tracks = tuple(one.track for one in scored)
    spent = sum((one.spent for one in scored), Spent())
    n = max(1, len(scored))
    main = bench.separator(entry).prior
    depends = bench.describe(entry)
    residuals = [one.residual_db for one in scored if math.isfinite(one.residual_db)]
    return Row(
        entry=entry,
        listed=name,
        clips=(len(tracks), len(listed)),
        failed=sum(bench.failed(entry, clip) for clip in listed),
        samples=samples,
        summary=Evaluation(tracks).summary() if tracks else None,
        residual_db=float(np.mean(residuals)) if residuals else -math.inf,
        spent=Spent(
            spent.calls / n,
            spent.vjps / n,
            spent.seconds / n,
            spent.cpu_seconds / n,
            spent.peak_mib,
        ),
        vjp_cost=vjp_cost,
        lead=lead(scored, reference),
        run={
            "model": main.name,
            "sha256": main.sha256,
            "regressor": depends.get("regressor", ""),
            "precision": depends["precision"],
            "seed": bench.seed,
            "date": max((one.day for one in scored), default=str(date.today())),
        },
    )


def lead(scored: Sequence[Scored], reference: Sequence[Scored]) -> tuple[float, float, float]:
    """How much more is gained than by a reference: mean, and the ends of its interval.

    Songs differ by more than methods do, so intervals of two methods overlap that differ on every
    song alike; this one is of the differences. NaN unless the reference has all of the clips.
    """
    others = {one.track.name: one.track.windows for one in reference}
    if not scored or not all(one.track.name in others for one in scored):
        return math.nan, math.nan, math.nan
    differences = [
        windows.masked(windows.improvement - others[one.track.name].improvement)
        for one in scored
        for windows in [one.track.windows]
    ]
    mean = float(metrics.nanmean(metrics.nanmean(np.concatenate(differences))))
    interval = metrics.bootstrap(differences)
    return mean, interval.low_all, interval.high_all


def records(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The lines of the CSV, one per row and reading; cells without a value are empty."""
    lines = []
    for row in rows:
        silent = {"silent_level_db": math.nan, "silent_share": math.nan}
        if row.summary is not None:
            silent = {key: row.summary[key]["all"] for key in silent}
        for reading in READINGS:
            line = {
                "method": row.entry.method,
                "settings": row.entry.text(),
                "note": row.entry.note,
                "list": row.listed,
                "clips": str(row.clips[0]),
                "clips_in_list": str(row.clips[1]),
                "failed": str(row.failed),
                "samples": str(row.samples),
                "reading": reading,
            }
            for k, column in enumerate(COLUMNS):
                low, high = row.interval(reading, column)
                line[column] = _cell(row.score(reading, column))
                line |= {f"{column}_low": _cell(low), f"{column}_high": _cell(high)}
                published = PAPER.get(row.entry.method, (math.nan,) * 5)[k]
                line[f"{column}_paper"] = _cell(published)
            line |= dict(zip(("lead", "lead_low", "lead_high"), map(_cell, row.lead), strict=True))
            spent = row.spent
            line |= {
                "calls": f"{spent.calls:.1f}",
                "vjps": f"{spent.vjps:.1f}",
                "vjp_cost": f"{row.vjp_cost:g}",
                "equivalents": f"{row.equivalents:.1f}",
                "seconds": f"{spent.seconds:.2f}",
                "cpu_seconds": f"{spent.cpu_seconds:.2f}",
                "peak_mib": f"{spent.peak_mib:.0f}",
                "residual_db": _cell(row.residual_db),
                **{key: _cell(value) for key, value in silent.items()},
                **{key: str(value) for key, value in row.run.items()},
            }
            lines.append(line)
    return lines


def added(rows: Sequence[Row], table: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The records of rows, or those of an earlier table where it scored more clips.

    What was run on no clip is left out, unless it failed.
    """
    earlier: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for line in table:
        earlier.setdefault(identity(line), []).append(line)
    lines: list[Mapping[str, str]] = []
    seen: set[tuple[str, ...]] = set()
    for row in rows:
        own: Sequence[Mapping[str, str]] = records([row])
        if identity(own[0]) in seen:  # groups that differ in their lists, all run on one
            continue
        seen.add(identity(own[0]))
        kept = earlier.get(identity(own[0]), [])
        if kept and int(kept[0]["clips"]) > row.clips[0]:
            lines += kept
        elif row.clips[0] or row.failed:
            lines += own
    return lines


def identity(line: Mapping[str, str]) -> tuple[str, ...]:
    """What makes two rows the same; the precision of the network is no part of it."""
    keys = ("method", "settings", "note", "list", "samples", "sha256", "regressor", "seed")
    return tuple(line[key] for key in keys)


def csv_text(lines: Sequence[Mapping[str, str]]) -> str:
    """CSV of :func:`records`."""
    text = io.StringIO()
    if lines:
        # Lines of an earlier table may lack a column.
        columns = list(dict.fromkeys(key for line in lines for key in line))
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return text.getvalue()


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """The :func:`records` that :func:`write_tables` wrote; none where there is no file."""
    if not Path(path).is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def markdown(lines: Sequence[Mapping[str, str]]) -> str:
    """Of :func:`records` a table for each reading with the paper's figures beside ours, then a
    table of cost."""
    parts = [_head(lines)]
    names = ["method", "settings", "list", "clips", "mean of"]
    for reading, title in READINGS.items():
        paired = reading == "active" and any(line["lead"] for line in lines)
        columns = [*COLUMNS, *([LEAD] if paired else [])]
        table = [f"**{title}**", "", _line([*names, *columns])]
        table.append(_line(["---"] * 3 + ["---:"] * (2 + len(columns))))
        for line in lines:
            if line["reading"] != reading:
                continue
            cells = [_scored(line, "lead" if column == LEAD else column) for column in columns]
            if reading == "track":
                published = [line[f"{column}_paper"] for column in COLUMNS]
                pairs = zip(cells, published, strict=True)
                cells = [
                    f"{ours} ({float(theirs):.2f})" if theirs else ours for ours, theirs in pairs
                ]
            table.append(_line([*_names(line), *cells]))
        parts.append("\n".join(table))
    titles = ["calls", "VJPs", "call-equivalents", "CPU s", "s", "peak MiB", "residual dB"]
    titles += ["silent stems dB", "precision"]
    table = ["**Cost of a clip, and what is left of the mixture**", "", _line([*names, *titles])]
    table.append(_line(["---"] * 3 + ["---:"] * (2 + len(titles))))
    for line in lines:
        if line["reading"] != "active":
            continue
        cells = [_rounded(line[key], 0) for key in ("calls", "vjps", "equivalents")]
        cells += [_rounded(line[key], 1) for key in ("cpu_seconds", "seconds")]
        cells += [line["peak_mib"]]
        cells += [_rounded(line[key], 1) for key in ("residual_db", "silent_level_db")]
        table.append(_line([*_names(line), *cells, line["precision"]]))
    parts.append("\n".join(table))
    return "\n\n".join(parts) + "\n"


def settings_text(lines: Sequence[Mapping[str, str]]) -> str:
    """The settings of each row, once, as a list."""
    seen = {f"- `{r['method']}`, {r['note'] or 'as named'}: `{r['settings']}`" for r in lines}
    return "\n".join(sorted(seen)) + "\n"


def write_tables(
    out: Path, lines: Sequence[Mapping[str, str]], before: str = "", after: str = ""
) -> None:
    """Writes `out`.csv and `out`.md of :func:`records`."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out.with_name(out.name + ".csv"), csv_text(lines).encode())
    text = before + markdown(lines) + "\n**Settings**\n\n" + settings_text(lines) + after
    write_whole(out.with_name(out.name + ".md"), text.encode())


def _head(lines: Sequence[Mapping[str, str]]) -> str:
    runs = {
        f"model {line['model']} ({line['sha256'][:8]}), {line['precision']}, "
        f"seed {line['seed']}, {line['date']}"
        for line in lines
    }
    return (
        f"{'; '.join(sorted(runs))}. In brackets the 95 % bootstrap interval over songs. "
        '"Mean of" counts the posterior samples that were averaged. The paper\'s figures are of '
        f"other songs and another prior. A VJP is counted as {lines[0]['vjp_cost']} further calls."
        if lines
        else "No rows."
    )


def _names(line: Mapping[str, str]) -> list[str]:
    done, listed = line["clips"], line["clips_in_list"]
    clips = done if done == listed else f"{done}/{listed}"
    return [line["method"], line["note"] or line["settings"], line["list"], clips, line["samples"]]


def _scored(line: Mapping[str, str], column: str) -> str:
    value, low, high = (line[f"{column}{end}"] for end in ("", "_low", "_high"))
    if not value:
        failed = int(line.get("failed") or 0)
        return "not finite" if failed and not line["all"] and column == "all" else "-"
    return _rounded(value, 2) + (f" [{_rounded(low, 2)}, {_rounded(high, 2)}]" if low else "")


def _rounded(cell: str, digits: int) -> str:
    return f"{float(cell):.{digits}f}" if cell else "-"


def _cell(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else ""


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
