"""Scores against closed forms, recorded values of the published metric, and museval."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mgdm_audio import metrics
from mgdm_audio.metrics import (
    EPS,
    bootstrap,
    chunk_scores,
    is_silent,
    museval_scores,
    score_windows,
    si_sdr,
    si_sdr_improvement,
    window_bounds,
)

RECORDED = Path(__file__).parents[1] / "../shared/reference/fidelity/metric_si_sdri.npz"
# The recordings were computed in float32; a float64 replay agrees to 2.4e-6 dB.
RECORDED_TOLERANCE = 1e-5


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


# -- closed forms --------------------


@pytest.mark.parametrize("ratio", [-20.0, -3.0, 0.0, 7.5, 40.0])
@pytest.mark.parametrize("gain", [1.0, -0.3, 20.0])
def test_orthogonal_noise_gives_its_ratio(ratio: float, gain: float) -> None:
    s, n = noise(2, 4000)
    n -= s * (n @ s) / (s @ s)
    n *= np.linalg.norm(s) / np.linalg.norm(n) * 10 ** (-ratio / 20)
    assert si_sdr(gain * (s + n), s) == pytest.approx(ratio, abs=1e-4)


def test_the_formula_term_by_term() -> None:
    e, s = noise(2, 100, seed=3)
    alpha = (sum(e * s) + EPS) / (sum(s * s) + EPS)
    expected = 10 * np.log10((sum((alpha * s) ** 2) + EPS) / (sum((alpha * s - e) ** 2) + EPS))
    assert si_sdr(e, s) == pytest.approx(expected, rel=1e-12)


def test_no_mean_is_removed() -> None:
    s = noise(1000)
    assert si_sdr(s + 1.0, s) < 1.0


def test_a_perfect_estimate_has_the_documented_cap() -> None:
    s = noise(1000)
    assert si_sdr(s, s) == pytest.approx(10 * np.log10((s @ s) / EPS), abs=1e-6)


def test_silence() -> None:
    s, zero = noise(1000), np.zeros(1000)
    assert si_sdr(zero, s) == pytest.approx(0.0, abs=1e-6)
    assert si_sdr(zero, zero) == 0.0
    assert si_sdr(s, zero) == pytest.approx(-10 * np.log10((s @ s) / EPS), abs=1e-6)
    # The improvement of a silent stem is the level of the mixture over that of the estimate.
    assert si_sdr_improvement(0.01 * s, zero, s) == pytest.approx(40.0, abs=1e-3)


def test_the_mixture_improves_nothing() -> None:
    r = noise(4, 500)
    np.testing.assert_array_equal(si_sdr_improvement(r.sum(0), r, r.sum(0)), np.zeros(4))


def test_stems_do_not_affect_each_other() -> None:
    r, e = noise(4, 200_000), noise(4, 200_000, seed=1)
    r[2] = 0
    e[1] = 0
    scores = score_windows(r, e)
    assert np.isfinite(scores.improvement).all()
    alone = score_windows(r[[0, 3]], e[[0, 3]], mixture=r.sum(0))
    np.testing.assert_array_equal(scores.improvement[:, [0, 3]], alone.improvement)


def test_inputs_are_not_changed_and_may_be_tensors() -> None:
    import torch

    r, e = noise(2, 100_000), noise(2, 100_000, seed=1)
    before = r.copy(), e.copy()
    scores = score_windows(r, e)
    np.testing.assert_array_equal(r, before[0])
    np.testing.assert_array_equal(e, before[1])
    again = score_windows(torch.from_numpy(r), torch.from_numpy(e))
    np.testing.assert_array_equal(scores.improvement, again.improvement)


# -- windows and silence --------------------


def test_windows_of_one_chunk() -> None:
    bounds = window_bounds(2**18)
    assert len(bounds) == 5
    assert bounds[-1] == (4 * 44100, 2**18)
    assert bounds[-1][1] - bounds[-1][0] == 85744
    assert len(window_bounds(10 * 2**18)) == 59


@pytest.mark.parametrize("samples", [1, 44100, 44101, 88200, 88201, 132300, 200_003])
def test_windows_cover_the_signal(samples: int) -> None:
    bounds = window_bounds(samples)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == samples
    assert all(0 < b - a <= 88200 for a, b in bounds)
    assert all(y[0] - x[0] == 44100 for x, y in itertools.pairwise(bounds))


def test_silence_threshold() -> None:
    n = 88200
    rms = metrics.SILENCE * np.sqrt(n)
    assert 20 * np.log10(rms) == pytest.approx(-47.0, abs=0.05)
    signals = np.full((2, n), rms) * np.array([[0.999], [1.001]])
    assert is_silent(signals).tolist() == [True, False]
    # The same recording at twice the rate.
    assert is_silent(np.repeat(signals, 2, axis=1), 44100).tolist() == [True, False]
    # The norm is over the length, so a shorter window has a lower threshold.
    assert not is_silent(signals[0, : n // 2])


def test_windows_with_one_active_stem_are_dropped() -> None:
    r = noise(3, 4 * 44100)
    r[1:, : 2 * 44100] = 0
    r[2] = 0
    scores = score_windows(r, r)
    assert scores.total == 3
    assert scores.start.tolist() == [44100, 88200]
    assert scores.active.tolist() == [[True, True, False]] * 2
    assert np.isnan(scores.masked(scores.improvement)[:, 2]).all()


def test_silent_stems_are_counted_and_levelled() -> None:
    r = noise(3, 4 * 44100)
    r[1, : 2 * 44100] = 0
    e = r.copy()
    e[1, : 2 * 44100] = 0.01
    e[2] = 0
    scores = score_windows(r, e)
    np.testing.assert_allclose(metrics.silent_share([scores]), [0, 1 / 3, 0])
    levels = metrics.silent_level_db([scores])
    assert levels[1] == pytest.approx(-40.0, abs=1e-9)
    assert np.isnan(levels[[0, 2]]).all()
    assert scores.silent_estimate.all(0).tolist() == [False, False, True]
    e[1, : 2 * 44100] = 0
    assert metrics.silent_level_db([score_windows(r, e)])[1] == metrics.FLOOR_DB


def test_chunk_reading() -> None:
    r, e = noise(2, 2 * 2**18 + 1000), noise(2, 2 * 2**18 + 1000, seed=1)
    r[:, 2**18 : 2 * 2**18] = 0
    scores = chunk_scores(r, e)
    assert scores.shape == (2, 2)
    first = score_windows(r[:, : 2**18], e[:, : 2**18]).improvement.mean(0)
    np.testing.assert_array_equal(scores[0], first)
    assert np.isnan(scores[1]).all()
    assert chunk_scores(r[:, :1000], e[:, :1000]).shape == (0, 2)


def test_level() -> None:
    assert metrics.level_db(np.full(10, 0.1)) == pytest.approx(-20.0)
    assert metrics.level_db(np.zeros(10)) == metrics.FLOOR_DB


# -- recorded values --------------------


def recorded_signals(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The two stored examples, made again from their seed."""
    state = np.random.RandomState(seed)  # the generator of the recording
    r = state.standard_normal((4, 2**18)) * np.array([[0.10], [0.08], [0.05], [0.06]])
    if seed == 101:
        r[1, 44100:132300] = 0
        r[3, 176400:] *= 0.02
    else:
        r[1:, 132300:220500] = 0
    r = r.astype(np.float32).astype(np.float64)
    e = 0.9 * r + 0.1 * (r.sum(0) - r) / 3 + 0.02 * state.standard_normal((4, 2**18))
    return r, e.astype(np.float32).astype(np.float64)


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    if not RECORDED.exists():
        pytest.skip("the recorded values are not here")
    with np.load(RECORDED) as data:
        return dict(data)


