"""Eight samplers on ten operators, mixes and single stems: one command, one table.

    python -m recipes.restoration.restore --data corpus/valid --out restoration.jsonl

Each line of the output file is one clip, target, operator and method; what is there is not done
again, so that the command can be stopped and given again. Clips of another length or of another
rendering are other clips. The table goes to standard output.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mgdm_audio import STEMS, hub, samplers
from mgdm_audio.denoise import CountingDenoiser
from mgdm_audio.draws import SeededDraws
from mgdm_audio.metrics import si_sdr
from mgdm_audio.posterior import active_level
from mgdm_audio.precision import choose_precision
from mgdm_audio.samplers.base import Problem, Sampler
from recipes.restoration.tasks import LINEAR, NOISE, TASKS, Task, make

METHODS = ("mgdm", "dps", "pgdm", "ddnm", "diffpir", "reddiff", "daps", "pnpdm")
"""In the order of the paper's table."""

BASELINE = "observed"
"""What the observation alone gives: the pseudo-inverse or the operator's first guess."""


SECONDS = 6.0
"""Length of clips; that of all lines in result files that do not say by a checksum of which samples
they are."""

MGDM_STEPS = {"fast": 14, "default": 24, "best": 48}
"""Grid points of MGDM by preset."""


def sampler_for(method: str, task: str, preset: str) -> Sampler | None:
    """The sampler with settings that suit an operator; None if it cannot take it."""
    if method == "mgdm":
        # Its presets are for mixes, whose residual is shared out in the end: they stop to guide at
        # sigma 0.012, with 14 dB between what was seen and the residual. Here it goes down to
        # 0.001, with most of its gradients there.
        steps = MGDM_STEPS[preset]
        return samplers.get(
            method, "default", steps=steps, sigma_max=1.0, rho=5.0,
            gradient_steps=((0, 1), (3 * (steps - 3) // 7, 5)),
        )  # fmt: skip
    if task in LINEAR and method != "daps":
        return samplers.get(method, preset)
    # The overdrive's slope at 0 is ten times its level: its steps must be a hundredth.
    rate = 0.1 / (100 if task == "overdrive" else 1)
    if method == "daps":
        # Its exact local law spreads by the noise level what is not observed; on a prior that is
        # far narrower than that, this takes a run of few levels off course.
        few = {"fast": 30, "default": 60, "best": 300}[preset]
        return samplers.get(method, "gradient", levels=few, langevin_rate=rate, tau=NOISE)
    if method == "pnpdm":
        return samplers.get(
            method, preset, likelihood="langevin", langevin_scaled=True, langevin_rate=rate
        )
    sampler = samplers.get(method, preset)
    return None if sampler.needs_linear else sampler


def log_spectral_distance(estimate: NDArray[Any], truth: NDArray[Any], n_fft: int = 2048) -> float:
    """Root mean square difference of log power spectra in dB, the mean over frames.

    Bins more than 80 dB below the truth's loudest count as that level, in both.
    """

    def spectrum(x: NDArray[Any]) -> Tensor:
        window = torch.hann_window(n_fft, dtype=torch.float64)
        z = torch.stft(torch.from_numpy(x).double(), n_fft, n_fft // 4, window=window,
                       pad_mode="constant", return_complex=True)  # fmt: skip
        return z.abs().square()

    true, guess = spectrum(truth), spectrum(estimate)
    floor = true.max() * 1e-8 + 1e-30
    difference = 10 * (true.clamp_min(floor).log10() - guess.clamp_min(floor).log10())
    return float(difference.square().mean(0).sqrt().mean())


def restore(
    prior: hub.Prior,
    task: Task,
    sampler: Sampler | None,
    shape: tuple[int, int],
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, int, int]:
    """The restored signal (T,), calls and gradients; without a sampler, the baseline."""
    if sampler is None:
        return task.target.forward(task.operator.first_guess(task.y))[0, 0], 0, 0
    denoise = CountingDenoiser(prior.denoise)
    draws = SeededDraws([seed], "cpu", task.y.dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        x = sampler.sample(denoise, Problem(task.operator, task.y, NOISE, (1, *shape)), draws)
    return task.target.forward(x.float())[0, 0], denoise.calls, denoise.vjps


def run(
    prior: hub.Prior,
    clips: Iterable[tuple[str, str, NDArray[np.float32]]],
    output: Path,
    methods: Iterable[str],
    tasks: Iterable[str],
    preset: str,
    report: Callable[[str], None],
    dtype: torch.dtype = torch.float32,
    minutes: float | None = None,
) -> list[dict[str, Any]]:
    """Does what is not in the output file yet; returns all of it that is of these clips.

    Arguments:
        prior: the prior.
        clips: names, checksums and stems (K, T) at the prior's rate.
        output: file of results, one JSON object a line.
        methods: of `METHODS`; the baseline is always there.
        tasks: of `TASKS`.
        preset: of the samplers.
        report: told one line for each result.
        dtype: of the network's layers.
        minutes: nothing is begun after so many.
    """
    start = time.monotonic()
    clips = list(clips)
    rows = _earlier(output, clips, round(SECONDS * prior.sample_rate))
    precision = str(dtype).removeprefix("torch.")
    key = ("model", "preset", "precision", "clip", "target", "task", "method")
    done = {tuple(row[k] for k in key) for row in rows}
    methods, tasks = list(methods), list(tasks)
    with output.open("a") as file:
        for name, digest, song in clips:
            length = song.shape[1] // 16 * 16
            stems = torch.from_numpy(song[:, :length])
            level = active_level(stems.sum(0), prior.sample_rate)
            stems = stems * (prior.level / max(level, 1e-9))
            loudest = int(stems.square().sum(1).argmax())
            for target in (None, loudest):
                for task_name in tasks:
                    task = make(task_name, stems, target, prior.sample_rate, seed=0)
                    for method in (BASELINE, *methods):
                        what = "mix" if target is None else prior.stems[target]
                        wanted = (prior.sha256, preset, precision, name, what, task_name, method)
                        if wanted in done:
                            continue
                        sampler = None
                        if method != BASELINE:
                            sampler = sampler_for(method, task_name, preset)
                            if sampler is None:
                                continue
                        if minutes is not None and time.monotonic() - start > 60 * minutes:
                            report("out of time; the same command goes on")
                            return rows
                        row = dict(zip(key, wanted, strict=True)) | {"digest": digest}
                        row |= _scored(prior, task, sampler, tuple(stems.shape), dtype)
                        rows.append(row)
                        file.write(json.dumps(row) + "\n")
                        file.flush()
                        scores = f"LSD {row['lsd']:.2f} dB, SI-SDR {row['si_sdr']:.2f} dB"
                        report(f"{name} {what} {task_name} {method}: {scores}")
    return rows


def _earlier(
    output: Path, clips: Iterable[tuple[str, str, NDArray[np.float32]]], usual: int
) -> list[dict[str, Any]]:
    """Results in a file that are of these clips; those without a checksum are of clips of the usual
    length."""
    known: set[tuple[str, str | None]] = {(name, digest) for name, digest, _ in clips}
    known.update((name, None) for name, _, song in clips if song.shape[1] == usual)
    rows = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    return [row for row in rows if (row["clip"], row.get("digest")) in known]


def _scored(
    prior: hub.Prior, task: Task, sampler: Sampler | None, shape: Any, dtype: torch.dtype
) -> dict[str, Any]:
    start = time.monotonic()
    try:
        x, calls, vjps = restore(prior, task, sampler, shape, 0, dtype)
    except (FloatingPointError, ArithmeticError) as error:
        return {"lsd": math.nan, "si_sdr": math.nan, "calls": 0, "vjps": 0, "seconds": 0.0,
                "error": str(error)}  # fmt: skip
    estimate, truth = x.double().numpy(), task.truth.double().numpy()
    return {
        "lsd": log_spectral_distance(estimate, truth),
        "si_sdr": float(si_sdr(estimate, truth)),
        "calls": calls,
        "vjps": vjps,
        "seconds": time.monotonic() - start,
    }


def table(rows: list[dict[str, Any]], what: str) -> str:
    """Mean LSD / SI-SDR by operator and method, as Markdown; the best of each in bold.

    Arguments:
        rows: results.
        what: ``mix``, or ``stem`` for all others.
    """
    rows = [row for row in rows if (row["target"] == "mix") == (what == "mix")]
    names = [m for m in (BASELINE, *METHODS) if any(row["method"] == m for row in rows)]
    clips = len({(row["clip"], row["target"]) for row in rows})
    lines = [
        f"{what}: log-spectral distance / SI-SDR in dB, {clips} clips",
        "",
        "| operator | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for task in TASKS:
        cells: dict[str, tuple[float, float]] = {}
        for method in names:
            found = [r for r in rows if r["task"] == task and r["method"] == method]
            if found:
                cells[method] = tuple(np.mean([[r["lsd"], r["si_sdr"]] for r in found], 0))
        if not cells:
            continue
        finite = [v for v in cells.values() if all(map(math.isfinite, v))]
        low = min((v[0] for v in finite), default=math.nan)
        high = max((v[1] for v in finite), default=math.nan)
        line = [task]
        for method in names:
            if method not in cells:
                line.append("")
                continue
            lsd, sdr = cells[method]
            first = f"**{lsd:.1f}**" if lsd == low else f"{lsd:.1f}"
            line.append(f"{first} / " + (f"**{sdr:.1f}**" if sdr == high else f"{sdr:.1f}"))
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines)


@click.command()
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True,
              help="Folder of a split of the corpus.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path("restoration.jsonl"),
              show_default=True, help="Results; what is in it is not done again.")  # fmt: skip
@click.option("--model", default="default", show_default=True, help="Name or folder of the prior.")
@click.option("--clips", "count", type=click.IntRange(1), default=12, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.1), default=SECONDS, show_default=True)
@click.option("--preset", type=click.Choice(["fast", "default", "best"]), default="default",
              show_default=True)  # fmt: skip
@click.option("--methods", default=",".join(METHODS), show_default=True)
@click.option("--tasks", default=",".join(TASKS), show_default=True)
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default="float32",
              show_default=True)  # fmt: skip
