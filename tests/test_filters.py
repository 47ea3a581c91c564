"""Filters, decimation, reverberation, and stacks and chains: against dense algebra."""

import numpy as np
import pytest
import scipy.signal
import torch

from mgdm_audio.compose import Chain, LinearChain, LinearRows, compose, join, stack
from mgdm_audio.degradations import Clip
from mgdm_audio.filters import Decimation, FilterOperator, LowPass, Reverb, low_pass_response
from mgdm_audio.operators import KnownStems, Mask, Mixture, PointwiseOperator, Stack

B, K, T = 2, 3, 12


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


KEEP = randn(1, T, seed=1) > -0.3
GAINS = [1.0, -0.5, 2.0]
MIX = Mixture(K, GAINS)
ROOM = randn(4, seed=2)
OPERATORS = {
    "lowpass": LowPass(T, 0.2, K, GAINS),
    "one_stem": LowPass(T, 0.2, K, [0.0, 1.0, 0.0]),
    "reverb": Reverb(T, ROOM, K),
    "plain": Decimation(T, 4, K, antialias=False),
    "antialias": Decimation(T, 3, K, GAINS),
    "two_rows": FilterOperator(torch.fft.rfft(randn(2, T, seed=3)), T, randn(2, K, seed=4)),
    "two_rows_down": FilterOperator(torch.fft.rfft(randn(2, T, seed=3)), T, randn(2, K, seed=4), 2),
    "masked_mix": compose(Mask(KEEP), MIX),
    "masked_reverb": compose(Mask(KEEP), Reverb(T, ROOM, K)),
    "mix_and_down": stack([MIX, Decimation(T, 4, K)], (B, K, T)),
    "reverb_and_known": stack([Reverb(T, ROOM, K), KnownStems([1], K)], (B, K, T)),
}
each = pytest.mark.parametrize("name", OPERATORS)


def dense(op):
    """Matrix (M T', K T), column by column."""
    columns = [op.forward(e.reshape(1, K, T)).flatten() for e in torch.eye(K * T).double()]
    return torch.stack(columns, dim=1)


@each
def test_adjoint_gradient_and_norm(name):
    op, x = OPERATORS[name], randn(B, K, T)
    y = op.forward(x)
    r = randn(*y.shape, seed=1)
    assert (y * r).sum().item() == pytest.approx((x * op.adjoint(r)).sum().item(), abs=1e-11)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad((op.forward(leaf) * r).sum(), leaf)
    assert torch.allclose(slope, op.adjoint(r), atol=1e-12)
    assert torch.equal(op.pull(x, r), op.adjoint(r))
    largest = float(torch.linalg.matrix_norm(dense(op), ord=2))
    if isinstance(op, FilterOperator | PointwiseOperator):
        assert op.norm() == pytest.approx(largest, rel=1e-9)
    else:
        assert largest <= op.norm() * (1 + 1e-9)


@each
def test_pseudo_inverse(name):
    op, a = OPERATORS[name], dense(OPERATORS[name])
    r = randn(B, *op.forward(randn(1, K, T)).shape[1:], seed=2)
    expected = r.flatten(1) @ torch.linalg.pinv(a, rtol=1e-9).T
    assert torch.allclose(op.pinv(r).flatten(1), expected, atol=1e-6)


@each
@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("sigma_y", [0.0, 0.3])
def test_posterior_is_dense_gaussian_conditioning(name, varying, sigma_y):
    op, a = OPERATORS[name], dense(OPERATORS[name])
    var = randn(B, K, T if varying else 1, seed=5) ** 2 + 0.1
    mean = randn(B, K, T, seed=6)
    y = op.forward(mean + var.sqrt() * randn(B, K, T, seed=7))
    out, marginal = op.posterior(mean, var if varying else var[..., 0], y, sigma_y)
    for i in range(B):
        c = torch.diag(var[i].expand(K, T).flatten())
        s = a @ c @ a.T + sigma_y**2 * torch.eye(len(a))
        gain = c @ a.T @ torch.linalg.pinv(s, rtol=1e-11, hermitian=True)
        expected = mean[i].flatten() + gain @ (y[i].flatten() - a @ mean[i].flatten())
        assert torch.allclose(out[i].flatten(), expected, atol=1e-6)
        covariance = (c - gain @ a @ c).diagonal()
        assert torch.allclose(marginal[i].flatten(), covariance, atol=1e-6)
    if sigma_y == 0:
        assert torch.allclose(op.forward(out), y, atol=1e-7)
        assert torch.allclose(op.forward(op.project(mean, y)), y, atol=1e-7)


