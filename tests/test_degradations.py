"""Operators that are not linear: slopes, observations, projections; who takes them."""

import math

import pytest
import torch
from oracles import BatchDraws

from mgdm_audio import samplers
from mgdm_audio.compose import compose, join, stack
from mgdm_audio.degradations import Clip, Magnitude, Overdrive, Quantise
from mgdm_audio.denoise import CountingDenoiser, GaussianDenoiser
from mgdm_audio.filters import LowPass
from mgdm_audio.operators import KnownStems, Mixture
from mgdm_audio.samplers.base import Problem

B, K, T = 2, 3, 96


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MIX = Mixture(K)
SMOOTH = {
    "magnitude": Magnitude(16, 4, eps=1e-3),
    "overdrive": Overdrive(3.0),
    "overdriven_mix": compose(Overdrive(0.7), MIX),
    "clip": Clip(0.8),
    "lowpass_overdrive_known": stack(
        [compose(Overdrive(0.7), MIX), KnownStems([1], K), LowPass(T, 0.2, K)], (B, K, T)
    ),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_pull_is_the_jacobian_transposed(name):
    op, x = SMOOTH[name], randn(B, K, T)
    r = randn(*op.forward(x).shape, seed=1)
    v = randn(B, K, T, seed=2)
    h = 1e-6
    change = (op.forward(x + h * v) - op.forward(x - h * v)) / (2 * h)
    assert (change * r).sum().item() == pytest.approx((op.pull(x, r) * v).sum().item(), rel=1e-4)


@pytest.mark.parametrize("name", SMOOTH)
def test_log_likelihood_and_its_gradient(name):
    op, x = SMOOTH[name], randn(B, K, T)
    y = op.forward(randn(B, K, T, seed=3))
    value = op.log_likelihood(x, y, 0.5)
    assert value.shape == (B,)
    expected = torch.distributions.Normal(op.forward(x), 0.5).log_prob(y).sum((1, 2))
    at_truth = torch.distributions.Normal(y, 0.5).log_prob(y).sum((1, 2))
    assert torch.allclose(value, expected - at_truth, atol=1e-9)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(op.log_likelihood(leaf, y, 0.5).sum(), leaf)
    assert torch.allclose(slope, op.pull(x, (y - op.forward(x)) / 0.25), atol=1e-9)


def test_clip_cuts_and_its_projection_keeps_what_was_not_cut():
    x = 2 * randn(1, 1, T)
    y = Clip(1.0).forward(x)
    assert y.abs().max() == 1.0
    known = Clip.seen_in(y, 1.0)
    assert torch.equal(known.forward(x), y)
    guess = randn(1, 1, T, seed=5)
    for op in (known, Clip(1.0)):
        out = op.project(guess, y)
        assert torch.equal(op.forward(out), y)
        inside = y.abs() < 1
        assert torch.equal(out[inside], y[inside])
    # A guess for a sample that was not cut is told so beyond the level, too.
    beyond = torch.full((1, 1, T), 3.0).double()
    told = known.pull(beyond, y - known.forward(beyond))
    assert bool((told[(y < 1) & (y > -1)] < 0).all())
    assert bool((told[y == 1] == 0).all())


def test_clipping_levels_may_differ_by_sign():
    y = torch.tensor([[[0.5, 0.5, 0.2, -0.7, -0.9]]])
    one_side = Clip.beyond(y, 0.5, math.inf)
    assert one_side.where.tolist() == [[[1, 1, 0, 0, 0]]]
    expected = torch.tensor([[[0.5, 0.5, 1.2, 0.3, 0.1]]])
    assert torch.allclose(one_side.forward(y + 1), expected)
    assert Clip.beyond(y, 0.5, 0.8).where.tolist() == [[[1, 1, 0, 0, -1]]]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantise(bits):
    op = Quantise(bits)
    x = 0.8 * torch.rand(1, 1, 2000, generator=torch.Generator().manual_seed(0)).double() - 0.4
    y = op.forward(x)
    assert len(y.unique()) <= 2**bits
    assert (y - x).abs().max() <= op.step / 2 + 1e-12
    assert torch.allclose(op.forward(y), y)
    assert torch.equal(op.pull(x, y), y)  # straight through
    out = op.project(x + 0.1 * randn(1, 1, 2000), y)
    assert torch.allclose(op.forward(0.999999 * (out - y) + y), y, atol=1e-9)
    assert torch.allclose(op.project(x, y), x)  # what explains y is left alone
    loud = op.forward(torch.full((1, 1, 1), 5.0).double())
    assert float(op.project(torch.full((1, 1, 1), 5.0).double(), loud)) == 5.0


def test_magnitudes_at_the_largest_hop_are_a_tight_frame():
    op, x = Magnitude(48, 16, eps=0.0), randn(B, K, 160)
    assert torch.allclose(op.inverse(op.transform(x), 160), x, atol=1e-12)


def test_magnitude_is_a_tight_frame_and_knows_the_signal_up_to_its_sign():
    op, x = Magnitude(64, 16, eps=0.0), randn(B, K, 160)
    z = op.transform(x)
    assert torch.allclose(z.abs().square().sum((1, 2, 3)), x.square().sum((1, 2)))
    assert torch.allclose(op.inverse(z, 160), x, atol=1e-12)
    y = op.forward(x)
    assert torch.allclose(op.forward(-x), y)
    assert torch.allclose(op.project(x, y), x, atol=1e-12)
    # Griffin and Lim: a round never makes the magnitudes worse.
    guess = randn(B, K, 160, seed=4)
    errors = []
    for _ in range(5):
        guess = op.project(guess, y)
        errors.append(float((op.forward(guess) - y).norm()))
    assert errors == sorted(errors, reverse=True)
    assert op.first_guess(y).shape == x.shape
    odd = Magnitude(64, 16, length=150)
    assert odd.first_guess(odd.forward(x[..., :150])).shape == (B, K, 150)


def test_overdrive_is_undone():
    op, x = Overdrive(4.0), 0.5 * randn(1, 1, T).clamp(-1.5, 1.5)
    assert torch.allclose(op.project(torch.zeros_like(x), op.forward(x)), x, atol=1e-6)
    assert float(op.forward(torch.ones(1, 1, 1))) == pytest.approx(1.0)
    assert torch.allclose(op.forward(1e-6 * x), 4e-6 / math.tanh(4) * x, rtol=1e-4)


def test_projection_through_the_mix():
    """The nearest stems that explain a clipped mix: the mix's correction is shared alike."""
    truth = randn(B, K, T)
    op = compose(Clip(1.0), MIX)
    y = op.forward(truth)
    guess = randn(B, K, T, seed=6)
    out = op.project(guess, y)
    assert torch.allclose(op.forward(out), y, atol=1e-12)
    moved = out - guess
    assert torch.allclose(moved, moved.mean(1, keepdim=True).expand_as(moved), atol=1e-12)
    both = stack([op, KnownStems([0], K)], (B, K, T))
    known = both.project(guess, join([y, truth[:, :1]]))
    assert torch.allclose(known[:, :1], truth[:, :1], atol=1e-12)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: Clip(0.0), "clipping level"),
        (lambda: Quantise(1), "2 to 24"),
        (lambda: Quantise(8, 0.0), "full scale"),
        (lambda: Magnitude(64, 48), "hop"),
        (lambda: Magnitude(64, 32), "at most a third"),
        (lambda: Overdrive(-1.0), "drive"),
    ],
)
def test_errors_say_what_was_expected(call, text):
    with pytest.raises(ValueError, match=text):
        call()


