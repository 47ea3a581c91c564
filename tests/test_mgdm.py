"""MGDM: exactness against closed forms, settings, cost, and independence of batch items."""

import dataclasses
import gc

import pytest
import torch
from oracles import (
    BatchDraws,
    gaussian_problem,
    grid_mixture_problem,
    moment_excess,
    sliced_wasserstein,
)

from mgdm_audio import samplers
from mgdm_audio.denoise import CountingDenoiser, GaussianDenoiser, MarginalDenoiser
from mgdm_audio.draws import SeededDraws
from mgdm_audio.operators import KnownStems, Mixture, Stack
from mgdm_audio.samplers import mgdm as module
from mgdm_audio.samplers.base import Cost, Problem, Sampler
from mgdm_audio.samplers.mgdm import MGDM

# --- exactness -------------------------------------------------------------------------------
# The chance that an exact sampler fails one check is below ALARM; the draws are fixed besides.
ALARM = 1e-6

# MGDM is approximate: the likelihood is taken at the denoised guided state, the fit of that state
# is a diagonal Gaussian after a few Adam steps, and the Gibbs sweeps do not mix fully. The budget
# is what that may cost here, in posterior standard deviations (mean) and in entries of the
# whitened covariance. Measured with 4000 samples, 2 and 4 stems, sampling noise included:
# forward 0.023 / 0.075 and 0.042 / 0.071. The bridge remembers its state and mixes more slowly.
BUDGET = {"forward": (0.06, 0.10), "bridge": (0.20, 0.15)}
GAUSSIAN_SETTINGS = {
    "sigma_max": 5.0,
    "sigma_min": 0.07,
    "rho": 7.0,
    "steps": 30,
    "repetitions": 4,
    "gradient_steps": ((0, 6),),
    "learning_rate": ((0, 0.03),),
    "denoising_steps": 3,
    "index": "deterministic",
}


def gaussian_excess(stems, batch, noising="forward", change=lambda sampler: None):
    prior, problem, posterior = gaussian_problem(stems, batch, sigma_y=0.5)
    sampler = samplers.get("mgdm", "paper", **GAUSSIAN_SETTINGS, noising=noising)
    change(sampler)
    x = sampler.sample(prior, problem, BatchDraws(1, batch))
    return moment_excess(x, posterior, *BUDGET[noising], ALARM)


@pytest.mark.parametrize("stems", [2, 4])
def test_gaussian_posterior_mean_and_covariance(stems):
    mean, cov = gaussian_excess(stems, 4000)
    assert mean <= 1
    assert cov <= 1


@pytest.mark.parametrize("stems", [2, 4])
def test_gaussian_posterior_with_the_bridge_noising(stems):
    mean, cov = gaussian_excess(stems, 1000, "bridge")
    assert mean <= 1
    assert cov <= 1


def no_sweeps(sampler, monkeypatch):
    object.__setattr__(sampler, "repetitions", 0)


def scaled_bridge(factor):
    def change(sampler, monkeypatch):
        exact = module.bridge

        def wrong(*args):
            c_s, c_u, std = exact(*args)
            return c_s, c_u, std * factor

        monkeypatch.setattr(module, "bridge", wrong)

    return change


def scaled_likelihood(factor):
    def change(sampler, monkeypatch):
        exact = MGDM._likelihood_gradient
        monkeypatch.setattr(
            MGDM, "_likelihood_gradient", lambda self, *args: factor * exact(self, *args)
        )

    return change


BROKEN = {
    "no_sweeps": no_sweeps,
    "bridge_too_wide": scaled_bridge(1.5),
    "bridge_without_noise": scaled_bridge(1e-6),
    "likelihood_flipped": scaled_likelihood(-1.0),
    "likelihood_ignored": scaled_likelihood(0.0),
    "likelihood_doubled": scaled_likelihood(2.0),
}


@pytest.mark.parametrize("stems", [2, 4])
@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_sampler_fails_the_same_check(stems, fault, monkeypatch):
    mean, cov = gaussian_excess(
        stems, 2000, change=lambda sampler: BROKEN[fault](sampler, monkeypatch)
    )
    assert max(mean, cov) > 1


