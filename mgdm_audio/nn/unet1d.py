r"""The waveform U-Net of MSDM: 405 M parameters on four stems at its published width.

A patch of 16 samples becomes one position of 256 channels; six strided convolutions follow, each
with two residual blocks, the three coarsest with attention; the way up mirrors the way down. The
noise level modulates every residual block. In all, 8192 samples become one position.

What is unlike most U-Nets, and decides whether published weights give the published answers:

- attention in the bottleneck has neither a residual path nor a feed-forward part, and every
  attention ends with a layer norm;
- skips are scaled by :math:`2^{-1/2}` before they are concatenated; the outermost one, which is
  added, is not;
- an attention's output is a skip of its own, so that a level with attention has three;
- a residual block has no scaling of its sum, and is modulated after its second norm only;
- the time embedding starts with the noise coordinate itself, then all sines, then all cosines;
- the blocks at the two ends have one group a stem.

Submodules are named such that the parameters have the names of the published checkpoints.

References:
    Multi-Source Diffusion Models for Simultaneous Music Generation and Separation
    (Mariani et al., 2024)
    https://arxiv.org/abs/2302.02257
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgdm_audio.nn.checks import check_least

SKIP_SCALE = 2**-0.5
EPS = 1e-5


class NoiseFeatures(nn.Module):
    r"""A noise coordinate t (B,) to :math:`[t, \sin 2\pi t w, \cos 2\pi t w]`, (B, 1 + width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(width // 2))

    def forward(self, t: Tensor) -> Tensor:
        t = t[:, None]
        phase = 2 * math.pi * t * self.weights
        return torch.cat([t, phase.sin(), phase.cos()], dim=1)


class Gain(nn.Module):
    """Layer norm without a shift, over the last axis of (..., C) or over the channels (B, C, L).

    Arguments:
        channels: C.
        over_channels: whether the second axis of (B, C, L) is normalised.
    """

    def __init__(self, channels: int, over_channels: bool = False) -> None:
        super().__init__()
        self.over_channels = over_channels
        self.g = nn.Parameter(torch.ones(1, channels, 1) if over_channels else torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if not self.over_channels:
            return F.layer_norm(x, self.g.shape, self.g, None, EPS)
        variance, mean = torch.var_mean(x, dim=1, unbiased=False, keepdim=True)
        return (x - mean) * (variance + EPS).rsqrt() * self.g


class NormedConv(nn.Module):
    """Group norm, an optional modulation, SiLU and a convolution over three positions."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.groupnorm = nn.GroupNorm(groups, channels_in, EPS)
        self.project = nn.Conv1d(channels_in, channels_out, 3, padding=1)

    def forward(self, x: Tensor, modulation: tuple[Tensor, Tensor] | None = None) -> Tensor:
        h = self.groupnorm(x)
        if modulation is not None:
            scale, shift = modulation
            h = h * (scale + 1) + shift
        return self.project(F.silu(h))


class Modulation(nn.Module):
    """The embedding (B, M) to a scale and a shift, each (B, C, 1)."""

    def __init__(self, embedding: int, channels: int) -> None:
        super().__init__()
        self.to_scale_shift = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * channels))

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.to_scale_shift(embedding)[..., None].chunk(2, dim=1)
        return scale, shift


class ResidualBlock(nn.Module):
    """Two normed convolutions beside the identity, or a 1x1 convolution where widths differ."""

    def __init__(self, channels_in: int, channels_out: int, groups: int, embedding: int) -> None:
        super().__init__()
        self.block1 = NormedConv(channels_in, channels_out, groups)
        self.to_scale_shift = Modulation(embedding, channels_out)
        self.block2 = NormedConv(channels_out, channels_out, groups)
        self.to_out: nn.Module = nn.Identity()
        if channels_in != channels_out:
            self.to_out = nn.Conv1d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.block2(self.block1(x), self.to_scale_shift(embedding))
        return h + self.to_out(x)


class Attention(nn.Module):
    """Self-attention over the positions of (B, C, L), between two layer norms; no residual path."""

    def __init__(self, channels: int, heads: int, features: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * features
        self.norm = Gain(channels)
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_kv = nn.Linear(channels, 2 * inner, bias=False)
        out = nn.Sequential(nn.Linear(inner, channels, bias=False), Gain(channels))
        self.attention = nn.ModuleDict({"to_out": out})

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm(x.transpose(1, 2))
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q(n), *self.to_kv(n).chunk(2, dim=-1))
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.attention["to_out"](mixed).transpose(1, 2)


class TransformerBlock(nn.Module):
    """Attention and a feed-forward part, each with a residual path, on (B, C, L)."""

    def __init__(self, channels: int, heads: int, features: int, multiplier: int) -> None:
        super().__init__()
        hidden = multiplier * channels
        self.attention = nn.ModuleDict({"fn": Attention(channels, heads, features)})
        self.feed_forward = nn.Sequential(
            Gain(channels, over_channels=True),
            nn.Conv1d(channels, hidden, 1, bias=False),
            nn.GELU(),
            Gain(hidden, over_channels=True),
            nn.Conv1d(hidden, channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention["fn"](x)
        return x + self.feed_forward(x)


class Down(nn.Module):
    """A strided convolution, residual blocks, perhaps attention; every output is a skip."""

    def __init__(
        self,
        widths: tuple[int, int],
        factor: int,
        kernel_multiplier: int,
        blocks: list[ResidualBlock],
        transformer: TransformerBlock | None,
    ) -> None:
        super().__init__()
        kernel = kernel_multiplier * factor + 1
        self.downsample = nn.Conv1d(
            *widths, kernel, stride=factor, padding=factor * (kernel_multiplier // 2)
        )
        self.blocks = nn.ModuleList(blocks)
        self.transformer = transformer

    def forward(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.downsample(x)
        skips = []
        for block in self.blocks:
            x = block(x, embedding)
            skips.append(x)
        if self.transformer is not None:
            x = self.transformer(x)
            skips.append(x)
        return x, skips


class Up(nn.Module):
    """Residual blocks that take the skips from the last to the first, attention, upsampling."""

    def __init__(
        self,
        widths: tuple[int, int],
        factor: int,
        blocks: list[ResidualBlock],
        transformer: TransformerBlock | None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.transformer = transformer
        odd = factor % 2
        self.upsample = nn.ConvTranspose1d(
            *widths, 2 * factor, stride=factor, padding=factor // 2 + odd, output_padding=odd
        )

    def forward(self, x: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
        for block, skip in zip(self.blocks, reversed(skips), strict=True):
            x = block(torch.cat([x, skip * SKIP_SCALE], dim=1), embedding)
        if self.transformer is not None:
            x = self.transformer(x)
        return self.upsample(x)


class Bottleneck(nn.Module):
    """Two residual blocks with bare attention between them."""

    def __init__(self, pre: ResidualBlock, attention: Attention, post: ResidualBlock) -> None:
        super().__init__()
        self.pre_block = pre
        self.attention = nn.ModuleDict({"fn": attention})
        self.post_block = post

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = self.attention["fn"](self.pre_block(x, embedding))
        return self.post_block(x, embedding)


class UNet1d(nn.Module):
    """The network F of MSDM; the defaults are the published ones.

    Arguments:
        in_channels: stems that go in and come out: 4 in the joint prior, 1 in a single-stem one.
        channels: width after the patches, a multiple of ``patch_factor`` and even.
        patch_factor: samples in a patch.
        multipliers: widths of the levels in units of ``channels``, one more than ``factors``; the
            first is 1.
        factors: time reduction of each level.
        num_blocks: residual blocks of each level.
        attentions: whether a level has attention.
        attention_heads: heads of every attention.
        attention_features: width of a head.
        attention_multiplier: hidden width of the feed-forward parts, in units of their level's.
        resnet_groups: groups of the group norms inside.
        kernel_multiplier_downsample: the strided kernels have this many factors, plus 1; even.

    Raises:
        ValueError: if these do not fit together.
    """

    def __init__(
        self,
        in_channels: int = 4,
        channels: int = 256,
        patch_factor: int = 16,
        multipliers: Sequence[int] = (1, 2, 4, 4, 4, 4, 4),
        factors: Sequence[int] = (4, 4, 4, 2, 2, 2),
        num_blocks: Sequence[int] = (2, 2, 2, 2, 2, 2),
        attentions: Sequence[bool] = (False, False, False, True, True, True),
        attention_heads: int = 8,
        attention_features: int = 128,
        attention_multiplier: int = 2,
        resnet_groups: int = 8,
        kernel_multiplier_downsample: int = 2,
    ) -> None:
        super().__init__()
        levels = len(factors)
        if not len(multipliers) - 1 == len(num_blocks) == len(attentions) == levels >= 1:
            raise ValueError(
                f"got {len(multipliers)} multipliers, {levels} factors, {len(num_blocks)} "
                f"num_blocks and {len(attentions)} attentions; expected as many of each, and one "
                "multiplier more"
            )
        check_least(
            1, in_channels=in_channels, channels=channels, patch_factor=patch_factor,
            multipliers=multipliers, attention_heads=attention_heads,
            attention_features=attention_features, attention_multiplier=attention_multiplier,
            resnet_groups=resnet_groups, kernel_multiplier_downsample=kernel_multiplier_downsample,
        )  # fmt: skip
        check_least(2, factors=factors)  # upsampling has no form for 1
        check_least(0, num_blocks=num_blocks)
        widths = [channels * m for m in multipliers]
        if multipliers[0] != 1 or channels % patch_factor or channels % 2:
            raise ValueError(
                f"got channels = {channels}, patch_factor = {patch_factor} and a first multiplier "
                f"of {multipliers[0]}; expected an even multiple of the patch, and 1"
            )
        if wrong := [w for w in widths[1:] if w % resnet_groups]:
            raise ValueError(f"{resnet_groups} groups do not divide the widths {wrong}")
        if kernel_multiplier_downsample % 2:
            raise ValueError(
                f"got kernel_multiplier_downsample = {kernel_multiplier_downsample}, expected an "
                "even number"
            )
        self.in_channels = in_channels
        self.patch = patch_factor
        self.multiple = patch_factor * math.prod(factors)
        """The number of samples must be a multiple of this."""
        embedding = 4 * channels

        def residual(channels_in: int, channels_out: int) -> ResidualBlock:
            return ResidualBlock(channels_in, channels_out, resnet_groups, embedding)

        def transformer(level: int) -> TransformerBlock | None:
            if not attentions[level]:
                return None
            return TransformerBlock(
                widths[level + 1], attention_heads, attention_features, attention_multiplier
            )

        def end(channels_in: int, channels_out: int) -> nn.ModuleDict:
            groups = min(patch_factor, in_channels)
            block = ResidualBlock(channels_in, channels_out, groups, embedding)
            return nn.ModuleDict({"module_list": nn.ModuleList([nn.ModuleDict({"block": block})])})

        self.to_mapping = nn.Sequential(
            nn.Linear(embedding, embedding), nn.GELU(), nn.Linear(embedding, embedding), nn.GELU()
        )
        features = nn.Sequential(NoiseFeatures(channels), nn.Linear(channels + 1, embedding))
        self.to_time = nn.Sequential(features, nn.GELU())
        self.to_in = end(in_channels, channels // patch_factor)
        self.downsamples = nn.ModuleList(
            Down(
                (widths[i], widths[i + 1]),
                factors[i],
                kernel_multiplier_downsample,
                [residual(widths[i + 1], widths[i + 1]) for _ in range(num_blocks[i])],
                transformer(i),
            )
            for i in range(levels)
        )
        deepest = widths[-1]
        self.bottleneck = Bottleneck(
            residual(deepest, deepest),
            Attention(deepest, attention_heads, attention_features),
            residual(deepest, deepest),
        )
        self.upsamples = nn.ModuleList(
            Up(
                (widths[i + 1], widths[i]),
                factors[i],
                [
                    residual(2 * widths[i + 1], widths[i + 1])
                    for _ in range(num_blocks[i] + bool(attentions[i]))
                ],
                transformer(i),
            )
            for i in reversed(range(levels))
        )
        self.to_out = end(channels // patch_factor, in_channels)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's answer.

        Arguments:
            x: scaled noisy stems, with shape (B, K, T), T a multiple of ``multiple``.
            t: noise coordinate, with shape (B,).

        Returns:
            F, with shape (B, K, T).

        Raises:
            ValueError: if the shape does not suit.
        """
        if x.ndim != 3 or x.shape[1] != self.in_channels or x.shape[2] % self.multiple:
            raise ValueError(
                f"got x of shape {tuple(x.shape)}, expected (batch, {self.in_channels}, time), "
                f"time a multiple of {self.multiple}"
            )
        embedding = self.to_mapping(self.to_time(t))
        # The published keys' nesting of lists and dicts of modules, which types cannot follow.
        x = self.to_in["module_list"][0]["block"](x, embedding)  # type: ignore[index]
        x = x.unflatten(2, (-1, self.patch)).transpose(2, 3).flatten(1, 2)
        outermost = x
        stack = []
        for down in self.downsamples:
            x, skips = down(x, embedding)
            stack.append(skips)
        x = self.bottleneck(x, embedding)
        for up in self.upsamples:
            x = up(x, stack.pop(), embedding)
        x = x + outermost
        x = x.unflatten(1, (-1, self.patch)).transpose(2, 3).flatten(2)
        return self.to_out["module_list"][0]["block"](x, embedding)  # type: ignore[index]
