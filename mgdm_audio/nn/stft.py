r"""A short-time Fourier transform that is a tight frame.

With a Hann window :math:`w` of unit energy and hop :math:`H = N/4`, analysis :math:`S` and
synthesis :math:`S^*/4` satisfy :math:`S^* S / 4 = I` on every signal, edges included, because
:math:`\sum_m w^2(t - mH)` is constant. Two things follow that a diffusion model needs:

- white noise of standard deviation :math:`\sigma` in the waveform has the same standard deviation
  in every bin (complex bins: :math:`E|X|^2 = \sigma^2`), so scalings can be chosen per bin;
- bins are mapped back by the (scaled) adjoint, so unchanged bins give the signal unchanged.

Phases are referred to absolute time (the bin's own carrier is removed), so that a steady tone at
a bin's centre has a constant phase from frame to frame instead of one that turns by a quarter
turn per bin index.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TightFrame(nn.Module):
    """Analysis and synthesis of real signals whose length is a multiple of the hop.

    Arguments:
        n_fft: the window length :math:`N` in samples, a multiple of 4. The hop is ``n_fft // 4``.
    """

    window: Tensor
    carrier: Tensor

    def __init__(self, n_fft: int = 2048) -> None:
        super().__init__()
        if n_fft % 4:
            raise ValueError(f"n_fft must be a multiple of 4, got {n_fft}")
        self.n_fft = n_fft
        self.hop = n_fft // 4
        self.bins = n_fft // 2 + 1
        window = torch.hann_window(n_fft, periodic=True, dtype=torch.float64)
        # Unit energy, so that white noise keeps its variance in every bin. Hann^2 at 75 % overlap
        # sums to 3/2, and its energy is 3N/8: the shifted squares then sum to 4/N.
        window = window / (3 * n_fft / 8) ** 0.5
        # Frame m starts at (m - 3) H: its bin k has turned by exp(-2 pi i k m / 4), period 4 in m.
        turn = torch.outer(torch.arange(4), torch.arange(self.bins)) % 4
        carrier = torch.tensor([1, -1j, -1, 1j], dtype=torch.complex64)[turn]
        self.register_buffer("window", window.float(), persistent=False)
        self.register_buffer("carrier", carrier, persistent=False)

    def frames(self, samples: int) -> int:
        """Number of frames of a signal of ``samples`` samples."""
        return samples // self.hop + 3

    def _carrier(self, frames: int) -> Tensor:
        return self.carrier.repeat(-(-frames // 4), 1)[:frames]

    def forward(self, x: Tensor) -> Tensor:
        """Analysis.

        Arguments:
            x: the signals, with shape (..., T), T a multiple of the hop.

        Returns:
            The bins, complex, with shape (..., frames, bins).

        Raises:
            ValueError: if T is not a multiple of the hop.
        """
        if x.shape[-1] % self.hop:
            raise ValueError(
                f"the length must be a multiple of the hop {self.hop}, got {x.shape[-1]} samples"
            )
        blocks = F.pad(x, (3 * self.hop, 3 * self.hop)).unflatten(-1, (-1, self.hop))
        frames = blocks.shape[-2] - 3
        segments = torch.cat([blocks[..., q : q + frames, :] for q in range(4)], dim=-1)
        return torch.fft.rfft(segments * self.window.to(x.dtype)) * self._carrier(frames)

    def inverse(self, bins: Tensor) -> Tensor:
        """Synthesis, a quarter of the adjoint: (..., frames, bins) complex to (..., T) real."""
        frames = bins.shape[-2]
        segments = torch.fft.irfft(bins * self._carrier(frames).conj(), n=self.n_fft)
        segments = segments * (self.window.to(segments.dtype) * (self.n_fft / 4))
        parts = segments.unflatten(-1, (4, self.hop))
        blocks = parts[..., 3:, 0, :]
        for q in range(1, 4):
            blocks = blocks + parts[..., 3 - q : frames - q, q, :]
        return blocks.flatten(-2)
