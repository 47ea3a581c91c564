"""Autoregressions: coefficients, gaps, bounds, against processes whose answers are known."""

import numpy as np
import pytest
import scipy.linalg
import scipy.signal

from mgdm_audio.autoregression import (
    burg,
    declip,
    interpolate,
    runs,
    truncated_mean,
    truncated_mode,
    yule_walker,
)

RATE = 2000
TRUE = np.poly([0.98 * np.exp(0.4j), 0.98 * np.exp(-0.4j), 0.9 * np.exp(1.5j), 0.9 * np.exp(-1.5j)])


def process(seed, length=3000, power=0.01):
    noise = np.random.default_rng(seed).normal(size=length + 500) * power**0.5
    return scipy.signal.lfilter([1], TRUE.real, noise)[500:]


def error_db(x, truth, where=slice(None)):
    return 10 * np.log10(np.square((x - truth)[where]).sum() / np.square(truth[where]).sum())


def test_coefficients_are_found():
    x = process(0, 20000)
    a, power = burg([x[:8000], x[12000:]], 4)
    np.testing.assert_allclose(a, TRUE.real, atol=0.05)
    assert power == pytest.approx(0.01, rel=0.05)
    np.testing.assert_allclose(yule_walker(x, 4), TRUE.real, atol=0.05)


def test_silence_and_pure_tones_have_coefficients():
    a, power = burg([np.zeros(100)], 4)
    assert np.array_equal(a, [1, 0, 0, 0, 0])
    assert power == 0
    assert np.isfinite(yule_walker(np.zeros(100), 4)).all()
    tone = np.sin(0.3 * np.arange(3000))
    missing = np.zeros(3000, bool)
    missing[1500:1560] = True
    filled = interpolate(np.stack([tone, np.zeros(3000)]), missing, RATE)
    assert error_db(filled.signals[0], tone, missing) < -40
    assert np.array_equal(filled.signals[1], np.zeros(3000))
    assert np.isfinite(filled.gaps[0].covariance()).all()


def test_gaps_are_filled_with_the_mean_and_their_error_is_foretold():
    """Errors of many gaps, whitened by the covariance that is told of each, are white."""
    squares, better = [], []
    for seed in range(30):
        x = process(seed)
        missing = np.zeros(len(x), bool)
        missing[1000:1010] = missing[2000:2012] = True
        filled = interpolate(np.where(missing, 0, x)[None], missing, RATE)
        assert np.array_equal(filled.signals[0][~missing], x[~missing])
        assert [(g.start, g.stop) for g in filled.gaps] == runs(missing)
        for gap in filled.gaps:
            wrong = (filled.signals[0] - x)[gap.start : gap.stop]
            squares.append(wrong @ np.linalg.solve(gap.covariance(), wrong) / len(wrong))
        kept = np.flatnonzero(~missing)
        spline = np.interp(np.arange(len(x)), kept, x[kept])
        better.append(error_db(filled.signals[0], x, missing) - error_db(spline, x, missing))
    # The coefficients are estimated, too: their error comes on top.
    assert 0.8 < np.mean(squares) < 1.6
    assert np.mean(better) < -3


def exact(x, missing):
    """Mean and variances of missing samples given the others, in a part of a process."""
    ring = scipy.signal.lfilter([1], TRUE.real, np.r_[1, np.zeros(2000)])
    lags = 0.01 * np.correlate(ring, ring, "full")[2000 : 2000 + len(x)]
    both = scipy.linalg.toeplitz(lags)
    cross = both[np.ix_(missing, ~missing)]
    weights = np.linalg.solve(both[np.ix_(~missing, ~missing)], cross.T).T
    left = both[np.ix_(missing, missing)] - weights @ cross.T
    return weights @ x[~missing], np.diag(left)


