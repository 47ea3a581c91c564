"""Equal budgets and tuning at them."""

from __future__ import annotations

import pytest
import torch
import yaml

from mgdm_audio import hub, samplers
from recipes.compare import budgets, tune
from recipes.compare.budgets import Candidate, equivalents, fit
from recipes.compare.clips import ClipList, clips
from recipes.compare.ledger import Spent

pytest_plugins = ("compare_fixtures",)

TINY = ClipList(2, 16_384)


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
    stated = Candidate("pnpdm", "x", at={30: {"iterations": 2}})
    entry = fit(bench, stated, 30, 1.0)
    assert entry is not None
    assert entry.settings == {"iterations": 2}
    assert fit(bench, stated, 31, 1.0) is None
    with pytest.raises(ValueError, match=r"costs .* calls with its settings at 30"):
        fit(bench, Candidate("pnpdm", "x", at={30: {"iterations": 99}}), 30, 1.0)
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
    assert [(r.entry.method, r.entry.note, r.lines[0]["list"]) for r in rows] == [
        ("ddnm", "blind", "tuning at 8"),
        ("ddnm", "good", "tuning at 8"),
        ("mgdm", "G1", "tuning at 8"),
        ("ddnm", "good", "tuning at 16"),
        ("mgdm", "G1", "tuning at 16"),
    ]
    assert rows[1].score > rows[0].score
    path = tmp_path / "winners.yaml"
    path.write_text(tune.winners_text(best, {"model": "bands"}))
    winners = budgets.load_winners(path)
    assert winners["ddnm"][8].settings == {"steps": 8}
    assert winners["mgdm"][16].settings["gradient_steps"] == ((0, 1),)
    # What was tuned is found again in the store: nothing is drawn anew.
    assert bench.done(winners["mgdm"][16], listed[0]) == 1
    # Rows of an earlier table count where nothing is in the store, unless they have fewer clips.
    lines = [line for row in rows for line in row.lines]
    empty = type(bench)(bench.prior, tmp_path / "empty", device="cpu", say=bench.say)
    again = tune.tune(empty, candidates, listed, [8, 16], 1, 1.0, 0.0, table=lines)
    assert again == (rows, best)
    fewer = [{**line, "clips": "1"} for line in lines]
    # Out of time, nothing goes on to the next budget.
    assert tune.tune(empty, candidates, listed, [8, 16], 1, 1.0, 0.0, table=fewer)[0] == []
    # What was not touched stays, of tables and winners; other models' rows do not.
    part = [row for row in rows if row.entry.note == "good"]
    older = [{**line, "note": "old", "list": "tuning at 8"} for line in part[0].lines]
    foreign = [{**line, "sha256": "1" * 64} for line in older]
    kept = tune.all_lines(bench, part, [*lines, *older, *foreign])
    assert sorted(map(str, kept)) == sorted(map(str, [*lines, *older]))
    assert [line["list"] for line in kept] == ["tuning at 8"] * 8 + ["tuning at 16"] * 4
    path.write_text(tune.winners_text(best, {"sha256": "a"}))
    earlier = tune.earlier_winners(path, "a")
    less = {"ddnm": {8: best["ddnm"][16]}}
    merged = yaml.safe_load(tune.winners_text(less, {"sha256": "a"}, earlier=earlier))["winners"]
    assert merged["ddnm"][8] == merged["ddnm"][16]
    assert merged["mgdm"] == earlier["mgdm"]
    untuned = {16: {"mgdm": (best["mgdm"][8].entry, "tuned at 8")}}
    stays = yaml.safe_load(tune.winners_text({}, {"sha256": "a"}, untuned, earlier))["winners"]
    assert stays == earlier
    assert tune.earlier_winners(path, "b") == {}
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
