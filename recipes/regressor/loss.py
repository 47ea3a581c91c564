"""What the regressor is trained for: the SNR of each stem, of the waveform and by mel band.

The loss of a stem is the logarithm of its error's energy over its own, of the waveform and, a
quarter of the weight, the mean over bands of the mel scale. The first is what SI-SDR measures, in
decibels, so that quiet passages count like loud ones; the second keeps the upper bands, which hold
a hundredth of the energy, from being left to chance. A thousandth of the mix's energy is added to
both energies: better than 30 dB is not asked for, and a silent stem has a finite loss.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mgdm_audio.nn import SpectralRegressor
from mgdm_audio.other import LEVEL, Spectrum

BANDS = 24
BAND_WEIGHT = 0.25
FLOOR = 1e-3
OTHER_FLOOR = 0.03  # of what is beside the stems: else a false alarm costs more than it can gain


def bands(bins: int, sample_rate: int = 22050) -> Tensor:
    """Membership of each bin in bands of equal width on the mel scale, (bins, BANDS)."""
    mel = torch.log1p(torch.linspace(0, sample_rate / 2, bins, dtype=torch.float64) / 700)
    band = (mel / mel[-1] * BANDS).long().clamp_max(BANDS - 1)
    return torch.nn.functional.one_hot(band, BANDS).float()


def other_power(mix: Tensor, n_fft: int) -> Tensor:
    """Power of what may be beside the stems in a mix (T,), by frequency, (n_fft // 2 + 1,).

    As the separator tells it, see `mgdm_audio.other`. Of mixes (B, T) it is (B, n_fft // 2 + 1).
    """
    return Spectrum([mix]).at(n_fft, LEVEL)


def losses(
    net: SpectralRegressor,
    clean: Tensor,
    known: Tensor,
    membership: Tensor,
    beside: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss and SNR in dB of each stem, (B, K), or (B, K + 1) with `beside`.

    Of the given ones the loss is 0 and the SNR NaN.

    Arguments:
        net: the regressor.
        clean: true stems, (B, K, T), T a multiple of the hop.
        known: which are given, bool (B, K).
        membership: see `bands`.
        beside: what the mix holds beside the stems, (B, 1, T), and the power that it is taken to
            have, see `other_power`, (B, bins); None where the mix is the sum of the stems.
    """
    power = None
    if beside is not None:
        other, power = beside
        known = torch.cat([known, torch.zeros_like(known[:, :1])], dim=1)
        clean = torch.cat([clean, other], dim=1)
    k = net.stems
    mix = clean.sum(1, keepdim=True)
    given = torch.where(known[:, :, None], clean, 0)
    estimate = net.estimate(mix, given[:, :k], known[:, :k], power)
    with torch.no_grad():
        bins = net.frame(torch.cat([clean, mix], dim=1))
        levels = bins.abs().square().sum(2) @ membership  # (B, K + 1 or 2, bands)
    error = torch.where(known[:, :k, None, None], 0, estimate - bins[:, :k])
    if beside is not None:
        error = torch.cat([error, -error.sum(1, keepdim=True)], dim=1)
    band = (error.real.square() + error.imag.square()).sum(2) @ membership
    wave = net.frame.inverse(error).square().sum(-1)
    whole = clean.square().sum(-1)
    share = clean.new_full((clean.shape[1],), FLOOR)
    share[k:] = OTHER_FLOOR
    floor = share * mix.square().sum(-1) + 1e-8
    full_band = torch.log((wave + floor) / (whole + floor))
    least = 1e-6 * levels[:, -1:].mean(2, keepdim=True) + 1e-8
    floor = share[:, None] * levels[:, -1:] + least
    by_band = torch.log((band + floor) / (levels[:, :-1] + floor)).mean(2)
    loss = full_band + BAND_WEIGHT * by_band
    snr = torch.where(known, math.nan, -4.342945 * full_band.detach())
    return torch.where(known, 0, loss), snr
