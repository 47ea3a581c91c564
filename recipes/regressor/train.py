"""Trains a regressor on a rendered corpus: the mix and some of the stems in, the others out.

Each item's mix is the sum of its stems; none, one or two of them, drawn at random, are given
(an orderless NADE; of the last unknown stem nothing is left to learn). `loss.py` says what is
asked of the answers, `validation.py` how they are scored on the way.

With `--others`, parts of instruments that no stem is (recipes/corpus/others.py), a share of the
steps has mixes with such a part, or with the bare possibility of one; the network is told which
kind it sees, and what its estimates leave of the mix is one stem more in the loss.

The network starts from nothing, or from the weights of another regressor or of a prior, to which
the unknown stems are pure noise (`--initial`). The learning rate follows the processor time spent,
so that a run costs what it was said to; no two runs are equal to the last bit. It can be stopped at
any time and continues from its last checkpoint by the same command.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from mgdm_audio import STEMS, hub
from mgdm_audio.nn import RegressorMean, SpectralRegressor, build
from recipes.prior.data import Augmentation, StemCorpus, validation_crops
from recipes.regressor.loss import bands, losses
from recipes.regressor.validation import validate

BESIDE = 60.0  # label of the unknown stems where the mix may hold another part
# Gain of such a part: at -5.5 dB it is as loud as a stem, and so it is in validation; voices are
# louder, and easier to learn.
STEM_DB, OTHER_DB, OTHER_STD_DB = -5.5, -2.0, 5.0


@dataclass(frozen=True)
class Settings:
    """Everything that decides the run, kept with the checkpoint.

    Arguments:
        minutes: length of the run in minutes of processor time; the learning rate depends on it.
        batch: crops a step.
        samples: length of a crop in samples, a multiple of the STFT hop.
        lr: peak learning rate (AdamW, betas 0.9 and 0.99, no weight decay on vectors).
        decay_from: the share of the run after which the learning rate falls (cosine to 1 %).
        given: shares of items with no, one and two given stems.
        beside: the share of steps with mixes that may hold a part beside the stems.
        absent: the share of their items that hold none.
        ema: decay of the averaged weights per step.
        seed: seed of weights, masks and data.
    """

    minutes: float = 65.0
    batch: int = 3
    samples: int = 88_064
    lr: float = 6e-4
    decay_from: float = 0.3
    given: tuple[float, float, float] = (0.7, 0.15, 0.15)
    beside: float = 0.0
    absent: float = 0.25
    ema: float = 0.999
    seed: int = 0


def measure_sigma_data(net: SpectralRegressor, crops: list[np.ndarray]) -> Tensor:
    """Root mean square of each stem's bins over crops, (K, bins)."""
    power = torch.stack([net.frame(torch.from_numpy(c)).abs().square().mean(1) for c in crops])
    return power.mean(0).clamp_min(net.known**2).sqrt()


def learning_rate(settings: Settings, step: int, minutes: float) -> float:
    """Warm-up over 100 steps, constant, then a cosine down to 1 % at the end of the time."""
    warm = min(1.0, (step + 1) / 100)
    start = settings.decay_from * settings.minutes
    done = min(1.0, max(0.0, (minutes - start) / (settings.minutes - start)))
    return settings.lr * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


