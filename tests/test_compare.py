"""The comparison of methods: clips, the store of samples, budgets, tuning, tables."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from mgdm_audio import Separator, hub, metrics, samplers
from mgdm_audio.samplers.ddnm import DDNM
from recipes.compare import budgets, options, report, score, table, tune
from recipes.compare.bench import Bench, Entry, Failed, Spent
from recipes.compare.budgets import Candidate, equivalents, fit
from recipes.compare.clips import LISTS, ClipList, clips

TINY = ClipList(2, 16_384)
CHEAP = Entry("ddnm", "fast", {"steps": 4})
GUIDED = Entry("dps", "fast", {"steps": 4})


@pytest.fixture
def corpus(tmp_path: Path, music: np.ndarray) -> Path:
    """Three songs of three seconds in the splits valid and test; song 1 has no drums."""
    rng = np.random.default_rng(0)
    for split in ("valid", "test"):
        folder = tmp_path / "corpus" / split
        folder.mkdir(parents=True)
        with open(folder / "index.jsonl", "w") as index:
            for song in range(3):
                stems = np.concatenate([music, music[:, :22_050]], axis=1)
                stems = stems * rng.uniform(0.5, 1.0, (4, 1))
                # The last second is louder in all stems.
                stems[:, -22_050:] *= 1.5
                if song == 1:
                    stems[1] = 0
                np.save(folder / f"{song}.npy", (stems * 20_000).astype(np.int16))
                line = {"song": song, "file": f"{song}.npy", "samples": stems.shape[1]}
                index.write(json.dumps(line) + "\n")
    return tmp_path / "corpus"


@pytest.fixture
def regressor(prior: hub.Prior) -> hub.Regressor:
    """A regressor that shares alike."""

    class Shares(torch.nn.Module):
        def forward(self, mix, stems, known):
            rest = mix - (stems * known[:, :, None]).sum(1, keepdim=True)
            left = (~known).sum(1).clamp_min(1)[:, None, None]
            return torch.where(known[:, :, None], stems, rest / left)

    info = dataclasses.replace(prior.info, name="shares", kind="regressor", sha256="2" * 64)
    return hub.Regressor(Shares(), info)


@pytest.fixture
def bench(prior: hub.Prior, regressor: hub.Regressor, tmp_path: Path) -> Bench:
    return Bench(prior, tmp_path / "store", regressor=regressor, device="cpu", precision="float32")


def test_clip_is_where_the_quietest_stem_is_loudest(corpus):
    first, last = clips(corpus / "valid", TINY)
    assert (first.name, last.name) == ("valid-000", "valid-002")
    song = np.load(corpus / "valid" / "0.npy") / 32768
    starts = np.linspace(0, song.shape[1] - TINY.samples, 12).astype(int)
    quietest = [(song[:, s : s + TINY.samples] ** 2).mean(1).min() for s in starts]
    start = starts[int(np.argmax(quietest))]
    assert np.allclose(first.stems, song[:, start : start + TINY.samples])
    assert np.allclose(first.mix, first.stems.sum(0))


def test_clips_by_activity(corpus):
    every = clips(corpus / "valid", ClipList(3, 16_384))
    assert [clip.song for clip in every] == [0, 1, 2]
    playing = clips(corpus / "valid", ClipList(3, 16_384, active=True))
    assert [clip.song for clip in playing] == [0, 2]
    (loud, *_), (quiet, *_) = (
        clips(corpus / "valid", ClipList(3, 16_384, sparse=sparse)) for sparse in (False, True)
    )
    assert (quiet.stems**2).mean(1).min() < (loud.stems**2).mean(1).min()
    with pytest.raises(ValueError, match="render longer songs"):
        clips(corpus / "valid", ClipList(1, 10**6))


def test_another_rendering_is_another_clip(bench, corpus):
    (before, _) = clips(corpus / "valid", TINY)
    stems = np.load(corpus / "valid" / "0.npy")
    np.save(corpus / "valid" / "0.npy", stems // 2)
    (after, _) = clips(corpus / "valid", TINY)
    assert bench.folder(CHEAP, before) != bench.folder(CHEAP, after)


@pytest.mark.parametrize("entry", [CHEAP, GUIDED])
def test_mean_is_the_separator_s_own(bench, corpus, prior, entry):
    """Played back from the store, average=3 is bit for bit what the product gives."""
    clip = clips(corpus / "valid", TINY)[1]
    bench.fill([(entry, clip, s) for s in range(3)])
    seed = (clip.song + 1) * 1000
    for count in (1, 3):
        separator = Separator(
            prior, entry.method, entry.preset, device="cpu", average=count, **entry.settings
        )
        expected = separator.separate(clip.mix, 22_050, seed=seed)
        outcome = bench.separate(entry, clip, count=count)
        for stem, name in zip(outcome.stems, prior.stems, strict=True):
            assert np.array_equal(stem, expected.stems[name])
        assert outcome.residual_db == pytest.approx(expected.residual_db)
        assert outcome.spent.calls == expected.stats["calls"] == count * 3
        assert outcome.spent.vjps == expected.stats["vjps"]
    alone = Separator(prior, entry.method, entry.preset, device="cpu", **entry.settings)
    expected = alone.separate(clip.mix, 22_050, seed=seed + 2)
    assert np.array_equal(bench.separate(entry, clip, first=2).stems[0], expected.stems["bass"])


def test_samples_of_the_store_are_not_drawn_again(bench, corpus, monkeypatch):
    listed = clips(corpus / "valid", TINY)
    jobs = [(CHEAP, clip, s) for s in range(2) for clip in listed]
    drawn = []

    def sample(self, denoise, problem, *rest):
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.append(1)
        return problem.y.expand(problem.shape) / 4

    monkeypatch.setattr(DDNM, "sample", sample)
    with pytest.raises(KeyboardInterrupt):
        bench.fill(jobs)
    assert [bench.done(CHEAP, clip) for clip in listed] == [2, 1]
    assert not list(bench.store.rglob("*.part"))
    drawn[:] = [1, 1]
    assert bench.fill(jobs)
    assert len(drawn) == 3
    tracks, _ = bench.score(CHEAP, listed, 2)
    assert len(tracks) == 2


def test_regressors_and_warm_starts(bench, corpus, prior, tmp_path):
    clip = clips(corpus / "valid", TINY)[0]
    entries = [
        Entry("regressor"),
        Entry("gibbs", "fast"),
        Entry("ddnm", "fast", {"steps": 6, "warm_start": "regressor", "warm_sigma": 0.1}),
        Entry("ddnm", "fast", {"steps": 6}),
    ]
    assert bench.possible(entries) == entries
    assert bench.fill([(entry, clip, 0) for entry in entries])
    alike, _, warm, cold = (bench.separate(entry, clip) for entry in entries)
    assert alike.spent.calls == 1
    assert np.allclose(alike.stems, clip.mix / 4, atol=1e-6)
    assert 1 < warm.spent.calls <= cold.spent.calls
    assert len({bench.folder(entry, clip) for entry in entries}) == 4
    said = []
    alone = Bench(prior, tmp_path / "store", device="cpu", say=said.append)
    if "regressor" not in {info.name for info in hub.models()}:
        assert alone.possible(entries) == entries[3:]
        assert len(said) == 3
        assert "regressor" in said[0]


def test_shares_are_disjoint_and_complete(bench, corpus):
    listed = clips(corpus / "valid", TINY)
    jobs = [(CHEAP, clip, s) for s in range(2) for clip in listed]
    assert bench.fill(jobs, share=(0, 3))
    assert sum(bench.done(CHEAP, clip) for clip in listed) == 1
    for part in (1, 2):
        bench.fill(jobs, share=(part, 3))
    assert [bench.done(CHEAP, clip) for clip in listed] == [2, 2]


def test_out_of_time(bench, corpus):
    listed = clips(corpus / "valid", TINY)
    assert not bench.fill([(CHEAP, clip, 0) for clip in listed], minutes=0)
    assert bench.score(CHEAP, listed) == ([], [])


def test_fingerprint(bench, corpus, prior, tmp_path):
    clip = clips(corpus / "valid", TINY)[0]
    place = bench.folder(CHEAP, clip)
    assert place == bench.folder(dataclasses.replace(CHEAP, note="the same"), clip)
    # Settings that are spelled out or come from another preset are the same settings.
    resolved = dataclasses.asdict(samplers.get("ddnm", "fast", steps=4))
    assert place == bench.folder(Entry("ddnm", "best", resolved), clip)
    others = [bench.folder(Entry("ddnm", "fast", {"steps": 5}), clip)]
    for change in ({"precision": "bfloat16"}, {"seed": 1}):
        arguments = {"device": "cpu", "precision": "float32", **change}
        others.append(Bench(prior, tmp_path / "store", **arguments).folder(CHEAP, clip))
    newer = hub.Prior(prior.denoise, dataclasses.replace(prior.info, sha256="1" * 64))
    others.append(Bench(newer, tmp_path / "store", precision="float32").folder(CHEAP, clip))
    assert len({place, *others}) == 5


def test_a_sampler_that_diverges_is_a_row(bench, corpus, monkeypatch):
    listed = clips(corpus / "valid", TINY)
    runs = []

    def sample(self, denoise, problem, *rest):
        runs.append(1)
        raise FloatingPointError("not finite")

    monkeypatch.setattr(DDNM, "sample", sample)
    for _ in range(2):
        assert bench.fill([(CHEAP, clip, 0) for clip in listed])
    assert len(runs) == 2
    with pytest.raises(Failed, match="not finite"):
        bench.separate(CHEAP, listed[0])
    row = report.make_row(bench, CHEAP, "valid tiny", 2, 1, bench.score(CHEAP, listed), 1.1)
    assert math.isnan(row.score())
    assert "not finite" in report.markdown([row])


def test_row_and_tables(bench, corpus, tmp_path):
    listed = clips(corpus / "valid", ClipList(3, 16_384))
    bench.fill([(GUIDED, clip, 0) for clip in listed])
    scored = bench.score(GUIDED, listed)
    row = report.make_row(bench, GUIDED, "valid tiny", 4, 1, scored, 1.5)
    # Three calls, two of them with a gradient.
    assert (row.spent.calls, row.spent.vjps, row.equivalents) == (3, 2, 6)
    assert row.spent.peak_mib > 10
    report.write_tables(tmp_path / "out" / "dps", [row])
    with open(tmp_path / "out" / "dps.csv", newline="") as file:
        active, track = csv.DictReader(file)
    by_hand = metrics.nanmean(
        np.concatenate([t.windows.masked(t.windows.improvement) for t in scored[0]])
    )
    assert float(active["drums"]) == pytest.approx(by_hand[1], abs=1e-3)
    assert float(active["drums_low"]) <= float(active["drums"]) <= float(active["drums_high"])
    assert float(active["all"]) == pytest.approx(by_hand.mean(), abs=1e-3)
    assert float(track["all_paper"]) == 13.77
    assert (active["reading"], active["clips"], active["clips_in_list"]) == ("active", "3", "4")
    text = (tmp_path / "out" / "dps.md").read_text()
    assert "| dps | fast steps=4 | valid tiny | 3/4 | 1 |" in text
    assert "13.77" in text


def test_paper_s_overall_figures_are_means():
    for method, (*stems, overall) in report.PAPER.items():
        assert np.mean(stems) == pytest.approx(overall, abs=0.006), method


def test_equivalents():
    assert equivalents(Spent(calls=10, vjps=4), 1.5) == 16


def test_fit_fills_the_budget(bench):
    vjp_cost = 1.5
    for budget in (20, 31, 100):
        entry = fit(bench, Candidate("dps", "x", "fast", knob="steps"), budget, vjp_cost)
        assert entry is not None
        cost = {
            steps: equivalents(samplers.get("dps", "fast", steps=steps).cost(), vjp_cost)
            for steps in (entry.settings["steps"], entry.settings["steps"] + 1)
        }
        low, high = cost.values()
        assert low <= budget < high
    churned = fit(
        bench,
        Candidate("msdm", "x", settings={"repetitions": 1}, knob="levels", per_knob={"churn": 0.1}),
        30,
        vjp_cost,
    )
    assert churned is not None
    assert churned.settings == {"repetitions": 1, "levels": 30, "churn": pytest.approx(3.0)}


def test_fit_without_a_knob(bench):
    fixed = Candidate("ddnm", "x", settings={"steps": 20})
    assert fit(bench, fixed, 19, 1.0) is not None
    assert fit(bench, fixed, 18, 1.0) is None
    stated = Candidate("pnpdm", "x", at={30: {"iterations": 3}})
    entry = fit(bench, stated, 30, 1.0)
    assert entry is not None
    assert entry.settings == {"iterations": 3}
    assert fit(bench, stated, 31, 1.0) is None
    assert fit(bench, Candidate("dps", "x", knob="steps"), 1, 1.0) is None
    with pytest.raises(ValueError, match="has no setting 'stepz'"):
        fit(bench, Candidate("dps", "x", knob="stepz"), 30, 1.0)


def test_candidates_of_all_methods_fit_their_budgets(bench):
    vjp_cost, candidates = budgets.load_candidates()
    assert list(candidates) == samplers.names()
    for method, rows in candidates.items():
        assert len({row.name for row in rows}) == len(rows), method
        for row in rows:
            entries = [fit(bench, row, budget, vjp_cost) for budget in (30, 100, 300)]
            assert any(entries), f"{method} {row.name} fits no budget"


def test_a_method_without_candidates_is_tried_with_its_presets(tmp_path):
    path = tmp_path / "candidates.yaml"
    path.write_text("vjp_cost: 1.0\nmethods:\n  mgdm: [{name: a, settings: {index: midpoint}}]\n")
    _, candidates = budgets.load_candidates(path)
    assert [row.preset for row in candidates["dps"]] == ["fast", "default", "best"]
    path.write_text("vjp_cost: 1.0\nmethods:\n  mgdm: [{name: a, nob: steps}]\n")
    with pytest.raises(ValueError, match=r"mgdm.*nob"):
        budgets.load_candidates(path)


def test_tuning_keeps_the_best(bench, corpus, tmp_path):
    listed = clips(corpus / "valid", TINY)
    candidates = {
        "ddnm": [
            # Nearly no noise: the state stays where it began, and nothing is separated.
            Candidate("ddnm", "blind", "fast", {"sigma_min": 5.0, "sigma_max": 9.0}, knob="steps"),
            Candidate("ddnm", "good", "fast", {}, knob="steps"),
        ],
        "mgdm": [Candidate("mgdm", "G1", settings={"gradient_steps": ((0, 1),)}, knob="steps")],
    }
    rows, best = tune.tune(bench, candidates, listed, [8, 16], 1, 1.0)
    assert [(r.entry.method, r.entry.note, r.listed) for r in rows] == [
        ("ddnm", "blind", "tuning at 8"),
        ("ddnm", "good", "tuning at 8"),
        ("mgdm", "G1", "tuning at 8"),
        ("ddnm", "good", "tuning at 16"),
        ("mgdm", "G1", "tuning at 16"),
    ]
    assert rows[1].score() > rows[0].score()
    path = tmp_path / "winners.yaml"
    path.write_text(tune.winners_text(best, {"model": "bands"}))
    winners = budgets.load_winners(path)
    assert winners["ddnm"][8].settings == {"steps": 8}
    assert winners["mgdm"][16].settings["gradient_steps"] == ((0, 1),)
    # What was tuned is found again in the store: nothing is drawn anew.
    assert bench.done(winners["mgdm"][16], listed[0]) == 1
    candidates["dps"] = [Candidate("dps", "plain", "fast", knob="steps")]
    others = {32: tune.untried(bench, candidates, best, 32, 1.0)}
    path.write_text(tune.winners_text(best, {"model": "bands"}, others))
    winners = budgets.load_winners(path)
    assert winners["ddnm"][16].note == "16 calls, tuned"
    assert winners["ddnm"][32].note == "32 calls, tuned at 16"
    assert winners["ddnm"][32].settings == {"steps": 32}
    assert winners["dps"][32].note == "32 calls, not tuned"
    with pytest.raises(FileNotFoundError, match=r"tune\.py"):
        budgets.load_winners(tmp_path / "none.yaml")


def test_plan_names_what_there_is(tmp_path):
    groups = table.load_plan()
    assert {group.clips for group in groups} <= set(LISTS)
    for group in groups:
        if group.settings != table.TUNED:
            for entry in group.entries():
                samplers.get(entry.method, entry.preset, **entry.settings)
    path = tmp_path / "plan.yaml"
    for line, message in (
        ("{clips: tiny, settings: fast}", "unknown list 'tiny'"),
        ("{clips: small, settings: tuned}", "needs its budgets"),
        ("{clips: small, settings: fast, methods: [magic]}", "unknown methods magic"),
        ("{clips: small, settings: fast, colour: red}", "colour"),
    ):
        path.write_text(f"groups: [{line}]\n")
        with pytest.raises(ValueError, match=message):
            table.load_plan(path)


def test_published_settings_suit_the_prior(bench):
    """The paper's settings run on a prior of ours: no level that it was not trained on."""
    group = next(group for group in table.load_plan() if group.settings == "paper")
    entries = bench.possible(group.entries())
    assert {entry.method for entry in entries} >= {"mgdm", "dps", "pgdm", "ddnm", "msdm", "isdm"}