@each
def test_proximal_is_the_brute_force_minimiser(name):
    op, a, rho, sigma_y = OPERATORS[name], dense(OPERATORS[name]), 0.6, 0.2
    x = randn(B, K, T, seed=9)
    y = randn(B, *op.forward(x).shape[1:], seed=10)
    system = a.T @ a / sigma_y**2 + torch.eye(K * T) / rho**2
    right = y.flatten(1) @ a / sigma_y**2 + x.flatten(1) / rho**2
    expected = torch.linalg.solve(system, right.T).T
    assert torch.allclose(op.proximal(x, y, sigma_y, rho).flatten(1), expected, atol=1e-7)


@pytest.mark.parametrize("name", ["lowpass", "reverb", "plain", "antialias", "two_rows_down"])
def test_gram_function_is_that_of_the_dense_matrix(name):
    op, a = OPERATORS[name], dense(OPERATORS[name])
    values, basis = torch.linalg.eigh(a @ a.T)
    seen = values > values.max() * 1e-12
    weights = torch.where(seen, values.clamp_min(1e-30) ** -0.5, 0)
    r = randn(1, *op.forward(randn(1, K, T)).shape[1:], seed=3)
    expected = basis @ (weights * (basis.T @ r.flatten()))
    out = op.gram_function(r, lambda g: g**-0.5)
    assert torch.allclose(out.flatten(), expected, atol=1e-6)


def test_a_reverberated_signal_with_room_for_the_tail_is_the_usual_convolution():
    x = torch.zeros(1, 1, 64).double()
    x[..., :50] = randn(1, 1, 50)
    room = randn(15)
    expected = scipy.signal.fftconvolve(x[0, 0].numpy(), room.numpy())[:64]
    np.testing.assert_allclose(Reverb(64, room).forward(x)[0, 0].numpy(), expected, atol=1e-12)
    # Without that room, the tail comes back at the start: on a circle nothing is lost.
    full = randn(1, 1, 64)
    wrapped = scipy.signal.fftconvolve(full[0, 0].numpy(), room.numpy())
    wrapped[:14] += wrapped[64:]
    out = Reverb(64, room).forward(full)[0, 0].numpy()
    np.testing.assert_allclose(out, wrapped[:64], atol=1e-12)


def test_decimation_keeps_the_lower_band_and_plain_decimation_keeps_samples():
    t = torch.arange(240).double()
    low, high = torch.sin(2 * torch.pi * 6 * t / 240), torch.sin(2 * torch.pi * 50 * t / 240)
    x = (low + high)[None, None]
    assert torch.allclose(Decimation(240, 4).forward(x)[0, 0], low[::4], atol=1e-12)
    plain = Decimation(240, 4, antialias=False)
    assert torch.allclose(plain.forward(x), x[..., ::4], atol=1e-12)
    assert torch.allclose(plain.project(randn(1, 1, 240), x[..., ::4])[..., ::4], x[..., ::4])


def test_low_pass_response():
    h = low_pass_response(1000, 0.1, 0.2)
    assert torch.equal(h[:101].real, torch.ones(101).double())
    assert bool((h.real.diff() <= 0).all())
    assert bool((h[121:] == 0).all())
    assert float(h.real[h.real > 0].min()) >= 1e-3


