"""Random functional chord charts: key, tempo, form and chords in the spelling MMA reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHARP = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
FLAT = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}

# Followers of a degree (semitones above the tonic) with their weights: tonic, subdominant and
# dominant functions lead on as they do in popular harmony, with a few borrowed chords.
FOLLOW: dict[str, dict[int, dict[int, float]]] = {
    "major": {
        0: {5: 3, 9: 3, 7: 3, 2: 2, 4: 1.5, 10: 0.4, 0: 1},
        2: {7: 5, 5: 1, 4: 0.5, 0: 0.5},
        4: {9: 3, 5: 3, 2: 1},
        5: {7: 3, 0: 3, 2: 1.5, 9: 0.7, 10: 0.4},
        7: {0: 5, 9: 2, 5: 1.5, 4: 0.4},
        9: {5: 3, 2: 3, 7: 1.5, 4: 0.8, 0: 0.5},
        10: {5: 2, 0: 2, 7: 0.5},
    },
    "minor": {
        0: {5: 3, 8: 3, 10: 2, 7: 2, 3: 1.5, 2: 0.6, 0: 1},
        2: {7: 5, 0: 0.5},
        3: {8: 2, 10: 2, 5: 1.5, 7: 0.8},
        5: {7: 3, 0: 3, 10: 2, 2: 0.5},
        7: {0: 5, 8: 1.5, 5: 0.5},
        8: {10: 3, 5: 1.5, 3: 1.5, 7: 1.5, 2: 0.4},
        10: {0: 3, 3: 3, 8: 1.5},
    },
}
# The chord qualities of a degree: plain first, then coloured ones.
QUALITY: dict[str, dict[int, tuple[str, ...]]] = {
    "major": {
        0: ("", "M7", "6", "add9", "sus2"),
        2: ("m", "m7", "m9", "7"),
        4: ("m", "m7", "7"),
        5: ("", "M7", "6", "m", "add9"),
        7: ("", "7", "9", "sus4", "13", "7sus4"),
        9: ("m", "m7", "7", "m9"),
        10: ("", "M7"),
    },
    "minor": {
        0: ("m", "m7", "m9", "m6"),
        2: ("m7b5", "m7b5", "dim"),
        3: ("", "M7", "6"),
        5: ("m", "m7", "m9", ""),
        7: ("", "7", "m7", "7b9", "m"),
        8: ("", "M7", "6"),
        10: ("", "7", "9", "sus4"),
    },
}


@dataclass(frozen=True)
class Chord:
    """A chord: `start` in beats from the song's begin, `root` 0..11, `quality` as MMA spells it."""

    start: float
    root: int
    quality: str
    name: str


@dataclass(frozen=True)
class Chart:
    """A song's harmony.

    Attributes:
        tonic: Pitch class of the key, 0..11.
        mode: "major" or "minor".
        tempo: Quarter notes a minute.
        beats: Quarter notes a bar.
        bars: Chords of each bar.
        sections: (first bar, number of bars, letter) of each section.
    """

    tonic: int
    mode: str
    tempo: float
    beats: int
    bars: tuple[tuple[Chord, ...], ...]
    sections: tuple[tuple[int, int, str], ...]

    def text(self) -> str:
        """Return the chart on one line: key, tempo, metre and bars."""
        bars = " | ".join(" ".join(chord.name for chord in bar) for bar in self.bars)
        key = f"{FLAT[self.tonic]} {self.mode}"
        return f"{key} {self.tempo:g} {self.beats}/4: {bars}"


def _pick(weights: dict[int, float], rng: np.random.Generator) -> int:
    values = np.array(list(weights.values()))
    return int(rng.choice(list(weights), p=values / values.sum()))


def _section(
    length: int,
    beats: int,
    tonic: int,
    mode: str,
    colour: float,
    split: float,
    rng: np.random.Generator,
) -> list[list[tuple[float, int, str]]]:
    """Draw one section: per bar (beat in the bar, root, quality)."""
    degree = 0 if rng.random() < 0.7 else _pick(FOLLOW[mode][0], rng)
    bars: list[list[tuple[float, int, str]]] = []
    held = rng.random() < 0.25  # slow harmony: chords that last two bars
    for bar in range(length):
        chords: list[tuple[float, int, str]] = []
        if held and bar % 2 == 1 and rng.random() < 0.8:
            bars.append([(0.0, *bars[-1][-1][1:])])
            continue
        starts = [0.0]
        if rng.random() < split:
            starts.append(2.0 if beats >= 4 else beats - 1.0)
        for start in starts:
            options = QUALITY[mode][degree]
            plain = rng.random() > colour
            quality = options[0] if plain else options[int(rng.integers(len(options)))]
            chords.append((start, (tonic + degree) % 12, quality))
            degree = _pick(FOLLOW[mode][degree], rng)
        bars.append(chords)
    return bars


def random_chart(rng: np.random.Generator, beats: int, seconds: float) -> Chart:
    """Draw a chart of about `seconds` of music.

    Args:
        rng: Source of randomness; nothing else is random.
        beats: Quarter notes a bar.
        seconds: Length aimed at; the chart has whole groups of four bars, eight at least.

    Returns:
        The chart, made of two to four repeated sections.
    """
    tempo = float(np.round(np.clip(rng.lognormal(np.log(110), 0.24), 70, 170), 1))
    count = max(8, round(seconds * tempo / 60 / beats / 4) * 4)
    tonic, mode = int(rng.integers(12)), str(rng.choice(["major", "minor"], p=[0.6, 0.4]))
    colour, split = float(rng.beta(1.2, 1.5)), float(rng.choice([0.0, 0.1, 0.3]))
    names = FLAT if tonic in (1, 3, 5, 8, 10) else SHARP
    material: dict[str, list[list[tuple[float, int, str]]]] = {}
    bars: list[tuple[Chord, ...]] = []
    sections: list[tuple[int, int, str]] = []
    while len(bars) < count:
        length = min(int(rng.choice([4, 8, 8])), count - len(bars))
        letter = str(rng.choice(["A", "B", "C", "D"], p=[0.4, 0.35, 0.15, 0.1]))
        key = f"{letter}{length}"
        if key not in material:
            material[key] = _section(length, beats, tonic, mode, colour, split, rng)
        sections.append((len(bars), length, letter))
        for bar in material[key]:
            at = len(bars) * beats
            bars.append(
                tuple(Chord(at + start, root, q, names[root] + q) for start, root, q in bar)
            )
    return Chart(tonic, mode, tempo, beats, tuple(bars), tuple(sections))
