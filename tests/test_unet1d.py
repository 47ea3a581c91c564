"""The waveform U-Net: published names, shapes and numbers, and what its denoiser promises."""

from __future__ import annotations

import ast
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mgdm_audio.nn import StackedWaveformDenoiser, UNet1d, WaveformDenoiser, build
from mgdm_audio.nn.unet1d import Attention, Up

KEYS = Path(__file__).parents[2] / "shared" / "reference" / "msdm_state_dict.tsv"

TINY: dict[str, Any] = {
    "channels": 32, "patch_factor": 8, "multipliers": [1, 2, 4, 4], "factors": [4, 3, 2],
    "num_blocks": [2, 1, 2], "attentions": [False, True, True], "attention_heads": 2,
    "attention_features": 16,
}  # fmt: skip
SAMPLES = 8 * 4 * 3 * 2 * 10


def tiny(stems: int = 4, **edm: Any) -> WaveformDenoiser:
    """A narrow network with weights that leave no part of it idle."""
    net = build("UNet1d", {"backbone": {**TINY, "in_channels": stems}, "edm": edm})
    generator = torch.Generator().manual_seed(stems)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    assert isinstance(net, WaveformDenoiser)
    return net.eval()


def noisy(stems: int, batch: int = 2, samples: int = SAMPLES) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return 0.3 * torch.randn(batch, stems, samples, generator=generator)


@pytest.mark.parametrize(("stems", "parameters"), [(4, 405_497_700), (1, 405_491_100)])
def test_size_as_published(stems, parameters):
    with torch.device("meta"):
        net = UNet1d(in_channels=stems)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert len(net.state_dict()) == 434
    assert net.multiple == 8192


@pytest.mark.skipif(not KEYS.is_file(), reason="the list of published keys is not here")
@pytest.mark.parametrize(("stems", "column"), [(4, 1), (1, 2)])
def test_keys_and_shapes_as_published(stems, column):
    lines = [line.split("\t") for line in KEYS.read_text().splitlines() if line[0] != "#"][1:]
    published = {
        row[0].removeprefix("model.unet."): tuple(ast.literal_eval(row[column]))
        for row in lines
        if row[0].startswith("model.unet.")
    }
    with torch.device("meta"):
        net = UNet1d(in_channels=stems)
    assert {key: tuple(value.shape) for key, value in net.state_dict().items()} == published


