"""Render a Slakh-like corpus of four stems (bass, drums, guitar, piano) at 22050 Hz."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import soxr
from numpy.typing import NDArray
from scipy import signal

if __package__ in (None, ""):  # run as a script: make the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mgdm_audio.engine import EngineError
from recipes.corpus.effects import Audio, apply_chain, loudness, rms
from recipes.corpus.grooves import MissingProgram
from recipes.corpus.gus import render_gus
from recipes.corpus.human import performances
from recipes.corpus.kits import kit, sfz_notes
from recipes.corpus.midi import STEMS, Notes
from recipes.corpus.models import render_model
from recipes.corpus.patches import SPLITS, Palette, Patch, check_files
from recipes.corpus.sfz import render_sfz
from recipes.corpus.song import GrooveBook, Layer, Song, compose
from recipes.corpus.synth import RENDER_RATE, soundfont
from recipes.corpus.voices import render_voice
from recipes.corpus.zyn import render_zyn
from recipes.parallel import chosen_engine, engine_options, results

# Rises with every change that alters audio; each line of the index records it. Version 1 let the
# last voices of one rendering sound on into the start of the next from the same soundfont, and its
# loudness was up to 0.3 dB off; notes, patches and effects of a song are those of version 2.
# Version 3 added sample sets, shifts and wider effects. Version 4 added sources to the training
# split (Gravis patches, a Telecaster, computed instruments), version 5 drum parts played by people.
# Version 6 takes out what lies below 20 Hz: some sample sets have a constant offset under every
# note, up to the level of the note itself. Version 7 adds sources to the training split, version 8
# computed basses, pianos and kits, and has 30 % of the training's parts computed, version 9 has
# fewer computed guitars and pianos, version 10 no patches in training that share samples with
# patches of the test split. Version 11 adds synthesisers to the training split.
CORPUS_VERSION = 11
RATE = 22050
LOWEST = signal.butter(2, 20.0, "highpass", fs=RENDER_RATE, output="sos")  # of any stem
SILENT = 10 ** (-60 / 20)  # a frame of 0.1 s below this RMS is silent


def playable(notes: Notes, patch: Patch) -> Notes:
    """Move notes outside the range of a patch by octaves; those that no octave fits are left out.

    Args:
        notes: (n, 4), pitches as they sound.
    """
    notes = notes.copy()
    for _ in range(4):
        notes[:, 2] += 12 * (notes[:, 2] < patch.low) - 12 * (notes[:, 2] > patch.high)
    return notes[(notes[:, 2] >= patch.low) & (notes[:, 2] <= patch.high)]


def perform(layer: Layer, samples: int, rng: np.random.Generator) -> Audio:
    """Play a layer with its patch, 44.1 kHz, (samples,).

    Raises:
        MissingProgram: A program, a soundfont or samples are absent.
    """
    patch, ratio = layer.patch, 2 ** (layer.shift / 12)
    notes = layer.notes.copy()
    notes[:, :2] *= ratio
    size = int(samples * ratio) + 1
    if patch.stem != "drums":
        notes[:, 2] -= layer.shift
        notes = playable(notes, patch)
    if patch.kind == "sf2":
        font = soundfont(str(patch.path))
        sound = font.render(notes, patch.bank, patch.program, size, layer.cents)
    elif patch.kind == "gus":
        sound = render_gus(patch.path, notes, patch.program, size, layer.cents)
    elif patch.kind == "zyn":
        notes[:, 2] += patch.transpose
        sound = render_zyn(patch.path, notes, size, layer.cents)
    elif patch.kind == "model":
        sound = render_model(patch.name, notes, size, layer.cents, rng)
    elif patch.kind == "voice":
        sound = render_voice(patch.name, notes, size, layer.cents, rng)
    elif patch.kind == "kit":
        sound = kit(str(patch.path)).render(notes, size, rng)
    else:
        if patch.stem == "drums":
            notes = sfz_notes(patch.package, notes, rng)
        notes[:, 2] += patch.transpose
        pairs = (pair.split("=") for pair in patch.controls.split())
        controls = {int(number): int(value) for number, value in pairs}
        sound = render_sfz(patch.path, notes, size, layer.cents, controls, patch.gain)
    if ratio != 1:
        sound = soxr.resample(sound, RENDER_RATE * ratio, RENDER_RATE)
    sound = np.pad(sound, (0, max(0, samples - len(sound))))[:samples]
    return signal.sosfilt(LOWEST, sound).astype(np.float32)


def describe(layer: Layer, effects: list[str]) -> str:
    """Say for the index what a layer was played with."""
    extra = [f"{layer.shift:+.3g} semitones"] if layer.shift else []
    extra += effects
    return f"{layer.patch.label} ({', '.join(extra)})" if extra else layer.patch.label


def render_layers(
    song: Song, stem: str, rng: np.random.Generator
) -> Iterator[tuple[Layer, Audio, str]]:
    """Render the layers of one stem that sound, each through its effects.

    Returns:
        The layer, its sound at 44.1 kHz (T,) at its loudness within the stem, the first one at
        -23 LUFS, and what it was played with.
    """
    size = int(song.seconds * RENDER_RATE)
    for number, layer in enumerate(song.layers[stem]):
        if len(layer.notes) == 0:
            continue
        sound = perform(layer, size, rng)
        level = loudness(sound, RENDER_RATE)
        if not np.isfinite(level):
            continue
        sound, effects = apply_chain(stem, layer.patch.program, sound, RENDER_RATE, rng)
        level = loudness(sound, RENDER_RATE) - (float(rng.normal(-2, 2)) if number else 0.0)
        yield layer, sound * np.float32(10 ** ((-23 - level) / 20)), describe(layer, effects)


def render_stem(song: Song, stem: str, rng: np.random.Generator) -> tuple[Audio, list[str]]:
    """Render one stem, 22050 Hz (T,), and say what its layers were played with."""
    out = np.zeros(int(song.seconds * RENDER_RATE), dtype=np.float32)
    told: list[str] = []
    for _, sound, played in render_layers(song, stem, rng):
        out += sound
        told.append(played)
    out = signal.sosfilt(LOWEST, out).astype(np.float32)  # an amplifier may add an offset again
    return signal.resample_poly(out, 1, 2, window=("kaiser", 9.0)).astype(np.float32), told


def balance(stems: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Set levels as Slakh2100 does: equal loudness, here with N(0, 3.5 dB) a stem, then one gain.

    Args:
        stems: (4, T) at any level.
        rng: Source of randomness.

    Returns:
        (4, T), the mixture's peak at -1 dB or up to 9 dB below, no stem beyond full scale.
    """
    stems = stems.copy()
    for index, stem in enumerate(stems):
        level = loudness(stem, RATE)
        offset = float(rng.normal(0, 3.5))
        if np.isfinite(level):
            stem *= np.float32(10 ** ((-23 - level + offset) / 20))
        stems[index] = stem
    peak = max(float(np.abs(stems.sum(0)).max()), float(np.abs(stems).max()), 1e-9)
    below = float(rng.choice([0.0, rng.uniform(0, 8)]))
    return (stems * np.float32(10 ** ((-1 - below) / 20) / peak)).astype(np.float32)


