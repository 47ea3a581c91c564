"""Trains a prior on Slakh2100 as MSDM was trained: the joint one, or one of a single stem.

CONFIG is a YAML file such as conf/joint.yaml. The run can be stopped at any time and continues by
the same command; it uses all GPUs there are. Several machines: start it with torchrun on each.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from mgdm_audio import STEMS
from mgdm_audio.nn import WaveformDenoiser, build
from recipes.prior.data import FULL_SCALE, StemCorpus
from recipes.slakh2100 import config
from recipes.slakh2100.prepare import warn_of_absent
from recipes.training import trainer
from recipes.training.command import train, training_options
from recipes.training.log import LEVELS
from recipes.training.scoring import separation_score
from recipes.training.trainer import Batch, Trainer

RATE = 22050
SHORTEST, LONGEST = 12 * RATE, 640 * RATE
"""Tracks outside are left out, as by the authors."""

VALIDATED, SCORED = 16, 4  # crops


@dataclass(frozen=True, kw_only=True)
class Settings(trainer.Settings):
    """Everything that decides the run, kept with the checkpoint.

    Arguments:
        stems: what the network models: all four stems, or one.
        log_sigma_mean: mean of ln(sigma) in training.
        log_sigma_std: standard deviation of ln(sigma).
        betas: of Adam, without weight decay and at a constant rate.
    """

    stems: tuple[str, ...]
    log_sigma_mean: float = -3.0
    log_sigma_std: float = 1.0
    betas: tuple[float, float] = (0.9, 0.99)

    def __post_init__(self) -> None:
        if self.stems != STEMS and (len(self.stems) != 1 or self.stems[0] not in STEMS):
            raise ValueError(f"got stems = {self.stems}, expected {STEMS} or one of them")


def waveform_loss(net: WaveformDenoiser, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Squared error of D at its EDM weight, (B, K), for clean stems, unit noise, sigma (B,)."""
    answer = net(clean + sigma[:, None, None] * noise, sigma)
    s, d = sigma.square()[:, None], net.sigma_data**2
    return (answer - clean).square().mean(-1) * (s + d) / (s * d)


