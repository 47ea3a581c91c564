r"""Stems that add up to the mix.

A posterior sampler leaves a small residual :math:`r = y - \sum_k \hat x_k` (MGDM guides down to a
noise level above zero and then denoises freely). The last step takes the sampler's stems for the
mean of a Gaussian whose variance :math:`v_k(t)` is the running power of each stem, and conditions
that Gaussian on the mix, exactly:

.. math:: x_k(t) = \hat x_k(t) + \frac{v_k(t)}{\sum_j v_j(t)} \, r(t)

so that a loud stem takes most of the residual, which is masked there, and a silent stem none.

References:
    Differentiable consistency constraints for improved deep speech enhancement
    (Wisdom, Hershey, Wilson, Thorpe, Chinen, Patton, Saurous, 2019), section on mixture consistency
    https://arxiv.org/abs/1811.08521
"""

from __future__ import annotations

__all__ = ["make_consistent", "residual_db", "running_power"]

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mgdm_audio.operators import Mixture

_BLOCK = 1 << 20
"""Samples corrected at a time (the operator works in float64)."""


def residual_db(stems: Tensor, mix: Tensor) -> float:
    """Level of what the stems leave unexplained, relative to the mix.

    Arguments:
        stems: with shape (K, T).
        mix: with shape (T,).

    Returns:
        The ratio of the root mean squares in decibels; minus infinity where nothing is left.
    """
    rest = float((mix.double() - stems.double().sum(0)).square().sum())
    whole = float(mix.double().square().sum())
    if rest == 0:
        return -math.inf
    return 10 * math.log10(rest / whole) if whole > 0 else math.inf


def running_power(x: Tensor, hop: int) -> Tensor:
    """Smoothed square of signals: block means, smoothed over three blocks, joined by lines.

    Arguments:
        x: with shape (K, T).
        hop: samples of a block.

    Returns:
        With shape (K, T); exactly zero where a signal is zero for two blocks around.
    """
    length = x.shape[-1]
    blocks = F.pad(x, (0, -length % hop)).unflatten(-1, (-1, hop)).square().mean(-1)
    around = F.pad(blocks[None], (1, 1), mode="replicate")[0]
    smooth = (around[:, :-2] + 2 * around[:, 1:-1] + around[:, 2:]) / 4
    return F.interpolate(smooth[None], scale_factor=float(hop), mode="linear")[0, :, :length]


def make_consistent(stems: Tensor, mix: Tensor, hop: int = 256) -> Tensor:
    """Distributes the residual over the stems, so that they add up to the mix.

    Arguments:
        stems: with shape (K, T).
        mix: with shape (T,).
        hop: samples of a block of the running power, about 10 ms.

    Returns:
        The corrected stems, with shape (K, T); their sum misses the mix by float rounding only.
    """
    power = running_power(stems.to(mix), hop)
    # Where every stem is silent they share alike.
    power = power + power.max() * 1e-12 + torch.finfo(power.dtype).tiny
    operator = Mixture(len(stems))
    corrected = torch.empty_like(power)
    for start in range(0, mix.shape[-1], _BLOCK):
        part = slice(start, start + _BLOCK)
        corrected[:, part] = operator.posterior_mean(
            stems[None, :, part].to(mix), power[None, :, part], mix[None, None, part], 0.0
        )[0]
    return corrected
