"""MIDI in: tracks of notes by name, channel and program, and the stem that a track belongs to."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import mido
import numpy as np
from numpy.typing import NDArray

STEMS = ("bass", "drums", "guitar", "piano")
DRUM_CHANNEL = 9  # channel 10 of the MIDI standard, counted from zero

Notes = NDArray[np.float64]  # (n, 4): start in beats, end in beats, pitch, velocity 1..127


@dataclass(frozen=True)
class Track:
    """Notes of one MIDI track that share a program. `notes` is (n, 4), times in beats."""

    name: str
    channel: int
    program: int
    notes: Notes


def empty_notes() -> Notes:
    """Return a note array (0, 4)."""
    return np.zeros((0, 4))


def read_tracks(path: Path) -> list[Track]:
    """Read a type-1 MIDI file into tracks, split where the program changes.

    Args:
        path: A standard MIDI file with metrical time (ticks a beat).

    Returns:
        Tracks with at least one note, in file order, notes sorted by (start, pitch).
    """
    midi = mido.MidiFile(path)
    found: list[Track] = []
    for number, messages in enumerate(midi.tracks):
        groups: dict[tuple[int, int], list[tuple[float, float, float, float]]] = defaultdict(list)
        program: dict[int, int] = defaultdict(int)
        sounding: dict[tuple[int, int], list[tuple[float, int, int]]] = defaultdict(list)
        ticks = 0
        for message in messages:
            ticks += message.time
            beat = ticks / midi.ticks_per_beat
            if message.type == "program_change":
                program[message.channel] = message.program
            elif message.type == "note_on" and message.velocity > 0:
                key = (message.channel, message.note)
                sounding[key].append((beat, message.velocity, program[message.channel]))
            elif message.type in ("note_on", "note_off"):
                key = (message.channel, message.note)
                if sounding[key]:
                    start, velocity, used = sounding[key].pop(0)
                    groups[message.channel, used].append((start, beat, message.note, velocity))
        name = messages.name or f"track {number}"
        for (channel, used), notes in groups.items():
            array = np.array(sorted(notes), dtype=np.float64).reshape(-1, 4)
            found.append(Track(name, channel, used, array))
    return found


def stem_of(track: Track) -> str | None:
    """Name the stem of a track by channel, then by program, then by name; None for other parts."""
    if track.channel == DRUM_CHANNEL:
        return "drums"
    if 32 <= track.program <= 39:
        return "bass"
    if 24 <= track.program <= 31:
        return "guitar"
    if 0 <= track.program <= 7:
        return "piano"
    name = track.name.lower()
    if name.startswith("bass"):
        return "bass"
    return None
