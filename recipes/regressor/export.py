"""Turns a training checkpoint into a model folder: safetensors, config, checksum, card."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from mgdm_audio import STEMS
from mgdm_audio.hub import ModelInfo, save_model
from mgdm_audio.nn import SpectralRegressor
from recipes.prior.data import FULL_SCALE, StemCorpus, validation_crops
from recipes.regressor.train import RegressorTask, load_model, network_of, resume, widened

CARD = """# {name}

{summary}, 22050 Hz mono: a regressor, not a prior. It takes the mix, and any of the stems that are
known, and estimates the others in one call (an orderless NADE; `--method regressor`, `--method
gibbs`, or the first half of `--warm-start regressor`). STFT of 2048 samples inside, Wiener scalings
per stem and bin (`mgdm_audio/nn/regressor.py`), the backbone {backbone} of {parameters:.1f} M
parameters. Its estimates add up to the mix. Weights in float16.

- **Licence of the weights:** {licence} (some of the sounds of the corpus are share-alike).
- **Training data:** {songs} songs, {hours} hours, rendered by `recipes/corpus`, remixed and
  varied as for the prior; all sources and patches are in `recipes/corpus/sources.tsv`.
- **Training:** {today}, `recipes/regressor/train.py`, {steps} steps, {hours_seen} hours of audio
  seen, {minutes:.0f} minutes by the clock. It started from {initial}.{mean}
- **Loss:** negative SNR of the waveform and, a quarter of the weight, of mel bands.
- **Level:** mixtures have an RMS of {level}; the separator brings its input there.

SI-SDR improvement in dB of the averaged weights on crops of 6 s of the validation songs, whose
sounds training never saw, stems that sound; with no stem given, and with two others given:

| step | bass | drums | guitar | piano | two given: bass | drums | guitar | piano |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
{table}
## Limits

It gives the mean of what it thinks possible: where guitar and piano of sounds it has not heard are
confused, both are blurred. Synthetic music only: pattern accompaniment from soundfonts. {others}
"""

ALONE = """Voices,
strings and other sounds have no stem of their own."""
BESIDE = """Of the
steps {share:.0%} had mixes that may hold parts of other instruments (`recipes/corpus/others.py`),
which are estimated as what the stems leave of the mix (`--other`)."""


def mixture_level(corpus: StemCorpus) -> float:
    """Root mean square of the mixtures of a corpus, over a hundred of its songs."""
    every = max(1, len(corpus.songs) // 100)
    power = [
        np.mean(np.square(corpus.stems(n).sum(0, dtype=np.float32) / FULL_SCALE))
        for n in range(0, len(corpus.songs), every)
    ]
    return float(np.sqrt(np.mean(power)))


def weights_of(
    what: str, corpus: StemCorpus, wanted: torch.nn.Module
) -> tuple[str, dict[str, torch.Tensor]]:
    """What a checkpoint or a model is called in a card, and its weights, as wide as is wanted."""
    if Path(what).is_file():
        run = resume(Path(what), corpus)
        name, weights = f"of a run with seed {run.settings.seed}, step {run.step}", run.average
        return name, weights.state_dict()
    model = load_model(what)
    state = widened(network_of(model).state_dict(), wanted.state_dict())
    return f"of {model.name} ({model.sha256[:8]})", state


def validations(log: Path) -> list[dict[str, Any]]:
    """The lines of a training's log that hold scores; none where there is no log."""
    lines = log.read_text().splitlines() if log.is_file() else []
    return [line for line in map(json.loads, lines) if "score" in line]


