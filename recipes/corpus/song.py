"""One song: chart, grooves, layers of notes per stem with their patches, in seconds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recipes.corpus.charts import Chart, random_chart
from recipes.corpus.grooves import Groove, mma_tracks, read_catalogue
from recipes.corpus.human import human_drums
from recipes.corpus.lead import lead_line
from recipes.corpus.midi import DRUM_CHANNEL, STEMS, Notes, Track, empty_notes, stem_of
from recipes.corpus.patches import Palette, Patch

SHARE = {"valid": range(0, 3), "test": range(3, 6), "train": range(6, 20)}
ABSENT = {"bass": 0.05, "drums": 0.01, "guitar": 0.02, "piano": 0.03}
HUMAN = 0.4  # share of the training songs in 4/4 with drums that a person played
PAUSE = {"bass": 0.06, "drums": 0.05, "guitar": 0.14, "piano": 0.14}
RANGE = {"bass": (26, 60), "guitar": (40, 88), "piano": (24, 103)}


@dataclass(frozen=True)
class Layer:
    """Notes of one player: (n, 4) with times in seconds, the patch and its detuning in cents.

    `shift` semitones: the patch plays lower by so much and is sped up by as much, so that notes are
    as written and the instrument is a smaller (or with a negative shift larger) one. Drums have no
    written pitch: theirs are tuned by it.
    """

    notes: Notes
    patch: Patch
    cents: float
    shift: float = 0.0


@dataclass
class Song:
    """What is rendered: layers per stem, the length and a description for the index.

    `times` are the seconds of the bar lines, the end of the last bar among them.
    """

    seconds: float
    chart: Chart
    layers: dict[str, list[Layer]]
    times: NDArray[np.float64]
    grooves: list[str] = field(default_factory=list)


def split_of(file: str) -> str:
    """Assign a groove file to a split by a hash of its name."""
    bucket = int(hashlib.sha1(file.encode()).hexdigest(), 16) % 20
    return next(split for split, buckets in SHARE.items() if bucket in buckets)


class GrooveBook:
    """Grooves of one split in one metre, grouped by library file."""

    def __init__(self, split: str) -> None:
        self.grooves = [g for g in read_catalogue() if split_of(g.file) == split]

    def family(self, groove: Groove, form: str, stems: tuple[str, ...]) -> list[Groove]:
        """Return grooves of the same file, metre and form that play the given stems."""
        return [
            g
            for g in self.grooves
            if g.file == groove.file
            and g.beats == groove.beats
            and g.form == form
            and all(plays(g, s) for s in stems)
        ]

    def draw(self, beats: int, stems: tuple[str, ...], rng: np.random.Generator) -> Groove:
        """Draw a main groove that plays the stems: files are equally likely, then its grooves."""
        fits = [
            g
            for g in self.grooves
            if g.beats == beats and g.form == "main" and all(plays(g, s) for s in stems)
        ]
        files = sorted({g.file for g in fits})
        file = files[int(rng.integers(len(files)))]
        fits = [g for g in fits if g.file == file]
        return fits[int(rng.integers(len(fits)))]


def plays(groove: Groove, stem: str) -> bool:
    """Tell whether a groove plays a stem; "other" counts comping parts that can be remapped."""
    if stem == "comping":
        return groove.guitar + groove.piano + groove.other >= 1
    return float(getattr(groove, stem)) >= (1.0 if stem != "drums" else 2.0)


def plan_grooves(
    chart: Chart, base: Groove, book: GrooveBook, stems: tuple[str, ...], rng: np.random.Generator
) -> list[str]:
    """Choose a groove for every bar: changes at sections, fills before them, an ending."""
    mains = book.family(base, "main", stems) or [base]
    fills = book.family(base, "fill", ())
    ends = book.family(base, "end", ())
    busy = rng.random() < 0.6
    plan: list[str] = []
    letters: dict[str, str] = {}
    for _, length, letter in chart.sections:
        if letter not in letters:
            other = mains[int(rng.integers(len(mains)))]
            letters[letter] = other.name if rng.random() < 0.5 else base.name
        plan += [letters[letter]] * length
        if fills and busy and rng.random() < 0.6:
            plan[-1] = fills[int(rng.integers(len(fills)))].name
    if ends and rng.random() < 0.4:
        plan[-1] = ends[int(rng.integers(len(ends)))].name
    return plan


def mma_text(chart: Chart, plan: list[str], seed: int) -> str:
    """Write a chart and its grooves as an MMA song."""
    lines = [f"Tempo {chart.tempo:g}", f"RndSeed {seed}"]
    last = ""
    for number, (bar, groove) in enumerate(zip(chart.bars, plan, strict=True)):
        if groove != last:
            lines.append(f"Groove {groove}")
            last = groove
        cells = ["/"] * chart.beats
        for chord in bar:
            cells[int(chord.start - number * chart.beats)] = chord.name
        lines.append(f"{number + 1} {' '.join(cells)}")
    return "\n".join(lines) + "\n"


def pick_tracks(tracks: list[Track], stem: str, rng: np.random.Generator) -> list[Track]:
    """Return the tracks that play a stem; without any, one comping part is given to it."""
    own = [t for t in tracks if stem_of(t) == stem]
    if own or stem in ("bass", "drums"):
        return own
    comping = [
        t
        for t in tracks
        if t.name.lower().startswith(("chord", "arpeggio", "plectrum", "scale", "arp"))
        and stem_of(t) not in ("bass", "drums")
    ]
    return [comping[int(rng.integers(len(comping)))]] if comping else []


def fold(notes: Notes, stem: str) -> Notes:
    """Move notes outside the instrument's range by octaves."""
    if stem not in RANGE:
        return notes
    low, high = RANGE[stem]
    notes = notes.copy()
    for _ in range(4):
        notes[:, 2] += 12 * (notes[:, 2] < low) - 12 * (notes[:, 2] > high)
    return notes


