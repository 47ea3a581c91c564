"""The restoration recipe: tasks, who takes them, resuming, the table."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import make_prior

from mgdm_audio import samplers
from recipes.restoration import restore as restoration
from recipes.restoration.restore import (
    BASELINE,
    METHODS,
    log_spectral_distance,
    restore,
    run,
    sampler_for,
    table,
)
from recipes.restoration.tasks import LINEAR, NOISE, TASKS, make

RATE = 22050


@pytest.fixture
def stems(music):
    return torch.from_numpy(music[:, 4000:8032])


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("target", [None, 1])
def test_tasks(name, target, stems):
    task = make(name, stems, target, RATE, seed=1)
    signal = stems.sum(0) if target is None else stems[target]
    assert torch.allclose(task.truth, signal, atol=1e-6)
    clean = task.operator.forward(stems[None])
    assert task.y.shape == clean.shape
    assert float((task.y - clean).square().mean().sqrt()) < 2 * NOISE
    assert torch.equal(make(name, stems, target, RATE, seed=1).y, task.y)
    # It is damage: the observation alone does not give the signal back.
    guess = task.target.forward(task.operator.first_guess(task.y))[0, 0]
    assert guess.shape == signal.shape
    error = float((guess - signal).square().sum() / signal.square().sum())
    assert error > (1e-7 if name == "overdrive" else 1e-4)


def test_who_takes_what():
    takes = {m: [t for t in TASKS if sampler_for(m, t, "fast") is not None] for m in METHODS}
    everything = list(TASKS)
    for method in METHODS:
        linear = method in ("pgdm", "ddnm", "diffpir")
        assert takes[method] == (list(LINEAR) if linear else everything)
        for task in takes[method]:
            sampler = sampler_for(method, task, "fast")
            assert task in LINEAR or not sampler.needs_linear
    assert set(METHODS) <= set(samplers.names())


@pytest.mark.parametrize("name", ["down4", "gap", "reverb", "clip"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_restores_what_it_takes(name, method, stems):
    """With a rough prior, at the fast preset: what comes out explains what was seen."""
    sampler = sampler_for(method, name, "fast")
    if sampler is None:
        return
    task = make(name, stems[:, :1024], None, RATE, seed=0)
    x, calls, _ = restore(make_prior(), task, sampler, (4, 1024), 0)
    assert calls == sampler.cost().calls
    assert bool(torch.isfinite(x).all())
    signal = task.truth
    assert float((x - signal).norm()) < 2 * float(signal.norm())


def test_log_spectral_distance(stems):
    x = stems[1].numpy()
    assert log_spectral_distance(x, x) == 0
    # Ten times the amplitude is 20 dB in every bin above the floor.
    assert 15 < log_spectral_distance(10 * x, x) <= 20 + 1e-6
    low = np.convolve(x, np.ones(8) / 8, "same")
    assert log_spectral_distance(low, x) > 3


def test_results_are_kept_and_resumed(stems, tmp_path):
    output, told = tmp_path / "results.jsonl", []
    clips = [("valid-000", "a", stems.numpy()[:, :1024])]
    arguments = (make_prior(), clips, output, ("ddnm", "dps"), ("down4", "clip"), "fast")
    first = run(*arguments, told.append)
    # Two targets, two tasks, the baseline and two methods, of which one does not take clipping.
    assert len(first) == len(told) == 2 * (3 + 2)
    lines = output.read_text().splitlines()
    output.write_text("\n".join(lines[:4]) + "\n")
    again = run(*arguments, told.append)
    assert len(told) == 10 + 6
    assert [row["si_sdr"] for row in again] == [row["si_sdr"] for row in first]
    text = table(again, "mix")
    assert text.splitlines()[2] == f"| operator | {BASELINE} | dps | ddnm |"
    assert text.count("**") in (8, 10)
    assert "| clip | " in text
    assert all(math.isfinite(json.loads(line)["lsd"]) for line in lines)


def test_another_clip_of_the_same_song_is_another_clip(stems, tmp_path, monkeypatch):
    """Lines of before there were checksums are of clips of the usual length."""
    output, told = tmp_path / "results.jsonl", []
    song = stems.numpy()

    def made(digest, length):
        told.clear()
        clips = [("valid-000", digest, song[:, :length])]
        return run(make_prior(), clips, output, (), ("down4",), "fast", told.append)

    first = made("a", 1024)
    assert len(told) == 2
    assert made("a", 1024) == first
    assert not told
    assert {row["digest"] for row in made("b", 512)} == {"b"}
    assert len(told) == 2
    monkeypatch.setattr(restoration, "SECONDS", 1024 / RATE)
    for row in first:
        del row["digest"]
    output.write_text("".join(json.dumps(row) + "\n" for row in first))
    assert made("c", 1024) == first
    assert not told
    assert len(made("d", 512)) == len(told) == 2