def authors_model(stems: int) -> nn.Module:
    """The denoiser of audio-diffusion-pytorch 0.0.43, which the published weights were made with.

    (`patch_blocks`, `kernel_sizes_init` and the flags are those of the published configuration.)
    """
    theirs = pytest.importorskip("audio_diffusion_pytorch")
    return theirs.AudioDiffusionModel(
        **TINY,
        in_channels=stems, patch_blocks=1, attention_multiplier=2, resnet_groups=8,
        kernel_multiplier_downsample=2, kernel_sizes_init=[1, 3, 7], use_nearest_upsample=False,
        use_skip_scale=True, use_attention_bottleneck=True, use_context_time=True,
        diffusion_sigma_distribution=theirs.LogNormalDistribution(-3.0, 1.0),
        diffusion_sigma_data=0.2, diffusion_dynamic_threshold=0.0,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("stems", [4, 1])
@pytest.mark.parametrize("sigma", [20.0, 1.0, 0.05, 1e-4])
def test_equals_the_authors_network(stems, sigma):
    """Output and gradient, to 1e-5 of their size, at noise levels of all sizes."""
    model = authors_model(stems)
    ours = tiny(stems)
    model.load_state_dict(
        {f"{prefix}.{k}": v for prefix in ("unet", "diffusion.net")
         for k, v in ours.unet.state_dict().items()}
    )  # fmt: skip
    x = noisy(stems) * (0.2**2 + sigma**2) ** 0.5
    levels = torch.full((len(x),), sigma)
    answers, slopes = [], []
    theirs = partial(model.diffusion.denoise_fn, sigmas=levels)
    for denoise in (theirs, partial(ours, sigma=levels)):
        leaf = x.clone().requires_grad_()
        answer = denoise(leaf)
        (slope,) = torch.autograd.grad((answer * noisy(stems)).sum(), leaf)
        answers.append(answer.detach())
        slopes.append(slope)
    assert float((answers[0].abs() < 1).float().mean()) > 0.3  # not all of it is clamped
    for expected, got in (answers, slopes):
        assert float(expected.norm()) > 0
        assert float((got - expected).norm()) <= 1e-5 * float(expected.norm())


def test_skips_are_scaled():
    """Twice the skips at half the scale are the same skips."""
    torch.manual_seed(0)
    up = Up((16, 8), 2, [_first_half(16)], None)
    x, skip = torch.randn(1, 16, 6), torch.randn(1, 16, 6)
    joined = up.upsample(torch.cat([x, skip * 2**-0.5], dim=1)[:, 16:])
    assert torch.allclose(up(x, [skip], torch.zeros(1, 4)), joined)


def _first_half(channels: int) -> Any:
    class Second(nn.Module):
        def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
            return x[:, channels:]

    return Second()


def test_attention_has_no_residual_path():
    attention = Attention(16, 2, 8)
    nn.init.zeros_(attention.attention["to_out"][1].g)
    assert not attention(torch.randn(1, 16, 5)).any()


def test_output_is_clamped_and_gradients_stop_there():
    net = tiny()
    x = (100 * noisy(4)).requires_grad_()
    out = net(x, torch.full((2,), 1e-3))
    assert float(out.detach().abs().max()) == 1.0
    (slope,) = torch.autograd.grad(out[0, 0, 0], x)
    assert not slope.any()
    free = WaveformDenoiser(net.unet, clamp=None)
    assert float(free(x.detach(), torch.full((2,), 1e-3)).detach().abs().max()) > 10


def test_little_noise_is_left_alone():
    """c_skip goes to 1 and c_out to 0: D(x, sigma) = x up to the size of the noise."""
    x = noisy(4)
    assert (tiny()(x, torch.full((2,), 1e-5)) - x.clamp(-1, 1)).abs().max() < 1e-3


@pytest.mark.parametrize("samples", [1, SAMPLES - 1, SAMPLES + 1])
def test_any_length(samples):
    net, x, sigma = tiny(), noisy(4, samples=samples), torch.full((2,), 0.1)
    out = net(x, sigma)
    assert out.shape == x.shape
    padded = torch.nn.functional.pad(x, (0, -samples % net.unet.multiple))
    assert torch.equal(out, net(padded, sigma)[..., :samples])


def test_one_noise_level_for_all_stems():
    net, x = tiny(), noisy(4)
    sigma = torch.tensor([0.1, 0.5])
    together = net(x, sigma)
    assert torch.equal(together, net(x, sigma[:, None].expand(2, 4)))
    alone = torch.cat([net(x[i : i + 1], sigma[i : i + 1]) for i in range(2)])
    assert torch.allclose(together, alone, atol=1e-5)
    with pytest.raises(ValueError, match="one noise level for all stems"):
        net(x, torch.tensor([[0.1, 0.1, 0.1, 0.2]] * 2))


@pytest.mark.parametrize("name", ["UNet1d", "UNet1dStack"])
def test_shapes_that_do_not_fit(name):
    net, x = build(name, {"backbone": TINY}), noisy(4)
    for wrong in ((), (3,), (2, 1), (2, 3), (2, 5), (2, 4, 1)):
        with pytest.raises(ValueError, match="sigma must have shape"):
            net(x, torch.ones(wrong))
    with pytest.raises(ValueError, match=r"\(batch, 4, time\)"):
        net(noisy(3), torch.ones(2))


def test_a_stack_is_its_parts():
    args = {"backbone": TINY, "edm": {"clamp": None}, "stems": 3}
    stack = build("UNet1dStack", args)
    assert isinstance(stack, StackedWaveformDenoiser)
    assert stack.stems == 3
    x, sigma = noisy(3), torch.tensor([[0.1, 0.2, 0.3], [1.0, 2.0, 3.0]])
    out = stack(x, sigma)
    for k, prior in enumerate(stack.priors):
        assert torch.equal(out[:, k : k + 1], prior(x[:, k : k + 1], sigma[:, k]))
    assert torch.equal(stack(x, sigma[:, 0]), stack(x, sigma[:, :1].expand(2, 3)))
    with pytest.raises(ValueError, match="single"):
        StackedWaveformDenoiser([tiny(4)])


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float64, 0), (torch.bfloat16, 0.02), (torch.float16, 0.002)]
)
def test_takes_signals_of_any_precision(dtype, error):
    """As the networks on bins do: it computes in float32, and gives back what it got."""
    net, x, sigma = tiny(), noisy(4), torch.full((2,), 0.3)
    out = net(x.to(dtype), sigma)
    assert out.dtype == dtype
    assert (out.float() - net(x, sigma)).abs().max() <= error


def test_half_precision_is_close():
    net, x, sigma = tiny(), noisy(4), torch.full((2,), 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        half = net(x, sigma)
    assert half.dtype == torch.float32
    error = (half - net(x, sigma)).abs()
    assert torch.quantile(error, 0.99) < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factors": [4, 2]}, "multipliers"),
        ({"channels": 36}, "multiple of the patch"),
        ({"multipliers": [2, 2, 4, 4]}, "and 1"),
        ({"resnet_groups": 7}, "7 groups"),
        ({"kernel_multiplier_downsample": 3}, "even number"),
        ({"in_channels": 0}, "in_channels = 0, expected 1 or more"),
        ({"channels": 0}, "channels = 0, expected 1 or more"),
        ({"patch_factor": 0}, "patch_factor = 0, expected 1 or more"),
        ({"multipliers": [1, 2, 0, 4]}, r"multipliers = \[1, 2, 0, 4\], expected 1 or more"),
        ({"factors": [4, 0, 2]}, r"factors = \[4, 0, 2\], expected 2 or more"),
        ({"factors": [4, 1, 2]}, r"factors = \[4, 1, 2\], expected 2 or more"),
        ({"num_blocks": [2, -1, 2]}, r"num_blocks = \[2, -1, 2\], expected 0 or more"),
        ({"attention_heads": 0}, "attention_heads = 0, expected 1 or more"),
        ({"attention_features": 0}, "attention_features = 0, expected 1 or more"),
        ({"attention_multiplier": 0}, "attention_multiplier = 0, expected 1 or more"),
        ({"resnet_groups": 0}, "resnet_groups = 0, expected 1 or more"),
        ({"kernel_multiplier_downsample": 0}, "kernel_multiplier_downsample = 0, expected 1"),
        ({"dropout": 0.1}, "does not take"),
    ],
)
def test_arguments_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        build("UNet1d", {"backbone": {**TINY, **change}})


def test_a_level_may_have_no_blocks():
    net = build("UNet1d", {"backbone": {**TINY, "num_blocks": [0, 0, 0]}})
    assert net(noisy(4), torch.ones(2)).shape == noisy(4).shape


def test_input_that_does_not_fit():
    with pytest.raises(ValueError, match="multiple of 192"):
        tiny().unet(noisy(4, samples=100), torch.ones(2))