def humanise(notes: Notes, stem: str, rng: np.random.Generator) -> Notes:
    """Move onsets and velocities as players do; chords of guitars are strummed, of pianos rolled.

    Args:
        notes: (n, 4) in seconds, sorted by start.
    """
    notes = notes.copy()
    count = len(notes)
    if count == 0:
        return notes
    spread = rng.uniform(1, 5) if stem == "drums" else rng.uniform(3, 12)
    lag = rng.normal(0, 0.002 if stem == "drums" else 0.006)
    groups = np.concatenate([[0], np.cumsum(np.diff(notes[:, 0]) > 0.012)])
    jitter = rng.normal(0, spread / 1000, groups[-1] + 1)[groups] + lag
    if stem in ("guitar", "piano"):
        step = rng.uniform(0.004, 0.02) if stem == "guitar" else rng.uniform(0, 0.006)
        for group in range(groups[-1] + 1):
            members = np.flatnonzero(groups == group)
            order = members[np.argsort(notes[members, 2])]
            up = stem == "guitar" and rng.random() < 0.35
            jitter[order[::-1] if up else order] += step * np.arange(len(order))
    length = notes[:, 1] - notes[:, 0]
    notes[:, 0] = np.maximum(notes[:, 0] + jitter, 0)
    notes[:, 1] = notes[:, 0] + np.maximum(length * rng.uniform(0.9, 1.1), 0.03)
    drift = rng.normal(0, 5, groups[-1] + 1)[groups]
    notes[:, 3] = np.clip(notes[:, 3] + rng.normal(0, 5) + drift + rng.normal(0, 4, count), 12, 127)
    return notes


def tempo_map(chart: Chart, rng: np.random.Generator) -> np.ndarray:
    """Return the time in seconds of every bar line: the tempo drifts by a percent or so."""
    count = len(chart.bars)
    size = float(rng.choice([0.0, 0.003, 0.006]))
    drift = np.exp(np.clip(np.cumsum(rng.normal(0, size, count)), -0.04, 0.04))
    lengths = chart.beats * 60 / chart.tempo * drift
    return np.concatenate([[0.0], np.cumsum(lengths)])


def active_bars(chart: Chart, stem: str, intro: bool, rng: np.random.Generator) -> np.ndarray:
    """Return a mask (bars,) of where a stem plays: sections it sits out, a late entry."""
    mask = np.ones(len(chart.bars), dtype=bool)
    for number, (first, length, _) in enumerate(chart.sections):
        chance = 0.4 if intro and number == 0 else PAUSE[stem]
        if rng.random() < chance:
            mask[first : first + length] = False
        elif rng.random() < 0.05:
            mask[first + length - int(rng.integers(1, 3)) : first + length] = False
    return mask


def draw_shift(split: str, stem: str, rng: np.random.Generator) -> float:
    """Draw the `shift` of a layer in semitones; half of those in training have none, others none.

    Held-out sounds stay as they were recorded.
    """
    if split != "train" or rng.random() < 0.5:
        return 0.0
    if stem == "drums":
        return float(rng.uniform(-3.5, 3.5))
    return float(rng.choice([-4, -3, -2, -1, 1, 2, 3, 4]))


