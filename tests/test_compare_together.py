"""Clips that are drawn together, the shares of several processes, and clips that travel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_training import BACKBONE

from mgdm_audio import STEMS, Separator, hub, samplers
from mgdm_audio import nn as networks
from mgdm_audio.samplers.ddnm import DDNM
from recipes.compare import pack, table
from recipes.compare.bench import Batch, Bench, Entry, Share
from recipes.compare.clips import LISTS, PACKED, Clip, ClipList, clips
from recipes.compare.ledger import Ledger

pytest_plugins = ("compare_fixtures",)

ROOT = Path(__file__).parents[1]
THREE = ClipList(3, 16_384)
CHEAP = Entry("ddnm", "fast", {"steps": 4})
DEARER = Entry("dps", "fast", {"steps": 8})


@pytest.fixture
def listed(corpus: Path) -> list[Clip]:
    return clips(corpus / "valid", THREE)


@pytest.fixture
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU takes the items of a batch one after another, a GPU all at once."""
    monkeypatch.setattr(Separator, "_draw", Separator._draw_together)


# -- together --------------------


@pytest.mark.parametrize("method", samplers.names())
def test_samples_drawn_together_are_those_drawn_alone(
    method, prior, regressor, listed, tmp_path, like_a_gpu
):
    sizes = []

    class Watched(type(prior.denoise)):
        def forward(self, x, sigma):
            sizes.append(len(x))
            return super().forward(x, sigma)

    entry = Entry(method, "fast")
    watched = hub.Prior(Watched().requires_grad_(False), prior.info)
    benches = [
        Bench(
            watched, tmp_path / name, regressor=regressor, device="cpu", precision="float32",
            ledger=Ledger(tmp_path / f"{name}.jsonl"),
        )
        for name in ("alone", "together")
    ]  # fmt: skip
    for bench, together in zip(benches, (1, 3), strict=True):
        sizes.clear()
        assert bench.fill([(entry, clip, 1) for clip in listed], together=together)
        assert not sizes or max(sizes) % together == 0
        bench.score(entry, listed, 1, first=1)
    for clip in listed:
        alone, together = (bench.separate(entry, clip, 1) for bench in benches)
        scale = np.abs(alone.stems).max()
        assert np.abs(alone.stems - together.stems).max() < 1e-4 * scale
        # Where draws decide how many there are, each has its share of the batch's.
        assert together.spent.calls == pytest.approx(alone.spent.calls, abs=1)
        assert together.spent.vjps == pytest.approx(alone.spent.vjps, abs=1)
        folders = [bench.folder(entry, clip).relative_to(bench.store) for bench in benches]
        assert folders[0] == folders[1]


def test_what_a_batch_costs_is_shared_out(bench, listed, like_a_gpu):
    assert bench.fill([(DEARER, clip, 0) for clip in listed], together=3)
    spent = [bench.separate(DEARER, clip).spent for clip in listed]
    assert len(set(spent)) == 1
    assert (spent[0].calls, spent[0].vjps) == (7, 6)


def test_a_clip_that_fails_or_is_silent_does_not_stop_its_batch(
    bench, listed, like_a_gpu, monkeypatch
):
    silent = Clip("valid-009", 9, np.zeros_like(listed[0].stems), "9" * 64)
    original = DDNM.sample
    mixes = [clip.mix / np.abs(clip.mix).max() for clip in listed]

    def sample(self, denoise, problem, draws, callback=None):
        for mix in problem.y[:, 0].numpy():
            if np.allclose(mix / np.abs(mix).max(), mixes[1], atol=1e-4):
                raise FloatingPointError("not finite")
        return original(self, denoise, problem, draws, callback)

    monkeypatch.setattr(DDNM, "sample", sample)
    said = []
    bench.say = said.append
    assert bench.fill([(CHEAP, clip, 0) for clip in [*listed, silent]], together=4)
    assert [bench.done(CHEAP, clip) for clip in listed] == [1, 0, 1]
    assert [bench.failed(CHEAP, clip) for clip in listed] == [False, True, False]
    assert f"ddnm {listed[1].name}: not finite" in said
    assert "4/4 ddnm  valid-000 and 3 more sample 0" in said[-1]
    assert len(bench.score(CHEAP, listed)) == 2