def export(
    checkpoint: Path,
    corpus: StemCorpus,
    folder: Path,
    summary: str,
    crops: np.ndarray | None = None,
    precision: torch.dtype = torch.float32,
    mean: Sequence[tuple[str, float]] = (),
    confidence: float = 1.0,
) -> ModelInfo:
    """Writes the averaged weights of a checkpoint as a model called like its folder.

    Arguments:
        checkpoint: of `train.py`, with its log beside it.
        corpus: the songs that it was trained on.
        folder: of the model; its card is written too.
        summary: one line about the model.
        crops: validation crops to score the weights on, (N, 4, T), or None for the last of the
            log's scores.
        precision: of the network while it is scored.
        mean: what else is in the mean of weights that is written, with its share; the rest is the
            checkpoint's. Each is a checkpoint of a run from the same weights (with other songs or
            another seed), or the name or folder of the model that they started from: such a mean
            knows more than each (Wortsman et al., 2022, arXiv:2109.01903, arXiv:2203.05482).
        confidence: the share of the answers that is believed, see `confidence.py`.

    Raises:
        ModelError: if one of `mean` is no file and there is no such model.
        ValueError: if the shares add up to more than 1.
    """
    run = resume(checkpoint, corpus)
    assert isinstance(run.task, RegressorTask)
    assert isinstance(run.average, SpectralRegressor)
    own = 1 - sum(share for _, share in mean)
    if own < -1e-9:
        raise ValueError(
            f"the shares of {[what for what, _ in mean]} add up to {1 - own:g}, over 1"
        )
    told = ""
    if mean:
        parts = [weights_of(what, corpus, run.average) for what, _ in mean]
        # The scalings are buffers, which all have from the same start.
        for key, weight in run.average.named_parameters():
            weight.mul_(own)
            for (_, theirs), (_, share) in zip(parts, mean, strict=True):
                weight.add_(theirs[key].to(weight), alpha=share)
        names = [f"{share:.0%} {name}" for (name, _), (_, share) in zip(parts, mean, strict=True)]
        told = f" The weights are a mean: {', '.join(names)}, and {own:.0%} those at the end."
    network = dict(run.network)
    if confidence != 1:
        told += f" A confidence of {confidence:g} is set on validation songs."
        stft = {**network["args"]["stft"], "confidence": confidence}
        network["args"] = {**network["args"], "stft": stft}
        run.average.confidence = confidence
    # The log is of the run's own weights, believed whole.
    changed = bool(mean) or confidence != 1
    scores = [] if changed else validations(checkpoint.with_name("log.jsonl"))
    if crops is not None:
        run.task.crops = crops
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            scores.append({"step": run.step, "score": run.task.score(run.average)})
    last = [scores[-1]["score"][stem] for stem in STEMS] if scores else []
    config = {
        "kind": "regressor",
        "name": folder.name,
        "summary": summary,
        "network": network,
        "sample_rate": 22050,
        "stems": list(STEMS),
        "level": round(mixture_level(corpus), 4),
        "licence": "CC-BY-SA-4.0",
        "score": {"SI-SDRi of sounding stems, validation songs": f"{np.nanmean(last):.2f} dB"}
        if last
        else {},
        "training": {
            "steps": run.step,
            "minutes": round(run.minutes, 1),
            "hours_seen": round(run.seconds / 3600, 1),
            "songs": len(corpus.songs),
            "hours_of_corpus": round(corpus.hours, 1),
            "initial": run.task.settings.initial,
        },
    }
    info = save_model(folder, run.average, config)
    columns = [*STEMS, *(f"{stem}, two given" for stem in STEMS)]
    rows = []
    for line in scores:
        values = " | ".join(f"{line['score'][column]:.2f}" for column in columns)
        rows.append(f"| {line['step']} | {values} |\n")
    card = CARD.format(
        name=info.name,
        summary=info.summary,
        backbone=run.network["class"].removesuffix("Regressor"),
        parameters=info.parameters / 1e6,
        licence=info.licence,
        songs=len(corpus.songs),
        hours=round(corpus.hours, 1),
        today=date.today(),
        steps=run.step,
        hours_seen=round(run.seconds / 3600, 1),
        minutes=run.minutes,
        initial=f"the weights of {initial.replace(' ', ', SHA-256 ')}"
        if (initial := run.task.settings.initial)
        else "nothing",
        level=info.level,
        mean=told,
        table="".join(rows),
        others=BESIDE.format(share=beside) if (beside := run.task.settings.beside) else ALONE,
    )
    (folder / "README.md").write_text(card)
    return info


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--corpus", type=click.Path(path_type=Path), required=True, help="Corpus folder.")
@click.option("--valid", type=click.Path(path_type=Path), help="Validation songs, to score on.")
@click.option("--summary", default="Regressor of bass, drums, guitar and piano from their mix")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option(
    "--mean",
    type=(str, click.FloatRange(0, 1)),
    multiple=True,
    metavar="WEIGHTS SHARE",
    help="Another checkpoint of the run or of one like it, or the model they started from, and its "
    "share in the mean of weights that is exported.",
)
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="Share of the answers that is believed (confidence.py).",
)
def main(
    checkpoint: Path,
    folder: Path,
    corpus: Path,
    valid: Path | None,
    summary: str,
    precision: str,
    mean: tuple[tuple[str, float], ...],
    confidence: float,
) -> None:
    torch.set_num_threads(1)
    crops = None if valid is None else validation_crops(valid, 131_072)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    songs = StemCorpus(corpus / "train")
    info = export(checkpoint, songs, folder, summary, crops, dtype, mean, confidence)
    click.echo(f"{folder}: {info.parameters} parameters, sha256 {info.sha256}")


if __name__ == "__main__":
    main()
