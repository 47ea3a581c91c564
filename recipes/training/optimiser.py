"""The optimiser and the learning rate of the recipes for networks of STFT bins."""

from __future__ import annotations

import math

import torch
from torch import nn


def adamw(net: nn.Module, lr: float) -> torch.optim.AdamW:
    """AdamW with betas 0.9 and 0.99 and weight decay 0.01, but none on vectors."""
    matrices = [p for p in net.parameters() if p.ndim >= 2]
    vectors = [p for p in net.parameters() if p.ndim < 2]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}],
        lr=lr,
        betas=(0.9, 0.99),
    )


def warm_cosine(step: int, *, steps: int, lr: float, warm: int, decay_from: float) -> float:
    """Learning rate of a step: warm-up, constant, then a cosine down to 1 % at the end.

    Arguments:
        step: from 0.
        steps: of the whole run.
        lr: the peak.
        warm: steps of the warm-up.
        decay_from: the share of the run after which the rate falls.
    """
    start = decay_from * steps
    done = min(1.0, max(0.0, (step - start) / max(1.0, steps - start)))
    return lr * min(1.0, (step + 1) / warm) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
