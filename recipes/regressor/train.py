"""Trains a regressor on a rendered corpus: the mix and some of the stems in, the others out.

Each item's mix is the sum of its stems; none, one or two of them, drawn at random, are given
(an orderless NADE; of the last unknown stem nothing is left to learn). `loss.py` says what is
asked of the answers, `validation.py` how they are scored on the way.

With `--others`, parts of instruments that no stem is (recipes/corpus/others.py), a share of the
steps has mixes with such a part, or with the bare possibility of one; the network is told which
kind it sees, and what its estimates leave of the mix is one stem more in the loss.

The network starts from nothing, or from the weights of another regressor or of a prior, to which
the unknown stems are pure noise (`--initial`). The run can be stopped at any time and continues
from its last checkpoint by the same command. Several GPUs are used by the same command.
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

from mgdm_audio import STEMS, hub
from mgdm_audio.nn import RegressorMean, SpectralRegressor, build
from recipes.prior.data import GAIN, Augmentation, StemCorpus, validation_crops
from recipes.regressor.loss import bands, losses, other_power
from recipes.regressor.validation import validate
from recipes.training import songs, trainer
from recipes.training.command import continued, samples_of, train, training_options
from recipes.training.resident import ResidentSongs
from recipes.training.songs import SongTask, usable
from recipes.training.trainer import Batch, Trainer

BESIDE = 60.0  # label of the unknown stems where the mix may hold another part
# Gain of such a part: at -5.5 dB it is as loud as a stem, and so it is in validation; voices are
# louder, and easier to learn.
STEM_DB, OTHER_DB, OTHER_STD_DB = -5.5, -2.0, 5.0
VALIDATION_SAMPLES = 131_072


@dataclass(frozen=True, kw_only=True)
class Settings(songs.Settings):
    """Everything that decides the run, kept with the checkpoint.

    Arguments:
        steps: optimiser steps of the whole run; the learning rate depends on it.
        batch: crops a step.
        samples: length of a crop in samples, a multiple of the STFT hop.
        lr: peak learning rate (AdamW, betas 0.9 and 0.99, no weight decay on vectors).
        decay_from: the share of the run after which the learning rate falls (cosine to 1 %).
        given: shares of items with no, one and two given stems.
        beside: the share of steps with mixes that may hold a part beside the stems.
        absent: the share of their items that hold none.
        timbre: the share of stems whose spectral envelope is changed, see `recipes.prior.timbre`.
        ema: decay of the averaged weights per step.
        seed: seed of weights, masks and data.
        initial: the model whose weights the run starts from, with its checksum; empty for none.
    """

    steps: int = 5000
    batch: int = 3
    samples: int = 88_064
    lr: float = 6e-4
    decay_from: float = 0.3
    given: tuple[float, float, float] = (0.7, 0.15, 0.15)
    beside: float = 0.0
    absent: float = 0.25
    timbre: float = 0.0
    ema: float = 0.999
    seed: int = 0
    initial: str = ""


def measure_sigma_data(net: SpectralRegressor, crops: Iterable[Tensor]) -> Tensor:
    """Root mean square of each stem's bins over crops, (K, bins)."""
    device = net.sigma_data.device
    power = torch.stack([net.frame(c.to(device)).abs().square().mean(1) for c in crops])
    return power.mean(0).clamp_min(net.known**2).sqrt()


