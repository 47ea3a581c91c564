"""A regressor asked again, given its own estimates."""

from __future__ import annotations

import pytest
import torch

from mgdm_audio import samplers
from mgdm_audio.draws import SeededDraws
from mgdm_audio.operators import KnownStems, Mixture, Stack
from mgdm_audio.passes import CALLS, asked_again
from mgdm_audio.regress import Answers, WithRegressor
from mgdm_audio.samplers.base import Problem


def stems(count=4, batch=1, samples=500, seed=0):
    return torch.randn(batch, count, samples, generator=torch.Generator().manual_seed(seed))


def nothing(x):
    return torch.zeros(x.shape[:2], dtype=torch.bool)


class Exact:
    """The posterior mean of independent Gaussian stems of these variances."""

    def __init__(self, *variances: float) -> None:
        self.variances, self.asked = torch.tensor(variances), []

    def __call__(self, mix, x, known):
        self.asked.append(known.tolist())
        power = torch.where(known, 0.0, self.variances)
        share = power / power.sum(1, keepdim=True).clamp_min(1e-9)
        given = torch.where(known[:, :, None], x, 0)
        return given + share[:, :, None] * (mix - given.sum(1, keepdim=True))


def test_the_posterior_mean_stays_what_it_is():
    """E[x_k | y, E[x_K | y]] is E[x_k | y] where all is Gaussian."""
    regress, x = Exact(0.5, 1.0, 2.0, 3.0), stems()
    mix = x.sum(1, keepdim=True)
    first = regress(mix, x, nothing(x))
    again = asked_again(regress, mix, first, nothing(x))
    assert (again - first).abs().max() < 1e-5


def test_four_stems_are_asked_by_pairs_and_the_mean_is_by_hand():
    def regress(mix, x, known):
        # What is left goes to the unknown stems in a proportion that depends on the pair.
        weights = 1.0 + torch.arange(4.0) * (known.float() * torch.tensor([1.0, 2, 4, 8])).sum(1)
        weights = torch.where(known[0], 0, weights)
        rest = mix - torch.where(known[:, :, None], x, 0).sum(1, keepdim=True)
        return torch.where(known[:, :, None], x, weights[:, None] / weights.sum() * rest)

    x = stems()
    mix, calls = x.sum(1, keepdim=True), []
    again = asked_again(regress, mix, x, nothing(x), report=lambda: calls.append(1))
    assert len(calls) == CALLS == 6
    expected = torch.zeros(4, 500)
    for k in range(4):
        for i in range(4):
            for j in range(i):
                if k not in (i, j):
                    known = nothing(x)
                    known[:, [i, j]] = True
                    expected[k] += regress(mix, x, known)[0, k] / 3
    assert (again[0] - expected).abs().max() < 1e-5
    assert (again.sum(1) - mix[:, 0]).abs().max() < 1e-5


def test_each_stem_is_heard_at_each_speed():
    """Answers that depend on the speed alone, which the length tells: their mean is by hand."""
    heard = []

    def regress(mix, x, known):
        heard.append((mix.shape[2], known[0].tolist()))
        value = {4000: 1.0, 5334: 2.0, 3000: 6.0}[mix.shape[2]]
        return torch.where(known[:, :, None], x, value)

    x, mix = torch.zeros(1, 4, 4000), torch.zeros(1, 1, 4000)
    again = asked_again(regress, mix, x, nothing(x), speeds=3)
    # A constant is one at any speed, but for the ends.
    assert (again[..., 500:-500] - 3).abs().max() < 1e-3
    for k in range(4):
        assert sorted(n for n, known in heard if not known[k]) == [3000, 4000, 5334]
    with pytest.raises(ValueError, match="speeds must be from 1 to 7"):
        asked_again(regress, mix, x, nothing(x), speeds=8)


@pytest.mark.parametrize("count", [3, 4, 5])
def test_speeds_keep_the_sum(count):
    regress, x = Exact(*range(1, count + 1)), stems(count, samples=3000)
    mix = x.sum(1, keepdim=True)
    first = regress(mix, x, nothing(x))
    again = asked_again(regress, mix, first, nothing(x), speeds=3)
    assert (again.sum(1) - mix[:, 0]).abs().max() < 1e-5
    # Of Gaussian stems the same is said at any speed: the estimate stays, to the top of the band.
    assert (again - first).abs().max() < 1e-4


def test_five_stems_take_no_more_calls_and_add_up():
    regress, x = Exact(1.0, 3.0, 2.0, 5.0, 0.2), stems(5)
    mix = x.sum(1, keepdim=True)
    again = asked_again(regress, mix, x, nothing(x))
    assert len(regress.asked) <= CALLS
    assert (again.sum(1) - mix[:, 0]).abs().max() < 1e-5
    told = torch.tensor([row[0] for row in regress.asked]).sum(0)
    assert (told == told[0]).all()


def test_known_stems_stay_and_too_few_unknown_ones_are_left_alone():
    regress, x = Exact(1.0, 3.0, 2.0, 5.0), stems(batch=3)
    mix = x.sum(1, keepdim=True)
    known = torch.tensor([[False] * 4, [False, True, False, False], [True, False, True, False]])
    again = asked_again(regress, mix, x, known)
    assert torch.equal(again[known], x[known])
    assert torch.equal(again[2], x[2])
    assert (again.sum(1) - mix[:, 0]).abs().max() < 1e-5
    # Each item as if it were alone.
    for i in range(3):
        alone = asked_again(regress, mix[i : i + 1], x[i : i + 1], known[i : i + 1])
        assert torch.allclose(alone[0], again[i], atol=1e-6)


def test_the_sampler_asks_as_often_as_it_says():
    regress, x = Exact(1.0, 3.0, 2.0, 5.0), stems()
    problem = Problem(Mixture(4), x.sum(1, keepdim=True), 0.0, tuple(x.shape))
    for passes in (1, 2, 3):
        sampler = samplers.get("regressor", "paper", passes=passes)
        regress.asked.clear()
        told: list[int] = []
        sampler.sample(
            WithRegressor(regress),
            problem,
            SeededDraws([0], "cpu"),
            lambda n, _, t=told: t.append(n),
        )
        assert len(regress.asked) == sampler.cost().calls == sampler.cost().shared
        assert told[-1] == len(regress.asked)
    with pytest.raises(ValueError, match="passes = 0"):
        samplers.get("regressor", "paper", passes=0)


def test_known_stems_through_the_sampler():
    x = stems()
    operator = Stack([Mixture(4), KnownStems([2], 4)])
    problem = Problem(operator, operator.forward(x), 0.0, tuple(x.shape))
    sampler = samplers.get("regressor", "best")
    out = sampler.sample(WithRegressor(Exact(1.0, 3, 2, 5)), problem, SeededDraws([0], "cpu"))
    assert torch.equal(out[:, 2], x[:, 2])
    assert (out.sum(1) - x.sum(1)).abs().max() < 1e-5


def test_samples_of_a_window_share_all_passes():
    regress, x = Exact(1.0, 3.0, 2.0, 5.0), stems()
    sampler = samplers.get("regressor", "best")
    remembered = Answers(sampler.cost().shared).of(regress)
    problem = Problem(Mixture(4), x.sum(1, keepdim=True), 0.0, tuple(x.shape))
    outs = [
        sampler.sample(WithRegressor(remembered), problem, SeededDraws([s], "cpu"))
        for s in range(2)
    ]
    assert len(regress.asked) == sampler.cost().calls == 9
    assert torch.equal(*outs)
