r"""From the stems of the mono mix to the stems of every channel, over the whole band.

The prior hears one channel at its own sample rate. What it cannot hear is inferred, in the
short-time Fourier domain at the input's rate. Let :math:`S_k` be the separated stems,
:math:`M = \sum_k S_k` the mono mix they add up to and :math:`Y_c` a channel. With running means
over a few frames :math:`\langle\cdot\rangle`,

.. math::
    X_{kc} = g_c S_k + G_k (Y_c - g_c M), \qquad
    g_c = \frac{\langle Y_c \bar M \rangle}{\langle |M|^2 \rangle}, \qquad
    G_k = \frac{\langle |S_k|^2 \rangle}{\sum_j \langle |S_j|^2 \rangle}.

:math:`g_c S_k` is the posterior's stem, panned as the mix is panned at this place; what a channel
holds besides is divided by Wiener gains :math:`G_k`. Above the prior's band there is no
:math:`S_k`: the gains are those of the stems' powers in the octave below its end, frame by frame.
Both terms add up to :math:`Y_c` over k.

So the mono mix inside the prior's band is separated by the posterior; panning and the upper band
are heuristics: two instruments in one bin are panned alike, and a stem gets air in proportion to
its treble. A channel without signal stays without.
"""

from __future__ import annotations

__all__ = ["spread", "spread_stems"]

from collections.abc import Iterable, Iterator
from math import ceil, log2

import torch
import torch.nn.functional as F
from torch import Tensor

from mgdm_audio.stream import with_context

_SECONDS = 0.04
"""Shortest STFT window; the next power of two is taken."""

_FRAMES = 5
"""Frames of a running mean."""

_BLOCK = 512
"""Hops of a block; blocks carry enough context to give what the whole signal would."""

_CONTEXT = 8
"""Hops of context at each side of a block: a window and a running mean reach 4 + 2."""


def spread_stems(stems: Tensor, channels: Tensor, sample_rate: int, prior_rate: int) -> Tensor:
    """Divides every channel among the stems.

    Arguments:
        stems: stems of the mono mix at the input's rate, with shape (K, T).
        channels: the input, with shape (C, T).
        sample_rate: of both, in hertz.
        prior_rate: the rate at which the stems were made, in hertz; they say nothing above half.

    Returns:
        The stems of every channel, with shape (K, C, T); over K they add up to the channels up to
        the rounding of the transforms.
    """
    both = torch.cat([stems.to(channels), channels])
    power = float(channels.square().mean())
    pieces = spread([both], len(stems), channels.shape[-1], power, sample_rate, prior_rate)
    return torch.cat([piece for piece, _ in pieces], dim=-1)


def spread(
    pieces: Iterable[Tensor],
    count: int,
    length: int,
    power: float,
    sample_rate: int,
    prior_rate: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same for a signal that comes in pieces, with some seconds in memory at a time.

    Arguments:
        pieces: stems and channels below one another, each piece with shape (K + C, n).
        count: number of stems K.
        length: samples T of the signal.
        power: mean square of the channels.
        sample_rate, prior_rate: see :func:`spread_stems`.

    Returns:
        Pieces of the stems of every channel, with shape (K, C, m), each with the channels (C, m)
        that they belong to.
    """
    n_fft = 2 ** ceil(log2(max(8.0, _SECONDS * sample_rate)))
    hop = n_fft // 4
    edge = _CONTEXT * hop
    band = 0.9 * min(prior_rate, sample_rate) / 2
    bins = torch.arange(n_fft // 2 + 1) * (sample_rate / n_fft)
    inside, octave = bins < band, (bins < band) & (bins >= band / 2)
    for both in with_context(pieces, length, _BLOCK * hop, edge):
        window = torch.hann_window(n_fft, dtype=both.dtype)
        # Below -120 dB of the mean power of a bin, what remains of a stem is rounding.
        floor = power * float(window.square().sum()) * 1e-12
        part = torch.stft(
            both, n_fft, hop, window=window, pad_mode="constant", return_complex=True, center=True
        )
        s, y = part[:count], part[count:]
        gains = _gains(s, inside, octave, floor)
        mono = s.sum(0)
        pan = _pan(y, mono, floor)
        x = pan * s[:, None] + gains[:, None] * (y - pan * mono)
        size = both.shape[-1]
        wave = torch.istft(x.flatten(0, 1), n_fft, hop, window=window, length=size)
        inner = slice(edge, size - edge)
        yield wave[:, inner].unflatten(0, x.shape[:2]), both[count:, inner]


def _mean(x: Tensor) -> Tensor:
    """Running mean along the last axis (frames), for real or complex input (A, F, N)."""
    if x.is_complex():
        return torch.complex(_mean(x.real), _mean(x.imag))
    return F.avg_pool1d(x, _FRAMES, 1, _FRAMES // 2)


def _pan(y: Tensor, mono: Tensor, floor: float) -> Tensor:
    """g: (C, F, N) from channels (C, F, N) and mono mix (F, N); 0 where there is no mono mix."""
    power = _mean(mono.abs().square()[None])
    pan = _mean(y * mono.conj()) / (power + floor)
    # A source in one of C channels has g = C in their mean; more is a mix that cancels.
    return pan * (len(y) / pan.abs().clamp_min(len(y)))


def _gains(s: Tensor, inside: Tensor, octave: Tensor, floor: float) -> Tensor:
    """G: (K, F, N), non-negative, one in sum over K; from stems (K, F, N)."""
    power = _mean(s.abs().square())
    alike = torch.full_like(power[:, :1], 1 / len(power))
    broad = _share(power[:, inside].sum(1, keepdim=True), alike, floor)
    upper = _share(power[:, octave].sum(1, keepdim=True), broad, floor)
    return torch.where(inside[:, None], _share(power, broad, floor), upper)


def _share(power: Tensor, fallback: Tensor, floor: float) -> Tensor:
    total = power.sum(0, keepdim=True)
    least = torch.finfo(total.dtype).tiny
    return torch.where(total > floor, power / total.clamp_min(least), fallback)