# Budget for the 25-component prior: total variation of the posterior weights of the components,
# and sliced 1-D Wasserstein distance (the posterior spans 8 units; without the likelihood the
# distance is 0.94).
WEIGHT_BUDGET, DISTANCE_BUDGET = 0.20, 0.20
MIXTURE_SETTINGS = {
    "sigma_max": 10.0,
    "sigma_min": 0.02,
    "rho": 7.0,
    "steps": 60,
    "repetitions": 2,
    "gradient_steps": ((0, 10),),
    "learning_rate": ((0, 0.03),),
    "denoising_steps": 5,
    "index": "deterministic",
    "noising": "forward",
}


def mixture_deviation(batch, change=lambda sampler: None, **overrides):
    """Excess of the component weights and of the sliced Wasserstein distance; <= 1 passes."""
    prior, problem, posterior = grid_mixture_problem(batch, sigma_y=0.2)
    sampler = samplers.get("mgdm", "paper", **{**MIXTURE_SETTINGS, **overrides})
    change(sampler)
    x = sampler.sample(prior, problem, BatchDraws(1, batch))
    near = posterior.responsibilities(x, torch.full((batch,), 1e-3).double())
    p = posterior.weights
    # Each weight of an exact sampler is off by at most 5.4 of its standard deviations, once in a
    # million runs; half their sum bounds the total variation.
    noise = 0.5 * 5.4 * (p * (1 - p) / batch).sqrt().sum()
    weights = 0.5 * (near.mean(0) - p).abs().sum() / (WEIGHT_BUDGET + noise)
    exact = [posterior.sample(BatchDraws(100 + i, batch), batch) for i in range(12)]
    null = torch.tensor([sliced_wasserstein(exact[0], e) for e in exact[1:]])
    distance = sliced_wasserstein(x, exact[0])
    allowance = DISTANCE_BUDGET + float(null.mean() + 5 * null.std())
    return float(weights), distance / allowance, distance


def test_mixture_posterior_weights_and_distance():
    weights, ratio, _ = mixture_deviation(1000)
    assert weights <= 1
    assert ratio <= 1


@pytest.mark.parametrize(
    "fault", ["no_sweeps", "likelihood_flipped", "likelihood_ignored", "bridge_without_noise"]
)
def test_a_broken_sampler_fails_the_mixture_check(fault, monkeypatch):
    weights, ratio, _ = mixture_deviation(
        500, lambda sampler: BROKEN[fault](sampler, monkeypatch), steps=30
    )
    assert max(weights, ratio) > 1


def test_mixture_distance_falls_with_steps():
    coarse, fine = (mixture_deviation(1000, steps=steps)[2] for steps in (15, 60))
    assert fine < 0.8 * coarse


# --- settings --------------------------------------------------------------------------------
SMALL = {"levels": 200, "steps": 8, "min_index": 3, "threshold": 3}


def index_ranges(**settings):
    sampler = samplers.get("mgdm", "paper", **settings)
    return [sampler.index_range(i) for i in range(sampler.outer_steps)]


