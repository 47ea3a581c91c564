"""What becomes of the prior's estimates on the way down to a mix, and of a bound on them.

DDNM+ is run on validation clips. Its steps hold the sum of the stems to the mix, so what goes wrong
is in what the sum does not hold: stems that grow against each other. Told are, near some levels,
the root mean square of the noise that the estimate says is in the state (of an estimate that knows
what it sees it is 1 at most), and how loud the differences between the estimated stems are above 5
kHz, in dB relative to the true ones; and at the end the SI-SDR improvement in dB. All of this with
the prior as it is, and with its estimate of a bin bounded: no louder than the bin itself, or than
the stem is there on average.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from mgdm_audio import hub, samplers
from mgdm_audio.draws import SeededDraws
from mgdm_audio.metrics import si_sdr_improvement
from mgdm_audio.nn import SpectralDenoiser
from mgdm_audio.operators import Mixture
from mgdm_audio.samplers.base import Problem
from recipes.compare.clips import LISTS, RATE, clips

SHOWN = (0.3, 0.03, 0.01, 0.003, 0.001)
UPPER = 5000.0

Denoise = Callable[[Tensor, Tensor], Tensor]


def bounded(net: SpectralDenoiser) -> Denoise:
    """The denoiser with its estimate of each bin bounded."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        padding = (0, -x.shape[-1] % net.hop)
        seen, found = net.frame(F.pad(x, padding)), net.frame(F.pad(net(x, sigma), padding))
        most = torch.maximum(seen.abs(), net.sigma_data[None, :, None, :])
        found = found * (most / found.abs().clamp_min(1e-12)).clamp_max(1)
        return net.frame.inverse(found)[..., : x.shape[-1]]

    return denoise


def differences(x: Tensor) -> float:
    """Power above `UPPER` of what stems (1, K, T) have and their mean has not."""
    bins = torch.fft.rfft(x - x.mean(1, keepdim=True))
    return float(bins[..., round(UPPER / RATE * x.shape[-1]) :].abs().square().sum())


def run(denoise: Denoise, stems: Tensor, steps: int) -> tuple[list[float], Tensor]:
    """Noise and differences near the levels of `SHOWN`, and the stems (1, K, T) of a run."""
    truth, told = differences(stems), []

    @torch.no_grad()
    def watched(x: Tensor, sigma: Tensor) -> Tensor:
        found, level = denoise(x, sigma), float(sigma.flatten()[0])
        noise = float(((x - found) / level).square().mean().sqrt())
        told.append((level, noise, 10 * float(np.log10(differences(found) / truth))))
        return found

    sampler = samplers.get("ddnm", "default", eta=1.0, sigma_max=3.0, steps=steps)
    _, count, length = stems.shape
    problem = Problem(Mixture(count), stems.sum(1, keepdim=True), 0.0, (1, count, length))
    estimate = sampler.sample(watched, problem, SeededDraws([0]))
    near = [min(told, key=lambda row: abs(np.log(row[0] / shown))) for shown in SHOWN]
    return [row[1] for row in near] + [row[2] for row in near], estimate


@click.command(help=__doc__)
@click.option("--corpus", type=click.Path(path_type=Path), required=True, help="Corpus folder.")
@click.option("--model", default="default", show_default=True)
@click.option("--clips", "count", default=4, show_default=True, help="Clips of 4 s, 4 at most.")
@click.option("--steps", "lengths", multiple=True, default=(30, 100), show_default=True)
def main(corpus: Path, model: str, count: int, lengths: tuple[int, ...]) -> None:
    torch.set_num_threads(1)
    prior = hub.load(model)
    net = prior.denoise
    if not isinstance(net, SpectralDenoiser):
        raise click.ClickException(f"model '{model}' does not work on STFT bins")
    click.echo(f"levels {', '.join(f'{s:g}' for s in SHOWN)}")
    click.echo("| steps | bound | noise | | | | | differences, dB | | | | | SI-SDRi, dB |")
    click.echo("| ---: | --- |" + " ---: |" * (2 * len(SHOWN) + 1))
    for steps in lengths:
        for name, denoise in (("no", net), ("yes", bounded(net))):
            rows: list[list[float]] = []
            for clip in clips(corpus / "valid", LISTS["tune"])[:count]:
                stems = torch.from_numpy(clip.stems).float()[None]
                gain = prior.level / float(stems.sum(1).square().mean().sqrt())
                row, estimate = run(denoise, gain * stems, steps)
                found = (estimate / gain)[0].numpy()
                pairs = zip(found, clip.stems, strict=True)
                gains = [float(si_sdr_improvement(e, s, clip.mix)) for e, s in pairs]
                rows.append([*row, sum(gains) / len(gains)])
            means = [f"{value:.2f}" for value in np.mean(rows, 0)]
            click.echo(f"| {steps} | {name} | {' | '.join(means)} |")


if __name__ == "__main__":
    main()
