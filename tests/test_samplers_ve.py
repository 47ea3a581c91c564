"""The variance-exploding samplers: bias against closed forms, cost, refusals, independence."""

import gc
import math

import pytest
import torch
from oracles import BatchDraws, gaussian_problem, moment_excess

from mgdm_audio import samplers
from mgdm_audio.denoise import CountingDenoiser, GaussianDenoiser, MarginalDenoiser
from mgdm_audio.draws import SeededDraws
from mgdm_audio.operators import KnownStems, Mixture, Stack
from mgdm_audio.samplers import mmps as mmps_module
from mgdm_audio.samplers import msdm as msdm_module
from mgdm_audio.samplers.base import Cost, Problem
from mgdm_audio.samplers.warm_start import WarmStart

NAMES = [
    "msdm",
    "msdm-gaussian",
    "isdm",
    "projdiff",
    "ding",
    "mmps",
    "split-gibbs",
    "daps",
    "pnpdm",
]

# --- bias ------------------------------------------------------------------------------------
# The chance that an exact sampler fails one check is below ALARM; the draws are fixed besides.
ALARM = 1e-6
GRID = {"sigma_max": 5.0, "sigma_min": 0.05, "rho": 7.0}
# Settings, noise of the observation, and the bias budget: mean, in posterior standard deviations,
# and entries of the whitened covariance. In brackets what was measured with 4000 samples, whose
# own noise is about 0.03.
# Split Gibbs and PnP-DM are exact for the posterior smeared by their width, but for the moves of
# their chains: the noise of the observation is then sigma_y^2 + K width^2.
WIDTH = 0.5
BIAS = {
    # [0.10, 0.15] The Dirac rule is approximate at any number of steps.
    "msdm": ({**GRID, "levels": 200, "churn": 26.0}, 0.0, 0.10, 0.15),
    # [0.08, 0.22]
    "msdm-gaussian": ({**GRID, "levels": 200, "churn": 26.0}, 0.0, 0.10, 0.25),
    # [0.03, 0.25]
    "isdm": (
        {
            **GRID,
            "levels": 100,
            "churn": 13.0,
            "repetitions": 1,
            "priors": "marginal",
            "marginal_sigma": 50.0,
        },
        0.0,
        0.10,
        0.25,
    ),
    # [0.12, 0.77] It seeks a point: no spread is claimed, the variance is a quarter of the exact.
    "projdiff": ({**GRID, "levels": 50, "repetitions": 1, "rate": 0.5}, 0.0, 0.15, math.inf),
    # [0.08, 0.09] With a noisy observation the spread along it is too small by up to a half.
    "ding": ({**GRID, "levels": 100, "spread": "bridge"}, 0.0, 0.10, 0.10),
    # [0.02, 0.10] Exact but for the finite number of levels.
    "mmps": ({**GRID, "levels": 100, "iterations": 1}, 0.5, 0.05, 0.10),
    # [0.01, 0.10]
    "split-gibbs": (
        {
            **GRID,
            "sigma_min": 0.01,
            "levels": 12,
            "denoising_steps": 8,
            "sweeps": 10,
            "width_min": WIDTH,
            "prior_std": 1.0,
        },
        0.5,
        0.05,
        0.10,
    ),
    # [0.04, 0.04]
    "daps": (
        {**GRID, "levels": 100, "ode_steps": 1, "ode_sigma_min": 0.02, "local": "gaussian"}
        | {"tau": None},
        0.5,
        0.05,
        0.05,
    ),
    # [0.02, 0.05]
    "pnpdm": (
        {"levels": 60, "sigma_min": 0.01, "sigma_max": 5.0, "iterations": 20, "width_start": 3.0}
        | {"width_decay": 0.8, "width_min": WIDTH, "likelihood": "exact", "entry": "width"},
        0.5,
        0.05,
        0.08,
    ),
}


