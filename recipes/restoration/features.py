"""What known stems, a new region, a second mix and repairs are worth on held-out songs.

    python -m recipes.restoration.features --data corpus/test --out features.jsonl --minutes 20

Everything goes through the functions that the commands call, with their defaults. Each line of the
output file is one clip and task; what is there is not done again, so that the command can be
stopped and given again. Clips of another length or another rendering are other clips. A table goes
to standard output.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import librosa
import numpy as np
import scipy.interpolate
import scipy.signal
import torch
from numpy.typing import NDArray

from mgdm_audio import STEMS, autoregression, hub, repair
from mgdm_audio.conditional import redo, separate_known, separate_pair
from mgdm_audio.filters import LowPass
from mgdm_audio.metrics import si_sdr
from mgdm_audio.posterior import DEFAULTS, separator_for
from mgdm_audio.separate import Separator
from recipes.restoration.restore import log_spectral_distance

Wave = NDArray[Any]
Makes = Callable[[str], Separator]
"""A separator for what a command does: ``known``, ``redo``, ``also``, or a kind of repair."""

GIVEN = "drums"

CUTOFF = 4000.0
BITS = 6
GAP = 0.05
"""Seconds of a gap, of which there is one every second."""

SHARE = 0.3
"""Clipping level, of the peak."""

SCORES = {
    "": "SI-SDR improvement",
    "si_sdr": "SI-SDR",
    "snr": "SNR in the gaps",
    "lsd": "log-spectral distance (less is better)",
}

ORDER = 256
"""Of the linear prediction that gaps are classically filled with."""

LEAST_SQUARES = "autoregression, least squares (Janssen 1986)"
"""The classical estimate of the recording as one autoregression, within the bounds of a clip."""


def known(clip: Wave, rate: int, make: Makes) -> Iterator[tuple[str, dict[str, float]]]:
    """SI-SDR improvement over the mix of the stems that are not given."""
    song = dict(zip(STEMS, clip, strict=True))
    mix, given = clip.sum(0), {GIVEN: song[GIVEN]}
    others = [name for name in STEMS if name != GIVEN]
    yield "the mix alone", improvements(_alone(make, mix, rate), song, mix, others)
    rest = dict.fromkeys(others, mix - song[GIVEN])
    yield "the mix less the known stem", improvements(rest, song, mix, others)
    drawn = separate_known(make("known"), mix, given, rate, [0]).draws[0]
    yield "with the known stem", improvements(drawn, song, mix, others)


def again(clip: Wave, rate: int, make: Makes) -> Iterator[tuple[str, dict[str, float]]]:
    """SI-SDR improvement over the mix inside a region around which all stems are right."""
    song, mix = dict(zip(STEMS, clip, strict=True)), clip.sum(0)
    length = clip.shape[1] / rate
    inside = slice(round(length / 3 * rate), round(2 * length / 3 * rate))

    def score(stems: dict[str, Wave]) -> dict[str, float]:
        cut = {name: x[inside] for name, x in stems.items()}
        true = {name: x[inside] for name, x in song.items()}
        loud = [n for n in STEMS if np.square(true[n]).mean() > 1e-4 * np.square(mix).mean()]
        return improvements(cut, true, mix[inside], loud)

    yield "the mix alone", score(_alone(make, mix, rate))
    drawn = redo(make("redo"), song, length / 3, 2 * length / 3, rate, [0, 1]).draws
    yield "with the stems around it", score(drawn[0])
    apart = sum(float(np.square(drawn[0][n] - drawn[1][n])[inside].sum()) for n in STEMS)
    whole = sum(float(np.square(song[n])[inside].sum()) for n in STEMS)
    yield "distance of two draws, dB", {"all": 10 * np.log10(apart / whole + 1e-12)}


def also(clip: Wave, rate: int, make: Makes) -> Iterator[tuple[str, dict[str, float]]]:
    """SI-SDR improvement over the mix, given the mix without the drums beside it."""
    song, mix = dict(zip(STEMS, clip, strict=True)), clip.sum(0)
    others = [name for name in STEMS if name != GIVEN]
    gains = [[1.0] * 4, [float(name != GIVEN) for name in STEMS]]
    yield "the mix alone", improvements(_alone(make, mix, rate), song, mix, others)
    mixes = [mix, mix - song[GIVEN]]
    drawn = separate_pair(make("also"), mixes, gains, rate, [0]).draws[0]
    yield "with the instrumental", improvements(drawn, song, mix, others)


def panned(clip: Wave, rate: int, make: Makes) -> Iterator[tuple[str, dict[str, float]]]:
    """SI-SDR improvement over the mix, given one channel whose gains are known."""
    song, mix = dict(zip(STEMS, clip, strict=True)), clip.sum(0)
    gains = [[1.0] * 4, [1.0, 1.0, 1.6, 0.4]]
    yield "the mix alone", improvements(_alone(make, mix, rate), song, mix, list(STEMS))
    mixes = [mix, np.tensordot(np.array(gains[1], np.float32), clip, 1)]
    drawn = separate_pair(make("also"), mixes, gains, rate, [0]).draws[0]
    yield "with the left channel", improvements(drawn, song, mix, list(STEMS))


def repaired(
    kind: str, stem: str | None, clip: Wave, rate: int, make: Makes
) -> Iterator[tuple[str, dict[str, float]]]:
    """SI-SDR and log-spectral distance before and after, of the mix or a stem; of gaps, the SNR in
    them."""
    truth = clip.sum(0) if stem is None else clip[STEMS.index(stem)]
    damaged, options, where = damage(kind, truth, rate)

    def score(x: Wave) -> dict[str, float]:
        if kind == "gap":  # what is missing may be filled with too little: the scale counts
            error = float(np.square(x - truth)[where].sum())
            return {"snr": 10 * np.log10(float(np.square(truth[where]).sum()) / error)}
        return {"si_sdr": float(si_sdr(x, truth)), "lsd": log_spectral_distance(x, truth)}

    yield "damaged", score(damaged)
    for name, x in classical(kind, damaged, where, options, rate):
        yield name, score(x)
    if kind == "gap":
        options |= {"regressor": make("separate").models.regressor}
    out = repair.repair(make(kind), damaged, rate, kind, [0], stem=stem, **options)
    yield "repaired", score(out.samples[0])


def damage(kind: str, x: Wave, rate: int) -> tuple[Wave, dict[str, Any], NDArray[np.bool_]]:
    """The damaged signal, what the repair is told, and where the damage is scored."""
    everywhere = np.ones(len(x), np.bool_)
    if kind == "clip":
        level = float(np.float32(SHARE * np.abs(x).max()))
        return np.clip(x, -level, level), {"level": level}, everywhere
    if kind == "lowpass":
        low = LowPass(len(x), CUTOFF / rate).forward(torch.from_numpy(x)[None, None])[0, 0]
        return low.numpy(), {"cutoff": CUTOFF}, everywhere
    if kind == "bits":
        step = 2.0 ** (1 - BITS)
        return (np.round(x / step) * step).astype(np.float32), {"bits": BITS}, everywhere
    starts = np.arange(0.5, len(x) / rate - 0.5)
    gaps = [(float(s), float(s + GAP)) for s in starts]
    t = np.arange(len(x))
    where = np.any([(t >= round(a * rate)) & (t < round(b * rate)) for a, b in gaps], axis=0)
    return np.where(where, 0, x).astype(np.float32), {"gaps": gaps}, where


def classical(
    kind: str, x: Wave, where: NDArray[np.bool_], options: dict[str, Any], rate: int
) -> Iterator[tuple[str, Wave]]:
    """What libraries without a prior make of it, and what the repair starts from."""
    if kind == "clip":
        clipped = np.abs(x) >= options["level"] * (1 - 1e-6)
        kept = np.flatnonzero(~clipped)
        spline = scipy.interpolate.CubicSpline(kept, x[kept])(np.arange(len(x)))
        yield "cubic spline (SciPy)", spline
        gentle = scipy.interpolate.PchipInterpolator(kept, x[kept])(np.arange(len(x)))
        yield "PCHIP (SciPy)", np.where(np.abs(gentle) > np.abs(x), gentle, x)
        yield LEAST_SQUARES, autoregression.declip(x, clipped, mean=False)
    if kind == "bits":
        with np.errstate(divide="ignore", invalid="ignore"):
            smooth = scipy.signal.wiener(x.astype(np.float64), 5)
        # Where five samples are alike it divides by nothing.
        yield "Wiener filter (SciPy)", np.where(np.isfinite(smooth), smooth, x)
    if kind == "gap":
        kept = np.flatnonzero(~where)
        yield (
            "cubic spline (SciPy)",
            scipy.interpolate.CubicSpline(kept, x[kept])(np.arange(len(x))),
        )
        filled = x.astype(np.float64).copy()
        edges = np.flatnonzero(np.diff(where.astype(int)))
        for a, b in zip(edges[::2] + 1, edges[1::2] + 1, strict=True):
            before, after = x[max(0, a - 8 * ORDER) : a], x[b : b + 8 * ORDER]
            ahead, back = _predicted(before, b - a), _predicted(after[::-1], b - a)[::-1]
            fade = np.linspace(0, 1, b - a)
            filled[a:b] = (1 - fade) * ahead + fade * back
        yield f"linear prediction, order {ORDER} (librosa)", filled
        yield LEAST_SQUARES, autoregression.interpolate(x[None], where, rate).signals[0]


def _predicted(past: Wave, count: int) -> Wave:
    """The next samples by linear prediction (Burg's method)."""
    a = librosa.lpc(past.astype(np.float64), order=ORDER)
    state = scipy.signal.lfiltic([1.0], a, past[: -ORDER - 1 : -1])
    return np.asarray(scipy.signal.lfilter([1.0], a, np.zeros(count), zi=state)[0])


def improvements(
    stems: dict[str, Wave], song: dict[str, Wave], mix: Wave, names: Sequence[str]
) -> dict[str, float]:
    """SI-SDR improvement over the mix, by stem."""
    return {n: float(si_sdr(stems[n], song[n]) - si_sdr(mix, song[n])) for n in names}


def _alone(make: Makes, mix: Wave, rate: int) -> dict[str, Wave]:
    return make("separate").separate(mix, rate, seed=0).stems


TASKS: dict[str, Callable[[Wave, int, Makes], Iterator[tuple[str, dict[str, float]]]]] = {
    "known": known,
    "redo": again,
    "also": also,
    "panned": panned,
}
for _kind in repair.METHODS:
    TASKS[f"{_kind} mix"] = partial(repaired, _kind, None)
    TASKS[f"{_kind} {GIVEN}"] = partial(repaired, _kind, GIVEN)


def run(
    clips: Sequence[tuple[str, str, Wave]],
    rate: int,
    make: Makes,
    output: Path,
    model: str,
    tasks: Sequence[str],
    report: Callable[[str], None],
    minutes: float | None = None,
) -> list[dict[str, Any]]:
    """Does what is not in the output file yet, and returns all of it that is of these clips and of
    this model.

    Arguments:
        clips: names, checksums and stems (K, T).
        rate: in hertz.
        make: see `Makes`.
        output: file of results, one JSON object a line.
        model: what identifies models and settings, precision included.
        tasks: of `TASKS`.
        report: told one line for each task of each clip.
        minutes: no task is begun after so many.
    """
    lines = output.read_text().splitlines() if output.exists() else []
    digests = {digest for _, digest, _ in clips}
    rows = [
        row
        for row in map(json.loads, lines)
        if row["model"] == model and row.get("digest") in digests
    ]
    done = {(row["digest"], row["task"]) for row in rows}
    start = time.monotonic()
    with output.open("a") as file:
        for name, digest, clip in clips:
            for task in tasks:
                if (digest, task) in done:
                    continue
                if minutes is not None and time.monotonic() - start > 60 * minutes:
                    report("out of time; the same command goes on")
                    return rows
                began = time.monotonic()
                scores = dict(TASKS[task](clip, rate, make))
                row: dict[str, Any] = {"model": model, "clip": name, "digest": digest}
                row |= {"task": task, "scores": scores}
                rows.append(row)
                file.write(json.dumps(row) + "\n")
                file.flush()
                report(f"{name} {task}: {time.monotonic() - began:.0f} s")
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means over clips and stems, and over the first way of the task, as Markdown.

    With the standard error of the difference over clips.
    """
    lines = [
        "| task | way | score | dB | more than the first way | clips |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for task in TASKS:
        found = [row["scores"] for row in rows if row["task"] == task]
        ways = list(dict.fromkeys(way for scores in found for way in scores))
        for way in ways:
            for kind, title in SCORES.items():
                pairs = [(_mean(s[way], kind), _mean(s[ways[0]], kind)) for s in found if way in s]
                values = np.array([pair for pair in pairs if np.isfinite(pair).all()])
                if not len(values):
                    continue
                cell = ""
                if way != ways[0] and "distance of" not in way:
                    gain = values[:, 0] - values[:, 1]
                    error = np.std(gain) / max(1, len(gain) - 1) ** 0.5
                    cell = f"{gain.mean():+.2f} ± {error:.2f}"
                title = "" if "distance of" in way else title
                mean = f"{values[:, 0].mean():.2f}"
                lines.append(f"| {task} | {way} | {title} | {mean} | {cell} | {len(values)} |")
    return "\n".join(lines)


def _mean(scores: dict[str, float], kind: str) -> float:
    """The score of a kind, or the mean of those by stem; nan where there is none."""
    if kind:
        return scores.get(kind, np.nan)
    return np.nan if scores.keys() & SCORES.keys() else float(np.mean(list(scores.values())))


@click.command(help=__doc__)
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True,
              help="Folder of a split of the corpus.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path("features.jsonl"),
              show_default=True, help="Results; what is in it is not done again.")  # fmt: skip
@click.option("--clips", "count", type=click.IntRange(1), default=8, show_default=True)
@click.option("--seconds", type=click.FloatRange(1.5), default=5.0, show_default=True)
@click.option("--tasks", default=",".join(TASKS), show_default=True)
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default="bfloat16",
              show_default=True)  # fmt: skip
@click.option("--minutes", type=float, help="Begin no task after so many minutes.")
def main(
    data: Path, out: Path, count: int, seconds: float, tasks: str, precision: str,
    minutes: float | None,
) -> None:  # fmt: skip
    from recipes.compare.clips import ClipList, clips

    unknown = [task for task in tasks.split(",") if task not in TASKS]
    if unknown:
        raise click.UsageError(f"unknown '{unknown[0]}', expected some of {', '.join(TASKS)}")
    torch.set_num_threads(1)
    rate = hub.load("default").sample_rate
    made: dict[str, Separator] = {}

    def make(task: str) -> Separator:
        if task not in made:
            options: dict[str, Any] = {"device": "cpu", "precision": precision}
            if task in DEFAULTS:
                made[task] = separator_for(task, **options)
            else:
                method, preset = repair.METHODS.get(task, (None, None))
                made[task] = Separator(None, method, preset, **options)
        return made[task]

    chosen = clips(data, ClipList(count, int(seconds * rate), active=True))
    models = [make("separate").prior.sha256[:8]]
    regressor = make("separate").models.regressor
    models += [] if regressor is None else [regressor.sha256[:8]]
    rows = run(
        [(c.name, c.digest, c.stems) for c in chosen], rate, make, out,
        "+".join([*models, precision]), tasks.split(","), lambda line: click.echo(line, err=True),
        minutes,
    )  # fmt: skip
    click.echo(table(rows))


if __name__ == "__main__":
    sys.exit(main())
