"""Exact denoisers against independent formulas, and their posteriors against conditioning."""

import pytest
import torch

from mgdm_audio.denoise import (
    CountingDenoiser,
    GaussianDenoiser,
    MixtureDenoiser,
    StackedDenoiser,
    denoise_vp,
)
from mgdm_audio.draws import SeededDraws
from mgdm_audio.noise import NoiseLevels
from mgdm_audio.operators import Mixture

K, T = 3, 4
N = K * T


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_cov(n, seed):
    w = randn(n, n, seed=seed)
    return w @ w.T / n + 0.1 * torch.eye(n)


GAUSSIAN = GaussianDenoiser(randn(K, T, seed=1), random_cov(N, 2))
FULL = MixtureDenoiser(
    torch.tensor([0.2, 0.5, 0.3]).double(),
    randn(3, K, T, seed=3),
    torch.stack([random_cov(N, 4 + j) for j in range(3)]),
)
DIAGONAL = MixtureDenoiser(
    torch.tensor([1.0, 3.0]).double(), randn(2, K, T, seed=8), randn(2, N, seed=9) ** 2 + 0.1
)
PRIORS = {"gaussian": GAUSSIAN, "full": FULL, "diagonal": DIAGONAL}


def as_mixture(prior):
    if isinstance(prior, GaussianDenoiser):
        return MixtureDenoiser(torch.ones(1).double(), prior.mean[None], prior.cov[None])
    return prior


def log_density(prior, x, noise):
    """Log density of x_0 + noise at x (n,), noise variances (n,): straight from torch."""
    mix = as_mixture(prior)
    covs = mix.covs if mix.covs.ndim == 3 else torch.diag_embed(mix.covs)
    normal = torch.distributions.MultivariateNormal
    terms = [
        w.log() + normal(m.flatten(), c + torch.diag(noise)).log_prob(x)
        for w, m, c in zip(mix.weights, mix.means, covs, strict=True)
    ]
    return torch.logsumexp(torch.stack(terms), 0)


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("per_stem", [False, True])
def test_denoiser_is_tweedie_s_formula(name, per_stem):
    sigma = torch.tensor([[0.1, 0.5, 2.0], [1.0, 0.3, 0.7]]).double()
    if not per_stem:
        sigma = sigma[:, 0]
    x = randn(2, K, T, seed=20)
    answer = PRIORS[name](x, sigma)
    for i in range(2):
        noise = (sigma[i].expand(K) ** 2).repeat_interleave(T)
        point = x[i].flatten().requires_grad_()
        (score,) = torch.autograd.grad(log_density(PRIORS[name], point, noise), point)
        expected = point.detach() + noise * score
        assert torch.allclose(answer[i].flatten(), expected, atol=1e-12)


@pytest.mark.parametrize("name", PRIORS)
def test_equal_levels_per_stem_are_one_level(name):
    x, s = randn(2, K, T), torch.tensor([0.3, 1.5]).double()
    assert torch.allclose(PRIORS[name](x, s), PRIORS[name](x, s[:, None].expand(2, K)), atol=1e-12)


@pytest.mark.parametrize("name", PRIORS)
def test_an_item_is_the_same_in_any_batch_to_the_last_bit(name):
    x, s = randn(7, K, T), torch.linspace(0.01, 3, 7).double()
    batch = PRIORS[name](x, s)
    single = torch.cat([PRIORS[name](x[i : i + 1], s[i : i + 1]) for i in range(7)])
    assert torch.equal(batch, single)


@pytest.mark.parametrize("name", PRIORS)
def test_answer_tends_to_the_state_and_to_the_prior_mean(name):
    x = randn(1, K, T)
    assert torch.allclose(PRIORS[name](x, torch.tensor([1e-7]).double()), x, atol=1e-6)
    far = PRIORS[name](x, torch.tensor([1e7]).double())
    mix = as_mixture(PRIORS[name])
    assert torch.allclose(far[0], (mix.weights[:, None, None] * mix.means).sum(0), atol=1e-6)


def test_far_tails_do_not_overflow():
    x = (1e6 * torch.ones(1, K, T)).double().requires_grad_()
    out = FULL(x, torch.tensor([1e-3]).double())
    (slope,) = torch.autograd.grad(out.sum(), x)
    assert bool(torch.isfinite(out).all())
    assert bool(torch.isfinite(slope).all())


def test_float32_states_stay_float32():
    out = GAUSSIAN(torch.zeros(2, K, T), torch.ones(2))
    assert out.dtype == torch.float32


@pytest.mark.parametrize("sigma_y", [0.0, 0.3])
def test_gaussian_posterior_is_dense_conditioning(sigma_y):
    a = Mixture(K).matrix((K, T))
    y = randn(1, T, seed=5)
    post = GAUSSIAN.posterior(a, y, sigma_y)
    # Joint law of (x, y), conditioned through its full precision matrix.
    c, m = GAUSSIAN.cov, GAUSSIAN.mean.flatten()
    s = a @ c @ a.T + sigma_y**2 * torch.eye(T)
    gain = c @ a.T @ torch.linalg.inv(s)
    assert torch.allclose(post.mean.flatten(), m + gain @ (y[0] - a @ m), atol=1e-12)
    assert torch.allclose(post.cov, c - gain @ s @ gain.T, atol=1e-12)
    if sigma_y == 0:
        assert torch.allclose(post.mean.sum(0), y[0], atol=1e-12)