def test_compose_and_stack_find_the_exact_class():
    shape = (B, K, T)
    assert isinstance(compose(Mask(KEEP), MIX), PointwiseOperator)
    assert isinstance(compose(LowPass(T, 0.2), MIX), FilterOperator)
    assert isinstance(compose(Reverb(T, ROOM, K), Mask(randn(K, T) > 0)), LinearChain)
    assert isinstance(compose(Clip(0.5), MIX), Chain)
    assert isinstance(stack([MIX, KnownStems([0], K)], shape), Stack)
    two = stack([LowPass(T, 0.2, K), Reverb(T, ROOM, K)], shape)
    assert isinstance(two, FilterOperator)
    assert two.rows == 2
    assert isinstance(OPERATORS["mix_and_down"], LinearRows)


def test_stacks_say_what_their_parts_say():
    x = randn(B, K, T)
    parts = [MIX, Decimation(T, 4, K), KnownStems([2], K)]
    op = stack(parts, (B, K, T))
    y = op.forward(x)
    assert torch.equal(y, join([p.forward(x) for p in parts]))
    assert torch.equal(y[:, 1, 3:], torch.zeros(B, T - 3).double())
    r = randn(*y.shape)
    expected = MIX.adjoint(r[:, :1]) + parts[1].adjoint(r[:, 1:2, :3]) + parts[2].adjoint(r[:, 2:])
    assert torch.allclose(op.adjoint(r), expected, atol=1e-13)
    # The given stem comes out as it was given, and the mix adds up.
    out = op.project(randn(B, K, T, seed=8), y)
    assert torch.allclose(out[:, 2], x[:, 2], atol=1e-7)
    assert torch.allclose(MIX.forward(out), MIX.forward(x), atol=1e-7)


def test_a_filter_of_the_mix_is_the_filter_after_the_mix():
    x = randn(B, K, T)
    direct = LowPass(T, 0.2, K, GAINS)
    assert torch.allclose(compose(LowPass(T, 0.2), MIX).forward(x), direct.forward(x), atol=1e-13)
    assert torch.allclose(direct.forward(x), LowPass(T, 0.2).forward(MIX.forward(x)), atol=1e-13)


def test_an_item_is_the_same_in_any_batch():
    op = OPERATORS["mix_and_down"]
    x, y = randn(B, K, T), op.forward(randn(B, K, T, seed=1))
    both = op.project(x, y)
    for i in range(B):
        assert torch.allclose(both[i : i + 1], op.project(x[i : i + 1], y[i : i + 1]), atol=1e-12)


def test_what_contradicts_itself_is_refused():
    op = stack([MIX, compose(Mask(torch.ones(1, T)), Reverb(T, ROOM, K, GAINS))], (1, K, T))
    assert isinstance(op, LinearRows)
    hollow = stack([KnownStems([0], K), Decimation(T, 4, K, [1.0, 0.0, 0.0])], (1, K, T))
    with pytest.raises(ArithmeticError, match="contradicts itself"):
        hollow.project(randn(1, K, T), randn(1, 2, T))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: Decimation(10, 4), "does not divide"),
        (lambda: LowPass(10, 0.6), "cutoff"),
        (lambda: Reverb(3, torch.ones(4)), "impulse response"),
        (lambda: LowPass(10, 0.2, 3, [1.0]), "one number for each"),
        (lambda: FilterOperator(torch.ones(1, 3), 10, torch.ones(1, 2)), "responses"),
        (lambda: FilterOperator(torch.ones(2, 6), 10, torch.ones(1, 2)), "rows of gains"),
        (lambda: LowPass(T, 0.2, K).forward(torch.ones(1, K, T + 1)), "expected"),
        (lambda: OPERATORS["mix_and_down"].gram_function(torch.ones(1, 2, T), abs), "ddnm"),
        (lambda: stack([], (1, 1, 1)), "no operators"),
        (lambda: LowPass(5000, 0.2).matrix((1, 5000)), "dense"),
        (lambda: MIX.log_likelihood(torch.ones(1, K, T), torch.ones(1, 1, T), 0.0), "positive"),
    ],
)
def test_errors_say_what_was_expected(call, text):
    with pytest.raises(ValueError, match=text):
        call()
