r"""Denoisers of waveforms with one scaling for all: the preconditioning that MSDM was trained in.

.. math:: D(x, \sigma) = \mathrm{clamp}\big(c_{skip}\, x + c_{out}\,
          F(c_{in}\, x, \tfrac14 \ln \sigma), -1, 1\big)

with :math:`c_{skip} = \sigma_d^2 / (\sigma^2 + \sigma_d^2)`,
:math:`c_{out} = \sigma \sigma_d / \sqrt{\sigma^2 + \sigma_d^2}`,
:math:`c_{in} = 1 / \sqrt{\sigma^2 + \sigma_d^2}` and :math:`\sigma_d` = 0.2. The clamp is part of
the denoiser, in training as in sampling: gradients through it vanish where it holds.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
    https://arxiv.org/abs/2206.00364
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgdm_audio.nn.checks import check_noisy
from mgdm_audio.nn.unet1d import UNet1d


class WaveformDenoiser(nn.Module):
    """E[x0 | x0 + sigma n] of stems that share one noise level.

    Arguments:
        unet: the network F.
        sigma_data: standard deviation of the signals that the scalings assume.
        clamp: limit of the absolute value of the estimate; None for no limit.

    Raises:
        ValueError: if a number is not positive.
    """

    def __init__(self, unet: UNet1d, sigma_data: float = 0.2, clamp: float | None = 1.0) -> None:
        super().__init__()
        if not sigma_data > 0 or (clamp is not None and not clamp > 0):
            raise ValueError(
                f"got sigma_data = {sigma_data} and clamp = {clamp}, expected positive numbers"
            )
        self.unet = unet
        self.sigma_data = sigma_data
        self.clamp = clamp

    @property
    def stems(self) -> int:
        return self.unet.in_channels

    @property
    def joint(self) -> bool:
        """Whether one network is of several stems."""
        return self.stems > 1

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoises.

        Arguments:
            x: noisy stems, with shape (B, K, T). Where T is not a multiple of what the network
                reduces to one position (8192 samples at the published widths), zeros are appended
                and cut off again: silence without noise, which the network never saw in training.
            sigma: noise level of each item, (B,); (B, K) if the K columns are equal.

        Returns:
            The estimate of the clean stems, with shape (B, K, T).

        Raises:
            ValueError: if the shapes do not fit, or the stems have different noise levels.
        """
        check_noisy(x, sigma, self.stems)
        s = self._common(sigma).to(torch.float32)
        d = self.sigma_data
        samples = x.shape[-1]
        # Its weights are float32, and torch does not mix.
        padded = F.pad(x.to(torch.float32), (0, -samples % self.unet.multiple))
        total = s.square() + d**2
        scalings = (total.rsqrt(), s * d * total.rsqrt(), d**2 / total)
        c_in, c_out, c_skip = (c[:, None, None] for c in scalings)
        answer = self.unet(padded * c_in, s.log() / 4).to(torch.float32)  # less under autocast
        clean = (c_skip * padded + c_out * answer)[..., :samples].to(x.dtype)
        return clean if self.clamp is None else clean.clamp(-self.clamp, self.clamp)

    @staticmethod
    def _common(sigma: Tensor) -> Tensor:
        """The one noise level of each item, (B,)."""
        if sigma.ndim == 1:
            return sigma
        if bool((sigma != sigma[:, :1]).any()):
            raise ValueError(
                "this network was trained with one noise level for all stems and got different "
                "ones; use independent priors (a stack of single-stem networks) for methods that "
                "need a level for each stem"
            )
        return sigma[:, 0]


class StackedWaveformDenoiser(nn.Module):
    """Independent single-stem denoisers as one module: stem k goes through network k.

    Arguments:
        denoisers: K denoisers of one stem each.

    Raises:
        ValueError: if there is none, or one is of several stems.
    """

    def __init__(self, denoisers: Sequence[WaveformDenoiser]) -> None:
        super().__init__()
        if not denoisers or any(d.stems != 1 for d in denoisers):
            raise ValueError(
                f"got denoisers of {[d.stems for d in denoisers]} stems, expected one of a single "
                "stem for each stem"
            )
        self.priors = nn.ModuleList(denoisers)

    @property
    def stems(self) -> int:
        return len(self.priors)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """See :class:`WaveformDenoiser`; here sigma (B, K) may differ from stem to stem."""
        check_noisy(x, sigma, self.stems)
        per_stem = sigma if sigma.ndim == 2 else sigma[:, None].expand(x.shape[:2])
        return torch.cat(
            [prior(x[:, k : k + 1], per_stem[:, k]) for k, prior in enumerate(self.priors)], dim=1
        )


def unet1d(backbone: dict[str, Any], edm: dict[str, Any]) -> WaveformDenoiser:
    """A denoiser from keyword arguments of :class:`UNet1d` and of :class:`WaveformDenoiser`."""
    return WaveformDenoiser(UNet1d(**backbone), **edm)


def unet1d_stack(
    backbone: dict[str, Any], edm: dict[str, Any], stems: int = 4
) -> StackedWaveformDenoiser:
    """Independent denoisers of one stem each, see :func:`unet1d`."""
    single = {**backbone, "in_channels": 1}
    return StackedWaveformDenoiser([unet1d(single, edm) for _ in range(stems)])
