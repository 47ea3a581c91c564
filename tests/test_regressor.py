"""Regressors: the network, the direct estimate, Gibbs with it, models of the two kinds."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import soundfile as sf
import torch
from click.testing import CliRunner
from conftest import make_prior
from oracles import GaussianRegressor
from torch import nn

from mgdm_audio import STEMS, Separator, hub, samplers
from mgdm_audio.cli import cli
from mgdm_audio.cost import QUALITIES, Calibration, calibrate, estimate
from mgdm_audio.denoise import CountingDenoiser, GaussianDenoiser
from mgdm_audio.draws import SeededDraws
from mgdm_audio.filters import LowPass
from mgdm_audio.metrics import si_sdr_improvement
from mgdm_audio.models import Models
from mgdm_audio.nn import SpectralRegressor, build
from mgdm_audio.operators import KnownStems, Mask, Mixture, Stack
from mgdm_audio.regress import WithRegressor
from mgdm_audio.samplers.base import Problem

SMALL = {
    "backbone": {
        "bins": 128, "channels": [8, 8], "blocks": [1, 1], "width": 16, "depth": 2,
        "embedding": 16,
    },
    "stft": {"n_fft": 256},
}  # fmt: skip

# --- the network -------------------------------------------------------------------------------


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = build("TokenUNetRegressor", SMALL)
    assert isinstance(net, SpectralRegressor)
    for p in net.parameters():  # away from the zero initialisation of the last layers
        nn.init.normal_(p, std=0.1)
    net.sigma_data.copy_(0.02 + 0.1 * torch.rand(net.sigma_data.shape))
    return net


def stems(samples=1000, batch=2):
    return 0.1 * torch.randn(batch, 4, samples, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("samples", [1, 63, 64, 1000])
@pytest.mark.parametrize("given", [[], [2], [0, 3], [0, 1, 3], [0, 1, 2, 3]])
def test_adds_up_to_the_mix_and_keeps_what_is_given(net, samples, given):
    x = stems(samples)
    known = torch.zeros(2, 4, dtype=torch.bool)
    known[:, given] = True
    out = net(x.sum(1, keepdim=True), x, known)
    assert out.shape == x.shape
    assert torch.equal(out[:, given], x[:, given])
    assert (out.sum(1) - x.sum(1)).abs().max() < 1e-6
    if len(given) == 3:
        assert (out - x).abs().max() < 1e-6
    elif len(given) < 3:
        assert (out - x).abs().max() > 1e-3


def test_does_not_read_what_is_not_given(net):
    x = stems()
    known = torch.tensor([[True, False, False, False], [False, False, True, True]])
    mix = x.sum(1, keepdim=True)
    other = torch.where(known[:, :, None], x, torch.full_like(x, 7.0))
    assert torch.equal(net(mix, x, known), net(mix, other, known))
    # ... but what is given counts for more than the rest it leaves.
    moved = x.clone()
    moved[1, 2], moved[1, 3] = x[1, 3], x[1, 2]
    assert not torch.allclose(net(mix, moved, known)[1, 0], net(mix, x, known)[1, 0], atol=1e-4)


def test_zero_backbone_is_the_wiener_filter(net):
    for p in net.parameters():
        nn.init.zeros_(p)
    net.sigma_data.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4])[:, None].expand(-1, 129))
    x = stems()
    mix = x.sum(1, keepdim=True)
    share = torch.tensor([1.0, 4, 9, 16])[:, None] / 30
    assert torch.allclose(net(mix, x, torch.zeros(2, 4).bool()), share * mix, atol=1e-6)
    known = torch.tensor([[False, True, False, True]]).expand(2, -1)
    rest = mix[:, 0] - x[:, 1] - x[:, 3]
    assert torch.allclose(net(mix, x, known)[:, 2], 0.9 * rest, atol=1e-6)


def test_confidence_is_a_way_from_the_wiener_filter_to_the_answer(net):
    x = stems()
    mix = x.sum(1, keepdim=True)
    known = torch.tensor([[False] * 4, [True, False, False, False]])
    answers = []
    for confidence in (0.0, 0.25, 1.0):
        net.confidence = confidence
        answers.append(net(mix, x, known))
        assert (answers[-1].sum(1) - mix[:, 0]).abs().max() < 1e-6
    wiener, quarter, whole = answers
    assert (whole - wiener).abs().max() > 1e-3
    assert torch.allclose(quarter, 0.75 * wiener + 0.25 * whole, atol=1e-6)
    with pytest.raises(ValueError, match="confidence must be"):
        build("TokenUNetRegressor", {**SMALL, "stft": {"n_fft": 256, "confidence": 1.5}})


def test_has_the_weights_of_the_denoiser(net):
    net.load_state_dict(build("TokenUNet", SMALL).state_dict())


def test_items_are_independent_and_gradients_finite(net):
    x = stems(2048).requires_grad_()
    known = torch.tensor([[False] * 4, [True, False, True, False]])
    mix = stems(2048).sum(1, keepdim=True)
    out = net(mix, x, known)
    assert torch.allclose(net(mix[1:], x[1:], known[1:]), out[1:], atol=1e-6)
    (slope,) = torch.autograd.grad(out[1, 1].square().sum(), x)
    assert torch.isfinite(slope).all()
    assert slope[1, 0].abs().max() > 0
    assert slope[0].abs().max() == slope[1, 3].abs().max() == 0


def test_network_refuses_shapes(net):
    with pytest.raises(ValueError, match="mix must have shape"):
        net(torch.zeros(2, 4, 8), torch.zeros(2, 4, 8), torch.zeros(2, 4).bool())
    with pytest.raises(ValueError, match="stems and known"):
        net(torch.zeros(2, 1, 8), torch.zeros(2, 4, 9), torch.zeros(2, 4).bool())
    with pytest.raises(ValueError, match="known"):
        build("TokenUNetRegressor", {**SMALL, "stft": {"n_fft": 256, "known": 3.0, "unknown": 1.0}})


# --- samplers, on exact answers ------------------------------------------------------------------


def gaussian():
    a = torch.randn(32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return GaussianDenoiser(torch.linspace(-1, 1, 32).double().reshape(4, 8), a @ a.T / 32)


def answer(name, problem, seeds=(1, 2), **settings):
    counted = CountingDenoiser(WithRegressor(GaussianRegressor(gaussian())))
    draws = SeededDraws(list(seeds), dtype=torch.float64)
    if name == "regressor":
        settings = {"speeds": 1, **settings}  # the oracle's prior is of so many samples
    return samplers.get(name, **settings).sample(counted, problem, draws), counted.calls


def observed():
    return torch.randn(2, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("name", ["regressor", "gibbs"])
def test_exact_answers_give_the_posterior_mean(name):
    """The mean is where Gibbs with means stays."""
    y = observed()
    x, _ = answer(name, Problem(Mixture(4), y, 0.0, (2, 4, 8)))
    for i in range(2):
        mean = gaussian().posterior(Mixture(4).matrix((4, 8)), y[i], 0.0).mean
        assert torch.allclose(x[i], mean, atol=1e-8)


@pytest.mark.parametrize("name", ["regressor", "gibbs"])
def test_given_stems_are_conditioned_on(name):
    y = torch.cat([observed(), 0.3 * observed(), -observed()], dim=1)
    operator = Stack([Mixture(4), KnownStems([2, 0])])
    x, _ = answer(name, Problem(operator, y, 0.0, (2, 4, 8)))
    assert torch.equal(x[:, [2, 0]], y[:, 1:])
    for i in range(2):
        mean = gaussian().posterior(operator.matrix((4, 8)), y[i], 0.0).mean
        assert torch.allclose(x[i], mean, atol=1e-8)


@pytest.mark.parametrize("name", ["regressor", "gibbs"])
def test_given_parts_are_put_in_their_place(name):
    keep = (torch.arange(8) < 3).expand(2, 4, 8).clone()
    keep[1, :, 2] = False
    true = torch.randn(2, 4, 8, dtype=torch.float64)
    y = torch.cat([true.sum(1, keepdim=True), true * keep], dim=1)
    x, _ = answer(name, Problem(Stack([Mixture(4), Mask(keep)]), y, 0.0, (2, 4, 8)))
    whole, _ = answer(name, Problem(Mixture(4), y[:, :1], 0.0, (2, 4, 8)))
    assert torch.allclose(x, torch.where(keep, true, whole))
    assert torch.allclose(x.sum(1), y[:, 0])


@pytest.mark.parametrize("name", ["regressor", "gibbs"])
def test_a_second_mix_without_a_stem_gives_it_to_the_network(name):
    """Whichever of the two comes first: the answer is the exact mean given both."""
    for gains in ([1, 1, 0, 1], [1, 1, 1, 2.5]):
        operator = Stack([Mixture(4, gains), Mixture(4)])
        y = observed().repeat(1, 2, 1) * torch.tensor([[[0.6], [1.0]]])
        x, _ = answer(name, Problem(operator, y, 0.0, (2, 4, 8)))
        for i in range(2):
            mean = gaussian().posterior(operator.matrix((4, 8)), y[i], 0.0).mean
            assert torch.allclose(x[i], mean, atol=1e-8)


@pytest.mark.parametrize("name", ["regressor", "gibbs"])
def test_other_sums_are_met_with_the_least_change(name):
    operator = Stack([Mixture(4), Mixture(4, [1, 0, 0, 2])])
    true = torch.randn(2, 4, 8, dtype=torch.float64)
    y = operator.forward(true)
    x, _ = answer(name, Problem(operator, y, 0.0, (2, 4, 8)))
    whole, _ = answer(name, Problem(Mixture(4), y[:, :1], 0.0, (2, 4, 8)))
    assert torch.allclose(operator.forward(x), y)
    change = x - whole
    assert torch.allclose(operator.range_projection(change), change, atol=1e-8)
    assert float((x - true).norm()) < float((whole - true).norm())


@pytest.mark.parametrize("name", ["regressor", "gibbs"])
@pytest.mark.parametrize(
    "operator",
    [Mixture(4, [1, 1, 2, 1]), KnownStems([0]), LowPass(8, 0.2)],
)
def test_other_observations_are_refused(name, operator):
    y = torch.zeros(2, operator.rows, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match="plain sum of the stems"):
        answer(name, Problem(operator, y, 0.0, (2, 4, 8)))


def test_schedule_is_the_published_annealing():
    """Share of kept stems at step n of N, whatever the constant alpha of the published form."""
    steps = 40

    class Record:
        def __init__(self):
            self.masks = []

        def regress(self, mix, x, known):
            self.masks.append(known)
            return torch.where(known[:, :, None], x, mix / 4)

    model = Record()
    problem = Problem(Mixture(4), torch.ones(500, 1, 1), 0.0, (500, 4, 1))
    x = samplers.get("gibbs", steps=steps).sample(model, problem, SeededDraws(range(500)))
    assert x.shape == (500, 4, 1)
    for alpha in (0.5, 0.95):
        top = (steps - 1) / steps
        low = top * (1 - alpha)
        for n in (0, 1, 10, 20, 30):
            mask = model.masks[n]
            kept = 1 - max(0, top - (n - 1) * (top - low) / (alpha * (steps - 1)))
            # Items with fewer than two stems to renew are not asked: 0 kept is binomial.
            none = float((mask.sum(1) == 0).sum()) / 500
            assert none == pytest.approx((1 - kept) ** 4, abs=0.07)
            assert mask.shape[0] == pytest.approx(
                500 * (1 - kept**4 - 4 * kept**3 * (1 - kept)) if n else 500, abs=60
            )
            assert mask.sum(1).max() <= 2


def test_gibbs_costs_less_than_planned_and_ends_on_the_constraint():
    y = observed()
    x, calls = answer("gibbs", Problem(Mixture(4), y, 0.0, (2, 4, 8)), steps=64)
    assert 0.4 * 128 < calls < 0.8 * 128
    assert torch.allclose(x.sum(1, keepdim=True), y)
    one, calls = answer("gibbs", Problem(Mixture(4), y, 0.0, (2, 4, 8)), steps=1)
    direct, _ = answer("regressor", Problem(Mixture(4), y, 0.0, (2, 4, 8)))
    assert calls == 2
    assert torch.equal(one, direct)


def test_gibbs_items_do_not_depend_on_their_company():
    y = observed()
    together, _ = answer("gibbs", Problem(Mixture(4), y, 0.0, (2, 4, 8)), (5, 6))
    alone, _ = answer("gibbs", Problem(Mixture(4), y[1:], 0.0, (1, 4, 8)), (6,))
    assert torch.equal(alone, together[1:])


def test_gibbs_refuses_no_steps():
    with pytest.raises(ValueError, match="steps = 0"):
        samplers.get("gibbs", steps=0)


# --- models --------------------------------------------------------------------------------------


class BandRegressor(nn.Module):
    """The Wiener filter of the powers of `conftest.BandGaussian`."""

    def forward(self, mix, x, known):
        f = torch.fft.rfftfreq(mix.shape[-1])
        centre = torch.tensor([0.0025, 0.3, 0.0115, 0.05])
        distance = (f[None] + 1e-3).log() - centre.log()[:, None]
        power = torch.where(known[:, :, None], 0, 0.01 * torch.exp(-2 * distance**2) + 1e-7)
        given = torch.where(known[:, :, None], x, 0)
        rest = torch.fft.rfft(mix - given.sum(1, keepdim=True))
        share = power / power.sum(1, keepdim=True).clamp_min(1e-20)
        return given + torch.fft.irfft(share * rest, n=mix.shape[-1])


def make_regressor(**changes):
    info = dataclasses.replace(
        make_prior().info, name="bands-regressor", kind="regressor", sigma_min=0.0, sigma_max=0.0
    )
    return hub.Regressor(BandRegressor(), dataclasses.replace(info, **changes))


@pytest.mark.parametrize("method", ["regressor", "gibbs"])
def test_separates(music, method):
    result = Separator(make_regressor(), method, "fast").separate(music.sum(0), 22050, seed=0)
    for name, true in zip(STEMS, music, strict=True):
        assert si_sdr_improvement(result.stems[name], true, music.sum(0)) > 10, name
    assert np.abs(sum(result.stems.values()) - music.sum(0)).max() < 1e-6
    assert result.settings["model"] == "bands-regressor"
    assert result.settings["seams"] == "fade"
    assert result.stats["calls"] >= 1


def test_warm_start_from_a_regressor(prior, music):
    options = {"warm_start": "regressor", "warm_sigma": 0.05, "regressor": make_regressor()}
    separator = Separator(prior, "ddnm", "fast", **options)
    result = separator.separate(music.sum(0), 22050, seed=0)
    for name, true in zip(STEMS, music, strict=True):
        assert si_sdr_improvement(result.stems[name], true, music.sum(0)) > 10, name
    assert result.settings["warm_start"] == "regressor"
    assert result.settings["sampler"]["sigma"] == 0.05
    planned = separator.sampler.cost().calls
    assert result.stats["calls"] == planned * result.stats["windows"]
    assert planned < samplers.get("ddnm", "fast").cost().calls


def test_samples_of_a_window_share_the_regressor_s_answer(prior, music):
    cheap = {"sigma_max": 0.3, "steps": 5, "repetitions": 1, "gradient_steps": ((0, 1),)}
    options = {"warm_start": "regressor", "warm_sigma": 0.3, "regressor": make_regressor()}
    separator = Separator(prior, window=16384, overlap=4096, average=2, **options, **cheap)
    result = separator.separate(music.sum(0), 22050, seed=0)
    cost = separator.sampler.cost()
    assert cost.shared == 3
    calls = result.stats["windows"] * (2 * (cost.calls - 3) + 3)
    assert result.stats["calls"] == estimate(separator, music.shape[1], 22050).calls == calls


def test_the_time_of_a_regressor_is_its_own(prior, music):
    options = {"warm_start": "regressor", "warm_sigma": 0.3, "regressor": make_regressor()}
    cheap = {"sigma_max": 0.3, "steps": 5, "repetitions": 1, "gradient_steps": ((0, 1),)}
    separator = Separator(prior, average=2, **options, **cheap)
    found = estimate(
        separator, music.shape[1], 22050, Calibration(call=1.0, vjp=10.0, regressor=100.0)
    )
    cost = separator.sampler.cost()
    own, scale = cost.calls - cost.vjps - 3, music.shape[1] / separator.song_settings.window
    assert scale < 1
    assert found.seconds == pytest.approx(scale * (2 * (own + 10 * cost.vjps) + 3 * 100))


def test_calls_of_a_regressor_that_samples_do_not_share(prior):
    """Block Gibbs asks it about stems of its own: each sample for itself."""
    cheap = {"sigma_max": 0.3, "steps": 5, "repetitions": 1, "gradient_steps": ((0, 1),)}
    options = {"warm_start": "gibbs:fast", "warm_sigma": 0.3, "regressor": make_regressor()}
    separator = Separator(prior, average=2, **options, **cheap)
    cost, window = separator.sampler.cost(), separator.song_settings.window
    assert (cost.regressor, cost.shared) == (8, 0)
    found = estimate(separator, window, 22050, Calibration(call=1.0, vjp=10.0, regressor=100.0))
    own = cost.calls - cost.vjps - 8
    assert found.seconds == pytest.approx(2 * (own + 10 * cost.vjps + 8 * 100))


def test_what_is_timed_is_what_is_asked(prior):
    asked = []

    def denoise(x, sigma):
        asked.append("gradient" if x.requires_grad else "prior")
        return prior.denoise(x, sigma)

    class Regress(BandRegressor):
        def forward(self, mix, x, known):
            asked.append("regressor")
            return super().forward(mix, x, known)

    heard = dataclasses.replace(prior, denoise=denoise)
    regress = dataclasses.replace(make_regressor(), regress=Regress())
    warm = {"warm_start": "regressor", "warm_sigma": 0.3, "regressor": regress}
    for separator, kinds in (
        (Separator(heard, "ddnm"), ["prior"]),
        (Separator(heard, "mgdm", "light", **warm), ["prior", "gradient", "regressor"]),
        (Separator(regress, "regressor"), ["regressor"]),
    ):
        asked.clear()
        found = calibrate(separator)
        assert asked == [kind for kind in kinds for _ in range(2)]  # the first one warms up
        told = {"prior": found.call, "gradient": found.vjp, "regressor": found.regressor}
        assert [kind for kind, seconds in told.items() if seconds] == kinds


def test_regressor_is_brought_to_the_prior_s_level(prior):
    """A network that answers at its own level alone."""
    seen = []

    class Listening(BandRegressor):
        def forward(self, mix, x, known):
            seen.append(float(mix.std()))
            return super().forward(mix, x, known)

    quiet = hub.Regressor(Listening(), make_regressor(level=prior.level / 4).info)
    model = Models(prior, quiet).asked()
    mix = torch.randn(1, 1, 4096)
    known = torch.tensor([[True, False, False, False]])
    x = torch.randn(1, 4, 4096)
    out = model.regress(mix, x, known)
    assert seen[0] == pytest.approx(float(mix.std()) / 4, rel=1e-5)
    assert torch.equal(out[:, 0], x[:, 0])
    assert torch.allclose(out, BandRegressor()(mix, x, known), atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p, r: Separator(r, "gibbs", regressor=r), "asks one regressor: give model or"),
        (lambda p, r: Separator(p, "regressor"), "'bands' is a prior, and a regressor is wanted"),
        (lambda p, r: Separator(p, "gibbs"), "'bands' is a prior"),
        (lambda p, r: Separator(r, "mgdm"), "is a regressor, and a prior is wanted"),
        (lambda p, r: Separator(p, "ddnm", warm_start="regressor"), "both the method and the"),
        (lambda p, r: Separator(p, "ddnm", warm_sigma=0.1), "both the method and the"),
        (
            lambda p, r: Separator(p, "ddnm", warm_start="gibbs", warm_sigma=0.1, regressor=p),
            "'bands' is a prior, and a regressor",
        ),
        (
            lambda p, r: Models(p, make_regressor(sample_rate=16000)),
            "choose two that are alike",
        ),
        (
            lambda p, r: Separator(p, "msdm", churn=60.0, sigma_max=15.0),
            "from .* to 21.*trained from 0.0003 to 20",
        ),
        (
            lambda p, r: Separator(p, "isdm", "fast", marginal_sigma=30.0),
            "to 30 with these settings",
        ),
        (lambda p, r: Separator(p, "daps", "paper"), "from 0.0001"),
    ],
)
def test_refusals(prior, make, message):
    with pytest.raises(ValueError, match=message):
        make(prior, make_regressor())


def test_configs_of_regressors(tmp_path):
    torch.manual_seed(0)
    network = build("TokenUNetRegressor", SMALL)
    config = {
        "kind": "regressor", "name": "r", "summary": "s", "sample_rate": 22050,
        "network": {"class": "TokenUNetRegressor", "args": SMALL},
        "stems": list(STEMS), "level": 0.1, "licence": "CC0-1.0", "score": {},
    }  # fmt: skip
    info = hub.save_model(tmp_path / "r", network, config)
    assert (info.kind, info.sigma_min, info.sigma_max) == ("regressor", 0.0, 0.0)
    x, known = stems(), torch.zeros(2, 4, dtype=torch.bool)
    mix = x.sum(1, keepdim=True)
    loaded = hub.load_regressor(tmp_path / "r")
    assert torch.allclose(loaded.regress(mix, x, known), network(mix, x, known), atol=1e-3)

    with pytest.raises(hub.ModelError, match="'kind' must be one of prior, regressor"):
        hub.save_model(tmp_path / "x", network, {**config, "kind": "oracle"})
    wrong = {**config, "kind": "prior", "sigma_min": 1e-3, "sigma_max": 1.0}
    hub.save_model(tmp_path / "wrong", network, wrong)
    with pytest.raises(hub.ModelError, match="is no prior"):
        hub.load(tmp_path / "wrong")


# --- the command line ----------------------------------------------------------------------------


def _run(*args):
    return CliRunner().invoke(cli, list(map(str, args)))


def test_command_line_begins_with_a_regressor(tmp_path, monkeypatch, prior, music):
    monkeypatch.setattr(hub, "load", lambda name, device="cpu": prior)
    monkeypatch.setattr(hub, "load_regressor", lambda name, device="cpu": make_regressor())
    song = tmp_path / "song.wav"
    sf.write(song, music.sum(0), 22050, subtype="FLOAT")
    options = ("-o", tmp_path / "out", "--filename", "{model}-{method}-{stem}.{ext}", "--json")
    plain = _run("separate", song, "--method", "regressor", *options)
    assert plain.exit_code == 0, plain.output
    assert (tmp_path / "out" / "regressor-regressor-bass.wav").exists()
    warm = ("--warm-start", "regressor", "--warm-sigma", 0.05)
    result = _run("separate", song, "--method", "ddnm", "--preset", "fast", *warm, *options)
    assert result.exit_code == 0, result.output
    bass, _ = sf.read(tmp_path / "out" / "default-ddnm-bass.wav")
    assert si_sdr_improvement(bass, music[0], music.sum(0)) > 10
    report = json.loads((tmp_path / "out" / "default-ddnm-report.json").read_text())
    assert '"warm_start": "regressor"' in json.dumps(report)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--quality", "fast"),
        ("--quality", "best"),
        ("--method", "regressor"),
        ("--warm-start", "gibbs", "--warm-sigma", "0.3"),
        ("--samples", "2"),
        ("--samples", "2", "--preset", "fast"),
        ("--known", "drums=song.wav", "--preset", "default"),
        ("--samples", "2", "--method", "gibbs"),
        ("--report",),
    ],
)
def test_the_regressor_that_is_named_is_asked(tmp_path, monkeypatch, prior, music, options):
    """And only it; what it would give is not waited for."""
    names = []

    def load(name, device="cpu"):
        names.append(name)
        raise hub.ModelError("that is enough")

    monkeypatch.setattr(hub, "load", lambda name, device="cpu": prior)
    monkeypatch.setattr(hub, "load_regressor", load)
    monkeypatch.chdir(tmp_path)
    song = tmp_path / "song.wav"
    sf.write(song, music.sum(0), 22050)
    result = _run("separate", song, "-o", tmp_path / "out", "--regressor", "mine", *options)
    assert "that is enough" in result.output
    assert names == ["mine"]


def test_the_quality_best_asks_the_larger_regressor():
    assert [QUALITIES[name]["regressor"] for name in ("fast", "default")] == [None, None]
    separator = Separator(**QUALITIES["best"])
    assert separator.models.regressor.name == QUALITIES["best"]["regressor"] == "regressor-large"
    assert separator.describe()["regressor"] == "regressor-large"


@pytest.mark.parametrize("name", list(QUALITIES))
def test_a_quality_is_what_it_stands_for(name):
    assert Separator(quality=name).describe() == Separator(**QUALITIES[name]).describe()


def test_a_quality_with_models_of_ones_own(prior):
    by_name = Separator(quality="best", regressor="regressor")
    assert by_name.describe()["regressor"] == "regressor"
    separator = Separator(prior, quality="fast", device="cpu", window=8192, overlap=2048)
    assert separator.prior is prior
    assert separator.describe()["warm_start"] == QUALITIES["fast"]["warm_start"]
    # A model alone is no quality.
    assert "warm_start" not in Separator(prior).describe()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": "x"}, "^unknown quality 'x'; there are fast, default, best$"),
        ({"quality": "x", "steps": 3}, "^unknown quality 'x'"),
        ({"quality": "default", "method": "mgdm"}, "^quality decides method; give one of them$"),
        ({"quality": "default", "preset": "light"}, "quality decides preset"),
        ({"quality": "default", "average": 2}, "quality decides average"),
        ({"quality": "default", "warm_start": "ddnm"}, "quality decides warm_start"),
        ({"quality": "default", "warm_sigma": 0.03}, "quality decides warm_sigma"),
        ({"quality": "default", "steps": 3}, "quality decides steps"),
    ],
)
def test_what_does_not_go_with_a_quality(prior, options, message):
    with pytest.raises(ValueError, match=message):
        Separator(prior, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--warm-start", "regressor"), "go together"),
        (("--regressor", "regressor", "--method", "dps"), "--regressor needs what asks one"),
        (
            ("--regressor", "regressor", "--warm-start", "ddnm", "--warm-sigma", "0.1"),
            "--regressor needs what asks one, and mgdm does not",
        ),
        (
            ("--regressor", "regressor", "--model", "regressor", "--method", "gibbs"),
            "--model and --regressor are the same for gibbs",
        ),
        (
            ("--regressor", "regressor", "--warm-start", "magic", "--warm-sigma", "0.1"),
            "unknown sampler 'magic'",
        ),
        (("--warm-sigma", "0.1"), "go together"),
        (("--quality", "fast", "--warm-start", "ddnm"), "--quality decides --warm-start"),
        (("--warm-start", "magic", "--warm-sigma", "0.1"), "unknown sampler 'magic'"),
        (("--method", "gibbs", "--warm-start", "ddnm", "--warm-sigma", "0.1"), "no noise levels"),
        (("--method", "gibbs", "--model", "default"), "is a prior, and a regressor is wanted"),
    ],
)
def test_command_line_refusals(tmp_path, music, options, message):
    song = tmp_path / "song.wav"
    sf.write(song, music.sum(0), 22050)
    result = _run("separate", song, "-o", tmp_path / "out", *options)
    assert result.exit_code in (1, 2)
    assert message in " ".join(result.output.split())


def test_models_says_what_they_are(tmp_path, monkeypatch):
    config = {
        "kind": "regressor", "name": "tiny", "summary": "s", "sample_rate": 22050,
        "network": {"class": "TokenUNetRegressor", "args": SMALL},
        "stems": list(STEMS), "level": 0.1, "licence": "CC0-1.0", "score": {},
    }  # fmt: skip
    hub.save_model(tmp_path / "tiny", build("TokenUNetRegressor", SMALL), config)
    monkeypatch.setenv(hub.PATH_VARIABLE, str(tmp_path))
    result = _run("models")
    assert "tiny  regressor  22050 Hz" in result.output
    assert "default  prior  22050 Hz" in result.output
