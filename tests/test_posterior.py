"""Draws given any evidence: closed forms, what must come out exact, windows, seeds."""

import pytest
import torch
from posteriors import K, exact_posterior, oracle

from mgdm_audio.degradations import Clip
from mgdm_audio.evidence import Evidence
from mgdm_audio.filters import LowPass
from mgdm_audio.posterior import DEFAULTS, active_level, draw, separator_for
from mgdm_audio.separate import Separator

T = 16
SONG = oracle(T).prior.denoise.draw(5)
MIX = SONG.sum(0)
GAP = torch.ones(T).bool()
GAP[6:10] = False
OUTSIDE = GAP
WHOLE = Evidence(K, T)


def outside(song=SONG):
    evidence = WHOLE.with_sum(song.sum(0))
    for k in range(K):
        evidence = evidence.with_stem(k, song[k], OUTSIDE)
    return evidence


EVIDENCE = {
    "nothing": WHOLE,
    "mix": WHOLE.with_sum(MIX),
    "known": WHOLE.with_sum(MIX).with_stem(1, SONG[1]),
    "given": WHOLE.with_stem(0, SONG[0]),
    "region": outside(),
    "two_mixes": WHOLE.with_sum(MIX).with_sum(MIX - SONG[2], [1, 1, 0, 1]),
    "gap_in_the_mix": WHOLE.with_sum(torch.where(GAP, MIX, 0), keep=GAP),
    "gap_in_a_stem": WHOLE.with_sum(torch.where(GAP, SONG[3], 0), [0, 0, 0, 1], keep=GAP),
    "lowpass_mix_and_stem": WHOLE.with_sum(
        LowPass(T, 0.2).forward(MIX[None, None])[0, 0],
        damage=lambda y: LowPass(y.shape[2], 0.2),
        noise=1e-3,
    ).with_stem(0, SONG[0]),
}


@pytest.mark.parametrize("name", EVIDENCE)
def test_draws_have_the_moments_of_the_closed_form(name):
    """150 draws; the budget is what DING costs on top of the noise of estimating."""
    evidence, separator, n = EVIDENCE[name], oracle(T, preset="default"), 150
    exact = exact_posterior(separator, evidence)
    x = draw(separator, evidence, range(n)).stems.double()
    variance = exact.cov.diagonal().reshape(K, T)
    total = variance.sum()
    bias = (x.mean(0) - exact.mean).square().sum() / total
    # Stems that are given around a gap tie it more tightly than a method by steps can follow.
    assert bias < 1 / n + (0.5 if name == "region" else 0.1)
    assert 0.7 < x.var(0).sum() / total < (1.4 if name == "region" else 1.15)
    # Each bit of the posterior that matters has its own spread, not only their sum.
    _, basis = torch.linalg.eigh(exact.cov)
    top = basis[:, -3:]
    along = (x.flatten(1) @ top).var(0) / (top * (exact.cov @ top)).sum(0)
    assert bool(((along > 0.5) & (along < (2.3 if name == "region" else 1.7))).all())
    # Conditioning shrinks: without the evidence, this would not hold.
    if evidence is not WHOLE:
        prior = separator.prior.denoise.exact.cov.diagonal().sum()
        assert x.var(0).sum() < 0.95 * prior


@pytest.mark.parametrize("method", ["mgdm", "ding"])
@pytest.mark.parametrize("name", ["known", "region", "two_mixes", "gap_in_the_mix"])
def test_what_is_exact_comes_out_exact(name, method):
    evidence = EVIDENCE[name]
    (x,) = draw(oracle(T, method, "fast"), evidence, [3]).stems
    for s in evidence.sums:
        keep = torch.ones(T).bool() if s.keep is None else s.keep
        total = (torch.tensor(s.gains)[:, None] * x).sum(0)
        assert torch.allclose(total[keep], s.signal[keep], atol=1e-6)
    if evidence.keep is not None:
        assert torch.equal(x[evidence.keep], evidence.known[evidence.keep])


