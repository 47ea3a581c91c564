"""How honest a method's posterior samples are, on held-out clips: CSV, Markdown and PNG.

SI-SDRi of one sample, of the mean of n, and of the oracle's best of n (which needs the true stems:
no method); what averaging gains in squared error beside what it gains where samples are exact;
coverage, spread and rank histograms by stem and band; what is left of the mixture; and the level
of estimates where the stem is silent (clips of the list "sparse").
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from mgdm_audio import metrics
from mgdm_audio.evaluate import Evaluation
from recipes.compare.bench import Bench, Entry, Share
from recipes.compare.calibration import (
    BANDS,
    Calibration,
    averaging_gain,
    best_of,
    calibrate,
    powers_of_two,
    theoretical_gain,
)
from recipes.compare.clips import LISTS, Clip, clips
from recipes.compare.ledger import write_whole
from recipes.compare.options import make_bench, parse_setting, shared

RESULTS = Path(__file__).parent / "results"

_BAND_NAMES = [f"{low:.0f}-{high:.0f} Hz" for low, high in BANDS]


@dataclass
class Honesty:
    """The figures of one method.

    Attributes:
        stems: names of the K stems.
        samples: posterior samples n of each clip.
        clips: number of clips.
        scores: SI-SDRi over active stems by what was scored, (K,) each.
        gains: dB gained in squared error by the mean of n, measured (K,), by n.
        calibration: ranks and spreads.
        residual_db: of single samples before they are made to add up, mean.
        silent_db: level of estimates where the stem is silent, dB re full scale, (K,).
        mix_db: level of the mixtures of those clips, dB re full scale.
    """

    stems: Sequence[str]
    samples: int
    clips: int
    scores: dict[str, metrics.Floats]
    gains: dict[int, metrics.Floats]
    calibration: Calibration
    residual_db: float
    silent_db: metrics.Floats = field(default_factory=lambda: np.full(4, np.nan))
    mix_db: float = float("nan")


def examine(bench: Bench, entry: Entry, listed: Sequence[Clip], count: int) -> Honesty:
    """The figures from the store, over clips that have `count` samples there.

    Raises:
        ValueError: if there are none, or fewer than two samples are asked for.
    """
    ready = [clip for clip in listed if bench.done(entry, clip) >= count]
    if not ready or count < 2:
        raise ValueError(
            f"{len(ready)} of {len(listed)} clips have {count} samples; at least one clip and two "
            "samples are needed"
        )
    stems = bench.prior.stems
    numbers = powers_of_two(count)
    errors = {n: np.zeros((2, len(stems))) for n in numbers}
    calibration: Calibration | None = None
    singles, residuals, best = [], [], []
    for clip in ready:
        outcomes = [bench.separate(entry, clip, first) for first in range(count)]
        residuals += [outcome.residual_db for outcome in outcomes]
        drawn = np.stack([outcome.stems for outcome in outcomes]).astype(np.float64)
        truth = clip.stems.astype(np.float64)
        part = calibrate(drawn, truth, bench.prior.sample_rate)
        calibration = part if calibration is None else calibration + part
        for n in numbers:
            errors[n] += averaging_gain(drawn, truth, n)
        scores = [metrics.score_windows(truth, sample, bench.prior.sample_rate) for sample in drawn]
        singles += [score.masked(score.improvement) for score in scores]
        best.append(best_of([score.masked(score.improvement) for score in scores]))
    assert calibration is not None
    result = {"one sample": metrics.nanmean(np.concatenate(singles))}
    for n in numbers[1:]:
        tracks = tuple(scored.track for scored in bench.score(entry, ready, n))
        summary = Evaluation(tracks).summary()["active_mean"]
        result[f"mean of {n}"] = np.array([summary[stem] for stem in stems])
    result[f"best of {count}, chosen with the true stems"] = metrics.nanmean(np.concatenate(best))
    gains = {n: 10 * np.log10(one / mean) for n, (one, mean) in errors.items() if n > 1}
    finite = [r for r in residuals if np.isfinite(r)]
    return Honesty(
        stems=stems,
        samples=count,
        clips=len(ready),
        scores=result,
        gains=gains,
        calibration=calibration,
        residual_db=float(np.mean(finite)) if finite else float("-inf"),
    )


def where_silent(
    bench: Bench, entry: Entry, listed: Sequence[Clip]
) -> tuple[metrics.Floats, float]:
    """Level of one sample where a stem is silent (K,), and of the mixtures, dB re full scale."""
    scored = bench.score(entry, listed)
    if not scored:
        return np.full(len(bench.prior.stems), np.nan), float("nan")
    level = metrics.silent_level_db([one.track.windows for one in scored])
    return level, float(np.mean([metrics.level_db(clip.mix) for clip in listed]))


def rows_of(honesty: Honesty) -> list[tuple[str, str, str, float, float | None]]:
    """(quantity, stem, band, value, value for exact samples) of all figures."""
    rows: list[tuple[str, str, str, float, float | None]] = []
    for name, values in honesty.scores.items():
        rows += [
            (f"SI-SDRi of {name}, dB", s, "", float(v), None)
            for s, v in zip(honesty.stems, values, strict=True)
        ]
    for n, values in honesty.gains.items():
        rows += [
            (f"gain of the mean of {n}, dB", s, "", float(v), theoretical_gain(n))
            for s, v in zip(honesty.stems, values, strict=True)
        ]
    coverage, ratio = honesty.calibration.coverage(), honesty.calibration.spread_ratio()
    nominal = honesty.calibration.nominal_coverage()
    for k, stem in enumerate(honesty.stems):
        for b, place in enumerate(_BAND_NAMES):
            rows.append(("coverage of the samples' range", stem, place, coverage[k, b], nominal))
            rows.append(("spread over error", stem, place, ratio[k, b], 1.0))
            crps = honesty.calibration.relative_crps()[k, b]
            rows.append(("ranked probability score over that of silence", stem, place, crps, None))
    rows.append(("spread over error", "all", "all", honesty.calibration.whole_ratio(), 1.0))
    rows.append(("residual of the mixture, dB", "all", "", honesty.residual_db, None))
    for stem, level in zip(honesty.stems, honesty.silent_db, strict=True):
        rows.append(("level where the stem is silent, dB", stem, "", level, None))
    rows.append(("level of the mixtures there, dB", "all", "", honesty.mix_db, None))
    return rows


def csv_text(honesty: Honesty) -> str:
    """All figures, and the rank histograms."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["quantity", "stem", "band", "value", "exact"])
    for quantity, stem, band, value, ideal in rows_of(honesty):
        cell = f"{value:.4f}" if np.isfinite(value) else ""
        writer.writerow([quantity, stem, band, cell, "" if ideal is None else f"{ideal:.4f}"])
    for k, stem in enumerate(honesty.stems):
        for b, place in enumerate(_BAND_NAMES):
            counts = honesty.calibration.ranks[k, b]
            shares, exact = counts / max(1, counts.sum()), f"{1 / len(counts):.4f}"
            for rank, value in enumerate(shares):
                writer.writerow([f"share of rank {rank}", stem, place, f"{value:.4f}", exact])
    return text.getvalue()