def compose(split: str, palette: Palette, book: GrooveBook, rng: np.random.Generator) -> Song:
    """Draw one song.

    Args:
        split: Which grooves and patches may be used.
        palette: The split's patches.
        book: The split's grooves.
        rng: Source of all randomness of the song.

    Returns:
        The song, times in seconds; absent stems have no layers.
    """
    beats = 4 if rng.random() < 0.88 else 3
    chart = random_chart(rng, beats, float(rng.uniform(60, 115)))
    roles: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
        (("bass", "drums"), ("bass", "drums")),
        (("guitar",), ("guitar",)),
        (("piano",), ("piano",)),
    ]
    if rng.random() < 0.35:
        roles = [(STEMS, STEMS)]
    tracks: dict[str, list[Track]] = {}
    used: list[str] = []
    for stems, needs in roles:
        if needs in (("guitar",), ("piano",)) and rng.random() < 0.2:
            needs = ("comping",)
        try:
            base = book.draw(beats, needs, rng)
        except (ValueError, IndexError):
            base = book.draw(beats, ("comping",), rng)
        plan = plan_grooves(chart, base, book, needs, rng)
        used += list(dict.fromkeys(plan))
        played = mma_tracks(mma_text(chart, plan, int(rng.integers(1, 2**31))))
        for stem in stems:
            tracks[stem] = pick_tracks(played, stem, rng)
    human = split == "train" and beats == 4 and rng.random() < HUMAN
    if human:
        played_drums, name = human_drums(chart.tempo, len(chart.bars), rng)
        tracks["drums"] = [Track(name, DRUM_CHANNEL, 0, played_drums)]
        used.append(name)
    times = tempo_map(chart, rng)
    lines = np.arange(len(times)) * float(beats)
    intro = rng.random() < 0.35
    tuning = float(rng.normal(0, 6)) + float(rng.choice([0, 0, 0, rng.uniform(-40, 40)]))
    present = {stem: rng.random() >= ABSENT[stem] for stem in STEMS}
    singer = str(rng.choice(["none", "guitar", "piano"], p=[0.45, 0.33, 0.22]))
    layers: dict[str, list[Layer]] = {stem: [] for stem in STEMS}
    shifts: dict[Patch, float] = {}
    for stem in STEMS:
        mask = active_bars(chart, stem, intro, rng)
        if not mask.any():
            mask[:] = True
        shared = palette.draw(stem, rng)
        parts = [t.notes for t in tracks[stem]]
        if stem in ("guitar", "piano") and len(parts) > 2:
            parts = [parts[i] for i in sorted(rng.permutation(len(parts))[:2])]
        lead = empty_notes()
        if singer == stem:
            centre = int(rng.integers(62, 76)) if stem == "guitar" else int(rng.integers(67, 84))
            chosen = [s for s in chart.sections if rng.random() < 0.55] or [chart.sections[-1]]
            lead = np.concatenate(
                [lead_line(chart, first, length, centre, rng) for first, length, _ in chosen]
            )
            if rng.random() < 0.5:  # the soloist stops comping meanwhile
                for first, length, _ in chosen:
                    parts = [
                        p[(p[:, 0] < first * beats) | (p[:, 0] >= (first + length) * beats)]
                        for p in parts
                    ]
        if not present[stem]:
            continue
        octave = 12 * int(rng.choice([-1, 0, 1], p=[0.08, 0.84, 0.08])) if stem == "piano" else 0
        for number, part in enumerate([*parts, lead]):
            if len(part) == 0:
                continue
            notes = part.copy()
            is_lead = number == len(parts)
            if not is_lead:
                bars = np.clip((notes[:, 0] / beats + 0.05).astype(int), 0, len(mask) - 1)
                notes = notes[mask[bars]]
                notes[:, 2] += octave
            notes[:, 0] = np.interp(notes[:, 0], lines, times)
            notes[:, 1] = np.minimum(np.interp(notes[:, 1], lines, times), times[-1] + 0.5)
            if not (human and stem == "drums"):
                notes = humanise(fold(notes, stem), stem, rng)
            own = shared if rng.random() < (0.5 if is_lead else 0.75) else palette.draw(stem, rng)
            cents = tuning + float(rng.normal(0, 3))
            shift = shifts.setdefault(own, draw_shift(split, stem, rng))
            layers[stem].append(Layer(notes, own, cents, shift))
    return Song(float(times[-1]) + 1.5, chart, layers, times, used)