@pytest.mark.parametrize("seed", [101, 202])
def test_recorded_chunks(recorded: dict[str, np.ndarray], seed: int) -> None:
    r, e = recorded_signals(seed)
    check = [r.sum(), abs(r).sum(), e.sum(), abs(e).sum(), r[0, 0], r[3, -1], e[0, 0], e[3, -1]]
    np.testing.assert_allclose(check, recorded[f"check_{seed}"], rtol=1e-9, atol=1e-9)
    scores = score_windows(r, e)
    np.testing.assert_array_equal(scores.start, recorded[f"msdm_{seed}_start"])
    np.testing.assert_array_equal(scores.end, np.minimum(recorded[f"msdm_{seed}_end"], r.shape[-1]))
    for reading in ("mgdm", "msdm"):
        np.testing.assert_allclose(
            scores.improvement,
            recorded[f"{reading}_{seed}_windows"],
            rtol=0,
            atol=RECORDED_TOLERANCE,
        )
    np.testing.assert_allclose(
        chunk_scores(r, e)[0], recorded[f"mgdm_{seed}_mean"], rtol=0, atol=RECORDED_TOLERANCE
    )


def test_recorded_track(recorded: dict[str, np.ndarray]) -> None:
    pairs = [recorded_signals(seed) for seed in (101, 202)]
    r, e = (np.concatenate(parts, axis=-1) for parts in zip(*pairs, strict=True))
    scores = score_windows(r, e)
    np.testing.assert_array_equal(scores.start, recorded["msdm_track_101_202_start"])
    np.testing.assert_allclose(
        scores.improvement,
        recorded["msdm_track_101_202_windows"],
        rtol=0,
        atol=RECORDED_TOLERANCE,
    )