LANGEVIN = {"langevin_rate": 0.1, "langevin_scaled": True}
SETTINGS = {
    "mgdm": {"preset": "best"},
    "dps": {"preset": "best", "gamma": 0.008},
    "reddiff": {"preset": "default"},
    "daps": {"preset": "fast", "local": "langevin", "tau": 0.05, **LANGEVIN},
    "pnpdm": {"preset": "best", "likelihood": "langevin", **LANGEVIN},
}


def clipped_problem(sigma_y):
    """One sample of one Gaussian stem, clipped from above: the posterior by quadrature."""
    n = 256
    prior = GaussianDenoiser(torch.zeros(1, 1).double(), torch.full((1, 1), 0.04).double())
    y = torch.full((n, 1, 1), 0.15).double()
    grid = torch.linspace(-2, 2, 8001).double()
    seen = Clip(0.15).forward(grid[:, None, None])
    log = Clip(0.15).log_likelihood(grid[:, None, None], y[:1], sigma_y) - grid**2 / 0.08
    assert seen.max() == 0.15
    weight = torch.softmax(log, 0)
    mean = float((weight * grid).sum())
    std = float((weight * (grid - mean) ** 2).sum().sqrt())
    return prior, Problem(Clip(0.15), y, sigma_y, (n, 1, 1)), mean, std


@pytest.mark.parametrize("name", SETTINGS)
def test_samplers_by_gradient_take_what_is_not_linear(name):
    """A clipped sample is at the level or above, on average where the exact posterior is."""
    prior, problem, mean, std = clipped_problem(0.05)
    settings = dict(SETTINGS[name])
    x = samplers.get(name, settings.pop("preset"), **settings).sample(
        prior, problem, BatchDraws(0, problem.shape[0])
    )
    # Budget: 0.6 of a posterior standard deviation; the prior's mean, 0, is two of them away.
    assert abs(float(x.mean()) - mean) < 0.6 * std
    assert mean > 1.9 * std


@pytest.mark.parametrize("name", [n for n in samplers.names() if n not in ("isdm", "msdm")])
def test_other_samplers_refuse_it_in_one_line(name):
    sampler = samplers.get(name, "fast")
    if not sampler.needs_linear or sampler.needs != ("prior",):
        return
    prior, problem, _, _ = clipped_problem(0.05)
    denoise = CountingDenoiser(prior)
    with pytest.raises(ValueError, match="needs a linear operator and got Clip") as error:
        sampler.sample(denoise, problem, BatchDraws(0, problem.shape[0]))
    assert "\n" not in str(error.value)
    assert denoise.calls == 0
