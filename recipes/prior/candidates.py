r"""Backbones that the shipped ones were compared with; `bakeoff.py` trains them.

All map features (B, 3K, frames, bins) and log noise levels (B, K) to (B, 3K, frames, bins), as
:class:`mgdm_audio.nn.spectral.SpectralNetwork` wants them, and all give zeros before training.

References:
    Investigating U-Nets with various Intermediate Blocks for Spectrogram-based Singing Voice
    Separation (Choi et al., 2020)
    https://arxiv.org/abs/1912.02591

    Vocos: Closing the gap between time-domain and Fourier-based neural vocoders (Siuzdak, 2023)
    https://arxiv.org/abs/2306.00814

    Music Source Separation with Band-split RNN (Luo and Yu, 2022)
    https://arxiv.org/abs/2209.15174
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgdm_audio.nn import UNet2d
from mgdm_audio.nn.token_unet import TFCTDF, ConvNeXt, ModulatedNorm, NoiseEmbedding


class TDFUNet2d(UNet2d):
    """A 2-D U-Net whose blocks have a linear layer along frequency as well."""

    def block(self, channels: int, bands: int, embedding: int) -> nn.Module:
        return TFCTDF(channels, bands, 4, embedding)


class FrameTokens(nn.Module):
    """Each frame, all stems and bins of it, is one token; ConvNeXt blocks in time (as Vocos).

    Arguments:
        stems, bins: as for :class:`~mgdm_audio.nn.token_unet.TokenUNet`.
        width, depth, expansion: of the blocks.
    """

    def __init__(
        self,
        stems: int = 4,
        bins: int = 1024,
        width: int = 512,
        depth: int = 8,
        expansion: int = 3,
        embedding: int = 256,
    ) -> None:
        super().__init__()
        self.embedding = NoiseEmbedding(stems, embedding)
        self.enter = nn.Linear(3 * stems * bins, width)
        self.blocks = nn.ModuleList(
            ConvNeXt(width, expansion, 2 ** (i % 4), embedding) for i in range(depth)
        )
        self.norm = ModulatedNorm(width, embedding)
        self.leave = nn.Linear(width, 3 * stems * bins)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, features: Tensor, log_sigma: Tensor) -> Tensor:
        e = self.embedding(log_sigma)
        x = self.enter(features.transpose(1, 2).flatten(2))
        for block in self.blocks:
            x = block(x, e)
        out = self.leave(self.norm(x, e))
        return out.unflatten(-1, (features.shape[1], -1)).transpose(1, 2)


class Mixer(nn.Module):
    """On (B, frames, bands, width): depthwise in time, attention over bands, a perceptron."""

    def __init__(self, width: int, heads: int, dilation: int, embedding: int) -> None:
        super().__init__()
        self.heads = heads
        self.time = nn.Conv1d(
            width, width, 7, padding=3 * dilation, dilation=dilation, groups=width
        )
        self.norm_bands = ModulatedNorm(width, embedding)
        self.query = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.norm = ModulatedNorm(width, embedding)
        self.expand = nn.Linear(width, 4 * width)
        self.project = nn.Linear(4 * width, width)
        for layer in (self.attended, self.project):
            nn.init.zeros_(layer.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        batch, frames, bands, _ = x.shape
        h = self.time(x.permute(0, 2, 3, 1).flatten(0, 1))
        x = x + h.unflatten(0, (batch, bands)).permute(0, 3, 1, 2)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(2, 3).flatten(0, 1)
            for part in self.query(self.norm_bands(x, embedding)).chunk(3, dim=-1)
        )
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.attended(h).unflatten(0, (batch, frames))
        return x + self.project(F.gelu(self.expand(self.norm(x, embedding))))


class BandSplit(nn.Module):
    """Bands of the mel scale become tokens by layers of their own and are mixed (as BSRNN).

    Arguments:
        stems, bins: as for :class:`~mgdm_audio.nn.token_unet.TokenUNet`.
        bands: how many.
        width: of a token.
        depth: mixers.
    """

    def __init__(
        self,
        stems: int = 4,
        bins: int = 1024,
        bands: int = 26,
        width: int = 96,
        depth: int = 6,
        embedding: int = 256,
    ) -> None:
        super().__init__()
        mel = torch.linspace(0, torch.log1p(torch.tensor(11025 / 700)).item(), bands + 1)
        edges = (torch.expm1(mel) * 700 / 11025 * bins).round().long()
        edges = torch.maximum(edges, 4 * torch.arange(bands + 1))  # four bins at least
        edges[-1] = bins
        self.sizes = (edges[1:] - edges[:-1]).tolist()
        self.embedding = NoiseEmbedding(stems, embedding)
        self.enter = nn.ModuleList(nn.Linear(3 * stems * n, width) for n in self.sizes)
        self.position = nn.Parameter(torch.zeros(bands, width))
        self.mixers = nn.ModuleList(Mixer(width, 4, 2 ** (i % 4), embedding) for i in range(depth))
        self.norm = ModulatedNorm(width, embedding)
        leave = [nn.Linear(width, 3 * stems * n) for n in self.sizes]
        for layer in leave:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.leave = nn.ModuleList(leave)

    def forward(self, features: Tensor, log_sigma: Tensor) -> Tensor:
        e = self.embedding(log_sigma)
        rows = features.transpose(1, 2).split(self.sizes, dim=-1)
        x = torch.stack([layer(r.flatten(2)) for layer, r in zip(self.enter, rows, strict=True)], 2)
        x = x + self.position.to(x.dtype)
        for mixer in self.mixers:
            x = mixer(x, e)
        x = self.norm(x, e)
        out = [layer(x[:, :, i]) for i, layer in enumerate(self.leave)]
        parts = [o.unflatten(-1, (features.shape[1], -1)) for o in out]
        return torch.cat(parts, dim=-1).transpose(1, 2)
