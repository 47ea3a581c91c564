"""The scores that tables keep of single clips."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from mgdm_audio.evaluate import Evaluation, evaluate_track
from recipes.compare import report, table
from recipes.compare.bench import Bench, Entry
from recipes.compare.clips import ClipList, clips
from recipes.compare.ledger import Ledger, Scored, Spent

pytest_plugins = ("compare_fixtures",)

TINY = ClipList(2, 16_384)
CHEAP = Entry("ddnm", "fast", {"steps": 4})


def scored(seed: int, samples: int = 5 * 22_050, silent: bool = True) -> Scored:
    """Noise, scored; one stem and one estimate of another may be silent."""
    rng = np.random.default_rng(seed)
    stems, estimates = rng.normal(0, 0.1, (2, 4, samples))
    if silent:
        stems[1], estimates[2] = 0, 0
    track = evaluate_track(stems, estimates, 22_050, name=f"song-{seed}")
    return Scored(track, -math.inf, Spent(3, 2, 1.5, 1.25, 100.0), day="2026-01-02")


@pytest.mark.parametrize("samples", [5 * 22_050, 2**18, 100])
def test_scores_come_back(tmp_path, samples):
    """Also those of a clip too short for a window, of one chunk, and values that are infinite."""
    ledger = Ledger(tmp_path / "songs.jsonl")
    given = scored(0, samples)
    kept = ledger.add("a", 2, given)
    ledger.save()
    read = Ledger(tmp_path / "songs.jsonl").get("a", 2)
    assert read is not None
    assert (read.spent, read.day, read.residual_db) == (given.spent, given.day, -math.inf)
    for one in (kept, read):
        for name, expected in vars(given.track.windows).items():
            value = getattr(one.track.windows, name)
            assert np.shape(value) == np.shape(expected)
            assert np.allclose(value, expected, rtol=1e-6, atol=0, equal_nan=True)
            assert np.asarray(value).dtype == np.asarray(expected).dtype
        assert one.track.chunks.shape == given.track.chunks.shape
    # Tables of what was drawn and of what was read are the same to the last digit.
    texts = [json.dumps(Evaluation((one.track,)).to_dict()) for one in (kept, read)]
    assert texts[0] == texts[1]
    json.loads((tmp_path / "songs.jsonl").read_text(), parse_constant=pytest.fail)
    assert Ledger(tmp_path / "songs.jsonl").get("a", 1) is None


def test_the_lead_is_over_the_same_songs():
    """Songs differ by decibels, the two methods by half of one on all of them."""
    given = [scored(seed, silent=False) for seed in range(4)]
    better = []
    for k, one in enumerate(given):
        windows = one.track.windows
        windows = dataclasses.replace(windows, improvement=windows.improvement + 3.0 * k)
        given[k] = dataclasses.replace(one, track=dataclasses.replace(one.track, windows=windows))
        windows = dataclasses.replace(windows, improvement=windows.improvement + 0.5)
        better.append(
            dataclasses.replace(one, track=dataclasses.replace(one.track, windows=windows))
        )
    assert report.lead(better, given) == pytest.approx((0.5, 0.5, 0.5))
    assert report.lead(better[1:], given) == pytest.approx((0.5, 0.5, 0.5))
    assert np.isnan(report.lead(better, given[1:])).all()
    assert np.isnan(report.lead([], given)).all()
    # The same windows, so the mean of the differences is the difference of the means.
    several = [*given[:3], better[3]]
    means = [
        Evaluation(tuple(one.track for one in part)).summary()["active_mean"]
        for part in (several, given)
    ]
    assert report.lead(several, given)[0] == pytest.approx(means[0]["all"] - means[1]["all"])


def test_two_processes_write_one_file(tmp_path):
    path = tmp_path / "songs.jsonl"
    one, other = Ledger(path), Ledger(path)
    one.add("b", 1, scored(0))
    other.add("a", 1, scored(1))
    other.add_failed("c")
    one.save()
    other.save()
    both = Ledger(path)
    assert both.get("a", 1) is not None
    assert both.get("b", 1) is not None
    assert both.failed("c")
    assert not both.failed("a")
    assert [json.loads(line)["place"] for line in path.read_text().splitlines()] == ["a", "b", "c"]
    written = path.read_bytes()
    both.save()
    assert path.read_bytes() == written
    assert not Ledger().failed("c")


def test_a_file_of_something_else_is_named(tmp_path):
    path = tmp_path / "songs.jsonl"
    path.write_text('{"place": "a", "samples": 0, "day": "2026-01-01"}\n{"place": "b"}\n')
    with pytest.raises(ValueError, match=r"songs\.jsonl, line 2"):
        Ledger(path)


def test_known_clips_are_not_drawn_again(bench, corpus, prior, tmp_path):
    """Another machine, with the ledger and without the samples."""
    listed = clips(corpus / "valid", TINY)
    group = table.Group(clips="small", settings="fast", samples=(1, 2))
    bench.ledger = Ledger(tmp_path / "songs.jsonl")
    bench.fill([(CHEAP, listed[0], s) for s in range(2)])
    bench.fill([(CHEAP, listed[1], 0)])
    arguments = (group, [CHEAP], listed, "valid tiny", 1.0)
    first = table.rows_of(bench, *arguments)
    assert [row.clips for row in first] == [(2, 2), (1, 2)]
    bench.ledger.save()

    said: list[str] = []
    other = Bench(
        prior, tmp_path / "elsewhere", device="cpu", precision="float32", say=said.append,
        ledger=Ledger(tmp_path / "songs.jsonl"),
    )  # fmt: skip
    assert [r.score() for r in table.rows_of(other, *arguments)] == [r.score() for r in first]
    table.draw_group(other, group, [CHEAP], listed)
    rows = table.rows_of(other, *arguments)
    # Of the second clip the mean of two was not known: both of its samples are needed.
    assert [line.split(":")[0] for line in said] == [
        "1/2 ddnm  valid-002 sample 0",
        "2/2 ddnm  valid-002 sample 1",
    ]
    assert [row.clips for row in rows] == [(2, 2), (2, 2)]
    assert rows[0].score() == first[0].score()
    # Another precision is another score.
    precise = Bench(prior, tmp_path / "elsewhere", device="cpu", precision="bfloat16")
    precise.ledger = other.ledger
    assert not precise.known(CHEAP, listed[0])


def test_what_some_methods_have_is_kept(bench, corpus, tmp_path):
    listed = clips(corpus / "valid", TINY)
    bench.ledger = Ledger(tmp_path / "songs.jsonl")
    other = Entry("ddnm", "fast", {"steps": 5})
    bench.fill([(CHEAP, clip, 0) for clip in listed])
    group = table.Group(clips="small", settings="fast")
    rows = table.rows_of(bench, group, [CHEAP, other], listed, "valid tiny", 1.0)
    assert [row.clips for row in rows] == [(2, 2), (0, 2)]
    assert all(bench.known(CHEAP, clip) for clip in listed)
    assert not bench.known(other, listed[0])


def test_failures_are_known(bench, corpus, tmp_path):
    listed = clips(corpus / "valid", TINY)
    bench.ledger = Ledger(tmp_path / "songs.jsonl")
    folder = bench.folder(CHEAP, listed[0])
    folder.mkdir(parents=True)
    (folder / "failed.txt").write_text("not finite")
    assert bench.score(CHEAP, listed) == []
    bench.ledger.save()
    bench.store = tmp_path / "elsewhere"
    bench.ledger = Ledger(tmp_path / "songs.jsonl")
    assert bench.failed(CHEAP, listed[0])
    assert bench.known(CHEAP, listed[0], 3)
    assert not bench.failed(CHEAP, listed[1])


def test_the_table_is_made_of_the_kept_scores(commands, tmp_path):
    plan, out = tmp_path / "plan.yaml", tmp_path / "table"
    plan.write_text("groups: [{clips: full, settings: fast, methods: [projdiff]}]\n")
    arguments = ["--plan", str(plan), "--out", str(out)]
    assert commands(table.main, *arguments).exit_code == 0
    text = Path(f"{out}.md").read_text()
    Path(f"{out}.csv").unlink()
    again = commands(table.main, *arguments, "--store", str(tmp_path / "elsewhere"))
    assert again.exit_code == 0
    assert "sample 0" not in again.stderr
    assert Path(f"{out}.md").read_text() == text
