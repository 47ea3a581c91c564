"""The fifth stem, on songs with an instrument that no stem is, and on songs without.

Songs are rendered by benchmarks/songs.py, with a flute, strings or a choir in turn, brought to one
channel and the prior's rate, and separated with and without the other stem at several levels of
its prior. Printed are the SI-SDR improvement of the four stems and of the other one, and, on the
same songs without the added instrument, what the other stem costs the four and how loud it is
relative to the mix.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import songs
from benchmarks.speed import models
from mgdm_audio import STEMS, Separator
from mgdm_audio.audio import resample
from mgdm_audio.metrics import level_db, si_sdr_improvement

RATE = 22050
EXTRAS = ("flute", "strings", "choir")


def mono(stems: dict[str, NDArray[np.float32]], rate: int) -> dict[str, NDArray[np.float32]]:
    """Stems as the prior hears them."""
    return {name: resample(x.mean(0), rate, RATE) for name, x in stems.items()}


def measure(
    separator: Separator, stems: dict[str, NDArray[np.float32]], seed: int
) -> dict[str, float]:
    """Improvement of each stem, and the level of the other one, in dB."""
    mix = np.sum(list(stems.values()), axis=0)
    estimate = separator.separate(mix, RATE, seed=seed).stems
    gains = [float(si_sdr_improvement(estimate[name], stems[name], mix)) for name in STEMS]
    row = {**dict(zip(STEMS, gains, strict=True)), "four": float(np.mean(gains))}
    if "other" in estimate:
        row["level"] = float(level_db(estimate["other"]) - level_db(mix))
        extra = [x for name, x in stems.items() if name not in STEMS]
        if extra:
            row["other"] = float(si_sdr_improvement(estimate["other"], extra[0], mix))
    return row


@click.command(help=__doc__)
@click.option("--songs", "count", default=3, show_default=True)
@click.option("--seconds", default=6.0, show_default=True)
@click.option("--levels", default="-10", show_default=True, help="Of the prior, in dB.")
@click.option("--preset", default="fast", show_default=True)
@click.option("--average", default=1, show_default=True)
def main(count: int, seconds: float, levels: str, preset: str, average: int) -> None:
    columns = (*STEMS, "four", "other", "level")
    click.echo(models(Separator(preset=preset)) + "\n")
    click.echo("| songs | other | " + " | ".join(columns) + " |")
    click.echo("| --- | --- |" + " ---: |" * len(columns))
    rendered = [songs.song(i, seconds, EXTRAS[i % len(EXTRAS)]) for i in range(count)]
    for level in [None, *[float(x) for x in levels.split(",")]]:
        separator = Separator(preset=preset, average=average, other=level)
        for added in (True, False):
            rows = []
            for seed, (stems, rate) in enumerate(rendered):
                kept = {n: x for n, x in stems.items() if added or n in STEMS}
                rows.append(measure(separator, mono(kept, rate), seed))
            cells = [
                f"{np.mean([row[c] for row in rows]):.2f}" if c in rows[0] else "" for c in columns
            ]
            name = "with an added instrument" if added else "without"
            shown = "none" if level is None else f"{level:g} dB"
            click.echo(f"| {name} | {shown} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