class RegressorTask(SongTask):
    """Separation of remixed songs.

    Arguments:
        settings: of the run.
        network: class and arguments of the network.
        corpus: the training songs.
        others: parts of instruments that no stem is; not needed where `settings.beside` is 0, nor
            for a run that is only looked at.
        model: what the run starts from; None for nothing, and for a run that goes on.
        crops: validation songs, (N, 4, T); none for a run that is not validated.
        beside: parts to go with them, (N, 1, T), or None.

    Raises:
        ValueError: if there is not one part for each song.
    """

    settings: Settings
    resident_others: ResidentSongs | None = None
    warm = 100

    def __init__(
        self,
        settings: Settings,
        network: dict[str, Any],
        corpus: StemCorpus,
        others: StemCorpus | None = None,
        model: hub.Prior | hub.Regressor | None = None,
        crops: np.ndarray | None = None,
        beside: np.ndarray | None = None,
    ) -> None:
        self.settings, self.network, self.corpus = settings, network, corpus
        self.others, self.model = others, model
        self.stems = (*STEMS, "other") if settings.beside else STEMS
        self.augmentation = Augmentation(
            equaliser_db=4.0, speed=0.5, fastest=0.25, timbre=settings.timbre
        )
        self.crops = np.zeros((0, 4, 0), np.float32) if crops is None else crops
        if beside is not None and len(beside) != len(self.crops):
            raise ValueError(
                f"there are {len(beside)} other parts for {len(self.crops)} validation songs; "
                "render as many (recipes/corpus/others.py)"
            )
        self.beside = beside
        self.n_fft: int = network["args"]["stft"]["n_fft"]
        self.membership = bands(self.n_fft // 2 + 1)

    def build(self) -> SpectralRegressor:
        """See `Task.build`."""
        net = build(self.network["class"], self.network["args"])
        if not isinstance(net, SpectralRegressor):
            raise ValueError(
                f"'{self.network['class']}' is no regressor of STFT bins, which this recipe trains"
            )
        return net

    def prepare(self, net: nn.Module) -> None:
        """Takes the weights of the model to start from, or measures scalings on the corpus."""
        assert isinstance(net, SpectralRegressor)
        if self.model is not None:
            net.load_state_dict(widened(network_of(self.model).state_dict(), net.state_dict()))
            return
        net.sigma_data.copy_(measure_sigma_data(net, self.crops_to_measure()))

    def parts(self) -> int:
        """See `Task.parts`: the other parts."""
        return 0 if self.others is None else usable(self.others, self.resident_others)

    def reside(self, device: torch.device, hours: float) -> None:
        """See `Task.reside`: the other parts as well."""
        super().reside(device, hours)
        if self.others is not None:
            self.resident_others = ResidentSongs(self.others, device, hours, rows=1)

    def item(
        self, rng: np.random.Generator, number: int, songs: int, parts: int = 0
    ) -> dict[str, np.ndarray]:
        """True stems "clean" (4, T) and which of them are "known" (4,).

        In the steps whose mixes may hold one: the "other" part (1, T), silent or not, and the
        "power" by frequency that such a part is taken to have, (bins,). Where items are made on
        the device, "plan" and "other_plan" in the place of the audio, and no power.

        Raises:
            ValueError: if the run is one with other parts and there are none.
        """
        s = self.settings
        item = self.crop(rng, songs)
        known = np.zeros(4, bool)
        known[: rng.choice(3, p=s.given)] = True
        rng.shuffle(known)
        item["known"] = known
        if s.beside and self.others is None:
            raise ValueError("this run needs parts of other instruments: give --others")
        # One kind of mix a step, the same in all processes.
        step = np.random.default_rng([s.seed, 2, number // s.batch])
        if self.others is None or step.random() >= s.beside:
            return item
        absent = rng.random() < s.absent
        gain = 0.0 if absent else OTHER_DB + OTHER_STD_DB * rng.normal()
        plan = self.others.single_plan(rng, s.samples, parts, gain, self.augmentation)
        plan[:, GAIN] *= not absent
        if self.resident_others is not None:
            return item | {"other_plan": plan}
        other = self.others.played(plan, s.samples)
        mix = torch.from_numpy(item["clean"].sum(0) + other[0])
        return item | {"other": other, "power": other_power(mix, self.n_fft).numpy()}

    def complete(self, batch: Batch) -> Batch:
        """See `Task.complete`: stems, other parts and their powers."""
        batch = super().complete(batch)
        if "other_plan" not in batch or self.resident_others is None:
            return batch
        batch = dict(batch)
        other = self.resident_others.played(batch.pop("other_plan"), self.settings.samples)
        power = other_power(batch["clean"].sum(1) + other[:, 0], self.n_fft)
        return batch | {"other": other, "power": power}

    def losses(self, net: nn.Module, batch: Batch) -> Tensor:
        """See `recipes.regressor.loss`; (B, 5) in the steps with other parts."""
        assert isinstance(net, SpectralRegressor)
        beside = (batch["other"], batch["power"]) if "other" in batch else None
        clean, known = batch["clean"], batch["known"]
        return losses(net, clean, known, self.membership.to(clean.device), beside)[0]

    def asked(self, batch: Batch) -> Tensor:
        """The stems that are not given, and what is beside them."""
        unknown = ~batch["known"]
        return nn.functional.pad(unknown, (0, 1), value=True) if "other" in batch else unknown

    def level(self, batch: Batch) -> Tensor:
        """The number of given stems; -1 where there may be another part."""
        given = batch["known"].sum(1)
        return torch.full_like(given, -1) if "other" in batch else given

    def label(self, level: float) -> str:
        """See `Task.label`."""
        return "beside" if level < 0 else f"{level:.0f} given"

    @torch.no_grad()
    def validate(self, net: nn.Module) -> dict[str, float]:
        """Loss on fixed crops, with no stem given and with two."""
        assert isinstance(net, SpectralRegressor)
        device = net.sigma_data.device
        found: dict[str, list[float]] = {"0 given": [], "2 given": []}
        for number, crop in enumerate(self.crops):
            clean = torch.from_numpy(crop)[None].to(device)
            for values, given in zip(found.values(), (0, 2), strict=True):
                known = torch.zeros(1, 4, dtype=torch.bool)
                known[0, [(number + k) % 4 for k in range(given)]] = True
                known = known.to(device)
                loss, _ = losses(net, clean, known, self.membership.to(device))
                values.append(float(loss.sum() / (~known).sum()))
        return {name: round(float(np.mean(v)), 4) for name, v in found.items() if v}

    def score(self, net: nn.Module) -> dict[str, float]:
        """See `recipes.regressor.validation`; names like "bass", "bass, two given"."""
        assert isinstance(net, SpectralRegressor)
        if not len(self.crops):
            return {}
        found = validate(net, self.crops, others=self.beside)
        scores = dict(zip(STEMS, found["none"], strict=True))
        scores |= {f"{k}, two given": v for k, v in zip(STEMS, found["two"], strict=True)}
        beside = zip((*STEMS, "other"), found.get("beside", []), strict=False)
        return scores | {f"{k}, beside": v for k, v in beside}


def resume(path: Path, corpus: StemCorpus, others: StemCorpus | None = None) -> Trainer:
    """A run as it was when a checkpoint was written."""
    state = trainer.load_state(path)
    run = Trainer(RegressorTask(Settings(**state["settings"]), state["network"], corpus, others))
    run.load(state)
    return run


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


def goes_on(state: dict[str, Any], others: Path | None, initial: str, beside: float) -> Settings:
    """The settings of a run that goes on, see `continued`; options of the command as they are."""
    settings, network = Settings(**state["settings"]), state["network"]
    kept: dict[str, Any] = {"timbre": settings.timbre}
    if others is not None:  # without them --beside says nothing, also at the start
        if beside and not settings.beside:
            kept["others"] = None
        kept["beside"] = settings.beside
    name = settings.initial.rpartition(" ")[0]
    same = (
        initial == "none"
        if not name
        else initial != "none" and name == hub.read_config(hub.find(initial)).name
    )
    kept["initial"] = initial if same else name or "none"
    if name:  # whose network it is, whatever was asked for
        return continued(settings, **kept)
    backbone = {k: v for k, v in network["args"]["backbone"].items() if k != "parts"}
    kept["backbone"] = network["class"].removesuffix("Regressor")
    return continued(settings, backbone, **kept)


@click.command(help=__doc__)
@click.option("--corpus", type=click.Path(path_type=Path), required=True, help="Corpus folder.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run folder.")
@click.option("--others", type=click.Path(path_type=Path), help="Folder of the train, valid parts.")
@click.option("--initial", default="none", show_default=True, help="A model, or 'none'.")
@click.option(
    "--steps",
    default=Settings.steps,
    show_default=True,
    help="Length of the run; given for a run that continues, it moves the end (and the decay).",
)
@click.option("--batch", default=Settings.batch, show_default=True, help="Over all processes.")
@click.option("--seconds", default=3.99, show_default=True, help="Length of a crop.")
@click.option(
    "--beside",
    default=0.5,
    show_default=True,
    help="Share of the steps whose mixes may hold such parts, with --others.",
)
@click.option(
    "--timbre",
    default=Settings.timbre,
    show_default=True,
    help="Share of stems whose spectral envelope is changed.",
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
@training_options
def main(
    corpus: Path,
    out: Path,
    others: Path | None,
    initial: str,
    steps: int,
    batch: int,
    seconds: float,
    beside: float,
    timbre: float,
    lr: float,
    seed: int,
    backbone: str,
    network: str,
    options: dict[str, Any],
) -> None:
    def make(state: dict[str, Any] | None) -> RegressorTask:
        data = StemCorpus(corpus / "train")
        crops = validation_crops(corpus / "valid", VALIDATION_SAMPLES)
        parts, held_out = None, None
        if others is not None:
            parts = StemCorpus(others / "train")
            held_out = validation_crops(others / "valid", VALIDATION_SAMPLES)
            held_out = held_out * np.float32(10 ** (STEM_DB / 20))
        if state is not None:
            settings = goes_on(state, others, initial, beside)
            return RegressorTask(settings, state["network"], data, parts, None, crops, held_out)
        model = None if initial == "none" else load_model(initial)
        settings = Settings(
            steps=steps, batch=batch, samples=samples_of(seconds), lr=lr, seed=seed,
            beside=0.0 if parts is None else beside, timbre=timbre,
            initial="" if model is None else f"{model.name} {model.sha256}",
        )  # fmt: skip
        args: dict[str, Any] = {"backbone": json.loads(network), "stft": {"n_fft": 2048}}
        kind = backbone
        if model is not None:
            args, kind = arguments_of(model), backbone_of(model)
        if parts is not None:
            args["stft"] = {**args["stft"], "beside": BESIDE}
            args["backbone"] = {**args["backbone"], "parts": len(STEMS) + 1}
        chosen = {"class": f"{kind}Regressor", "args": args}
        return RegressorTask(settings, chosen, data, parts, model, crops, held_out)

    train(make, out, options)


if __name__ == "__main__":
    main()