class SlakhTask(trainer.Task):
    """Denoising of windows of the prepared tracks.

    The tracks are one line, cut into windows; window k is moved by up to half of its length either
    way and kept within its track. A pass over the data takes every window once, in its own order.

    Arguments:
        settings: of the run.
        network: class and arguments of the network.
        tracks: the training tracks.
        valid: folder of the validation tracks; None for a run that is not validated.
    """

    settings: Settings

    def __init__(
        self,
        settings: Settings,
        network: dict[str, Any],
        tracks: StemCorpus,
        valid: Path | None = None,
    ) -> None:
        self.settings, self.network, self.tracks = settings, network, tracks
        self.stems = settings.stems
        self.rows = [STEMS.index(stem) for stem in settings.stems]
        self.songs()
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))
        self.crops = np.zeros((0, 4, 0), np.float32)
        if valid is not None:
            self.crops = middle_crops(StemCorpus(valid), settings.samples, VALIDATED)

    def build(self) -> WaveformDenoiser:
        """See `Task.build`."""
        net = build(self.network["class"], self.network["args"])
        if not isinstance(net, WaveformDenoiser) or net.stems != len(self.stems):
            raise ValueError(
                f"the network {self.network} must be a waveform denoiser (class UNet1d) of "
                f"{len(self.stems)} stems"
            )
        return net

    def optimiser(self, net: nn.Module) -> torch.optim.Optimizer:
        """See `Task.optimiser`."""
        return torch.optim.Adam(net.parameters(), self.settings.lr, self.settings.betas)

    def songs(self) -> int:
        """Reads the index; tracks that are too short or too long are not counted."""
        self.tracks.refresh()
        self.tracks.songs = [
            song for song in self.tracks.songs if SHORTEST <= song["samples"] < LONGEST
        ]
        if not self.tracks.songs:
            raise ValueError(f"{self.tracks.folder} holds no track of 12 s to 640 s")
        self.ends = np.cumsum([song["samples"] for song in self.tracks.songs])
        return len(self.tracks.songs)

    def item(
        self, rng: np.random.Generator, number: int, songs: int, parts: int = 0
    ) -> dict[str, np.ndarray]:
        """Clean stems and unit noise (K, T), and one noise level ()."""
        s = self.settings
        length = s.samples
        clean = self.window(self.place(rng, number, songs), length)[self.rows]
        sigma = np.float32(np.exp(s.log_sigma_mean + s.log_sigma_std * rng.normal()))
        noise = rng.standard_normal(clean.shape, dtype=np.float32)
        return {"clean": clean, "noise": noise, "sigma": np.asarray(sigma)}

    def place(self, rng: np.random.Generator, number: int, songs: int) -> tuple[int, int]:
        """Track and start of an item."""
        length = self.settings.samples
        count = max(1, int(self.ends[songs - 1]) // length)
        epoch, within = divmod(number, count)
        if self._order[0] != epoch or len(self._order[1]) != count:
            order = np.random.default_rng([self.settings.seed, 2, epoch]).permutation(count)
            self._order = (epoch, order)
        at = int(self._order[1][within]) * length
        song = int(np.searchsorted(self.ends[:songs], at, side="right"))
        samples = self.tracks.songs[song]["samples"]
        start = at - (int(self.ends[song]) - samples) + int(rng.integers(-length // 2, length // 2))
        return song, min(max(start, 0), max(samples - length, 0))

    def window(self, place: tuple[int, int], length: int) -> np.ndarray:
        """The stems there, float32 (4, length); a track that is shorter ends in silence."""
        song, start = place
        part = self.tracks.stems(song)[:, start : start + length].astype(np.float32) / FULL_SCALE
        return np.pad(part, ((0, 0), (0, length - part.shape[1]))).astype(np.float32)

    def losses(self, net: nn.Module, batch: Batch) -> Tensor:
        """See `waveform_loss`."""
        assert isinstance(net, WaveformDenoiser)
        return waveform_loss(net, batch["clean"], batch["noise"], batch["sigma"])

    def level(self, batch: Batch) -> Tensor:
        """The noise level."""
        return batch["sigma"]

    def validate(self, net: nn.Module) -> dict[str, float]:
        """Loss at fixed noise levels on fixed windows, the same noise every time."""
        assert isinstance(net, WaveformDenoiser)
        device = next(net.parameters()).device
        result = {}
        for sigma in LEVELS if len(self.crops) else ():
            generator = torch.Generator().manual_seed(1234)
            losses = []
            for crop in self.crops:
                clean = torch.from_numpy(crop[self.rows])[None]
                noise = torch.randn(clean.shape, generator=generator)
                level = torch.full((1,), sigma, device=device)
                loss = waveform_loss(net, clean.to(device), noise.to(device), level)
                losses.append(float(loss.mean()))
            result[f"{sigma:g}"] = sum(losses) / len(losses)
        return result

    def score(self, net: nn.Module) -> dict[str, float]:
        """See `separation_score`; a single-stem prior alone separates nothing."""
        joint = len(self.stems) > 1 and len(self.crops)
        return separation_score(net, self.crops[:SCORED]) if joint else {}


def middle_crops(tracks: StemCorpus, samples: int, count: int) -> np.ndarray:
    """Windows in the middle of up to ``count`` tracks, spread over the list, float32 (N, 4, T)."""
    crops = []
    long = [n for n, song in enumerate(tracks.songs) if song["samples"] >= samples]
    for number in long[:: max(1, len(long) // count)][:count]:
        stems = tracks.stems(number)
        start = (stems.shape[1] - samples) // 2
        part = stems[:, start : start + samples].astype(np.float32)
        crops.append(part / np.float32(FULL_SCALE))
    return np.stack(crops) if crops else np.zeros((0, 4, samples), np.float32)


def read_settings(path: Path, stem: str | None = None) -> tuple[Settings, dict[str, Any]]:
    """Settings and network of a YAML file; ``stem`` replaces its stems.

    Raises:
        ValueError: if the file cannot be used.
    """
    values = config.load(path)
    network = values.pop("network", None)
    if not isinstance(network, dict) or set(network) != {"class", "args"}:
        raise ValueError(f"{path}: 'network' must have 'class' and 'args', got {network}")
    if stem is not None:
        values["stems"] = [stem]
    return config.fill(Settings, values, path), network


def settings_of(state: dict[str, Any]) -> Settings:
    """The settings in a checkpoint's state."""
    return Settings(**{key: config.tuples(value) for key, value in state["settings"].items()})


def resume(path: Path, tracks: StemCorpus) -> Trainer:
    """A run as it was when a checkpoint was written."""
    state = trainer.load_state(path)
    run = Trainer(SlakhTask(settings_of(state), state["network"], tracks))
    run.load(state)
    return run


@click.command(help=__doc__)
@click.argument("settings", metavar="CONFIG", type=click.Path(exists=True, path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Of prepare.py.")
@click.option("--list", "name", default="redux", show_default=True, help="List of tracks.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run folder.")
@click.option("--stem", type=click.Choice(STEMS), help="A single-stem prior of this one.")
@training_options
def main(
    settings: Path, data: Path, name: str, out: Path, stem: str | None, options: dict[str, Any]
) -> None:
    def make(state: dict[str, Any] | None) -> SlakhTask:
        tracks = StemCorpus(data / name / "train")
        if os.environ.get("RANK", "0") == "0":  # once, of several processes
            warn_of_absent(name, "train", [song["track"] for song in tracks.songs])
        chosen, network = read_settings(settings, stem)
        if state is not None:
            was = settings_of(state)
            if (was.stems, state["network"]) != (chosen.stems, network):
                raise ValueError(
                    f"{out} holds a run of {', '.join(was.stems)} with the network "
                    f"{state['network']}, {settings} is of another one; choose another --out"
                )
        return SlakhTask(chosen, network, tracks, data / name / "valid")

    train(make, out, options)


if __name__ == "__main__":
    main()
