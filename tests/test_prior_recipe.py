"""The training recipe on a corpus of noise: continues exactly, learns, exports."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mgdm_audio import hub
from recipes.prior.data import (
    Augmentation,
    StemCorpus,
    validation_crops,
)
from recipes.prior.export import export
from recipes.prior.timbre import equalised
from recipes.prior.train import PriorTask, Settings, edm_loss, main, resume
from recipes.training import command
from recipes.training.trainer import Runtime, Trainer, item_generator, load_state

NETWORK = {
    "class": "TokenUNet",
    "args": {
        "backbone": {
            "bins": 128, "channels": [8, 8], "blocks": [1, 1], "width": 16, "depth": 2,
            "embedding": 16,
        },
        "stft": {"n_fft": 256},
    },
}  # fmt: skip
SETTINGS = Settings(steps=6, batch=2, samples=8192)


@pytest.fixture
def corpus(tmp_path: Path) -> StemCorpus:
    rng = np.random.default_rng(0)
    with (tmp_path / "index.jsonl").open("w") as index:
        for n in range(3):
            stems = rng.normal(0, 1000, (4, 12000 + n)).astype(np.int16)
            np.save(tmp_path / f"{n}.npy", stems)
            line = {"song": n, "file": f"{n}.npy", "samples": stems.shape[1]}
            index.write(json.dumps(line) + "\n")
    return StemCorpus(tmp_path)


def training(corpus: StemCorpus, **runtime: Any) -> Trainer:
    return Trainer(PriorTask(SETTINGS, NETWORK, corpus), runtime=Runtime(**runtime))


def assert_same(a: Trainer, b: Trainer, tolerance: float = 0.0) -> None:
    assert a.step == b.step
    for first, second in ((a.net, b.net), (a.average, b.average)):
        for key, value in first.state_dict().items():
            assert torch.allclose(value, second.state_dict()[key], rtol=0, atol=tolerance), key


def test_continues_exactly(corpus, tmp_path):
    whole = training(corpus)
    whole.prepare()
    for _ in range(6):
        whole.advance()

    part = training(corpus)
    part.prepare()
    for _ in range(3):
        part.advance()
    part.save(tmp_path / "checkpoint.pt")
    torch.manual_seed(99)
    rest = resume(tmp_path / "checkpoint.pt", corpus)
    for _ in range(3):
        rest.advance()
    assert_same(whole, rest)


def test_continues_a_checkpoint_of_the_first_layout(corpus, tmp_path):
    """One with states of random generators, and nothing but these instead of a number."""
    run = training(corpus)
    run.prepare()
    run.advance()
    state = run.state()
    del state["format"]
    state["noise"] = torch.Generator().get_state()
    state["rng"] = json.dumps(np.random.default_rng(0).bit_generator.state)
    torch.save(state, tmp_path / "old.pt")
    old = resume(tmp_path / "old.pt", corpus)
    assert_same(run, old)
    run.advance()
    old.advance()
    assert_same(run, old)
    torch.save({**state, "format": 3}, tmp_path / "new.pt")
    with pytest.raises(ValueError, match="layout 3"):
        resume(tmp_path / "new.pt", corpus)


def test_scalings_are_measured(corpus):
    run = training(corpus)
    run.prepare()
    # White stems of RMS 1000 / 32768, with random gains and filters, some of them muted.
    measured = run.net.sigma_data
    assert measured.min() > 0.5 * 1000 / 32768
    assert measured.max() < 2 * 1000 / 32768
    assert torch.equal(measured, run.average.sigma_data)


def test_noise_levels_of_items(corpus):
    """Log-normal; one level for all stems but for the share that is independent."""
    task = PriorTask(replace(SETTINGS, samples=64, independent=0.3), NETWORK, corpus)
    levels = [task.item(item_generator(0, n), n, 3)["sigma"] for n in range(2000)]
    logs = np.log(levels)
    # Standard errors: 1.6 / sqrt(2000) = 0.036, and 1 % of the share.
    assert abs(logs[:, 0].mean() + 2.6) < 0.15
    assert abs(logs[:, 0].std() - 1.6) < 0.12
    assert abs(np.mean(logs.std(1) > 0) - 0.3) < 0.05


def test_loss_of_the_gaussian_part_is_one(corpus):
    """For Gaussian bins of the assumed power E|F|^2 = 1, whatever the noise level."""
    net = training(corpus).net
    for p in net.parameters():
        torch.nn.init.zeros_(p)
    net.sigma_data.fill_(0.3)
    g = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(4, 4, 64 * 200, generator=g) for _ in range(2))
    sigma = torch.tensor([0.01, 0.1, 1.0, 10.0])[:, None].expand(-1, 4)
    loss = edm_loss(net, 0.3 * clean, noise, sigma)
    # The frames that reach over the ends hold less: 6 of 203.
    assert torch.allclose(loss, torch.ones_like(loss), atol=0.08)


def test_learning_rate_ends_low(corpus):
    settings = Settings(steps=1000)
    rates = list(map(PriorTask(settings, NETWORK, corpus).rate, range(1000)))
    assert max(rates) == settings.lr
    assert rates[0] < 0.01 * settings.lr
    assert rates[-1] < 0.011 * settings.lr
    assert all(a >= b for a, b in pairwise(rates[400:]))


def test_crops_have_the_levels_of_the_corpus(corpus):
    rng = np.random.default_rng(0)
    plain = Augmentation(remix=0, mute=0, stem_gain_db=0, mix_gain_db=0, equaliser_db=0, speed=0)
    crop = corpus.crop(rng, 8192, 3, plain)
    assert crop.dtype == np.float32
    assert np.abs(crop.std(1) * 32.768 - 1).max() < 0.05
    muted = corpus.crop(rng, 8192, 3, Augmentation(mute=1))
    assert not muted.any()
    longer = corpus.crop(rng, 20000, 3, Augmentation(speed=1, mute=0))
    assert longer.shape == (4, 20000)
    assert not longer[:, 14000:].any()


def test_other_speeds_move_the_pitch_and_fold_nothing_back(tmp_path):
    """Tones of 2 kHz and, which leaves the band when played faster, 10 kHz."""
    t = np.arange(60_000) / 22050
    song = 8000 * (np.sin(2 * np.pi * 2000 * t) + np.sin(2 * np.pi * 10_000 * t))
    np.save(tmp_path / "000000.npy", np.stack([song] * 4).astype(np.int16))
    line = {"song": 0, "file": "000000.npy", "samples": 60_000}
    (tmp_path / "index.jsonl").write_text(json.dumps(line) + "\n")
    only = Augmentation(remix=0, mute=0, equaliser_db=0, speed=1, fastest=0.25)
    rng, speeds = np.random.default_rng(0), []
    for _ in range(20):
        crop = StemCorpus(tmp_path).crop(rng, 16_384, 1, only)[0, 1000:15_000]
        spectrum = np.abs(np.fft.rfft(crop * np.hanning(len(crop))))
        f = np.fft.rfftfreq(len(crop), 1 / 22050)
        low = f[np.where(f < 4000, spectrum, 0).argmax()]
        speeds.append(low / 2000)
        if speeds[-1] > 1.15:
            assert spectrum[f > 4000].max() < 0.01 * spectrum.max()
        elif speeds[-1] < 1:
            assert f[np.where(f > 4000, spectrum, 0).argmax()] == pytest.approx(5 * low, abs=4)
    assert 0.77 < min(speeds) < 0.9
    assert 1.1 < max(speeds) < 1.29


def test_equaliser_has_the_stated_spread():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=32768).astype(np.float32))
    knots = torch.from_numpy(rng.normal(0, 3.0, (200, 8))).float()
    after = torch.fft.rfft(equalised(x.expand(200, -1), knots))[:, 3000].abs()
    gains = 20 * torch.log10(after / torch.fft.rfft(x)[3000].abs()).numpy()
    # Between two knots the spread is at least 1/sqrt(2) of theirs; 200 draws: 5 % error.
    assert 1.8 < np.std(gains) < 3.6


def test_validation_crops_are_fixed(corpus):
    crops = validation_crops(corpus.folder, 4096, per_song=2)
    assert crops.shape == (6, 4, 4096)
    assert np.array_equal(crops, validation_crops(corpus.folder, 4096, per_song=2))


def test_missing_corpus(tmp_path):
    with pytest.raises(FileNotFoundError, match="render"):
        StemCorpus(tmp_path / "nothing")


def test_options_that_a_run_that_goes_on_has_not(corpus, tmp_path):
    """Equal ones pass, --steps moves the end, others are refused, by name."""
    for split in ("train", "valid"):
        (tmp_path / "songs" / split).mkdir(parents=True)
        samples = 4 * 2**17
        np.save(tmp_path / "songs" / split / "0.npy", np.ones((4, samples), np.int16))
        line = json.dumps({"song": 0, "file": "0.npy", "samples": samples})
        (tmp_path / "songs" / split / "index.jsonl").write_text(line + "\n")
    network = {"channels": [4, 4], "blocks": [1, 1], "width": 8, "depth": 1, "embedding": 8}
    begun = ["--batch", "2", "--seconds", "0.4", "--seed", "3", "--network", json.dumps(network)]

    def call(*more: str) -> Any:
        folders = ["--corpus", str(tmp_path / "songs"), "--out", str(tmp_path / "run")]
        rest = ["--device", "cpu", "--validate-minutes", "inf", "--score-minutes", "inf"]
        return CliRunner().invoke(main, [*folders, *rest, *more])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "measure", lambda *_: None)
        assert call("--steps", "1", *begun).exit_code == 0
        again = call("--steps", "2", *begun)
        assert again.exit_code == 0, again.output
        assert "continues at step 1 of 2" in again.output
        assert call().exit_code == 0
    for option, other, had in (
        ("batch", "8", "2"),
        ("lr", "1e-5", "0.001"),
        ("seed", "7", "3"),
        ("seconds", "1", "0.39"),
        ("network", "{}", '{"channels'),
    ):
        refused = call("--steps", "9", *begun, f"--{option}", other)
        assert refused.exit_code == 1
        assert f"this run has --{option} {had}" in refused.output
        assert "leave it out or choose another --out" in refused.output
    assert load_state(tmp_path / "run" / "checkpoint.pt")["settings"]["batch"] == 2


def test_export_loads_as_a_model(corpus, tmp_path):
    run = training(corpus)
    run.prepare()
    run.advance()
    run.save(tmp_path / "checkpoint.pt")
    export(tmp_path / "checkpoint.pt", corpus, tmp_path / "tiny", "a tiny model")
    prior = hub.load(tmp_path / "tiny")
    x = torch.randn(1, 4, 4096) * 0.1
    expected = run.average(x, torch.tensor([0.1]))
    assert torch.allclose(prior.denoise(x, torch.tensor([0.1])), expected, atol=1e-3)