def test_a_draw_is_its_seed_s_whatever_its_company():
    separator = oracle(T, "mgdm", "fast")
    seeds = [4, 9, 2**40]
    together = draw(separator, EVIDENCE["known"], seeds).stems
    for seed, x in zip(seeds, together, strict=True):
        assert torch.equal(draw(separator, EVIDENCE["known"], [seed]).stems[0], x)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_windows_go_on_from_each_other(music, prior):
    mix = torch.from_numpy(music.sum(0))
    evidence = Evidence(K, len(mix)).with_sum(mix).with_stem(0, torch.from_numpy(music[0]))
    separator = Separator(prior, "ding", "fast", window=16384, overlap=4096, precision="float32")
    told = []
    result = draw(separator, evidence, [1, 2], lambda done, total: told.append((done, total)))
    assert result.stems.shape == (2, K, len(mix))
    assert torch.allclose(result.stems.sum(1), mix.expand(2, -1), atol=1e-5)
    assert torch.equal(result.stems[:, 0], torch.from_numpy(music[0]).expand(2, -1))
    assert result.windows == 4
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] == result.windows * 2 * separator.sampler.cost().calls
    assert result.calls == told[-1][1]
    again = draw(separator, evidence, [2]).stems[0]
    assert torch.equal(again, result.stems[1])


DAMAGED = {
    "lowpass": {"damage": lambda y: LowPass(y.shape[2], 0.1), "noise": 1e-3},
    "bits": {"noise": 1e-3},
}


@pytest.mark.parametrize(
    ("kind", "method", "seams"),
    [
        *(("lowpass", m, "fade") for m in ("ding", "ddnm", "diffpir", "pgdm", "pnpdm", "reddiff")),
        ("lowpass", "mgdm", "condition"),
        ("bits", "ddnm", "fade"),
        ("bits", "diffpir", "condition"),
    ],
)
def test_windows_that_cannot_be_told_are_cross_faded(kind, method, seams, music, prior):
    """Filters and different noises beside the window before: they failed from the second on."""
    mix = torch.from_numpy(music.sum(0)[4000:10000])
    if kind == "lowpass":
        mix = LowPass(len(mix), 0.1).forward(mix[None, None])[0, 0]
    evidence = Evidence(K, len(mix)).with_sum(mix, **DAMAGED[kind])
    separator = Separator(
        prior, method, "fast", window=4096, overlap=1024, precision="float32", sigma_max=1.0
    )
    result = draw(separator, evidence, [0])
    assert (result.windows, result.seams) == (2, seams)
    assert float(result.stems.abs().max()) < 3
    error = evidence.window(0, len(mix)).operator.forward(result.stems) - mix
    assert float(error.square().mean()) < 0.2 * float(mix.square().mean())


def test_fading_is_heeded(music, prior):
    """Windows that fade are what they are alone."""
    mix = torch.from_numpy(music.sum(0)[4000:10000])
    evidence = Evidence(K, len(mix)).with_sum(mix)
    options = {"window": 4096, "overlap": 1024, "precision": "float32"}
    told, faded = (
        draw(Separator(prior, "ding", "fast", seams=seams, **options), evidence, [0])
        for seams in ("condition", "fade")
    )
    assert (told.seams, faded.seams) == ("condition", "fade")
    assert torch.equal(told.stems[..., :2000], faded.stems[..., :2000])
    assert not torch.allclose(told.stems[..., 4096:], faded.stems[..., 4096:], atol=1e-3)
    assert torch.allclose(faded.stems.sum(1), mix[None], atol=1e-6)


def test_windows_that_nobody_asked_for_are_not_drawn(music, prior):
    mix = torch.from_numpy(music.sum(0)[:12000])
    evidence = Evidence(K, len(mix)).with_sum(mix)
    wanted = torch.zeros(len(mix)).bool()
    wanted[5000:5100] = True
    options = {"window": 4096, "overlap": 1024, "precision": "float32", "seams": "fade"}
    separator = Separator(prior, "ding", "fast", **options)
    told = []
    some = draw(separator, evidence, [0], lambda *a: told.append(a), wanted)
    whole = draw(separator, evidence, [0])
    assert (some.windows, whole.windows) == (1, 4)
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]
    assert torch.equal(some.stems[..., wanted], whole.stems[..., wanted])


def test_silence_is_not_sampled():
    separator = oracle(T)
    result = draw(separator, WHOLE.with_sum(torch.zeros(T)), [0])
    assert not result.stems.any()
    assert result.calls == result.windows == 0
    # Silence in a part of the stems' sum says nothing of the others.
    assert draw(separator, WHOLE.with_sum(torch.zeros(T), [1, 0, 0, 0]), [0]).calls > 0


