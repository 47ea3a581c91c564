"""Windows: every sample covered once, bit-exact where windows agree, real context, seeds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgdm_audio.windows import WindowPlan, window_seed


@st.composite
def plans(draw, longest=400):
    window = draw(st.integers(1, 60))
    overlap = draw(st.integers(0, window // 2))
    return WindowPlan(draw(st.integers(1, longest)), window, overlap, draw(st.integers(1, 70)))


@settings(deadline=None, max_examples=300)
@given(plans(), st.integers(0, 2**31))
def test_an_identity_sampler_gives_the_signal_bit_for_bit(plan, seed):
    x = torch.randn(2, 3, plan.length, generator=torch.Generator().manual_seed(seed))
    joined = plan.join(plan.cut(x, i) for i in range(len(plan.starts)))
    assert torch.equal(joined, x)


@settings(deadline=None, max_examples=100)
@given(plans(longest=120))
def test_weights_cover_every_sample_and_sum_to_one(plan):
    # Window i of ones among zeros, all i side by side: what comes out is the weights.
    ones = torch.eye(len(plan.starts), dtype=torch.float64)[..., None].expand(-1, -1, plan.size)
    weights = plan.join(ones.unbind(1))
    assert weights.min() >= 0
    assert (weights.sum(0) - 1).abs().max() < 1e-15
    assert (weights > 0).sum(0).max() <= 2


@settings(deadline=None, max_examples=300)
@given(plans())
def test_windows_hold_real_audio_and_the_fade_lies_inside_what_they_share(plan):
    assert plan.starts[0] == 0
    if plan.length < plan.window:
        assert len(plan.starts) == 1
        assert plan.length <= plan.size <= plan.window
        return
    assert plan.starts[-1] + plan.window == plan.length
    for left, right, (low, high) in zip(plan.starts, plan.starts[1:], plan.fades(), strict=False):
        assert right - left <= plan.window - plan.overlap
        assert right <= low <= high <= left + plan.window
        assert high - low == plan.overlap // 2
        # As much context before the fade as behind it, to one sample.
        assert abs((low - right) - (left + plan.window - high)) <= 1


@pytest.mark.parametrize("length", [99, 100, 101, 175, 176, 251])
def test_a_seam_does_not_jump(length):
    plan = WindowPlan(length, 100, 40)
    pieces = [torch.full((plan.size,), float(i)) for i in range(len(plan.starts))]
    assert plan.join(pieces).diff().abs().max() <= 1 / 20 + 1e-6 or len(pieces) == 1


def test_a_short_signal_is_padded_to_the_multiple():
    plan = WindowPlan(5, 64, 8, multiple=16)
    assert plan.size == 16
    cut = plan.cut(torch.arange(1.0, 6.0), 0)
    assert torch.equal(cut, torch.cat([torch.arange(1.0, 6.0), torch.zeros(11)]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 8), "length"),
        ((8, 0), "window"),
        ((8, 8, 5), "overlap"),
        ((8, 8, -1), "overlap"),
        ((8, 8, 0, 0), "multiple"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        WindowPlan(*arguments)


def test_wrong_lengths_and_counts_are_refused():
    plan = WindowPlan(20, 8, 2)
    with pytest.raises(ValueError, match="20 samples"):
        plan.cut(torch.zeros(19), 0)
    for count in (len(plan.starts) - 1, len(plan.starts) + 1):
        with pytest.raises(ValueError, match="windows"):
            plan.join(torch.zeros(8) for _ in range(count))


def test_seeds_are_stable_and_differ():
    # Written down: a change of these changes every separation that anyone made.
    assert [window_seed(0, 0), window_seed(0, 1), window_seed(2**40, 7)] == [
        2968811710,
        3964924996,
        2437431422,
    ]
    seeds = {window_seed(seed, index) for seed in range(20) for index in range(50)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**32 for seed in seeds)
    with pytest.raises(ValueError, match="non-negative"):
        window_seed(-1, 0)
