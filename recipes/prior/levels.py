"""Validation loss of a prior by noise level and stem: of the joint prior, and stem by stem.

"joint": all stems have the level. "single": one stem has it and the others are pure noise, which
leaves what the network knows of that stem alone, the single-stem prior of ISDM. Their difference is
what the stems tell of each other. The loss is that of training (`train.py`), on the validation
songs; it is in units of the model's own scalings. --snr gives what compares between models: the
signal-to-noise ratio of the denoised stems, in dB, the mean over songs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from mgdm_audio import STEMS, hub
from mgdm_audio.nn import SpectralDenoiser
from recipes.prior.data import validation_crops
from recipes.prior.train import SIGMA_MAX, VALIDATION_SAMPLES, edm_loss
from recipes.training.log import LEVELS, level_name

SILENCE = 1e-6
"""Power of a stem up to which it is silent."""


@torch.no_grad()
def losses(
    net: SpectralDenoiser,
    crops: np.ndarray,
    sigma: float,
    single: bool,
    precision: torch.dtype,
    measure: Callable[[SpectralDenoiser, Tensor, Tensor, Tensor], Tensor] = edm_loss,
) -> list[float]:
    """Mean loss of each stem.

    Arguments:
        net: the prior's network.
        crops: true stems, (N, K, T).
        sigma: noise level.
        single: whether the other stems of the one that is told are pure noise.
        precision: of the network.
        measure: the loss of each stem, (B, K), of network, clean stems, noise and levels.
    """
    generator = torch.Generator().manual_seed(1234)
    found = torch.empty(len(crops), crops.shape[1])
    for crop, row in zip(crops, found, strict=True):
        clean = torch.from_numpy(crop)[None]
        noise = torch.randn(clean.shape, generator=generator)
        cases = [[k] for k in range(len(row))] if single else [list(range(len(row)))]
        for told in cases:
            level = torch.full((1, len(row)), SIGMA_MAX if single else sigma)
            level[:, told] = sigma
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
                row[told] = measure(net, clean, noise, level)[0, told]
    return found.nanmean(0).tolist()


def snr(net: SpectralDenoiser, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Signal-to-noise ratio of denoised stems in dB, (B, K), NaN of a silent one; as `edm_loss`."""
    error = net(clean + sigma[:, :, None] * noise, sigma) - clean
    power, left = (x.square().mean(2) for x in (clean, error))
    return torch.where(power > SILENCE, 10 * torch.log10(power / left), torch.nan)


@click.command(help=__doc__)
@click.option("--corpus", type=click.Path(path_type=Path), required=True, help="Corpus folder.")
@click.option("--model", default="default", show_default=True)
@click.option("--songs", default=24, show_default=True, help="Validation songs, a crop of each.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
)
@click.option("--snr", "ratio", is_flag=True, help="Signal-to-noise ratios instead of losses.")
def main(corpus: Path, model: str, songs: int, precision: str, ratio: bool) -> None:
    net = hub.load(model).denoise
    if not isinstance(net, SpectralDenoiser):
        raise click.ClickException(f"{model} is not a network of STFT bins")
    crops = validation_crops(corpus / "valid", VALIDATION_SAMPLES)[:songs]
    click.echo(f"| sigma | prior | {' | '.join(STEMS)} | mean |\n| ---: | --- |" + " ---: |" * 5)
    for sigma in LEVELS:
        for single in (False, True):
            measure, digits = (snr, 2) if ratio else (edm_loss, 3)
            found = losses(net, crops, sigma, single, getattr(torch, precision), measure)
            values = " | ".join(f"{v:.{digits}f}" for v in (*found, sum(found) / len(found)))
            click.echo(f"| {level_name(sigma)} | {'single' if single else 'joint'} | {values} |")


if __name__ == "__main__":
    main()
