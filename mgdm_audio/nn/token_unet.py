r"""A U-Net along frequency over a stack of frame tokens.

Bins are grouped in patches of four and go through blocks of two 3x3 convolutions with a linear
layer along frequency between them (TFC-TDF: convolutions share over frequency, the linear layer
sees a whole frame at once). After one reduction by four in frequency, each frame is flattened to
one token, and ConvNeXt blocks with dilated depthwise convolutions in time mix bands, stems and a
few seconds of context at little cost. The noise levels of all stems modulate every block.

References:
    Investigating U-Nets with various Intermediate Blocks for Spectrogram-based Singing Voice
    Separation (Choi et al., 2020)
    https://arxiv.org/abs/1912.02591

    A ConvNet for the 2020s (Liu et al., 2022)
    https://arxiv.org/abs/2201.03545
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mgdm_audio.nn.checks import check_least


class NoiseEmbedding(nn.Module):
    """Log noise levels (B, K) to one vector (B, width): sines and cosines, then two layers."""

    frequencies: Tensor

    def __init__(self, stems: int, width: int, features: int = 16) -> None:
        super().__init__()
        # Wavelengths from 50 down to 0.8 nepers of sigma.
        frequencies = 2 * math.pi * torch.logspace(math.log10(1 / 50), math.log10(1.25), features)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(2 * stems * features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )

    def forward(self, log_sigma: Tensor) -> Tensor:
        phase = (log_sigma[..., None] * self.frequencies).flatten(1)
        return self.layers(torch.cat([phase.sin(), phase.cos()], dim=1))


class ModulatedNorm(nn.Module):
    """Layer norm over the last axis with scale and shift from the noise embedding."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.channels = channels
        self.modulation = nn.Linear(embedding, 2 * channels)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding).chunk(2, dim=-1)
        middle = (1,) * (x.ndim - 2)
        scale, shift = (
            m.to(x.dtype).reshape(m.shape[0], *middle, self.channels) for m in (1 + scale, shift)
        )
        return torch.addcmul(shift, F.layer_norm(x, (self.channels,)), scale)


class AlongBands(nn.Module):
    """A linear layer over the bands of (B, frames, bands, channels), shared by the channels.

    Weight times data instead of data times weight: no transposed copy of the activations.
    """

    def __init__(self, bands_in: int, bands_out: int) -> None:
        super().__init__()
        bound = bands_in**-0.5
        self.weight = nn.Parameter(torch.empty(bands_out, bands_in).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(bands_out, 1))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.matmul(self.weight, x)
        return out + self.bias.to(out.dtype)


