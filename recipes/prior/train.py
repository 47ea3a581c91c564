"""Trains a prior over the four stems on a rendered corpus.

Denoising score matching in the EDM form: x = x0 + sigma n, the network's part F of
:class:`mgdm_audio.nn.spectral.SpectralDenoiser` is regressed on (X0 - c_skip X) / c_out in every
STFT bin, with bins weighted by the density of the mel scale so that the upper half of the
spectrum, which carries a hundredth of the energy, does not take half of the capacity.

The run can be stopped at any time and continues from its last checkpoint by the same command; on a
fixed corpus a continued run equals an uninterrupted one. Several GPUs are used by the same command.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from mgdm_audio import STEMS
from mgdm_audio.nn import SpectralDenoiser, build
from recipes.prior.data import Augmentation, StemCorpus, validation_crops
from recipes.training import songs, trainer
from recipes.training.command import continued, samples_of, train, training_options
from recipes.training.log import LEVELS
from recipes.training.scoring import separation_score
from recipes.training.songs import SongTask
from recipes.training.trainer import Batch, Trainer

SIGMA_MIN, SIGMA_MAX = 3e-4, 20.0
VALIDATION_SAMPLES = 131_072
SCORED = 8  # validation crops of the quick separation score


@dataclass(frozen=True, kw_only=True)
class Settings(songs.Settings):
    """Everything that decides the run, kept with the checkpoint.

    Arguments:
        steps: optimiser steps of the whole run; the learning rate depends on it.
        batch: crops a step.
        samples: length of a crop in samples, a multiple of the STFT hop.
        lr: peak learning rate (AdamW, betas 0.9 and 0.99, no weight decay on vectors).
        decay_from: the share of the run after which the learning rate falls (cosine to 1 %).
        log_sigma_mean: mean of ln(sigma) in training.
        log_sigma_std: standard deviation of ln(sigma); sigma is clipped to [3e-4, 20].
        independent: the share of items whose four stems have independent noise levels.
        ema: decay of the averaged weights per step.
        seed: seed of weights, noise and data.
    """

    steps: int = 20_000
    batch: int = 3
    samples: int = 131_072
    lr: float = 1e-3
    decay_from: float = 0.5
    log_sigma_mean: float = -2.6
    log_sigma_std: float = 1.6
    independent: float = 0.2
    ema: float = 0.999
    seed: int = 0


def band_weights(bins: int, sample_rate: int = 22050) -> Tensor:
    """Weight of each bin, (bins,), mean 1: the density of the mel scale, 1 / (f + 700 Hz)."""
    frequency = torch.linspace(0, sample_rate / 2, bins)
    weights = 1 / (frequency + 700)
    return weights / weights.mean()


def edm_loss(net: SpectralDenoiser, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Band-weighted squared error of F, (B, K), for clean stems, unit noise, sigma (B, K)."""
    bins0 = net.frame(clean)
    bins = bins0 + net.frame(noise) * sigma[:, :, None, None]
    c_skip, c_out, c_in = net.scalings(sigma)
    target = (bins0 - c_skip * bins) / c_out
    error = (net.residual(bins, sigma, c_in) - target)[..., :-1]
    weights = band_weights(error.shape[-1]).to(clean.device)
    return ((error.real.square() + error.imag.square()) * weights).mean(dim=(2, 3))