def test_index_laws():
    # The grid of 8 steps on 200 levels.
    grid = [0, 28, 56, 85, 113, 142, 170, 199]
    assert samplers.get("mgdm", "paper", **SMALL).noise_levels().subgrid(8) == grid
    prev, t = grid[5:0:-1], grid[6:1:-1]
    assert index_ranges(**SMALL, index="uniform") == [(3, p - 1) for p in prev]
    assert index_ranges(**SMALL, index="mix") == [
        *((3, p - 1) for p in prev[:3]),
        *((p, p) for p in prev[3:]),
    ]
    assert index_ranges(**SMALL, index="zero") == [(1, p // 5 - 1) for p in prev]
    assert index_ranges(**SMALL, index="deterministic") == [(p, p) for p in prev]
    mixed = [p * 75 // 100 for p in prev[:3]] + prev[3:]
    assert index_ranges(**SMALL, index="mix-det") == [(p, p) for p in mixed]
    assert index_ranges(**SMALL, index="midpoint") == [(u // 2, u // 2) for u in t]


class SpyDraws(SeededDraws):
    """Writes down the ranges of the integers that were asked for."""

    def __init__(self, seeds):
        super().__init__(seeds, dtype=torch.float64)
        self.ranges = []

    def integers(self, low, high):
        self.ranges.append((low, high - 1))
        return super().integers(low, high)


def tiny_problem(batch=3, sigma_y=1e-2, stems=4, length=3):
    g = torch.Generator().manual_seed(0)
    n = stems * length
    w = torch.randn(n, n, generator=g, dtype=torch.float64)
    prior = GaussianDenoiser(torch.zeros(stems, length).double(), 0.02 * (w @ w.T / n))
    y = 0.2 * torch.randn(batch, 1, length, generator=g, dtype=torch.float64)
    return prior, Problem(Mixture(stems), y, sigma_y, (batch, stems, length))


@pytest.mark.parametrize("index", module.INDEX_LAWS)
@pytest.mark.parametrize("noising", module.NOISINGS)
@pytest.mark.parametrize("denoising_steps", [1, 4])
def test_every_law_draws_per_item_and_is_the_same_alone(index, noising, denoising_steps):
    prior, problem = tiny_problem()
    sampler = samplers.get(
        "mgdm",
        "paper",
        **SMALL,
        index=index,
        noising=noising,
        denoising_steps=denoising_steps,
        repetitions=2,
        gradient_steps=((0, 2),),
    )
    counted, draws = CountingDenoiser(prior), SpyDraws([4, 0, 7])
    batch = sampler.sample(counted, problem, draws)
    drawn = {"uniform": 5, "zero": 5, "mix": 3}.get(index, 0)
    ranges = [sampler.index_range(i) for i in range(sampler.outer_steps)]
    assert draws.ranges == ranges[:drawn]
    assert counted.lowest_sigma >= sampler.sigma_min * (1 - 1e-12)
    for i, seed in enumerate([4, 0, 7]):
        alone = Problem(problem.operator, problem.y[i : i + 1], 1e-2, (1, 4, 3))
        single = sampler.sample(prior, alone, SeededDraws([seed], dtype=torch.float64))
        assert torch.equal(batch[i : i + 1], single)


@pytest.mark.parametrize("preset", MGDM.PRESETS)
def test_advertised_cost_is_what_is_called(preset):
    prior, problem = tiny_problem(batch=2)
    counted = CountingDenoiser(prior)
    sampler = samplers.get("mgdm", preset)
    seen = []
    sampler.sample(
        counted,
        problem,
        SeededDraws([1, 2], dtype=torch.float64),
        lambda done, total: seen.append((done, total)),
    )
    cost = sampler.cost()
    assert Cost(counted.calls // 2, counted.vjps // 2) == cost
    done = [d for d, _ in seen]
    assert done == sorted(done)
    assert seen[-1] == (cost.calls, cost.calls)
    assert {total for _, total in seen} == {cost.calls}


def test_short_chains_are_not_called_again():
    # "zero" draws indices of a few levels: chains of different length in one batch.
    prior, problem = tiny_problem(batch=3)
    sampler = samplers.get("mgdm", "paper", **SMALL, index="zero", denoising_steps=9)
    batch, singles = CountingDenoiser(prior), CountingDenoiser(prior)
    sampler.sample(batch, problem, SeededDraws([1, 2, 3], dtype=torch.float64))
    for i in range(3):
        alone = Problem(problem.operator, problem.y[i : i + 1], 1e-2, (1, 4, 3))
        sampler.sample(singles, alone, SeededDraws([i + 1], dtype=torch.float64))
    assert batch.calls == singles.calls < 3 * sampler.cost().calls
    assert batch.vjps == singles.vjps == 3 * sampler.cost().vjps


def test_a_denoiser_with_something_for_each_item_may_be_counted():
    prior, problem = tiny_problem(batch=3)
    sampler = samplers.get("mgdm", "paper", **SMALL, index="zero", denoising_steps=9)
    results = []
    for wrap in (CountingDenoiser, lambda denoise: denoise):
        draws = SeededDraws([1, 2, 3], dtype=torch.float64)
        denoise = wrap(MarginalDenoiser(prior, 2.0, draws))
        results.append(sampler.sample(denoise, problem, draws))
    assert torch.equal(*results)


FAST = {"steps": 8, "repetitions": 1, "gradient_steps": ((0, 2),)}


def run(problem, prior, seeds=(1, 2, 3), **settings):
    sampler = samplers.get("mgdm", "default", **{**FAST, **settings})
    return sampler.sample(prior, problem, SeededDraws(seeds, dtype=torch.float64))


def test_result_is_the_same_under_any_gradient_mode_and_carries_no_graph():
    prior, problem = tiny_problem()
    plain = run(problem, prior)
    assert not plain.requires_grad
    with torch.no_grad():
        assert torch.equal(run(problem, prior), plain)
    with torch.inference_mode():
        inside = Problem(Mixture(4), problem.y.clone(), 1e-2, problem.shape)
        assert torch.equal(run(inside, prior), plain)
    with torch.enable_grad():
        assert torch.equal(run(problem, prior), plain)


def test_parameters_of_the_prior_get_no_gradient_and_no_graph_stays():
    prior, problem = tiny_problem()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    live = []

    def denoise(x, sigma):
        live.append(sum(1 for o in gc.get_objects() if type(o) is torch.Tensor and o.grad_fn))
        return prior(x, sigma) * scale

    run(problem, denoise, denoising_steps=3)
    assert scale.grad is None
    assert max(live) <= 2  # the scaled leaf of the call itself


def test_inputs_and_global_generator_are_untouched():
    prior, problem = tiny_problem()
    before, state = problem.y.clone(), torch.get_rng_state()
    run(problem, prior)
    assert torch.equal(problem.y, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_raising_in_the_callback_cancels_and_the_sampler_can_be_used_again():
    prior, problem = tiny_problem()
    sampler = samplers.get("mgdm", "default", **FAST)
    plain = run(problem, prior)

    def stop(done, total):
        if done > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler.sample(prior, problem, SeededDraws([1, 2, 3], dtype=torch.float64), stop)
    assert torch.equal(run(problem, prior), plain)


def test_single_stem_gives_back_the_mixture():
    prior, problem = tiny_problem(stems=1, sigma_y=1e-3)
    settings = {"steps": 30, "repetitions": 4, "gradient_steps": ((0, 20),), "denoising_steps": 3}
    x = run(problem, prior, **settings, sigma_min=1e-3, learning_rate=((0, 0.02), (20, 0.005)))
    assert (x - problem.y).abs().max() < 0.02


def test_permuting_symmetric_stems_permutes_the_result():
    shape = (1, 4, 3)
    prior = GaussianDenoiser(torch.zeros(4, 3).double(), 0.05 * torch.eye(12).double())
    y = 0.3 * torch.ones(1, 1, 3).double()
    order = [2, 0, 3, 1]

    class Permuted(SeededDraws):
        def normal(self, shape, items=None):
            return super().normal(shape, items)[:, order]

    sampler = samplers.get("mgdm", "default", **FAST)
    problem = Problem(Mixture(4), y, 1e-2, shape)
    a = sampler.sample(prior, problem, SeededDraws([1], dtype=torch.float64))
    b = sampler.sample(prior, problem, Permuted([1], dtype=torch.float64))
    assert torch.allclose(a[:, order], b, atol=1e-10)


def test_any_operator_and_noise_per_channel():
    prior, problem = tiny_problem()
    op = Stack([Mixture(4), KnownStems([1])])
    y = torch.cat([problem.y, torch.zeros_like(problem.y)], dim=1)
    both = Problem(op, y, torch.tensor([1e-2, 1e-3]), problem.shape)
    x = run(both, prior, steps=20, repetitions=2, gradient_steps=((0, 10),))
    assert x[:, 1].abs().mean() < 0.5 * x[:, 0].abs().mean()


def test_exact_observation_uses_the_floor():
    prior, problem = tiny_problem()
    exact, floor = (Problem(problem.operator, problem.y, s, problem.shape) for s in (0.0, 1e-4))
    assert torch.equal(run(exact, prior), run(floor, prior))


def test_float32_follows_float64():
    prior, problem = tiny_problem()
    narrow = Problem(problem.operator, problem.y.float(), 1e-2, problem.shape)

    class Rounded(SeededDraws):
        def normal(self, shape, items=None):
            return super().normal(shape, items).float()

    sampler = samplers.get("mgdm", "default", **FAST)
    x = sampler.sample(prior, narrow, Rounded([1, 2, 3], dtype=torch.float64))
    assert x.dtype == torch.float32
    assert (x.double() - run(problem, prior)).abs().max() < 1e-4


def test_rate_limit_follows_the_noise_level_of_the_guided_state():
    prior, problem = tiny_problem()
    assert torch.equal(run(problem, prior, rate_limit=1e6), run(problem, prior, rate_limit=None))
    # One outer step, so one guided index: a limit at its noise level binds just below the rate.
    one = {"steps": 4, "learning_rate": ((0, 0.05),), "rate_limit": None}
    sampler = samplers.get("mgdm", "default", **{**FAST, **one})
    noise = sampler.noise_levels().one_minus_alpha_bar(sampler.index_range(0)[0]).sqrt().item()
    free = run(problem, prior, **one)
    assert torch.equal(run(problem, prior, **{**one, "rate_limit": 0.051 / noise}), free)
    assert not torch.equal(run(problem, prior, **{**one, "rate_limit": 0.049 / noise}), free)


def test_values_that_are_not_finite_are_an_error():
    _, problem = tiny_problem()
    with pytest.raises(FloatingPointError, match="mgdm"):
        run(problem, lambda x, sigma: x * float("nan"))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"steps": 3}, "steps"),
        ({"repetitions": 0}, "repetitions"),
        ({"denoising_steps": 0}, "denoising_steps"),
        ({"eta": 1.2}, "eta"),
        ({"index": "random"}, "uniform, mix"),
        ({"noising": "none"}, "bridge, forward"),
        ({"sigma_floor": 0.0}, "sigma_floor"),
        ({"sigma_floor": 1e-9}, "sigma_floor"),
        ({"steps": 20.0}, "steps = 20.0, expected a whole number"),
        ({"gradient_steps": ((0, 1.5),)}, "whole numbers"),
        ({"rate_limit": 0.0}, "rate_limit"),
        ({"gradient_steps": ((1, 3),)}, "gradient_steps"),
        ({"gradient_steps": ((0, 3), (0, 4))}, "ascending"),
        ({"gradient_steps": ((0, -1),)}, "gradient_steps"),
        ({"learning_rate": ()}, "learning_rate"),
        ({"index": "zero", "steps": 200}, "nothing to draw"),
        ({"index": "uniform", "min_index": 60}, "nothing to draw"),
        ({"index": "uniform", "min_index": 0}, "at least 1.*change `min_index`"),
        ({"steps": 2000}, "raise `levels`"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "sigma_min"),
        ({"speed": 3}, "no setting 'speed'"),
    ],
)
def test_settings_are_checked(settings, text):
    with pytest.raises(ValueError, match=text):
        samplers.get("mgdm", "paper", **settings)


def test_registry():
    assert "mgdm" in samplers.names()
    with pytest.raises(ValueError, match="mgdm"):
        samplers.get("unknown")
    with pytest.raises(ValueError, match="paper"):
        samplers.get("mgdm", "unknown")
    for name in samplers.names():
        cls = samplers.sampler_class(name)
        assert issubclass(cls, Sampler)
        assert cls.name == name
        assert isinstance(samplers.get(name), cls)
    with pytest.raises(dataclasses.FrozenInstanceError):
        samplers.get("mgdm").steps = 5


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda y: Problem(Mixture(4), y, 0.1, (2, 4, 3)), "observation of shape"),
        (lambda y: Problem(Mixture(4), y, -0.1, (1, 4, 3)), "sigma_y"),
        (lambda y: Problem(Mixture(4), y, torch.ones(2), (1, 4, 3)), "observed channels"),
        (lambda y: Problem(Mixture(4), y / 0, 0.1, (1, 4, 3)), "finite"),
        (lambda y: Problem(Mixture(4), y.long(), 0.1, (1, 4, 3)), "floating"),
        (lambda y: Problem(Mixture(4), y, 0.1, (1, 4)), "all positive"),
    ],
)
def test_problem_is_checked(call, text):
    with pytest.raises(ValueError, match=text):
        call(torch.ones(1, 1, 3))
