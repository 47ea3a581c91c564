"""MGDM against recordings of the authors' runs: same numbers in, same final state out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mgdm_audio import samplers
from mgdm_audio.denoise import CountingDenoiser, GaussianDenoiser
from mgdm_audio.draws import RecordedDraws
from mgdm_audio.noise import NoiseLevels, int_linspace
from mgdm_audio.operators import Mixture
from mgdm_audio.samplers.base import Cost, Problem

FOLDER = Path(__file__).parents[1] / "../shared/reference/fidelity"
TOLERANCE = 1e-10  # absolute, float64; the recorded precision allows 1e-13

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="no recordings on this machine")

# What the recorded settings say beyond the preset; conditions such as "i >= n_steps - 5" are
# written as the outer index where they begin.
SMALL = {
    "steps": 8,
    "repetitions": 1,
    "gradient_steps": ((0, 3),),
    "denoising_steps": 3,
    "threshold": 3,
}
OVERRIDES = {
    "mgdm_small": SMALL,
    "mgdm_small_b3": SMALL,
    "mgdm_small_sy05": {
        "steps": 8,
        "repetitions": 2,
        "gradient_steps": ((0, 2), (3, 6)),
        "learning_rate": ((0, 0.05), (2, 0.02)),
        "denoising_steps": 4,
        "eta": 0.8,
        "threshold": 3,
    },
    "mgdm_audio": {},
}


def replay(name, **extra):
    """Final state, draws and counting denoiser of a replay, and the recording."""
    record = np.load(FOLDER / f"{name}.npz")
    config = json.loads(str(record["config"]))
    prior = torch.from_numpy(np.load(FOLDER / "problem.npz")["C"])
    denoise = CountingDenoiser(GaussianDenoiser(torch.zeros(4, 8).double(), prior))
    batch = config["batch"]
    y = torch.from_numpy(record["y"]).expand(batch, 1, 8)
    draws = RecordedDraws(
        [torch.from_numpy(record["init_z"]), *torch.from_numpy(record["draws"])],
        record["int_draws"].tolist(),
    )
    sampler = samplers.get("mgdm", "paper", **{**OVERRIDES[name], **extra})
    problem = Problem(Mixture(4), y, config["sigma_y"], (batch, 4, 8))
    return sampler.sample(denoise, problem, draws), draws, denoise, record, sampler


@pytest.mark.parametrize("name", sorted(OVERRIDES))
def test_replay_ends_in_the_recorded_state(name):
    x, draws, denoise, record, sampler = replay(name)
    assert np.abs(x.numpy() - record["final"]).max() < TOLERANCE
    assert draws.exhausted
    batch = x.shape[0]
    assert denoise.calls == int(record["den_calls"]) * batch
    assert denoise.vjps == int(record["den_backward"]) * batch
    assert sampler.cost() == Cost(int(record["den_calls"]), int(record["den_backward"]))


def test_recording_tells_the_two_noisings_apart():
    x, _, _, record, _ = replay("mgdm_small_sy05", noising="forward")
    assert np.abs(x.numpy() - record["final"]).max() > 1e-2


def test_the_published_settings_cost_1429_plain_calls_and_1020_gradients():
    assert samplers.get("mgdm", "paper").cost() == Cost(calls=1429 + 1020, vjps=1020)


def test_grids_are_the_recorded_ones():
    problem = np.load(FOLDER / "problem.npz")
    levels = NoiseLevels.karras(1000, 5e-4, 20.0, 3.0)
    assert np.abs(levels.sigmas.numpy() - problem["vp_sigmas"]).max() < 1e-13
    alphas = levels.alpha_bar(torch.arange(1001)).numpy()
    assert np.abs(alphas - problem["vp_alphas_cumprod"]).max() < 1e-15
    for name in ("mgdm_small", "mgdm_audio", "dps_short"):
        steps = np.load(FOLDER / f"{name}.npz")["timesteps"]
        assert levels.subgrid(len(steps)) == steps.tolist()
    rows = problem["int_linspace_M15_tau"].tolist()
    assert [int_linspace(stop, 15) for stop in rows] == problem["int_linspace_M15"].tolist()