# -- shares --------------------


def test_shares_keep_batches_whole_and_are_balanced(bench, listed):
    long = [Clip(f"valid-{n:03d}", n, listed[0].stems, f"{n:064d}") for n in range(7)]
    entries = [CHEAP, DEARER, Entry("ddnm", "fast", {"steps": 3})]
    jobs = [(e, clip, number) for number in range(2) for clip in long for e in entries]
    parts = [bench._batches(jobs, Share(part, 2), 3) for part in range(2)]
    drawn = [
        (batch.entry.text(), clip.name, batch.number)
        for part in parts
        for batch in part
        for clip in batch.clips
    ]
    assert len(set(drawn)) == len(drawn) == len(jobs)
    assert {len(batch.clips) for part in parts for batch in part} == {2, 3}
    for part in parts:
        # First samples first, and both samples of a clip in one part.
        assert [batch.number for batch in part] == sorted(batch.number for batch in part)
        first, second = (
            [(b.entry.text(), b.clips[0].name) for b in part if b.number == n] for n in range(2)
        )
        assert first == second

    def cost(batch: Batch) -> float:
        planned = bench.separator(batch.entry).sampler.cost()
        return (planned.calls + planned.vjps) * len(batch.clips)

    loads = [sum(map(cost, part)) for part in parts]
    assert max(loads) < 1.1 * min(loads)
    # What one of them had more of is made up for by the next list.
    share = Share(0, 2)
    assert share.take([3, 1]) == [True, False]
    assert share.take([1, 1]) == [False, False]


def test_a_killed_run_leaves_the_scores_of_its_batches(bench, listed, tmp_path):
    bench.ledger = Ledger(tmp_path / "songs.jsonl")
    group = table.Group(clips="small", settings="fast")
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        raise KeyboardInterrupt

    bench.say = say
    with pytest.raises(KeyboardInterrupt):
        table.draw_group(bench, group, [CHEAP, DEARER], listed, together=2)
    kept = [json.loads(line) for line in (tmp_path / "songs.jsonl").read_text().splitlines()]
    assert [(line["track"]["name"], line["samples"]) for line in kept] == [("valid-000", 1)]
    assert said[0].startswith("1/6 ddnm  valid-000 sample 0")


def test_minutes_bound_the_run_and_scores_of_elsewhere_are_merged(commands, tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "groups:\n"
        "  - {clips: full, settings: fast, methods: [projdiff]}\n"
        "  - {clips: small, settings: fast, methods: [ddnm]}\n"
    )
    arguments = ["--plan", str(plan), "--together", "2"]
    out = [tmp_path / name for name in ("none", "one", "two", "both")]
    nothing = commands(table.main, *arguments, "--minutes", "0", "--out", str(out[0]))
    assert nothing.exit_code == 0
    assert nothing.stderr.count("out of time: 2 of 2") == 2
    for part in (1, 2):
        more = ["--share", f"{part}/2", "--store", str(tmp_path / f"store-{part}")]
        assert commands(table.main, *arguments, *more, "--out", str(out[part])).exit_code == 0
    lines = [Path(f"{out[part]}-songs.jsonl").read_text().splitlines() for part in (1, 2)]
    assert [len(part) for part in lines] == [2, 2]
    merged = [x for part in (1, 2) for x in ("--merge", f"{out[part]}-songs.jsonl")]
    nowhere = ["--store", str(tmp_path / "nowhere"), "--out", str(out[3])]
    both = commands(table.main, *arguments, *nowhere, *merged, "--only-tables")
    assert "| projdiff | fast | test full | 2 | 1 |" in both.stdout
    assert "| ddnm | fast | test small | 2 | 1 |" in both.stdout
    assert Path(f"{out[3]}-songs.jsonl").read_text().splitlines() == sorted(lines[0] + lines[1])


# -- clips that travel --------------------