def test_one_stem_is_the_mix(prior):
    """K = 1: what is observed is what comes out, by any sampler."""
    from dataclasses import replace

    from mgdm_audio import hub
    from mgdm_audio.denoise import GaussianDenoiser

    class One(torch.nn.Module):
        exact = GaussianDenoiser(torch.zeros(1, T).double(), 0.01 * torch.eye(T).double())

        def forward(self, x, sigma):
            return self.exact(x.double(), sigma.double()).to(x)

    single = hub.Prior(One(), replace(prior.info, stems=("all",)))
    for method in ("mgdm", "ding", "ddnm", "daps"):
        separator = Separator(single, method, "fast", window=T, overlap=0, precision="float32")
        (x,) = draw(separator, Evidence(1, T).with_sum(MIX), [0]).stems
        assert torch.allclose(x[0], MIX, atol=1e-6)


def test_a_clipped_mix_is_taken_by_gradient_samplers_and_refused_by_others():
    y = Clip(0.1).forward(MIX)
    evidence = WHOLE.with_sum(y, damage=lambda window: Clip.seen_in(window, 0.1), noise=1e-3)
    x = draw(oracle(T, "mgdm", "best"), evidence, range(8)).stems.sum(1)
    cut = y.abs() >= 0.1
    kept_error = (x - y)[:, ~cut].square().mean().sqrt()
    assert kept_error < 0.02
    assert bool(((x * y.sign())[:, cut].mean(0) > 0.09).all())
    with pytest.raises(ValueError, match="linear"):
        draw(oracle(T, "ding", "fast"), evidence, [0])


def test_a_gap_in_a_clipped_mix_is_not_looked_at():
    damaged = torch.where(GAP, Clip(0.1).forward(MIX), 0)
    seen = [
        WHOLE.with_sum(
            y, keep=GAP, damage=lambda window: Clip.seen_in(window, 0.1), noise=1e-3
        ).window(0, T)
        for y in (damaged, torch.where(GAP, damaged, 7.0))
    ]
    assert torch.equal(seen[0].y, seen[1].y)
    x = torch.randn(1, K, T, generator=torch.Generator().manual_seed(0))
    assert not seen[0].operator.forward(x)[0, 0, ~GAP].any()


def test_active_level_leaves_silence_out():
    tone = torch.cat([torch.zeros(22050), 0.5 * torch.ones(22050)])
    assert active_level(tone, 22050) == pytest.approx(0.5)
    assert active_level(torch.zeros(100), 22050) == 0
    assert active_level(tone[-20:], 22050) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: WHOLE.with_sum(torch.zeros(T + 1)), "expected"),
        (lambda: WHOLE.with_sum(torch.zeros(T), [1.0]), "1 gains"),
        (lambda: WHOLE.with_stem(4, torch.zeros(T)), "stem 4"),
        (lambda: WHOLE.with_stem(0, torch.zeros(3)), "shape"),
        (lambda: draw(oracle(T), WHOLE, []), "no seeds"),
        (lambda: draw(oracle(T, other=-20.0), WHOLE, [0]), "leave them out"),
        (lambda: draw(oracle(T, residual=True), WHOLE, [0]), "leave them out"),
    ],
)
def test_errors_say_what_was_expected(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_a_start_that_the_preset_has_levels_for(prior):
    """A low start from the regressor by the preset made for it; a high one by others; none where
    there is no regressor for the prior."""
    known = separator_for("known", precision="float32")
    assert known.preset == "warm"
    assert known.sampler.sigma == DEFAULTS["known"]["warm_sigma"] == 0.03
    best = separator_for("known", preset="best", precision="float32")
    assert best.preset == "best"
    assert best.sampler.sigma == DEFAULTS["redo"]["warm_sigma"] == 0.3
    ddnm = separator_for("known", method="ddnm", precision="float32")
    assert (ddnm.preset, ddnm.sampler.sigma) == ("default", 0.3)
    alone = separator_for("also", prior, precision="float32")
    assert alone.preset == "default"
    assert alone.sampler.name == "mgdm"
