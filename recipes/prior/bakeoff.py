"""Compares networks, inputs and data at equal processor time, as priors and as regressors.

Each candidate is trained twice from nothing for the same minutes: as the prior, by `train.py`'s
loss, and as the regressor, by `recipes/regressor`'s. Told are, on the validation songs, the
denoising error by noise level and the SI-SDR improvement of the regressor's answers, of averaged
weights. The error is measured in bins of 2048 samples with the scalings of the corpus, the same for
every candidate, whatever it has inside: for the shipped network it is the loss it is trained by.

What is done is kept in `results.jsonl`; the same command goes on with what is missing.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from mgdm_audio import STEMS
from mgdm_audio.nn import SpectralDenoiser, SpectralRegressor, TokenUNet, UNet2d
from mgdm_audio.nn.spectral import SpectralNetwork
from recipes.prior.candidates import BandSplit, FrameTokens, TDFUNet2d
from recipes.prior.data import Augmentation, StemCorpus, validation_crops
from recipes.prior.train import (
    VALIDATION_SAMPLES,
    PriorTask,
    Settings,
    band_weights,
    edm_loss,
    measure_sigma_data,
)
from recipes.regressor.loss import bands, losses
from recipes.regressor.train import Settings as RegressorSettings
from recipes.regressor.validation import validate
from recipes.training.log import LEVELS

ROLES = ("prior", "regressor")
BATCH, SAMPLES = 3, 88_064
LR, WARM_STEPS, DECAY_FROM, EMA = 1e-3, 50, 0.3, 0.99


class NoGain(nn.Module):
    """A backbone whose gains are not used: the residual alone makes the output."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, features: Tensor, log_sigma: Tensor) -> Tensor:
        gain, real, imag = self.backbone(features, log_sigma).chunk(3, dim=1)
        return torch.cat([torch.zeros_like(gain), real, imag], dim=1)


class PowerOnly(nn.Module):
    """A backbone that sees the power of each bin and not its phase."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, features: Tensor, log_sigma: Tensor) -> Tensor:
        power, real, imag = features.chunk(3, dim=1)
        seen = torch.cat([power, torch.zeros_like(real), torch.zeros_like(imag)], dim=1)
        return self.backbone(seen, log_sigma)


@dataclass(frozen=True)
class Candidate:
    """One row of the table.

    Arguments:
        what: what it is, for the table.
        backbone: makes it, for a number of bins.
        n_fft: window of the STFT inside.
        per_band: whether each bin has its own scaling, or a stem has one for all.
        remix: the share of training items whose stems come from four places.
        compiled: whether the backbone goes through torch.compile.
    """

    what: str
    backbone: Callable[[int], nn.Module]
    n_fft: int = 2048
    per_band: bool = True
    remix: float = Augmentation.remix
    compiled: bool = False


def shipped(bins: int) -> nn.Module:
    """The default prior's backbone."""
    return TokenUNet(bins=bins, channels=(48, 96))


def unet(bins: int) -> nn.Module:
    """A 2-D U-Net with three resolutions."""
    return UNet2d(bins=bins, channels=(56, 112, 192))


SHIPPED = Candidate("the prior's: TFC-TDF U-Net over frame tokens", shipped)
CANDIDATES: dict[str, Candidate] = {
    "token-unet": SHIPPED,
    "unet": Candidate("2-D U-Net", unet),
    "unet-deep": Candidate(
        "2-D U-Net with a fourth resolution",
        lambda bins: UNet2d(bins=bins, channels=(48, 96, 160, 224)),
    ),
    "unet-power": Candidate("2-D U-Net that sees no phase", lambda bins: PowerOnly(unet(bins))),
    "unet-tdf": Candidate(
        "2-D U-Net of TFC-TDF blocks",
        lambda bins: TDFUNet2d(bins=bins, channels=(56, 112, 192)),
    ),
    "frames": Candidate(
        "frame tokens, ConvNeXt", lambda bins: FrameTokens(bins=bins, width=768, depth=12)
    ),
    "band-split": Candidate("band-split mixer", lambda bins: BandSplit(bins=bins)),
    "residual-only": replace(
        SHIPPED, what="without the gain by bin", backbone=lambda bins: NoGain(shipped(bins))
    ),
    "n-fft-1024": replace(SHIPPED, what="STFT of 1024 samples", n_fft=1024),
    "one-scale": replace(SHIPPED, what="one scaling for all bins of a stem", per_band=False),
    "coherent": replace(SHIPPED, what="stems of one song only", remix=0.0),
    "compiled": replace(SHIPPED, what="torch.compile", compiled=True),
}