def excess(name, batch, operator=None):
    """How far a sampler is beyond noise and budget, of mean and covariance; <= 1 passes."""
    settings, sigma_y, mean_budget, cov_budget = BIAS[name]
    prior, problem, _ = gaussian_problem(4, batch, sigma_y)
    operator = operator or problem.operator
    smeared = math.hypot(sigma_y, 2 * WIDTH) if name in ("split-gibbs", "pnpdm") else sigma_y
    believed = prior
    if name == "isdm":  # its own model: the stems are independent
        believed = GaussianDenoiser(prior.mean, torch.diag(prior.cov.diagonal()))
    posterior = believed.posterior(Mixture(4).matrix((4, 1)), problem.y[0], smeared)
    sampler = samplers.get(name, "paper", **settings)
    problem = Problem(operator, problem.y, sigma_y, problem.shape)
    try:
        x = sampler.sample(prior, problem, BatchDraws(1, batch))
    except FloatingPointError:
        return math.inf, math.inf
    if sigma_y == 0:  # the sum is given: what is uncertain is all stems but one
        posterior = GaussianDenoiser(posterior.mean[1:], posterior.cov[1:, 1:].contiguous())
        x = x[:, 1:]
    return moment_excess(x, posterior, mean_budget, cov_budget, ALARM)


@pytest.mark.parametrize("name", NAMES)
def test_gaussian_posterior_within_the_budget(name):
    mean, cov = excess(name, 3000)
    assert mean <= 1
    assert cov <= 1


@pytest.mark.parametrize("preset", ["fast", "default", "best"])
def test_pnpdm_presets_have_moves_that_suit_their_grids(preset):
    """Loud and quiet stems keep their size and explain the mix; not so by Euler moves."""

    def deviations(size, **settings):
        """Root mean squares of the residual and of the stems, in units of the exact spread."""
        prior = GaussianDenoiser(torch.zeros(4, 1).double(), size**2 * torch.eye(4).double())
        y = torch.zeros(500, 1, 1, dtype=torch.float64)
        problem = Problem(Mixture(4), y, 0.0, (500, 4, 1))
        x = samplers.get("pnpdm", preset, **settings).sample(prior, problem, BatchDraws(1, 500))
        spread = size * 0.75**0.5
        return float(x.sum(1).square().mean().sqrt()) / spread, float(x.std()) / spread

    residual, spread = deviations(0.03)
    assert residual < 0.2
    assert 0.7 < spread < 1.05  # few moves that take their estimate at its word are too narrow
    residual, spread = deviations(0.003)  # below the last width
    assert residual < 1.1
    assert 0.6 < spread < 1.05
    if preset == "fast":
        wrong, _ = deviations(0.003, moves="euler")
        assert wrong > 2 * residual


class Flipped(Mixture):
    """Corrections have the wrong sign."""

    def adjoint(self, y):
        return -super().adjoint(y)

    def posterior_mean(self, mean, var, y, sigma_y):
        return 2 * mean - super().posterior_mean(mean, var, y, sigma_y)


class Ignored(Mixture):
    """Nothing is corrected."""

    def adjoint(self, y):
        return 0 * super().adjoint(y)

    def posterior_mean(self, mean, var, y, sigma_y):
        return mean


class Point(Mixture):
    """The posterior's mean in place of a draw."""

    def posterior_sample(self, mean, var, y, sigma_y, draws):
        draws.normal(tuple(mean.shape)), draws.normal(tuple(y.shape))
        return self.posterior_mean(mean, var, y, sigma_y)


LIKELIHOOD = [n for n in NAMES if n not in ("msdm", "isdm")]
FAULTS = [(name, fault) for name in LIKELIHOOD for fault in (Flipped, Ignored)]
FAULTS += [(name, Point) for name in ("ding", "split-gibbs", "daps", "pnpdm")]


@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_a_broken_likelihood_fails_the_same_check(name, fault):
    assert max(excess(name, 1500, fault(4))) > 1


@pytest.mark.parametrize("name", ["msdm", "isdm"])
@pytest.mark.parametrize("factor", [-1.0, 0.0])
def test_a_broken_constraint_fails_the_same_check(name, factor, monkeypatch):
    exact = msdm_module.constrained_row
    monkeypatch.setattr(msdm_module, "constrained_row", lambda *args: factor * exact(*args))
    assert max(excess(name, 1500)) > 1


