r"""From the stems of the mono mix to the stems of every channel, over the whole band.

The prior hears one channel at its own sample rate. What it cannot hear is inferred here, in the
short-time Fourier domain at the input's rate, by multichannel Wiener filters whose parameters are
learnt from the separated stems, some seconds at a time. Let :math:`S_k` be the stems of the mono
mix :math:`M = \sum_k S_k`, :math:`Y` the vector of the C channels, of which :math:`M` is the mean
:math:`a^T Y`. A stem in all channels is modelled as its mono stem at a place of its own, and a
diffuse part that its mono stem says nothing of:

.. math:: X_k = d_k S_k + Z_k, \qquad a^T d_k = 1, \quad a^T Z_k = 0.

**Places.** In bands of a third of an octave, :math:`d_k` is the least-squares solution of
:math:`Y \approx \sum_k d_k S_k` (complex: a delay between channels is a phase), pulled slightly to
the place :math:`g` of the whole mix, so that a stem that does not play there is placed like it.

**Diffuse part, inside the prior's band.** What is left, :math:`E = Y - \sum_k d_k S_k`, is divided
by Wiener gains :math:`w_k \langle|S_k|^2\rangle / \sum_j w_j \langle|S_j|^2\rangle`, in which
:math:`w_k` says how diffuse a stem is in a band (two steps of expectation maximisation).

**Above the prior's band** there is no :math:`S_k`. A stem's power there is taken to follow its
power :math:`u_k` in the octave below in time, with a spectrum :math:`h_k` of its own:
:math:`\langle|Y|^2\rangle \approx \sum_k u_k(n) h_k(f)`, a non-negative factorisation (Itakura and
Saito) of which one factor is known. With spatial covariances
:math:`R_k = d_k d_k^H + \delta_k I` of the highest band below,

.. math:: X_k = u_k h_k R_k \Big(\sum_j u_j h_j R_j\Big)^{-1} Y.

Everything adds up to :math:`Y` over k, and inside the band the mean of the channels of
:math:`X_k` is :math:`S_k`: there the posterior decides what is heard, and only where it is heard
from is inferred. A hi-hat keeps its air because it is the stem whose treble comes and goes with it.

References:
    Under-determined reverberant audio source separation using a full-rank spatial covariance model
    (Duong, Vincent, Gribonval, 2010)
    https://arxiv.org/abs/0912.0171

    Nonnegative matrix factorization with the Itakura-Saito divergence
    (Fevotte, Bertin, Durrieu, 2009)
    https://doi.org/10.1162/neco.2008.04-08-771
"""

from __future__ import annotations

__all__ = ["spread", "spread_stems"]

from collections.abc import Iterable, Iterator
from itertools import pairwise
from math import ceil, log2

import torch
import torch.nn.functional as F
from torch import Tensor

from mgdm_audio.stream import with_context

_SECONDS = 0.04
"""Shortest STFT window; the next power of two is taken."""

_BLOCK = 512
"""Hops of a block, for which parameters are learnt together; fewer for many channels."""

_CONTEXT = 96
"""Hops that a block is longer at each side, for learning and for the fade between blocks."""

_FADE = 64
"""Hops over which one block's parameters fade into the next one's."""

_FRAMES = 3
"""Frames of a running mean of powers."""

_PULL = 1e-2
"""Weight of the place of the whole mix against a stem's own power."""

_STEPS = 15
"""Multiplicative updates of the spectra above the band."""

