"""The variance-preserving competitors against recordings of the authors' runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mgdm_audio import samplers
from mgdm_audio.denoise import CountingDenoiser, GaussianDenoiser
from mgdm_audio.draws import RecordedDraws
from mgdm_audio.operators import Mixture
from mgdm_audio.samplers.base import Cost, Problem

FOLDER = Path(__file__).parents[1] / "../shared/reference/fidelity"
TOLERANCE = 1e-10  # absolute, float64; the recorded precision allows 1e-13

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="no recordings on this machine")

# What the recorded settings say beyond the preset "paper".
OVERRIDES = {
    "dps_short": {"steps": 50},
    "dps_short_g002": {"steps": 50, "gamma": 0.02},
    "dps_audio": {},
    "pgdm_short": {"steps": 50},
    "pgdm_short_sy05": {"steps": 50},
    "pgdm_audio": {},
    "ddnm_short": {"steps": 50},
    "ddnm_short_sy05": {"steps": 50},
    "ddnm_audio": {},
    "diffpir_short": {"steps": 50},
    "diffpir_short_sy05": {"steps": 50, "zeta": 0.3},
    "diffpir_audio": {},
    "reddiff_short": {"steps": 50},
    "reddiff_short_fixed": {"steps": 50, "noise_table": "grid"},
    "reddiff_audio": {},
}
# The authors' order of operations loses six digits there, see mgdm_audio/samplers/diffpir.py.
LOOSE = {"diffpir_short": 1e-8, "diffpir_audio": 1e-8}


def normals(name, record):
    """The recorded normals as the state's, in the order in which they are asked for."""
    method = name.split("_")[0]
    own_start = method in ("diffpir", "reddiff")  # the initial noise handed to them is ignored
    drawn = torch.from_numpy(record["draws"]).double().reshape(-1, 1, 4, 8)
    if not own_start:
        drawn = torch.cat([torch.from_numpy(record["init_z"]).double()[None], drawn])
    if method == "pgdm":
        # The authors draw coefficients in the singular basis of the mix.
        basis = torch.from_numpy(record["V_small"])
        drawn = torch.einsum("ij,nbjt->nbit", basis, drawn)
    return list(drawn)


def replay(name, **extra):
    """Final state, draws, counting denoiser and sampler of a replay, and the recording."""
    record = np.load(FOLDER / f"{name}.npz")
    config = json.loads(str(record["config"]))
    prior = torch.from_numpy(np.load(FOLDER / "problem.npz")["C"])
    denoise = CountingDenoiser(GaussianDenoiser(torch.zeros(4, 8).double(), prior))
    y = torch.from_numpy(record["y"]).expand(1, 1, 8)
    draws = RecordedDraws(normals(name, record))
    sampler = samplers.get(name.split("_")[0], "paper", **{**OVERRIDES[name], **extra})
    problem = Problem(Mixture(4), y, config["sigma_y"], (1, 4, 8))
    return sampler.sample(denoise, problem, draws), draws, denoise, record, sampler


@pytest.mark.parametrize("name", sorted(OVERRIDES))
def test_replay_ends_in_the_recorded_state(name):
    x, draws, denoise, record, sampler = replay(name)
    assert np.abs(x.numpy() - record["final"]).max() < LOOSE.get(name, TOLERANCE)
    assert draws.exhausted
    assert denoise.calls == int(record["den_calls"])
    assert denoise.vjps == int(record["den_backward"])
    assert sampler.cost() == Cost(int(record["den_calls"]), int(record["den_backward"]))


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("dps_short_g002", {"eta": 0.9}),
        ("dps_short_g002", {"normalise": "rms"}),
        ("pgdm_short_sy05", {"weight": "posterior"}),
        ("pgdm_short_sy05", {"prior_std": 0.2}),
        ("ddnm_short", {"published_grid": False}),
        ("ddnm_short_sy05", {"eta": 1.0}),
        ("diffpir_short_sy05", {"zeta": 1.0}),
        ("diffpir_short_sy05", {"pull": 2.0}),
        ("reddiff_short", {"noise_table": "grid"}),
        ("reddiff_short_fixed", {"spread": 0.1}),
    ],
)
def test_recordings_tell_the_settings_apart(name, extra):
    x, _, _, record, _ = replay(name, **extra)
    assert np.abs(x.numpy() - record["final"]).max() > 1e-4
