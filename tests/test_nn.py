"""The network: its transform, its scalings, and that it is a denoiser of any length."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mgdm_audio.nn import RegressorMean, SpectralRegressor, UNet2d, build, token_unet
from mgdm_audio.nn.stft import TightFrame

SMALL = {
    "backbone": {
        "bins": 128, "channels": [8, 8], "blocks": [1, 1], "width": 16, "depth": 2,
        "embedding": 16,
    },
    "stft": {"n_fft": 256},
}  # fmt: skip
SMALL_2D = {
    "backbone": {"bins": 128, "channels": [8, 8, 8], "embedding": 16},
    "stft": {"n_fft": 256},
}
PRIOR = {"class": "UNet2d", "args": SMALL_2D}
PLAIN = {"class": "UNet2dRegressor", "args": SMALL_2D}
COARSE = {
    "class": "UNet2dRegressor",
    "args": {"backbone": SMALL_2D["backbone"] | {"bins": 64}, "stft": {"n_fft": 128}},
}
WIDER = {
    "class": "UNet2dRegressor",
    "args": {
        "backbone": SMALL_2D["backbone"] | {"parts": 5}, "stft": {"n_fft": 256, "beside": 60.0}
    },
}  # fmt: skip
NETWORKS = {"TokenUNet": SMALL, "UNet2d": SMALL_2D}


@pytest.fixture(params=NETWORKS)
def net(request):
    torch.manual_seed(0)
    net = build(request.param, NETWORKS[request.param])
    for p in net.parameters():  # away from the zero initialisation of the last layers
        torch.nn.init.normal_(p, std=0.1)
    return net


@pytest.mark.parametrize("n_fft", [64, 256, 2048])
def test_tight_frame(n_fft):
    frame = TightFrame(n_fft)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 40 * frame.hop, generator=g)
    bins = frame(x)
    assert bins.shape == (2, 3, frame.frames(x.shape[-1]), frame.bins)
    assert (frame.inverse(bins) - x).abs().max() < 1e-5
    # <S x, Z> = 4 <x, S^-1 Z> for the two-sided transform: half of it is stored.
    z = frame(torch.randn(2, 3, 40 * frame.hop, generator=g))
    weight = torch.full((frame.bins,), 2.0)
    weight[0] = weight[-1] = 1.0
    left = ((bins * z.conj()).real * weight).sum()
    assert left == pytest.approx(float(4 * (x * frame.inverse(z)).sum()), rel=1e-4)


def test_white_noise_keeps_its_variance():
    frame = TightFrame(256)
    x = torch.randn(64, 64 * 256, generator=torch.Generator().manual_seed(0))
    power = frame(x)[:, 3:-3].abs().square().mean((0, 1))
    # 64 x 253 correlated frames: about 2 % standard error of each bin.
    assert (power - 1).abs().max() < 0.1
    assert abs(float(power.mean()) - 1) < 0.01


def test_steady_tone_has_a_steady_phase():
    frame = TightFrame(256)
    t = torch.arange(64 * 40)
    tone = torch.cos(2 * torch.pi * 20 * t / 256 + 0.4)
    phase = frame(tone)[4:-4, 20].angle()
    assert (phase - phase[0]).abs().max() < 1e-3


def test_refuses_a_length_between_hops():
    with pytest.raises(ValueError, match="multiple of the hop"):
        TightFrame(256)(torch.zeros(100))


def test_zero_backbone_is_the_wiener_filter():
    """With F = 0 the denoiser is c_skip, the exact answer for Gaussian bins."""
    net = build("TokenUNet", SMALL)
    for p in net.parameters():
        torch.nn.init.zeros_(p)
    net.sigma_data.fill_(0.2)
    x = torch.randn(2, 4, 6400, generator=torch.Generator().manual_seed(0))
    out = net(x, torch.tensor([0.2, 0.4]))
    assert torch.allclose(out[0], x[0] / 2, atol=1e-5)
    assert torch.allclose(out[1], x[1] / 5, atol=1e-5)


@pytest.mark.parametrize("samples", [1, 63, 64, 1000, 4097])
def test_any_length(net, samples):
    x = torch.randn(2, 4, samples)
    assert net(x, torch.tensor([0.1, 0.01])).shape == x.shape


def test_one_level_is_the_same_level_for_all_stems(net):
    x = torch.randn(2, 4, 2048)
    one = net(x, torch.tensor([0.1, 0.02]))
    each = net(x, torch.tensor([[0.1] * 4, [0.02] * 4]))
    assert torch.equal(one, each)
    assert not torch.equal(one, net(x, torch.tensor([[0.1] * 4, [0.02, 0.02, 0.02, 5.0]])))


def test_items_are_independent_and_gradients_finite(net):
    x = torch.randn(3, 4, 2048).requires_grad_()
    sigma = torch.tensor([3e-4, 0.05, 20.0])
    out = net(x, sigma)
    for i in range(3):
        alone = net(x[i : i + 1], sigma[i : i + 1])
        assert torch.allclose(alone, out[i : i + 1], atol=1e-5)
    (slope,) = torch.autograd.grad(out[1].square().sum(), x)
    assert torch.isfinite(slope).all()
    assert slope[1].abs().max() > 0
    assert slope[0].abs().max() == slope[2].abs().max() == 0


def test_small_noise_leaves_the_signal(net):
    """At sigma far below sigma_data the estimate is the input up to the order of sigma."""
    x = torch.randn(1, 4, 2048) * 0.1
    out = net(x, torch.tensor([3e-4]))
    assert (out - x).abs().max() < 0.02


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("Nothing", {}, "unknown network class"),
        ("TokenUNet", {"colour": 1}, "unknown network arguments"),
        ("TokenUNet", {"backbone": {"colour": 1}}, "does not take"),
        ("TokenUNet", {"backbone": {"bins": 100}}, "multiple of 16"),
        ("TokenUNet", {"backbone": {"bins": 16}}, "at least 32, got 16"),
        ("TokenUNet", {"backbone": {"patch": 0}}, "patch = 0, expected 1 or more"),
        ("TokenUNet", {"backbone": {"channels": [0, 96]}}, r"channels = \[0, 96\]"),
        ("TokenUNet", {"backbone": {"blocks": [1]}}, "two of each"),
        ("TokenUNet", {"backbone": {"blocks": [1, -1]}}, r"blocks = \[1, -1\]"),
        ("UNet2d", {"backbone": {"bins": 80}}, "multiple of 32"),
        ("UNet2d", {"backbone": {"channels": []}}, "two or more"),
        ("UNet2d", {"backbone": {"channels": [8]}}, "two or more"),
        ("UNet2d", {"backbone": {"patch": 0}}, "patch = 0, expected 1 or more"),
        ("UNet2d", {"backbone": {"blocks": -1}}, "blocks = -1, expected 0 or more"),
        ("RegressorMean", {"of": []}, "does not take"),
        ("RegressorMean", {"of": [], "shares": []}, "0 networks"),
        ("RegressorMean", {"of": [PRIOR], "shares": [1]}, "not all"),
        ("RegressorMean", {"of": [PLAIN], "shares": [0.9]}, "add up to 1"),
        ("RegressorMean", {"of": [PLAIN], "shares": [0.5, 0.5]}, "1 networks and 2"),
        ("RegressorMean", {"of": [PLAIN], "shares": [[1, 1, 1]]}, "a share is a number or 4"),
        ("RegressorMean", {"of": [PLAIN], "shares": [[1, 1, 0.9, 1]]}, "add up to 1"),
        ("RegressorMean", {"of": [PLAIN, COARSE], "shares": [0.5, 0.5]}, "STFT windows"),
        ("RegressorMean", {"of": [PLAIN, WIDER], "shares": [0.5, 0.5]}, "kinds of mixes"),
    ],
)
def test_build_refuses(name, args, message):
    with pytest.raises(ValueError, match=message):
        build(name, args)


def test_what_shares_by_stem_leave_goes_to_the_loud():
    """In each bin to the stems that are loud there; where none is, to all that are not given."""

    class Answer(SpectralRegressor):
        def __init__(self, stems):
            super().__init__(nn.Identity(), n_fft=256)
            self.answer = stems

        def forward(self, mix, stems, known, other=None):
            return torch.where(known[:, :, None], stems, self.answer)

    t, half = torch.arange(8192) / 256, torch.arange(8192) < 4096
    low, high = (torch.where(half, torch.sin(2 * math.pi * bin * t), 0) for bin in (16, 96))
    later = torch.where(half, 0, torch.sin(2 * math.pi * 50 * t))
    answer = torch.zeros(1, 4, 8192)
    answer[0, 0], answer[0, 1] = low, high
    first, second = Answer(answer), Answer(torch.zeros_like(answer))
    mean = RegressorMean([first, second], [[1, 0.25, 0.5, 0.5], [0, 0.75, 0.5, 0.5]])
    mix = (1.3 * low + 1.2 * high + later)[None, None]
    known = torch.tensor([[False, False, False, True]])
    out = mean(mix, torch.zeros_like(answer), known)[0]
    expected = torch.stack([1.3 * low, 1.2 * high, 0 * low, 0 * low])
    expected[:3] += later / 3
    inside = torch.cat([torch.arange(512, 3584), torch.arange(4608, 7680)])
    assert (out - expected)[:, inside].abs().max() < 1e-3
    assert (out.sum(0) - mix[0, 0]).abs().max() < 1e-4


def test_refuses_shapes(net):
    with pytest.raises(ValueError, match="x must have shape"):
        net(torch.zeros(2, 3, 64), torch.ones(2))
    for wrong in ((), (3,), (2, 1), (2, 3), (2, 5), (2, 4, 1)):
        with pytest.raises(ValueError, match="sigma must have shape"):
            net(torch.zeros(2, 4, 64), torch.ones(wrong))


def test_gradients_of_the_convolutions_are_those_of_torch():
    conv = torch.nn.Conv2d(6, 6, 3, padding=1)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 8, 6, generator=g).requires_grad_(True)
    ours = token_unet.convolved(conv, x)
    theirs = conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert torch.allclose(ours, theirs, atol=1e-6)
    back = torch.randn(ours.shape, generator=g)
    wanted = (x, conv.weight, conv.bias)
    for a, b in zip(
        torch.autograd.grad(ours, wanted, back), torch.autograd.grad(theirs, wanted, back),
        strict=True,
    ):  # fmt: skip
        assert torch.allclose(a, b, atol=1e-5)


def test_convolutions_hear_a_sound_the_same_way_at_any_frequency():
    """What the 2-D U-Net says of a pattern moves with it, by the reduction of frequency."""
    torch.manual_seed(0)
    backbone = UNet2d(channels=(8, 8, 8), embedding=16)
    for name, p in backbone.named_parameters():
        if name != "position":
            torch.nn.init.normal_(p, std=0.1)
    low = torch.zeros(1, 12, 12, 1024)  # it sees some 340 bins around: not the ends
    low[..., 448:456] = torch.randn(1, 12, 12, 8)
    high = low.roll(32, dims=-1)  # patches of 4, reduced by 4 and by 2
    level = torch.zeros(1, 4)
    silent = backbone(torch.zeros_like(low), level)
    one, other = backbone(low, level) - silent, backbone(high, level) - silent
    inside = slice(440, 464)
    assert one[..., inside].abs().max() > 0.1
    assert torch.allclose(one[..., inside], other.roll(-32, dims=-1)[..., inside], atol=1e-4)
