r"""Stems that add up to the mix.

A posterior sampler leaves a small residual :math:`r = y - \sum_k \hat x_k` (MGDM guides down to a
noise level above zero and then denoises freely). The last step takes the sampler's stems for the
mean of a Gaussian whose variance in each time-frequency bin is the running power :math:`P_k` of the
stem there, and conditions that Gaussian on the mix, exactly:

.. math:: X_k = \hat X_k + \frac{P_k}{\sum_j P_j} \, R

so that the stem that is loud in a bin takes most of its residual and a silent stem none.

References:
    Differentiable consistency constraints for improved deep speech enhancement
    (Wisdom, Hershey, Wilson, Thorpe, Chinen, Patton, Saurous, 2019), section on mixture consistency
    https://arxiv.org/abs/1811.08521
"""

from __future__ import annotations

__all__ = ["consistent", "make_consistent", "residual_db"]

import math
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mgdm_audio.nn.stft import TightFrame
from mgdm_audio.operators import Mixture
from mgdm_audio.stream import with_context

_BLOCK = 512
"""Hops corrected at a time."""

_CONTEXT = 8
"""Hops of context at each side of a block: a window reaches 3 hops, a running mean 2 more."""


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


def make_consistent(stems: Tensor, mix: Tensor, n_fft: int = 2048) -> Tensor:
    """Distributes the residual over the stems, so that they add up to the mix.

    Arguments:
        stems: with shape (K, T).
        mix: with shape (T,).
        n_fft: window of the transform in samples; powers are smoothed over 5 frames and 3 bins.

    Returns:
        The corrected stems, with shape (K, T); their sum misses the mix by float rounding only.

    Raises:
        ValueError: if the lengths differ.
    """
    if stems.ndim != 2 or mix.shape != stems.shape[1:]:
        raise ValueError(f"expected (K, T) and (T,), got {tuple(stems.shape)}, {tuple(mix.shape)}")
    power = float(mix.square().mean())
    both = torch.cat([stems.to(mix), mix[None]])
    return torch.cat(list(consistent([both], len(mix), power, n_fft)), dim=-1)


def consistent(
    pieces: Iterable[Tensor], length: int, power: float, n_fft: int = 2048
) -> Iterator[Tensor]:
    """The same for a signal that comes in pieces, with a few seconds in memory at a time.

    Arguments:
        pieces: stems and mix below one another, each piece with shape (K + 1, n).
        length: samples T of the signal.
        power: mean square of the mix.
        n_fft: see :func:`make_consistent`.

    Returns:
        Pieces of the corrected stems, with shape (K, m).
    """
    frame: TightFrame | None = None
    hop = n_fft // 4
    edge = _CONTEXT * hop
    padded = length + -length % hop
    done = 0
    for signals in with_context(pieces, padded, _BLOCK * hop, edge):
        if frame is None:
            frame = TightFrame(n_fft).to(signals.device)
        stems, mix = signals[:-1], signals[-1]
        rest = mix - stems.sum(0)
        # Where every stem is silent they share alike.
        floor = power * 1e-12 + torch.finfo(mix.dtype).tiny
        bins = frame(torch.cat([stems, rest[None]]))
        share = _share(bins[-1], _smooth(bins[:-1].abs().square()) + floor)
        size = min(signals.shape[-1] - 2 * edge, length - done)
        inner = slice(edge, edge + size)
        corrected = stems[:, inner] + frame.inverse(share)[:, inner]
        # The rounding of the transforms, and what is left by it, shared alike.
        yield corrected + (mix[inner] - corrected.sum(0)) / len(corrected)
        done += size


def _smooth(power: Tensor) -> Tensor:
    """Mean of (K, frames, bins) over 5 frames and 3 bins around each."""
    return F.avg_pool2d(power, (5, 3), stride=1, padding=(2, 1), count_include_pad=False)


def _share(rest: Tensor, power: Tensor) -> Tensor:
    """Corrections (K, frames, bins) for a residual (frames, bins), complex: its parts in turn."""
    operator = Mixture(len(power))
    zero = torch.zeros_like(power).flatten(1)[None]
    real, imag = (
        operator.posterior_mean(zero, power.flatten(1)[None], part.flatten()[None, None], 0.0)
        for part in (rest.real, rest.imag)
    )
    return torch.complex(real[0], imag[0]).unflatten(-1, rest.shape)
