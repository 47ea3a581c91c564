"""The comparison's figures: repetitions, index laws, Pareto front, calibration of samples."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from mgdm_audio import hub, samplers
from mgdm_audio.samplers.mgdm import MGDM
from recipes.compare import calibration, figures, honesty, pareto
from recipes.compare.bench import Bench, Entry
from recipes.compare.budgets import equivalents
from recipes.compare.clips import Clip

SMALL = MGDM(steps=6, repetitions=1, gradient_steps=((0, 2), (2, 4)), denoising_steps=1)


def make_clip(music: np.ndarray, song: int) -> Clip:
    stems = np.ascontiguousarray(music[:, :16_384]) * np.float32(0.5 + 0.2 * song)
    return Clip(f"valid-{song:03d}", song, stems, f"{song:064d}")


@pytest.mark.parametrize("vjp_cost", [0.5, 1.1, 3.0])
def test_control_costs_as_much(vjp_cost):
    for repetitions in (2, 4, 6):
        control = figures.control(SMALL, repetitions, vjp_cost)
        wanted = MGDM(
            steps=6, repetitions=repetitions, gradient_steps=SMALL.gradient_steps,
            denoising_steps=1,
        )  # fmt: skip
        assert control.repetitions == 1
        # Whole multiples of the gradient steps: within half of one.
        step = vjp_cost * SMALL.cost().vjps + sum((2, 2, 4))
        cost = equivalents(control.cost(), vjp_cost)
        assert abs(cost - equivalents(wanted.cost(), vjp_cost)) <= step / 2 + 1e-9


def test_figure_3_varies_repetitions_alone():
    series = figures.figure_3(SMALL, (1, 2, 4), 1.1)
    sweep, control = series.values()
    made = [samplers.get("mgdm", e.preset, **e.settings) for e in sweep]
    assert [s.repetitions for s in made] == [1, 2, 4]
    assert {s.gradient_steps for s in made} == {SMALL.gradient_steps}
    assert [samplers.get("mgdm", e.preset, **e.settings).repetitions for e in control] == [1] * 3
    assert samplers.get("mgdm", control[0].preset, **control[0].settings) == SMALL


def test_figure_4_has_the_laws_that_the_grid_allows():
    default = MGDM.PRESETS["default"]
    laws = figures.figure_4(default, (1, 2))
    assert {"uniform", "mix", "deterministic", "midpoint"} <= set(laws)
    for law, entries in laws.items():
        for entry, repetitions in zip(entries, (1, 2), strict=True):
            sampler = samplers.get("mgdm", entry.preset, **entry.settings)
            assert (sampler.index, sampler.repetitions) == (law, repetitions)
    # "uniform" from index 10 on has nothing to draw on a grid of so few levels.
    coarse = MGDM(levels=12, steps=12, index="deterministic")
    assert "uniform" not in figures.figure_4(coarse, (1,))


def test_figures_are_drawn(prior, music, tmp_path):
    bench = Bench(prior, tmp_path / "store", device="cpu", precision="float32")
    listed = [make_clip(music, song) for song in range(2)]
    series = figures.figure_3(SMALL, (1, 2), 1.1)
    rows = figures.run(bench, series, listed, "valid tiny", 1.1, None, None)
    sweep, control = rows.values()
    assert sweep[0].score() == control[0].score()
    assert sweep[1].score() != control[1].score()
    figures.draw(rows, (1, 2), tmp_path / "figure.png", "a title")
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_front():
    points = [
        pareto.Point(method, "", cost, score)
        for method, cost, score in (
            ("a", 10, 1.0), ("b", 10, 2.0), ("a", 20, 1.5), ("c", 30, 2.5), ("d", 40, 2.5),
        )
    ]  # fmt: skip
    assert [p.method for p in pareto.front(points)] == ["b", "c"]
    assert pareto.front([]) == []


def test_points_of_different_clips_do_not_mix(tmp_path):
    header = "method settings note list clips samples reading all equivalents".split()
    lines = [
        ["mgdm", "default", "", "tuning at 30", "4", "1", "active", "1.5", "28.0"],
        ["mgdm", "default", "", "tuning at 30", "4", "1", "track", "9.5", "28.0"],
        ["mgdm", "default", "G4", "tuning at 100", "4", "4", "active", "2.5", "98.0"],
        ["dps", "fast", "", "tuning at 100", "4", "1", "active", "", "98.0"],
        # A run that was stopped: of one clip, which is an easy one.
        ["dps", "fast", "", "tuning at 30", "1", "1", "active", "9.5", "28.0"],
    ]
    path = tmp_path / "t.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *lines])
    points = pareto.read_points([path])
    assert [(p.cost, p.score, p.label) for p in points] == [
        (28.0, 1.5, "default"),
        (98.0, 2.5, "G4, mean of 4"),
    ]
    assert pareto.best_by_list([*points, pareto.Point("mgdm", "", 29.0, 1.7, "tuning at 30")]) == [
        pareto.Point("mgdm", "", 29.0, 1.7, "tuning at 30"),
        points[1],
    ]
    pareto.draw(points, tmp_path / "p.png", "a title")
    assert (tmp_path / "p.png").stat().st_size > 5000
    other = tmp_path / "o.csv"
    with open(other, "w", newline="") as file:
        line = ["dps", "fast", "", "test small", "12", "1", "active", "3.5", "50"]
        csv.writer(file).writerows([header, line])
    with pytest.raises(ValueError, match="test small, tuning"):
        pareto.read_points([path, other])
    assert len(pareto.read_points([path, other], listed="test small")) == 1


def posterior_draws(rng: np.random.Generator, n: int, spread: float = 1.0) -> tuple:
    """n samples (n, 2, T) and a truth (2, T) about one mean; spread 1 is exact."""
    mean, scale = rng.normal(size=(2, 16_384)), np.array([[0.5], [2.0]])
    truth = mean + scale * rng.normal(size=mean.shape)
    return mean + spread * scale * rng.normal(size=(n, *mean.shape)), truth


def test_exact_samples_are_calibrated():
    samples, truth = posterior_draws(np.random.default_rng(0), 8)
    result = calibration.calibrate(samples, truth, 22_050)
    assert result.samples == 8
    # The low bands have few coordinates, and neighbours overlap; the highest has thousands.
    shares = result.ranks / result.ranks.sum(-1, keepdims=True)
    assert np.abs(shares[:, -1] - 1 / 9).max() < 0.01
    assert np.abs(shares - 1 / 9).max() < 0.1
    assert np.allclose(result.coverage()[:, 1:], 7 / 9, atol=0.06)
    assert np.allclose(result.spread_ratio(), 1, atol=0.1)
    for n in (2, 4, 8):
        one, mean = calibration.averaging_gain(samples, truth, n)
        gain = 10 * np.log10(one / mean)
        assert np.allclose(gain, calibration.theoretical_gain(n), atol=0.15)


@pytest.mark.parametrize(("spread", "low", "high"), [(0.3, 0.2, 0.4), (3.0, 2.0, 2.4)])
def test_wrong_spread_shows(spread, low, high):
    samples, truth = posterior_draws(np.random.default_rng(1), 8, spread)
    result = calibration.calibrate(samples, truth, 22_050)
    ratio, coverage = result.spread_ratio(), result.coverage()
    # The mean's own error holds its share of the samples' spread.
    exact = spread * math.sqrt(9 / 8) / math.sqrt(1 + spread**2 / 8)
    assert np.allclose(ratio, exact, rtol=0.12)
    assert low < exact < high
    nominal = result.nominal_coverage()
    assert (coverage < nominal - 0.2).all() if spread < 1 else (coverage > nominal + 0.1).all()


def test_ranked_probability_score_is_least_for_the_right_spread():
    """Of normal laws of spread s about m, for a truth of spread 1 about m, it is in closed form:
    E|X - x| - E|X - X'| / 2 = (sqrt(2 + 2 s^2) - s) / sqrt(pi)."""
    scores = []
    for spread in (0.1, 1.0, 3.0):
        samples, truth = posterior_draws(np.random.default_rng(5), 8, spread)
        result = calibration.calibrate(samples, truth, 22_050)
        closed = (math.sqrt(2 + 2 * spread**2) - spread) / math.sqrt(math.pi)
        # E|x| of what the truth is drawn from: its mean has spread 1, and is known to the samples.
        scale = np.array([0.5, 2.0])
        size = math.sqrt(2 / math.pi) * np.sqrt(1 + scale**2)
        assert np.allclose(result.relative_crps()[:, -1], closed * scale / size, rtol=0.05)
        scores.append(result.crps[:, -1])
    assert (scores[1] < scores[0]).all()
    assert (scores[1] < scores[2]).all()