# -- refusals --------------------


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="estimate has 9, reference has 10"):
        si_sdr(noise(9), noise(10))
    with pytest.raises(ValueError, match="same number of samples"):
        si_sdr_improvement(noise(10), noise(10), noise(11))
    with pytest.raises(ValueError, match="same number of samples"):
        score_windows(noise(2, 10), noise(2, 11))
    with pytest.raises(ValueError, match="same number of samples"):
        museval_scores(noise(2, 10), noise(2, 11), 10)


def test_stems_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 10\) and \(3, 10\)"):
        score_windows(noise(4, 10), noise(3, 10))
    with pytest.raises(ValueError, match=r"\(4, 10\) and \(3, 10\)"):
        museval_scores(noise(4, 10), noise(3, 10), 10)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_not_finite_are_refused(bad: float) -> None:
    r, e = noise(2, 100), noise(2, 100)
    e[1, 7] = bad
    for score in (si_sdr, score_windows, lambda x, y: museval_scores(x, y, 10)):
        with pytest.raises(ValueError, match=r"estimate.*NaN or infinite.*\(1, 7\)"):
            score(e, r) if score is si_sdr else score(r, e)
    with pytest.raises(ValueError, match=r"mixture.*NaN or infinite"):
        si_sdr_improvement(r, r, e)


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(0,\)"):
        si_sdr(np.zeros(0), np.zeros(0))
    with pytest.raises(ValueError, match="positive number of Hz"):
        score_windows(noise(2, 10), noise(2, 10), 0)


# -- bootstrap --------------------


def test_bootstrap_is_of_whole_songs() -> None:
    # Songs are constant inside: the interval depends on the number of songs, not of windows.
    values = noise(12)
    few = bootstrap([np.full((2, 1), v) for v in values], seed=5)
    many = bootstrap([np.full((50, 1), v) for v in values], seed=5)
    np.testing.assert_allclose(few.low, many.low)
    np.testing.assert_allclose(few.high, many.high)
    # Percentile interval of a mean of 12: close to +-1.96 standard errors (of the 12).
    half = 1.96 * values.std() / np.sqrt(12)
    assert (few.high[0] - few.low[0]) / 2 == pytest.approx(half, rel=0.15)
    assert few.low[0] < values.mean() < few.high[0]