def test_split_gibbs_chain_that_ignores_what_is_left_fails(monkeypatch):
    settings, *rest = BIAS["split-gibbs"]
    monkeypatch.setitem(BIAS, "split-gibbs", ({**settings, "prior_std": None}, *rest))
    assert excess("split-gibbs", 1500)[1] > 1


def test_dirac_follows_the_gains_of_the_mix():
    gains = torch.tensor([2.0, 1.0, 0.5, -1.0]).double()
    settings, _, mean_budget, cov_budget = BIAS["msdm"]
    prior, problem, _ = gaussian_problem(4, 2000, 0.0)
    operator = Mixture(4, gains)
    posterior = prior.posterior(operator.matrix((4, 1)), problem.y[0], 0.0)
    for c in (0, 3):
        sampler = samplers.get("msdm", "paper", **settings, constrained=c)
        given = Problem(operator, problem.y, 0.0, problem.shape)
        x = sampler.sample(prior, given, BatchDraws(1, 2000))
        free = [k for k in range(4) if k != c]
        part = GaussianDenoiser(posterior.mean[free], posterior.cov[free][:, free].contiguous())
        # A rule that is approximate depends on the choice of the stem.
        assert max(moment_excess(x[:, free], part, mean_budget, 2 * cov_budget, ALARM)) <= 1
        assert (operator.forward(x) - problem.y).square().mean().sqrt() < 0.05


@pytest.mark.parametrize(("name", "limit"), [("projdiff", 1e-12), ("ding", 0.03), ("daps", 1e-12)])
def test_an_exact_observation_is_kept(name, limit):
    settings = BIAS[name][0]
    prior, problem, _ = gaussian_problem(4, 500, 0.0)
    x = samplers.get(name, "paper", **settings).sample(prior, problem, BatchDraws(1, 500))
    assert (problem.operator.forward(x) - problem.y).square().mean().sqrt() < limit


def langevin_problem():
    _, problem, _ = gaussian_problem(4, 4000, 0.5)
    centre = torch.linspace(-1, 1, 4).double()[None, :, None].expand(problem.shape)
    mean, _ = problem.operator.posterior(centre, 0.25, problem.y, 0.5)
    # Precision I / 0.25 + A^T A / 0.25.
    cov = torch.linalg.inv(4 * torch.eye(4).double() + 4 * torch.ones(4, 4).double())
    return problem, centre, GaussianDenoiser(mean[0], cov)


def test_langevin_steps_end_in_the_exact_law():
    problem, centre, exact = langevin_problem()
    moves = {"langevin_steps": 200, "langevin_rate": 0.005}
    daps = samplers.get("daps", "paper", **moves, tau=0.5)
    v = daps._langevin(problem, BatchDraws(1, 4000), centre, 0.5, 0.5, 0)
    assert max(moment_excess(v, exact, 0.05, 0.05, ALARM)) <= 1
    pnpdm = {"likelihood": "langevin", "width_start": 0.5, **moves}
    v = samplers.get("pnpdm", "paper", **pnpdm)._likelihood_step(
        problem, BatchDraws(1, 4000), centre, 0.5
    )
    assert max(moment_excess(v, exact, 0.05, 0.05, ALARM)) <= 1
    # The published sign drives v away from x.
    pnpdm["likelihood"] = "published"
    v = samplers.get("pnpdm", "paper", **pnpdm)._likelihood_step(
        problem, BatchDraws(1, 4000), centre, 0.5
    )
    assert max(moment_excess(v, exact, 0.05, 0.05, ALARM)) > 1


def test_conjugate_gradients_solve_each_item():
    g = torch.Generator().manual_seed(0)
    w = torch.randn(3, 6, 6, generator=g, dtype=torch.float64)
    system = w @ w.mT + torch.eye(6).double()
    right = torch.randn(3, 2, 3, generator=g, dtype=torch.float64)
    right[1] = 0

    def apply(v):
        return (system @ v.reshape(3, 6, 1)).reshape(3, 2, 3)

    v = mmps_module.conjugate_gradients(apply, right, 6)
    exact = torch.linalg.solve(system, right.reshape(3, 6, 1)).reshape(3, 2, 3)
    assert (v - exact).abs().max() < 1e-9
    assert torch.equal(v[1], torch.zeros(2, 3).double())
    rough = mmps_module.conjugate_gradients(apply, right, 2)
    assert (rough - exact).abs().max() > 1e-3


