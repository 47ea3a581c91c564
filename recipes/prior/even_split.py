"""What one call of a prior makes of an even split: a quarter of the mix in each stem, plus noise.

A sampler that knows nothing but the mix begins near this state. A prior that tells stems apart
takes out of each what is not its own; the estimate is then nearer to the stems than the mix is.
Printed is the SI-SDR improvement over the mix in dB by noise level, of stems that sound, after what
the estimates leave of the mix is shared out evenly.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2]))

from mgdm_audio import STEMS, hub
from mgdm_audio.metrics import si_sdr_improvement
from recipes.prior.data import validation_crops
from recipes.training.log import LEVELS, level_name

AUDIBLE = 0.004
"""RMS at the prior's level from which a stem counts."""


def improvements(
    prior: hub.Prior, crops: NDArray[np.float32], sigma: float, precision: torch.dtype
) -> list[float]:
    """Mean SI-SDR improvement of each stem, dB.

    Arguments:
        prior: the prior.
        crops: true stems, (N, 4, T).
        sigma: noise level.
        precision: of the network's layers.
    """
    scores: list[list[float]] = [[] for _ in STEMS]
    for number, crop in enumerate(crops):
        true = torch.from_numpy(crop * (prior.level / crop.sum(0).std()))
        mix = true.sum(0, keepdim=True)
        noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(number))
        half = precision != torch.float32
        with torch.no_grad(), torch.autocast("cpu", precision, enabled=half):
            x = (mix / len(STEMS) + sigma * noise)[None]
            estimate = prior.denoise(x, torch.tensor([sigma]))[0].float()
        estimate += (mix - estimate.sum(0, keepdim=True)) / len(STEMS)
        for k, stem in enumerate(true):
            if float(stem.std()) > AUDIBLE:
                gain = si_sdr_improvement(estimate[k].numpy(), stem.numpy(), mix[0].numpy())
                scores[k].append(float(gain))
    return [float(np.mean(values)) for values in scores]


@click.command(help=__doc__)
@click.option("--corpus", type=click.Path(path_type=Path), required=True, help="Folder of a split.")
@click.option("--model", default="default", show_default=True, help="Name or folder of the prior.")
@click.option("--songs", default=10, show_default=True, help="Of the split, the first ones.")
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default="float32",
              show_default=True)  # fmt: skip
def main(corpus: Path, model: str, songs: int, precision: str) -> None:
    torch.set_num_threads(1)
    prior = hub.load(model)
    if not isinstance(prior, hub.Prior):
        raise click.UsageError(f"'{model}' is no prior")
    crops = validation_crops(corpus, 88_064)[:songs]
    click.echo(f"| sigma | {' | '.join(STEMS)} | mean |\n| ---: |{' ---: |' * (len(STEMS) + 1)}")
    for sigma in LEVELS[::-1]:
        values = improvements(prior, crops, sigma, getattr(torch, precision))
        cells = " | ".join(f"{value:.2f}" for value in (*values, np.mean(values)))
        click.echo(f"| {level_name(sigma)} | {cells} |")


if __name__ == "__main__":
    main()
