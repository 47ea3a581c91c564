r"""Observations that are not linear: clipping, quantisation, magnitudes alone, overdrive.

Each acts on every channel by itself, so it is applied to stems, or by
:func:`mgdm_audio.compose.compose` to their mix. What a sampler sees is the forward map and its
gradient; `project` gives the nearest signal that explains the observation, which is exact for the
maps of single samples and one round of Griffin and Lim's for magnitudes.
"""

from __future__ import annotations

__all__ = ["Clip", "Magnitude", "Overdrive", "Quantise"]

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mgdm_audio.observe import Operator


class Clip(Operator):
    """Samples beyond a level are cut off to it.

    Where it is known which samples of the recording were cut off (they stand at the level), say
    so: then the others are taken at their word, also where a guess for them is beyond the level,
    and a guess for a cut sample is told when it is on the wrong side.

    Arguments:
        level: the level, positive: a number, or a tensor that broadcasts with (B, K, T).
        where: 1 at samples that were cut off at +level, -1 at -level, 0 at the others, a tensor
            that broadcasts with (B, K, T); None if it is not known.

    Raises:
        ValueError: if the level is not positive.
    """

    def __init__(self, level: float | Tensor, where: Tensor | None = None) -> None:
        self.level = torch.as_tensor(level, dtype=torch.float64)
        if not bool(((self.level > 0) & (self.level < math.inf)).all()):
            raise ValueError(f"got a clipping level {level}, expected a positive number")
        self.where = where

    @classmethod
    def seen_in(cls, y: Tensor, level: float) -> Clip:
        """The operator of a recording y that was clipped at the level."""
        return cls(level, (y >= level).to(torch.int8) - (y <= -level).to(torch.int8))

    @classmethod
    def beyond(cls, y: Tensor, above: float, below: float | None = None) -> Clip:
        """The operator of a recording y whose samples beyond thresholds are lower bounds of what
        they were, in magnitude: clipped, and resampled since then.

        Arguments:
            y: the recording.
            above: positive threshold of positive samples; infinite where none is clipped.
            below: the same of negative ones, in magnitude; None for `above`.
        """
        below = above if below is None else below
        where = (y >= above).to(torch.int8) - (y <= -below).to(torch.int8)
        return cls(torch.where(where == 0, min(above, below), y.abs()), where)

    def forward(self, x: Tensor) -> Tensor:
        """See `Operator.forward`."""
        level = self.level.to(x)
        if self.where is None:
            return torch.maximum(torch.minimum(x, level), -level)
        where = self.where.to(x.device)
        low, high = torch.maximum(x, -level), torch.minimum(x, level)
        return torch.where(where > 0, high, torch.where(where < 0, low, x))

    def first_guess(self, y: Tensor) -> Tensor:
        """The recording itself."""
        return y.clone()

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """The recording, but for cut samples, which stay what they are beyond the level."""
        where, level = self.where, self.level.to(y)
        if where is None:
            where = (y >= level).to(torch.int8) - (y <= -level).to(torch.int8)
        where = where.to(x.device)
        beyond = torch.where(where > 0, torch.maximum(x, level), torch.minimum(x, -level))
        return torch.where(where == 0, y, beyond)


class Quantise(Operator):
    r"""Samples are rounded to :math:`2^b` levels from -1 to 1: :math:`y = \Delta\,[x / \Delta]`.

    Rounding has no slope; the gradient is taken as if there were no rounding ("straight
    through"), which leads a guess out of a wrong cell and lets it rest in the right one, where
    the residual is 0.

    Arguments:
        bits: b, 2 to 24: the step is :math:`\Delta = 2^{1-b}`.
        scale: full scale, where the outermost level is.

    Raises:
        ValueError: if the number of bits is out of range.
    """

    def __init__(self, bits: int, scale: float = 1.0) -> None:
        if not 2 <= bits <= 24:
            raise ValueError(f"got {bits} bits, expected 2 to 24")
        if not 0 < scale < math.inf:
            raise ValueError(f"got a full scale of {scale}, expected a positive number")
        self.bits, self.scale = bits, scale
        self.step = scale * 2.0 ** (1 - bits)

    def forward(self, x: Tensor) -> Tensor:
        """See `Operator.forward`."""
        top = 2 ** (self.bits - 1)
        code = torch.round(x.detach() / self.step).clamp(-top, top - 1)
        return x + (code * self.step - x.detach())

    def first_guess(self, y: Tensor) -> Tensor:
        """The recording itself."""
        return y.clone()

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """The nearest sample in the cell; cells at both ends are open."""
        half = self.step / 2
        top = 2 ** (self.bits - 1) * self.step
        low = torch.where(y <= -top + half, -math.inf, y - half)
        high = torch.where(y >= top - 1.5 * self.step, math.inf, y + half)
        return torch.minimum(torch.maximum(x, low.to(x)), high.to(x))


