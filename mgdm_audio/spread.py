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
    # Beyond a short signal there is nothing to learn from.
    edge, fade = min(_CONTEXT, length // hop + 8) * hop, _FADE * hop
    bands = _bands(n_fft, sample_rate, prior_rate)
    tail: Tensor | None = None
    signal = iter(pieces)
    first = next(signal)
    # As much in memory for a few channels at 44.1 kHz as for many at a high rate.
    room = 2 * 2048 * _BLOCK // (n_fft * max(1, len(first) - count))
    block = min(_BLOCK, max(2 * _FADE, room)) * hop
    for both in with_context(_with_first(first, signal), length, block, edge):
        window = torch.hann_window(n_fft, dtype=both.dtype)
        # Below -120 dB of the mean power of a bin, what remains of a stem is rounding.
        floor = power * float(window.square().sum()) * 1e-12
        part = torch.stft(
            both, n_fft, hop, window=window, pad_mode="constant", return_complex=True, center=True
        )
        x = _divide(part[:count], part[count:], bands, floor)
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
        yield out, both[count:, edge : size - edge]


def _with_first(first: Tensor, rest: Iterator[Tensor]) -> Iterator[Tensor]:
    yield first
    yield from rest


def _bands(n_fft: int, sample_rate: int, prior_rate: int) -> Tensor:
    """The band of each bin, (F,); -1 above the prior's band."""
    bins = torch.arange(n_fft // 2 + 1) * (sample_rate / n_fft)
    end = 0.9 * min(prior_rate, sample_rate) / 2
    # Thirds of an octave below the end of the band, down to its 128th part.
    third = (3 * torch.log2(end / bins.clamp_min(1e-9))).floor().clamp(0, 20).long()
    used = torch.unique(third[bins < end], sorted=True)  # 0 is the highest
    numbers = torch.searchsorted(used, third.clamp_max(int(used[-1])))
    return torch.where(bins < end, len(used) - 1 - numbers, -1)


def _divide(s: Tensor, y: Tensor, bands: Tensor, floor: float) -> Tensor:
    """X: (K, C, F, N) from stems (K, F, N) and channels (C, F, N)."""
    inside = bands >= 0
    top = int(bands.max())
    # Above the band a stem has the place of the highest band.
    rows = torch.where(inside, bands, top)
    power = _mean(s.abs().square())
    alike = torch.full_like(power[:, :1], 1 / len(s))
    x, rest = _places(s, y, bands, rows, floor)
    below = power[:, inside]
    broad = _share(below.sum(1, keepdim=True), alike, floor)
    gains = _diffuse_gains(below, rest[:, inside], bands[inside], broad, floor)
    x[:, :, inside] += gains[:, None] * rest[:, inside]
    if not bool(inside.all()):
        octave = power[:, bands > top - 3].sum(1)
        x[:, :, ~inside] += _above(octave, broad, x[:, :, bands == top], rest[:, ~inside], floor)
    return x


def _places(
    s: Tensor, y: Tensor, bands: Tensor, rows: Tensor, floor: float
) -> tuple[Tensor, Tensor]:
    """d_k S_k, (K, C, F, N), and what they leave of the channels, (C, F, N)."""
    mono = s.sum(0)
    count = int(bands.max()) + 1
    inside = (bands[None] == torch.arange(count)[:, None]).to(s)  # (bands, F)

    def over(a: Tensor, b: Tensor) -> Tensor:
        """Sum over frames and a band's bins of a b*, (bands, A, B)."""
        products = torch.einsum("afn,bfn->fab", a, b.conj())
        return torch.einsum("qf,fab->qab", inside, products)

    total = over(mono[None], mono[None]).real + floor
    place = over(y, mono[None]) / total  # (bands, C, 1)
    # A source in one of C channels has place C in their mean; more is a mix that cancels.
    place = place * (len(y) / place.abs().clamp_min(len(y)))
    off = y - place[rows, :, 0].T[:, :, None] * mono
    gram = over(s, s)
    own = gram.diagonal(dim1=-2, dim2=-1).real
    system = gram + torch.diag_embed(_PULL * own + floor).to(gram)
    # D - g solves (D - g) (gram + pull) = cross.
    shift = torch.linalg.solve(system.mT, over(off, s).mT).mT  # (bands, C, K)
    # No further off than that, and still nothing in the mean of the channels.
    d = place + shift * (len(y) / shift.abs().amax(1, keepdim=True).clamp_min(len(y)))
    placed = d[rows].permute(2, 1, 0)[..., None] * s[:, None]  # (K, C, F, N)
    return placed, y - placed.sum(0)


def _diffuse_gains(
    power: Tensor, rest: Tensor, bands: Tensor, broad: Tensor, floor: float
) -> Tensor:
    """Shares (K, F, N) of what is left inside the band, from the stems' powers there."""
    gains = _share(power, broad, floor)
    left = rest.abs().square().sum(0)
    for _ in range(2):
        # How diffuse a stem is in a band: its share of what is left, relative to its power.
        weight = torch.stack(
            [
                (gains[:, bands == q] * left[bands == q]).sum((1, 2))
                / (power[:, bands == q].sum((1, 2)) + floor)
                for q in range(int(bands.max()) + 1)
            ]
        )  # (bands, K)
        weight = weight / weight.sum(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
        gains = _share(power * (weight[bands].T[:, :, None] + 1e-3), broad, floor)
    return gains


def _above(octave: Tensor, broad: Tensor, highest: Tensor, y: Tensor, floor: float) -> Tensor:
    """X above the band, (K, C, F', N), from the channels there, (C, F', N).

    Arguments:
        octave: power of the stems in the octave below, (K, N).
        broad: shares of the stems over the whole band, (K, 1, N), for where the octave is empty.
        highest: stems of the channels in the highest band below, (K, C, F'', N).
    """
    level = octave.mean().clamp_min(floor)
    u = octave / level + 1e-6 * broad[:, 0] + 1e-9  # (K, N)
    power = _mean(y.abs().square().sum(0)[None])[0] + floor  # (F', N)
    h = (power.mean(1, keepdim=True) / u.sum(0).mean()).expand(-1, len(u)).clone()  # (F', K)
    for _ in range(_STEPS):
        model = h @ u
        h = h * (((power / model**2) @ u.T) / ((1 / model) @ u.T)).sqrt()
    v = h.T[:, :, None] * u[:, None]  # (K, F', N)
    if len(y) == 1:
        return (v / v.sum(0))[:, None] * y
    covariance = torch.einsum("kcfn,kdfn->kcd", highest, highest.conj())
    trace = covariance.diagonal(dim1=-2, dim2=-1).real.sum(-1) / len(y)
    eye = torch.eye(len(y)).to(covariance)
    # A stem that does not play there is anywhere.
    spatial = (covariance + (1e-3 * trace + floor)[:, None, None] * eye) / (
        (1.001 * trace + floor)[:, None, None]
    )
    system = torch.einsum("kfn,kcd->fncd", v.to(spatial), spatial)
    solved = torch.linalg.solve(system, y.permute(1, 2, 0)[..., None])[..., 0]
    x = v[:, None] * torch.einsum("kcd,fnd->kcfn", spatial, solved)
    # The solution's rounding, in proportion to the powers.
    return x + (v / v.sum(0))[:, None] * (y - x.sum(0))


def _mean(x: Tensor) -> Tensor:
    """Running mean along the last axis (frames) of (A, F, N)."""
    return F.avg_pool1d(x, _FRAMES, 1, _FRAMES // 2, count_include_pad=False)


def _share(power: Tensor, fallback: Tensor, floor: float) -> Tensor:
    """Shares of (K, ...) that add up to one over K; those of `fallback` where there is nothing."""
    total = power.sum(0, keepdim=True)
    least = torch.finfo(total.dtype).tiny
    return torch.where(total > floor, power / total.clamp_min(least), fallback)