@click.option("--minutes", type=float, help="Begin nothing after so many minutes.")
@click.option("--active", is_flag=True, help="Only clips in which all stems play.")
def main(
    data: Path, out: Path, model: str, count: int, seconds: float, preset: str, methods: str,
    tasks: str, precision: str, minutes: float | None, active: bool,
) -> None:  # fmt: skip
    """Restore clips of a split by every method and operator, and print the table."""
    from recipes.compare.clips import ClipList, clips

    for asked, known in ((methods, METHODS), (tasks, TASKS)):
        for name in asked.split(","):
            if name not in known:
                raise click.UsageError(f"unknown '{name}', expected some of {', '.join(known)}")
    torch.set_num_threads(1)
    prior = hub.load(model)
    if not isinstance(prior, hub.Prior) or prior.stems != STEMS:
        raise click.UsageError(f"'{model}' is no prior of {', '.join(STEMS)}")
    chosen = clips(data, ClipList(count, int(seconds * prior.sample_rate), active=active))
    dtype = choose_precision(torch.device("cpu"), precision)
    rows = run(
        prior, [(c.name, c.digest, c.stems) for c in chosen], out, methods.split(","),
        tasks.split(","), preset, lambda line: click.echo(line, err=True), dtype, minutes,
    )  # fmt: skip
    rows = [r for r in rows if r["preset"] == preset and r["precision"] == precision]
    rows = [r for r in rows if r["model"] == prior.sha256]
    shown = f"{len(chosen)} clips of {seconds:g} s of {data.name}, preset `{preset}`, {precision}"
    click.echo(f"{shown}, prior {prior.sha256[:8]}\n")
    for what in ("mix", "stem"):
        click.echo(table(rows, what) + "\n")


if __name__ == "__main__":
    sys.exit(main())