def test_mixture_posterior_is_bayes_rule_on_a_grid():
    prior = MixtureDenoiser(
        torch.tensor([0.3, 0.7]).double(),
        torch.tensor([[[-1.0], [0.5]], [[1.0], [0.0]]]).double(),
        torch.tensor([[0.2, 0.4], [0.3, 0.1]]).double(),
    )
    y, sigma_y = torch.tensor([[0.4]]).double(), 0.5
    post = prior.posterior(Mixture(2).matrix((2, 1)), y, sigma_y)
    axis = torch.linspace(-5, 5, 401).double()
    points = torch.cartesian_prod(axis, axis)
    zero = torch.zeros(2).double()
    exact = log_density(prior, points, zero) - (y[0, 0] - points.sum(1)) ** 2 / (2 * sigma_y**2)
    ours = log_density(post, points, zero)
    difference = (exact - ours)[exact > exact.max() - 12]
    assert (difference - difference.mean()).abs().max() < 1e-9


def test_prior_samples_have_the_prior_s_moments():
    n = 40_000
    for prior in PRIORS.values():
        mix = as_mixture(prior)
        x = prior.sample(SeededDrawsOnce(n), n).flatten(1)
        mean = (mix.weights[:, None] * mix.means.flatten(1)).sum(0)
        standard_error = x.std(0) / n**0.5
        # 12 coordinates, 3 priors: |z| < 5.5 alarms once in a million runs.
        assert float(((x.mean(0) - mean) / standard_error).abs().max()) < 5.5


class SeededDrawsOnce:
    """Normals for any batch from one stream."""

    def __init__(self, n):
        self.one = SeededDraws([1], dtype=torch.float64)

    def normal(self, shape, items=None):
        return self.one.normal((1, *shape))[0]


def test_preserving_view_is_the_same_denoiser():
    levels = NoiseLevels.karras(50, 0.01, 10.0, 3.0)
    x0, n = randn(2, K, T, seed=1), randn(2, K, T, seed=2)
    t = torch.tensor([3, 40])
    sigma = levels.sigma(t)
    x_ve = x0 + sigma[:, None, None] * n
    x_vp = levels.alpha_bar(t).sqrt()[:, None, None] * x_ve
    assert torch.allclose(denoise_vp(FULL, x_vp, t, levels), FULL(x_ve, sigma), atol=1e-12)
    with pytest.raises(ValueError, match="noise level 0"):
        denoise_vp(FULL, x_vp, torch.tensor([0, 3]), levels)


def test_stacked_priors_are_a_block_prior():
    covs = [random_cov(T, 30 + k) for k in range(K)]
    means = randn(K, T, seed=33)
    joint = GaussianDenoiser(means, torch.block_diag(*covs))
    stacked = StackedDenoiser([GaussianDenoiser(means[k : k + 1], c) for k, c in enumerate(covs)])
    x = randn(2, K, T)
    for s in (torch.tensor([0.2, 1.0]).double(), randn(2, K, seed=4).abs() + 0.1):
        assert torch.allclose(stacked(x, s), joint(x, s), atol=1e-12)
    with pytest.raises(ValueError, match="one for each prior"):
        stacked(x[:, :2], torch.ones(2).double())


def test_counting_counts_items_and_gradients():
    counted = CountingDenoiser(GAUSSIAN)
    x = randn(3, K, T)
    counted(x, torch.full((3,), 0.5).double())
    assert (counted.calls, counted.vjps, counted.lowest_sigma) == (3, 0, 0.5)
    leaf = x.clone().requires_grad_()
    out = counted(leaf, torch.full((3,), 0.25).double())
    (slope,) = torch.autograd.grad(out.sum(), leaf)
    assert (counted.calls, counted.vjps, counted.lowest_sigma) == (6, 3, 0.25)
    (plain,) = torch.autograd.grad(GAUSSIAN(leaf, torch.full((3,), 0.25).double()).sum(), leaf)
    assert torch.equal(slope, plain)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: GaussianDenoiser(torch.zeros(2, 3), torch.eye(5)), "K T"),
        (lambda: MixtureDenoiser(torch.ones(2), torch.zeros(3, 1, 1), torch.ones(3, 1)), "J, K"),
        (lambda: MixtureDenoiser(torch.ones(2), torch.zeros(2, 1, 1), torch.ones(2, 4)), "covs"),
        (lambda: MixtureDenoiser(-torch.ones(1), torch.zeros(1, 1, 1), torch.ones(1, 1)), "neg"),
        (lambda: StackedDenoiser([]), "no denoisers"),
    ],
)
def test_errors_say_what_was_expected(call, text):
    with pytest.raises(ValueError, match=text):
        call()
