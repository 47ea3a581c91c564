"""A regressor's answers, kept for whoever asks the same again."""

from __future__ import annotations

import math

import torch

from mgdm_audio.regress import Answers


def test_answers_are_asked_once_and_never_mixed_up():
    asked = []

    def regress(mix, stems, known):
        asked.append(len(mix))
        return mix * torch.arange(4.0)[:, None]

    remembered = Answers(size=2).of(regress)
    mixes = torch.randn(3, 1, 8, generator=torch.Generator().manual_seed(0))

    def ask(*rows, given=False):
        mix, stems = mixes[list(rows)], torch.zeros(len(rows), 4, 8)
        out = remembered(mix, stems, torch.full((len(rows), 4), given))
        assert torch.equal(out, stems if given else mix * torch.arange(4.0)[:, None])

    ask(0, 1, 0)
    ask(1)
    ask(0)
    assert asked == [2]
    ask(2, 2, 0, 1)  # 2 is new, 0 is forgotten for it
    assert asked == [2, 1]
    ask(0)
    assert asked == [2, 1, 1]
    ask(0, given=True)  # the stems are given: another question
    assert asked == [2, 1, 1, 1]


def test_a_question_that_holds_nan_gets_its_own_answer():
    """It is not like itself, so that nothing that is kept can be its answer."""

    def regress(mix, x, known):
        return torch.where(known[:, :, None], x, mix)

    mix, x = torch.ones(2, 1, 8), torch.zeros(2, 4, 8)
    x[0] = math.nan
    known = torch.tensor([[True, False, False, False]] * 2)
    for rows in ([0], [0, 1], [1, 0]):
        told = mix[rows], x[rows], known[rows]
        out = Answers(size=4).of(regress)(*told)
        assert torch.equal(out.isnan(), regress(*told).isnan())
        assert torch.equal(out.nan_to_num(), regress(*told).nan_to_num())


def test_answers_are_about_what_is_given():
    asked = []

    def regress(mix, x, known):
        asked.append(len(mix))
        return torch.where(known[:, :, None], x, mix)

    remembered = Answers(size=4).of(regress)
    mix, x = torch.ones(1, 1, 8), torch.zeros(1, 4, 8)
    one, other = (torch.tensor([[k == 0, k == 1, False, False]]) for k in range(2))
    for given, value in ((one, 1.0), (one, 2.0), (other, 1.0), (one, 1.0), (other, 1.0)):
        x[:] = value
        out = remembered(mix, x, given)
        assert torch.equal(out, torch.where(given[:, :, None], x, mix))
    assert len(asked) == 3