class Training:
    """State of a run: network, averaged network, optimiser, random states, time spent.

    Arguments:
        settings: of the run.
        network: class and arguments of the network.
        corpus: the training songs.
        others: parts of instruments that no stem is; not needed where `settings.beside` is 0, nor
            for a run that is only looked at.
    """

    def __init__(
        self,
        settings: Settings,
        network: dict[str, Any],
        corpus: StemCorpus,
        others: StemCorpus | None = None,
    ) -> None:
        self.settings, self.network, self.corpus = settings, network, corpus
        self.others = others
        torch.manual_seed(settings.seed)
        self.net, self.average = self._build(), self._build()
        self.average.requires_grad_(False)
        self.average.load_state_dict(self.net.state_dict())
        matrices = [p for p in self.net.parameters() if p.ndim >= 2]
        vectors = [p for p in self.net.parameters() if p.ndim < 2]
        self.optimiser = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}],
            lr=settings.lr,
            betas=(0.9, 0.99),
        )
        self.membership = bands(self.net.frame.bins)
        self.rng = np.random.default_rng(settings.seed)
        self.augmentation = Augmentation(equaliser_db=4.0, speed=0.5, fastest=0.25)
        self.step = 0
        self.minutes = 0.0
        self.seconds = 0.0  # of audio seen
        self.songs = len(corpus.songs)
        self.initial = ""

    def _build(self) -> SpectralRegressor:
        net = build(self.network["class"], self.network["args"])
        assert isinstance(net, SpectralRegressor)
        return net

    def start_from(self, model: hub.Prior | hub.Regressor) -> None:
        """Takes the weights and scalings of a prior or of another regressor."""
        state = widened(network_of(model).state_dict(), self.net.state_dict())
        self.net.load_state_dict(state)
        self.average.load_state_dict(state)
        self.initial = f"{model.name} {model.sha256}"

    def prepare(self) -> None:
        """Measures the scalings on the augmented corpus, for a start without a prior."""
        rng = np.random.default_rng(self.settings.seed + 1)
        crops = [self._crop(rng) for _ in range(200)]
        for net in (self.net, self.average):
            net.sigma_data.copy_(measure_sigma_data(net, crops))

    def _crop(self, rng: np.random.Generator) -> np.ndarray:
        return self.corpus.crop(rng, self.settings.samples, self.songs, self.augmentation)

    def other(self) -> Tensor | None:
        """What the mixes of a step hold beside the stems, (B, 1, T), or None.

        Raises:
            ValueError: if the run is one with other parts and there are none.
        """
        s = self.settings
        if not s.beside:
            return None
        if self.others is None:
            raise ValueError("this run needs parts of other instruments: give --others")
        if self.rng.random() >= s.beside:
            return None
        parts = np.zeros((s.batch, 1, s.samples), np.float32)
        for part in parts:
            if self.rng.random() >= s.absent:
                gain = OTHER_DB + OTHER_STD_DB * self.rng.normal()
                part[0] = self.others.single(self.rng, s.samples, gain, self.augmentation)
        return torch.from_numpy(parts)

    def batch(self) -> tuple[Tensor, Tensor]:
        """True stems (B, K, T) and which of them are given (B, K)."""
        clean = np.stack([self._crop(self.rng) for _ in range(self.settings.batch)])
        known = np.zeros(clean.shape[:2], bool)
        for row in known:
            row[: self.rng.choice(3, p=self.settings.given)] = True
            self.rng.shuffle(row)
        return torch.from_numpy(clean), torch.from_numpy(known)

    def advance(self, precision: torch.dtype) -> Tensor:
        """One optimiser step; returns the SNRs (B, K + 1) in dB, NaN where there is none."""
        start = time.process_time()
        clean, known = self.batch()
        other = self.other()
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.settings, self.step, self.minutes)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            loss, snr = losses(self.net, clean, known, self.membership, other)
        self.optimiser.zero_grad(set_to_none=True)
        (loss.sum() / (~snr.isnan()).sum()).backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        decay = min(self.settings.ema, (self.step + 1) / (self.step + 10))
        torch._foreach_lerp_(
            list(self.average.parameters()), list(self.net.parameters()), 1 - decay
        )
        self.step += 1
        self.seconds += clean.shape[0] * clean.shape[-1] / 22050
        self.minutes += (time.process_time() - start) / 60
        missing = self.net.stems + 1 - snr.shape[1]
        return torch.nn.functional.pad(snr, (0, missing), value=math.nan)

    def save(self, path: Path) -> None:
        """Writes the checkpoint to a temporary name, then renames it."""
        state = {
            "settings": asdict(self.settings),
            "network": self.network,
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "rng": json.dumps(self.rng.bit_generator.state),
            **{key: getattr(self, key) for key in _COUNTERS},
        }
        temporary = path.with_suffix(".part")
        torch.save(state, temporary)
        os.replace(temporary, path)

    @classmethod
    def resume(cls, path: Path, corpus: StemCorpus, others: StemCorpus | None = None) -> Training:
        """Continues from a checkpoint."""
        state = torch.load(path, weights_only=True)
        training = cls(Settings(**state["settings"]), state["network"], corpus, others)
        training.net.load_state_dict(state["net"])
        training.average.load_state_dict(state["average"])
        training.optimiser.load_state_dict(state["optimiser"])
        training.rng.bit_generator.state = json.loads(state["rng"])
        for key in _COUNTERS:
            setattr(training, key, state[key])
        training.songs = min(training.songs, len(corpus.songs))  # it may be another corpus
        return training


def load_model(name: str) -> hub.Prior | hub.Regressor:
    """A prior or a regressor by name or folder.

    Raises:
        ClickException: if it is a mean of several networks.
    """
    kind = hub.read_config(hub.find(name)).kind
    model = hub.load(name) if kind == "prior" else hub.load_regressor(name)
    if isinstance(network_of(model), RegressorMean):
        raise click.ClickException(
            f"'{name}' is the mean of several networks, and one is wanted: take it apart by "
            "recipes/regressor/mean.py --parts-of"
        )
    return model


