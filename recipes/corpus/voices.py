"""Voices that sing: syllables of free speech synthesisers, set to notes with the WORLD vocoder.

A speaker says a set of syllables once, through Festival or Flite; WORLD (M. Morise, F. Yokomori and
K. Ozawa, 2016) takes them apart into pitch, spectral envelope and aperiodicity. A note is one
syllable: its consonant before the beat, its vowel held, the pitch by the note with glides, vibrato
and a slow drift. WORLD's own high-frequency end is the speaker's, 8 kHz; the breath above it is
noise that follows the band below.
"""

from __future__ import annotations

import importlib.util
import itertools
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from scipy import signal

from recipes.corpus.grooves import MissingProgram
from recipes.corpus.midi import Notes
from recipes.corpus.synth import RENDER_RATE

Audio = NDArray[np.float32]
Frames = NDArray[np.float64]

RATE = 16_000  # of the speakers
PERIOD = 5.0  # milliseconds from frame to frame
HOP = PERIOD / 1000
ONSETS, VOWELS, CODAS = "mnlrdbtsvkpfg", "aeiou", ("", "n", "l", "s", "m")
OPEN = 3 / 7  # share of syllables that end with their vowel
CYRILLIC = str.maketrans("mnlrdbtsvkpfgaeiou", "мнлрдбтсвкпфгаеиоу")
SPOKEN = 60  # syllables of a speaker
LONGEST_ONSET, LONGEST_CODA = 20, 16  # frames
AUDIBLE, VOWEL = 10 ** (-3.5), 0.1  # power of consonants and of the vowel beside its peak
LEGATO = 0.08  # seconds between notes that are sung on one breath
RELEASE = 18  # frames in which a note dies away that no other follows
PHRASE = 0.4  # seconds of silence after which a new phrase begins


@dataclass(frozen=True)
class Syllable:
    """WORLD frames of one syllable, its vowel at loudness 1.

    `pitched` (n,) says which frames are voiced, `envelope` and `aperiodicity` are (n, bins) as
    WORLD has them; `first` to `last` is the part of the vowel that a held note repeats.
    """

    pitched: NDArray[np.bool_]
    envelope: Frames
    aperiodicity: Frames
    first: int
    last: int


def syllables(count: int, seed: int) -> list[str]:
    """Draw syllables such as "ma" and "sol", in Latin letters."""
    rng = np.random.default_rng(seed)
    every = ["".join(p) for p in itertools.product(ONSETS, VOWELS, CODAS)]
    weights = np.array([OPEN if len(w) == 2 else (1 - OPEN) / (len(CODAS) - 1) for w in every])
    chosen = rng.choice(len(every), count, replace=False, p=weights / weights.sum())
    return [every[i] for i in chosen]


def speak(speaker: str, words: list[str], folder: Path) -> list[Path]:
    """Let a speaker say words, each into its own file.

    Args:
        speaker: "flite:NAME" or "festival:NAME", the name as the program has it.
        words: What to say; for Russian speakers the letters are exchanged for Cyrillic ones.
        folder: Where the WAV files are written.

    Raises:
        MissingProgram: The program or the speaker is not installed.
    """
    program, name = speaker.split(":")
    if shutil.which(program) is None:
        raise MissingProgram(f"{program} was not found: install the Debian package `{program}`")
    files = [folder / f"{n:03d}.wav" for n in range(len(words))]
    if program == "flite":
        for word, file in zip(words, files, strict=True):
            subprocess.run(["flite", "-voice", name, "-t", word, file], check=True)
    else:
        if "_ru_" in name:
            words = [word.translate(CYRILLIC) for word in words]
        lines = [f"(voice_{name})"]
        for word, file in zip(words, files, strict=True):
            lines.append(f'(utt.save.wave (utt.synth (Utterance Text "{word}")) "{file}")')
        script = folder / "say.scm"
        script.write_text("\n".join(lines), encoding="utf-8")
        subprocess.run(["festival", "--batch", script], check=False, capture_output=True)
    if not all(file.exists() for file in files):
        raise MissingProgram(f"the speaker {speaker} says nothing: see recipes/corpus/README.md")
    return files


