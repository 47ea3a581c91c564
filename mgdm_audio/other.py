r"""A stem for what the prior does not know: voices, strings, anything but its own stems.

Its prior is independent of the others and as broad as can be: a stationary Gaussian whose power at
each frequency is a share of the mix's own, smoothed over thirds of an octave. The denoiser of such
a prior is the Wiener filter :math:`D(x, \sigma) = P / (P + \sigma^2) \, x` in the frequency domain,
and beside the joint denoiser of the known stems it makes a denoiser of one stem more, with which
any sampler and any operator work as before. The known stems win where they explain the mix well,
since their prior is narrow; what they would have to be bent for goes to the other stem.

A regressor that was trained on mixes with other sounds in them (`SpectralRegressor`, `beside`)
tells what they are far better than a stationary power does. Where a sampler begins with its
estimate, the Gaussian's power is that of the estimate, by time and frequency.
"""

from __future__ import annotations

__all__ = ["LEVEL", "NAME", "Spectrum", "WithOther"]

import copy
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from mgdm_audio.denoise import of_items
from mgdm_audio.nn.stft import TightFrame
from mgdm_audio.regress import Regressor

NAME = "other"

LEVEL = -10.0
"""Power of the other stem's prior relative to the mix, in dB."""

_SIZE = 4096
_FRAME = 2048
_RATIO = 2 ** (1 / 6)
"""Half of a third of an octave, as a ratio of frequencies."""

_FEW = 16
"""Frames below which it matters that the last one is filled up with silence."""


