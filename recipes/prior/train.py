"""Trains a prior over the four stems on a rendered corpus.

Denoising score matching in the EDM form: x = x0 + sigma n, the network's part F of
:class:`mgdm_audio.nn.spectral.SpectralDenoiser` is regressed on (X0 - c_skip X) / c_out in every
STFT bin, with bins weighted by the density of the mel scale so that the upper half of the
spectrum, which carries a hundredth of the energy, does not take half of the capacity.

The run can be stopped at any time and continues from its last checkpoint by the same command:
optimiser, averaged weights, random states and data position are kept, so that on a fixed corpus
a continued run equals an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from mgdm_audio.nn import SpectralDenoiser, build
from recipes.prior.data import Augmentation, StemCorpus, validation_crops

SIGMA_MIN, SIGMA_MAX = 3e-4, 20.0
VALIDATION_SIGMAS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class Settings:
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


def measure_sigma_data(net: SpectralDenoiser, crops: list[np.ndarray]) -> Tensor:
    """Root mean square of each stem's bins over crops, (K, bins), smoothed along frequency."""
    power = torch.zeros_like(net.sigma_data)
    for crop in crops:
        power += net.frame(torch.from_numpy(crop)).abs().square().mean(1)
    power = (power / len(crops)).clamp_min(SIGMA_MIN**2)
    width = 9
    padded = torch.nn.functional.pad(power.log()[None], (width // 2, width // 2), mode="replicate")
    return (padded.unfold(-1, width, 1).mean(-1)[0] / 2).exp()


def learning_rate(settings: Settings, step: int) -> float:
    """Warm-up over 300 steps, constant, then a cosine down to 1 %."""
    warm = min(1.0, (step + 1) / 300)
    start = settings.decay_from * settings.steps
    done = min(1.0, max(0.0, (step - start) / max(1.0, settings.steps - start)))
    return settings.lr * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


class Training:
    """State of a run: network, averaged network, optimiser, random states, step."""

    def __init__(self, settings: Settings, network: dict[str, Any], corpus: StemCorpus) -> None:
        self.settings, self.network, self.corpus = settings, network, corpus
        torch.manual_seed(settings.seed)
        self.net = self._build()
        self.average = self._build()
        self.average.load_state_dict(self.net.state_dict())
        self.average.requires_grad_(False)
        matrices = [p for p in self.net.parameters() if p.ndim >= 2]
        vectors = [p for p in self.net.parameters() if p.ndim < 2]
        self.optimiser = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}],
            lr=settings.lr,
            betas=(0.9, 0.99),
        )
        self.noise = torch.Generator().manual_seed(settings.seed)
        self.rng = np.random.default_rng(settings.seed)
        self.augmentation = Augmentation()
        self.step = 0
        self.seconds = 0.0  # of audio seen
        self.songs = len(corpus.songs)

    def _build(self) -> SpectralDenoiser:
        net = build(self.network["class"], self.network["args"])
        assert isinstance(net, SpectralDenoiser)
        return net

    def prepare(self) -> None:
        """Measures the scalings of the preconditioning on the augmented corpus."""
        rng = np.random.default_rng(self.settings.seed + 1)
        crops = [
            self.corpus.crop(rng, self.settings.samples, self.songs, self.augmentation)
            for _ in range(200)
        ]
        for net in (self.net, self.average):
            net.sigma_data.copy_(measure_sigma_data(net, crops))

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Clean stems, unit noise and noise levels of the next step."""
        s = self.settings
        crops = [
            self.corpus.crop(self.rng, s.samples, self.songs, self.augmentation)
            for _ in range(s.batch)
        ]
        clean = torch.from_numpy(np.stack(crops))
        noise = torch.randn(clean.shape, generator=self.noise)
        level = torch.randn((s.batch, 4), generator=self.noise)
        shared = torch.rand((s.batch, 1), generator=self.noise) >= s.independent
        level = torch.where(shared, level[:, :1], level)
        sigma = (s.log_sigma_mean + s.log_sigma_std * level).exp().clamp(SIGMA_MIN, SIGMA_MAX)
        return clean, noise, sigma

    def advance(self, precision: torch.dtype) -> tuple[Tensor, Tensor]:
        """One optimiser step; returns the losses (B, K) and the noise levels (B, K)."""
        clean, noise, sigma = self.batch()
        rate = learning_rate(self.settings, self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = edm_loss(self.net, clean, noise, sigma)
        self.optimiser.zero_grad(set_to_none=True)
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        decay = min(self.settings.ema, (self.step + 1) / (self.step + 10))
        torch._foreach_lerp_(
            list(self.average.parameters()), list(self.net.parameters()), 1 - decay
        )
        self.step += 1
        self.seconds += clean.shape[0] * clean.shape[-1] / 22050
        return loss.detach(), sigma

    @torch.no_grad()
    def validate(self, crops: np.ndarray, precision: torch.dtype) -> dict[str, float]:
        """Loss of the averaged weights at fixed noise levels, same noise every time."""
        result = {}
        for sigma in VALIDATION_SIGMAS:
            noise = torch.Generator().manual_seed(1234)
            losses = []
            for crop in crops:
                clean = torch.from_numpy(crop)[None]
                unit = torch.randn(clean.shape, generator=noise)
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
                    level = torch.full((1, 4), sigma)
                    losses.append(float(edm_loss(self.average, clean, unit, level).mean()))
            result[f"{sigma:g}"] = sum(losses) / len(losses)
        return result

    def save(self, path: Path) -> None:
        """Writes the checkpoint to a temporary name, then renames it."""
        state = {
            "settings": asdict(self.settings),
            "network": self.network,
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "noise": self.noise.get_state(),
            "rng": json.dumps(self.rng.bit_generator.state),
            "step": self.step,
            "seconds": self.seconds,
            "songs": self.songs,
        }
        temporary = path.with_suffix(".part")
        torch.save(state, temporary)
        os.replace(temporary, path)

    @classmethod
    def resume(cls, path: Path, corpus: StemCorpus) -> Training:
        """Continues from a checkpoint."""
        state = torch.load(path, weights_only=True)
        training = cls(Settings(**state["settings"]), state["network"], corpus)
        training.net.load_state_dict(state["net"])
        training.average.load_state_dict(state["average"])
        training.optimiser.load_state_dict(state["optimiser"])
        training.noise.set_state(state["noise"])
        training.rng.bit_generator.state = json.loads(state["rng"])
        training.step, training.seconds = state["step"], state["seconds"]
        training.songs = state["songs"]
        return training


def level_name(sigma: float) -> str:
    """The nearest of the validation levels, as a label."""
    return f"{min(VALIDATION_SIGMAS, key=lambda s: abs(math.log(s / sigma))):g}"


@click.command(help=__doc__)
@click.option("--corpus", type=click.Path(path_type=Path), required=True, help="Corpus folder.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run folder.")
@click.option(
    "--steps",
    default=Settings.steps,
    show_default=True,
    help="Length of the run; given for a run that continues, it moves the end (and the decay).",
)
@click.option("--batch", default=Settings.batch, show_default=True)
@click.option("--seconds", default=5.94, show_default=True, help="Length of a crop.")
@click.option("--lr", default=Settings.lr, show_default=True)
@click.option("--seed", default=Settings.seed, show_default=True)
@click.option("--network", default="{}", help="Backbone arguments as JSON.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--save-minutes", default=4.0, show_default=True)
@click.option("--validate-minutes", default=12.0, show_default=True)
@click.option("--minutes", default=math.inf, help="Stop after this time (the run can go on).")
def main(
    corpus: Path,
    out: Path,
    steps: int,
    batch: int,
    seconds: float,
    lr: float,
    seed: int,
    network: str,
    precision: str,
    save_minutes: float,
    validate_minutes: float,
    minutes: float,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    data = StemCorpus(corpus / "train")
    source = click.get_current_context().get_parameter_source
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        run = Training.resume(checkpoint, data)
        if source("steps") is not click.core.ParameterSource.DEFAULT:
            run.settings = replace(run.settings, steps=steps)
        click.echo(f"continues at step {run.step} of {run.settings.steps}", err=True)
    else:
        samples = round(seconds * 22050 / 512) * 512
        settings = Settings(steps=steps, batch=batch, samples=samples, lr=lr, seed=seed)
        args = {"backbone": json.loads(network), "stft": {"n_fft": 2048}}
        run = Training(settings, {"class": "TokenUNet", "args": args}, data)
        run.prepare()
    crops = validation_crops(corpus / "valid", 131_072)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    start = saved = validated = time.monotonic()
    first = run.step
    window: dict[str, list[float]] = defaultdict(list)
    stems: list[Tensor] = []
    with (out / "log.jsonl").open("a", buffering=1) as log:
        while run.step < run.settings.steps:
            loss, sigma = run.advance(dtype)
            stems.append(loss.mean(0))
            for item in range(loss.shape[0]):
                window[level_name(float(sigma[item].median()))].append(float(loss[item].mean()))
            now = time.monotonic()
            last = run.step == run.settings.steps or now - start > minutes * 60
            if run.step % 100 == 0 or last:
                speed = (run.step - first) / (now - start)
                log.write(
                    json.dumps(
                        {
                            "step": run.step,
                            "minutes": round((now - start) / 60, 2),
                            "hours_seen": round(run.seconds / 3600, 3),
                            "lr": learning_rate(run.settings, run.step),
                            "songs": run.songs,
                            "loss": {k: round(float(np.mean(v)), 4) for k, v in window.items()},
                            "stems": [round(v, 4) for v in torch.stack(stems).mean(0).tolist()],
                        }
                    )
                    + "\n"
                )
                left = (run.settings.steps - run.step) / speed / 60
                click.echo(
                    f"step {run.step} ({100 * run.step / run.settings.steps:.1f} %), "
                    f"{speed * run.settings.batch * run.settings.samples / 22050:.1f} audio-s/s, "
                    f"{left:.0f} min left",
                    err=True,
                )
                window.clear()
                stems.clear()
            if now - saved > save_minutes * 60 or last:
                run.save(checkpoint)
                run.songs = data.refresh()
                saved = now
            if now - validated > validate_minutes * 60 or last:
                scores = run.validate(crops, dtype)
                log.write(json.dumps({"step": run.step, "valid": scores}) + "\n")
                click.echo(f"step {run.step} validation {scores}", err=True)
                validated = now
            if last:
                break


if __name__ == "__main__":
    main()
