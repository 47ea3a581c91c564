"""A corpus, a bench and a way to run commands, for the tests of the comparison."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mgdm_audio import hub
from recipes.compare import options
from recipes.compare.bench import Bench
from recipes.compare.clips import LISTS, ClipList

TINY = ClipList(2, 16_384)


@pytest.fixture
def corpus(tmp_path: Path, music: np.ndarray) -> Path:
    """Three songs of three seconds in the splits valid and test; song 1 has no drums."""
    rng = np.random.default_rng(0)
    for split in ("valid", "test"):
        folder = tmp_path / "corpus" / split
        folder.mkdir(parents=True)
        with open(folder / "index.jsonl", "w") as index:
            for song in range(3):
                stems = np.concatenate([music, music[:, :22_050]], axis=1)
                stems = stems * rng.uniform(0.5, 1.0, (4, 1))
                # The last second is louder in all stems.
                stems[:, -22_050:] *= 1.5
                if song == 1:
                    stems[1] = 0
                np.save(folder / f"{song}.npy", (stems * 20_000).astype(np.int16))
                line = {"song": song, "file": f"{song}.npy", "samples": stems.shape[1]}
                index.write(json.dumps(line) + "\n")
    return tmp_path / "corpus"


@pytest.fixture
def regressor(prior: hub.Prior) -> hub.Regressor:
    """A regressor that shares alike."""

    class Shares(torch.nn.Module):
        def forward(self, mix, stems, known):
            rest = mix - (stems * known[:, :, None]).sum(1, keepdim=True)
            left = (~known).sum(1).clamp_min(1)[:, None, None]
            return torch.where(known[:, :, None], stems, rest / left)

    info = dataclasses.replace(prior.info, name="shares", kind="regressor", sha256="2" * 64)
    return hub.Regressor(Shares(), info)


@pytest.fixture
def bench(prior: hub.Prior, regressor: hub.Regressor, tmp_path: Path) -> Bench:
    return Bench(prior, tmp_path / "store", regressor=regressor, device="cpu", precision="float32")


@pytest.fixture
def commands(prior, corpus, tmp_path, monkeypatch):
    """Runs a command on the tiny corpus, with the prior in the model's place."""
    monkeypatch.setattr(options.hub, "load", lambda name, device: prior)
    monkeypatch.setattr(options.hub, "models", list)
    threads = torch.get_num_threads()
    for name in LISTS:
        monkeypatch.setitem(LISTS, name, TINY)

    def run(command, *arguments: str):
        common = ["--corpus", str(corpus), "--store", str(tmp_path / "store"), "--device", "cpu"]
        result = CliRunner().invoke(command, [*common, *arguments], catch_exceptions=False)
        torch.set_num_threads(threads)
        return result

    return run
