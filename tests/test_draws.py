"""Randomness: one stream per item, the same alone or in company, and replay."""

import pytest
import torch

from mgdm_audio.draws import RecordedDraws, SeededDraws


def test_an_item_depends_on_its_seed_alone():
    many, one = SeededDraws([5, 0, 9]), SeededDraws([0])
    for _ in range(3):
        assert torch.equal(many.normal((3, 2, 7))[1], one.normal((1, 2, 7))[0])
        assert many.integers(3, 500)[1] == one.integers(3, 500)[0]


def test_same_seed_same_numbers_and_seed_zero_counts():
    a, b, c = (SeededDraws([s], dtype=torch.float64).normal((1, 2, 50)) for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.dtype == torch.float64


def test_items_that_rest_keep_their_stream():
    a, b = SeededDraws([1, 2, 3]), SeededDraws([1, 2, 3])
    part = a.normal((2, 4), items=[0, 2])
    full = b.normal((3, 4))
    assert torch.equal(part, full[[0, 2]])
    assert torch.equal(a.normal((1, 4), items=[1])[0], full[1])


def test_global_generator_is_not_touched():
    before = torch.get_rng_state()
    SeededDraws([7]).normal((1, 3))
    SeededDraws([7]).integers(0, 5)
    assert torch.equal(before, torch.get_rng_state())


def test_integers_cover_the_range_and_take_bounds_per_item():
    draws = SeededDraws(list(range(400)))
    values = draws.integers(2, 5)
    assert values.dtype == torch.int64
    assert set(values.tolist()) == {2, 3, 4}
    low = torch.arange(400)
    assert torch.equal(draws.integers(low, low + 1), low)


def test_normals_are_standard():
    z = SeededDraws([3], dtype=torch.float64).normal((1, 100_000))
    # Standard errors 0.0032 and 0.0045: five of them, a false alarm in a million.
    assert abs(z.mean()) < 0.016
    assert abs(z.var() - 1) < 0.0225


def test_recorded_draws_replay_in_order_and_end():
    z = torch.arange(12.0).reshape(2, 3, 2, 1)
    draws = RecordedDraws(list(z), [4, torch.tensor([1, 2, 3])])
    assert torch.equal(draws.normal((3, 2, 1)), z[0].double())
    assert draws.integers(0, 5).tolist() == [4, 4, 4]
    assert draws.integers(0, 5).tolist() == [1, 2, 3]
    assert not draws.exhausted
    assert torch.equal(draws.normal((1, 2, 1), items=[2])[0], z[1, 2].double())
    assert draws.exhausted
    with pytest.raises(ValueError, match="used up"):
        draws.normal((3, 2, 1))
    with pytest.raises(ValueError, match="used up"):
        draws.integers(0, 5)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: SeededDraws([]), "no seeds"),
        (lambda: SeededDraws([-1]), "seed -1"),
        (lambda: SeededDraws([1]).normal((2, 3)), "one row for each"),
        (lambda: SeededDraws([1]).integers(4, 4), "empty range"),
        (lambda: SeededDraws([1]).integers(torch.tensor([1, 2]), 4), "bounds"),
        (lambda: RecordedDraws([torch.zeros(1, 2)]).normal((1, 3)), "has shape"),
        (lambda: RecordedDraws([], [9]).integers(0, 5), "outside the range"),
    ],
)
def test_errors_say_what_was_expected(call, text):
    with pytest.raises(ValueError, match=text):
        call()
