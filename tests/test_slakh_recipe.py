"""The recipe of Slakh2100 after its preparation: training, presets, separation, scores, report."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from click.testing import CliRunner
from mini_slakh import ROOT, Mini

from mgdm_audio import STEMS, hub, metrics, samplers
from mgdm_audio.draws import SeededDraws
from mgdm_audio.nn import build
from mgdm_audio.operators import Mixture
from mgdm_audio.samplers.base import Problem
from recipes.prior.data import StemCorpus
from recipes.slakh2100 import evaluate, presets, report, separate
from recipes.slakh2100.export import export
from recipes.slakh2100.presets import Preset, load_preset
from recipes.slakh2100.separate import Work, chunk_seed, claim, mixture, separate_track, shard_of
from recipes.slakh2100.train import Settings, SlakhTask, read_settings, resume, waveform_loss
from recipes.training.trainer import Trainer, item_generator

RECIPE = Path(__file__).parents[1] / "recipes" / "slakh2100"
BACKBONE: dict[str, Any] = {
    "channels": 64, "patch_factor": 16, "multipliers": [1, 1, 1], "factors": [4, 4],
    "num_blocks": [1, 1], "attentions": [False, False], "attention_heads": 2,
    "attention_features": 8,
}  # fmt: skip
CHUNK = 4096
FAST = {"levels": 6, "churn": 0.0, "repetitions": 1, "sigma_min": 5e-4, "rho": 50.0}


def network(stems: int) -> dict[str, Any]:
    return {"class": "UNet1d", "args": {"backbone": {**BACKBONE, "in_channels": stems}, "edm": {}}}


def settings(stems: tuple[str, ...] = STEMS, **changes: Any) -> Settings:
    values = {"steps": 3, "batch": 2, "samples": 2048, "lr": 1e-3, "ema": 0.0, "seed": 1}
    return Settings(stems=stems, **{**values, **changes})


@pytest.fixture
def corpus(tmp_path: Path) -> StemCorpus:
    """Two tracks that are long enough, one that is too short and one that is too long."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data" / "redux" / "test"
    folder.mkdir(parents=True)
    lines = []
    for n, samples in enumerate((270_000, 290_000, 200_000, 15_000_000)):
        name = f"Track{n + 1:05d}"
        if samples < 1e7:
            pcm = rng.normal(0, 3000, (4, samples)).astype(np.int16)
            np.save(folder / f"{name}.npy", pcm)
        lines.append({
            "song": n, "track": name, "file": f"{name}.npy", "samples": samples,
            "mixture_rms": 0.18,
        })  # fmt: skip
    (folder / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return StemCorpus(folder)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    net = build("UNet1d", network(4)["args"])
    hub.save_model(tmp_path / "msdm", net, {
        "name": "msdm", "summary": "narrow", "network": network(4), "sample_rate": 22050,
        "stems": list(STEMS), "level": 0.1, "sigma_min": 1e-4, "sigma_max": 20.0,
        "licence": "none", "score": {},
    }, "float32")  # fmt: skip
    return tmp_path / "msdm"


def preset(model: Path, **changes: Any) -> Preset:
    values: dict[str, Any] = {
        "title": "test", "model": str(model), "method": "msdm", "settings": FAST, "chunk": CHUNK,
        "batch": 2, "seed": 3, "reading": "track",
    }  # fmt: skip
    return Preset(**{**values, **changes})


# -- presets --------------------


@pytest.mark.parametrize("name", presets.names())
def test_presets_load(name):
    chosen = load_preset(name)
    assert chosen.chunk == 262_144
    stems = [chosen.paper[stem] for stem in STEMS if stem in chosen.paper]
    if len(stems) == 4:
        assert np.mean(stems) == pytest.approx(chosen.paper["all"], abs=0.006)


@pytest.mark.parametrize("name", ["mgdm", "dps", "pgdm", "ddnm", "msdm", "isdm", "demucs512"])
def test_the_columns_are_run_as_by_their_authors(name):
    """All settings are spelled out, and are those of the samplers' presets of that name."""
    chosen = load_preset(name)
    assert chosen.sampler() == samplers.get(chosen.method, "paper")
    assert chosen.overlap is None
    # Two code bases: one scores chunk by chunk, the other the joined chunks of a track.
    assert chosen.reading == ("chunk" if name in ("mgdm", "dps", "pgdm", "ddnm") else "track")
    stated = set(chosen.settings)
    fields = {field.name for field in dataclasses.fields(chosen.sampler())}
    assert fields - stated <= {"gamma", "stems", "marginal_sigma", "keep_max", "alpha"} | (
        fields if name == "demucs512" else set()
    )


def test_presets_that_cannot_be_used(tmp_path):
    with pytest.raises(ValueError, match="no preset 'nothing'; there are mgdm"):
        load_preset("nothing")
    path = tmp_path / "x.yaml"
    good = yaml.safe_load((RECIPE / "presets" / "msdm.yaml").read_text())
    for change, message in (
        ({"chunks": 3}, "unknown settings chunks"),
        ({"reading": "song"}, "reading = 'song'"),
        ({"batch": 0}, "batch = 0"),
        ({"paper": {"voice": 1.0}}, "voice"),
        ({"settings": {"speed": 1}}, "no setting 'speed'"),
    ):
        path.write_text(yaml.safe_dump({**good, **change}))
        with pytest.raises(ValueError, match=message):
            load_preset(path)
    path.write_text("[1, 2")
    with pytest.raises(ValueError, match="not YAML"):
        load_preset(path)


# -- training --------------------


def test_tracks_by_length(corpus):
    task = SlakhTask(settings(), network(4), corpus)
    assert [song["track"] for song in task.tracks.songs] == ["Track00001", "Track00002"]


def test_a_pass_takes_every_window_once(corpus):
    task = SlakhTask(settings(samples=20_000), network(4), corpus)
    count = 560_000 // 20_000
    for epoch in range(2):
        places = []
        for number in range(epoch * count, (epoch + 1) * count):
            places.append(task.place(_Still(), number, 2))
        starts = sorted(start + 270_000 * song for song, start in places)
        # Without the random move they tile the line of all tracks, but for the seam of two.
        steps = np.diff(starts)
        assert len(set(starts)) == count
        assert np.median(steps) == 20_000
    first = [task.place(_Still(), n, 2) for n in range(count)]
    second = [task.place(_Still(), n + count, 2) for n in range(count)]
    assert first != second


class _Still:
    """A generator that moves no window."""

    def integers(self, low: int, high: int) -> int:
        return 0


def test_items_lie_within_their_track(corpus):
    task = SlakhTask(settings(samples=100_000), network(4), corpus)
    for number in range(60):
        song, start = task.place(item_generator(1, number), number, 2)
        assert 0 <= start <= task.tracks.songs[song]["samples"] - 100_000
    item = task.item(item_generator(1, 7), 7, 2)
    again = task.item(item_generator(1, 7), 7, 2)
    assert all(np.array_equal(item[key], again[key]) for key in item)
    assert item["clean"].shape == item["noise"].shape == (4, 100_000)
    song, start = task.place(item_generator(1, 7), 7, 2)
    expected = corpus.stems(song)[:, start : start + 100_000] / 32768
    assert np.abs(item["clean"] - expected).max() < 1e-6


def test_noise_levels(corpus):
    task = SlakhTask(settings(samples=16), network(4), corpus)
    levels = np.log([task.item(item_generator(0, n), n, 2)["sigma"] for n in range(1500)])
    assert abs(levels.mean() + 3) < 4 / 1500**0.5
    assert abs(levels.std() - 1) < 0.08


def test_single_stem_items(corpus):
    joint = SlakhTask(settings(), network(4), corpus).item(item_generator(1, 3), 3, 2)
    single = SlakhTask(settings(("guitar",)), network(1), corpus).item(item_generator(1, 3), 3, 2)
    assert np.array_equal(single["clean"], joint["clean"][2:3])


def test_loss_is_the_published_one():
    """(D - x)^2 at weight (sigma^2 + sd^2) / (sigma sd)^2: the error of F, for D = x + c_out."""

    class Off(torch.nn.Module):
        sigma_data = 0.2

        def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            c_out = sigma * 0.2 / (sigma**2 + 0.04).sqrt()
            return torch.full_like(x, 0.3) + c_out[:, None, None]

    clean = torch.full((3, 4, 50), 0.3)
    sigma = torch.tensor([0.01, 0.2, 5.0])
    loss = waveform_loss(Off(), clean, torch.randn(3, 4, 50), sigma)  # type: ignore[arg-type]
    assert torch.allclose(loss, torch.ones(3, 4), atol=1e-4)


def test_continues_exactly_and_exports(corpus, tmp_path):
    runs = []
    for stop in (3, 1):
        run = Trainer(SlakhTask(settings(), network(4), corpus))
        for _ in range(stop):
            run.advance()
        run.save(tmp_path / "checkpoint.pt")
        runs.append(run)
    rest = resume(tmp_path / "checkpoint.pt", corpus)
    rest.advance()
    rest.advance()
    for key, value in runs[0].net.state_dict().items():
        assert torch.equal(value, rest.net.state_dict()[key])
    export([tmp_path / "checkpoint.pt"], tmp_path / "joint", corpus)
    prior = hub.load(tmp_path / "joint")
    x = torch.randn(1, 4, 512)
    assert torch.equal(prior.denoise(x, torch.ones(1)), runs[1].average(x, torch.ones(1)))


def test_four_single_stem_runs_export_as_one(corpus, tmp_path):
    paths = []
    for stem in STEMS:
        run = Trainer(SlakhTask(settings((stem,)), network(1), corpus))
        run.save(tmp_path / f"{stem}.pt")
        paths.append(tmp_path / f"{stem}.pt")
    export(paths, tmp_path / "isdm", corpus)
    prior = hub.load(tmp_path / "isdm")
    assert prior.denoise(torch.zeros(1, 4, 512), torch.rand(1, 4) + 0.1).shape == (1, 4, 512)
    with pytest.raises(ValueError, match="of drums, bass, guitar, piano"):
        export([paths[1], paths[0], *paths[2:]], tmp_path / "wrong", corpus)


def test_configs_are_the_published_ones():
    joint, net = read_settings(RECIPE / "conf" / "joint.yaml")
    assert (joint.stems, joint.batch, joint.samples, joint.lr) == (STEMS, 8, 262_144, 1e-4)
    assert (joint.log_sigma_mean, joint.log_sigma_std, joint.betas) == (-3.0, 1.0, (0.9, 0.99))
    with torch.device("meta"):
        built = build(net["class"], net["args"])
    assert sum(p.numel() for p in built.parameters()) == 405_497_700
    single, net = read_settings(RECIPE / "conf" / "single.yaml", "piano")
    assert (single.stems, single.batch, single.lr) == (("piano",), 16, 1e-5)
    with torch.device("meta"):
        built = build(net["class"], net["args"])
    assert sum(p.numel() for p in built.parameters()) == 405_491_100
    with pytest.raises(ValueError, match="expected"):
        settings(("bass", "drums"))


# -- separation --------------------


def separated(folder: Path, name: str) -> np.ndarray:
    return np.stack([soundfile.read(folder / name / f"{s}.wav", dtype="float32")[0] for s in STEMS])


def test_chunks_side_by_side_as_they_are(corpus, model, tmp_path):
    """Each chunk is the sampler's own answer at the track's level; the rest is dropped."""
    work = Work.load(preset(model), "cpu")
    stems = corpus.stems(0)[:, : 3 * CHUNK + 100]
    record = separate_track(work, stems, "Track00001", tmp_path / "out")
    assert record is not None
    assert (record["samples"], record["calls"]) == (3 * CHUNK, 3 * 6)
    result = separated(tmp_path / "out", "Track00001")
    denoise = hub.load(model).denoise
    mix = mixture(stems)
    for n in range(3):
        y = torch.from_numpy(mix[n * CHUNK : (n + 1) * CHUNK])[None, None]
        expected = samplers.get("msdm", "paper", **FAST).sample(
            denoise, Problem(Mixture(), y, 0.0, (1, 4, CHUNK)), SeededDraws([chunk_seed(3, 1, n)])
        )
        part = torch.from_numpy(result[:, n * CHUNK : (n + 1) * CHUNK])
        assert torch.allclose(part, expected[0], atol=1e-4)
    assert {p.name for p in (tmp_path / "out" / "Track00001").iterdir()} == {
        "done.json", *(f"{stem}.wav" for stem in STEMS),
    }  # fmt: skip


def test_any_order_interrupted_and_shared_out(corpus, model, tmp_path, monkeypatch):
    work = Work.load(preset(model), "cpu")
    tracks = {f"Track{n:05d}": corpus.stems(n - 1)[:, : 5 * CHUNK] for n in (1, 2)}
    for name, stems in tracks.items():
        separate_track(work, stems, name, tmp_path / "a")

    def cancel(done: int, total: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    for name, stems in reversed(tracks.items()):
        with pytest.raises(KeyboardInterrupt):
            separate_track(work, stems, name, tmp_path / "b", cancel)
        assert not (tmp_path / "b" / name / "done.json").exists()
        record = separate_track(work, stems, name, tmp_path / "b")
        assert record is not None
        assert record["calls"] == 5 * 6  # of both runs
    for name in tracks:
        assert np.array_equal(separated(tmp_path / "a", name), separated(tmp_path / "b", name))
    assert separate_track(work, tracks["Track00001"], "Track00001", tmp_path / "a") is None


def test_a_track_that_breaks_the_sampler_is_left_out(corpus, model, tmp_path, monkeypatch):
    """Its seeds are fixed: it would break it again, and the tracks after it need not wait."""
    whole = separate.separate_track

    def breaks(work, stems, name, out, callback=None):
        if name == "Track00001":
            raise FloatingPointError("NaN at level 3")
        return whole(work, stems[:, : 2 * CHUNK], name, out, callback)

    monkeypatch.setattr(separate, "separate_track", breaks)
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump({
        "title": "quick", "model": str(model), "method": "msdm", "settings": FAST, "chunk": CHUNK,
        "batch": 2, "seed": 0, "reading": "track",
    }))  # fmt: skip
    args = [tmp_path / "quick.yaml", "--data", tmp_path / "data", "--out", tmp_path / "out"]
    options = ["--device", "cpu", "--tracks", "2"]
    result = CliRunner().invoke(separate.main, [*map(str, args), *options])
    assert result.exit_code == separate.LEFT_OUT
    assert "left out: Track00001: NaN at level 3" in result.output
    assert "1 tracks were left out" in result.output
    assert "run prepare.py --list redux for the others" in result.output  # 151 test tracks
    assert (tmp_path / "out" / "Track00002" / "done.json").is_file()
    (corpus.folder / "index.jsonl").write_text("")
    nothing = CliRunner().invoke(separate.main, [*map(str, args), *options])
    assert "has no tracks; choose another --split" in nothing.output


@pytest.mark.parametrize("name", ["isdm", "isdm-gaussian"])
def test_joint_priors_are_no_product(model, name):
    chosen = dataclasses.replace(load_preset(name), model=str(model))
    with pytest.raises(ValueError, match="product of single-stem priors"):
        Work.load(chosen, "cpu")
    warm = samplers.warm(samplers.get("ddnm", "fast"), "isdm:paper", 0.1)
    assert warm.takes_product
    assert not samplers.independent(chosen.sampler(), 4).takes_product


def test_whole_tracks(corpus, model, tmp_path):
    """With an overlap: level, seams and consistency of the separator, nothing dropped."""
    work = Work.load(preset(model, overlap=1024, batch=1), "cpu")
    stems = corpus.stems(0)[:, : 2 * CHUNK + 77]
    separate_track(work, stems, "Track00001", tmp_path)
    result = separated(tmp_path, "Track00001")
    assert result.shape == (4, 2 * CHUNK + 77)
    assert np.abs(result.sum(0) - mixture(stems)).max() < 1e-5


def test_stems_of_other_settings_are_not_mixed(model, tmp_path):
    work = Work.load(preset(model), "cpu")
    claim(tmp_path / "out", work, "redux", "test")
    claim(tmp_path / "out", work, "redux", "test")
    for other in (
        (Work.load(preset(model, seed=4), "cpu"), "redux", "test"),
        (Work.load(preset(model, settings={**FAST, "levels": 7}), "cpu"), "redux", "test"),
        (Work.load(preset(model), "cpu", "bfloat16"), "redux", "test"),
        (work, "redux", "valid"),
    ):
        with pytest.raises(ValueError, match="other settings"):
            claim(tmp_path / "out", *other)


def test_seeds_and_shards():
    seeds = {chunk_seed(s, t, c) for s in range(3) for t in range(1, 4) for c in range(4)}
    assert len(seeds) == 36
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert shard_of("2/3") == (1, 3)
    for wrong in ("0/2", "3/2", "1", "a/b"):
        with pytest.raises(ValueError, match="expected a part"):
            shard_of(wrong)
    parts = [list(range(10))[n::c] for n, c in (shard_of(f"{i}/3") for i in (1, 2, 3))]
    assert sorted(n for part in parts for n in part) == list(range(10))


# -- scores --------------------


def test_both_readings(corpus, tmp_path, model):
    """Windows within chunks, and windows of the joined chunks, which straddle the seams."""
    folder = tmp_path / "out"
    claim(folder, Work.load(preset(model), "cpu"), "redux", "test")
    rng = np.random.default_rng(1)
    samples = 262_144
    estimates = {}
    for song in corpus.songs[:2]:
        true = corpus.stems(corpus.songs.index(song))[:, :samples] / 32768
        estimates[song["track"]] = (true + rng.normal(0, 0.02, true.shape)).astype(np.float32)
        (folder / song["track"]).mkdir()
        for stem, row in zip(STEMS, estimates[song["track"]], strict=True):
            soundfile.write(folder / song["track"] / f"{stem}.wav", row, 22050, subtype="FLOAT")
        done = {"samples": samples, "calls": 300, "seconds": 2.0, "device": "cpu"}
        (folder / song["track"] / "done.json").write_text(json.dumps(done))
    _, result = evaluate.evaluate(preset(model, reading="chunk"), corpus, folder)
    windows, chunks = [], []
    for number, estimate in enumerate(estimates.values()):
        true = corpus.stems(number)[:, :samples] / 32768
        windows.append(metrics.score_windows(true, estimate).improvement)
        chunks.append(metrics.chunk_scores(true, estimate))
    for key, values in (("track", windows), ("chunk", chunks)):
        for k, stem in enumerate(STEMS):
            assert result[key][stem] == pytest.approx(np.concatenate(values)[:, k].mean())
    assert result["here"] == result["chunk"]
    assert result["chunk"]["all"] == pytest.approx(np.mean([result["chunk"][s] for s in STEMS]))
    # Two that were prepared, and all of the list, which were not.
    assert (result["tracks"], result["missing"], result["chunks"]) == (2, 2 + 151, 2)
    assert (result["calls_per_chunk"], result["seconds_per_chunk"]) == (300, 2)
    with pytest.raises(ValueError, match="not made by the preset 'test' as it is now"):
        evaluate.evaluate(preset(model, seed=4), corpus, folder)
    for path in folder.glob("Track*/done.json"):
        path.unlink()
    with pytest.raises(ValueError, match="run separate"):
        evaluate.evaluate(preset(model), corpus, folder)


def test_report(tmp_path):
    text = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    chosen = {name: load_preset(name) for name in ("mgdm", "msdm-uncorrected")}
    here = {"here": {"bass": 18.4, "all": 17.3}, "tracks": 150, "chunks": 3000, "missing": 1,
            "calls_per_chunk": 2400.4, "seconds_per_chunk": 12.34, "model": "msdm",
            "sha256": "0" * 64, "list": "redux", "split": "test"}  # fmt: skip
    new = report.insert(text, report.table(chosen, {"mgdm": here}))
    assert new.startswith("before\n")
    assert new.endswith(f"{report.END}\nafter\n")
    assert "old" not in new
    assert "| 18.49 / 18.40 | 18.07 / - | 16.68 / - | 16.17 / - | 17.35 / 17.30 |" in new
    assert "150, 3000 (1 tracks missing) | 2400 | 12.3 |" in new
    assert "| - / - | - / - | - / - | - / - | 14.92 / - | - | - | - |" in new
    assert report.insert(new, report.table(chosen, {"mgdm": here})) == new
    with pytest.raises(ValueError, match="must hold the lines"):
        report.insert("nothing", "x")
    lines = (RECIPE / "README.md").read_text()
    assert report.BEGIN in lines
    assert all(f"`{name}`" in lines for name in presets.names())


# -- everything --------------------


def test_the_whole_recipe_by_one_command(tmp_path):
    """A miniature data set of the official layout: prepared, trained on, separated, reported."""
    mini = Mini(tmp_path / "tree")
    for number, split in ((1, "train"), (1501, "validation"), (1876, "test"), (1877, "test")):
        mini.rendered(number, split, 12.2)
    mini.standard(2, "train", 12.2)
    conf = {
        "stems": list(STEMS), "network": network(4), "steps": 2, "batch": 2, "samples": 8192,
        "lr": 1e-3, "ema": 0.9, "seed": 1,
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(conf))
    quick = {
        "title": "quick", "model": "msdm", "method": "msdm", "settings": FAST, "chunk": 262_144,
        "batch": 1, "seed": 0, "reading": "chunk", "paper": {"all": 16.48},
    }  # fmt: skip
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(quick))
    readme = tmp_path / "README.md"
    readme.write_text(f"{report.BEGIN}\n{report.END}\n")
    environment = {
        **os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "PREPARE": "--workers 1",
        "TRAIN": str(tmp_path / "tiny.yaml"), "TRAINING": "--device cpu",
        "SEPARATE": "--device cpu", "REPORT": f"--readme {readme}",
    }  # fmt: skip
    args = [str(RECIPE / "all.sh"), str(mini.folder / ROOT), str(tmp_path / "work")]
    done = subprocess.run(
        ["bash", *args, str(tmp_path / "quick.yaml")],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for told in (
        "2 of 1289 tracks of the list 'redux', split 'train'; run prepare.py --list redux",
        "2 of 151 tracks of the list 'redux', split 'test'; run prepare.py --list redux",
        "149 tracks of the list 'redux', split 'test', have not been separated yet",
    ):
        assert done.stderr.count(told) == 1
    table = readme.read_text()
    assert "`quick` quick | chunk |" in table
    assert all(f"`{name}`" in table for name in presets.names())  # what was there stays
    assert "| 2, 2 (149 tracks missing) | 6 |" in table
    result = json.loads((tmp_path / "work" / "results" / "quick.json").read_text())
    assert result["tracks"] == 2
    assert all(np.isfinite(result["chunk"][stem]) for stem in (*STEMS, "all"))
    summary = (tmp_path / "work" / "data" / "summary.md").read_text()
    assert "5 of 5 tracks" in summary
    assert "5 sources of other classes left out" in summary
    assert "| source file empty or not audio | 4 |" in summary
    log = [json.loads(t) for t in (tmp_path / "work/prior/log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 2
    stems = separated(tmp_path / "work" / "stems" / "quick", "Track01876")
    assert stems.shape == (4, 262_144)
    # Two processes make the same of it.
    work = tmp_path / "work"
    for command, *more in (
        ["separate.py", "--model", str(work / "model"), "--device", "cpu"],
        ["evaluate.py", "--results", str(tmp_path / "again")],
    ):
        subprocess.run(
            [sys.executable, str(RECIPE / command), str(tmp_path / "quick.yaml"), "--data",
             str(work / "data"), "--out", str(tmp_path / "stems"), "--workers", "2", *more],
            env=environment, check=True,
        )  # fmt: skip
    for name in ("Track01876", "Track01877"):
        again = separated(tmp_path / "stems", name)
        np.testing.assert_array_equal(again, separated(work / "stems" / "quick", name))
    again = json.loads((tmp_path / "again" / "quick.json").read_text())
    assert again["chunk"] == result["chunk"]


@pytest.mark.parametrize("folder", [".", "recipes/slakh2100"])
def test_the_file_to_train_by_is_looked_for_before_anything_else(tmp_path, folder):
    """From where the command is called, or from the recipe's own folder."""
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python").chmod(0o755)

    def call(conf: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHON": str(tmp_path / "python"), "TRAIN": conf}
        return subprocess.run(
            ["bash", str(RECIPE / "all.sh"), "x", "work", "msdm"], cwd=RECIPE.parents[1] / folder,
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    done = call("conf/joint.yaml")
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "train.py" in line)
    assert (RECIPE.parents[1] / folder / line.split()[1]).is_file()
    wrong = call("conf/nothing.yaml")
    assert wrong.returncode == 2
    assert "no such file" in wrong.stderr
    assert not wrong.stdout


def test_command_errors_are_sentences(tmp_path):
    run = CliRunner().invoke(
        separate.main, ["nothing", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    )
    assert run.exit_code == 1
    assert "there is no preset 'nothing'" in run.output
    run = CliRunner().invoke(presets.main, ["msdm"])
    assert run.exit_code == 1
    assert "unknown model 'msdm'" in run.output
    assert "import the published checkpoints first" in run.output
    run = CliRunner().invoke(
        evaluate.main, ["msdm", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    )
    assert run.exit_code == 1
    assert "Error" in run.output