def measured(corpus: StemCorpus, n_fft: int, seed: int = 1) -> Tensor:
    """Scalings of the corpus for a window, (K, bins)."""
    rng = np.random.default_rng(seed)
    songs, ways = len(corpus.songs), Augmentation()
    crops = [torch.from_numpy(corpus.crop(rng, SAMPLES, songs, ways)) for _ in range(100)]
    return measure_sigma_data(SpectralDenoiser(nn.Identity(), n_fft=n_fft), crops)


def make(candidate: Candidate, role: str, corpus: StemCorpus) -> SpectralNetwork:
    """An untrained network with its scalings."""
    around = SpectralDenoiser if role == "prior" else SpectralRegressor
    net = around(candidate.backbone(candidate.n_fft // 2), n_fft=candidate.n_fft)
    scale = measured(corpus, candidate.n_fft)
    if not candidate.per_band:
        scale = scale.square().mean(1, keepdim=True).sqrt().expand_as(scale)
    net.sigma_data.copy_(scale)
    return net


def rate(minutes: float, step: int, whole: float) -> float:
    """Warm-up, constant, then a cosine down to 1 % at the end of the time."""
    done = min(1.0, max(0.0, (minutes / whole - DECAY_FROM) / (1 - DECAY_FROM)))
    return LR * min(1.0, (step + 1) / WARM_STEPS) * (0.01 + 0.495 * (1 + math.cos(math.pi * done)))


def steps(
    net: SpectralNetwork, role: str, corpus: StemCorpus, remix: float, seed: int
) -> Iterator[Tensor]:
    """Losses of one training step after another, the same items for every candidate."""
    task = PriorTask(Settings(samples=SAMPLES, seed=seed), {}, corpus)
    task.augmentation = Augmentation(remix=remix)
    songs, rng = len(corpus.songs), np.random.default_rng(seed)
    membership = bands(net.frame.bins)
    while True:
        items = [task.item(rng, n, songs) for n in range(BATCH)]
        clean = torch.from_numpy(np.stack([item["clean"] for item in items]))
        if isinstance(net, SpectralDenoiser):
            noise, sigma = (
                torch.from_numpy(np.stack([item[key] for item in items]))
                for key in ("noise", "sigma")
            )
            yield edm_loss(net, clean, noise, sigma).mean()
        else:
            assert isinstance(net, SpectralRegressor)
            known = np.zeros((BATCH, len(STEMS)), bool)
            for row in known:
                row[: rng.choice(3, p=RegressorSettings.given)] = True
                rng.shuffle(row)
            loss, snr = losses(net, clean, torch.from_numpy(known), membership)
            yield loss.sum() / (~snr.isnan()).sum()


def train(
    candidate: Candidate,
    role: str,
    corpus: StemCorpus,
    minutes: float,
    precision: torch.dtype,
    seed: int = 0,
) -> tuple[SpectralNetwork, int]:
    """Trains for some minutes of processor time; returns averaged weights and the steps taken."""
    torch.manual_seed(seed)
    net = make(candidate, role, corpus)
    average = make(candidate, role, corpus).requires_grad_(False)
    average.load_state_dict(net.state_dict())
    weights: list[Tensor] = list(net.parameters())
    averaged: list[Tensor] = list(average.parameters())
    if candidate.compiled:
        net.backbone.compile()
    optimiser = torch.optim.AdamW(weights, lr=LR, betas=(0.9, 0.99), weight_decay=0.01)
    start, step = time.process_time(), 0
    stream = steps(net, role, corpus, candidate.remix, seed)
    while (spent := (time.process_time() - start) / 60) < minutes:
        for group in optimiser.param_groups:
            group["lr"] = rate(spent, step, minutes)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = next(stream)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        torch._foreach_lerp_(averaged, weights, 1 - min(EMA, (step + 1) / (step + 10)))
        step += 1
    return average, step


@torch.no_grad()
def denoising_errors(
    net: SpectralDenoiser, scale: Tensor, crops: np.ndarray, precision: torch.dtype
) -> dict[str, float]:
    """Error of the estimates by noise level, the same noise for every candidate.

    Arguments:
        net: the denoiser.
        scale: scalings that the error is measured by, (K, 1025).
        crops: true stems, (N, K, T).
        precision: of the network.
    """
    common = SpectralDenoiser(nn.Identity())
    common.sigma_data.copy_(scale)
    weights = band_weights(common.frame.bins - 1)
    found = {}
    for sigma in LEVELS:
        generator = torch.Generator().manual_seed(1234)
        level = torch.full((1, crops.shape[1]), sigma)
        c_out = common.scalings(level)[1]
        errors = []
        for crop in crops:
            clean = torch.from_numpy(crop)[None]
            noisy = clean + sigma * torch.randn(clean.shape, generator=generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
                estimate = net(noisy, level)
            error = (common.frame(estimate - clean) / c_out)[..., :-1]
            power = error.real.square() + error.imag.square()
            errors.append(float((power * weights).mean()))
        found[f"{sigma:g}"] = round(float(np.mean(errors)), 4)
    return found


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown of what is known so far."""
    done = {(line["name"], line["role"]): line for line in lines}
    levels = [f"{sigma:g}" for sigma in LEVELS]
    head = ["candidate", "what", "million weights", "steps", *levels]
    head += ["steps, regressor", *STEMS, "all"]
    rows = [head, ["---"] * 2 + ["---:"] * (len(head) - 2)]
    for name, candidate in CANDIDATES.items():
        prior, regressor = (done.get((name, role)) for role in ROLES)
        if prior is None and regressor is None:
            continue
        row = [name, candidate.what, f"{(prior or regressor or {})['parameters'] / 1e6:.1f}"]
        row += ["" if prior is None else str(prior["steps"])]
        row += ["" if prior is None else f"{prior['errors'][level]:.3f}" for level in levels]
        row += ["" if regressor is None else str(regressor["steps"])]
        gains = [math.nan] * 4 if regressor is None else regressor["si_sdri"]
        row += ["" if math.isnan(g) else f"{g:.2f}" for g in (*gains, float(np.mean(gains)))]
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


@click.command(help=__doc__)
@click.option("--corpus", type=click.Path(path_type=Path), required=True, help="Corpus folder.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Results folder.")
@click.option("--minutes", default=8.0, show_default=True, help="Processor time of each training.")
@click.option("--candidate", "names", multiple=True, type=click.Choice(list(CANDIDATES)))
@click.option("--role", "roles", multiple=True, type=click.Choice(ROLES))
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
def main(
    corpus: Path,
    out: Path,
    minutes: float,
    names: tuple[str, ...],
    roles: tuple[str, ...],
    precision: str,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    store = out / "results.jsonl"
    lines = [json.loads(line) for line in store.read_text().splitlines()] if store.exists() else []
    for line in lines:
        if (line["minutes"], line["precision"]) != (minutes, precision):
            raise click.ClickException(
                f"{store} has trainings of {line['minutes']} minutes in {line['precision']}: "
                "give these or another --out"
            )
    done = {(line["name"], line["role"]) for line in lines}
    songs = StemCorpus(corpus / "train")
    crops = validation_crops(corpus / "valid", VALIDATION_SAMPLES)
    scale = measured(songs, 2048)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for name in names or CANDIDATES:
        for role in roles or ROLES:
            if (name, role) in done:
                continue
            net, taken = train(CANDIDATES[name], role, songs, minutes, dtype)
            line = {
                "name": name,
                "role": role,
                "minutes": minutes,
                "precision": precision,
                "steps": taken,
                "songs": len(songs.songs),
                "parameters": sum(p.numel() for p in net.parameters()),
            }
            if isinstance(net, SpectralDenoiser):
                line["errors"] = denoising_errors(net, scale, crops, dtype)
            else:
                assert isinstance(net, SpectralRegressor)
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    line["si_sdri"] = validate(net, crops)["none"]
            with store.open("a") as file:
                file.write(json.dumps(line) + "\n")
            lines.append(line)
            (out / "table.md").write_text(table(lines))
            click.echo(json.dumps(line), err=True)


if __name__ == "__main__":
    main()
