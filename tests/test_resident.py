"""Songs on the device: what is made there of a plan is what the processor makes of it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recipes.prior.data import SONG, SPEED, START, Augmentation, StemCorpus
from recipes.prior.timbre import COEFFICIENTS, FRAME, reshaped
from recipes.prior.train import PriorTask
from recipes.prior.train import Settings as PriorSettings
from recipes.regressor.train import RegressorTask, Settings
from recipes.training import command
from recipes.training.resident import ResidentSongs
from recipes.training.trainer import Runtime, Task, Trainer

CPU = torch.device("cpu")
HOUR = 3600 * 22050
BACKBONE = {
    "bins": 128, "channels": [4, 4], "blocks": [1, 1], "width": 8, "depth": 1, "embedding": 8,
}  # fmt: skip


def add_songs(folder: Path, numbers: range, rows: int = 4) -> StemCorpus:
    """Songs of tones below 4 kHz, each a little longer than the last."""
    folder.mkdir(exist_ok=True)
    with (folder / "index.jsonl").open("a") as index:
        for n in numbers:
            rng, t = np.random.default_rng(n), np.arange(20_000 + 1000 * n) / 22050
            tones = rng.uniform(100, 4000, (rows, 5, 1))
            stems = 2000 * np.sin(2 * np.pi * tones * t + rng.uniform(0, 6, (rows, 5, 1))).sum(1)
            np.save(folder / f"{n}.npy", stems.astype(np.int16))
            line = {"song": n, "file": f"{n}.npy", "samples": stems.shape[1]}
            index.write(json.dumps(line) + "\n")
    return StemCorpus(folder)


@pytest.fixture
def corpus(tmp_path: Path) -> StemCorpus:
    return add_songs(tmp_path / "songs", range(3))


def snr(x: np.ndarray, y: np.ndarray) -> float:
    return float(10 * np.log10(np.sum(x**2) / (np.sum((x - y) ** 2) + 1e-20)))


@pytest.mark.parametrize("samples", [8192, 30_000])  # the second is longer than the songs
def test_made_as_the_processor_makes_it(corpus, samples):
    rng = np.random.default_rng(0)
    ways = Augmentation(speed=0.5, fastest=0.25, timbre=0.5, mute=0.2)
    if samples > 20_000:  # filters spread what stops at a song's end, and do so otherwise there
        ways = replace(ways, timbre=0.0, equaliser_db=0.0)
    plans = [corpus.plan(rng, samples, 3, ways) for _ in range(8)]
    made = ResidentSongs(corpus, CPU, 0.1).played(torch.from_numpy(np.stack(plans)), samples)
    assert made.shape == (8, 4, samples)
    assert made.dtype == torch.float32
    for plan, item in zip(plans, made.numpy(), strict=True):
        played = corpus.played(plan, samples)
        for row, x, y in zip(plan, played, item, strict=True):
            if not x.any():
                assert not y.any()
            elif row[SPEED] == 1 and samples < 20_000:
                assert snr(x, y) > 80
            else:  # resampling filters differ where a tone begins and ends
                assert snr(x[500:-500], y[500:-500]) > (33 if samples < 20_000 else 25)


def test_songs_beyond_the_room_are_not_used(corpus):
    assert ResidentSongs(corpus, CPU, 63_000 / HOUR).count() == 3
    assert ResidentSongs(corpus, CPU, 62_999 / HOUR).count() == 2
    task = PriorTask(PriorSettings(samples=4096), {}, corpus)
    task.reside(CPU, 62_999 / HOUR)
    assert task.songs() == 2


def test_new_songs_are_brought_when_they_are_needed(corpus):
    songs = ResidentSongs(corpus, CPU, 0.1)
    songs.fill()
    add_songs(corpus.folder, range(3, 5))
    corpus.refresh()
    plan = corpus.plan(np.random.default_rng(1), 4096, 5, Augmentation(remix=0, speed=0, mute=0))
    plan[:, SONG], plan[:, START] = 4, 100
    made = songs.played(torch.from_numpy(plan)[None], 4096)[0].numpy()
    assert snr(corpus.played(plan, 4096), made) > 80


def batches(task: Task, hours: float) -> dict[str, torch.Tensor]:
    run = Trainer(task, runtime=Runtime(resident=hours))
    return task.complete(next(run._loader()))


def test_batches_of_the_regressor(corpus, tmp_path):
    others = add_songs(tmp_path / "others", range(2), rows=1)
    args = {"backbone": {**BACKBONE, "parts": 5}, "stft": {"n_fft": 256, "beside": 60.0}}
    settings = Settings(batch=4, samples=8192, beside=1.0, timbre=0.5)

    def task() -> RegressorTask:
        network = {"class": "TokenUNetRegressor", "args": args}
        task = RegressorTask(settings, network, corpus, others)
        task.augmentation = replace(task.augmentation, speed=0.0)
        return task

    there, here = batches(task(), 0.1), batches(task(), 0.0)
    assert there.keys() == here.keys()
    for key, value in here.items():
        assert torch.allclose(value.float(), there[key].float(), rtol=1e-3, atol=1e-5), key


def test_batches_of_the_prior(corpus):
    settings = PriorSettings(batch=4, samples=8192)
    network = {"class": "TokenUNet", "args": {"backbone": BACKBONE, "stft": {"n_fft": 256}}}
    one, two = (batches(PriorTask(settings, network, corpus), 0.1) for _ in range(2))
    assert {*one} == {"clean", "noise", "sigma"}
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert one["noise"].std() == pytest.approx(1, abs=0.02)
    assert torch.corrcoef(one["noise"].flatten(1)).fill_diagonal_(0).abs().max() < 0.05


def test_a_run_learns_the_same_from_them(corpus):
    network = {
        "class": "TokenUNetRegressor",
        "args": {"backbone": BACKBONE, "stft": {"n_fft": 256}},
    }
    runs = []
    for hours in (0.0, 0.1):
        task = RegressorTask(Settings(batch=2, samples=8192, lr=1e-2), network, corpus)
        task.augmentation = replace(task.augmentation, speed=0.0)
        run = Trainer(task, runtime=Runtime(resident=hours, workers=1 if hours else 0))
        run.prepare()
        for _ in range(3):
            losses = run.advance()[0]
        runs.append(losses.nan_to_num())
    assert torch.allclose(*runs, atol=1e-2)


def test_other_recipes_say_that_they_cannot():
    with pytest.raises(ValueError, match="leave out --resident"):
        Task.reside(None, CPU, 1.0)


# -- timbres --------------------


def voice(ratio: float = 1.0) -> torch.Tensor:
    """Harmonics of 100 Hz through a resonance at 1.5 kHz times a ratio, (1, T)."""
    t = torch.arange(22050) / 22050
    f = 100.0 * torch.arange(1, 100)[:, None]
    gains = torch.exp(-((f / (1500 * ratio)).log() ** 2) / 0.1) + 1e-3
    return 0.05 * (gains * torch.sin(2 * torch.pi * f * t + f)).sum(0, keepdim=True)


def centre(x: torch.Tensor) -> float:
    power = torch.fft.rfft(x[0]).abs().square()
    return float((power * torch.arange(len(power)) / x.shape[1] * 22050).sum() / power.sum())


def test_the_envelope_moves_and_the_notes_do_not():
    x, zero, one = voice(), torch.zeros(1), torch.ones(1)
    assert torch.allclose(reshaped(x, zero, one), x, atol=1e-5)
    higher = reshaped(x, torch.tensor([0.25]), one)
    assert higher.square().sum() == pytest.approx(float(x.square().sum()), rel=1e-3)
    assert centre(higher) == pytest.approx(1.28 * centre(x), rel=0.08)
    # Between the harmonics there is as little as before.
    power = torch.fft.rfft(higher[0]).abs().square()
    assert power[100::100].sum() > 0.97 * power.sum()


def test_contrast_flattens_and_sharpens():
    def spread(x: torch.Tensor) -> float:
        harmonics = torch.fft.rfft(x[0]).abs()[500:4000:100]
        return float(harmonics.log().std())

    flat, sharp = (reshaped(voice(), torch.zeros(1), torch.tensor([c])) for c in (0.6, 1.4))
    assert spread(flat) < 0.85 * spread(voice()) < 0.95 * spread(sharp)


def test_silence_stays_and_rows_are_apart():
    x = torch.cat([voice(), torch.zeros(1, 22050), 2 * voice(1.2)])
    ratio, contrast = torch.tensor([0.2, 0.2, -0.1]), torch.tensor([1.2, 0.7, 1.0])
    all_three = reshaped(x, ratio, contrast)
    assert not all_three[1].any()
    for k in (0, 2):
        alone = reshaped(x[k : k + 1], ratio[k : k + 1], contrast[k : k + 1])[0]
        assert torch.allclose(alone, all_three[k], atol=1e-5)
    assert COEFFICIENTS < FRAME // 2


# -- the end of a run --------------------


def test_the_end_is_where_the_time_ends(corpus):
    network = {
        "class": "TokenUNetRegressor",
        "args": {"backbone": BACKBONE, "stft": {"n_fft": 256}},
    }
    run = Trainer(RegressorTask(Settings(steps=10**6), network, corpus))
    run.step = 300
    command.fit(run, time.monotonic() - 20.0, 100, 1.0)  # 200 steps in 20 s, a minute left
    assert run.settings.steps == pytest.approx(900, abs=2)
    assert run.rate() < run.settings.lr
    command.fit(run, time.monotonic() - 20.0, 100, -0.1)
    assert run.settings.steps == 301
