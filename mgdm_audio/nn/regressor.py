r"""Stems from their mix by one network call, with any of the stems given (an orderless NADE).

The mix less the stems that are given, :math:`R = Y - \sum_{j \in known} X_j`, is all that is
observed of the others; for each of these it is a noisy copy, in which the *other* unknown stems
are the noise. So the denoiser of :mod:`mgdm_audio.nn.spectral` carries over, bin by bin, with the
power of the other unknown stems in place of :math:`\sigma^2`. With
:math:`T = \sum_{j \in unknown} \sigma_{d,j}^2`,

.. math:: \hat X_k = c_{skip} R + c_{out} F_k, \quad
          c_{skip} = \sigma_{d,k}^2 / T, \quad
          c_{out} = \sqrt{\sigma_{d,k}^2 (T - \sigma_{d,k}^2) / T}, \quad
          c_{in} = 1 / \sqrt T .

With F = 0 it is the Wiener filter. A single unknown stem is R itself. What the estimates leave of
R is shared among them in proportion to :math:`\sigma_{d,k}^2`, which is what the Gaussian of these
powers says of it, so that the result adds up to the mix, and training sees it so.

A mix may hold something that none of the stems is. Its power in each bin, :math:`\sigma_o^2`, then
joins T, and the network has an :math:`F_o` for it: one more unknown stem, of which there is no
other trace than R. The estimates of the stems add up to less than the mix, and the difference is
its estimate. The network is told by another label of the unknown stems that the mix is of this
kind, and must have been trained on such mixes.

Of sounds that training had none like, the network is surer than it should be. `confidence` is the
share of its part that is believed, :math:`\hat X_k = c_{skip} R + c \, c_{out} F_k`; the rest is
the Wiener filter's. It is set once, on validation songs.

The backbone sees R in the place of every unknown stem and the given stems in their own, and is
told which is which in the place of the noise levels. Shapes and names of the weights are those of
a denoiser with the same backbone: its weights are a start for a regressor's.

References:
    Improving Source Separation by Explicitly Modeling Dependencies Between Sources
    (Manilow, Hawthorne, Huang, Pardo, Engel, 2022)
    https://arxiv.org/abs/2203.15140
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgdm_audio.nn.spectral import SpectralNetwork


class SpectralRegressor(SpectralNetwork):
    """E[stems | mix, some of the stems], estimated by a backbone that works on STFT bins.

    Arguments:
        backbone: see `SpectralNetwork`.
        stems: the number of stems K.
        n_fft: the STFT window in samples; the hop is a quarter of it.
        known: the noise level that the backbone is told of a stem that is given.
        unknown: the one that it is told of the others.
        beside: the one that it is told of the others where the mix holds something beside the
            stems; None for a network that knows no such mixes. The backbone then gives one signal
            more than there are stems.
        confidence: the share of the network's part that is believed, 0 to 1.

    Raises:
        ValueError: if `known` is not below `unknown`, the backbone gives another number, or the
            confidence is out of range.
    """

    def __init__(
        self,
        backbone: nn.Module,
        stems: int = 4,
        n_fft: int = 2048,
        known: float = 3e-4,
        unknown: float = 20.0,
        beside: float | None = None,
        confidence: float = 1.0,
    ) -> None:
        super().__init__(backbone, stems, n_fft)
        if not 0 < known < unknown:
            raise ValueError(f"got known = {known}, unknown = {unknown}; expected 0 < known first")
        if beside is not None and getattr(backbone, "parts", stems) != stems + 1:
            raise ValueError(
                f"a network of {stems} stems and of what is beside them needs a backbone of "
                f"{stems + 1} parts, got {getattr(backbone, 'parts', stems)}"
            )
        if not 0 <= confidence <= 1:
            raise ValueError(f"confidence must be from 0 to 1, got {confidence}")
        self.known, self.unknown, self.beside = known, unknown, beside
        self.confidence = confidence

    def scalings(self, known: Tensor, other: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(c_skip, c_out, c_in), each (B, K, 1, bins), for the mask of given stems (B, K).

        Arguments:
            known: which stems are given, bool (B, K).
            other: power of what is beside the stems, (bins,) or (B, bins), or None; it has a row
                of its own in the answers, the last.
        """
        given = known[:, :, None, None]
        power = self.sigma_data.square()[None, :, None, :].expand(len(known), -1, -1, -1)
        if other is not None:
            beside = other.reshape(-1, 1, 1, other.shape[-1]).expand(len(known), -1, -1, -1)
            power = torch.cat([power, beside], dim=1)
            given = F.pad(given, (0, 0, 0, 0, 0, 1))
        unknown = torch.where(given, 0, power)
        total = unknown.sum(1, keepdim=True)
        share = unknown / torch.where(total > 0, total, 1)
        c_out = (unknown * (1 - share)).clamp_min(0).sqrt()
        return share, c_out, torch.where(given, power + self.known**2, total).rsqrt()

    def estimate(
        self, mix: Tensor, stems: Tensor, known: Tensor, other: Tensor | None = None
    ) -> Tensor:
        """Estimated bins (B, K, frames, bins) of the unknown stems, 0 for the others.

        Arguments:
            mix: with shape (B, 1, T), T a multiple of the hop.
            stems: with shape (B, K, T), 0 where they are not given.
            known: which are given, bool, with shape (B, K).
            other: power of what is beside the stems in each bin, (bins,) or (B, bins); None where
                the mix is the sum of the stems.

        Raises:
            ValueError: if there is something beside the stems and the network knows no such mixes.
        """
        label = self.unknown if other is None else self.beside
        if label is None:
            raise ValueError(
                "this regressor was trained on mixes of its stems alone and knows of no other part"
            )
        given = self.frame(stems)
        rest = self.frame(mix) - given.sum(1, keepdim=True)
        c_skip, c_out, c_in = self.scalings(known, other)
        labels = torch.where(known, self.known, label)
        seen = torch.where(known[:, :, None, None], given, rest)
        k = self.stems
        more = None if other is None else rest * c_in[:, k:]
        part = self.confidence * c_out * self.residual(seen, labels, c_in[:, :k], more)
        return (c_skip * (rest - part.sum(1, keepdim=True)) + part)[:, :k]

    def forward(
        self, mix: Tensor, stems: Tensor, known: Tensor, other: Tensor | None = None
    ) -> Tensor:
        """Estimates the stems that are not given.

        Arguments:
            mix: the mix, with shape (B, 1, T); any T (padded to a multiple of the hop inside).
            stems: the given stems, with shape (B, K, T); what is in the others is not read.
            known: which are given, bool, with shape (B, K).
            other: power of what is beside the stems in each bin, (bins,) or (B, bins); None where
                the mix is the sum of the stems.

        Returns:
            All stems, with shape (B, K, T): the given ones as they are, the others so that all
            add up to the mix (unless all are given). With `other`, what they leave of the mix is
            its estimate.

        Raises:
            ValueError: if the shapes do not fit, or there is something beside the stems and the
                network knows no such mixes.
        """
        batch, samples = mix.shape[0], mix.shape[-1]
        if mix.ndim != 3 or mix.shape[1] != 1:
            raise ValueError(f"mix must have shape (batch, 1, time), got {tuple(mix.shape)}")
        if stems.shape != (batch, self.stems, samples) or known.shape != (batch, self.stems):
            raise ValueError(
                f"stems and known must have shapes {(batch, self.stems, samples)} and "
                f"{(batch, self.stems)}, got {tuple(stems.shape)} and {tuple(known.shape)}"
            )
        given = torch.where(known[:, :, None], stems, 0).float()
        padding = (0, -samples % self.hop)
        bins = self.estimate(F.pad(mix.float(), padding), F.pad(given, padding), known, other)
        estimates = self.frame.inverse(bins)[..., :samples].to(stems.dtype)
        return torch.where(known[:, :, None], stems, estimates)