def test_bootstrap_weights_and_missing_values() -> None:
    a, b = np.array([[1.0, np.nan]] * 3), np.array([[5.0, 2.0]])
    interval = bootstrap([a, b], resamples=500)
    # Draws are (a, a), (a, b), (b, b): pooled means 1, 2 (three windows against one), 5.
    assert interval.low[0] == 1.0
    assert interval.high[0] == 5.0
    assert interval.low[1] == interval.high[1] == 2.0
    assert (interval.low_all, interval.high_all) == (2.0, 3.5)


def test_bootstrap_without_a_stem_that_has_no_score() -> None:
    groups = [noise(3, 3, seed=s) for s in range(5)]
    for group in groups:
        group[:, 1] = np.nan
    interval, two = bootstrap(groups), bootstrap([group[:, [0, 2]] for group in groups])
    assert np.isnan(interval.low[1])
    assert (interval.low_all, interval.high_all) == (two.low_all, two.high_all)
    assert np.isfinite(two.low_all)


def test_bootstrap_seed() -> None:
    groups = [noise(3, 4, seed=s) for s in range(6)]
    state = np.random.get_state()[1].copy()  # noqa: NPY002, it must stay as it is
    one, same, other = (bootstrap(groups, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.low, same.low)
    assert not np.array_equal(one.low, other.low)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_bootstrap_needs_songs() -> None:
    with pytest.raises(ValueError, match="at least one song"):
        bootstrap([])
    with pytest.raises(ValueError, match="between 0 and 1"):
        bootstrap([noise(2, 2)], level=95)
    one = bootstrap([noise(2, 2), np.zeros((0, 2))])
    assert np.isnan(one.low).all()
    assert np.isnan(one.high_all)


# -- museval --------------------


def test_museval_skips_silent_stems_and_says_so() -> None:
    pytest.importorskip("scipy")
    rate = 1000
    r = noise(4, 3 * rate)
    r[1] = 0
    r[3, :rate] = 0
    e = r + 0.1 * noise(4, 3 * rate, seed=1)
    e[2] = 0
    try:
        scores = museval_scores(r, e, rate)
    except RuntimeError as error:
        pytest.skip(str(error))
    assert (scores.skipped, scores.silent_estimates) == ((1,), (2,))
    assert np.isnan(scores.sdr[1])
    assert (scores.sdr[2], scores.isr[2]) == (0, 0)
    assert np.isnan([scores.sir[2], scores.sar[2]]).all()
    # What the others have does not depend on what the silent one is.
    e[2] = noise(3 * rate, seed=2)
    heard = museval_scores(r, e, rate)
    assert heard.silent_estimates == ()
    for values, others in ((scores.sdr, heard.sdr), (scores.sir, heard.sir)):
        np.testing.assert_allclose(values[[0, 3]], others[[0, 3]])
        assert np.isfinite(values[[0, 3]]).all()
    # Noise 20 dB below; the 512-tap projection takes part of it.
    assert scores.sdr[0] == pytest.approx(20, abs=4)
    assert scores.frames == 3
    assert scores.frames_used == 2
    nothing = museval_scores(np.zeros((2, rate)), e[:2, :rate], rate)
    assert nothing.skipped == (0, 1)
    assert nothing.frames == 0


MISSING = """
import json, sys
import numpy as np
from mgdm_audio import metrics
if "--blocked" in sys.argv:
    sys.modules["museval"] = None
lazy = "museval" not in sys.modules or "--blocked" in sys.argv
try:
    metrics.museval_scores(np.ones((2, 9)), np.ones((2, 9)), 3)
    message = ""
except RuntimeError as error:
    message = str(error)
print(json.dumps([lazy, "torch" in sys.modules, message]))
"""


@pytest.mark.parametrize(("flag", "text"), [("--blocked", "pip install"), ("", "apt-get install")])
def test_museval_is_lazy_and_names_what_is_missing(flag: str, text: str) -> None:
    pytest.importorskip("scipy")
    root = str(Path(__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-c", MISSING, flag],
        env={"PATH": "/nowhere", "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    lazy, torch_loaded, message = json.loads(run.stdout.splitlines()[-1])
    assert lazy
    assert not torch_loaded
    assert text in message
