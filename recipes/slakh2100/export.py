"""Turns checkpoints of train.py into a model: one joint prior, or four single-stem ones.

The last argument is the model's folder; four checkpoints are given in the order bass, drums,
guitar, piano.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from mgdm_audio import STEMS
from mgdm_audio.hub import ModelInfo, save_model
from mgdm_audio.nn import StackedWaveformDenoiser, WaveformDenoiser
from recipes.prior.data import StemCorpus
from recipes.slakh2100.train import RATE, resume

SIGMA_MIN, SIGMA_MAX = 1e-4, 20.0


def mixture_level(tracks: StemCorpus) -> float:
    """Root mean square of the mixtures of a list's tracks, as prepare.py measured them."""
    power = sum(song["mixture_rms"] ** 2 * song["samples"] for song in tracks.songs)
    return float(np.sqrt(power / sum(song["samples"] for song in tracks.songs)))


def export(checkpoints: list[Path], folder: Path, tracks: StemCorpus) -> ModelInfo:
    """Writes the averaged weights of one or four runs as a model called like its folder.

    Raises:
        ValueError: if the runs do not make up the four stems in order.
    """
    level = mixture_level(tracks)
    runs = [resume(path, tracks) for path in checkpoints]
    stems = tuple(stem for run in runs for stem in run.task.stems)
    if stems != STEMS:
        raise ValueError(
            f"the checkpoints are of {', '.join(stems)}; expected one of all stems, or one of each "
            f"in the order {', '.join(STEMS)}"
        )
    network: dict[str, Any] = runs[0].network
    net: nn.Module = runs[0].average
    if len(runs) > 1:
        priors = [run.average for run in runs if isinstance(run.average, WaveformDenoiser)]
        net = StackedWaveformDenoiser(priors)
        network = {"class": "UNet1dStack", "args": {**network["args"], "stems": len(STEMS)}}
    return save_model(
        folder,
        net,
        {
            "name": folder.name,
            "summary": f"{'Joint' if len(runs) == 1 else 'Independent'} prior of Slakh2100's "
            f"{', '.join(STEMS)} at 22.05 kHz",
            "network": network,
            "sample_rate": RATE,
            "stems": list(STEMS),
            "level": round(level, 4),
            "sigma_min": SIGMA_MIN,
            "sigma_max": SIGMA_MAX,
            "licence": "CC-BY-4.0",
            "score": {},
            "training": {
                "steps": [run.step for run in runs],
                "hours_seen": [round(run.seconds / 3600, 1) for run in runs],
                "tracks": len(tracks.songs),
            },
        },
        "float32",
    )


@click.command(help=__doc__)
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Of prepare.py.")
@click.option("--list", "name", default="redux", show_default=True, help="List of tracks.")
def main(checkpoints: tuple[Path, ...], data: Path, name: str) -> None:
    *files, folder = checkpoints
    try:
        info = export(files, folder, StemCorpus(data / name / "train"))
    except (ValueError, OSError, IndexError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{folder}: {info.parameters} parameters, sha256 {info.sha256}")


if __name__ == "__main__":
    main()
