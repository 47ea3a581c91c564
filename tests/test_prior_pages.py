"""What the prior's recipe says of a prior: samples beside the corpus, compute, one call."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mgdm_audio import STEMS
from mgdm_audio.nn import SpectralDenoiser
from recipes.prior import compute, even_split, levels, louder, samples
from recipes.training.log import LEVELS, level_name


def test_a_power_law_is_found_again():
    hours = np.geomspace(1, 100, 12)
    floor, a, b = compute.fit(hours, 0.3 + 0.5 * hours**-0.4)
    assert (floor, a, b) == pytest.approx((0.3, 0.5, 0.4), abs=1e-3)
    with pytest.raises(ValueError, match="at least 4"):
        compute.fit(hours[:3], hours[:3])


def test_the_table_of_a_log(tmp_path):
    log = tmp_path / "log.jsonl"
    lines = []
    for hours in (1, 2, 4, 8, 16):
        lines += [
            {"step": hours, "hours_seen": hours},
            {"step": hours, "valid": {level_name(s): 0.2 + hours**-0.5 for s in LEVELS}},
        ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = CliRunner().invoke(compute.main, [str(log), "--out", str(tmp_path / "curve.png")])
    assert run.exit_code == 0, run.output
    # Sixteen hours, ten and a hundred times as many: 0.2 + 16^-0.5, 160^-0.5, 1600^-0.5.
    assert "| 0.1 | 1.200 | 0.450 | -0.104 | 0.279 | 0.225 | 0.50 |" in run.output
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_a_stem_is_measured():
    t = np.arange(2 * samples.RATE) / samples.RATE
    tone = (0.1 * np.sqrt(2) * np.sin(2 * np.pi * 300 * t)).astype(np.float32)
    tone[samples.RATE :] = 0
    found = samples.measure([tone, np.zeros_like(tone)])
    assert found["level"] == pytest.approx([-20 - 3.01], abs=0.01)  # half of it is silent
    assert found["silent"] == pytest.approx(0.75, abs=0.03)
    assert int(np.argmax(found["bands"])) == samples.EDGES.index(250)
    assert found["bands"].max() > -0.1
    rows = samples.table([np.stack([tone] * 4)], [np.stack([tone] * 4)])
    assert len(rows) == 2 + 2 * len(STEMS)


def test_one_call_of_priors_that_know_all_and_nothing():
    rng = np.random.default_rng(0)
    crops = rng.normal(0, 0.1, (2, 4, 4096)).astype(np.float32)
    truth = [torch.from_numpy(c * (0.08 / c.sum(0).std())) for c in crops]

    def measured(answer):
        asked = iter(truth)
        prior = SimpleNamespace(level=0.08, denoise=lambda x, sigma: answer(x, next(asked)))
        return even_split.improvements(prior, crops, 1e-4, torch.float32)

    assert measured(lambda x, true: x) == pytest.approx([0] * 4, abs=0.01)
    assert min(measured(lambda x, true: true[None])) > 60


def test_alone_a_stem_is_told_nothing_by_the_others():
    """The network of this test adds one to its answer where all stems have one level."""

    class Seen(torch.nn.Module):
        def forward(self, features, log_sigma):
            told = (log_sigma.amax(1) == log_sigma.amin(1)).float()
            return told[:, None, None, None] * torch.ones_like(features)

    net = SpectralDenoiser(Seen(), n_fft=256)
    crops = np.random.default_rng(0).normal(0, 0.05, (2, 4, 4096)).astype(np.float32)
    joint = levels.losses(net, crops, 0.1, False, torch.float32)
    single = levels.losses(net, crops, 0.1, True, torch.float32)
    silent = SpectralDenoiser(Zeros(), n_fft=256)
    nothing = levels.losses(silent, crops, 0.1, False, torch.float32)
    assert all(j > n for j, n in zip(joint, nothing, strict=True))
    # Alone nothing is added; the noise drawn is the same.
    assert single == pytest.approx(nothing, rel=1e-4)


def test_a_bound_on_what_is_louder_than_it_was():
    """Bins that are louder than the stem on average keep their level, quiet ones may rise to it."""

    class Loud(SpectralDenoiser):
        def forward(self, x, sigma):
            return 30 * x.flip(-1)

    net = Loud(torch.nn.Identity(), n_fft=256)
    net.sigma_data.fill_(0.01)
    x = torch.randn(1, 4, 8192, generator=torch.Generator().manual_seed(0))
    x[:, 0] *= 1e-5
    x[:, 1] *= 1e-3
    found = louder.bounded(net)(x, torch.tensor([0.1]))
    rms = found.square().mean(-1).sqrt()[0]
    # No signal has all of its bins at the bound: their sizes vary.
    assert rms[0] == pytest.approx(30e-5, rel=0.02)
    assert 0.005 < rms[1] < 0.01
    assert ((rms[2:] > 0.5) & (rms[2:] < 1)).all()
    quiet = torch.full((1, 4, 8192), 1e-6)
    same = louder.bounded(SpectralDenoiser(Zeros(), n_fft=256))(quiet, torch.tensor([0.1]))
    expected = SpectralDenoiser(Zeros(), n_fft=256)(quiet, torch.tensor([0.1]))
    assert torch.allclose(same, expected, atol=1e-9)


def test_a_denoiser_that_knows_the_stems_finds_the_noise_and_no_more():
    generator = torch.Generator().manual_seed(0)
    stems = 0.1 * torch.randn(1, 4, 4096, generator=generator)
    row, estimate = louder.run(lambda x, sigma: stems, stems, 40)
    noise, upper = row[: len(louder.SHOWN)], row[len(louder.SHOWN) :]
    assert noise == pytest.approx([1.0] * len(noise), abs=0.02)
    assert upper == pytest.approx([0.0] * len(upper), abs=1e-4)
    assert torch.allclose(estimate, stems, atol=1e-5)


class Zeros(torch.nn.Module):
    def forward(self, features, log_sigma):
        return torch.zeros_like(features)
