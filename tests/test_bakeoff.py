"""The candidates for the prior's network, and the error that they are compared by."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mgdm_audio.nn import SpectralDenoiser, UNet2d
from recipes.prior import bakeoff
from recipes.prior.bakeoff import CANDIDATES, NoGain, PowerOnly, denoising_errors, rate, table
from recipes.prior.candidates import BandSplit, FrameTokens, TDFUNet2d
from recipes.prior.train import edm_loss

BACKBONES = {
    "unet": lambda bins: UNet2d(bins=bins, channels=(8, 12, 16)),
    "unet-tdf": lambda bins: TDFUNet2d(bins=bins, channels=(8, 12, 16)),
    "frames": lambda bins: FrameTokens(bins=bins, width=16, depth=2),
    "band-split": lambda bins: BandSplit(bins=bins, width=16, depth=2),
    "no-gain": lambda bins: NoGain(FrameTokens(bins=bins, width=16, depth=2)),
}


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize(("frames", "bins"), [(1, 512), (5, 1024)])
def test_a_candidate_keeps_the_shape_and_begins_at_zero(name, frames, bins):
    torch.manual_seed(0)
    net = BACKBONES[name](bins)
    features, levels = torch.randn(2, 12, frames, bins), torch.randn(2, 4)
    out = net(features, levels)
    assert out.shape == features.shape
    assert not out.any()


@pytest.mark.parametrize("name", BACKBONES)
def test_every_weight_of_a_candidate_is_trained(name):
    torch.manual_seed(0)
    net = BACKBONES[name](512)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05)
    net(torch.randn(1, 12, 9, 512), torch.randn(1, 4)).square().mean().backward()
    without = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def test_bands_of_the_mixer_cover_every_bin_once():
    for bins in (512, 1024):
        net = BandSplit(bins=bins, width=8, depth=1)
        assert sum(net.sizes) == bins
        assert min(net.sizes) >= 4
        for layer in net.leave:
            torch.nn.init.normal_(layer.weight)
        out = net(torch.randn(1, 12, 3, bins), torch.zeros(1, 4))
        assert (out.abs().amax(dim=(0, 1, 2)) > 0).all()


def test_without_the_gain_the_residual_alone_is_left():
    class Ones(torch.nn.Module):
        def forward(self, features, log_sigma):
            return torch.ones_like(features)

    net = NoGain(Ones())
    result = net(torch.randn(1, 12, 2, 8), torch.zeros(1, 4))
    assert not result[:, :4].any()
    assert (result[:, 4:] == 1).all()


def test_what_sees_no_phase_answers_by_the_power_alone():
    net = PowerOnly(torch.nn.Identity())
    net.backbone.forward = lambda features, log_sigma: features
    features = torch.randn(1, 12, 2, 8)
    result = net(features, torch.zeros(1, 4))
    assert torch.equal(result[:, :4], features[:, :4])
    assert not result[:, 4:].any()


def test_the_common_error_is_the_loss_of_the_shipped_input():
    torch.manual_seed(0)
    net = SpectralDenoiser(FrameTokens(bins=1024, width=8, depth=1))
    torch.nn.init.normal_(net.backbone.leave.weight, std=0.05)
    net.sigma_data.uniform_(0.01, 0.1)
    crop = np.random.default_rng(0).normal(0, 0.05, (1, 4, 16_384)).astype(np.float32)
    found = denoising_errors(net, net.sigma_data, crop, torch.float32)
    for sigma in (0.01, 0.3):
        noise = torch.randn(1, 4, 16_384, generator=torch.Generator().manual_seed(1234))
        loss = edm_loss(net, torch.from_numpy(crop), noise, torch.full((1, 4), sigma)).mean()
        # Bins that are no signal's own are lost on the way through the waveform.
        assert found[f"{sigma:g}"] == pytest.approx(float(loss.detach()), rel=0.2)
        assert found[f"{sigma:g}"] <= float(loss.detach())


def test_the_rate_rises_stays_and_falls():
    assert rate(0.0, 0, 10.0) == pytest.approx(bakeoff.LR / bakeoff.WARM_STEPS)
    assert rate(3.0, 100, 10.0) == pytest.approx(bakeoff.LR)
    assert rate(10.0, 500, 10.0) == pytest.approx(bakeoff.LR / 100)


def write_songs(folder, count):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = []
    for n in range(count):
        pcm = rng.normal(0, 2000, (4, 140_000)).astype(np.int16)
        np.save(folder / f"{n:06d}.npy", pcm)
        lines.append(json.dumps({"file": f"{n:06d}.npy", "samples": 140_000, "song": n}))
    (folder / "index.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.slow
def test_the_command_goes_on_with_what_is_missing(tmp_path, monkeypatch):
    write_songs(tmp_path / "train", 2)
    write_songs(tmp_path / "valid", 1)
    monkeypatch.setitem(
        CANDIDATES, "frames", bakeoff.Candidate("small", lambda b: FrameTokens(bins=b, width=8))
    )
    arguments = ["--corpus", str(tmp_path), "--out", str(tmp_path / "out"), "--minutes", "0.01"]
    arguments += ["--candidate", "frames"]
    runner = CliRunner()
    first = runner.invoke(bakeoff.main, [*arguments, "--role", "prior"])
    assert first.exit_code == 0, first.output
    second = runner.invoke(bakeoff.main, arguments)
    assert second.exit_code == 0, second.output
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["role"] for line in lines] == ["prior", "regressor"]
    assert (tmp_path / "out" / "table.md").read_text() == table([json.loads(x) for x in lines])
    other = runner.invoke(bakeoff.main, [*arguments, "--minutes", "0.02"])
    assert other.exit_code == 1
    assert "another --out" in other.output
