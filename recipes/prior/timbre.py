r"""Other sounds that play the same notes: the spectral envelope is moved, flattened or sharpened.

Of each frame of a short-time Fourier transform the envelope :math:`E(f)` is the smooth part of the
log magnitude (the first coefficients of its cepstrum). The frame is filtered by

.. math:: c \, (E(f / r) - \bar E) + \bar E - E(f),

which moves what resonates by the ratio r, as a body of another size would, and multiplies its
contrast by c. Harmonics stay where they are, onsets too. The level is kept.

References:
    Vocal Tract Length Perturbation (VTLP) improves speech recognition (Jaitly, Hinton, 2013)
"""

from __future__ import annotations

import torch
from torch import Tensor

RATE = 22050
FRAME, HOP = 1024, 256
COEFFICIENTS = 20
"""Of the cepstrum: an envelope that resolves 1 kHz."""

MOST = 2.0
"""Nepers by which a bin may change, either way: between harmonics there is nothing but noise."""


def reshaped(x: Tensor, ratio: Tensor, contrast: Tensor) -> Tensor:
    """Signals with another spectral envelope at the same level, (N, T).

    Arguments:
        x: the signals, with shape (N, T).
        ratio: logarithm of the ratio by which each envelope is moved, with shape (N,).
        contrast: factor of its contrast, with shape (N,).
    """
    window = torch.hann_window(FRAME, device=x.device)
    bins = torch.stft(x, FRAME, HOP, window=window, return_complex=True)  # (N, bins, frames)
    power = bins.abs().square()
    floor = 1e-8 * power.amax((1, 2), keepdim=True) + 1e-20
    log = 0.5 * torch.log(power + floor).transpose(1, 2)
    cepstrum = torch.fft.irfft(log)
    cepstrum[..., COEFFICIENTS : FRAME - COEFFICIENTS + 1] = 0
    envelope = torch.fft.rfft(cepstrum).real  # (N, frames, bins)
    last = envelope.shape[-1] - 1
    f = torch.arange(last + 1, device=x.device) * torch.exp(-ratio.to(x))[:, None]
    f = f.clamp_max(last - 1e-3)
    low = f.long()
    part = (f - low)[:, None]
    index = low[:, None].expand(-1, envelope.shape[1], -1)
    moved = envelope.gather(2, index) * (1 - part) + envelope.gather(2, index + 1) * part
    mean = envelope.mean(2, keepdim=True)
    change = contrast.to(x)[:, None, None] * (moved - mean) + mean - envelope
    change = change.clamp(-MOST, MOST).exp().transpose(1, 2)
    out = torch.istft(bins * change, FRAME, HOP, window=window, length=x.shape[-1])
    level = x.square().sum(1, keepdim=True) / out.square().sum(1, keepdim=True).clamp_min(1e-20)
    return out * level.sqrt().clamp_max(10.0)


def equalised(x: Tensor, knots: Tensor) -> Tensor:
    """Signals (N, T) through smooth responses of zero phase.

    Arguments:
        x: the signals, with shape (N, T).
        knots: of each response, in dB, evenly spaced on the mel scale, with shape (N, points).
    """
    f = torch.fft.rfftfreq(x.shape[-1], 1 / RATE, device=x.device)
    mel = torch.log1p(f / 700)
    place = (mel / mel[-1] * (knots.shape[1] - 1)).clamp_max(knots.shape[1] - 1 - 1e-4)
    low = place.long()
    part = place - low
    db = knots[:, low] * (1 - part) + knots[:, low + 1] * part
    return torch.fft.irfft(torch.fft.rfft(x) * 10 ** (db / 20), n=x.shape[-1])
