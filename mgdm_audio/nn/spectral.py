r"""A waveform denoiser with an STFT inside and EDM scalings per stem and per bin.

The noise is white in the waveform. In the tight frame of :mod:`mgdm_audio.nn.stft` it is white in
the bins too, so the preconditioning of Karras et al. (2022) applies to each bin of each stem with
that bin's own :math:`\sigma_d` (music falls by some 40 dB from the low to the high bands; with a
single :math:`\sigma_d` the high bands would be all noise at every level):

.. math:: D = c_{skip} X + c_{out} F, \quad F = g \, (c_{in} X) + r

with :math:`c_{skip} = \sigma_d^2 / (\sigma^2 + \sigma_d^2)`,
:math:`c_{out} = \sigma \sigma_d / \sqrt{\sigma^2 + \sigma_d^2}`,
:math:`c_{in} = 1 / \sqrt{\sigma^2 + \sigma_d^2}`. The backbone gives a real gain :math:`g` (which
keeps the phase of the noisy bin) and a complex residual :math:`r`.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
    https://arxiv.org/abs/2206.00364
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgdm_audio.nn.checks import check_noisy
from mgdm_audio.nn.stft import TightFrame


class SpectralNetwork(nn.Module):
    """A backbone that works on the STFT bins of stems: what denoiser and regressor share.

    Arguments:
        backbone: maps features (B, 3K, frames, bins - 1) and log noise levels (B, K) to outputs
            (B, 3K, frames, bins - 1); the three per stem are log power, real and imaginary part
            on the way in and gain, real and imaginary part on the way out. The Nyquist bin is
            left to the Gaussian part of the preconditioning. It may give one signal more than it
            takes, see `residual`.
        stems: the number of stems K.
        n_fft: the STFT window in samples; the hop is a quarter of it.
    """

    sigma_data: Tensor

    def __init__(self, backbone: nn.Module, stems: int = 4, n_fft: int = 2048) -> None:
        super().__init__()
        self.backbone = backbone
        self.stems = stems
        self.frame = TightFrame(n_fft)
        # Standard deviation of each bin (E|X|^2 = sigma_data^2); measured on the corpus.
        self.register_buffer("sigma_data", torch.full((stems, self.frame.bins), 0.05))

    @property
    def hop(self) -> int:
        return self.frame.hop

    def residual(
        self, bins: Tensor, sigma: Tensor, c_in: Tensor, more: Tensor | None = None
    ) -> Tensor:
        """The network's part F of the estimated bins, (B, K, frames, bins) complex.

        Arguments:
            bins: what is seen of the stems, with shape (B, K, frames, bins).
            sigma: the noise levels that the backbone is told, with shape (B, K).
            c_in: the input scaling, with shape (B, K, 1, bins).
            more: what is seen, scaled, of a signal that comes out without going in, with shape
                (B, 1, frames, bins): F then has K + 1 rows.
        """
        scaled = (bins * c_in)[..., :-1]
        power = scaled.real.square() + scaled.imag.square()
        features = torch.cat([0.25 * torch.log(power + 1e-4), scaled.real, scaled.imag], dim=1)
        out = self.backbone(features, sigma.log()).float().chunk(3, dim=1)
        if more is not None:
            scaled = torch.cat([scaled, more[..., :-1]], dim=1)
        gain, real, imag = (part[:, : scaled.shape[1]] for part in out)
        return F.pad(gain * scaled + torch.complex(real, imag), (0, 1))


class SpectralDenoiser(SpectralNetwork):
    """E[x0 | x0 + sigma n] of stems; see `SpectralNetwork` for the arguments."""

    joint = True
    """One network is of several stems."""

    def scalings(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(c_skip, c_out, c_in), each (B, K, 1, bins), for sigma of shape (B, K)."""
        s, d = sigma[:, :, None, None], self.sigma_data[None, :, None, :]
        total = s.square() + d.square()
        return d.square() / total, s * d * total.rsqrt(), total.rsqrt()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoises.

        Arguments:
            x: noisy stems, with shape (B, K, T); any T (padded to a multiple of the hop inside).
            sigma: noise standard deviation, one per item (B,) or per item and stem (B, K), > 0.

        Returns:
            The estimate of the clean stems, with shape (B, K, T).

        Raises:
            ValueError: if the shapes do not fit.
        """
        check_noisy(x, sigma, self.stems)
        samples = x.shape[-1]
        sigma = sigma.to(torch.float32)
        if sigma.ndim == 1:
            sigma = sigma[:, None].expand(-1, self.stems)
        padded = F.pad(x.to(torch.float32), (0, -samples % self.hop))
        bins = self.frame(padded)
        c_skip, c_out, c_in = self.scalings(sigma)
        clean = c_skip * bins + c_out * self.residual(bins, sigma, c_in)
        return self.frame.inverse(clean)[..., :samples].to(x.dtype)
