"""Noise levels and bridges: endpoints, monotone, and the algebra of the Markov chain."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgdm_audio.noise import (
    NoiseLevels,
    bridge,
    bridge_ve,
    broadcast,
    forward,
    int_linspace,
    karras_sigmas,
)

PAPER = NoiseLevels.karras(1000, 5e-4, 20.0, 3.0)


def test_karras_grid_has_its_end_points_and_descends():
    s = karras_sigmas(10, 1e-3, 5.0, 7.0)
    assert s.dtype == torch.float64
    assert s.shape == (11,)
    assert s[0].item() == pytest.approx(5.0, rel=1e-12)
    assert s[-2].item() == pytest.approx(1e-3, rel=1e-12)
    assert s[-1] == 0
    assert bool((s.diff() < 0).all())


def test_levels_ascend_from_clean_and_signal_share_falls():
    assert len(PAPER) == 1001
    assert PAPER.sigma(0) == 0
    assert bool((PAPER.sigmas.diff() > 0).all())
    alpha = PAPER.alpha_bar(torch.arange(1001))
    assert alpha[0] == 1
    assert bool((alpha.diff() < 0).all())
    # 1 - alpha keeps its relative precision where alpha is close to one.
    s = PAPER.sigma(1)
    assert PAPER.one_minus_alpha_bar(1).item() == pytest.approx((s**2 * (1 - s**2)).item(), 1e-12)
    total = alpha + PAPER.one_minus_alpha_bar(torch.arange(1001))
    assert torch.allclose(total, torch.ones_like(total), rtol=0, atol=1e-15)


def test_published_grid_of_twenty_steps():
    assert PAPER.subgrid(20) == [
        *(0, 52, 105, 157, 210, 262, 315, 368, 420, 473),
        *(525, 578, 630, 683, 736, 788, 841, 893, 946, 999),
    ]


@given(stop=st.integers(0, 2000), n=st.integers(1, 60))
def test_int_linspace_is_torch_s_rule(stop, n):
    assert int_linspace(stop, n) == torch.linspace(0, stop, n, dtype=torch.int64).tolist()


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 1000), min_size=3, max_size=3, unique=True).map(sorted),
    st.floats(0, 1),
)
def test_bridge_reproduces_the_marginal_for_every_eta(indices, eta):
    s, t, u = indices
    c_s, c_u, std = bridge(PAPER, s, t, u, eta)
    scale_s, scale_t, scale_u = (PAPER.alpha_bar(i).sqrt() for i in (s, t, u))
    # Given x_0: the mean is sqrt(a_t) x_0; s and u come from the forward chain s -> u.
    assert torch.allclose(c_s * scale_s + c_u * scale_u, scale_t, rtol=1e-11)
    c, noise = forward(PAPER, s, u)
    var_s = PAPER.one_minus_alpha_bar(s)
    variance = (c_s + c_u * c) ** 2 * var_s + (c_u * noise) ** 2 + std**2
    assert torch.allclose(variance, PAPER.one_minus_alpha_bar(t), rtol=1e-9)


def test_bridge_at_eta_one_is_gaussian_conditioning():
    s, t, u = 100, 300, 700
    c_st, d_st = forward(PAPER, s, t)
    c_tu, d_tu = forward(PAPER, t, u)
    precision = 1 / d_st**2 + c_tu**2 / d_tu**2
    c_s, c_u, std = bridge(PAPER, s, t, u)
    assert torch.allclose(std, precision.rsqrt(), rtol=1e-12)
    assert torch.allclose(c_s, c_st / d_st**2 / precision, rtol=1e-12)
    assert torch.allclose(c_u, c_tu / d_tu**2 / precision, rtol=1e-12)


def test_bridge_to_the_clean_end_returns_the_clean_signal():
    c_s, c_u, std = bridge(PAPER, 0, 0, 17, 0.7)
    assert (c_s.item(), c_u.item(), std.item()) == (1.0, 0.0, 0.0)


def test_bridge_takes_one_index_per_item():
    s, t, u = torch.tensor([0, 10]), torch.tensor([5, 20]), torch.tensor([9, 400])
    rows = bridge(PAPER, s, t, u, 0.5)
    for i in range(2):
        single = bridge(PAPER, int(s[i]), int(t[i]), int(u[i]), 0.5)
        assert all(torch.equal(a[i], b) for a, b in zip(rows, single, strict=True))


def test_exploding_and_preserving_bridges_are_the_same_move():
    levels = [PAPER.sigma(i) for i in (50, 200, 500)]
    c_s, c_u, std = bridge_ve(*levels, 0.6)
    p_s, p_u, p_std = bridge(PAPER, 50, 200, 500, 0.6)
    a = [PAPER.alpha_bar(i).sqrt() for i in (50, 200, 500)]
    assert torch.allclose(p_s * a[0] / a[1], c_s, rtol=1e-12)
    assert torch.allclose(p_u * a[2] / a[1], c_u, rtol=1e-12)
    assert torch.allclose(p_std / a[1], std, rtol=1e-12)


def test_broadcast_follows_the_state():
    x = torch.zeros(3, 4, 5)
    assert broadcast(2.0, x).dtype == torch.float32
    assert broadcast(torch.arange(3).double(), x).shape == (3, 1, 1)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: karras_sigmas(1, 0.1, 1, 3), "at least 2"),
        (lambda: karras_sigmas(5, 1.0, 0.1, 3), "sigma_min"),
        (lambda: karras_sigmas(5, 0.1, 1, 0), "rho"),
        (lambda: karras_sigmas(5, 0.1, 20, 1e-3), "levels from 20 to 0.1 coincide"),
        (lambda: karras_sigmas(5, 0.1, 1, 1e-3), "levels from 1 to 0.1 coincide"),
        (lambda: int_linspace(-1, 3), "stop"),
        (lambda: NoiseLevels(torch.ones(3)), "float64"),
        (lambda: NoiseLevels(torch.tensor([0.0, 2.0, 1.0]).double()), "ascend"),
        (lambda: PAPER.subgrid(2000), "raise `levels`"),
        (lambda: bridge(PAPER, 5, 3, 9), "bridge levels"),
        (lambda: bridge(PAPER, 0, 3, 9, 1.5), "eta"),
        (lambda: forward(PAPER, 9, 3), "s <= t"),
        (lambda: broadcast(torch.ones(2), torch.ones(3, 1, 1)), "per batch item"),
    ],
)
def test_errors_say_what_was_expected(call, text):
    with pytest.raises(ValueError, match=text):
        call()
