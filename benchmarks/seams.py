"""Compares the ways in which neighbouring windows are made to agree, on songs with known stems.

The windows are much shorter than usual, so that there are many seams. For each way it prints:

- overlap: what two neighbours disagree on where they overlap (up to the end of the fade), relative
  to what is there, in dB. Independent draws of the same stem would give about +3 dB.
- level: how much the level of a stem (0.1 s) is lower in the middle of a fade than beside it, in
  dB, active stems alone. Cross-fading draws that do not agree loses up to 3 dB.
- flux: spectral flux of the stems at the seams relative to elsewhere in the same stems; 1 means
  that the seams cannot be found by it. "true" gives the same of the true stems at these places.
- swaps: neighbouring pairs of windows between which the order of guitar and piano that fits the
  true stems best changes, of those where either is heard in both.
- SI-SDRi of the active stems over the whole crop.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.speed import models
from mgdm_audio import Separator
from mgdm_audio.cost import QUALITIES
from mgdm_audio.metrics import level_db, si_sdr, si_sdr_improvement
from mgdm_audio.recording import ArraySource
from mgdm_audio.song import SEAMS, Song
from mgdm_audio.store import MemoryStore

RATE = 22050
GUITAR, PIANO = 2, 3


def flux(stems: np.ndarray, middles: list[int]) -> tuple[float, float]:
    """Mean spectral flux of stems (K, T) within 0.1 s of the middles, and elsewhere."""
    x = torch.from_numpy(stems)
    window = torch.hann_window(1024)
    power = torch.stft(x, 1024, 256, window=window, return_complex=True).abs().square()
    floor = power.mean((1, 2), keepdim=True) * 1e-3 + 1e-12
    change = (power + floor).log().diff(dim=-1).abs().mean(1)  # (K, frames)
    time = torch.arange(change.shape[1]) * 256 + 128
    near = torch.zeros(change.shape[1], dtype=torch.bool)
    for middle in middles:
        near |= (time - middle).abs() < RATE // 10
    return float(change[:, near].mean()), float(change[:, ~near].mean())


def dip(stems: np.ndarray, fades: list[tuple[int, int]]) -> list[float]:
    """How far the level in the middle of each fade is below that at its two ends, in dB."""
    half = RATE // 20
    found = []
    for low, high in fades:
        middle = (low + high) // 2
        for stem in stems:
            at = [
                np.sqrt(np.mean(np.square(stem[max(0, t - half) : t + half])))
                for t in (low - half, middle, high + half)
            ]
            if min(at) > 10 ** (-45 / 20):
                found.append(float(20 * np.log10(at[1] / np.sqrt(at[0] * at[2]))))
    return found


def measure(separator: Separator, stems: np.ndarray, seed: int) -> dict[str, object]:
    """Separates the mix of stems (4, T) and measures its seams."""
    mix = stems.sum(0, dtype=np.float32)[None]
    store = MemoryStore()
    song = Song(ArraySource(mix, RATE), separator.song_settings, seed, store, 1)
    song.scan()
    ((_, error),) = separator.run([song])
    if error is not None:
        raise error
    windows = [store.get(f"window-{i:06d}") for i in range(song.windows)]
    estimate = torch.cat([part for part, _ in song.output()], dim=-1)[:, 0].numpy()
    starts, fades = song.plan.starts, song.plan.fades()
    disagreement, swaps, pairs = [], 0, 0
    orders: list[bool | None] = []
    for i, window in enumerate(windows):
        true = stems[:, starts[i] : starts[i] + song.plan.size]
        orders.append(_swapped(window.numpy(), true) if window is not None else None)
        if i == 0 or window is None or windows[i - 1] is None:
            continue
        a = windows[i - 1][:, starts[i] - starts[i - 1] : fades[i - 1][1] - starts[i - 1]]
        b = window[:, : a.shape[1]]
        disagreement.append(float((a - b).square().sum() / (0.5 * (a**2 + b**2).sum())))
        if orders[i] is not None and orders[i - 1] is not None:
            pairs += 1
            swaps += orders[i] != orders[i - 1]
    middles = [(low + high) // 2 for low, high in fades]
    active = level_db(stems) > level_db(mix[0]) - 40
    gains = si_sdr_improvement(estimate[active], stems[active], mix[0])
    near, far = flux(estimate, middles)
    true_near, true_far = flux(stems, middles)
    return {
        "overlap": disagreement,
        "level": dip(estimate, fades),
        "true_level": dip(stems, fades),
        "flux": near / far,
        "true_flux": true_near / true_far,
        "swaps": swaps,
        "pairs": pairs,
        "gains": gains,
    }


def _swapped(window: np.ndarray, true: np.ndarray) -> bool | None:
    """Whether guitar and piano fit the true stems better the other way round."""
    if min(np.sqrt(np.mean(np.square(true[k]))) for k in (GUITAR, PIANO)) < 10 ** (-40 / 20):
        return None

    def fit(a: int, b: int) -> float:
        return si_sdr(window[a], true[GUITAR]) + si_sdr(window[b], true[PIANO])

    return bool(fit(PIANO, GUITAR) > fit(GUITAR, PIANO))


@click.command(help=__doc__)
@click.option("--corpus", type=click.Path(path_type=Path), required=True, help="NNNNNN.npy files.")
@click.option("--songs", default=4, show_default=True)
@click.option("--seconds", default=12.0, show_default=True)
@click.option("--start", default=20.0, show_default=True, help="Of the crop, in seconds.")
@click.option("--window", default=65536, show_default=True)
@click.option("--overlap", default=16384, show_default=True)
@click.option("--quality", type=click.Choice(list(QUALITIES)), help="Instead of a preset of MGDM.")
@click.option("--preset", default="fast", show_default=True)
@click.option("--precision", default="bfloat16", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--seams", multiple=True, default=SEAMS, show_default=True)
def main(
    corpus: Path,
    songs: int,
    seconds: float,
    start: float,
    window: int,
    overlap: int,
    quality: str | None,
    preset: str,
    precision: str,
    seed: int,
    seams: tuple[str, ...],
) -> None:
    files = sorted(corpus.glob("*.npy"))[:songs]
    settings = QUALITIES[quality] if quality else {"method": "mgdm", "preset": preset}
    for way in seams:
        separator = Separator(
            precision=precision, window=window, overlap=overlap, seams=way, **settings
        )
        results = []
        for number, file in enumerate(files):
            stems = np.load(file, mmap_mode="r")
            first = round(start * RATE)
            crop = stems[:, first : first + round(seconds * RATE)].astype(np.float32) / 32768
            results.append(measure(separator, crop, seed + number))
            click.echo(f"{way} {file.name}", err=True)
        overlap_db = 10 * np.log10(np.mean([x for r in results for x in r["overlap"]]))
        line = {
            "models": models(separator),
            "seams": way,
            "overlap dB": round(float(overlap_db), 2),
            "level dB": round(float(np.mean([x for r in results for x in r["level"]])), 2),
            "true level dB": round(
                float(np.mean([x for r in results for x in r["true_level"]])), 2
            ),
            "flux": round(float(np.mean([r["flux"] for r in results])), 3),
            "true flux": round(float(np.mean([r["true_flux"] for r in results])), 3),
            "swaps": f"{sum(r['swaps'] for r in results)}/{sum(r['pairs'] for r in results)}",
            "SI-SDRi dB": round(float(np.mean(np.concatenate([r["gains"] for r in results]))), 2),
        }
        click.echo(json.dumps(line))


if __name__ == "__main__":
    main()
