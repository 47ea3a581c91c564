"""Samplers on the product of single-stem priors: the same as on those priors, cost, refusals."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from oracles import BatchDraws, GaussianRegressor, gaussian_problem, moment_excess

from mgdm_audio import Separator, samplers
from mgdm_audio.denoise import CountingDenoiser, GaussianDenoiser, MarginalDenoiser
from mgdm_audio.draws import SeededDraws
from mgdm_audio.operators import Mixture
from mgdm_audio.regress import WithRegressor
from mgdm_audio.samplers.base import Cost, Problem
from mgdm_audio.samplers.independent_stems import IndependentStems

FAR = 1e4
ALARM = 1e-6


def independent(name: str, preset: str = "fast", **settings) -> IndependentStems:
    return IndependentStems(sampler=samplers.get(name, preset, **settings), marginal_sigma=FAR)


@pytest.mark.parametrize("name", ["mgdm", "ddnm", "msdm", "reddiff"])
def test_it_is_the_sampler_on_the_single_stem_priors(name):
    prior, problem, _ = gaussian_problem(4, 3, 0.1)
    own = samplers.get(name, "fast")
    wrapped = independent(name)
    counted = CountingDenoiser(prior)
    seen = []
    result = wrapped.sample(
        counted,
        problem,
        SeededDraws([4, 0, 7], dtype=torch.float64),
        lambda done, total: seen.append((done, total)),
    )
    draws = SeededDraws([4, 0, 7], dtype=torch.float64)
    expected = own.sample(MarginalDenoiser(prior, FAR, draws), problem, draws)
    assert torch.equal(result, expected)
    cost = own.cost()
    assert wrapped.cost() == Cost(4 * cost.calls, 4 * cost.vjps)
    assert (counted.calls, counted.vjps) == (3 * 4 * cost.calls, 3 * 4 * cost.vjps)
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {4 * cost.calls}
    assert seen[0][0] < seen[-1][0] == 4 * cost.calls
    alone = wrapped.sample(
        prior,
        Problem(problem.operator, problem.y[1:2], problem.sigma_y, (1, *problem.shape[1:])),
        SeededDraws([0], dtype=torch.float64),
    )
    assert torch.equal(alone[0], result[1])


def test_the_posterior_is_that_of_the_product():
    """MGDM, with the bias that it has at these settings on its own prior (test_warm_start)."""
    settings = {
        "sigma_max": 5.0, "sigma_min": 0.02, "rho": 7.0, "steps": 30, "repetitions": 2,
        "gradient_steps": ((0, 8),), "learning_rate": ((0, 0.03),), "denoising_steps": 5,
        "index": "deterministic", "noising": "forward",
    }  # fmt: skip
    batch, sigma_y = 1000, 0.5
    prior, problem, _ = gaussian_problem(4, batch, sigma_y)
    x = independent("mgdm", "default", **settings).sample(prior, problem, BatchDraws(3, batch))
    row = Mixture(4).matrix((4, 1))
    single = GaussianDenoiser(prior.mean, torch.diag(prior.cov.diagonal()))
    law = single.posterior(row, problem.y[0], sigma_y)
    other = prior.posterior(row, problem.y[0], sigma_y)
    assert max(moment_excess(x, law, 0.15, 0.30, ALARM)) <= 1
    # The joint prior's posterior is another one, which this would not pass for.
    assert max(moment_excess(x, other, 0.15, 0.30, ALARM)) > 1


def test_it_goes_on_from_a_warm_start():
    prior, problem, _ = gaussian_problem(4, 2, 0.0)
    regressor = GaussianRegressor(prior)
    inner = samplers.get("ddnm", "fast")
    warm = samplers.warm(samplers.independent(inner, 4), "regressor:paper", 0.3)
    counted = CountingDenoiser(prior)
    model = WithRegressor(regressor, counted)
    seen = []
    x = warm.sample(
        model, problem, BatchDraws(1, 2), lambda done, total: seen.append((done, total))
    )
    assert (x.sum(1, keepdim=True) - problem.y).abs().max() < 1e-6
    first = warm.first.cost().calls
    assert warm.cost().calls == first + 4 * inner.cost(0.3).calls
    assert counted.calls == 2 * 4 * inner.cost(0.3).calls
    assert seen[-1] == (warm.cost().calls,) * 2
    assert warm.noise_range()[1] == pytest.approx(2.0)


def test_what_cannot_be_independent_is_refused(prior):
    for name in ("regressor", "gibbs"):
        with pytest.raises(ValueError, match=f"'{name}' asks no prior"):
            Separator(prior, name, independent=True)
    with pytest.raises(ValueError, match="single-stem priors by itself"):
        Separator(prior, "isdm", "fast", independent=True)
    with pytest.raises(ValueError, match="leave out other"):
        Separator(prior, "ddnm", independent=True, other=-10.0)
    with pytest.raises(ValueError, match="marginal_sigma"):
        IndependentStems(sampler=samplers.get("ddnm"), marginal_sigma=0.0)
    gaussian, problem, _ = gaussian_problem(4, 1, 0.1)
    with pytest.raises(ValueError, match="4 stems, and independent priors of 3"):
        samplers.independent(samplers.get("ddnm"), 3).sample(gaussian, problem, BatchDraws(1, 1))


def test_separator(prior):
    options = {"preset": "fast", "device": "cpu", "steps": 4}
    joint = Separator(prior, "ddnm", **options)
    apart = Separator(prior, "ddnm", independent=True, **options)
    mix = torch.randn(8000, generator=torch.Generator().manual_seed(0)).numpy() * 0.1
    stems = apart.separate(mix, 22_050, seed=1)
    assert stems.stats["calls"] == 4 * joint.separate(mix, 22_050, seed=1).stats["calls"]
    assert stems.settings["independent"] is True
    assert "independent" not in joint.describe()


def test_chains_of_different_lengths():
    """MGDM asks about some items of a batch: each has its own numbers, as alone."""
    settings = {"steps": 6, "repetitions": 2, "gradient_steps": ((0, 1),), "denoising_steps": 4}
    settings |= {"index": "uniform", "min_index": 1, "levels": 12, "sigma_max": 1.0}
    batch, draws = 4, partial(SeededDraws, dtype=torch.float64)
    prior, problem, _ = gaussian_problem(4, batch, 0.1)
    sampler = independent("mgdm", "default", **settings)
    together = sampler.sample(prior, problem, draws(range(batch)))
    for i in range(batch):
        alone = sampler.sample(prior, gaussian_problem(4, 1, 0.1)[1], draws([i]))
        assert torch.allclose(together[i], alone[0], atol=1e-9)
