r"""A U-Net over time and frequency, of convolutions alone.

Bins are grouped in patches of four; frequency is then reduced by four, and at each step after that
time and frequency by two. Every layer is shared by all frequencies, and only a bias says which is
which: what is learnt of a sound in one place holds in another. As a regressor it learns fastest of
the networks that recipes/prior compares.

References:
    Singing Voice Separation with Deep U-Net Convolutional Networks (Jansson et al., 2017)
    https://openaccess.city.ac.uk/id/eprint/19289/

    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021)
    https://arxiv.org/abs/2011.13456
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgdm_audio.nn.checks import check_least
from mgdm_audio.nn.token_unet import ModulatedNorm, NoiseEmbedding, convolved


class ConvBlock(nn.Module):
    """Two 3x3 convolutions on (B, frames, bands, channels), residual: TFC-TDF without the TDF."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.norm = ModulatedNorm(channels, embedding)
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = convolved(self.conv_in, self.norm(x, embedding))
        return x + convolved(self.conv_out, F.gelu(h))


class UNet2d(nn.Module):
    """The backbone of the default regressor.

    Arguments:
        stems: the number of stems K.
        bins: frequency bins without the Nyquist bin, a multiple of all the reductions.
        patch: bins per patch.
        channels: at each resolution, two or more.
        blocks: on either side at each resolution; four times as many at the last.
        embedding: the width of the noise embedding.
        parts: the number of signals that come out, by default the stems.

    Raises:
        ValueError: if the reductions do not divide the bins, or a number is too small.
    """

    def __init__(
        self,
        stems: int = 4,
        bins: int = 1024,
        patch: int = 4,
        channels: tuple[int, ...] | list[int] = (56, 112, 192),
        blocks: int = 1,
        embedding: int = 256,
        parts: int | None = None,
    ) -> None:
        super().__init__()
        self.parts = stems if parts is None else parts
        self.patch = patch
        if len(channels) < 2:
            raise ValueError(f"got channels = {channels}, expected two or more")
        check_least(
            1, stems=stems, bins=bins, patch=patch, channels=channels, embedding=embedding,
            parts=self.parts,
        )  # fmt: skip
        check_least(0, blocks=blocks)
        self.strides = [(1, 4), *[(2, 2)] * (len(channels) - 2)]
        step = patch * 4 * 2 ** (len(channels) - 2)
        if bins % step:
            raise ValueError(f"bins must be a multiple of {step}, got {bins}")
        self.embedding = NoiseEmbedding(stems, embedding)
        self.patches = nn.Linear(3 * stems * patch, channels[0])
        self.position = nn.Parameter(torch.zeros(bins // patch, channels[0]))
        bands = [bins // patch]
        for _, across in self.strides:
            bands.append(bands[-1] // across)

        def stack(level: int, count: int) -> nn.ModuleList:
            width = channels[level]
            return nn.ModuleList(self.block(width, bands[level], embedding) for _ in range(count))

        last = len(channels) - 1
        self.inward = nn.ModuleList(stack(i, blocks) for i in range(last))
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, s, stride=s)
            for a, b, s in zip(channels, channels[1:], self.strides, strict=False)
        )
        self.middle = stack(last, 4 * blocks)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(b, a, s, stride=s)
            for a, b, s in zip(channels, channels[1:], self.strides, strict=False)
        )
        self.outward = nn.ModuleList(stack(i, blocks) for i in range(last))
        self.norm = ModulatedNorm(channels[0], embedding)
        self.outputs = nn.Linear(channels[0], 3 * self.parts * patch)
        nn.init.zeros_(self.outputs.weight)
        nn.init.zeros_(self.outputs.bias)

    def block(self, channels: int, bands: int, embedding: int) -> nn.Module:
        """One block, from (B, frames, bands, channels) to the same."""
        return ConvBlock(channels, embedding)

    def forward(self, features: Tensor, log_sigma: Tensor) -> Tensor:
        """(B, 3K, frames, bins) and (B, K) to (B, 3 parts, frames, bins)."""
        frames, steps = features.shape[2], 2 ** (len(self.strides) - 1)
        e = self.embedding(log_sigma)
        x = F.pad(features, (0, 0, 0, -frames % steps)).unflatten(-1, (-1, self.patch))
        x = self.patches(x.permute(0, 2, 3, 1, 4).flatten(-2))
        x = x + self.position.to(x.dtype)
        kept = []
        for stack, down in zip(self.inward, self.down, strict=True):
            x = _through(stack, x, e)
            kept.append(x)
            x = down(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = _through(self.middle, x, e)
        for stack, up, skip in zip(
            reversed(self.outward), reversed(self.up), reversed(kept), strict=True
        ):
            x = _through(stack, skip + up(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), e)
        out = self.outputs(self.norm(x, e)).unflatten(-1, (-1, self.patch))
        return out.permute(0, 3, 1, 2, 4).flatten(-2)[:, :, :frames]


def _through(blocks: nn.Module, x: Tensor, embedding: Tensor) -> Tensor:
    """What a list of blocks makes of x."""
    assert isinstance(blocks, nn.ModuleList)
    for block in blocks:
        x = block(x, embedding)
    return x
