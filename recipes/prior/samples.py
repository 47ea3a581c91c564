"""Draws songs from the prior alone and measures them beside the corpus, stem by stem.

No mixture and no likelihood: `ddnm` without an observation is the prior's own sampler. Written
are the stems (FLAC), their spectrograms (PNG) and a table (Markdown): level, share of silent
frames, onsets a second, and the share of the energy in each band.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import librosa
import numpy as np
import soundfile
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2]))

from mgdm_audio import STEMS, Separator
from mgdm_audio.conditional import generate
from recipes.prior.data import FULL_SCALE, StemCorpus

RATE = 22050
EDGES = (0, 100, 250, 500, 1000, 2000, 4000, RATE / 2)
FRAME = 2205  # 0.1 s
SILENT = 10 ** (-60 / 20)

Stems = NDArray[np.float32]


def crops(folder: Path, samples: int) -> list[Stems]:
    """The middle of every song of a split, float32 (4, T), full scale at 1."""
    corpus = StemCorpus(folder)
    result = []
    for number in range(len(corpus.songs)):
        stems = corpus.stems(number)
        start = (stems.shape[1] - samples) // 2
        result.append(stems[:, start : start + samples].astype(np.float32) / FULL_SCALE)
    return result


def measure(signals: Sequence[NDArray[np.float32]]) -> dict[str, Any]:
    """What a stem is like over several signals (T,).

    Returns:
        level: RMS in dB of full scale, one value a signal, where it is above -60 dB.
        silent: share of frames of 0.1 s below -60 dB.
        onsets: onsets a second of the signals that sound.
        bands: share of the energy between the `EDGES`, mean over the signals that sound, in dB.
    """
    level, onsets, bands = [], [], []
    frames = np.concatenate([x[: len(x) // FRAME * FRAME].reshape(-1, FRAME) for x in signals])
    for x in signals:
        rms = float(np.sqrt(np.mean(np.square(x))))
        if rms <= SILENT:
            continue
        level.append(20 * np.log10(rms))
        onsets.append(len(librosa.onset.onset_detect(y=x, sr=RATE)) / (len(x) / RATE))
        power = np.abs(np.fft.rfft(x)) ** 2
        bins = np.fft.rfftfreq(len(x), 1 / RATE)
        in_band = [power[(bins >= a) & (bins < b)].sum() for a, b in pairwise(EDGES)]
        bands.append(np.array(in_band) / power.sum())
    silent = float(np.mean(np.sqrt(np.mean(np.square(frames), axis=1)) < SILENT))
    mean = np.mean(bands, axis=0) if bands else np.zeros(len(EDGES) - 1)
    return {"level": level, "silent": silent, "onsets": onsets, "bands": 10 * np.log10(mean + 1e-9)}


def table(drawn: Sequence[Stems], corpus: Sequence[Stems]) -> list[str]:
    """Markdown rows: each stem, the prior's beside the corpus's."""
    names = [f"{int(a)}-{int(b)}" for a, b in pairwise(EDGES)]
    rows = [
        f"| stem | of | RMS, dB (10 to 90 %) | silent | onsets/s | {' | '.join(names)} |",
        f"| --- | --- | ---: | ---: | ---: |{' ---: |' * len(names)}",
    ]
    for k, stem in enumerate(STEMS):
        for source, songs in (("prior", drawn), ("corpus", corpus)):
            m = measure([song[k] for song in songs])
            low, middle, high = np.percentile(m["level"], [10, 50, 90]) if m["level"] else [-99] * 3
            bands = " | ".join(f"{value:.1f}" for value in m["bands"])
            rate = np.mean(m["onsets"]) if m["onsets"] else 0.0
            rows.append(
                f"| {stem} | {source} | {middle:.1f} ({low:.1f} to {high:.1f}) | "
                f"{100 * m['silent']:.0f} % | {rate:.1f} | {bands} |"
            )
    return rows


def spectrograms(drawn: Sequence[Stems], corpus: Sequence[Stems], path: Path) -> None:
    """Draws the first four songs of each, a column a song, a row a stem."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [("prior", song) for song in drawn[:4]] + [("corpus", song) for song in corpus[:4]]
    figure, axes = plt.subplots(
        len(STEMS), len(shown), figsize=(2.6 * len(shown), 8), sharex=True, sharey=True,
        squeeze=False,
    )  # fmt: skip
    for column, (source, song) in enumerate(shown):
        for k, stem in enumerate(STEMS):
            power = librosa.feature.melspectrogram(y=song[k], sr=RATE, n_mels=96, hop_length=512)
            axis = axes[k][column]
            axis.imshow(
                librosa.power_to_db(power, ref=1.0, top_db=None), origin="lower", aspect="auto",
                vmin=-50, vmax=30, cmap="magma", extent=(0, song.shape[1] / RATE, 0, 96),
            )  # fmt: skip
            axis.set_yticks([])
            if column == 0:
                axis.set_ylabel(stem)
            if k == 0:
                axis.set_title(source)
    figure.supxlabel("s (mel bands, 0 to 11 kHz)")
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    plt.close(figure)


@click.command(help=__doc__)
@click.option("--corpus", type=click.Path(path_type=Path), required=True, help="Folder of a split.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--model", default="default", show_default=True, help="Name or folder of the prior.")
@click.option("--songs", default=12, show_default=True, help="How many are drawn.")
@click.option("--seconds", default=5.94, show_default=True)
@click.option("--steps", default=40, show_default=True, help="Network calls a song.")
@click.option("--eta", default=0.0, show_default=True, help="Stochasticity of the steps, 0 to 1.")
@click.option("--precision", default="auto", show_default=True)
@click.option("--kept", default=2, show_default=True, help="Songs whose stems are kept as FLAC.")
def main(
    corpus: Path, out: Path, model: str, songs: int, seconds: float, steps: int, eta: float,
    precision: str, kept: int,
) -> None:  # fmt: skip
    separator = Separator(
        model, "ddnm", steps=steps, eta=eta, sigma_max=3.0, rho=7.0, precision=precision
    )
    drawn: list[Stems] = []
    for seed in range(songs):
        result = generate(separator, {}, seconds, RATE, [seed])
        drawn.append(np.stack([result.draws[0][name] for name in STEMS]).astype(np.float32))
        click.echo(f"{seed + 1}/{songs}", err=True)
    rendered = crops(corpus, drawn[0].shape[1])
    out.mkdir(parents=True, exist_ok=True)
    for seed, song in enumerate(drawn[:kept]):
        for k, stem in enumerate(STEMS):
            soundfile.write(out / f"{seed}-{stem}.flac", song[k], RATE, subtype="PCM_16")
    spectrograms(drawn, rendered, out / "samples.png")
    info = separator.prior.info
    text = [
        f"# Samples of the prior {info.name} ({info.sha256[:8]})",
        "",
        f"{songs} songs of {seconds:g} s in {steps} calls each (`ddnm` without an observation, "
        f"eta {eta:g}, seeds 0 to {songs - 1}), beside the middles of {len(rendered)} songs of the "
        f"corpus; {date.today()}. Bands: share of the energy in dB, by their limits in Hz.",
        "",
        *table(drawn, rendered),
        "",
    ]
    (out / "README.md").write_text("\n".join(text), encoding="utf-8")
    click.echo("\n".join(text))


if __name__ == "__main__":
    main()
