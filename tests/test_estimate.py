"""Estimates of gaps: two experts, the split into stems, windows."""

import numpy as np
import pytest
import torch

from mgdm_audio.denoise import CountingDenoiser
from mgdm_audio.estimate import Experts, combined, fill
from mgdm_audio.windows import WindowPlan

RATE = 22050


def experts(denoise, length, regress=None, window=16384, told=None):
    return Experts(
        denoise, regress, WindowPlan(length, window, 4096, 2048), RATE,
        torch.device("cpu"), False, lambda: None if told is None else told.append(1),
    )  # fmt: skip


def snr(x, truth, where):
    return 10 * np.log10(np.square(truth[where]).sum() / np.square((x - truth)[where]).sum())


def test_two_that_agree_are_weighed_by_their_precision():
    m, p = np.array([1.0, 0.0]), np.array([0.0, 0.0])
    c, v = np.diag([1.0, 2.0]), np.diag([3.0, 2.0])
    np.testing.assert_allclose(combined(m, c, p, v), [0.75, 0.0], rtol=1e-6)


@pytest.fixture
def song(music):
    truth = music[:, :30000].astype(np.float64)
    missing = np.zeros(30000, bool)
    missing[9000:9300] = missing[20000:20300] = True
    return truth, missing


def test_gaps_are_filled_and_all_else_is_kept(song, prior):
    """The prior is asked for a stem, in the windows that have gaps, and weighs little."""
    truth, missing = song
    bass, told = truth[0], []
    y, asked = np.where(missing, 0, bass), CountingDenoiser(prior.denoise)
    first, again, other = fill(
        experts(asked, 30000, told=told), y, missing, np.eye(4)[0], [3, 3, 4]
    )  # fmt: skip
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(first[~missing], bass[~missing])
    assert snr(first, bass, missing) > 10
    assert len(told) == asked.calls > 0
    before = asked.calls
    (whole,) = fill(experts(asked, 30000), y, missing, np.ones(4), [0])
    assert asked.calls == before
    assert np.array_equal(whole[~missing], bass[~missing])


def test_a_split_into_stems_is_asked_for_mixes_alone(song, prior):
    """With the true stems at hand, what each of them was says more than their sum."""
    truth, missing = song
    mix, asked = truth.sum(0), []
    full = torch.from_numpy(truth).float()[None]

    def regress(y, stems, known):
        asked.append(y.shape)
        start = int(torch.isclose(full.sum(1)[0], y[0, 0, 0]).nonzero()[0]) if y[0, 0, 0] else 0
        part = full[..., start : start + y.shape[2]]
        return torch.nn.functional.pad(part, (0, y.shape[2] - part.shape[2]))

    one = experts(prior.denoise, 30000, regress, window=65536)
    split = fill(one, np.where(missing, 0, mix), missing, np.ones(4), [0])[0]
    assert asked == [(1, 1, 30720)]
    assert np.array_equal(split[~missing], mix[~missing])
    assert snr(split, mix, missing) > 3
    fill(one, np.where(missing, 0, truth[0]), missing, np.eye(4)[0], [0])
    assert len(asked) == 1
