"""The comparison of methods: clips, the store of samples, budgets, tuning, tables."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from mgdm_audio import Separator, hub, metrics, samplers
from mgdm_audio.engine import LocalEngine
from mgdm_audio.samplers.ddnm import DDNM
from recipes.compare import figures, honesty, pareto, report, score, table, tune
from recipes.compare.bench import Bench, Entry, Failed, Share
from recipes.compare.clips import LISTS, ClipList, clips

pytest_plugins = ("compare_fixtures",)

TINY = ClipList(2, 16_384)

CHEAP = Entry("ddnm", "fast", {"steps": 4})
GUIDED = Entry("dps", "fast", {"steps": 4})


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
    assert len(bench.score(CHEAP, listed, 2)) == 2


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
    assert alike.spent.calls == 3
    assert np.allclose(alike.stems, clip.mix / 4, atol=1e-6)
    assert 3 < warm.spent.calls <= cold.spent.calls + 3
    assert len({bench.folder(entry, clip) for entry in entries}) == 4
    # The samples of a mean share the regressor's answer, as those of a separation do.
    two = bench.separate(entries[2], clip, count=2)
    made = bench.separator(entries[2], 2).separate(clip.mix, 22_050, seed=(clip.song + 1) * 1000)
    assert two.spent.calls == made.stats["calls"] == 2 * warm.spent.calls - 3
    assert np.array_equal(two.stems[0], made.stems["bass"])
    said = []
    alone = Bench(prior, tmp_path / "store", device="cpu", say=said.append)
    if "regressor" not in {info.name for info in hub.models()}:
        assert alone.possible(entries) == entries[3:]
        assert len(said) == 3
        assert "regressor" in said[0]


def test_an_entry_names_its_regressor(bench, regressor, monkeypatch):
    other = dataclasses.replace(regressor.info, name="other", sha256="3" * 64)
    asked = []

    def load(name, device):
        asked.append(name)
        return hub.Regressor(regressor.regress, other)

    monkeypatch.setattr(hub, "load_regressor", load)
    start = {"warm_start": "regressor", "warm_sigma": 0.3}
    plain, named = (
        Entry("ddnm", "fast", start),
        Entry("ddnm", "fast", {**start, "regressor": "other"}),
    )
    alone = Entry("regressor", "fast", {"regressor": "other"})
    assert bench.describe(plain)["regressor"] == "2" * 64
    assert bench.describe(named)["regressor"] == bench.describe(alone)["model"] == "3" * 64
    assert bench.fingerprint(plain) != bench.fingerprint(named)
    assert asked == ["other"]


def test_shares_are_disjoint_and_complete(bench, corpus):
    listed = clips(corpus / "valid", TINY)
    jobs = [(CHEAP, clip, s) for s in range(2) for clip in listed]
    assert bench.fill(jobs, share=Share(0, 3))
    # The samples of a mean are drawn by one process.
    assert [bench.done(CHEAP, clip) for clip in listed] == [2, 0]
    for part in (1, 2):
        bench.fill(jobs, share=Share(part, 3))
    assert [bench.done(CHEAP, clip) for clip in listed] == [2, 2]


@pytest.mark.slow
def test_samples_of_several_workers_are_those_of_one(bench, corpus, prior, tmp_path):
    listed = clips(corpus / "valid", TINY)
    jobs = [(CHEAP, clip, s) for s in range(2) for clip in listed]
    assert bench.fill(jobs)
    said = []
    other = Bench(
        prior, tmp_path / "other", device="cpu", precision="float32", say=said.append,
        engine=LocalEngine(2),
    )  # fmt: skip
    assert other.fill(jobs)
    assert len(said) == len(jobs)
    for clip in listed:
        for number in range(2):
            a, b = (one.separate(CHEAP, clip, number).stems for one in (bench, other))
            assert np.array_equal(a, b)


def test_out_of_time(bench, corpus):
    listed = clips(corpus / "valid", TINY)
    assert not bench.fill([(CHEAP, clip, 0) for clip in listed], minutes=0)
    assert bench.score(CHEAP, listed) == []


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
    louder = hub.Prior(prior.denoise, dataclasses.replace(prior.info, level=0.2))
    others.append(Bench(louder, tmp_path / "store", precision="float32").folder(CHEAP, clip))
    assert len({place, *others}) == 6


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
    row = report.make_row(bench, CHEAP, "valid tiny", listed, 1, bench.score(CHEAP, listed), 1.1)
    assert math.isnan(row.score())
    assert "not finite" in report.markdown(report.records([row]))
    assert len(table.added([row], [])) == 2
    assert len(table.added([row, row], [])) == 2
    waiting = report.make_row(bench, GUIDED, "valid tiny", listed, 1, [], 1.1)
    assert "not finite" not in report.markdown(report.records([waiting]))


def test_lines_of_an_earlier_table_may_lack_a_column(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(report.csv_text([{"a": "1"}, {"a": "2", "b": "3"}]))
    assert report.read_csv(path) == [{"a": "1", "b": ""}, {"a": "2", "b": "3"}]


def test_the_table_is_not_replaced_by_another_one(commands, monkeypatch, tmp_path):
    monkeypatch.setattr(table, "TABLE", tmp_path / "table")
    for option in (["--list", "full"], ["--split", "valid"]):
        result = commands(table.main, *option, "--out", str(tmp_path / "table"))
        assert result.exit_code == 2
        assert "name --out" in result.stderr


def test_row_and_tables(bench, corpus, tmp_path):
    listed = clips(corpus / "valid", ClipList(3, 16_384))
    bench.fill([(GUIDED, clip, 0) for clip in listed])
    scored = bench.score(GUIDED, listed)
    row = report.make_row(bench, GUIDED, "valid tiny", [*listed, listed[0]], 1, scored, 1.5)
    # Three calls, two of them with a gradient.
    assert (row.spent.calls, row.spent.vjps, row.equivalents) == (3, 2, 6)
    assert row.spent.peak_mib > 10
    lines = report.records([row])
    report.write_tables(tmp_path / "out" / "dps", lines)
    assert report.read_csv(tmp_path / "out" / "dps.csv") == lines
    with open(tmp_path / "out" / "dps.csv", newline="") as file:
        active, track = csv.DictReader(file)
    by_hand = metrics.nanmean(
        np.concatenate([s.track.windows.masked(s.track.windows.improvement) for s in scored])
    )
    assert float(active["drums"]) == pytest.approx(by_hand[1], abs=1e-3)
    assert float(active["drums_low"]) <= float(active["drums"]) <= float(active["drums_high"])
    assert float(active["all"]) == pytest.approx(by_hand.mean(), abs=1e-3)
    assert float(track["all_paper"]) == 13.77
    assert (active["reading"], active["clips"], active["clips_in_list"]) == ("active", "3", "4")
    text = (tmp_path / "out" / "dps.md").read_text()
    assert "| dps | fast steps=4 | valid tiny | 3/4 | 1 |" in text
    assert "(13.77) |" in text


def test_paper_s_overall_figures_are_means():
    for method, (*stems, overall) in report.PAPER.items():
        assert np.mean(stems) == pytest.approx(overall, abs=0.006), method


@pytest.mark.parametrize(
    "source", [table.PLAN, Path(__file__).parents[1] / "recipes/prior/scores.yaml"], ids=str
)
def test_plan_names_what_there_is(bench, source, tmp_path):
    groups = table.load_plan(source)
    assert {group.clips for group in groups} <= set(LISTS)
    for group in groups:
        if group.settings != table.TUNED:
            entries = group.entries()
            assert entries
            for entry in bench.possible(entries):
                assert entry.note
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
    plan = table.load_plan()
    group = next(g for g in plan if g.settings == "paper" and not g.methods)
    entries = bench.possible(group.entries())
    assert {entry.method for entry in entries} >= {"mgdm", "dps", "pgdm", "ddnm", "msdm", "isdm"}


def test_a_group_that_was_stopped_compares_the_same_clips(bench, corpus):
    listed = clips(corpus / "valid", TINY)
    group = table.Group(clips="small", settings="fast", samples=(1, 2))
    bench.fill([(CHEAP, clip, s) for clip in listed for s in range(2)])
    bench.fill([(GUIDED, listed[0], 0)])
    arguments = (group, [CHEAP, GUIDED], listed, "valid tiny", 1.0)
    rows = table.rows_of(bench, *arguments)
    assert [(r.entry.method, r.samples, r.clips) for r in rows] == [
        ("ddnm", 1, (1, 2)),
        ("dps", 1, (1, 2)),
        ("ddnm", 2, (2, 2)),  # of the other there is nothing to compare it with
        ("dps", 2, (0, 2)),
    ]


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
    tuned = tmp_path / "tuned"
    arguments = ["--budget", "6", "--candidates", str(source), "--winners", str(winners)]
    arguments += ["--out", str(tuned)]
    result = commands(tune.main, "--method", "ddnm", *arguments)
    assert result.exit_code == 0, result.output
    assert yaml.safe_load(winners.read_text())["winners"]["ddnm"][6]["settings"] == {"steps": 6}
    assert len(Path(f"{tuned}-songs.jsonl").read_text().splitlines()) == 2
    # Another method joins, and what the first one has is not drawn again where no sample is.
    elsewhere = ["--store", str(tmp_path / "tuned-elsewhere"), "--method", "dps"]
    second = "  dps: [{name: one, preset: fast, knob: steps}]\n"
    source.write_text(source.read_text() + second)
    result = commands(tune.main, *arguments, *elsewhere)
    assert list(yaml.safe_load(winners.read_text())["winners"]) == ["ddnm", "dps"]
    result = commands(tune.main, *arguments, *elsewhere, "--method", "ddnm")
    assert "ddnm plain valid" not in result.stderr
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
    played = commands(
        table.main, *arguments[:-1], str(tmp_path / "other"), "--only-tables", "--list", "full"
    )
    assert "| projdiff | fast | test full | 2 | 2 |" in played.stdout
    # Without the samples the rows of a table stay, as long as the plan has them.
    elsewhere = ["--store", str(tmp_path / "elsewhere"), "--only-tables"]
    assert commands(table.main, *arguments, *elsewhere).exit_code == 0
    assert out.with_suffix(".md").read_text() == text
    plan.write_text("groups: [{clips: small, settings: tuned, budgets: [6]}]\n")
    fewer = commands(table.main, *arguments, *elsewhere)
    assert "ddnm" in fewer.stdout
    assert "projdiff" not in fewer.stdout


def test_shares_are_checked(commands):
    result = commands(score.main, "--share", "3/2")
    assert result.exit_code == 2
    assert "from 1 to 2" in result.stderr


def test_figures_honesty_and_pareto_commands(commands, tmp_path):
    settings = ["--set", "steps=6", "--set", "gradient_steps=[[0,1]]", "--list", "tune"]
    arguments = ["--repetitions", "1", "--repetitions", "2", "--out", str(tmp_path)]
    result = commands(figures.main, *arguments, *settings)
    assert result.exit_code == 0, result.output
    with open(tmp_path / "figure3.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["reading"] == "active"]
    assert [row["note"] for row in rows] == [
        "R=1", "R=2", "R=1 G=1 (cost of R=1)", "R=1 G=2 (cost of R=2)",
    ]  # fmt: skip
    assert (tmp_path / "figure4.png").is_file()
    out = tmp_path / "honesty"
    method = ["--method", "ddnm", "--preset", "fast", "--set", "steps=4"]
    result = commands(honesty.main, *method, "--samples", "2", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "mean of 2" in out.with_suffix(".md").read_text()
    assert out.with_suffix(".png").is_file()
    drawn = CliRunner().invoke(
        pareto.main, [str(tmp_path / "figure3.csv"), "--out", str(tmp_path / "pareto.png")]
    )
    assert drawn.exit_code == 0, drawn.output
    assert "mgdm" in drawn.stdout
