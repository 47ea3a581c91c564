"""Channels and upper band: sums, places, air, and blocks that do not show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mgdm_audio import spread
from mgdm_audio.audio import resample
from mgdm_audio.spread import spread_stems

RATE, PRIOR = 44100, 22050


def band(x, low, high):
    bins = np.fft.rfft(x)
    f = np.fft.rfftfreq(len(x), 1 / RATE)
    bins[(f < low) | (f > high)] = 0
    return np.fft.irfft(bins, len(x))


def heard(x):
    """What the prior hears of (..., T): one channel's worth, band limited."""
    return resample(resample(x, RATE, PRIOR), PRIOR, RATE, x.shape[-1])


def sdr(true, estimate):
    return 10 * np.log10((true**2).sum((1, 2)) / ((true - estimate) ** 2).sum((1, 2)))


@pytest.fixture(scope="module")
def song():
    """Four panned stems (4, 2, T): low noise, clicks with treble, two swelling noises."""
    rng = np.random.default_rng(0)
    t = np.arange(2 * RATE) / RATE
    noise = rng.standard_normal((4, t.size))
    stems = [
        0.1 * band(noise[0], 50, 400),
        0.3 * noise[1] * np.exp(-((t * 4) % 1) * 25),
        0.1 * band(noise[2], 300, 4000) * (1 + np.sin(2 * np.pi * 1.3 * t)),
        0.05 * band(noise[3], 500, 14000) * (1 + np.sin(2 * np.pi * 0.7 * t + 1)),
    ]
    pans = [(1, 1), (1.1, 0.9), (1.7, 0.3), (0.4, 1.6)]
    return np.stack([np.outer(p, s) for p, s in zip(pans, stems, strict=True)]).astype(np.float32)


def divide(true):
    mono = torch.from_numpy(heard(true.mean(1)).astype(np.float32))
    return spread_stems(mono, torch.from_numpy(true.sum(0)), RATE, PRIOR).numpy()


def test_panned_stems_find_their_places_and_their_air(song):
    estimate = divide(song)
    assert np.abs(estimate.sum(0) - song.sum(0)).max() < 1e-6
    assert sdr(song, estimate).min() > 30
    assert sdr(song, heard(song.mean(1))[:, None]).min() < 5
    air, found = song - heard(song), estimate - heard(estimate)
    assert sdr(air, found)[[1, 3]].min() > 20


def test_a_click_keeps_its_air_in_mono(song):
    mono = song.mean(1, keepdims=True)
    estimate = divide(mono)
    assert np.abs(estimate.sum(0) - mono.sum(0)).max() < 1e-6
    assert sdr(mono - heard(mono), estimate - heard(estimate))[[1, 3]].min() > 6


def test_the_mean_of_the_channels_is_what_the_posterior_said(song):
    mono, found = heard(song.mean(1)), divide(song).mean(1)
    # Clear of the end of the prior's band, and of where the recording begins and ends.
    window = np.hanning(mono.shape[1]) ** 4
    for true, ours in zip(mono, found, strict=True):
        rest = band(window * (ours - true), 0, 9000)
        assert np.sqrt(np.mean(rest**2)) < 1e-3 * np.sqrt(np.mean(true**2))


@pytest.mark.parametrize(
    ("rate", "channels", "length"),
    [
        (8000, 1, 1),
        (8000, 3, 20011),
        (22050, 2, 2),
        (44100, 1, 997),
        (48000, 6, 20011),
        (192000, 2, 30011),
        (192000, 8, 1),
    ],
)
def test_sums_for_any_rate_channels_and_length(rate, channels, length):
    rng = np.random.default_rng(length)
    y = torch.from_numpy(0.1 * rng.standard_normal((channels, length))).float()
    stems = torch.from_numpy(0.1 * rng.standard_normal((4, length))).float()
    stems = stems + (y.mean(0) - stems.sum(0)) / 4
    out = spread_stems(stems, y, rate, PRIOR)
    assert out.shape == (4, channels, length)
    assert (out.sum(0) - y).abs().max() < 2e-6


def test_a_silent_channel_stays_silent_and_channels_are_not_swapped(song):
    left = song.copy()
    left[:, 1] = 0
    assert np.abs(divide(left)[:, 1]).max() < 1e-7
    swapped = divide(song[:, ::-1].copy())
    assert np.abs(swapped[:, ::-1] - divide(song)).max() < 1e-4


def test_silent_stems_leave_the_mix_to_be_shared():
    y = torch.randn(2, 9000, generator=torch.Generator().manual_seed(0)) * 0.1
    y[1] = -y[0]
    out = spread_stems(torch.zeros(3, 9000), y, RATE, PRIOR)
    assert bool(torch.isfinite(out).all())
    assert (out.sum(0) - y).abs().max() < 1e-6


def test_seams_of_blocks_do_not_show(song, monkeypatch):
    whole = divide(song)
    monkeypatch.setattr(spread, "_BLOCK", 128)
    blocks = divide(song)
    assert np.abs(blocks.sum(0) - song.sum(0)).max() < 1e-6
    assert sdr(whole, blocks).min() > 30
    # The largest step from sample to sample, which a click would raise.
    steps = [np.abs(np.diff(x, 2, axis=-1)).max() for x in (whole[0], blocks[0])]
    assert steps[1] < 1.5 * steps[0] + 1e-4


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("level", [1e-2, 1e-4, 1e-7])
def test_quiet_recordings_with_silence_in_them(channels, level):
    """Squares of their powers leave single precision; the stems scale with the recording."""
    t = torch.arange(3 * 44_100) / 44_100
    tone = torch.where(t < 0.5, torch.sin(2 * torch.pi * 440 * t), 0)
    stems = torch.stack([tone, 0.5 * tone, 0 * tone, 0 * tone])
    mix = stems.sum(0).expand(channels, -1)

    out = spread_stems(level * stems, level * mix, 44_100, 22_050)
    assert torch.isfinite(out).all()
    # Of a power of two the same bits would come out.
    assert torch.allclose(out / level, spread_stems(stems, mix, 44_100, 22_050), atol=1e-4)


def test_silence_is_silence_in_every_stem():
    """Also where the stems that were made of it are none: there is nothing to be learnt."""
    for channels in (1, 2):
        silent = torch.zeros(channels, 20_000)
        for stems in (torch.randn(3, 20_000), torch.zeros(3, 20_000)):
            assert torch.equal(
                spread_stems(stems, silent, RATE, PRIOR), torch.zeros(3, channels, 20_000)
            )


def test_what_is_all_but_silent_still_adds_up():
    y = 1e-30 * torch.randn(2, 9000, generator=torch.Generator().manual_seed(0))
    out = spread_stems(y.mean(0).expand(2, -1) / 2, y, RATE, PRIOR)
    assert (out.sum(0) - y).abs().max() < 1e-5 * y.abs().max()


def test_many_channels_are_solved_some_frames_at_a_time(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    y = 0.1 * torch.randn(12, 9000, generator=generator)
    stems = 0.1 * torch.randn(4, 9000, generator=generator)
    whole = spread_stems(stems, y, RATE, PRIOR)
    sizes = []

    def counted(a, b, solve=torch.linalg.solve):
        if a.ndim == 4:
            sizes.append(a.numel())
        return solve(a, b)

    monkeypatch.setattr(torch.linalg, "solve", counted)
    monkeypatch.setattr(spread, "_ENTRIES", 300_000)
    assert torch.equal(spread_stems(stems, y, RATE, PRIOR), whole)
    assert len(sizes) > 3
    assert max(sizes) <= 300_000