class TFCTDF(nn.Module):
    """Two 3x3 convolutions with a residual linear layer along frequency between them.

    Works on (B, frames, bands, channels), so that convolutions run channels-last.
    """

    def __init__(self, channels: int, bands: int, reduction: int, embedding: int) -> None:
        super().__init__()
        self.norm = ModulatedNorm(channels, embedding)
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.down = AlongBands(bands, bands // reduction)
        self.up = AlongBands(bands // reduction, bands)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.norm(x, embedding)
        h = F.gelu(convolved(self.conv_in, h))
        h = h + self.up(F.gelu(self.down(h)))
        return x + convolved(self.conv_out, h)


class ConvNeXt(nn.Module):
    """Depthwise dilated convolution in time, then a two-layer perceptron, on (B, frames, width)."""

    def __init__(self, width: int, expansion: int, dilation: int, embedding: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(
            width, width, 7, padding=3 * dilation, dilation=dilation, groups=width
        )
        self.norm = ModulatedNorm(width, embedding)
        self.expand = nn.Linear(width, expansion * width)
        self.project = nn.Linear(expansion * width, width)
        nn.init.zeros_(self.project.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        return x + self.project(F.gelu(self.expand(self.norm(h, embedding))))


class TokenUNet(nn.Module):
    """The backbone of the default prior.

    Arguments:
        stems: the number of stems K.
        bins: frequency bins without the Nyquist bin, a multiple of ``4 * patch`` and at least
            ``8 * patch``.
        patch: bins per patch.
        channels: channels at the patch resolution and at a quarter of it.
        blocks: TFC-TDF blocks on either side of the U at the two resolutions.
        width: the width of the frame tokens.
        depth: the number of ConvNeXt blocks; dilations run 1, 2, 4, 8, 1, ...
        expansion: the hidden width of their perceptron, in units of ``width``.
        embedding: the width of the noise embedding.
        parts: the number of signals that come out, by default the stems.

    Raises:
        ValueError: if these do not fit together.
    """

    def __init__(
        self,
        stems: int = 4,
        bins: int = 1024,
        patch: int = 4,
        channels: tuple[int, int] | list[int] = (64, 96),
        blocks: tuple[int, int] | list[int] = (1, 2),
        width: int = 512,
        depth: int = 6,
        expansion: int = 2,
        embedding: int = 256,
        parts: int | None = None,
    ) -> None:
        super().__init__()
        self.parts = stems if parts is None else parts
        if len(channels) != 2 or len(blocks) != 2:
            raise ValueError(
                f"got channels = {channels} and blocks = {blocks}, expected two of each"
            )
        check_least(
            1, stems=stems, patch=patch, channels=channels, width=width, expansion=expansion,
            embedding=embedding, parts=self.parts,
        )  # fmt: skip
        check_least(0, blocks=blocks, depth=depth)
        # The layers along frequency go down to an eighth of the patches.
        if bins % (4 * patch) or bins < 8 * patch:
            raise ValueError(
                f"bins must be a multiple of {4 * patch} and at least {8 * patch}, got {bins}"
            )
        self.patch = patch
        fine, coarse = channels
        bands = bins // patch
        self.embedding = NoiseEmbedding(stems, embedding)
        self.patches = nn.Linear(3 * stems * patch, fine)
        self.position = nn.Parameter(torch.zeros(bands, fine))

        def stack(n: int, width: int, bands: int, reduction: int) -> nn.ModuleList:
            return nn.ModuleList(TFCTDF(width, bands, reduction, embedding) for _ in range(n))

        self.fine_in = stack(blocks[0], fine, bands, 8)
        self.reduce = nn.Linear(4 * fine, coarse)
        self.coarse_in = stack(blocks[1], coarse, bands // 4, 2)
        self.to_token = nn.Linear(bands // 4 * coarse, width)
        self.tokens = nn.ModuleList(
            ConvNeXt(width, expansion, 2 ** (i % 4), embedding) for i in range(depth)
        )
        self.from_token = nn.Linear(width, bands // 4 * coarse)
        self.coarse_out = stack(blocks[1], coarse, bands // 4, 2)
        self.widen = nn.Linear(coarse, 4 * fine)
        self.fine_out = stack(blocks[0], fine, bands, 8)
        self.norm = ModulatedNorm(fine, embedding)
        self.outputs = nn.Linear(fine, 3 * self.parts * patch)
        nn.init.zeros_(self.outputs.weight)

    def forward(self, features: Tensor, log_sigma: Tensor) -> Tensor:
        """(B, 3K, frames, bins) and (B, K) to (B, 3 parts, frames, bins)."""
        e = self.embedding(log_sigma)
        x = features.unflatten(-1, (-1, self.patch)).permute(0, 2, 3, 1, 4).flatten(-2)
        fine = self.patches(x)
        fine = fine + self.position.to(fine.dtype)
        for block in self.fine_in:
            fine = block(fine, e)
        coarse = self.reduce(fine.unflatten(2, (-1, 4)).flatten(-2))
        for block in self.coarse_in:
            coarse = block(coarse, e)
        token = self.to_token(coarse.flatten(2))
        for block in self.tokens:
            token = block(token, e)
        coarse = coarse + self.from_token(token).unflatten(-1, coarse.shape[2:])
        for block in self.coarse_out:
            coarse = block(coarse, e)
        fine = fine + self.widen(coarse).unflatten(-1, (4, -1)).flatten(2, 3)
        for block in self.fine_out:
            fine = block(fine, e)
        out = self.outputs(self.norm(fine, e))
        return out.unflatten(-1, (-1, self.patch)).permute(0, 3, 1, 2, 4).flatten(-2)


class _Convolution(torch.autograd.Function):
    """A 3x3 convolution of channels-last float32 data on a CPU, with another weight gradient.

    oneDNN's gradient of the weights takes four times as long on channels-last data as on plain
    ones, the copies included (AVX2; it is two thirds of a training step there).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        sizes = ([len(weight)], [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        gradient = torch.ops.aten.convolution_backward
        wanted = ctx.needs_input_grad[0]
        of_x = gradient(grad, x, weight, *sizes, [True, False, False])[0] if wanted else None
        plain = (grad.contiguous(), x.contiguous())
        return of_x, *gradient(*plain, weight, *sizes, [False, True, True])[1:]


def convolved(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 3x3 convolution over the two middle axes of (B, frames, bands, channels)."""
    x = x.permute(0, 3, 1, 2)
    trained = torch.is_grad_enabled() and conv.weight.requires_grad
    if trained and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
        return _Convolution.apply(x, conv.weight, conv.bias).permute(0, 2, 3, 1)
    return conv(x).permute(0, 2, 3, 1)
