"""Separates crops of held-out songs with a prior and writes SI-SDRi tables.

One crop a song: of twelve evenly spaced places the one where the quietest stem is loudest, so
that as many stems as possible play. The crop fills one window of the sampler.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from mgdm_audio import hub, samplers
from mgdm_audio.consistency import make_consistent
from mgdm_audio.denoise import CountingDenoiser
from mgdm_audio.draws import SeededDraws
from mgdm_audio.evaluate import Evaluation, evaluate_track
from mgdm_audio.operators import Mixture
from mgdm_audio.samplers.base import Problem, Sampler
from recipes.prior.data import FULL_SCALE, StemCorpus


def crops(folder: Path, songs: int, seconds: float, rate: int = 22050) -> dict[str, np.ndarray]:
    """The crop of each of the first songs of a split, float32 (4, samples), by song name."""
    corpus = StemCorpus(folder)
    corpus.songs.sort(key=lambda song: song["song"])
    samples = round(seconds * rate)
    result = {}
    for number in range(min(songs, len(corpus.songs))):
        stems = corpus.stems(number)
        starts = np.linspace(0, stems.shape[1] - samples, 12).astype(int)
        levels = [
            np.sqrt(np.mean(np.square(stems[:, s : s + samples] / FULL_SCALE), axis=1)).min()
            for s in starts
        ]
        start = int(starts[int(np.argmax(levels))])
        crop = stems[:, start : start + samples].astype(np.float32) / np.float32(FULL_SCALE)
        result[f"{folder.name}-{corpus.songs[number]['song']:03d}"] = crop
    return result


def separate(
    prior: hub.Prior,
    sampler: Sampler,
    mixes: np.ndarray,
    seeds: list[int],
    precision: torch.dtype,
    average: int = 1,
) -> tuple[np.ndarray, dict[str, float]]:
    """Stems (B, 4, T) of mixes (B, T), brought to the prior's level and back, and what it cost.

    ``average`` samples of each mix are averaged; they have the seeds s, s + 1000, ...
    """
    gain = prior.level / np.maximum(np.sqrt(np.mean(np.square(mixes), axis=1)), 1e-9)
    y = torch.from_numpy((mixes * gain[:, None]).astype(np.float32))[:, None]
    denoise = CountingDenoiser(prior.denoise)
    problem = Problem(Mixture(), y, 0.0, (len(y), 4, y.shape[-1]))
    start = time.monotonic()
    stems = torch.zeros(problem.shape)
    for n in range(average):
        draws = SeededDraws([seed + 1000 * n for seed in seeds])
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            stems += sampler.sample(denoise, problem, draws) / average
    seconds = time.monotonic() - start
    residual = float((y[:, 0] - stems.sum(1)).square().mean().sqrt() / y.square().mean().sqrt())
    stems = torch.stack([make_consistent(s, m[0]) for s, m in zip(stems, y, strict=True)])
    cost = {
        "calls": denoise.calls / len(y),
        "vjps": denoise.vjps / len(y),
        "seconds": seconds,
        "residual_db": 20 * np.log10(residual),
    }
    return (stems.numpy() / gain[:, None, None]).astype(np.float32), cost


def score(
    prior: hub.Prior,
    sampler: Sampler,
    songs: dict[str, np.ndarray],
    batch: int,
    seed: int,
    precision: torch.dtype,
    average: int = 1,
) -> tuple[Evaluation, dict[str, float]]:
    """Scores of a sampler on crops, and its mean cost a crop."""
    names = list(songs)
    tracks, costs = [], []
    for first in range(0, len(names), batch):
        part = names[first : first + batch]
        reference = np.stack([songs[name] for name in part])
        seeds = [seed + first + i for i in range(len(part))]
        estimate, cost = separate(
            prior, sampler, reference.sum(1), seeds, precision, average
        )
        cost["seconds"] /= len(part)
        costs.append(cost)
        tracks += [
            evaluate_track(r, e, prior.sample_rate, name=name)
            for name, r, e in zip(part, reference, estimate, strict=True)
        ]
        click.echo(f"{min(first + batch, len(names))}/{len(names)} songs", err=True)
    return Evaluation(tuple(tracks)), {k: float(np.mean([c[k] for c in costs])) for k in costs[0]}


def setting(text: str) -> tuple[str, Any]:
    """``name=value`` with a JSON value; lists become tuples. Plain words are text."""
    name, _, value = text.partition("=")
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError:
        parsed = value
    return name, _tuples(parsed)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@click.command(help=__doc__)
@click.option("--corpus", type=click.Path(path_type=Path), required=True, help="Corpus folder.")
@click.option("--split", type=click.Choice(["valid", "test"]), default="valid", show_default=True)
@click.option("--model", default="default", show_default=True)
@click.option("--method", default="mgdm", show_default=True)
@click.option("--preset", default="default", show_default=True)
@click.option("--set", "settings", multiple=True, help="Sampler setting, name=JSON.")
@click.option("--songs", default=24, show_default=True)
@click.option("--seconds", default=12.0, show_default=True)
@click.option("--batch", default=4, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default="float32")
@click.option("--average", default=1, show_default=True, help="Samples to average.")
@click.option("--out", type=click.Path(path_type=Path), help="Results file without suffix.")
def main(
    corpus: Path,
    split: str,
    model: str,
    method: str,
    preset: str,
    settings: tuple[str, ...],
    songs: int,
    seconds: float,
    batch: int,
    seed: int,
    threads: int,
    precision: str,
    average: int,
    out: Path | None,
) -> None:
    torch.set_num_threads(threads)
    sampler = samplers.get(method, preset, **dict(map(setting, settings)))
    prior = hub.load(model)
    evaluation, cost = score(
        prior, sampler, crops(corpus / split, songs, seconds), batch, seed,
        getattr(torch, precision), average,
    )
    changed = "".join(f" {setting}" for setting in settings)
    mean = f", mean of {average} samples" if average > 1 else ""
    text = (
        f"{method} ({preset}{changed}){mean}, prior {prior.sha256[:8]}, {split} split, "
        f"{date.today()}, {precision}, seed {seed}: {cost['calls']:.0f} network calls, "
        f"{cost['vjps']:.0f} of them with a gradient, {cost['seconds']:.1f} s a crop, "
        f"residual before the consistency step {cost['residual_db']:.1f} dB\n\n"
        f"{evaluation.to_markdown()}"
    )
    click.echo(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix(".md").write_text(text)
        evaluation.to_csv(out.with_suffix(".csv"))


if __name__ == "__main__":
    main()