class Spectrum:
    """Mean power of a signal, or of several, by frequency, from pieces.

    Arguments:
        pieces: the signal, each piece with shape (n,), or (N, n) of N signals.
    """

    def __init__(self, pieces: Iterable[Tensor]) -> None:
        window = torch.hann_window(_SIZE, dtype=torch.float64)
        energy = torch.nn.functional.pad(window.square().cumsum(0), (1, 0))
        total = torch.zeros(_SIZE // 2 + 1, dtype=torch.float64)
        count, covered = 0, 0.0
        for piece in pieces:
            window, total = window.to(piece.device), total.to(piece.device)
            padded = torch.nn.functional.pad(piece.double(), (0, -piece.shape[-1] % _SIZE))
            frames = padded.unflatten(-1, (-1, _SIZE)) * window
            total = total + torch.fft.rfft(frames).abs().square().sum(-2)
            count += frames.shape[-2]
            whole, part = divmod(piece.shape[-1], _SIZE)
            covered += whole + float(energy[part] / energy[-1])
        # As many frames as the signal's own samples make up. In a longer signal the last one counts
        # as whole, as it always did: a seed gives the stems that it gave.
        made_up = count if count >= _FEW else max(covered, torch.finfo(total.dtype).tiny)
        power = total / made_up / window.square().sum()
        self.power = _smooth(power)

    def at(self, samples: int, level: float = 0.0) -> Tensor:
        """Variance of each bin of a Fourier transform of so many samples, (samples // 2 + 1,).

        Of N signals, (N, samples // 2 + 1).

        Arguments:
            samples: length of the transform; white noise of unit variance has 1 in every bin.
            level: gain in dB.
        """
        f = torch.fft.rfftfreq(samples, dtype=torch.float64, device=self.power.device) * _SIZE
        low = f.floor().long().clamp_max(self.power.shape[-1] - 2)
        part = f - low
        power = self.power[..., low]
        power = power + part * (self.power[..., low + 1] - power)
        return (power * 10 ** (level / 10)).float()


def _smooth(power: Tensor) -> Tensor:
    """Mean over a third of an octave around each bin, never of less than three bins."""
    n = power.shape[-1]
    k = torch.arange(n, dtype=torch.float64, device=power.device)
    low = torch.minimum(k / _RATIO, k - 1).floor().clamp_min(0).long()
    high = torch.maximum(k * _RATIO, k + 1).ceil().clamp_max(n - 1).long() + 1
    sums = torch.nn.functional.pad(power.cumsum(-1), (1, 0))
    return ((sums[..., high] - sums[..., low]) / (high - low)).clamp_min(0)


class WithOther:
    """Denoiser of the stems of a prior and of one Gaussian stem, the last.

    If there is a regressor beside the prior, there is one here too, of all the stems.

    Arguments:
        denoise: of K stems, a `mgdm_audio.denoise.Denoiser`, or a `WithRegressor`.
        power: tells the variance of the Gaussian stem in each bin of the transform of so many
            samples, see :meth:`Spectrum.at`.
        estimate: of the Gaussian stem, (B, 1, T): its power is then this one's, by time and
            frequency, instead of a stationary one.
    """

    def __init__(
        self,
        denoise: Callable[[Tensor, Tensor], Tensor],
        power: Callable[[int], Tensor],
        estimate: Tensor | None = None,
    ) -> None:
        self.denoise, self.power = denoise, power
        self._local = None if estimate is None else _Local(estimate, power)

    def knowing(self, estimate: Tensor) -> WithOther:
        """The same with an estimate of the Gaussian stem, (B, 1, T)."""
        return WithOther(self.denoise, self.power, estimate)

    def of_items(self, items: Sequence[int]) -> WithOther:
        """See `mgdm_audio.denoise.of_items`."""
        narrowed = WithOther(of_items(self.denoise, items), self.power)
        narrowed._local = None if self._local is None else self._local.of_items(items)
        return narrowed

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoised stems (B, K + 1, T); sigma is (B,) or (B, K + 1)."""
        known, last = (sigma, sigma) if sigma.ndim == 1 else (sigma[:, :-1], sigma[:, -1])
        stems = self.denoise(x[:, :-1], known)
        other, variance = x[:, -1:].float(), last.float().square()[:, None, None]
        if self._local is not None:
            clean = self._local(other, variance)
        else:
            bins = torch.fft.rfft(other)
            power = self.power(other.shape[-1]).to(bins.device)
            clean = torch.fft.irfft(bins * (power / (power + variance)), n=other.shape[-1])
        return torch.cat([stems, clean.to(stems)], dim=1)

    @property
    def regress(self) -> Regressor | None:
        """The regressor of all K + 1 stems; None if there is none beside the prior."""
        inner = getattr(self.denoise, "regress", None)
        if inner is None:
            return None

        def regress(mix: Tensor, stems: Tensor, known: Tensor) -> Tensor:
            stems_known = known[:, :-1]
            out = torch.empty_like(stems)
            # What is left when the other stem is given is a mix of the stems that a prior knows.
            for given in (True, False):
                rows = torch.nonzero(known[:, -1] == given)[:, 0]
                if not len(rows):
                    continue
                rest, own = mix[rows], stems[rows]
                if given:
                    part = inner(rest - own[:, -1:], own[:, :-1], stems_known[rows])
                    out[rows] = torch.cat([part, own[:, -1:]], dim=1)
                else:
                    part = inner(rest, own[:, :-1], stems_known[rows], self.power)
                    out[rows] = torch.cat([part, rest - part.sum(1, keepdim=True)], dim=1)
            return out

        return regress


class _Local:
    """The Wiener filter of a Gaussian whose power varies with time and frequency.

    The local Gaussian model (Duong, Vincent, Gribonval, IEEE TASLP 2010, arXiv:0912.0171): bins of
    a short-time transform are independent, their variances those of an estimate, smoothed. What
    the estimate lacks is allowed 30 dB below the stationary power, so that it is not ruled out.
    """

    def __init__(self, estimate: Tensor, power: Callable[[int], Tensor]) -> None:
        self.frame = TightFrame(_FRAME).to(estimate.device)
        bins = self.frame(self._padded(estimate.float())).abs().square()
        smooth = torch.nn.functional.avg_pool2d(bins, 3, 1, 1, count_include_pad=False)
        self.variance = smooth + 1e-3 * power(_FRAME).to(smooth)

    def of_items(self, items: Sequence[int]) -> _Local:
        """The filter of some of the batch's items."""
        narrowed = copy.copy(self)
        narrowed.variance = self.variance[list(items)]
        return narrowed

    def _padded(self, x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (0, -x.shape[-1] % self.frame.hop))

    def __call__(self, x: Tensor, noise: Tensor) -> Tensor:
        """x (B, 1, T) with the noise variance (B, 1, 1) taken out."""
        gain = self.variance / (self.variance + noise[..., None])
        return self.frame.inverse(self.frame(self._padded(x)) * gain)[..., : x.shape[-1]]
