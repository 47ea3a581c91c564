"""What the recipes for networks of STFT bins share: their songs, optimiser and learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from recipes.prior.data import Augmentation, StemCorpus
from recipes.training import trainer
from recipes.training.resident import ResidentSongs
from recipes.training.trainer import Batch


@dataclass(frozen=True, kw_only=True)
class Settings(trainer.Settings):
    """See `trainer.Settings`.

    Arguments:
        decay_from: the share of the run after which the learning rate falls (cosine to 1 %).
    """

    decay_from: float


def usable(corpus: StemCorpus, resident: ResidentSongs | None) -> int:
    """Reads a corpus's index and says how many of its songs can be used.

    Arguments:
        corpus: the songs.
        resident: those on the device, which has room for some of them; None without.

    Raises:
        ValueError: if there is none, or room for none.
    """
    songs = corpus.refresh()
    if not songs:
        raise ValueError(f"{corpus.folder} holds no song: render some first (recipes/corpus)")
    if resident is None:
        return songs
    if not (room := min(songs, resident.count())):
        raise ValueError(
            f"--resident {resident.hours:g} has room for no song of {corpus.folder}: "
            "give more hours"
        )
    return room


class SongTask(trainer.Task):
    """A task on crops of rendered songs.

    Attributes:
        corpus: the training songs.
        augmentation: how crops are varied.
        resident: the songs on the device, where the items are made there.
        warm: steps over which the learning rate rises.
    """

    settings: Settings
    corpus: StemCorpus
    augmentation: Augmentation
    resident: ResidentSongs | None = None
    warm: ClassVar[int]
    clip = 1.0

    def optimiser(self, net: nn.Module) -> torch.optim.Optimizer:
        """AdamW with betas 0.9 and 0.99 and weight decay 0.01, but none on vectors."""
        matrices = [p for p in net.parameters() if p.ndim >= 2]
        vectors = [p for p in net.parameters() if p.ndim < 2]
        return torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}],
            lr=self.settings.lr,
            betas=(0.9, 0.99),
        )

    def rate(self, step: int) -> float:
        """Warm-up, constant, then a cosine down to 1 % at the end."""
        s = self.settings
        start = s.decay_from * s.steps
        done = min(1.0, max(0.0, (step - start) / max(1.0, s.steps - start)))
        decay = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))
        return s.lr * min(1.0, (step + 1) / self.warm) * decay

    def songs(self) -> int:
        """See `Task.songs`."""
        return usable(self.corpus, self.resident)

    def reside(self, device: torch.device, hours: float) -> None:
        """See `Task.reside`."""
        self.resident = ResidentSongs(self.corpus, device, hours)

    def crop(self, rng: np.random.Generator, songs: int) -> dict[str, np.ndarray]:
        """The stems of an item: "clean" (4, T) or, where they are made on the device, "plan"."""
        arguments = (rng, self.settings.samples, songs, self.augmentation)
        if self.resident is None:
            return {"clean": self.corpus.crop(*arguments)}
        return {"plan": self.corpus.plan(*arguments)}

    def complete(self, batch: Batch) -> Batch:
        """See `Task.complete`: the stems of plans."""
        if "plan" not in batch or self.resident is None:
            return batch
        batch = dict(batch)
        clean = self.resident.played(batch.pop("plan"), self.settings.samples)
        return batch | {"clean": clean}

    def crops_to_measure(self, count: int = 200) -> Iterator[Tensor]:
        """Stems (4, T) of items like those of training, on the device where they are made there."""
        rng = np.random.default_rng(self.settings.seed + 1)
        songs = self.songs()
        for _ in range(count):
            item = {key: torch.from_numpy(x)[None] for key, x in self.crop(rng, songs).items()}
            if self.resident is not None:
                item = {key: x.to(self.resident.device) for key, x in item.items()}
            yield self.complete(item)["clean"][0]