def markdown(honesty: Honesty, head: str) -> str:
    """Three tables: scores and gains by stem, coverage and spread by stem and band."""
    stems = [*honesty.stems, "mean"]
    lines = [head, "", f"{honesty.clips} clips, {honesty.samples} samples of each.", ""]
    lines += [_line(["", *stems, "exact samples"]), _line(["---"] + ["---:"] * (len(stems) + 1))]
    for name, values in honesty.scores.items():
        lines.append(_line([f"SI-SDRi, {name}", *_numbers(values), "-"]))
    for n, values in honesty.gains.items():
        gain = f"{theoretical_gain(n):.2f}"
        lines.append(
            _line([f"gain of the mean of {n}, squared error, dB", *_numbers(values), gain])
        )
    lines.append(_line(["level where silent, dB re full scale", *_numbers(honesty.silent_db), "-"]))
    for title, table, exact in (
        ("Share of coordinates in the samples' range", honesty.calibration.coverage(),
         honesty.calibration.nominal_coverage()),
        ("Spread of the samples over the error of their mean",
         honesty.calibration.spread_ratio(), 1.0),
        ("Ranked probability score over that of silence: less is better",
         honesty.calibration.relative_crps(), None),
    ):  # fmt: skip
        note = "" if exact is None else f" (exact samples: {exact:.2f})"
        lines += ["", f"**{title}**{note}", "", _line(["", *_BAND_NAMES])]
        lines.append(_line(["---"] + ["---:"] * len(BANDS)))
        for stem, row in zip(honesty.stems, table, strict=True):
            lines.append(_line([stem, *(f"{value:.2f}" for value in row)]))
    residual = f"{honesty.residual_db:.1f} dB" if np.isfinite(honesty.residual_db) else "nothing"
    lines += [
        "",
        f"Over all stems and bands, the spread is {honesty.calibration.whole_ratio():.2f} of the "
        "error, and the truth is in the samples' range in "
        f"{100 * honesty.calibration.whole_coverage():.0f} % of the coordinates (exact samples: "
        f"{100 * honesty.calibration.nominal_coverage():.0f} %).",
        "",
        f"A single sample leaves {residual} of the mixture before it is made to add up.",
    ]
    if np.isfinite(honesty.mix_db):
        lines[-1] += f" The mixtures of the clips with silent stems are at {honesty.mix_db:.1f} dB."
    return "\n".join(lines) + "\n"