@pytest.fixture
def commands(prior, corpus, tmp_path, monkeypatch):
    """Runs a command on the tiny corpus, with the prior in the model's place."""
    monkeypatch.setattr(options.hub, "load", lambda name, device: prior)
    monkeypatch.setattr(options.hub, "models", list)
    threads = torch.get_num_threads()
    for name in ("small", "full", "tune"):
        monkeypatch.setitem(LISTS, name, TINY)

    def run(command, *arguments: str):
        common = ["--corpus", str(corpus), "--store", str(tmp_path / "store"), "--device", "cpu"]
        result = CliRunner().invoke(command, [*common, *arguments], catch_exceptions=False)
        torch.set_num_threads(threads)
        return result

    return run


def test_score_command(commands, tmp_path):
    out = tmp_path / "results" / "ddnm"
    arguments = ["--method", "ddnm", "--preset", "fast", "--set", "steps=4", "--average", "1"]
    result = commands(score.main, *arguments, "--average", "2", "--out", str(out))
    assert result.exit_code == 0
    assert "4/4 ddnm" in result.stderr
    with open(f"{out}.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["reading"] == "active"]
    assert [(row["samples"], row["calls"]) for row in rows] == [("1", "3.0"), ("2", "6.0")]
    assert float(rows[1]["all"]) > float(rows[0]["all"])
    assert "| 2 | valid-002 |" in Path(f"{out}.md").read_text()
    assert "drawn" not in result.stderr
    again = commands(score.main, *arguments, "--out", str(out))
    assert "ddnm valid" not in again.stderr


def test_tune_and_table_commands(commands, tmp_path):
    winners, plan, out = (tmp_path / name for name in ("w.yaml", "p.yaml", "table"))
    source = tmp_path / "c.yaml"
    source.write_text(
        "vjp_cost: 1.0\nmethods:\n  ddnm: [{name: plain, preset: fast, knob: steps}]\n"
    )
    arguments = ["--method", "ddnm", "--budget", "6", "--candidates", str(source)]
    result = commands(tune.main, *arguments, "--winners", str(winners))
    assert result.exit_code == 0, result.output
    assert yaml.safe_load(winners.read_text())["winners"]["ddnm"][6]["settings"] == {"steps": 6}
    plan.write_text(
        "groups:\n"
        "  - {clips: small, settings: tuned, budgets: [6]}\n"
        "  - {clips: full, settings: fast, methods: [projdiff], samples: [1, 2]}\n"
    )
    arguments = ["--plan", str(plan), "--winners", str(winners), "--out", str(out)]
    empty = commands(table.main, *arguments, "--only-tables")
    assert "No rows" in empty.stdout
    assert commands(table.main, *arguments).exit_code == 0
    text = out.with_suffix(".md").read_text()
    assert "| ddnm | 6 calls, tuned | test small | 2 | 1 |" in text
    assert "| projdiff | fast | test full | 2 | 2 |" in text
    played = commands(table.main, *arguments, "--only-tables", "--list", "full")
    assert "| projdiff | fast | test full | 2 | 2 |" in played.stdout


def test_shares_are_checked(commands):
    result = commands(score.main, "--share", "3/2")
    assert result.exit_code == 2
    assert "from 1 to 2" in result.stderr


def test_vjp_cost_is_measured(prior):
    class Slow(torch.nn.Module):
        """A network whose gradient is ten times the work of its answer."""

        def forward(self, x, sigma):
            return Laborious.apply(x)

    class Laborious(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            work(1)
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            work(10)
            return gradient

    def work(times: int) -> None:
        for _ in range(times):
            torch.ones(300, 300) @ torch.ones(300, 300)

    slow = hub.Prior(Slow(), prior.info)
    assert budgets.measure_vjp_cost(slow, 64, torch.float32) > 3
