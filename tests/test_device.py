"""Nothing is forgotten on the CPU: methods and tasks on a device that is another one, where what
they give must be what they give on the CPU."""

import contextlib
import copy
import dataclasses

import numpy as np
import pytest
import torch
from conftest import make_prior
from elsewhere import elsewhere
from test_training import write_corpus

from mgdm_audio import STEMS, Separator, hub, samplers, separate
from mgdm_audio.conditional import generate, redo, separate_known, separate_pair
from mgdm_audio.cost import QUALITIES, calibrate
from mgdm_audio.draws import SeededDraws
from mgdm_audio.repair import repair
from mgdm_audio.samplers.base import Problem
from mgdm_audio.separate import resolve_device
from recipes.prior.train import PriorTask
from recipes.prior.train import Settings as PriorSettings
from recipes.regressor.train import RegressorTask
from recipes.regressor.train import Settings as RegressorSettings
from recipes.restoration.restore import METHODS, sampler_for
from recipes.restoration.tasks import NOISE, TASKS, make
from recipes.training.processes import Processes
from recipes.training.trainer import Runtime, Trainer

RATE = 22050
SMALL = {"window": 8192, "overlap": 1024, "precision": "float32", "batch": 1}


@pytest.fixture(autouse=True)
def taken(monkeypatch):
    """A device that autocast refuses, nothing here is in a half type, and that no user may name."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(separate, "resolve_device", torch.device)


@pytest.mark.parametrize("device", ["meta", torch.device("meta"), "xpu", "hpu:0", "nonsense"])
def test_other_devices_are_refused(device):
    with pytest.raises(ValueError, match=f"device '{device}'.*; use auto, cpu, cuda or cuda:N"):
        resolve_device(device)


def on(device):
    """The prior of the tests on a device."""
    prior = make_prior()
    return hub.Prior(copy.deepcopy(prior.denoise).to(device), prior.info)


def shorter(method):
    """Settings of few steps: they are all alike, and every operation takes its time here."""
    fields = {field.name for field in dataclasses.fields(samplers.sampler_class(method))}
    few = {"iterations": 3, "langevin_steps": 5}
    few["steps" if "steps" in fields else "levels"] = 5
    return {name: value for name, value in few.items() if name in fields}


def same_on_both(work):
    """`work(device)` gives the same arrays on the CPU and elsewhere."""
    expected = work(torch.device("cpu"))
    with elsewhere() as device:
        found = work(device)
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert any(np.abs(b).max() > 0 for b in expected)


def test_the_device_notices_what_was_forgotten():
    with elsewhere() as device:
        x = torch.zeros(3, device=device)
        assert (x + torch.tensor(1.0)).sum().item() == 3
        with pytest.raises(RuntimeError, match="operands on"):
            x + torch.ones(3)
        with pytest.raises(RuntimeError, match="operands on"):
            torch.where(torch.ones(3).bool(), x, x)
        y = torch.ones(3, device=device, requires_grad=True)
        (y * y).sum().backward()
        assert y.grad.cpu().tolist() == [2, 2, 2]


def test_noise_that_is_drawn_in_threads():
    def work(device):
        draws = SeededDraws([3, 4, 5], device)
        shapes = [((3, 2, 4096), None), ((2, 7), [0, 2]), ((3, 5), None)]
        return [draws.normal(shape, items).cpu().numpy() for shape, items in shapes]

    same_on_both(work)


@pytest.mark.parametrize("method", samplers.names())
def test_methods(method, music):
    """Two windows, the second of which is told the end of the first where the method takes that."""

    def work(device):
        asks_prior = "prior" in samplers.get(method, "fast").needs
        model = on(device) if asks_prior else None
        separator = Separator(model, method, "fast", device=device, **SMALL, **shorter(method))
        result = separator.separate(music.sum(0)[:12000], RATE, seed=0)
        return list(result.stems.values())

    same_on_both(work)


@pytest.mark.parametrize("options", [{}, {"seams": "fade"}, {"batch": 3, "other": -20.0}], ids=str)
def test_default_quality(options, music):
    """The shipped models, three windows of stereo at another rate."""
    quality = {k: v for k, v in QUALITIES["default"].items() if k != "average"}
    mix = np.stack([music.sum(0), music[1]])[:, :40000]

    def work(device):
        separator = Separator(device=device, **quality, **{**SMALL, **options})
        result = separator.separate(mix, 2 * RATE, seed=0)
        return list(result.stems.values())

    same_on_both(work)


@pytest.mark.parametrize(
    ("options", "songs", "batch"),
    [
        ({"average": 2}, 1, 2),
        ({"average": 2}, 3, 6),
        ({"average": 2}, 100, 8),
        ({"average": 2, "other": -20.0}, 100, 2),
        ({"seams": "fade"}, 1, 8),
    ],
)
def test_time_is_measured_on_batches_as_they_will_be(options, songs, batch):
    asked = []

    class Heard(torch.nn.Module):
        def forward(self, x, sigma):
            asked.append(len(x))
            return x

    def measure(device):
        prior = hub.Prior(Heard(), make_prior().info)
        options_of_both = {"seams": "condition", **SMALL, **options, "batch": 8}
        calibrate(Separator(prior, "ddnm", "fast", device=device, **options_of_both), songs)

    with elsewhere() as device:
        measure(device)
    assert set(asked) == {batch}
    asked.clear()
    measure("cpu")
    assert set(asked) == {1}


def known(separator, stems):
    return separate_known(separator, sum(stems.values()), {"drums": stems["drums"]}, RATE, [0])


def region(separator, stems):
    return redo(separator, stems, 0.2, 0.4, RATE, [0])


def pair(separator, stems):
    mix = sum(stems.values())
    gains = [[1, 1, 1, 1], [1, 0, 1, 1]]
    return separate_pair(separator, [mix, mix - stems["drums"]], gains, RATE, [0])


def accompaniment(separator, stems):
    return generate(separator, {"bass": stems["bass"]}, None, RATE, [0, 1])


@pytest.mark.parametrize("task", [known, region, pair, accompaniment])
def test_conditional(task, music):
    stems = dict(zip(STEMS, music[:, :12000], strict=True))

    def work(device):
        separator = Separator(on(device), "ding", "fast", device=device, **SMALL)
        return [x for drawn in task(separator, stems).draws for x in drawn.values()]

    same_on_both(work)


@pytest.mark.parametrize(
    ("kind", "method", "options"),
    [
        ("gap", "ding", {"way": "draw"}),
        ("gap", "ding", {"way": "estimate"}),
        ("gap", "ding", {"way": "estimate", "stem": "piano"}),
        ("clip", "mgdm", {"way": "draw", "level": 0.1}),
        ("lowpass", "mgdm", {"cutoff": 4000.0}),
        ("bits", "mgdm", {"bits": 5}),
    ],
)
def test_repairs(kind, method, options, music):
    mix = music.sum(0)[:12000].copy()
    if kind == "gap":
        mix[5000:5500] = 0

    def work(device):
        separator = Separator(on(device), method, "fast", device=device, **SMALL)
        regressor = hub.load_regressor(device=device)
        repaired = repair(separator, mix, RATE, kind, [0], regressor=regressor, **options)
        return repaired.samples

    same_on_both(work)


@pytest.mark.parametrize("name", TASKS)
def test_operators(name, music):
    """Every operator under every sampler that takes it."""
    stems = torch.from_numpy(music[:, 4000:8032])
    shape = (1, *stems.shape)

    def work(device):
        found = []
        for method in METHODS:
            sampler = sampler_for(method, name, "fast")
            if sampler is not None:
                sampler = dataclasses.replace(sampler, **shorter(method))
                task = make(name, stems, None, RATE, seed=0)
                problem = Problem(task.operator, task.y.to(device), NOISE, shape)
                draws = SeededDraws([0], device)
                x = sampler.sample(on(device).denoise, problem, draws)
                found.append(x.cpu().numpy())
        return found

    same_on_both(work)


@pytest.mark.parametrize(("kind", "hours"), [("prior", 0), ("regressor", 0), ("regressor", 0.01)])
def test_training(kind, hours, tmp_path):
    """Scalings, three steps, the scores on the way."""
    corpus = write_corpus(tmp_path)
    length = {"batch": 2, "samples": 4096}
    tokens = {"channels": [4, 4], "blocks": [1, 1], "width": 8, "depth": 1, "embedding": 8}
    crops = np.stack([corpus.stems(n)[:, :8192] / np.float32(32768) for n in range(2)])

    def work(device):
        if kind == "prior":
            args = {"backbone": {**tokens, "bins": 128}, "stft": {"n_fft": 256}}
            settings = PriorSettings(steps=3, **length)
            task = PriorTask(settings, {"class": "TokenUNet", "args": args}, corpus)
            task.crops = crops
        else:
            unet = {"bins": 128, "channels": [4, 4, 4], "embedding": 8, "parts": 5}
            args = {"backbone": unet, "stft": {"n_fft": 256, "beside": 60.0}}
            network = {"class": "UNet2dRegressor", "args": args}
            settings = RegressorSettings(steps=3, beside=0.5, **length)
            task = RegressorTask(settings, network, corpus, corpus, None, crops, crops[:, :1])
        run = Trainer(task, Processes(0, 1, device), Runtime(resident=hours))
        run.prepare()
        losses = [run.advance()[0].cpu().numpy() for _ in range(3)]
        run.average.eval()
        with torch.no_grad():
            found = {**task.validate(run.average), **task.score(run.average)}
        weights = [value.cpu().numpy() for value in run.state()["average"].values()]
        return [*map(np.nan_to_num, losses), np.nan_to_num([*found.values()]), *weights]

    same_on_both(work)
