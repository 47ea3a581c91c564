"""Full band and stereo: what is made of mono stems at 22.05 kHz, on songs with known stems.

True stems, brought to one channel and the prior's rate, stand for what a sampler gives; with
--leak, each gets some of the other stems, as a sampler's do. From these the ways are compared:

- gains: multichannel Wiener gains (what ``separate`` does, mgdm_audio/spread.py);
- mid: the mono stem in every channel;
- pan: the mono stem panned as the whole mix is, per band and time, the rest in proportion to the
  stems' powers;
- channels: each channel separated on its own (twice the work), upper band lost;
- residual: as channels, with the upper band in a stem of its own.

SDR (scale matters, both channels at once) of the stereo stems at 44.1 kHz: over the whole band,
and of the band above 11 kHz alone; "sum" is what the stems miss the mix by.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import songs
from mgdm_audio.audio import resample
from mgdm_audio.consistency import make_consistent
from mgdm_audio.spread import spread_stems

PRIOR_RATE = 22050
Stems = NDArray[np.float32]


def sdr(true: Stems, estimate: Stems) -> NDArray[np.float64]:
    """10 log10(|s|^2 / |s - e|^2) of each stem (K, C, T)."""
    error = np.square(true.astype(np.float64) - estimate).sum((1, 2))
    return 10 * np.log10(np.square(true.astype(np.float64)).sum((1, 2)) / (error + 1e-20))


def upper(x: Stems, rate: int) -> Stems:
    """What lies above the prior's band."""
    low = resample(resample(x, rate, PRIOR_RATE), PRIOR_RATE, rate, x.shape[-1])
    return (x - low).astype(np.float32)


def leaky(stems: Stems, leak: float) -> Stems:
    """Stems (K, T) with a part of the others, which add up as before."""
    return (stems * (1 - leak) + leak * (stems.sum(0) - stems) / (len(stems) - 1)).astype(
        np.float32
    )


def ways(true: Stems, rate: int, leak: float) -> dict[str, Stems]:
    """Estimates (K, C, T) by the way in which they were made."""
    mix, length = true.sum(0), true.shape[-1]

    def heard(x: Stems) -> Stems:
        """What a sampler would give of one channel, back at the song's rate."""
        low = torch.from_numpy(leaky(resample(x, rate, PRIOR_RATE), leak))
        low = make_consistent(low, torch.from_numpy(resample(x.sum(0), rate, PRIOR_RATE)))
        return resample(low.numpy(), PRIOR_RATE, rate, length)

    mono = heard(true.mean(1))
    apart = np.stack([heard(true[:, c]) for c in range(true.shape[1])], axis=1)
    channels = torch.from_numpy(mix)
    return {
        "gains": spread_stems(torch.from_numpy(mono), channels, rate, PRIOR_RATE).numpy(),
        "mid": np.repeat(mono[:, None], len(mix), 1),
        "pan": panned(mono, mix),
        "channels": apart,
        "residual": apart,
    }


def panned(mono: Stems, mix: Stems) -> Stems:
    """The mono stems panned like the mix, the rest by the stems' powers in each bin."""
    window = torch.hann_window(2048)

    def transform(x: Stems) -> torch.Tensor:
        return torch.stft(torch.from_numpy(x), 2048, 512, window=window, return_complex=True)

    s, y = transform(mono), transform(mix)
    m = s.sum(0)

    def mean(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool1d(x, 5, 1, 2)

    power = mean(m.abs().square()[None]) + 1e-9
    cross = y * m.conj()
    pan = torch.complex(mean(cross.real), mean(cross.imag)) / power
    share = mean(s.abs().square()) + 1e-12
    share = share / share.sum(0)
    x = pan * s[:, None] + share[:, None] * (y - pan * m)
    wave = torch.istft(x.flatten(0, 1), 2048, 512, window=window, length=mix.shape[-1])
    return wave.unflatten(0, x.shape[:2]).numpy()


@click.command(help=__doc__)
@click.option("--songs", "count", default=4, show_default=True)
@click.option("--seconds", default=12.0, show_default=True)
@click.option("--leak", default=0.0, show_default=True, help="Part of the others in each stem.")
@click.option("--soundfont", type=click.Path(path_type=Path), default=songs.SOUNDFONT)
def main(count: int, seconds: float, leak: float, soundfont: Path) -> None:
    scores: dict[str, list[NDArray[np.float64]]] = {}
    for seed in range(count):
        stems, rate = songs.song(seed, seconds, soundfont=soundfont)
        true = np.stack(list(stems.values()))
        for way, estimate in ways(true, rate, leak).items():
            extra = true.sum(0) - estimate.sum(0) if way == "residual" else 0
            miss = np.abs(true.sum(0) - estimate.sum(0) - extra).max()
            row = np.stack([
                sdr(true, estimate), sdr(upper(true, rate), upper(estimate, rate)),
                np.full(len(true), 20 * np.log10(miss + 1e-12)),
            ])  # fmt: skip
            scores.setdefault(way, []).append(row)
        click.echo(f"song {seed}", err=True)
    click.echo("| way | " + " | ".join(songs.STEMS) + " | mean | above 11 kHz | sum, dB |")
    click.echo("| --- |" + " ---: |" * (len(songs.STEMS) + 3))
    for way, rows in scores.items():
        mean = np.mean(rows, axis=0)
        cells = [*mean[0], mean[0].mean(), mean[1].mean(), mean[2].mean()]
        click.echo(f"| {way} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
