"""Turns a training checkpoint into a model folder: safetensors, config, checksum."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from mgdm_audio import STEMS
from mgdm_audio.hub import ModelInfo, save_model
from recipes.prior.data import FULL_SCALE, StemCorpus
from recipes.prior.train import SIGMA_MAX, SIGMA_MIN, resume


def mixture_level(corpus: StemCorpus) -> float:
    """Root mean square of the mixtures of a corpus, over all songs."""
    power = [
        np.mean(np.square(corpus.stems(n).sum(0, dtype=np.float32) / FULL_SCALE))
        for n in range(0, len(corpus.songs), max(1, len(corpus.songs) // 100))
    ]
    return float(np.sqrt(np.mean(power)))


def export(checkpoint: Path, corpus: StemCorpus, folder: Path, summary: str) -> ModelInfo:
    """Writes the averaged weights of a checkpoint as a model called like its folder."""
    run = resume(checkpoint, corpus)
    config = {
        "name": folder.name,
        "summary": summary,
        "network": run.network,
        "sample_rate": 22050,
        "stems": list(STEMS),
        "level": round(mixture_level(corpus), 4),
        "sigma_min": SIGMA_MIN,
        "sigma_max": SIGMA_MAX,
        "licence": "CC-BY-SA-4.0",
        "score": {},
        "training": {
            "steps": run.step,
            "hours_seen": round(run.seconds / 3600, 1),
            "songs": len(corpus.songs),
            "hours_of_corpus": round(corpus.hours, 1),
        },
    }
    return save_model(folder, run.average, config)


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--corpus", type=click.Path(path_type=Path), required=True, help="Corpus folder.")
@click.option("--summary", default="Joint prior of bass, drums, guitar and piano at 22.05 kHz")
def main(checkpoint: Path, folder: Path, corpus: Path, summary: str) -> None:
    torch.set_num_threads(1)
    info = export(checkpoint, StemCorpus(corpus / "train"), folder, summary)
    click.echo(f"{folder}: {info.parameters} parameters, sha256 {info.sha256}")


if __name__ == "__main__":
    main()