@pytest.mark.parametrize("places", [(12,), (12, 12, 12, 12)])
def test_gaps_near_each_other_are_found_together(places):
    """Zeros in one gap are no sound for another: what is found is near the exact mean, and its
    covariance counts that the other gap is not known either."""
    starts, part = 1500 + np.cumsum((0, *places)), slice(1300, 1800)
    missing = np.zeros(3000, bool)
    for start in starts:
        missing[start : start + 8] = True
    excess, squares = [], []
    for seed in range(10):
        x = process(seed)
        filled = interpolate(np.where(missing, 0, x)[None], missing, RATE)
        mean, variance = exact(x[part], missing[part])
        excess.append(np.square(filled.signals[0][missing] - mean).mean() / variance.mean())
        for gap in filled.gaps:
            wrong = (filled.signals[0] - x)[gap.start : gap.stop]
            squares.append(wrong @ np.linalg.solve(gap.covariance(), wrong) / len(wrong))
    assert np.mean(excess) < 0.3
    assert 0.7 < np.mean(squares) < 1.7


def test_many_gaps_leave_enough_to_go_by():
    """A fifth is missing, in stretches of 5 samples; the model has the memory of 93."""
    errors, lines = [], []
    for seed in range(3):
        x = process(seed)
        missing = np.arange(3000) % 25 < 5
        filled = interpolate(np.where(missing, 0, x)[None], missing, RATE).signals[0]
        kept = np.flatnonzero(~missing)
        lines.append(error_db(np.interp(np.arange(3000), kept, x[kept]), x, missing))
        errors.append(error_db(filled, x, missing))
    assert np.mean(errors) < np.mean(lines) - 3
    # Nothing is left to go by:
    assert not interpolate(np.ones((1, 50)), np.ones(50, bool), RATE).signals.any()


def test_the_covariance_of_a_sum_is_the_sum_of_the_covariances():
    pair = np.stack([process(0), process(1, power=0.04)])
    missing = np.arange(3000) // 20 == 70
    together = interpolate(pair, missing, RATE).gaps[0].covariance()
    alone = [interpolate(x[None], missing, RATE).gaps[0].covariance() for x in pair]
    np.testing.assert_allclose(together, alone[0] + alone[1], rtol=1e-6)


def test_the_mean_and_the_mode_within_bounds():
    covariance = scipy.linalg.toeplitz(0.8 ** np.arange(4.0))
    precision, centre = np.linalg.inv(covariance), np.array([0.2, -0.5, 1.0, 0.0])
    bound = np.array([0.0, 0.3, 0.5, -1.0])
    draws = np.random.default_rng(0).multivariate_normal(centre, covariance, 400_000)
    inside = draws[(draws >= bound).all(1)]
    mean = truncated_mean(precision, precision @ centre, bound)
    np.testing.assert_allclose(mean, inside.mean(0), atol=0.03)
    mode = truncated_mode(precision, precision @ centre, bound)
    assert (mode >= bound).all()
    slope = precision @ (mode - centre)
    held = mode == bound
    assert held.any()
    np.testing.assert_allclose(slope[~held], 0, atol=1e-9)
    assert (slope[held] >= 0).all()


def test_clipped_samples_are_beyond_the_level_and_their_mean_is_nearest():
    before, modes, means = [], [], []
    for seed in range(6):
        x = process(seed)
        level = 0.5 * np.abs(x).max()
        y, cut = np.clip(x, -level, level), np.abs(x) >= level
        mode, mean = declip(y, cut, mean=False), declip(y, cut)
        for out in (mode, mean):
            assert np.array_equal(out[~cut], x[~cut])
            assert (out[cut] * np.sign(x[cut]) >= level).all()
        before.append(error_db(y, x))
        modes.append(error_db(mode, x))
        means.append(error_db(mean, x))
    assert np.mean(modes) < np.mean(before) - 3
    assert np.mean(means) < np.mean(modes) - 0.2
    assert max(np.array(means) - before) < -3
    assert np.array_equal(declip(np.zeros(50), np.ones(50, bool)), np.zeros(50))
