"""Operators: adjoint, norm, pseudo-inverse and the Gaussian answers against dense algebra."""

import pytest
import torch

from mgdm_audio.draws import SeededDraws
from mgdm_audio.operators import (
    Given,
    KnownStems,
    Mask,
    Mixture,
    Nothing,
    PointwiseOperator,
    Stack,
)

K, T, B = 4, 5, 3


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


KEEP = randn(K, T, seed=1) > -0.3
OPERATORS = {
    "mixture": Mixture(K),
    "gains": Mixture(K, [0.5, -1.0, 2.0, 0.1]),
    "silent": Mixture(K, [0.0, 0.0, 0.0, 0.0]),
    "known": KnownStems([2, 0], K),
    "mask": Mask(KEEP),
    "mask_items": Mask(randn(B, K, T, seed=2) > 0),
    "stack": Stack([Mixture(K), KnownStems([1], K)]),
    "stack_mask": Stack([Mixture(K), Mask(KEEP)]),
    "redundant": Stack([Mixture(K), KnownStems(range(K), K)]),
    "given": Given(KEEP, [0.5, -1.0, 2.0, 0.1]),
    "given_items": Given(randn(B, K, T, seed=2) > 0),
    "nothing": Nothing(K),
    "field": PointwiseOperator(randn(2, K, T, seed=3)),
    "field_items": PointwiseOperator(randn(B, 2, K, T, seed=4)),
}
each = pytest.mark.parametrize("name", OPERATORS)


def dense(op, item):
    """Matrix (M T, K T) of one item, written out entry by entry."""
    field = op.field[item if len(op.field) > 1 else 0].expand(-1, -1, T)
    a = torch.zeros(op.rows, T, K, T).double()
    for t in range(T):
        a[:, t, :, t] = field[:, :, t]
    return a.reshape(op.rows * T, K * T)


@each
def test_forward_and_adjoint_are_the_dense_matrix(name):
    op, x = OPERATORS[name], randn(B, K, T)
    y = op.forward(x)
    r = randn(*y.shape, seed=1)
    for i in range(B):
        a = dense(op, i)
        assert torch.allclose(y[i].flatten(), a @ x[i].flatten(), atol=1e-14)
        assert torch.allclose(op.adjoint(r)[i].flatten(), a.T @ r[i].flatten(), atol=1e-14)
    assert (y * r).sum().item() == pytest.approx((x * op.adjoint(r)).sum().item(), abs=1e-12)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad((op.forward(leaf) * r).sum(), leaf)
    assert torch.allclose(slope, op.adjoint(r), atol=1e-14)


@each
def test_norm_and_pseudo_inverse(name):
    op = OPERATORS[name]
    largest = max(float(torch.linalg.matrix_norm(dense(op, i), ord=2)) for i in range(B))
    assert op.norm() == pytest.approx(largest, abs=1e-12)
    r = randn(B, op.rows, T, seed=2)
    for i in range(B):
        expected = torch.linalg.pinv(dense(op, i)) @ r[i].flatten()
        assert torch.allclose(op.pinv(r)[i].flatten(), expected, atol=1e-11)
    x = randn(B, K, T)
    seen = op.forward(x)
    assert torch.allclose(op.forward(op.pinv(seen)), seen, atol=1e-11)
    p = op.range_projection(x)
    assert torch.allclose(op.range_projection(p), p, atol=1e-11)


def test_mixture_facts():
    assert Mixture(4).norm() == pytest.approx(2.0)
    y = randn(1, 1, T)
    assert torch.allclose(Mixture(4).pinv(y), (y / 4).expand(1, 4, T))


def test_dense_matrix_helper():
    op = OPERATORS["stack"]
    assert torch.equal(op.matrix((K, T)), dense(op, 0))


def variances():
    full = randn(B, K, T, seed=5) ** 2 + 0.05
    certain = full.clone()
    certain[:, 1] = 0
    return {
        "number": 0.7,
        "item": full[:, 0, 0],
        "stem": full[:, :, 0],
        "full": full,
        "certain": certain,
    }


@each
@pytest.mark.parametrize("var", variances())
@pytest.mark.parametrize("sigma_y", [0.0, 1e-4, 0.4])
def test_posterior_is_dense_gaussian_conditioning(name, var, sigma_y):
    op, v = OPERATORS[name], variances()[var]
    mean = randn(B, K, T, seed=6)
    # Drawn from the model, so that a hard constraint said twice does not contradict itself.
    wide = torch.as_tensor(v).double()
    wide = wide.reshape(*wide.shape, *[1] * (3 - wide.ndim)).expand(B, K, T)
    truth = mean + wide.sqrt() * randn(B, K, T, seed=7)
    y = op.forward(truth) + sigma_y * randn(B, op.rows, T, seed=8)
    post_mean, post_var = op.posterior(mean, v, y, sigma_y)
    for i in range(B):
        a, c = dense(op, i), torch.diag(wide[i].flatten())
        s = a @ c @ a.T + sigma_y**2 * torch.eye(len(a))
        gain = c @ a.T @ torch.linalg.pinv(s, rtol=1e-11, hermitian=True)
        m = mean[i].flatten()
        expected = m + gain @ (y[i].flatten() - a @ m)
        assert torch.allclose(post_mean[i].flatten(), expected, atol=1e-6)
        covariance = c - gain @ a @ c
        assert torch.allclose(post_var[i].flatten(), covariance.diagonal(), atol=1e-6)
    assert torch.equal(op.posterior_mean(mean, v, y, sigma_y), post_mean)
    if sigma_y == 0:
        assert torch.allclose(op.forward(post_mean), y, atol=1e-9)