_ENTRIES = 1 << 24
"""Entries of the matrices that are solved at a time: as many as a block of eight channels has."""


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
    # Squares of what is all but silent leave float32, and nothing but silence has no power.
    power = float(channels.square().mean()) or float(channels.double().square().mean())
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
    # Beyond a short signal there is nothing to learn from.
    edge, fade = min(_CONTEXT, length // hop + 8) * hop, _FADE * hop
    bands = _bands(n_fft, sample_rate, prior_rate)
    tail: Tensor | None = None
    signal = iter(pieces)
    first = next(signal)
    if power == 0:
        # Nothing is learnt from silence, whatever the stems are said to be: models of no power are
        # singular.
        for piece in _with_first(first, signal):
            channels = piece[count:]
            yield channels.new_zeros(count, *channels.shape), channels
        return
    # As much in memory for a few channels at 44.1 kHz as for many at a high rate.
    room = 2 * 2048 * _BLOCK // (n_fft * max(1, len(first) - count))
    block = min(_BLOCK, max(2 * _FADE, room)) * hop
    # Near unit level: squares of the powers of a quiet recording leave float32. A power of two, so
    # that nothing is rounded.
    level = 2.0 ** round(log2(power) / 2) if power > 0 else 1.0
    power /= level**2
    for given in with_context(_with_first(first, signal), length, block, edge):
        both = given / level
        window = torch.hann_window(n_fft, dtype=both.dtype)
        # Below -120 dB of the mean power of a bin, what remains of a stem is rounding.
        floor = power * float(window.square().sum()) * 1e-12
        part = torch.stft(
            both, n_fft, hop, window=window, pad_mode="constant", return_complex=True, center=True
        )
        x = _divide(part[:count].mT, part[count:].mT, bands, floor).mT
        size = both.shape[-1]
        wave = torch.istft(x.flatten(0, 1), n_fft, hop, window=window, length=size)
        wave = wave.unflatten(0, x.shape[:2])
        out = wave[..., edge : size - edge]
        if tail is not None:
            n = min(fade, out.shape[-1])
            weight = (torch.arange(n, dtype=out.dtype) + 0.5) / n
            faded = tail[..., :n] + weight * (out[..., :n] - tail[..., :n])
            out = torch.cat([faded, out[..., n:]], dim=-1)
        tail = wave[..., size - edge : size - edge + fade].clone()
        yield out * level, given[count:, edge : size - edge]


def _with_first(first: Tensor, rest: Iterator[Tensor]) -> Iterator[Tensor]:
    yield first
    yield from rest


def _bands(n_fft: int, sample_rate: int, prior_rate: int) -> list[int]:
    """The first bin of each band and, last, the first bin above the prior's band."""
    bins = torch.arange(n_fft // 2 + 1) * (sample_rate / n_fft)
    end = 0.9 * min(prior_rate, sample_rate) / 2
    # Thirds of an octave below the end of the band, down to its 128th part.
    third = (3 * torch.log2(end / bins[bins < end].clamp_min(1e-9))).floor().clamp(0, 20)
    widths = torch.unique_consecutive(third, return_counts=True)[1]
    return [0, *widths.cumsum(0).tolist()]


# From here on N frames come before F bins: so the transform leaves them, and a band is a slice.


def _divide(s: Tensor, y: Tensor, bands: list[int], floor: float) -> Tensor:
    """X: (K, C, N, F) from stems (K, N, F) and channels (C, N, F)."""
    top, end = bands[-2], bands[-1]
    power = _mean(_power(s))
    alike = torch.full_like(power[..., :1], 1 / len(s))
    x, rest = _places(s, y, bands, floor)
    below = power[..., :end]
    broad = _share(below.sum(-1, keepdim=True), alike, floor)
    gains = _diffuse_gains(below, rest[..., :end], bands, broad, floor)
    x[..., :end] += gains[:, None] * rest[..., :end]
    if end < s.shape[-1]:
        octave = power[..., bands[-min(4, len(bands))] : end].sum(-1)
        x[..., end:] += _above(octave, broad, x[..., top:end], rest[..., end:], floor)
    return x


def _places(s: Tensor, y: Tensor, bands: list[int], floor: float) -> tuple[Tensor, Tensor]:
    """d_k S_k, (K, C, N, F), and what they leave of the channels, (C, N, F)."""
    places, crosses, grams = [], [], []
    for low, high in pairwise(bands):
        stems, channels = (x[..., low:high].flatten(1) for x in (s, y))
        mono = stems.sum(0)
        total = _power(mono).sum() + floor
        place = channels @ mono.conj() / total
        # A source in one of C channels has place C in their mean; more is a mix that cancels.
        place = place * (len(y) / place.abs().clamp_min(len(y)))
        places.append(place)
        crosses.append((channels - place[:, None] * mono) @ stems.mH)
        grams.append(stems @ stems.mH)
    place, cross, gram = (torch.stack(found) for found in (places, crosses, grams))
    own = gram.diagonal(dim1=-2, dim2=-1).real
    system = gram + torch.diag_embed(_PULL * own + floor).to(gram)
    # D - g solves (D - g) (gram + pull) = cross.
    shift = torch.linalg.solve(system.mT, cross.mT).mT  # (bands, C, K)
    # No further off than that, and still nothing in the mean of the channels.
    d = place[..., None] + shift * (len(y) / shift.abs().amax(1, keepdim=True).clamp_min(len(y)))
    # Above the band a stem has the place of the highest band.
    widths = [high - low for low, high in pairwise([*bands[:-1], s.shape[-1]])]
    # Laid out like the stems, or the product would not be.
    d = d.permute(2, 1, 0).repeat_interleave(torch.tensor(widths), dim=2).contiguous()
    placed = d[:, :, None] * s[:, None]
    return placed, y - placed.sum(0)


def _diffuse_gains(
    power: Tensor, rest: Tensor, bands: list[int], broad: Tensor, floor: float
) -> Tensor:
    """Shares (K, N, F) of what is left inside the band, from the stems' powers there."""
    widths = [high - low for low, high in pairwise(bands)]

    def by_band(x: Tensor) -> Tensor:
        """Sums over frames and bins, (K, bands)."""
        return torch.stack([part.sum(-1) for part in x.sum(1).split(widths, dim=-1)], dim=-1)

    gains = _share(power, broad, floor)
    left = _power(rest).sum(0)
    own = by_band(power) + floor
    for _ in range(2):
        # How diffuse a stem is in a band: its share of what is left, relative to its power.
        weight = by_band(gains * left) / own
        weight = weight / weight.sum(0).clamp_min(torch.finfo(weight.dtype).tiny)
        weight = weight.repeat_interleave(torch.tensor(widths), dim=1)
        gains = _share(power * (weight[:, None] + 1e-3), broad, floor)
    return gains


def _above(octave: Tensor, broad: Tensor, highest: Tensor, y: Tensor, floor: float) -> Tensor:
    """X above the band, (K, C, N, F'), from the channels there, (C, N, F').

    Arguments:
        octave: power of the stems in the octave below, (K, N).
        broad: shares of the stems over the whole band, (K, N, 1), for where the octave is empty.
        highest: stems of the channels in the highest band below, (K, C, N, F'').
    """
    level = octave.mean().clamp_min(floor)
    u = octave / level + 1e-6 * broad[..., 0] + 1e-9  # (K, N)
    power = _mean(_power(y).sum(0)[None])[0] + floor  # (N, F')
    h = (power.mean(0) / u.sum(0).mean()).expand(len(u), -1).clone()  # (K, F')
    for _ in range(_STEPS):
        model = u.T @ h
        h = h * ((u @ (power / model**2)) / (u @ (1 / model))).sqrt()
    v = u[:, :, None] * h[:, None]  # (K, N, F')
    if len(y) == 1:
        return (v / v.sum(0))[:, None] * y
    covariance = torch.einsum("kcnf,kdnf->kcd", highest, highest.conj())
    trace = covariance.diagonal(dim1=-2, dim2=-1).real.sum(-1) / len(y)
    eye = torch.eye(len(y)).to(covariance)
    # A stem that does not play there is anywhere.
    spatial = (covariance + (1e-3 * trace + floor)[:, None, None] * eye) / (
        (1.001 * trace + floor)[:, None, None]
    )
    x = torch.empty(len(v), *y.shape, dtype=y.dtype)
    # Each frame has matrices of its own, whose size grows with the square of the channels.
    frames = max(1, _ENTRIES // (y.shape[-1] * len(y) ** 2))
    for start in range(0, y.shape[1], frames):
        part = slice(start, start + frames)
        # Powers are real, and a real product is half the work.
        system = torch.einsum("knf,kcdr->nfcdr", v[:, part], torch.view_as_real(spatial))
        solved = torch.linalg.solve(
            torch.view_as_complex(system.contiguous()), y[:, part].permute(1, 2, 0)[..., None]
        )
        x[:, :, part] = v[:, None, part] * torch.einsum("kcd,nfd->kcnf", spatial, solved[..., 0])
    # The solution's rounding, in proportion to the powers.
    return x + (v / v.sum(0))[:, None] * (y - x.sum(0))


def _power(x: Tensor) -> Tensor:
    """Square of the absolute value, without the root that torch takes on the way."""
    return x.real.square() + x.imag.square()


def _mean(x: Tensor) -> Tensor:
    """Running mean over the frames of (A, N, F)."""
    return F.avg_pool2d(x, (_FRAMES, 1), 1, (_FRAMES // 2, 0), count_include_pad=False)


def _share(power: Tensor, fallback: Tensor, floor: float) -> Tensor:
    """Shares of (K, ...) that add up to one over K; those of `fallback` where there is nothing."""
    total = power.sum(0, keepdim=True)
    least = torch.finfo(total.dtype).tiny
    return torch.where(total > floor, power / total.clamp_min(least), fallback)
