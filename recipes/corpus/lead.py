"""Improvised lead lines over a chart: chord tones on strong beats, scale steps between."""

from __future__ import annotations

import numpy as np

from recipes.corpus.charts import SCALES, Chart, Chord
from recipes.corpus.midi import Notes

INTERVALS: dict[str, tuple[int, ...]] = {
    "": (0, 4, 7),
    "M7": (0, 4, 7, 11),
    "6": (0, 4, 7, 9),
    "add9": (0, 2, 4, 7),
    "sus2": (0, 2, 7),
    "m": (0, 3, 7),
    "m7": (0, 3, 7, 10),
    "m9": (0, 2, 3, 7, 10),
    "7": (0, 4, 7, 10),
    "9": (0, 2, 4, 7, 10),
    "sus4": (0, 5, 7),
    "13": (0, 4, 7, 9, 10),
    "7sus4": (0, 5, 7, 10),
    "m6": (0, 3, 7, 9),
    "m7b5": (0, 3, 6, 10),
    "dim": (0, 3, 6, 9),
    "7b9": (0, 1, 4, 7, 10),
}
# Rhythms of one beat: note lengths in beats (negative: a rest), with weights.
CELLS: tuple[tuple[tuple[float, ...], float], ...] = (
    ((1.0,), 2.0),
    ((0.5, 0.5), 4.0),
    ((-1.0,), 1.2),
    ((-0.5, 0.5), 1.0),
    ((0.75, 0.25), 0.6),
    ((0.5, 0.25, 0.25), 0.6),
    ((0.25, 0.25, 0.25, 0.25), 0.8),
    ((1 / 3, 1 / 3, 1 / 3), 0.5),
    ((2.0,), 1.0),
)


def _nearest(pitch: float, classes: set[int]) -> int:
    options = [p for p in range(int(pitch) - 7, int(pitch) + 8) if p % 12 in classes]
    return min(options, key=lambda p: abs(p - pitch))


def lead_line(chart: Chart, first: int, count: int, centre: int, rng: np.random.Generator) -> Notes:
    """Improvise over bars `first` to `first + count`.

    Args:
        chart: Harmony.
        first: First bar.
        count: Number of bars.
        centre: MIDI pitch the line stays around (within about an octave).
        rng: Source of randomness.

    Returns:
        Notes (n, 4), times in beats.
    """
    weights = np.array([w for _, w in CELLS]) * rng.uniform(0.3, 1.7, len(CELLS))
    weights /= weights.sum()
    swing = float(rng.choice([0.0, 0.0, 0.12]))
    chords: list[Chord] = [c for bar in chart.bars[first : first + count] for c in bar]
    scale = {(chart.tonic + s) % 12 for s in SCALES[chart.mode]}
    motif = [CELLS[int(rng.choice(len(CELLS), p=weights))][0] for _ in range(2 * chart.beats)]
    beat, stop = first * chart.beats, (first + count) * chart.beats
    notes: list[tuple[float, float, float, float]] = []
    pitch, heading = float(centre), 1
    rest_until = -1.0
    cell = 0
    while beat < stop:
        if beat % (4 * chart.beats) == 0 and rng.random() < 0.35:  # breathe between phrases
            rest_until = beat + float(rng.integers(1, chart.beats + 1))
        lengths = motif[cell % len(motif)]
        if rng.random() < 0.25:
            lengths = CELLS[int(rng.choice(len(CELLS), p=weights))][0]
        cell += 1
        at = float(beat)
        for length in lengths:
            span = min(abs(length), stop - at)
            if length > 0 and at >= rest_until:
                now = [c for c in chords if c.start <= at + 1e-6] or chords[:1]
                tones = {(now[-1].root + i) % 12 for i in INTERVALS[now[-1].quality]}
                strong = at % 1 == 0
                if rng.random() < 0.15 or abs(pitch - centre) > 11:
                    heading = -1 if pitch > centre else 1
                aim = pitch + heading * rng.choice([1, 2, 2, 3, 4])
                pitch = float(_nearest(aim, tones if strong else scale | tones))
                start = at + (swing if abs(at % 1 - 0.5) < 1e-6 else 0.0)
                velocity = float(np.clip(rng.normal(92 if strong else 80, 10), 35, 127))
                notes.append((start, at + span * rng.uniform(0.75, 1.0), pitch, velocity))
            at += span
        beat += max(1, int(np.ceil(sum(abs(v) for v in lengths) - 1e-6)))
    return np.array(notes, dtype=np.float64).reshape(-1, 4)