@each
@pytest.mark.parametrize("sigma_y", [1e-2, 0.3])
def test_proximal_is_the_brute_force_minimiser(name, sigma_y):
    op, rho = OPERATORS[name], 0.6
    x, y = randn(B, K, T, seed=9), randn(B, op.rows, T, seed=10)
    z = op.proximal(x, y, sigma_y, rho)
    for i in range(B):
        a = dense(op, i)
        system = a.T @ a / sigma_y**2 + torch.eye(K * T) / rho**2
        right = a.T @ y[i].flatten() / sigma_y**2 + x[i].flatten() / rho**2
        assert torch.allclose(z[i].flatten(), torch.linalg.solve(system, right), atol=1e-9)


def test_proximal_with_a_hard_constraint_is_the_projection():
    op, x, y = Mixture(K), randn(B, K, T), randn(B, 1, T, seed=1)
    z = op.proximal(x, y, 0.0, torch.tensor([0.1, 1.0, 10.0]))
    assert torch.allclose(z, x + op.pinv(y - op.forward(x)), atol=1e-13)


def test_noise_may_differ_from_row_to_row():
    op = Stack([Mixture(K), KnownStems([1], K)])
    mean, y = randn(B, K, T), randn(B, 2, T, seed=1)
    noise = torch.tensor([0.5, 0.0])
    out = op.posterior_mean(mean, 1.0, y, noise)
    assert torch.allclose(out[:, 1], y[:, 1], atol=1e-12)  # the given stem, exactly
    # The remaining stems are those of the mix without it.
    rest = Mixture(K, [1.0, 0.0, 1.0, 1.0])
    others = rest.posterior_mean(mean, 1.0, y[:, :1] - y[:, 1:], 0.5)
    assert torch.allclose(out[:, [0, 2, 3]], others[:, [0, 2, 3]], atol=1e-12)


def test_masked_samples_come_back_as_given_and_the_rest_is_left_alone():
    op, mean, truth = Mask(KEEP), randn(B, K, T), randn(B, K, T, seed=1)
    out = op.posterior_mean(mean, 2.0, op.forward(truth), 0.0)
    assert torch.allclose(out[:, KEEP], truth[:, KEEP], atol=1e-14)
    assert torch.equal(out[:, ~KEEP], mean[:, ~KEEP])


def test_a_subset_of_stems_is_the_full_operator_without_the_other_rows():
    x = randn(B, K, T)
    full = KnownStems(range(K), K).forward(x)
    assert torch.equal(KnownStems([3, 1], K).forward(x), full[:, [3, 1]])


def test_one_stem_is_the_mixture():
    op, y = Mixture(1), randn(B, 1, T)
    assert torch.allclose(op.pinv(y), y)
    assert torch.allclose(op.posterior_mean(randn(B, 1, T, seed=3), 1.0, y, 0.0), y)


def test_float32_survives_a_narrow_likelihood():
    x, y = randn(B, K, T).float(), randn(B, 1, T, seed=1).float()
    op = Mixture(K)
    exact = op.proximal(x.double(), y.double(), 1e-4, 20.0)
    assert (op.proximal(x, y, 1e-4, 20.0).double() - exact).abs().max() < 1e-6
    assert op.proximal(x, y, 1e-4, 20.0).dtype == torch.float32


@pytest.mark.parametrize("name", ["mixture", "stack", "mask_items", "redundant"])
@pytest.mark.parametrize("sigma_y", [0.0, 0.3])
def test_an_item_is_the_same_in_any_batch(name, sigma_y):
    op, mean = OPERATORS[name], randn(B, K, T)
    y = op.forward(randn(B, K, T, seed=1))
    batch = op.posterior_mean(mean, 0.5, y, sigma_y)
    for i in range(B):
        alone = PointwiseOperator(op.field[i : i + 1]) if len(op.field) > 1 else op
        single = alone.posterior_mean(mean[i : i + 1], 0.5, y[i : i + 1], sigma_y)
        assert torch.equal(batch[i : i + 1], single)


