"""Drum parts as people played them: the Groove MIDI data set (J. Gillick and others, 2019)."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from recipes.corpus.grooves import MissingProgram
from recipes.corpus.midi import Notes, read_tracks

REPOSITORY = "zharry29/drums-with-llm"
FOLDER = "drums-with-llm/groove"
BEATS = 4  # a bar
SHORTEST = 8  # bars
# Keys of the kit it was played on, a Roland TD-11, that General MIDI names otherwise.
KEYS = {22: 42, 26: 46, 58: 43, 47: 45, 50: 48, 40: 38, 52: 57, 55: 49}


@dataclass(frozen=True)
class Performance:
    """A recording in 4/4: its MIDI file, the name that the index gives it, quarters a minute."""

    path: Path
    name: str
    tempo: float


@lru_cache(maxsize=1)
def performances() -> tuple[Performance, ...]:
    """Return the beats of the data set's own training part that last long enough.

    Raises:
        MissingProgram: The data set is not in the folder of sources.
    """
    root = Path(os.environ.get("MGDM_CORPUS_SOURCES", Path(__file__).parent / "sources"), FOLDER)
    table = root / "info.csv"
    if not table.is_file():
        raise MissingProgram(
            f"{table} was not found: fetch github:{REPOSITORY} as recipes/corpus/README.md says"
        )
    with table.open(newline="") as stream:
        return tuple(
            Performance(
                root / row["midi_filename"],
                f"groove/{row['id']} {row['style']}",
                float(row["bpm"]),
            )
            for row in csv.DictReader(stream)
            if row["beat_type"] == "beat"
            and row["time_signature"] == "4-4"
            and row["split"] == "train"
            and float(row["duration"]) * float(row["bpm"]) / 60 >= SHORTEST * BEATS
        )


def human_drums(tempo: float, bars: int, rng: np.random.Generator) -> tuple[Notes, str]:
    """Draw a performance near a tempo and cut or repeat it to a length.

    Args:
        tempo: Quarters a minute; one within 15 % is drawn, without any the nearest.
        bars: Length in bars of four quarters.
        rng: Source of randomness.

    Returns:
        Notes (n, 4), times in beats, sorted by start, keys of General MIDI; and the name.
    """
    known = performances()
    away = np.array([abs(np.log(p.tempo / tempo)) for p in known])
    near = np.flatnonzero(away <= max(0.15, float(away.min())))
    chosen = known[int(near[int(rng.integers(len(near)))])]
    notes = np.concatenate([track.notes for track in read_tracks(chosen.path)])
    notes[:, 2] = [KEYS.get(int(pitch), int(pitch)) for pitch in notes[:, 2]]
    length = int(notes[:, 0].max() // BEATS) * BEATS  # whole bars, without the last stroke's
    first = int(rng.integers(0, max(length // BEATS - bars, 0) + 1)) * BEATS
    parts: list[Notes] = []
    at = 0
    while at < bars * BEATS:
        take = notes[(notes[:, 0] >= first - 0.1) & (notes[:, 0] < length - 0.1)].copy()
        take[:, :2] += at - first
        parts.append(take)
        at += length - first
        first = 0
    played = np.concatenate(parts)
    played[:, :2] = np.maximum(played[:, :2], 0)
    played = played[played[:, 0] < bars * BEATS - 0.05]
    return played[np.argsort(played[:, 0], kind="stable")], chosen.name
