"""Warm starts of every sampler: exactness, cost, noise levels, independence, refusals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from oracles import BatchDraws, GaussianRegressor, gaussian_problem, moment_excess

from mgdm_audio import samplers
from mgdm_audio.denoise import CountingDenoiser, GaussianDenoiser
from mgdm_audio.draws import SeededDraws
from mgdm_audio.operators import Mixture
from mgdm_audio.regress import WithRegressor
from mgdm_audio.samplers.base import Cost, DiffusionSampler, Problem, Sampler, Start
from mgdm_audio.samplers.warm_start import WarmStart

REGRESSORS = ("regressor", "gibbs")
NAMES = [name for name in samplers.names() if name not in REGRESSORS]


@dataclass(frozen=True, kw_only=True, eq=False)
class Given(Sampler):
    """Draws of a known law, the same for all items, in place of a first method."""

    name = "given"

    law: GaussianDenoiser

    def cost(self) -> Cost:
        return Cost(calls=0)

    def _sample(self, denoise, problem, draws, progress):
        return self.law.sample(draws, problem.shape[0])


# --- exactness -------------------------------------------------------------------------------
ALARM = 1e-6
VE = {"sigma_max": 5.0, "sigma_min": 0.05, "rho": 7.0}
VP = {**VE, "levels": 1000, "steps": 200, "sigma_min": 0.02}
# Settings, sigma_y, and the bias that the whole of each sampler has at these settings, for a
# warm start walks a part of its grid: mean in posterior standard deviations, whitened covariance.
EXACT = {
    "mmps": ({**VE, "levels": 100, "iterations": 1}, 0.5, 0.05, 0.10),
    "daps": (
        {**VE, "levels": 100, "ode_steps": 1, "ode_sigma_min": 0.02, "local": "gaussian",
         "tau": None},
        0.5, 0.05, 0.08,
    ),
    "split-gibbs": (
        {**VE, "levels": 40, "denoising_steps": 4, "sigma_min": 0.01, "width_min": 0.1,
         "prior_std": 1.0},
        0.5, 0.05, 0.10,
    ),
    "pnpdm": (
        {"levels": 60, "sigma_min": 0.01, "sigma_max": 5.0, "iterations": 20, "width_start": 3.0,
         "width_decay": 0.8, "width_min": 0.1, "likelihood": "exact", "entry": "width"},
        0.5, 0.05, 0.10,
    ),
    "ding": ({**VE, "levels": 100, "spread": "bridge"}, 0.0, 0.10, 0.10),
    "msdm": ({**VE, "levels": 200, "churn": 26.0}, 0.0, 0.10, 0.15),
    "pgdm": ({**VP, "weight": "posterior"}, 0.5, 0.10, 0.15),
    "ddnm": ({**VP, "eta": 0.0, "published_grid": False}, 0.0, 0.10, 0.15),
    "diffpir": ({**VP, "zeta": 0.0, "finish": True}, 0.0, 0.10, 0.15),
    "mgdm": (
        {"sigma_max": 5.0, "sigma_min": 0.02, "rho": 7.0, "steps": 30, "repetitions": 2,
         "gradient_steps": ((0, 8),), "learning_rate": ((0, 0.03),), "denoising_steps": 5,
         "index": "deterministic", "noising": "forward"},
        0.5, 0.15, 0.30,
    ),
}  # fmt: skip


def excess(name, batch, sigma, shift=0.0):
    """Excess over noise and budget, of mean and covariance, from posterior samples plus `shift`."""
    settings, sigma_y, mean_budget, cov_budget = EXACT[name]
    prior, problem, _ = gaussian_problem(4, batch, sigma_y)
    law = prior.posterior(Mixture(4).matrix((4, 1)), problem.y[0], sigma_y)
    step = torch.tensor([1.0, -1.0, 1.0, -1.0]).double()[:, None] * shift
    first = Given(law=GaussianDenoiser(law.mean + step, law.cov))
    sampler = samplers.get(name, "paper", **settings)
    x = WarmStart(first=first, sampler=sampler, sigma=sigma).sample(
        prior, problem, BatchDraws(1, batch)
    )
    if sigma_y == 0:  # the sum is given: what is uncertain is all stems but one
        law = GaussianDenoiser(law.mean[1:], law.cov[1:, 1:].contiguous())
        x = x[:, 1:]
    return moment_excess(x, law, mean_budget, cov_budget, ALARM)


@pytest.mark.parametrize("name", EXACT)
def test_posterior_samples_stay_posterior_samples(name):
    mean, cov = excess(name, 1500, sigma=0.3)
    assert mean <= 1
    assert cov <= 1


@pytest.mark.parametrize("name", EXACT)
def test_a_wrong_estimate_is_not_forgotten_at_a_low_level(name):
    assert excess(name, 1000, sigma=0.15, shift=1.0)[0] > 1


@pytest.mark.parametrize("name", ["ddnm", "diffpir"])
def test_a_start_without_its_noise_fails_the_same_check(name, monkeypatch):
    """Told a level that is not there, a deterministic walk takes signal for noise."""
    monkeypatch.setattr(Start, "exploding", lambda self, draws, sigma: self.estimate)
    assert max(excess(name, 2000, sigma=1.5)) > 1


def test_the_two_views_are_the_same_start():
    estimate = torch.randn(2, 4, 8, dtype=torch.float64)
    start = Start(estimate, 0.7)
    ve, vp = (
        view(SeededDraws([1, 2], dtype=torch.float64), 0.6)
        for view in (start.exploding, start.preserving)
    )
    assert torch.allclose(vp, ve / math.sqrt(1 + 0.36))
    assert 0.4 < float((ve - estimate).std()) < 0.8


def test_red_diff_begins_with_the_estimate():
    """An optimiser that may not move returns it."""
    prior, problem, _ = gaussian_problem(4, 2, 0.5)
    law = GaussianDenoiser(torch.ones(4, 1).double(), torch.zeros(4, 4).double())
    sampler = samplers.get("reddiff", "default", learning_rate=1e-12)
    warm = WarmStart(first=Given(law=law), sampler=sampler, sigma=0.1)
    x = warm.sample(prior, problem, BatchDraws(1, 2))
    assert torch.allclose(x, torch.ones_like(x), atol=1e-9)


# --- cost, noise levels, independence ----------------------------------------------------------
def small_problem(batch, seed=0):
    y = 0.1 * torch.randn(batch, 1, 8, dtype=torch.float64, generator=_generator(seed))
    return Problem(Mixture(4), y, 0.01, (batch, 4, 8))


def _generator(seed):
    return torch.Generator().manual_seed(seed)


def small_prior():
    a = torch.randn(32, 32, dtype=torch.float64, generator=_generator(5))
    return GaussianDenoiser(torch.zeros(4, 8).double(), 0.01 * (a @ a.T / 32))


def quick(name):
    """A sampler with some levels below 0.2."""
    if name == "mgdm":
        return samplers.get(name, "default", steps=30, levels=200, sigma_max=1.0)
    return samplers.get(name, "fast")


def warm(name, first="ddnm", sigma=0.2):
    return samplers.warm(quick(name), first, sigma)


@pytest.mark.parametrize("name", NAMES)
def test_costs_and_levels_are_as_planned(name):
    problem, prior = small_problem(2), small_prior()
    for sampler in (quick(name), warm(name)):
        counted, told = CountingDenoiser(prior), []
        draws = SeededDraws([1, 2], dtype=torch.float64)

        def callback(done, total, told=told):
            told.append((done, total))

        sampler.sample(counted, problem, draws, callback)
        cost = sampler.cost()
        assert (counted.calls, counted.vjps) == (2 * cost.calls, 2 * cost.vjps)
        assert told[-1] == (cost.calls, cost.calls)
        assert [done for done, _ in told] == sorted(done for done, _ in told)
        low, high = sampler.noise_range()
        assert counted.lowest_sigma == pytest.approx(low, rel=1e-9)
        assert counted.highest_sigma == pytest.approx(high, rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_left_of_the_grid_is_at_and_below_the_level(name):
    sampler = quick(name)
    low, high = sampler.noise_range()
    assert sampler.noise_range(math.inf) == (low, high)
    left = sampler.noise_range(0.2)
    if name != "isdm":  # whose other stems stay at a level of their own
        assert low <= left[0] <= left[1] <= 0.2 * 2**0.5  # churn raises it
    assert sampler.cost(0.2).calls < sampler.cost().calls


@pytest.mark.parametrize("first", ["ddnm", "regressor:paper", "gibbs"])
@pytest.mark.parametrize("name", NAMES)
def test_items_do_not_depend_on_their_company(name, first):
    if first == "gibbs" and name != "ddnm":
        pytest.skip("one sampler after it will do")
    sampler, prior = warm(name, first), small_prior()
    model = WithRegressor(GaussianRegressor(prior), prior)
    problem = small_problem(3)
    seeds = [3, 4, 5]
    together = sampler.sample(model, problem, SeededDraws(seeds, dtype=torch.float64))
    again = sampler.sample(model, problem, SeededDraws(seeds, dtype=torch.float64))
    assert torch.equal(together, again)
    for i, seed in enumerate(seeds):
        alone = Problem(Mixture(4), problem.y[i : i + 1], 0.01, (1, 4, 8))
        x = sampler.sample(model, alone, SeededDraws([seed], dtype=torch.float64))
        assert torch.equal(x, together[i : i + 1])


def test_a_level_of_the_grid_is_taken_itself():
    sampler = samplers.get("ding", "fast")
    levels = sampler.noise_levels().sigmas
    assert sampler.noise_range(float(levels[7]))[1] == pytest.approx(float(levels[7]))
    written = float(f"{float(levels[7]):.12g}")
    assert sampler.noise_range(written)[1] == pytest.approx(float(levels[7]))
    assert sampler.noise_range(float(levels[7]) * 0.999)[1] == pytest.approx(float(levels[6]))


def test_what_is_needed():
    assert warm("mgdm").needs == ("prior",)
    assert warm("mgdm", "regressor").needs == ("prior", "regressor")
    assert samplers.get("gibbs").needs == ("regressor",)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: samplers.warm(samplers.get("gibbs"), "ddnm", 0.1), "'gibbs' has no noise levels"),
        (lambda: samplers.warm(samplers.get("ddnm"), "nothing", 0.1), "unknown sampler 'nothing'"),
        (lambda: samplers.warm(samplers.get("ddnm"), "dps:slow", 0.1), "no preset 'slow'"),
        (lambda: samplers.warm(samplers.get("ddnm"), "dps", 0.0), "sigma = 0"),
        (lambda: samplers.warm(warm("ddnm"), "dps", 0.1), "'warm-start' has no noise levels"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", NAMES)
def test_a_level_below_the_grid_is_refused(name):
    with pytest.raises(ValueError, match="expected at least"):
        samplers.warm(quick(name), "ddnm", 1e-5)


def test_a_prior_alone_is_refused_where_a_regressor_is_asked():
    draws = SeededDraws([1, 2])
    with pytest.raises(ValueError, match="asks a regressor and got a prior alone"):
        warm("ddnm", "regressor").sample(small_prior(), small_problem(2), draws)
    model = WithRegressor(GaussianRegressor(small_prior()))
    with pytest.raises(ValueError, match="regressor alone"):
        warm("ddnm", "regressor:paper").sample(model, small_problem(2), draws)


def test_every_sampler_with_levels_takes_a_start():
    for name in NAMES:
        assert issubclass(samplers.sampler_class(name), DiffusionSampler)


def test_windows_are_told_the_one_before_where_both_samplers_can() -> None:
    assert not samplers.get("msdm").takes_parts
    assert samplers.warm(samplers.get("mgdm"), "regressor", 0.3).takes_parts
    assert samplers.warm(samplers.get("mgdm"), "ddnm", 0.3).takes_parts
    assert not samplers.warm(samplers.get("mgdm"), "msdm", 0.3).takes_parts
    assert not samplers.warm(samplers.get("msdm"), "ddnm", 0.3).takes_parts


def test_a_warm_start_follows_gradients_where_both_samplers_do() -> None:
    assert samplers.warm(samplers.get("mgdm"), "ddnm", 0.3).needs_linear
    assert not samplers.warm(samplers.get("mgdm"), "dps", 0.3).needs_linear