class Magnitude(Operator):
    """Magnitudes of the short-time Fourier transform, without phases (phase retrieval).

    (B, K, T) -> (B, K, frames * bins), with a Hann window, the signal being padded with zeros.
    The transform is scaled to be a tight frame: its norm is that of the signal.

    Arguments:
        n_fft: samples of the window, even.
        hop: samples between frames, a divisor of n_fft, at most a third of it.
        eps: magnitudes are sqrt(|z|^2 + eps^2) - eps, to have a slope at 0; in units of the signal.
        length: T, samples of the signal, which its magnitudes do not tell; None for a multiple of
            the hop. Only `first_guess` needs it.

    Raises:
        ValueError: if the window and the hop are not such.
    """

    def __init__(
        self, n_fft: int = 1024, hop: int = 256, eps: float = 1e-7, length: int | None = None
    ) -> None:
        if n_fft < 8 or n_fft % 2 or hop < 1 or n_fft % hop or n_fft // hop < 3:
            raise ValueError(
                f"got n_fft {n_fft} and hop {hop}, expected an even window and a hop that "
                "divides it, at most a third of it"
            )
        self.n_fft, self.hop, self.eps, self.length = n_fft, hop, eps, length

    def transform(self, x: Tensor) -> Tensor:
        """Complex transform, (B, K, T) -> (B, K, bins, frames), one-sided and scaled."""
        window = torch.hann_window(self.n_fft, dtype=x.dtype, device=x.device)
        z = torch.stft(
            self._padded(x).flatten(0, 1), self.n_fft, self.hop, window=window, center=False,
            return_complex=True,
        )  # fmt: skip
        return (z * self._weight(x)[:, None]).unflatten(0, x.shape[:2])

    def inverse(self, z: Tensor, length: int) -> Tensor:
        """Adjoint of `transform`, and its inverse, for real signals of so many samples."""
        window = torch.hann_window(self.n_fft, dtype=z.real.dtype, device=z.device)
        flat = z.flatten(0, 1) / self._weight(z.real)[:, None]
        frames = torch.fft.irfft(flat.mT, n=self.n_fft) * window
        size = (frames.shape[1] - 1) * self.hop + self.n_fft
        wave = F.fold(frames.mT, (1, size), (1, self.n_fft), stride=(1, self.hop))[:, 0, 0]
        energy = float(window.square().sum()) / self.hop
        wave = wave[:, self.n_fft : self.n_fft + length] / energy
        return wave.unflatten(0, z.shape[:2])

    def forward(self, x: Tensor) -> Tensor:
        """See `Operator.forward`."""
        z = self.transform(x)
        power = z.real.square() + z.imag.square()
        return ((power + self.eps**2).sqrt() - self.eps).flatten(2)

    def first_guess(self, y: Tensor) -> Tensor:
        """All phases 0."""
        length = self.length
        if length is None:
            length = (y.shape[2] // self._bins - self.n_fft // self.hop - 1) * self.hop
        return self.inverse(torch.complex(self._map(y), torch.zeros_like(self._map(y))), length)

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """The given magnitudes with the phases of x: one round of Griffin and Lim (1984).

        No signal need have these magnitudes with these phases; the nearest one is given.
        """
        z = self.transform(x)
        return self.inverse(torch.polar(self._map(y).to(x), z.angle()), x.shape[2])

    @property
    def _bins(self) -> int:
        return self.n_fft // 2 + 1

    def _map(self, y: Tensor) -> Tensor:
        return y.unflatten(2, (self._bins, -1))

    def _padded(self, x: Tensor) -> Tensor:
        # A whole window of zeros at both ends: every sample is seen by as many frames.
        return F.pad(x, (self.n_fft, self.n_fft + -x.shape[2] % self.hop))

    def _weight(self, like: Tensor) -> Tensor:
        """Scale of each bin, (bins,): a bin inside stands for two, which conjugates are."""
        energy = torch.hann_window(self.n_fft, dtype=torch.float64).square().sum() / self.hop
        weight = torch.full((self._bins,), math.sqrt(2 / (self.n_fft * float(energy))))
        weight[0] = weight[-1] = weight[0] / math.sqrt(2)
        return weight.to(like)


class Overdrive(Operator):
    r"""An amplifier's soft saturation: :math:`y = \tanh(d\,x) / \tanh(d)`.

    Arguments:
        drive: d, positive, in inverse units of the signal; full scale is kept.

    Raises:
        ValueError: if the drive is not positive.
    """

    def __init__(self, drive: float) -> None:
        if not 0 < drive < math.inf:
            raise ValueError(f"got a drive of {drive}, expected a positive number")
        self.drive = float(drive)

    def forward(self, x: Tensor) -> Tensor:
        """See `Operator.forward`."""
        return torch.tanh(self.drive * x) / math.tanh(self.drive)

    def first_guess(self, y: Tensor) -> Tensor:
        """The inverse; what noise took beyond the curve's ends is taken to be near them."""
        inside = (y * math.tanh(self.drive)).clamp(-1 + 1e-4, 1 - 1e-4)
        return torch.atanh(inside) / self.drive

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """The inverse: a curve that only rises leaves no choice."""
        return self.first_guess(y)
