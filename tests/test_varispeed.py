"""A regressor asked at several speeds: as it is where they change nothing, else the mean."""

from __future__ import annotations

import pytest
import torch

from mgdm_audio import samplers
from mgdm_audio.draws import SeededDraws
from mgdm_audio.operators import KnownStems, Mixture, Stack
from mgdm_audio.regress import WithRegressor
from mgdm_audio.samplers.base import Problem
from mgdm_audio.varispeed import SPEEDS, Varispeed, played

RATE = 22050
SHARES = torch.tensor([0.4, 0.3, 0.2, 0.1])[:, None]


def tone(hertz, samples=8192):
    return torch.sin(2 * torch.pi * hertz / RATE * torch.arange(samples))[None, None]


def noise(batch=1, samples=5000):
    return torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(0))


def nothing(mix, stems=4):
    """No stem is given."""
    return torch.zeros(len(mix), stems, mix.shape[2]), torch.zeros(len(mix), stems).bool()


def shares(mix, stems, known):
    """Every stem has its share of what is not given."""
    part = SHARES.where(~known[:, :, None], torch.zeros(()))
    given = torch.where(known[:, :, None], stems, 0)
    return given + part / part.sum(1, keepdim=True) * (mix - given.sum(1, keepdim=True))


def by_pitch(mix, stems, known):
    """All of it is the first stem below 1 kHz and the second above: by speed, another one."""
    peak = torch.fft.rfft(mix[:, 0]).abs().argmax(1) / mix.shape[2] * RATE
    return torch.stack([(peak < 1000).float(), (peak >= 1000).float()], 1)[:, :, None] * mix


@pytest.mark.parametrize("samples", [1, 7, 5000])
def test_what_does_not_depend_on_speed_stays_as_it_is(samples):
    mix = noise(samples=samples)  # to the top of the band, which a change of speed loses
    out = Varispeed(shares, 7)(mix, *nothing(mix))
    assert out.shape == (1, 4, samples)
    assert (out - SHARES * mix).abs().max() < 1e-5


@pytest.mark.parametrize("speeds", [1, 3, 7])
def test_is_the_mean_over_the_speeds(speeds):
    mix = tone(900.0)
    out = Varispeed(by_pitch, speeds)(mix, *nothing(mix, 2))
    heard = [1, *SPEEDS[: speeds - 1]]
    low = sum(900 * float(s) < 1000 for s in heard) / speeds
    middle = slice(500, -500)  # beyond its ends a tone rings
    assert 0 < low < 1 or speeds == 1
    assert (
        out[..., middle] - torch.tensor([[low], [1 - low]]) * mix[..., middle]
    ).abs().max() < 0.01
    assert (out.sum(1) - mix[:, 0]).abs().max() < 1e-5


@pytest.mark.parametrize("speed", SPEEDS)
def test_played_faster_is_shorter_and_higher(speed):
    out = played(tone(1000.0), speed)
    assert out.shape[2] == -(-8192 * speed.denominator // speed.numerator)
    peak = torch.fft.rfft(out[0, 0]).abs().argmax() / out.shape[2] * RATE
    assert abs(peak - 1000 * float(speed)) < 2
    back = played(out, 1 / speed)[..., :8192]
    assert (back - tone(1000.0))[..., 200:-200].abs().max() < 1e-3


def test_batches_and_half_precision_change_nothing():
    mix = noise(3)
    ask = Varispeed(shares, 3)
    whole = ask(mix, *nothing(mix))
    with torch.autocast("cpu", torch.bfloat16):
        for i in range(3):
            assert torch.equal(ask(mix[i : i + 1], *nothing(mix[:1]))[0], whole[i])


def test_given_stems_stay_and_are_told_at_every_speed():
    stems = torch.randn(1, 4, 5000, generator=torch.Generator().manual_seed(1))
    mix, known = stems.sum(1, keepdim=True), torch.tensor([[False, True, False, False]])
    out = Varispeed(shares, 5)(mix, stems, known)
    assert torch.equal(out[:, 1], stems[:, 1])
    assert (out - shares(mix, stems, known)).abs().max() < 1e-5


def test_samplers_say_how_often_they_ask():
    mix, calls = noise(), []

    def counted(mix, stems, known):
        calls.append(mix.shape[2])
        return shares(mix, stems, known)

    asked = {}
    for preset in ("paper", "fast", "default", "best"):
        sampler = samplers.get("regressor", preset)
        told: list[int] = []
        problem = Problem(Mixture(4), mix, 0.0, (1, 4, 5000))
        sampler.sample(
            WithRegressor(counted),
            problem,
            SeededDraws([0], "cpu"),
            lambda n, _, t=told: t.append(n),
        )
        asked[preset] = len(calls)
        assert sampler.cost().calls == sampler.cost().shared == len(calls)
        assert told[: len(calls)] == list(range(1, len(calls) + 1))
        calls.clear()
    assert asked == {"paper": 1, "fast": 3, "default": 3, "best": 9}


def test_known_stems_through_the_sampler():
    stems = torch.randn(1, 4, 5000, generator=torch.Generator().manual_seed(2))
    operator = Stack([Mixture(4), KnownStems([2], 4)])
    problem = Problem(operator, operator.forward(stems), 0.0, (1, 4, 5000))
    sampler = samplers.get("regressor", "best", speeds=7)
    out = sampler.sample(WithRegressor(shares), problem, SeededDraws([0], "cpu"))
    assert torch.equal(out[:, 2], stems[:, 2])
    assert (out.sum(1) - stems.sum(1)).abs().max() < 1e-5


@pytest.mark.parametrize("speeds", [0, 8, -1])
def test_refuses_speeds_that_there_are_not(speeds):
    with pytest.raises(ValueError, match="speeds must be from 1 to 7"):
        Varispeed(shares, speeds)
    with pytest.raises(ValueError, match="speeds must be from 1 to 7"):
        samplers.get("regressor", "default", speeds=speeds)
