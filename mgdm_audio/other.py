r"""A stem for what the prior does not know: voices, strings, anything but its own stems.

Its prior is independent of the others and as broad as can be: a stationary Gaussian whose power at
each frequency is a share of the mix's own, smoothed over thirds of an octave. The denoiser of such
a prior is the Wiener filter :math:`D(x, \sigma) = P / (P + \sigma^2) \, x` in the frequency domain,
and beside the joint denoiser of the known stems it makes a denoiser of one stem more, with which
any sampler and any operator work as before. The known stems win where they explain the mix well,
since their prior is narrow; what they would have to be bent for goes to the other stem.
"""

from __future__ import annotations

__all__ = ["LEVEL", "NAME", "Spectrum", "WithOther"]

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

NAME = "other"

LEVEL = -10.0
"""Power of the other stem's prior relative to the mix, in dB."""

_SIZE = 4096
_RATIO = 2 ** (1 / 6)
"""Half of a third of an octave, as a ratio of frequencies."""


class Spectrum:
    """Mean power of a signal by frequency, from pieces.

    Arguments:
        pieces: the signal, each piece with shape (n,).
    """

    def __init__(self, pieces: Iterable[Tensor]) -> None:
        window = torch.hann_window(_SIZE, dtype=torch.float64)
        total = torch.zeros(_SIZE // 2 + 1, dtype=torch.float64)
        count = 0
        for piece in pieces:
            padded = torch.nn.functional.pad(piece.double(), (0, -len(piece) % _SIZE))
            frames = padded.unflatten(0, (-1, _SIZE)) * window
            total += torch.fft.rfft(frames).abs().square().sum(0)
            count += len(frames)
        power = total / max(1, count) / window.square().sum()
        self.power = _smooth(power)

    def at(self, samples: int, level: float = 0.0) -> Tensor:
        """Variance of each bin of a Fourier transform of so many samples, (samples // 2 + 1,).

        Arguments:
            samples: length of the transform; white noise of unit variance has 1 in every bin.
            level: gain in dB.
        """
        f = torch.fft.rfftfreq(samples, dtype=torch.float64) * _SIZE
        low = f.floor().long().clamp_max(len(self.power) - 2)
        part = f - low
        power = self.power[low] + part * (self.power[low + 1] - self.power[low])
        return (power * 10 ** (level / 10)).float()


def _smooth(power: Tensor) -> Tensor:
    """Mean over a third of an octave around each bin, never of less than three bins."""
    n = len(power)
    k = torch.arange(n, dtype=torch.float64)
    low = torch.minimum(k / _RATIO, k - 1).floor().clamp_min(0).long()
    high = torch.maximum(k * _RATIO, k + 1).ceil().clamp_max(n - 1).long() + 1
    sums = torch.cat([power.new_zeros(1), power.cumsum(0)])
    return ((sums[high] - sums[low]) / (high - low)).clamp_min(0)


class WithOther:
    """Denoiser of the stems of a prior and of one Gaussian stem, the last.

    Arguments:
        denoise: of K stems, a `mgdm_audio.denoise.Denoiser`.
        power: variance of the Gaussian stem in each bin of the transform of a window, see
            :meth:`Spectrum.at`.
    """

    def __init__(self, denoise: Callable[[Tensor, Tensor], Tensor], power: Tensor) -> None:
        self.denoise, self.power = denoise, power

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoised stems (B, K + 1, T); sigma is (B,) or (B, K + 1)."""
        known, last = (sigma, sigma) if sigma.ndim == 1 else (sigma[:, :-1], sigma[:, -1])
        stems = self.denoise(x[:, :-1], known)
        other = x[:, -1:].float()
        bins = torch.fft.rfft(other)
        power = self.power.to(bins.device)
        gain = power / (power + last.float().square()[:, None, None])
        clean = torch.fft.irfft(bins * gain, n=other.shape[-1])
        return torch.cat([stems, clean.to(stems)], dim=1)
