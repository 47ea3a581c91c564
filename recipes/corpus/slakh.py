"""Renders songs in the layout of Slakh2100: a folder a track, 44.1 kHz FLAC sources, metadata.yaml.

With them the recipe of Slakh2100 (recipes/slakh2100) can be tried out without the data set. The
sources are the layers of the corpus's songs, at the loudness that they have there, under one gain a
track; song n of a split is the n-th track of that split in the list "redux".
"""

from __future__ import annotations

import shutil
import sys
import uuid
from pathlib import Path
from typing import Any

import click
import numpy as np
import soundfile
import yaml
from scipy import signal

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from recipes.corpus.effects import loudness
from recipes.corpus.grooves import MissingProgram
from recipes.corpus.midi import STEMS
from recipes.corpus.patches import SPLITS, check_files
from recipes.corpus.render import LOWEST, render_layers, song_seed
from recipes.corpus.render import sources as sources_of
from recipes.corpus.song import Song, compose
from recipes.corpus.synth import RENDER_RATE
from recipes.slakh2100.prepare import SPLITS as FOLDERS
from recipes.slakh2100.prepare import read_list

ROOT = "slakh2100_flac_redux"
CLASSES = {"bass": "Bass", "drums": "Drums", "guitar": "Guitar", "piano": "Piano"}
PEAK = 10 ** (-1 / 20)


def write_track(song: Song, folder: Path, rng: np.random.Generator) -> Path:
    """Renders a song as a track.

    Arguments:
        song: what is played.
        folder: of the track; it must not be there.
        rng: draws instruments and effects.

    Returns:
        The folder.

    Raises:
        OSError: if it is there, or cannot be written.
        MissingProgram: if a program, a soundfont or samples are absent.
    """
    sources, described = [], []
    for stem in STEMS:
        for layer, sound, _ in render_layers(song, stem, rng):
            sources.append(signal.sosfilt(LOWEST, sound))
            described.append({
                "audio_rendered": True, "inst_class": CLASSES[stem], "is_drum": stem == "drums",
                "integrated_loudness": round(float(loudness(sources[-1], RENDER_RATE)), 2),
                "midi_program_name": layer.patch.name, "midi_saved": False,
                "plugin_name": layer.patch.label,
                "program_num": 128 if stem == "drums" else layer.patch.program,
            })  # fmt: skip
    size = int(song.seconds * RENDER_RATE)
    mix = np.sum(sources, axis=0) if sources else np.zeros(size)
    gain = PEAK / max([1e-9, *(float(np.abs(x).max()) for x in (mix, *sources))])
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "stems").mkdir(parents=True)
    metadata: dict[str, Any] = {
        "UUID": uuid.UUID(bytes=rng.bytes(16)).hex, "audio_dir": "stems", "midi_dir": "MIDI",
        "normalization_factor": -23.0, "normalized": True, "overall_gain": gain,
        "target_peak": -1.0, "stems": {f"S{i:02d}": entry for i, entry in enumerate(described)},
    }  # fmt: skip
    for key, sound in zip(metadata["stems"], sources, strict=True):
        soundfile.write(part / "stems" / f"{key}.flac", gain * sound, RENDER_RATE, "PCM_16")
    soundfile.write(part / "mix.flac", gain * mix, RENDER_RATE, "PCM_16")
    (part / "metadata.yaml").write_text(yaml.safe_dump(metadata))
    part.rename(folder)  # whole or not at all
    return folder


@click.command(help=__doc__)
@click.option("--split", type=click.Choice(SPLITS), required=True)
@click.option("--songs", default=4, show_default=True, help="Tracks wanted; those there are kept.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the tree.")
@click.option("--seed", default=0, show_default=True, help="Seed of the corpus.")
def main(split: str, songs: int, out: Path, seed: int) -> None:
    here = {ours: theirs for theirs, ours in FOLDERS.items()}
    names = sorted(name for name, of in read_list("redux").items() if of == split)[:songs]
    try:
        palette, book = sources_of(split, False)
        check_files(palette.patches)
        for number, name in enumerate(names):
            folder = out / ROOT / here[split] / name
            if folder.exists():
                continue
            rng = np.random.default_rng(song_seed(seed, split, number))
            write_track(compose(split, palette, book, rng), folder, rng)
            click.echo(f"{folder}", err=True)
    except (MissingProgram, ValueError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