def silent_share(x: Audio) -> float:
    """Return the share of 0.1 s frames below -60 dB."""
    frames = x[: len(x) // 2205 * 2205].reshape(-1, 2205)
    return float(np.mean(np.sqrt(np.mean(np.square(frames), axis=1)) < SILENT))


@lru_cache(maxsize=4)
def sources(split: str, permissive_only: bool) -> tuple[Palette, GrooveBook]:
    """The patches and grooves of a split."""
    return Palette(split, permissive_only), GrooveBook(split)


def song_seed(seed: int, split: str, number: int) -> list[int]:
    """Return the entropy of a song: corpus seed, split, number; splits never share one."""
    return [seed, SPLITS.index(split), number]


def render_song(
    split: str, number: int, seed: int, permissive_only: bool
) -> tuple[NDArray[np.int16], dict[str, Any]]:
    """Render a song of the corpus.

    Returns:
        int16 (4, T) at 22050 Hz, 32768 being 1.0, and its line of the index.
    """
    palette, book = sources(split, permissive_only)
    rng = np.random.default_rng(song_seed(seed, split, number))
    song = compose(split, palette, book, rng)
    rendered = [render_stem(song, stem, rng) for stem in STEMS]
    stems = balance(np.stack([audio for audio, _ in rendered]), rng)
    pcm = np.clip(np.rint(stems * 32768), -32768, 32767).astype(np.int16)
    line = {
        "song": number,
        "seed": seed,
        "version": CORPUS_VERSION,
        "file": f"{number:06d}.npy",
        "samples": pcm.shape[1],
        "rms": [round(rms(s), 5) for s in stems],
        "silent_share": [round(silent_share(s), 4) for s in stems],
        "grooves": song.grooves,
        "patches": [told for _, told in rendered],
        "chart": song.chart.text(),
    }
    return pcm, line


@dataclass(frozen=True)
class Render:
    """Makes workers that render songs, or parts of them, see :data:`mgdm_audio.engine.Make`."""

    out: Path
    split: str
    seed: int
    permissive_only: bool
    render: Callable[[str, int, int, bool], tuple[NDArray[np.int16], dict[str, Any]]] = render_song
    voices: bool = False

    @property
    def told(self) -> dict[str, Any]:
        """What the index says of every song, by which others are known that were made otherwise."""
        return {
            "seed": self.seed,
            "split": self.split,
            "permissive_only": self.permissive_only,
            "voices": self.voices,
        }

    def __call__(self) -> Callable[[int], dict[str, Any]]:
        """The worker: it writes the song of a number and gives its line of the index."""
        return self._work

    def _work(self, number: int) -> dict[str, Any]:
        pcm, line = self.render(self.split, number, self.seed, self.permissive_only)
        temporary = self.out / f".{number:06d}.{os.getpid()}.npy"
        np.save(temporary, pcm)
        temporary.rename(self.out / line["file"])
        return line | self.told


def read_lines(index: Path) -> list[dict[str, Any]]:
    """Return the lines of an index; none where there is no file.

    A last line that was cut off, by a full disk perhaps, is left out: its song is rendered again.

    Raises:
        ValueError: if another line is no JSON.
    """
    texts = index.read_text().splitlines() if index.exists() else []
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            lines += [json.loads(text)] if text.strip() else []
        except ValueError as error:
            if number < len(texts):
                raise ValueError(f"{index}, line {number}: {error}") from error
    return lines


def write_index(index: Path, lines: list[dict[str, Any]]) -> None:
    """Write the lines of an index, whole or not at all."""
    part = index.with_name(f".{index.name}.part")
    part.write_text("".join(json.dumps(line) + "\n" for line in lines))
    part.replace(index)


def render_missing(work: Render, first: int, songs: int, engine: str, workers: int | None) -> None:
    """Render the songs first to first + songs - 1 that the folder's index lacks, and index them.

    Raises:
        click.ClickException: A song failed, there is no such engine, or the folder has songs that
            were made with other options.
    """
    work.out.mkdir(parents=True, exist_ok=True)
    index = work.out / "index.jsonl"
    try:
        known = read_lines(index)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    numbers = range(first, first + songs)
    for line in [line for line in known if line["song"] in numbers]:
        # Older indices do not tell all.
        for key, value in work.told.items():
            if (found := line.get(key, value)) != value:
                raise click.ClickException(
                    f"song {line['song']} of {work.out} was made with {key} = {found}, not "
                    f"{value}; name another folder"
                )
    if index.exists() and not index.read_bytes().endswith(b"\n"):
        write_index(index, known)  # without what was cut off
    done = {line["song"] for line in known}
    wanted = [n for n in numbers if n not in done]
    begin, seconds = time.monotonic(), 0.0
    try:
        rendered = results(chosen_engine(engine, workers), work, wanted, "song {}".format)
        for count, (_, line) in enumerate(rendered, 1):
            with index.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
            seconds += line["samples"] / RATE
            spent = time.monotonic() - begin
            left = spent / count * (len(wanted) - count)
            click.echo(
                f"{work.split} {count}/{len(wanted)} songs, {seconds / 3600:.2f} h of audio, "
                f"{seconds / spent:.0f} x real time, {left / 60:.0f} min left",
                err=True,
            )
    except EngineError as error:
        raise click.ClickException(str(error)) from error


@click.command(help=__doc__)
@click.option("--split", type=click.Choice(SPLITS), required=True)
@click.option("--songs", default=600, show_default=True, help="Number of songs wanted in all.")
@click.option("--first", default=0, show_default=True, help="Number of the first song.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the split.")
@engine_options
@click.option("--seed", default=0, show_default=True, help="Seed of the corpus.")
@click.option("--permissive-only", is_flag=True, help="Use only sources under permissive licences.")
def main(
    split: str,
    songs: int,
    first: int,
    out: Path,
    engine: str,
    workers: int | None,
    seed: int,
    permissive_only: bool,
) -> None:
    try:
        check_files(sources(split, permissive_only)[0].patches)
        if split == "train":
            performances()
    except (MissingProgram, ValueError) as error:
        raise click.ClickException(str(error)) from error
    work = Render(out.resolve(), split, seed, permissive_only)
    render_missing(work, first, songs, engine, workers)


if __name__ == "__main__":
    # By its own name, by which workers elsewhere find what they are sent.
    from recipes.corpus.render import main as by_name

    by_name()