def analyse(sound: NDArray[np.float64]) -> Syllable | None:
    """Take a spoken syllable apart, or return None where no vowel is found.

    Args:
        sound: (T,) at 16 kHz.
    """
    import pyworld

    pitch, times = pyworld.dio(sound, RATE, f0_floor=60, f0_ceil=500, frame_period=PERIOD)
    pitch = pyworld.stonemask(sound, pitch, times, RATE)
    envelope = pyworld.cheaptrick(sound, pitch, times, RATE)
    aperiodicity = pyworld.d4c(sound, pitch, times, RATE)
    pitched = pitch > 0
    power = envelope.mean(1)
    loud = power * pitched
    if pitched.sum() < 10:
        return None
    peak = int(loud.argmax())
    first = last = peak
    while first > 0 and loud[first - 1] > VOWEL * loud[peak]:
        first -= 1
    while last + 1 < len(loud) and loud[last + 1] > VOWEL * loud[peak]:
        last += 1
    quarter = (last - first) // 4  # the ends of the vowel are on their way to the consonants
    audible = np.flatnonzero(power > AUDIBLE * power[peak])
    start = max(int(audible[0]), first - LONGEST_ONSET)
    stop = min(int(audible[-1]) + 1, last + 1 + LONGEST_CODA)
    if last - first < 8:
        return None
    scale = power[first + quarter : last - quarter + 1].mean()
    return Syllable(
        pitched[start:stop],
        envelope[start:stop] / scale,
        aperiodicity[start:stop],
        first + quarter - start,
        last - quarter - start,
    )


@cache
def repertoire(speaker: str) -> list[Syllable]:
    """What a speaker can sing; said and taken apart once in a process.

    Raises:
        MissingProgram: As `speak` does, or the package pyworld is not installed.
    """
    if importlib.util.find_spec("pyworld") is None:
        raise MissingProgram("voices need the package pyworld: install the extra `corpus`")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for file in speak(speaker, syllables(SPOKEN, 0), Path(folder)):
            sound, rate = soundfile.read(file, dtype="float64")
            heard = analyse(np.ascontiguousarray(soxr.resample(sound, rate, RATE)))
            if heard is not None:
                found.append(heard)
    if len(found) < SPOKEN // 2:
        raise MissingProgram(f"the speaker {speaker} says too few syllables: {len(found)}")
    return found