def test_bias_shows_in_the_ranks():
    samples, truth = posterior_draws(np.random.default_rng(2), 4)
    offset = calibration.calibrate(samples * 0.2, truth, 22_050)
    assert (offset.ranks[..., 0] + offset.ranks[..., -1] > offset.ranks.sum(-1) * 0.5).all()


def test_calibration_adds_and_checks():
    samples, truth = posterior_draws(np.random.default_rng(3), 3)
    part = calibration.calibrate(samples, truth, 22_050)
    both = part + part
    assert np.array_equal(both.ranks, 2 * part.ranks)
    assert np.allclose(both.spread_ratio(), part.spread_ratio())
    with pytest.raises(ValueError, match="at least 2"):
        calibration.calibrate(samples[:1], truth, 22_050)
    assert calibration.powers_of_two(6) == [1, 2, 4, 6]
    assert calibration.powers_of_two(8) == [1, 2, 4, 8]
    assert calibration.theoretical_gain(1) == 0


def test_honesty(prior: hub.Prior, music: np.ndarray, tmp_path: Path):
    bench = Bench(prior, tmp_path / "store", device="cpu", precision="float32")
    entry = Entry("ddnm", "fast", {"steps": 8})
    listed = [make_clip(music, song) for song in range(2)]
    with pytest.raises(ValueError, match="0 of 2 clips"):
        honesty.examine(bench, entry, listed, 3)
    bench.fill([(entry, clip, s) for clip in listed for s in range(3)])
    result = honesty.examine(bench, entry, listed, 3)
    names = ["one sample", "mean of 2", "mean of 3", "best of 3, chosen with the true stems"]
    assert list(result.scores) == names
    one, _, three, best = (result.scores[name] for name in names)
    assert (best >= one).all()
    assert (three > one).all()
    # By hand: samples of both clips, each scored alone.
    alone = [one.track.windows for s in range(3) for one in bench.score(entry, listed, first=s)]
    values = [windows.masked(windows.improvement) for windows in alone]
    assert np.allclose(one, np.concatenate(values).mean(0))
    assert set(result.gains) == {2, 3}
    assert result.clips == 2
    # A clip without drums: all that comes out there was made up.
    silent = make_clip(music, 5)
    silent.stems[1] = 0
    bench.fill([(entry, silent, 0)])
    result.silent_db, result.mix_db = honesty.where_silent(bench, entry, [silent])
    assert np.isnan(result.silent_db).tolist() == [True, False, True, True]
    assert result.silent_db[1] < result.mix_db
    text = honesty.markdown(result, "# A title")
    assert "best of 3, chosen with the true stems" in text
    assert f"the spread is {result.calibration.whole_ratio():.2f} of the error" in text
    assert 0 < result.calibration.whole_coverage() < 1
    rows = list(csv.DictReader(honesty.csv_text(result).splitlines()))
    shares = [
        float(row["value"])
        for row in rows
        if row["quantity"].startswith("share of rank")
        and (row["stem"], row["band"]) == ("bass", "0-250 Hz")
    ]
    assert len(shares) == 4
    assert sum(shares) == pytest.approx(1, abs=1e-3)
    honesty.draw(result, tmp_path / "ranks.png", "a title")
    assert (tmp_path / "ranks.png").stat().st_size > 5000