def test_marginals_of_a_joint_prior():
    prior, _, _ = gaussian_problem(4, 5, 0.5)
    single = GaussianDenoiser(prior.mean, torch.diag(prior.cov.diagonal()))
    counted = CountingDenoiser(prior)
    marginal = MarginalDenoiser(counted, 1e4, BatchDraws(1, 5))
    x = torch.randn(5, 4, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for sigma in (torch.full((5,), 0.7).double(), torch.rand(5, 4).double() + 0.1):
        assert (marginal(x, sigma) - single(x, sigma)).abs().max() < 1e-3
    assert counted.calls == 2 * 5 * 4
    with pytest.raises(ValueError, match="positive"):
        MarginalDenoiser(prior, 0.0, BatchDraws(1, 5))


# --- contract --------------------------------------------------------------------------------
def tiny_problem(batch=3, sigma_y=1e-2, stems=4, length=3):
    g = torch.Generator().manual_seed(0)
    n = stems * length
    w = torch.randn(n, n, generator=g, dtype=torch.float64)
    prior = GaussianDenoiser(torch.zeros(stems, length).double(), 0.02 * (w @ w.T / n))
    y = 0.2 * torch.randn(batch, 1, length, generator=g, dtype=torch.float64)
    return prior, Problem(Mixture(stems), y, sigma_y, (batch, stems, length))


VARIANTS = [
    *((name, "default", {}) for name in NAMES),
    *((name, "fast", {}) for name in NAMES),
    ("isdm", "fast", {"rule": "gaussian"}),
    ("ding", "fast", {"delayed": True}),
    ("ding", "fast", {"spread": "published"}),
    ("mmps", "fast", {"iterations": 3}),
    ("split-gibbs", "fast", {"prior_std": 0.1, "sweeps": 2}),
    ("daps", "fast", {"local": "langevin", "ode_steps": 3, "prior_std": 0.1}),
    ("pnpdm", "fast", {"likelihood": "langevin", "entry": "grid"}),
    ("ding", "paper", {}),
    ("mmps", "paper", {}),
]


@pytest.mark.parametrize(("name", "preset", "settings"), VARIANTS)
def test_batch_is_its_items_and_cost_is_what_is_called(name, preset, settings):
    prior, problem = tiny_problem()
    sampler = samplers.get(name, preset, **settings)
    counted = CountingDenoiser(prior)
    seen = []
    before, state = problem.y.clone(), torch.get_rng_state()
    batch = sampler.sample(
        counted,
        problem,
        SeededDraws([4, 0, 7], dtype=torch.float64),
        lambda done, total: seen.append((done, total)),
    )
    assert torch.equal(problem.y, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not batch.requires_grad
    cost = sampler.cost()
    assert Cost(counted.calls // 3, counted.vjps // 3) == cost
    lowest = sampler.ode_sigma_min if name == "daps" else sampler.sigma_min
    assert counted.lowest_sigma >= lowest * (1 - 1e-12)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (cost.calls, cost.calls)
    for i, seed in enumerate([4, 0, 7]):
        alone = Problem(problem.operator, problem.y[i : i + 1], 1e-2, (1, 4, 3))
        single = sampler.sample(prior, alone, SeededDraws([seed], dtype=torch.float64))
        assert torch.equal(batch[i : i + 1], single)


@pytest.mark.parametrize("name", NAMES)
def test_presets_are_costed(name):
    cls = samplers.sampler_class(name)
    more = {"daps": {"gradient"}}.get(name, set())
    assert set(cls.PRESETS) == {"paper", "fast", "default", "best"} | more
    costs = {key: sampler.cost() for key, sampler in cls.PRESETS.items()}
    work = {key: c.calls + 2 * c.vjps for key, c in costs.items()}
    assert work["fast"] < work["default"] < work["best"]
    assert 30 <= work["default"] <= 130


@pytest.mark.parametrize(("name", "stiffness"), [("msdm", 4), ("isdm", 4), ("msdm-gaussian", 3.6)])
def test_presets_of_the_churn_samplers_are_stable(name, stiffness):
    for sampler in samplers.sampler_class(name).PRESETS.values():
        levels = sampler.noise_levels().sigmas.flip(0)[:-1]
        raised = levels[:-1] * (1 + min(sampler.churn / sampler.levels, 2**0.5 - 1))
        assert (1 - stiffness * (1 - levels[1:] / raised)).min() > -0.9


def test_few_levels_blow_up_as_documented():
    prior, problem = tiny_problem()
    few = samplers.get("msdm", "fast", levels=8, churn=2.0)
    enough = samplers.get("msdm", "fast")
    sizes = [
        s.sample(prior, problem, SeededDraws([1, 2, 3], dtype=torch.float64)).abs().max()
        for s in (few, enough)
    ]
    assert sizes[0] > 3 * sizes[1]


@pytest.mark.parametrize("name", NAMES)
def test_no_graph_stays_and_gradient_modes_make_no_difference(name):
    prior, problem = tiny_problem()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    live = []

    def denoise(x, sigma):
        if len(live) < 12:
            live.append(sum(1 for o in gc.get_objects() if type(o) is torch.Tensor and o.grad_fn))
        return prior(x, sigma) * scale

    def run(prior):
        draws = SeededDraws([1, 2, 3], dtype=torch.float64)
        return samplers.get(name, "fast").sample(prior, problem, draws)

    plain = run(prior)
    with torch.enable_grad():
        assert torch.equal(run(denoise), plain)
    with torch.inference_mode():
        inside = Problem(problem.operator, problem.y.clone(), 1e-2, problem.shape)
        draws = SeededDraws([1, 2, 3], dtype=torch.float64)
        assert torch.equal(samplers.get(name, "fast").sample(prior, inside, draws), plain)
    assert scale.grad is None
    assert max(live) <= 1  # what the previous call of the same step may still hold


@pytest.mark.parametrize("name", NAMES)
def test_float32_follows_float64(name):
    prior, problem = tiny_problem()
    narrow = Problem(problem.operator, problem.y.float(), 1e-2, problem.shape)
    sampler = samplers.get(name, "fast")
    wide = sampler.sample(prior, problem, SeededDraws([1, 2, 3], dtype=torch.float64))
    x = sampler.sample(prior, narrow, SeededDraws([1, 2, 3], dtype=torch.float64))
    assert x.dtype == torch.float32
    assert (x.double() - wide).abs().max() < 1e-4


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("msdm", "isdm")])
def test_any_operator_and_noise_per_channel(name):
    prior, problem = tiny_problem()
    op = Stack([Mixture(4), KnownStems([1])])
    y = torch.cat([problem.y, torch.zeros_like(problem.y)], dim=1)
    both = Problem(op, y, torch.tensor([1e-2, 1e-3]), problem.shape)
    draws = SeededDraws([1, 2, 3], dtype=torch.float64)
    more = {"iterations": 3} if name == "mmps" else {}
    x = samplers.get(name, "default", **more).sample(prior, both, draws)
    assert x[:, 1].abs().mean() < 0.5 * x[:, 0].abs().mean()


@pytest.mark.parametrize(
    ("name", "operator", "settings", "text"),
    [
        ("msdm", Stack([Mixture(4), Mixture(4)]), {}, "Stack with 2 rows"),
        ("msdm", Mixture(4, [0.0, 1, 1, 1]), {}, "missing from the observation"),
        ("msdm", Mixture(4), {"constrained": 4}, "0 to 3"),
        ("isdm", KnownStems([0, 1]), {}, "KnownStems with 2 rows"),
        ("isdm", Mixture(4), {"stems": 3}, "set `stems`"),
        ("daps", Mixture(4), {"local": "langevin"}, "set `tau`"),
    ],
)
def test_problems_that_do_not_suit_are_refused(name, operator, settings, text):
    y = torch.zeros(1, operator.rows, 3).double()
    problem = Problem(operator, y, 0.0, (1, 4, 3))
    prior, _ = tiny_problem()
    sampler = samplers.get(name, "fast", **settings)
    with pytest.raises(ValueError, match=text):
        sampler.sample(prior, problem, SeededDraws([1], dtype=torch.float64))


def test_langevin_moves_of_pnpdm_take_an_exact_observation_at_its_floor():
    prior, problem = tiny_problem()
    sampler = samplers.get("pnpdm", "fast", likelihood="published")
    results = [
        sampler.sample(
            prior,
            Problem(problem.operator, problem.y, sigma_y, problem.shape),
            SeededDraws([1, 2, 3], dtype=torch.float64),
        )
        for sigma_y in (0.0, 1e-4, 1e-2)
    ]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("settings", [{"eta": 1e-3}, {"levels": 2}, {"delayed": True}])
def test_ding_follows_the_observation(settings):
    prior, problem = tiny_problem()
    sampler = samplers.get("ding", "fast", **settings)
    warm = WarmStart(first=samplers.get("ddnm", "fast"), sampler=sampler, sigma=1.0)
    lowest = WarmStart(
        first=samplers.get("ddnm", "fast"),
        sampler=sampler,
        sigma=float(sampler.noise_levels().sigma(2)),
    )
    for each in (sampler, warm, lowest):
        one, other = (
            each.sample(
                prior,
                Problem(problem.operator, problem.y + more, 0.0, problem.shape),
                SeededDraws([1, 2, 3], dtype=torch.float64),
            )
            for more in (0, 1)
        )
        assert (one - other).abs().max() > 0.1
    with pytest.raises(ValueError, match="expected at least"):
        WarmStart(first=samplers.get("ddnm", "fast"), sampler=sampler, sigma=sampler.sigma_min)


@pytest.mark.parametrize(
    ("name", "settings", "text"),
    [
        ("msdm", {"churn": -1.0}, "churn"),
        ("msdm", {"repetitions": 0}, "repetitions"),
        ("msdm", {"constrained": -1}, "constrained"),
        ("msdm-gaussian", {"gamma": 0.0}, "gamma"),
        ("isdm", {"rule": "delta"}, "dirac, gaussian"),
        ("isdm", {"priors": "own"}, "marginal, given"),
        ("isdm", {"stems": 0}, "stems"),
        ("isdm", {"marginal_sigma": 0.0}, "marginal_sigma"),
        ("projdiff", {"rate": 0.0}, "rate"),
        ("projdiff", {"momentum": 1.0}, "momentum"),
        ("ding", {"spread": "wide"}, "bridge, published"),
        ("ding", {"eta": 1.5}, "eta"),
        ("ding", {"eta": 0.0}, "eta"),
        ("ding", {"levels": 15.5}, "levels = 15.5, expected a whole number"),
        ("ding", {"levels": True}, "levels = True, expected a whole number"),
        ("ding", {"delayed": "false"}, "delayed = 'false', expected true or false"),
        ("ding", {"rho": "7"}, "rho = '7', expected a number"),
        ("mmps", {"iterations": 0}, "iterations"),
        ("split-gibbs", {"width_min": 1e-5}, "width_min"),
        ("split-gibbs", {"denoising_steps": 0}, "denoising_steps"),
        ("split-gibbs", {"prior_std": 0.0}, "prior_std"),
        ("daps", {"local": "exact"}, "gaussian, langevin"),
        ("daps", {"ode_steps": 2, "ode_sigma_min": 0.5}, "ode_sigma_min"),
        ("daps", {"tau": 0.0}, "tau"),
        ("daps", {"langevin_rate": float("nan")}, "langevin_rate"),
        ("pnpdm", {"likelihood": "wrong"}, "exact, langevin, published"),
        ("pnpdm", {"entry": "top"}, "width, grid"),
        ("pnpdm", {"width_min": 5.0}, "width_start"),
        ("pnpdm", {"levels": 1}, "levels"),
    ],
)
def test_settings_are_checked(name, settings, text):
    with pytest.raises(ValueError, match=text):
        samplers.get(name, "default", **settings)
