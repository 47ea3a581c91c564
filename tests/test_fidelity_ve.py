"""The variance-exploding samplers against recordings of the authors' runs."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mgdm_audio import samplers
from mgdm_audio.denoise import CountingDenoiser, GaussianDenoiser, StackedDenoiser
from mgdm_audio.draws import RecordedDraws
from mgdm_audio.operators import Mixture
from mgdm_audio.samplers.base import Problem

FOLDER = Path(__file__).parents[1] / "../shared/reference/fidelity"
TOLERANCE = 1e-10  # absolute, float64; the recorded precision allows 1e-13

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="no recordings on this machine")

# What the recorded settings say beyond the preset "paper". The short runs have fewer levels, and
# less churn in proportion.
SHORT_PNPDM = {"levels": 29, "iterations": 29, "width_decay": 0.8}
OVERRIDES = {
    "msdm_dirac_r1_short": {"levels": 30, "churn": 4.0, "repetitions": 1},
    "msdm_dirac_r1_audio": {"repetitions": 1},
    "msdm_dirac_r2_short": {"levels": 30, "churn": 4.0},
    "msdm_dirac_r2_audio": {},
    "msdm_gaussian_r1_short": {"levels": 30, "churn": 8.0, "repetitions": 1},
    "msdm_gaussian_r1_audio": {"repetitions": 1},
    "msdm_gaussian_r2_short": {"levels": 30, "churn": 8.0},
    "msdm_gaussian_r2_audio": {},
    "isdm_dirac_r1_short": {"levels": 30, "churn": 8.0, "repetitions": 1},
    "isdm_dirac_r1_audio": {"repetitions": 1},
    "isdm_dirac_r2_short": {"levels": 30, "churn": 8.0},
    "isdm_dirac_r2_audio": {},
    "isdm_gaussian_r2_short": {"rule": "gaussian", "levels": 30, "churn": 8.0},
    "isdm_gaussian_r2_audio": {"rule": "gaussian"},
    "projdiff_short": {"levels": 30},
    "projdiff_isdm_short": {"levels": 30},
    "projdiff_audio": {},
    "daps_short": {"levels": 10, "langevin_steps": 5},
    "daps_audio": {},
    "pnpdm_short": {**SHORT_PNPDM, "langevin_steps": 5},
    "pnpdm_short_nocast": {**SHORT_PNPDM, "langevin_steps": 5},
    "pnpdm_exact_short_nocast": {**SHORT_PNPDM, "width_min": 0.03, "likelihood": "exact"},
    "pnpdm_audio": {},
}
# The authors' code rounds the network's answer to float32 in these two.
LOOSE = {"pnpdm_short": 1e-6, "pnpdm_audio": 1e-6}


def sampler_of(name, extra):
    method = name.split("_")[0]
    if name.startswith("msdm_gaussian"):
        method = "msdm-gaussian"
    return samplers.get(method, "paper", **{**OVERRIDES[name], **extra})


def prior_of(name):
    """The prior that was recorded, and its counters: one, or one for each of four networks."""
    joint = torch.from_numpy(np.load(FOLDER / "problem.npz")["C"])
    if "isdm" not in name:
        counted = CountingDenoiser(GaussianDenoiser(torch.zeros(4, 8).double(), joint))
        return counted, [counted]
    blocks = [joint[i : i + 8, i : i + 8].contiguous() for i in range(0, 32, 8)]
    parts = [CountingDenoiser(GaussianDenoiser(torch.zeros(1, 8).double(), c)) for c in blocks]
    return StackedDenoiser(parts), parts


def normals_of(name, record, sampler, sigma_y):
    """The recorded normals as the state's, in the order in which they are asked for."""
    drawn = list(torch.from_numpy(record["draws"]).double())
    if not name.startswith("daps"):  # which ignores the initial noise that it is handed
        drawn = [torch.from_numpy(record["init_z"]).double(), *drawn]
    return matheron(drawn, record, sampler, sigma_y) if "exact" in name else drawn


def matheron(drawn, record, sampler, sigma_y):
    """Exact likelihood steps: two normals for one.

    The authors draw one normal in the singular basis of the mix, whose first direction has the
    posterior standard deviation sigma_y w / h, h^2 = 4 w^2 + sigma_y^2, at the width w. The
    sampler draws a prior of width w and a noise of sigma_y and combines them: with shares
    sigma_y / h and 2 w / h of the same number they make it up.
    """
    basis, first = torch.from_numpy(record["V_small"]), drawn.pop(0)
    sign = basis[:, 0].sum().sign()
    grid = sampler.noise_levels().sigmas
    normals = [first]
    for width in sampler.widths():
        z = drawn.pop(0).reshape(1, 4, 8)
        h = math.hypot(2 * width, sigma_y)
        prior = z.clone()
        prior[:, 0] *= sigma_y / h
        normals.append(torch.einsum("ij,bjt->bit", basis, prior))
        normals.append(sign * z[:, :1] * 2 * width / h)
        moves = int(((grid > 0) & (grid < width)).sum()) - 1  # the last is without noise
        for _ in range(moves):
            normals.append(drawn.pop(0).reshape(1, 4, 8))
    assert not drawn
    return normals


def replay(name, **extra):
    """Final state, draws, counting denoisers and sampler of a replay, and the recording."""
    record = np.load(FOLDER / f"{name}.npz")
    sigma_y = json.loads(str(record["config"])).get("sigma_y", 0.0)
    denoise, counters = prior_of(name)
    sampler = sampler_of(name, extra)
    # The normals are those of the recorded settings.
    draws = RecordedDraws(normals_of(name, record, sampler_of(name, {}), sigma_y))
    y = torch.from_numpy(record["y"]).expand(1, 1, 8)
    problem = Problem(Mixture(4), y, sigma_y, (1, 4, 8))
    return sampler.sample(denoise, problem, draws), draws, counters, record, sampler


@pytest.mark.parametrize("name", sorted(OVERRIDES))
def test_replay_ends_in_the_recorded_state(name):
    x, draws, counters, record, sampler = replay(name)
    assert np.abs(x.numpy() - record["final"]).max() < LOOSE.get(name, TOLERANCE)
    assert draws.exhausted
    assert sum(c.calls for c in counters) == int(record["den_calls"])
    # Four single-stem networks that are asked once are one call of the prior that they make up.
    assert sampler.cost().calls * len(counters) == int(record["den_calls"])
    assert sampler.cost().vjps == 0


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("msdm_dirac_r2_short", {"constrained": 1}),
        ("msdm_dirac_r2_short", {"churn": 8.0}),
        ("msdm_gaussian_r2_short", {"gamma": 1.0}),
        ("isdm_gaussian_r2_short", {"gamma": 1.0}),
        ("projdiff_short", {"momentum": 0.3}),
        ("projdiff_short", {"rate": 0.2}),
        ("daps_short", {"langevin_rate": 1e-6}),
        ("daps_short", {"tau": 1e-2}),
        ("pnpdm_short_nocast", {"langevin_rate": 2e-9}),
    ],
)
def test_recordings_tell_the_settings_apart(name, extra):
    x, _, _, record, _ = replay(name, **extra)
    assert np.abs(x.numpy() - record["final"]).max() > 1e-4