def test_packed_clips_are_the_same(bench, corpus, tmp_path):
    lists = [THREE, ClipList(2, 20_000), ClipList(2, 16_384, sparse=True)]
    out = tmp_path / "clips" / "valid"
    size = pack.pack(corpus / "valid", lists, out)
    assert size == sum(path.stat().st_size for path in out.iterdir())
    for which in lists:
        for one, other in zip(clips(corpus / "valid", which), clips(out, which), strict=True):
            assert (one.name, one.song, one.start) == (other.name, other.song, other.start)
            assert np.array_equal(one.stems, other.stems)
            assert bench.folder(CHEAP, one) == bench.folder(CHEAP, other)
    # Where clips of two lists overlap, their samples are kept once.
    whole = sum(clip.stems.shape[1] for which in lists for clip in clips(corpus / "valid", which))
    kept = sum(pack.sf.info(path).frames for path in out.glob("*.flac"))
    assert 16_384 < kept < whole
    with pytest.raises(ValueError, match=r"pack it with .*pack\.py"):
        clips(out, ClipList(3, 16_384, active=True))
    lines = (out / PACKED).read_text()
    (out / PACKED).write_text(lines.replace('"digest": "', '"digest": "x'))
    with pytest.raises(ValueError, match="pack it again"):
        clips(out, THREE)


@pytest.mark.slow
def test_the_run_on_a_gpu_machine(prior, tmp_path):
    """With a tiny network, on a CPU; of two songs, from packed clips."""
    rng = np.random.default_rng(0)
    songs = tmp_path / "corpus" / "test"
    songs.mkdir(parents=True)
    with open(songs / "index.jsonl", "w") as index:
        for n in range(2):
            stems = rng.normal(0, 1000, (4, LISTS["small"].samples + 5000)).astype(np.int16)
            np.save(songs / f"{n}.npy", stems)
            line = {"song": n, "file": f"{n}.npy", "samples": stems.shape[1]}
            index.write(json.dumps(line) + "\n")
    work, out = tmp_path / "work", tmp_path / "out"
    pack.pack(songs, [LISTS["small"]], work / "clips" / "test")
    shutil.rmtree(songs)
    args = {"backbone": {**BACKBONE, "bins": 1024}, "stft": {"n_fft": 2048}}
    network = networks.build("TokenUNet", args)
    config = {
        "name": "tiny", "summary": "tiny", "sample_rate": 22_050, "stems": list(STEMS),
        "level": 0.08, "sigma_min": 1e-4, "sigma_max": 20.0, "licence": "CC0-1.0", "score": {},
        "network": {"class": "TokenUNet", "args": args},
    }  # fmt: skip
    hub.save_model(tmp_path / "tiny", network, config)
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "groups:\n"
        "  - {clips: small, settings: fast, methods: [msdm]}\n"
        "  - clips: small\n    settings: fast\n    methods: [ddnm, diffpir]\n"
        "    samples: [1, 2]\n    replace: {ddnm: {steps: 4}, diffpir: {steps: 4}}\n"
        "  - {clips: small, settings: paper, methods: [pnpdm, dps]}\n"
    )
    environment = {
        **os.environ, "WORK": str(work), "OUT": str(out), "PYTHON": sys.executable,
        "PARTS": "2", "TOGETHER": "2", "PLAN": str(plan), "PLAN_GROUPS": "2 3",
        "MODEL": str(tmp_path / "tiny"), "DEVICE": "cpu", "RESERVE": "1", "KNOWN": "none",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(ROOT / "recipes/compare/gpu.sh"), "0.5"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path.name for path in out.iterdir()} <= {"table-songs.jsonl", "table.log", "gpu.csv"}
    ledger = Ledger(out / "table-songs.jsonl")
    places = [json.loads(line) for line in (out / "table-songs.jsonl").read_text().splitlines()]
    assert {line["place"].split("/")[1].split("-")[0] for line in places} == {"ddnm", "diffpir"}
    for line in places:
        assert ledger.get(line["place"], line["samples"]) is not None