def draw(honesty: Honesty, out: Path, title: str) -> None:
    """Rank histograms by stem and band, with the uniform law, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    ranks = honesty.calibration.ranks
    figure, axes = plt.subplots(
        len(ranks), len(BANDS), figsize=(10, 8), layout="constrained", sharex=True, sharey=True,
        squeeze=False,
    )  # fmt: skip
    for k, stem in enumerate(honesty.stems):
        for b, place in enumerate(_BAND_NAMES):
            counts = ranks[k, b]
            axes[k, b].bar(range(len(counts)), counts / max(1, counts.sum()), width=0.9)
            axes[k, b].axhline(1 / len(counts), color="black", linestyle=":")
            if k == 0:
                axes[k, b].set_title(place)
        axes[k, 0].set_ylabel(stem)
    figure.suptitle(f"Rank of the truth among {honesty.samples} samples: {title}")
    figure.savefig(out, dpi=120)
    plt.close(figure)


def _numbers(values: metrics.Floats) -> list[str]:
    shown = [*values, metrics.nanmean(values)]
    return [f"{value:.2f}" if np.isfinite(value) else "-" for value in shown]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


@click.command(help=__doc__)
@shared
@click.option("--method", default="mgdm", show_default=True)
@click.option("--preset", default="default", show_default=True)
@click.option("--set", "settings", multiple=True, help="Sampler setting, name=JSON.")
@click.option("--samples", "count", type=click.IntRange(2), default=8, show_default=True)
@click.option("--list", "which", type=click.Choice(list(LISTS)), default="tune", show_default=True)
@click.option("--split", type=click.Choice(["valid", "test"]), default="valid", show_default=True)
@click.option(
    "--silence/--no-silence",
    default=True,
    show_default=True,
    help="Whether the clips of the list sparse are drawn too.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Results file without suffix.")
def main(
    corpus: Path,
    method: str,
    preset: str,
    settings: tuple[str, ...],
    count: int,
    which: str,
    split: str,
    silence: bool,
    out: Path | None,
    minutes: float | None,
    share: Share,
    **options: Any,
) -> None:
    bench = make_bench(**options)
    entry = Entry(method, preset, dict(map(parse_setting, settings)))
    listed, sparse = (clips(corpus / split, LISTS[name]) for name in (which, "sparse"))
    jobs = [(entry, clip, 0) for clip in sparse if silence]
    jobs += [(entry, clip, number) for number in range(count) for clip in listed]
    bench.fill(jobs, minutes, share)
    try:
        honesty = examine(bench, entry, listed, count)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if silence:
        honesty.silent_db, honesty.mix_db = where_silent(bench, entry, sparse)
    title = f"{method} ({entry.text()})"
    head = f"# Posterior samples of {title}\n\nModel {bench.prior.sha256[:8]}, {split} {which}."
    text = markdown(honesty, head)
    click.echo(text)
    target = RESULTS / f"honesty-{method}" if out is None else out
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target.with_name(target.name + ".csv"), csv_text(honesty).encode())
    write_whole(target.with_name(target.name + ".md"), text.encode())
    draw(honesty, target.with_name(target.name + ".png"), title)


if __name__ == "__main__":
    main()