def measure_sigma_data(net: SpectralDenoiser, crops: Iterable[Tensor]) -> Tensor:
    """Root mean square of each stem's bins over crops, (K, bins), smoothed along frequency."""
    device = net.sigma_data.device
    powers = [net.frame(crop.to(device)).abs().square().mean(1) for crop in crops]
    power = torch.stack(powers).mean(0).clamp_min(SIGMA_MIN**2)
    width = 9
    padded = torch.nn.functional.pad(power.log()[None], (width // 2, width // 2), mode="replicate")
    return (padded.unfold(-1, width, 1).mean(-1)[0] / 2).exp()


class PriorTask(SongTask):
    """Denoising of rendered songs.

    Arguments:
        settings: of the run.
        network: class and arguments of the network.
        corpus: the training songs.
        valid: folder of the validation songs; None for a run that is not validated.
    """

    settings: Settings
    warm = 300

    def __init__(
        self,
        settings: Settings,
        network: dict[str, Any],
        corpus: StemCorpus,
        valid: Path | None = None,
    ) -> None:
        self.settings, self.network, self.corpus = settings, network, corpus
        self.stems = STEMS
        self.augmentation = Augmentation()
        self.crops = np.zeros((0, 4, 0), np.float32)
        if valid is not None:
            self.crops = validation_crops(valid, VALIDATION_SAMPLES)

    def build(self) -> SpectralDenoiser:
        """See `Task.build`."""
        net = build(self.network["class"], self.network["args"])
        if not isinstance(net, SpectralDenoiser):
            raise ValueError(
                f"'{self.network['class']}' is not a network of STFT bins, which this recipe trains"
            )
        return net

    def prepare(self, net: nn.Module) -> None:
        """Measures the scalings of the preconditioning on the augmented corpus."""
        assert isinstance(net, SpectralDenoiser)
        net.sigma_data.copy_(measure_sigma_data(net, self.crops_to_measure()))

    def item(
        self, rng: np.random.Generator, number: int, songs: int, parts: int = 0
    ) -> dict[str, np.ndarray]:
        """Clean stems and unit noise (4, T), and the noise level of each stem (4,)."""
        s = self.settings
        item = self.crop(rng, songs)
        level = rng.normal(size=4)
        if rng.random() >= s.independent:
            level[:] = level[0]
        sigma = np.exp(s.log_sigma_mean + s.log_sigma_std * level).clip(SIGMA_MIN, SIGMA_MAX)
        item["sigma"] = sigma.astype(np.float32)
        if self.resident is None:
            noise = rng.standard_normal(item["clean"].shape, dtype=np.float32)
            return item | {"noise": noise}
        return item | {"seed": rng.integers(2**62, size=1)}

    def complete(self, batch: Batch) -> Batch:
        """See `Task.complete`: stems, and noise from each item's seed."""
        batch = super().complete(batch)
        if "seed" not in batch:
            return batch
        batch = dict(batch)
        clean, seeds = batch["clean"], batch.pop("seed")[:, 0].tolist()
        noise = torch.empty_like(clean)
        for row, seed in zip(noise, seeds, strict=True):
            row.normal_(generator=torch.Generator(clean.device).manual_seed(seed))
        return batch | {"noise": noise}

    def losses(self, net: nn.Module, batch: Batch) -> Tensor:
        """See `edm_loss`."""
        assert isinstance(net, SpectralDenoiser)
        return edm_loss(net, batch["clean"], batch["noise"], batch["sigma"])

    def level(self, batch: Batch) -> Tensor:
        """The median over the stems."""
        return batch["sigma"].median(dim=1).values

    def validate(self, net: nn.Module) -> dict[str, float]:
        """Loss at fixed noise levels on fixed crops, the same noise every time."""
        assert isinstance(net, SpectralDenoiser)
        device = net.sigma_data.device
        result = {}
        for sigma in LEVELS if len(self.crops) else ():
            generator = torch.Generator().manual_seed(1234)
            losses = []
            for crop in self.crops:
                clean = torch.from_numpy(crop)[None]
                noise = torch.randn(clean.shape, generator=generator)
                level = torch.full((1, 4), sigma, device=device)
                loss = edm_loss(net, clean.to(device), noise.to(device), level)
                losses.append(float(loss.mean()))
            result[f"{sigma:g}"] = sum(losses) / len(losses)
        return result

    def score(self, net: nn.Module) -> dict[str, float]:
        """See `separation_score`."""
        return separation_score(net, self.crops[:SCORED]) if len(self.crops) else {}


def resume(path: Path, corpus: StemCorpus) -> Trainer:
    """A run as it was when a checkpoint was written, of this layout or the first one."""
    state = trainer.load_state(path)
    run = Trainer(PriorTask(Settings(**state["settings"]), state["network"], corpus))
    run.load(state)
    return run


@click.command(help=__doc__)
@click.option("--corpus", type=click.Path(path_type=Path), required=True, help="Corpus folder.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run folder.")
@click.option(
    "--steps",
    default=Settings.steps,
    show_default=True,
    help="Length of the run; given for a run that continues, it moves the end (and the decay).",
)
@click.option("--batch", default=Settings.batch, show_default=True, help="Over all processes.")
@click.option("--seconds", default=5.94, show_default=True, help="Length of a crop.")
@click.option("--lr", default=Settings.lr, show_default=True)
@click.option("--seed", default=Settings.seed, show_default=True)
@click.option("--network", default="{}", help="Backbone arguments as JSON.")
@training_options
def main(
    corpus: Path,
    out: Path,
    steps: int,
    batch: int,
    seconds: float,
    lr: float,
    seed: int,
    network: str,
    options: dict[str, Any],
) -> None:
    def make(state: dict[str, Any] | None) -> PriorTask:
        songs = StemCorpus(corpus / "train")
        if state is not None:
            had = state["network"]["args"]["backbone"]
            settings = continued(Settings(**state["settings"]), had)
            return PriorTask(settings, state["network"], songs, corpus / "valid")
        settings = Settings(steps=steps, batch=batch, samples=samples_of(seconds), lr=lr, seed=seed)
        args = {"backbone": json.loads(network), "stft": {"n_fft": 2048}}
        return PriorTask(settings, {"class": "TokenUNet", "args": args}, songs, corpus / "valid")

    train(make, out, options)


if __name__ == "__main__":
    main()
