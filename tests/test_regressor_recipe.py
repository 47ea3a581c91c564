"""The regressor's recipe on a corpus of tones: learns, goes on where it was, exports."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from click import ClickException
from click.testing import CliRunner

from mgdm_audio import hub
from mgdm_audio.nn import RegressorMean, SpectralRegressor, build
from recipes.prior import pieces
from recipes.prior.data import StemCorpus
from recipes.regressor.export import export
from recipes.regressor.loss import bands, losses
from recipes.regressor.mean import main as mean_command
from recipes.regressor.train import (
    RegressorTask,
    Settings,
    arguments_of,
    goes_on,
    load_model,
    main,
    resume,
)
from recipes.regressor.validation import validate
from recipes.training.processes import Processes
from recipes.training.trainer import Trainer, load_state

ARGS = {
    "backbone": {
        "bins": 128, "channels": [8, 8], "blocks": [1, 1], "width": 16, "depth": 2,
        "embedding": 16,
    },
    "stft": {"n_fft": 256},
}  # fmt: skip
NETWORK = {"class": "TokenUNetRegressor", "args": ARGS}
SETTINGS = Settings(steps=5000, batch=2, samples=8192, lr=3e-3)


@pytest.fixture
def corpus(tmp_path: Path) -> StemCorpus:
    """Four stems, each noise in a band of its own."""
    rng = np.random.default_rng(0)
    with (tmp_path / "index.jsonl").open("w") as index:
        for n in range(2):
            spectrum = np.fft.rfft(rng.normal(0, 3000, (4, 12000)))
            place = np.arange(spectrum.shape[1]) * 4 // spectrum.shape[1]
            stems = np.fft.irfft(spectrum * (place == np.arange(4)[:, None])).astype(np.int16)
            np.save(tmp_path / f"{n}.npy", stems)
            line = {"song": n, "file": f"{n}.npy", "samples": stems.shape[1]}
            index.write(json.dumps(line) + "\n")
    return StemCorpus(tmp_path)


def training(corpus, settings=SETTINGS, network=NETWORK, **more) -> Trainer:
    """A run that has its scalings."""
    run = Trainer(RegressorTask(settings, network, corpus, **more))
    run.prepare()
    return run


def batch_of(run: Trainer) -> dict[str, torch.Tensor]:
    return next(run._loader())


def test_goes_on_where_it_was(corpus, tmp_path):
    whole = training(corpus)
    for _ in range(4):
        whole.advance()
    part = training(corpus)
    for _ in range(2):
        part.advance()
    part.save(tmp_path / "checkpoint.pt")
    rest = resume(tmp_path / "checkpoint.pt", corpus)
    assert rest.minutes == part.minutes > 0
    for _ in range(2):
        rest.advance()
    assert rest.step == whole.step
    for a, b in ((whole.net, rest.net), (whole.average, rest.average)):
        for key, value in a.state_dict().items():
            assert torch.equal(value, b.state_dict()[key]), key


def test_learns(corpus):
    """Without measured scalings the bands of the stems have to be found."""
    run = Trainer(RegressorTask(replace(SETTINGS, lr=0.05), NETWORK, corpus))
    clean = batch_of(run)["clean"]
    none = torch.zeros(clean.shape[:2], dtype=torch.bool)
    membership = run.task.membership
    before = losses(run.net, clean, none, membership)[0].mean()
    for _ in range(10):
        run.advance()
    assert losses(run.net, clean, none, membership)[0].mean() < before - 0.1


def test_loss_is_the_negative_snr():
    """In nats, of the whole and a quarter of the mean over bands; silent and given stems too."""
    net = build("TokenUNetRegressor", ARGS)
    assert isinstance(net, SpectralRegressor)
    torch.nn.init.zeros_(net.backbone.outputs.bias)
    membership = bands(net.frame.bins)
    assert torch.equal(membership.sum(1), torch.ones(129))
    g = torch.Generator().manual_seed(0)
    clean = torch.randn(1, 4, 8192, generator=g)
    known = torch.zeros(1, 4, dtype=torch.bool)
    # The last layer is zero: the estimate of equal powers is a quarter of the mix.
    loss, snr = losses(net, clean, known, membership)
    error = clean.sum(1, keepdim=True) / 4 - clean
    expected = 10 * torch.log10(clean.square().sum(-1) / error.square().sum(-1))
    assert torch.allclose(snr, expected, atol=0.1)
    nats = -expected * 0.2302585
    assert torch.allclose(loss, 1.25 * nats, atol=0.1)

    known[0, :2] = True
    clean[0, 3] = 0
    loss, snr = losses(net, clean, known, membership)
    assert torch.equal(loss[0, :2], torch.zeros(2))
    # Half of stem 2 is taken for the silent one, a quarter of whose floor is 1e-3 of the mix.
    mix, wrong = clean[0].sum(0).square().sum(), clean[0, 2].square().sum() / 4
    silent = torch.log((wrong + 1e-3 * mix) / (1e-3 * mix))
    assert float(loss[0, 3].detach()) == pytest.approx(1.25 * float(silent), abs=0.5)


def test_given_stems_are_as_often_as_said(corpus):
    run = training(corpus, Settings(batch=400, samples=512))
    batch = batch_of(run)
    counts = batch["known"].sum(1).bincount(minlength=3) / 400
    assert torch.allclose(counts, torch.tensor([0.7, 0.15, 0.15]), atol=0.1)
    assert [run.task.label(n) for n in (0, 1, 2, -1)] == [
        "0 given", "1 given", "2 given", "beside",
    ]  # fmt: skip


def test_stems_that_are_given_have_no_loss(corpus):
    run = training(corpus, replace(SETTINGS, batch=8))
    batch = batch_of(run)
    loss = run.task.losses(run.net, batch)
    assert torch.equal(loss == 0, batch["known"])
    assert torch.equal(run.task.asked(batch), ~batch["known"])
    assert torch.equal(run.advance()[0].isnan(), batch["known"])
    assert torch.equal(run.task.level(batch), batch["known"].sum(1))


def test_learning_rate_ends_with_the_steps(corpus):
    settings = Settings(steps=1000)
    task = RegressorTask(settings, NETWORK, corpus)
    rates = list(map(task.rate, range(100, 1001)))
    assert rates[0] == settings.lr
    assert rates[-1] == pytest.approx(0.01 * settings.lr)
    assert all(a >= b for a, b in pairwise(rates))
    assert task.rate(0) == pytest.approx(0.01 * settings.lr)


def test_starts_from_a_prior_and_is_exported(corpus, tmp_path):
    prior = build("TokenUNet", ARGS)
    config = {
        "name": "prior", "summary": "", "network": {"class": "TokenUNet", "args": ARGS},
        "sample_rate": 22050, "stems": ["bass", "drums", "guitar", "piano"], "level": 0.1,
        "sigma_min": 1e-3, "sigma_max": 10.0, "licence": "CC0-1.0", "score": {},
    }  # fmt: skip
    hub.save_model(tmp_path / "prior", prior, config)
    settings = replace(SETTINGS, initial="prior 0123")
    run = training(corpus, settings, model=hub.load(tmp_path / "prior"))
    for net in (run.net, run.average):
        assert torch.equal(
            net.backbone.patches.weight, prior.backbone.patches.weight.half().float()
        )
    run.advance()
    run.save(tmp_path / "checkpoint.pt")
    crops = np.stack([corpus.stems(0)[:, :8192] / np.float32(32768)])
    export(tmp_path / "checkpoint.pt", corpus, tmp_path / "tiny", "a tiny one", crops)
    model = hub.load_regressor(tmp_path / "tiny")
    clean, known = map(batch_of(run).get, ("clean", "known"))
    mix = clean.sum(1, keepdim=True)
    expected = run.average(mix, clean, known)
    assert torch.allclose(model.regress(mix, clean, known), expected, atol=1e-3)
    assert model.info.kind == "regressor"
    card = (tmp_path / "tiny" / "README.md").read_text()
    assert "started from the weights of prior" in card
    assert card.count("\n| 1 |") == 1
    with pytest.raises(hub.ModelError, match="'tiny' is a regressor"):
        hub.load(tmp_path / "tiny")
    with pytest.raises(hub.ModelError, match="'prior' is a prior"):
        hub.load_regressor(tmp_path / "prior")


def test_exports_the_mean_with_the_model_that_it_started_from(corpus, tmp_path):
    first = training(corpus)
    checkpoint, folder = tmp_path / "checkpoint.pt", tmp_path / "first"
    first.save(checkpoint)
    export(checkpoint, corpus, folder, "the first")
    run = training(corpus, replace(SETTINGS, seed=1), model=hub.load_regressor(folder))
    run.average.backbone.patches.weight += 0.5  # as if it had been trained
    run.save(checkpoint)

    def weight(share):
        name = f"share-{share}"
        export(checkpoint, corpus, tmp_path / name, "a mean", mean=[(str(folder), 1 - share)])
        assert f"{1 - share:.0%} of first (" in (tmp_path / name / "README.md").read_text()
        return hub.load_regressor(tmp_path / name).regress.backbone.patches.weight.float()

    old, new = weight(0.0), weight(1.0)
    assert torch.equal(old, hub.load_regressor(folder).regress.backbone.patches.weight.float())
    assert (new - old).abs().max() > 1e-4
    assert torch.allclose(weight(0.25), 0.75 * old + 0.25 * new, atol=1e-3)
    with pytest.raises(ValueError, match="over 1"):
        export(checkpoint, corpus, folder, "too much", mean=[(str(checkpoint), 0.7)] * 2)


def test_a_confidence_is_kept_and_a_new_run_forgets_it(corpus, tmp_path):
    first = training(corpus)
    checkpoint, folder = tmp_path / "checkpoint.pt", tmp_path / "model"
    first.save(checkpoint)
    export(checkpoint, corpus, folder, "half believed", confidence=0.5)
    assert hub.load_regressor(folder).regress.confidence == 0.5
    assert arguments_of(hub.load_regressor(folder)) == ARGS


@pytest.fixture
def others(tmp_path: Path) -> StemCorpus:
    """Parts of another instrument: tones."""
    folder = tmp_path / "others"
    folder.mkdir()
    tone = np.sin(np.arange(12000) * 2 * np.pi * 3000 / 22050)
    np.save(folder / "0.npy", np.rint(6000 * tone).astype(np.int16)[None])
    (folder / "index.jsonl").write_text(json.dumps({"file": "0.npy", "samples": 12000}) + "\n")
    return StemCorpus(folder)


def test_learns_to_leave_other_sounds_alone(corpus, others, tmp_path):
    args = {"backbone": {**ARGS["backbone"], "parts": 5}, "stft": {"n_fft": 256, "beside": 60.0}}
    network = {**NETWORK, "args": args}
    settings = replace(SETTINGS, beside=1.0, absent=0.0, lr=0.03)
    with pytest.raises(ValueError, match="give --others"):
        Trainer(RegressorTask(settings, network, corpus)).advance()
    run = training(corpus, settings, network, others=others)
    batch = batch_of(run)
    batch["known"][:] = False
    other = batch["other"]
    assert other.shape == (2, 1, 8192)
    assert other.square().mean(2).min() > 0
    before = run.task.losses(run.net, batch)
    assert before.shape == run.task.asked(batch).shape == (2, 5)
    assert run.task.level(batch).tolist() == [-1, -1]
    for _ in range(80):
        assert run.advance()[0].shape == (2, 5)
    after = run.task.losses(run.net, batch)
    assert after[:, 4].mean() < before[:, 4].mean() - 0.25
    run.save(tmp_path / "checkpoint.pt")
    again = resume(tmp_path / "checkpoint.pt", corpus, others)
    assert again.task.settings == settings
    crop = corpus.stems(0)[:, :8192] / np.float32(32768)
    scores = validate(again.average, crop[None], others=other[0].numpy()[None])
    assert len(scores["beside"]) == 5
    assert np.isfinite(scores["beside"]).all()


@pytest.mark.parametrize("kept", [True, False])
def test_goes_on_with_the_parts_that_there_were(corpus, others, tmp_path, kept):
    """Parts are taken up with a checkpoint and not before, by whoever goes on with it."""
    args = {"backbone": {**ARGS["backbone"], "parts": 5}, "stft": {"n_fft": 256, "beside": 60.0}}
    settings = replace(SETTINGS, beside=1.0, absent=0.0)
    run = training(corpus, settings, {**NETWORK, "args": args}, others=others)
    run.advance()
    run.save(tmp_path / "checkpoint.pt")
    with others.index.open("a") as index:
        for name in "1", "2":
            np.save(others.folder / f"{name}.npy", np.zeros((1, 12000), np.int16))
            index.write(json.dumps({"file": f"{name}.npy", "samples": 12000}) + "\n")
    again = resume(tmp_path / "checkpoint.pt", corpus, StemCorpus(others.folder))
    assert (run.parts, again.parts) == (1, 1)
    for one, two in islice(zip(run._loader(), again._loader(), strict=True), 1, 8):
        assert torch.equal(one["other"], two["other"])
    run.refresh()
    assert run.parts == run.state()["parts"] == 3
    small = pieces.expand(pieces.compact(run.state()))
    assert small["parts"] == 3
    # A checkpoint from before they were counted goes on with all that there are.
    state = load_state(tmp_path / "checkpoint.pt")
    if not kept:
        del state["parts"]
    again.load(state)
    assert again.parts == (1 if kept else 3)
    assert "parts" in pieces.compact(state) or not kept


def test_options_that_a_run_that_goes_on_has_not(tmp_path):
    """Their values are compared as the run was begun, from nothing or from a model."""
    backbone = {**UNET["args"]["backbone"], "parts": 5}
    network = {"class": "UNet2dRegressor", "args": {**UNET["args"], "backbone": backbone}}
    fresh = Settings(beside=0.35, timbre=0.2)
    begun = [
        "--others", "x", "--beside", "0.35", "--timbre", "0.2",
        "--network", json.dumps(UNET["args"]["backbone"]),
    ]  # fmt: skip

    def settings_of(settings: Settings, *options: object) -> Settings:
        state = {"settings": asdict(settings), "network": network}
        needed = ["--corpus", "c", "--out", "o"]
        with main.make_context("train.py", [*needed, *map(str, options)]) as context:
            values = [context.params[name] for name in ("others", "initial", "beside")]
            return goes_on(state, *values)

    assert settings_of(fresh, *begun, "--steps", 7) == replace(fresh, steps=7)
    assert settings_of(fresh) == fresh
    without = replace(fresh, beside=0.0)
    assert settings_of(without, "--beside", 0.5) == without  # as at its start
    hub.save_model(tmp_path / "m", build(UNET["class"], UNET["args"]), {
        "name": "m", "summary": "", "network": UNET, "sample_rate": 22050, "kind": "regressor",
        "stems": ["bass", "drums", "guitar", "piano"], "level": 0.1, "licence": "CC0-1.0",
        "score": {},
    })  # fmt: skip
    from_model = replace(fresh, initial="m 0123")
    assert settings_of(from_model, "--initial", tmp_path / "m", "--network", "{}") == from_model
    for settings, options, had in (
        (fresh, ["--beside", 0.5, "--others", "x"], "--beside 0.35"),
        (fresh, ["--timbre", 0], "--timbre 0.2"),
        (fresh, ["--backbone", "TokenUNet"], "--backbone UNet2d"),
        (fresh, ["--network", "{}"], '--network {"bins"'),
        (fresh, ["--initial", tmp_path / "m"], "--initial none"),
        (from_model, ["--initial", "none"], "--initial m"),
        (without, ["--others", "x"], "no --others"),
    ):
        with pytest.raises(ClickException, match=f"this run has {re.escape(had)}"):
            settings_of(settings, *options)


def test_a_step_has_other_sounds_in_all_its_items_or_in_none(corpus, others):
    args = {"backbone": {**ARGS["backbone"], "parts": 5}, "stft": {"n_fft": 256, "beside": 60.0}}
    settings = replace(SETTINGS, beside=0.5, steps=12)
    run = training(corpus, settings, {**NETWORK, "args": args}, others=others)
    kinds = ["other" in batch for batch in islice(run._loader(), 12)]
    assert 0 < sum(kinds) < 12
    # Of two processes each has its half of the same steps.
    halves = []
    for rank in range(2):
        half = training(corpus, settings, {**NETWORK, "args": args}, others=others)
        half.processes = Processes(rank, 2, torch.device("cpu"))
        half.share = half.micro = 1
        halves.append(["other" in batch for batch in islice(half._loader(), 12)])
    assert halves == [kinds, kinds]


def test_without_other_sounds_there_are_none(corpus):
    run = training(corpus)
    assert "other" not in batch_of(run)
    assert run.advance()[0].shape == (2, 4)


def test_the_command_trains_goes_on_and_scores(corpus, others, tmp_path):
    for split in ("train", "valid"):
        (tmp_path / "songs" / split).mkdir(parents=True)
        (tmp_path / "parts" / split).mkdir(parents=True)
        for source, target in ((corpus, "songs"), (others, "parts")):
            for song in source.songs[: 1 if split == "valid" else None]:
                data = np.load(source.folder / song["file"])
                data = np.tile(data, 12 if split == "valid" else 1)
                np.save(tmp_path / target / split / song["file"], data)
                song = {**song, "samples": data.shape[1]}
                with (tmp_path / target / split / "index.jsonl").open("a") as index:
                    index.write(json.dumps(song) + "\n")
    network = {"bins": 1024, "channels": [4, 4, 4], "embedding": 8}
    out = tmp_path / "run"
    call = [
        "--corpus", tmp_path / "songs", "--others", tmp_path / "parts", "--out", out,
        "--network", json.dumps(network), "--seconds", 0.4, "--batch", 2, "--device", "cpu",
    ]  # fmt: skip
    for steps in (2, 4):
        result = CliRunner().invoke(main, [str(x) for x in (*call, "--steps", steps)])
        assert result.exit_code == 0, result.output
    assert "continues at step 2 of 4" in result.output
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    scores = [line["score"] for line in lines if "score" in line]
    assert len(scores) == 2
    assert {"bass", "bass, two given", "other, beside"} <= set(scores[0])
    assert set(lines[-2]["valid"]) == {"0 given", "2 given"}
    assert (out / "curves.png").exists()
    export(out / "checkpoint.pt", corpus, tmp_path / "model", "made by the command")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "\n| 2 |" in card
    assert "\n| 4 |" in card


UNET = {
    "class": "UNet2dRegressor",
    "args": {
        "backbone": {"bins": 128, "channels": [8, 8, 8], "embedding": 16}, "stft": {"n_fft": 256},
    },
}  # fmt: skip


def test_several_networks_make_one_model_and_come_apart_again(corpus, tmp_path):
    for name, network in (("one", NETWORK), ("two", UNET)):
        run = training(corpus, SETTINGS, network)
        run.advance()
        run.save(tmp_path / "checkpoint.pt")
        export(tmp_path / "checkpoint.pt", corpus, tmp_path / name, name, confidence=0.5)
    one, two = (hub.load_regressor(tmp_path / name) for name in ("one", "two"))

    def call(*args):
        return CliRunner().invoke(mean_command, [*map(str, args)])

    of = ("--of", tmp_path / "one", 0.25, "--of", tmp_path / "two", 0.75)
    assert call(tmp_path / "both", *of).exit_code == 0
    both = hub.load_regressor(tmp_path / "both")
    assert isinstance(both.regress, RegressorMean)
    clean, known = map(batch_of(run).get, ("clean", "known"))
    mix = clean.sum(1, keepdim=True)
    answer = both.regress(mix, clean, known)
    one_alone = one.regress(mix, clean, known)
    expected = 0.25 * one_alone + 0.75 * two.regress(mix, clean, known)
    assert torch.allclose(answer, expected, atol=1e-6)
    assert torch.allclose(answer.sum(1), mix[:, 0], atol=1e-5)
    assert torch.equal(answer[known], clean[known])
    crop = corpus.stems(0)[:, :8192] / np.float32(32768)
    assert np.isfinite(validate(both.regress, crop[None])["none"]).all()

    # A share for each stem: what the means leave of the mix goes to the stems that are not given.
    of = (
        "--of",
        tmp_path / "one",
        "0.25,0.25,1,0.25",
        "--of",
        tmp_path / "two",
        "0.75,0.75,0,0.75",
    )
    assert call(tmp_path / "by-stem", *of, "--dtype", "int8").exit_code == 0
    by_stem = hub.load_regressor(tmp_path / "by-stem")
    assert by_stem.info.config["weights"]["dtype"] == "int8"
    answer = by_stem.regress(mix, clean, known)
    assert torch.allclose(answer.sum(1), mix[:, 0], atol=1e-5)
    assert torch.equal(answer[known], clean[known])
    exact = torch.where(torch.tensor([0, 0, 1, 0])[:, None] > 0, one_alone, expected)
    rest = (mix[:, 0] - exact.sum(1)).norm()
    assert 0 < (answer - exact).norm() < 1.5 * rest

    with pytest.raises(ClickException, match="take it apart"):
        load_model(str(tmp_path / "both"))

    assert call(tmp_path / "parts", "--parts-of", tmp_path / "both").exit_code == 0
    for n, whole in enumerate((one, two)):
        again = hub.load_regressor(tmp_path / "parts" / f"both-{n}")
        assert again.sha256 == whole.sha256
        assert again.info.config["training"]["sha256"] == whole.sha256

    assert call(tmp_path / "eight", "--parts-of", tmp_path / "by-stem").exit_code == 0
    for folder, form, dtype in (("eight/by-stem-0", 1, "float16"), ("by-stem", 2, "int8")):
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert (config["format"], config["weights"]["dtype"]) == (form, dtype)
    call(tmp_path / "again", "--parts-of", tmp_path / "by-stem", "--dtype", "int8")
    part = hub.load_regressor(tmp_path / "again" / "by-stem-0")
    assert (part.info.config["format"], part.info.config["weights"]["dtype"]) == (2, "int8")

    louder = {**two.info.config, "level": 2 * two.level}
    hub.save_model(tmp_path / "louder", two.regress, louder, "float16")
    for arguments, message in (
        (
            (tmp_path / "x", "--of", tmp_path / "one", 0.5, "--of", tmp_path / "louder", 0.5),
            "differ in level",
        ),
        ((tmp_path / "x",), "either --of"),
        ((tmp_path / "x", "--of", tmp_path / "one", 1), "either --of"),
        ((tmp_path / "x", "--parts-of", tmp_path / "one"), "one network already"),
        ((tmp_path / "x", "--of", tmp_path / "one", 0.5, "--of", tmp_path / "two", 0.4), "add up"),
        (
            (tmp_path / "x", "--of", tmp_path / "both", 0.5, "--of", tmp_path / "one", 0.5),
            "apart first",
        ),
        (
            (tmp_path / "x", "--of", tmp_path / "one", "half", "--of", tmp_path / "two", 0.5),
            "'half' is no number",
        ),
    ):
        result = call(*arguments)
        assert result.exit_code != 0
        assert message in result.output