def hold(syllable: Syllable, frames: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Which frames of a syllable to sing so that it lasts: consonant, vowel to and fro, coda."""
    onset = np.arange(syllable.first)
    coda = np.arange(syllable.last + 1, len(syllable.pitched))[: max(0, frames // 4)]
    middle = max(1, frames - len(coda))
    span = syllable.last - syllable.first
    # A vowel is never held still: its frames are walked to and fro, at a changing pace.
    walk = np.cumsum(rng.uniform(0.1, 0.7, middle))
    there = np.abs((walk + span) % (2 * span) - span) if span else np.zeros(middle)
    vowel = syllable.first + np.rint(span - there if rng.random() < 0.5 else there).astype(int)
    return np.concatenate([onset, vowel, coda])


def contour(
    pitch: float, before: float | None, frames: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """The pitch of a note in semitones (frames,): a glide or a scoop, then vibrato and drift."""
    time = np.arange(frames) * HOP
    start = before - pitch if before is not None else -float(rng.choice([0, 0, 0.5, 1, 2]))
    line = start * np.exp(-time / rng.uniform(0.015, 0.06))
    depth = rng.uniform(0, 0.5) * np.clip((time - rng.uniform(0.1, 0.4)) / 0.3, 0, 1)
    line += depth * np.sin(2 * np.pi * (rng.uniform(4.6, 6.4) * time + rng.random()))
    line += signal.lfilter([1], [1, -0.98], rng.normal(0, 0.03, frames))  # drift: 0.15 semitones
    return pitch + np.clip(line, -12, 12)


def sing_phrase(
    bank: list[Syllable], notes: Notes, cents: float, rng: np.random.Generator
) -> tuple[float, Audio]:
    """Sing notes that follow each other; returns the second it begins at and (T,) at 44.1 kHz."""
    import pyworld

    begin = notes[0, 0] - LONGEST_ONSET * HOP
    size = int((notes[-1, 1] - begin) / HOP) + LONGEST_CODA + 4
    bins = bank[0].envelope.shape[1]
    semitones, voiced = np.full(size, np.nan), np.zeros(size, bool)
    envelope, aperiodicity = np.full((size, bins), 1e-12), np.ones((size, bins))
    syllable, before = None, None
    for number, (start, end, pitch, velocity) in enumerate(notes):
        first = int((start - begin) / HOP)
        frames = max(4, int((end - start) / HOP))
        after = number > 0 and start - notes[number - 1, 1] < LEGATO
        tied = syllable is not None and after and (end - start < 0.13 or rng.random() < 0.15)
        if not tied:
            syllable = bank[int(rng.integers(len(bank)))]
        assert syllable is not None
        order = hold(syllable, frames, rng)
        ahead = syllable.first  # the consonant comes before the beat
        if tied:
            order, ahead = order[ahead:], 0
        level = (velocity / 100) ** 2
        at = first - ahead
        order = order[max(0, -at) : size - at]
        at = max(0, at)
        stop = at + len(order)
        loud = np.full((len(order), 1), level)
        if number + 1 == len(notes) or notes[number + 1, 0] - end >= LEGATO:
            tail = min(RELEASE, len(order) // 3)
            loud[len(order) - tail :, 0] *= np.geomspace(1, 1e-3, tail)
        envelope[at:stop] = syllable.envelope[order] * loud
        aperiodicity[at:stop] = syllable.aperiodicity[order]
        voiced[at:stop] = syllable.pitched[order]
        semitones[at:stop] = pitch
        line = contour(pitch, before if after else None, stop - first, rng)
        semitones[first:stop] = line[: max(0, stop - first)]
        before = float(line[-1]) if len(line) else pitch
    # Spectra of neighbours flow into each other, as a mouth does; so do the levels.
    smooth = signal.windows.hann(7)[1:-1]
    smooth /= smooth.sum()
    envelope = np.exp(signal.convolve(np.log(envelope), smooth[:, None], mode="same"))
    hertz = 440 * 2 ** ((np.nan_to_num(semitones, nan=60.0) + cents / 100 - 69) / 12)
    hertz = np.where(voiced, hertz, 0.0)
    sound = pyworld.synthesize(
        hertz, np.ascontiguousarray(envelope), np.ascontiguousarray(aperiodicity), RATE, PERIOD
    )
    return begin, breath(soxr.resample(sound, RATE, RENDER_RATE), rng)


def breath(sound: NDArray[np.float64], rng: np.random.Generator) -> Audio:
    """Add noise above 7.5 kHz, as loud as the band from 4.5 to 7 kHz is at the time."""
    band = signal.butter(4, (4500, 7000), "bandpass", fs=RENDER_RATE, output="sos")
    follow = signal.butter(1, 40, fs=RENDER_RATE, output="sos")
    loud = np.sqrt(np.maximum(signal.sosfilt(follow, signal.sosfilt(band, sound) ** 2), 0))
    above = signal.butter(4, (7500, 14_000), "bandpass", fs=RENDER_RATE, output="sos")
    noise = signal.sosfilt(above, rng.normal(size=len(sound)))
    return (sound + loud * noise).astype(np.float32)


def phrases(notes: Notes) -> list[Notes]:
    """Cut a line where it rests; of notes that start together one is left, cut by the next."""
    notes = notes[np.argsort(notes[:, 0], kind="stable")]
    notes = notes[np.diff(notes[:, 0], prepend=-1.0) > 0.03].copy()
    notes[:-1, 1] = np.minimum(notes[:-1, 1], notes[1:, 0])
    rests = np.flatnonzero(notes[1:, 0] - notes[:-1, 1] > PHRASE) + 1
    return [part for part in np.split(notes, rests) if len(part)]


def render_voice(
    speaker: str, notes: Notes, samples: int, cents: float, rng: np.random.Generator
) -> Audio:
    """Sing notes, at times twice over.

    Args:
        speaker: As in `speak`.
        notes: (n, 4): start and end in seconds, pitch, velocity; one voice.
        samples: Length at 44.1 kHz.
        cents: Detuning.
        rng: Draws words, glides and vibrato.

    Returns:
        (samples,) float32.

    Raises:
        MissingProgram: Programs, speakers or pyworld are absent.
    """
    bank = repertoire(speaker)
    out = np.zeros(samples, dtype=np.float32)
    takes = 2 if rng.random() < 0.25 else 1
    for take in range(takes):
        for phrase in phrases(notes):
            late = float(rng.normal(0, 0.015)) if take else 0.0
            begin, sound = sing_phrase(bank, phrase, cents + 8 * take, rng)
            first = int((begin + late) * RENDER_RATE)
            sound = sound[max(0, -first) :]
            first = max(0, first)
            last = min(first + len(sound), samples)
            if first < last:
                out[first:last] += sound[: last - first]
    return out