@pytest.mark.parametrize("sigma_y", [0.0, 0.4])
def test_posterior_samples_have_the_posterior_s_moments(sigma_y):
    n, t = 20_000, 1
    op = Stack([Mixture(K), KnownStems([1], K)])
    v = torch.tensor([[0.5], [1.0], [2.0], [0.1]]).double()
    mean, y = randn(1, K, t).expand(n, K, t), randn(1, 2, t, seed=1).expand(n, 2, t)

    class Draws:
        one = SeededDraws([0], dtype=torch.float64)

        def normal(self, shape, items=None):
            return self.one.normal((1, *shape))[0]

    x = op.posterior_sample(mean, v[None].expand(n, K, t), y, sigma_y, Draws())[:, :, 0]
    a, c = op.field[0, :, :, 0], torch.diag(v[:, 0])
    s = a @ c @ a.T + sigma_y**2 * torch.eye(2)
    gain = c @ a.T @ torch.linalg.inv(s)
    expected = mean[0, :, 0] + gain @ (y[0, :, 0] - a @ mean[0, :, 0])
    cov = c - gain @ a @ c
    deviation = cov.diagonal().clamp_min(0).sqrt()
    # 4 means and 10 covariances: |z| < 5.4 alarms about once in a million runs.
    assert bool(((x.mean(0) - expected).abs() <= 5.4 * deviation / n**0.5 + 1e-9).all())
    spread = (deviation[:, None] ** 2 * deviation**2 + cov**2).sqrt() / n**0.5
    assert bool(((torch.cov(x.T) - cov).abs() <= 5.4 * spread + 1e-9).all())
    if sigma_y == 0:
        assert torch.allclose(x @ a.T, y[:, :, 0], atol=1e-9)


def test_rows_that_say_the_same_with_hardly_any_noise_are_solved():
    twice = Stack([Mixture(3), Mixture(3)])
    y = torch.full((1, 2, 4), 0.3).double()
    x = twice.posterior_mean(torch.zeros(1, 3, 4).double(), 1.0, y, 1e-9)
    assert torch.allclose(x, torch.full_like(x, 0.1), atol=1e-9)


def test_given_parts_may_have_a_weight():
    keep = torch.tensor([[0.5, 0.5], [0, 0], [0, 0]])
    stems = torch.tensor([[[0.2, -0.4], [0.1, 0.3], [0.5, 0.7]]]).double()
    given = Given(keep)
    y = given.forward(stems)
    x = given.posterior_mean(torch.zeros_like(stems), 1.0, y, 0.0)
    general = PointwiseOperator(given.field[0]).posterior_mean(torch.zeros_like(stems), 1.0, y, 0.0)
    assert torch.allclose(x, general, atol=1e-12)
    assert torch.allclose(x[:, 0], stems[:, 0])


def test_what_is_weightless_does_not_depend_on_the_company():
    a = torch.stack([torch.diag(torch.tensor([1.0, 1e-7])), torch.ones(2, 2) + torch.eye(2)])
    y = torch.ones(2, 2, 1).double()
    both = PointwiseOperator(a.double()[..., None]).pinv(y)
    alone = PointwiseOperator(a.double()[:1, ..., None]).pinv(y[:1])
    assert torch.allclose(both[:1], alone)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: Mixture(0), "at least 1"),
        (lambda: Mixture(3, [1.0, 2.0]), "one number for each"),
        (lambda: Mixture(2, [1.0, float("nan")]), "not finite"),
        (lambda: KnownStems([], 4), "known stems"),
        (lambda: KnownStems([4], 4), "known stems"),
        (lambda: KnownStems([1, 1], 4), "known stems"),
        (lambda: Mask(torch.ones(3)), "mask of shape"),
        (lambda: Stack([]), "no operators"),
        (lambda: Stack([Mixture(3), Mixture(4)]), "equal stems"),
        (lambda: PointwiseOperator(torch.ones(2)), "operator field"),
        (lambda: Mixture(4).forward(torch.ones(1, 3, 5)), "4 stems"),
        (lambda: Mixture(4).adjoint(torch.ones(1, 3, 5)), "observed channels"),
        (lambda: Mask(torch.ones(4, 7)).forward(torch.ones(1, 4, 5)), "7"),
        (lambda: Mixture(4).proximal(torch.ones(1, 4, 5), torch.ones(1, 1, 5), -1.0, 1.0), "sig"),
        (
            lambda: Mixture(4).posterior_mean(torch.ones(1, 4, 5), -1.0, torch.ones(1, 1, 5), 1.0),
            "negative variance",
        ),
        (
            lambda: Mixture(4).posterior_mean(
                torch.ones(2, 4, 5), torch.ones(3), torch.ones(2, 1, 5), 1.0
            ),
            "variance of shape",
        ),
    ],
)
def test_errors_say_what_was_expected(call, text):
    with pytest.raises(ValueError, match=text):
        call()
