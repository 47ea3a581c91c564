"""Render parts for what no stem is: strings, winds, choirs, organs, synthesisers, singing voices.

The part of a song follows its chart and its bar lines, so that a mix with it is one piece of music:
chords held by ensembles, organs and pads, an improvised line by soloists and singers. What is
trained to leave such sounds alone (recipes/regressor) or is measured on them (recipes/compare)
takes them from here.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from scipy import signal

if __package__ in (None, ""):  # run as a script: make the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from recipes.corpus.charts import Chart
from recipes.corpus.effects import apply_chain, loudness
from recipes.corpus.grooves import MissingProgram
from recipes.corpus.lead import INTERVALS, lead_line
from recipes.corpus.midi import Notes, empty_notes
from recipes.corpus.patches import OTHERS, SPLITS, Patch, check_files, read_patches
from recipes.corpus.render import (
    CORPUS_VERSION,
    LOWEST,
    RATE,
    RENDER_RATE,
    Render,
    describe,
    perform,
    render_missing,
    silent_share,
    song_seed,
    sources,
)
from recipes.corpus.song import Layer, compose, humanise
from recipes.parallel import engine_options

NAME = "other"
FAMILIES = ("organ", "strings", "choir", "brass", "reed", "pipe", "synth")
VOICES = ("voice",)
ENSEMBLES = (*range(16, 21), *range(48, 55), *range(61, 64), *range(88, 96))  # they hold chords
LOUDNESS = -23.0  # LUFS of a rendered part
# Where the line of a soloist is centred and how low chords may lie, as MIDI pitches.
CENTRES = {40: 76, 41: 64, 42: 52, 57: 55, 58: 43, 60: 60, 66: 62, 67: 50, 70: 48, 71: 67}


def held_chords(chart: Chart, first: int, count: int, centre: int) -> Notes:
    """Hold the chords of some bars, voiced around a pitch.

    Args:
        chart: Harmony.
        first: First bar.
        count: Number of bars.
        centre: MIDI pitch that the notes are near.

    Returns:
        Notes (n, 4), times in beats.
    """
    chords = [chord for bar in chart.bars[first : first + count] for chord in bar]
    ends = [chord.start for chord in chords[1:]] + [float((first + count) * chart.beats)]
    notes = []
    for chord, end in zip(chords, ends, strict=True):
        for interval in INTERVALS[chord.quality][:4]:
            pitch = centre - 6 + (chord.root + interval - centre + 6) % 12
            notes.append((chord.start, end, float(pitch), 80.0))
    return np.array(notes, dtype=np.float64).reshape(-1, 4)


def write_part(chart: Chart, patch: Patch, rng: np.random.Generator) -> Notes:
    """Draw what an instrument plays or a voice sings over a chart, (n, 4), times in beats.

    It plays in two sections of three, and in one at least.
    """
    centre = CENTRES.get(patch.program, 72) + int(rng.integers(-5, 6))
    if patch.kind == "voice":
        centre = (patch.low + patch.high) // 2 + int(rng.integers(-4, 5))
    playing = [s for s in chart.sections if rng.random() < 2 / 3] or [chart.sections[0]]
    notes = empty_notes()
    for first, length, _ in playing:
        if patch.program in ENSEMBLES and rng.random() < 0.8:
            more = held_chords(chart, first, length, centre - 6)
        else:
            more = lead_line(chart, first, length, centre, rng)
        notes = np.concatenate([notes, more])
    return notes


def draw_patch(
    split: str,
    rng: np.random.Generator,
    permissive_only: bool = False,
    families: tuple[str, ...] = FAMILIES,
) -> Patch:
    """Draw a family, then a source, then one of its patches.

    Raises:
        ValueError: No source of the family may be used.
    """
    groups: dict[str, dict[str, list[Patch]]] = defaultdict(lambda: defaultdict(list))
    for patch in read_patches(OTHERS):
        if patch.split == split and (patch.permissive or not permissive_only):
            groups[patch.stem][patch.package].append(patch)
    name = families[int(rng.integers(len(families)))]
    family = groups[name]
    if not family:
        raise ValueError(f"no source for {name} in split {split!r}: leave out --permissive-only")
    package = sorted(family)[int(rng.integers(len(family)))]
    return family[package][int(rng.integers(len(family[package])))]


def render_part(
    split: str,
    number: int,
    seed: int,
    permissive_only: bool,
    families: tuple[str, ...] = FAMILIES,
) -> tuple[NDArray[np.int16], dict[str, Any]]:
    """Render the other part of a song of the corpus.

    Returns:
        int16 (1, T) at 22050 Hz, as long as the song, 32768 being 1.0, and its line of the index.
    """
    palette, book = sources(split, permissive_only)
    entropy = song_seed(seed, split, number)
    song = compose(split, palette, book, np.random.default_rng(entropy))
    rng = np.random.default_rng([*entropy, 1])  # the song's own draws stay as they are
    patch = draw_patch(split, rng, permissive_only, families)
    notes = write_part(song.chart, patch, rng)
    lines = np.arange(len(song.times)) * float(song.chart.beats)
    notes[:, 0] = np.interp(notes[:, 0], lines, song.times)
    notes[:, 1] = np.interp(notes[:, 1], lines, song.times)
    shift = 0.0
    if split == "train" and rng.random() < 0.5:
        shift = float(rng.choice([-3, -2, -1, 1, 2, 3]))
    layer = Layer(humanise(notes, NAME, rng), patch, float(rng.normal(0, 6)), shift)
    sound = perform(layer, int(song.seconds * RENDER_RATE), rng)
    sound, effects = apply_chain(NAME, patch.program, sound, RENDER_RATE, rng)
    sound = signal.sosfilt(LOWEST, sound).astype(np.float32)
    sound = signal.resample_poly(sound, 1, 2, window=("kaiser", 9.0)).astype(np.float32)
    level = loudness(sound, RATE)
    gain = 10 ** ((LOUDNESS - level) / 20) if np.isfinite(level) else 0.0
    gain = min(gain, 0.99 / max(float(np.abs(sound).max()), 1e-9))
    pcm = np.rint(sound * np.float32(gain) * 32768).astype(np.int16)[None]
    line = {
        "song": number,
        "seed": seed,
        "version": CORPUS_VERSION,
        "file": f"{number:06d}.npy",
        "samples": pcm.shape[1],
        "silent_share": round(silent_share(pcm[0] / np.float32(32768)), 4),
        "family": patch.stem,
        "patch": describe(layer, effects),
    }
    return pcm, line


@click.command(help=__doc__)
@click.option("--split", type=click.Choice(SPLITS), required=True)
@click.option("--songs", default=300, show_default=True, help="Number of songs.")
@click.option("--first", default=0, show_default=True, help="Number of the first song.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the parts.")
@engine_options
@click.option("--voices", is_flag=True, help="Singing voices in the place of instruments.")
@click.option("--seed", default=0, show_default=True, help="Seed of the corpus.")
@click.option("--permissive-only", is_flag=True, help="Use only sources under permissive licences.")
def main(
    split: str,
    songs: int,
    first: int,
    out: Path,
    engine: str,
    workers: int | None,
    voices: bool,
    seed: int,
    permissive_only: bool,
) -> None:
    families = VOICES if voices else FAMILIES
    patches = [
        p
        for p in read_patches(OTHERS)
        if p.split == split and p.stem in families and (p.permissive or not permissive_only)
    ]
    if not patches:
        raise click.ClickException(f"no source for {split}: leave out --permissive-only")
    try:
        check_files(patches)
    except MissingProgram as error:
        raise click.ClickException(str(error)) from error
    part = partial(render_part, families=families)
    work = Render(out.resolve(), split, seed, permissive_only, part, voices)
    render_missing(work, first, songs, engine, workers)


if __name__ == "__main__":
    # By its own name, by which workers elsewhere find what they are sent.
    from recipes.corpus.others import main as by_name

    by_name()