def widened(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a network with one output more, where that is wanted: it says nothing yet."""
    state = dict(state)
    for key in ("backbone.outputs.weight", "backbone.outputs.bias"):
        have, new = state[key], torch.zeros_like(wanted[key])
        if have.shape != new.shape:
            # Gain, real and imaginary part, of each signal, of each bin of a patch.
            stems = len(STEMS)
            rows = have.reshape(3, stems, -1, *have.shape[1:])
            new.reshape(3, stems + 1, -1, *have.shape[1:])[:, :stems] = rows
            state[key] = new
    return state


def network_of(model: hub.Prior | hub.Regressor) -> torch.nn.Module:
    """The network of a loaded model."""
    return model.denoise if isinstance(model, hub.Prior) else model.regress


def arguments_of(model: hub.Prior | hub.Regressor) -> dict[str, Any]:
    """Those of a model's network, for one that is trained: it is to be believed."""
    args = dict(model.info.config["network"]["args"])
    args["stft"] = {k: v for k, v in args["stft"].items() if k != "confidence"}
    return args


def backbone_of(model: hub.Prior | hub.Regressor) -> str:
    """The class of its network without what is around it."""
    return str(model.info.config["network"]["class"]).removesuffix("Regressor")


_COUNTERS = ("step", "minutes", "seconds", "songs", "initial")


@click.command(help=__doc__)
@click.option("--corpus", type=click.Path(path_type=Path), required=True, help="Corpus folder.")
@click.option("--valid", type=click.Path(path_type=Path), help="Folder of validation songs.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run folder.")
@click.option("--others", type=click.Path(path_type=Path), help="Folder of the train, valid parts.")
@click.option("--initial", default="none", show_default=True, help="A model, or 'none'.")
@click.option(
    "--minutes",
    default=Settings.minutes,
    show_default=True,
    help="Processor time of the whole run; given for a run that continues, it moves the end.",
)
@click.option("--batch", default=Settings.batch, show_default=True)
@click.option("--seconds", default=3.99, show_default=True, help="Length of a crop.")
@click.option(
    "--beside",
    default=0.5,
    show_default=True,
    help="Share of the steps whose mixes may hold such parts, with --others.",
)
@click.option("--lr", default=Settings.lr, show_default=True)
@click.option("--seed", default=Settings.seed, show_default=True)
@click.option(
    "--backbone",
    type=click.Choice(["UNet2d", "TokenUNet"]),
    default="UNet2d",
    show_default=True,
    help="Network, without --initial.",
)
@click.option("--network", default="{}", help="Backbone arguments as JSON, without --initial.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--save-minutes", default=4.0, show_default=True)
@click.option("--validate-minutes", default=12.0, show_default=True)
def main(
    corpus: Path,
    valid: Path | None,
    out: Path,
    others: Path | None,
    initial: str,
    minutes: float,
    batch: int,
    seconds: float,
    beside: float,
    lr: float,
    seed: int,
    backbone: str,
    network: str,
    precision: str,
    save_minutes: float,
    validate_minutes: float,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    data = StemCorpus(corpus / "train")
    parts = None if others is None else StemCorpus(others / "train")
    source = click.get_current_context().get_parameter_source
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        run = Training.resume(checkpoint, data, parts)
        if source("minutes") is not click.core.ParameterSource.DEFAULT:
            run.settings = replace(run.settings, minutes=minutes)
        click.echo(f"continues at step {run.step}, minute {run.minutes:.1f}", err=True)
    else:
        samples = round(seconds * 22050 / 512) * 512
        settings = Settings(
            minutes=minutes, batch=batch, samples=samples, lr=lr, seed=seed,
            beside=0.0 if parts is None else beside,
        )  # fmt: skip
        model = None if initial == "none" else load_model(initial)
        args = {"backbone": json.loads(network), "stft": {"n_fft": 2048}}
        if model is not None:
            args, backbone = arguments_of(model), backbone_of(model)
        if parts is not None:
            args["stft"] = {**args["stft"], "beside": BESIDE}
            args["backbone"] = {**args["backbone"], "parts": len(STEMS) + 1}
        run = Training(settings, {"class": f"{backbone}Regressor", "args": args}, data, parts)
        if model is None:
            run.prepare()
        else:
            run.start_from(model)
    crops = validation_crops(valid or corpus / "valid", 131_072)
    held_out = None
    if others is not None:
        held_out = validation_crops(others / "valid", 131_072) * np.float32(10 ** (STEM_DB / 20))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    saved = validated = logged = run.minutes
    window: list[Tensor] = []
    with (out / "log.jsonl").open("a", buffering=1) as log:
        while run.minutes < run.settings.minutes:
            window.append(run.advance(dtype))
            last = run.minutes >= run.settings.minutes
            if run.minutes - logged > 1 or last:
                by_stem = torch.cat(window).nanmean(0).tolist()
                line = {
                    "step": run.step,
                    "minutes": round(run.minutes, 2),
                    "hours_seen": round(run.seconds / 3600, 3),
                    "lr": learning_rate(run.settings, run.step, run.minutes),
                    "songs": run.songs,
                    "snr": [round(v, 3) for v in by_stem],
                }
                log.write(json.dumps(line) + "\n")
                click.echo(str(line), err=True)
                window.clear()
                logged = run.minutes
            if run.minutes - saved > save_minutes or last:
                run.save(checkpoint)
                run.songs = data.refresh()
                saved = run.minutes
            if run.minutes - validated > validate_minutes or last:
                scores = validate(run.average, crops, dtype, held_out)
                log.write(json.dumps({"step": run.step, "valid_si_sdri": scores}) + "\n")
                click.echo(f"step {run.step} validation SI-SDRi {scores}", err=True)
                validated = run.minutes


if __name__ == "__main__":
    main()
