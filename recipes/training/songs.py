"""What the recipes for networks of STFT bins share: their songs, optimiser and learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from recipes.prior.data import Augmentation, StemCorpus
from recipes.training import trainer


@dataclass(frozen=True, kw_only=True)
class Settings(trainer.Settings):
    """See `trainer.Settings`.

    Arguments:
        decay_from: the share of the run after which the learning rate falls (cosine to 1 %).
    """

    decay_from: float


class SongTask(trainer.Task):
    """A task on crops of rendered songs.

    Attributes:
        corpus: the training songs.
        augmentation: how crops are varied.
        warm: steps over which the learning rate rises.
    """

    settings: Settings
    corpus: StemCorpus
    augmentation: Augmentation
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
        return self.corpus.refresh()
