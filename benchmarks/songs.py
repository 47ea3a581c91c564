"""Short stereo songs at 44.1 kHz with known stems, rendered with fluidsynth from a soundfont.

A song has bass, drums, guitar and piano, each panned, with the soundfont's own stereo and some
reverberation, and if asked an instrument that none of the four is. Everything follows from the
seed and the soundfont.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import mido
import numpy as np
import soundfile as sf

RATE = 44100
SOUNDFONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
STEMS = ("bass", "drums", "guitar", "piano")

PROGRAMS = {
    "bass": (32, 33, 34, 36, 38),
    "drums": (0, 8, 16, 25, 32),
    "guitar": (24, 25, 26, 27, 28, 29),
    "piano": (0, 1, 2, 4, 5),
    "flute": (73,),
    "strings": (48, 49),
    "choir": (52, 53),
}
PANS = {"bass": (64,), "drums": (64,), "guitar": (20, 34, 94, 108), "piano": (30, 50, 78, 98)}
_SCALE = (0, 2, 4, 5, 7, 9, 11)
_TICKS = 480


def song(
    seed: int, seconds: float = 12.0, extra: str | None = None, soundfont: Path = SOUNDFONT
) -> tuple[dict[str, np.ndarray], int]:
    """The stems of a song.

    Arguments:
        seed: decides notes, programs, pans and levels.
        seconds: length of the song.
        extra: ``flute``, ``strings`` or ``choir``, or None.
        soundfont: a General MIDI soundfont.

    Returns:
        Stems by name, each with shape (2, T), float32, and the sample rate. Their sum peaks at 0.8.
    """
    rng = np.random.default_rng(seed)
    tempo = float(rng.uniform(84, 132))
    root = int(rng.integers(0, 12))
    chords = [int(x) for x in rng.choice([0, 3, 4, 5], size=4)]
    stems = {}
    for name in (*STEMS, *([extra] if extra else [])):
        program = int(rng.choice(PROGRAMS[name]))
        pan = int(rng.choice(PANS.get(name, (40, 88))))
        notes = _notes(name, rng, root, chords, seconds * tempo / 60)
        stems[name] = _render(notes, name, program, pan, tempo, seconds, soundfont)
    levels = {"bass": -20.0, "drums": -19.0, "guitar": -22.0, "piano": -22.0}
    for name, x in stems.items():
        level = levels.get(name, -21.0) + float(rng.uniform(-2, 2))
        stems[name] = x * np.float32(10 ** (level / 20) / max(1e-6, np.sqrt(np.mean(x**2))))
    peak = np.abs(np.sum(list(stems.values()), axis=0)).max()
    return {name: x * np.float32(0.8 / peak) for name, x in stems.items()}, RATE


def _notes(
    name: str, rng: np.random.Generator, root: int, chords: list[int], beats: float
) -> list[tuple[float, float, int, int]]:
    """(start, length, key, velocity) in beats."""
    notes: list[tuple[float, float, int, int]] = []
    for bar in range(int(np.ceil(beats / 4))):
        degree = chords[bar % 4]
        chord = [root + _SCALE[(degree + i) % 7] + 12 * ((degree + i) // 7) for i in (0, 2, 4)]
        at = 4.0 * bar

        def add(start: float, length: float, key: int, at: float = at) -> None:
            notes.append((at + start, length, key, int(rng.integers(75, 115))))

        if name == "drums":
            for eighth in range(8):
                add(eighth / 2, 0.25, 46 if rng.random() < 0.15 else 42)
                if eighth in (0, 4) or rng.random() < 0.2:
                    add(eighth / 2, 0.25, 36)
                if eighth in (2, 6):
                    add(eighth / 2, 0.25, 38)
            if bar % 4 == 0:
                add(0, 1, 49)
        elif name == "bass":
            for eighth in range(8):
                if eighth % 2 == 0 or rng.random() < 0.5:
                    add(eighth / 2, 0.45, 36 + chord[0] % 12 + int(rng.choice([0, 0, 0, 7])))
        elif name == "guitar":
            for eighth in range(8):
                if rng.random() < 0.75:
                    for key in chord:
                        add(eighth / 2 + 0.02 * (key % 3), 0.4, 52 + key % 12)
        elif name == "piano":
            for half in (0, 2):
                for key in chord:
                    add(half, 1.8, 60 + key % 12)
            for _ in range(3):
                add(float(rng.integers(0, 8)) / 2, 0.5, 72 + chord[int(rng.integers(0, 3))] % 12)
        elif name == "flute":
            for start in (0.0, 1.0, 1.5, 2.5):
                add(start, 0.95, 72 + chord[int(rng.integers(0, 3))] % 12)
        else:
            for key in chord:
                add(0, 3.9, 60 + key % 12)
    return notes


def _render(
    notes: list[tuple[float, float, int, int]],
    name: str,
    program: int,
    pan: int,
    tempo: float,
    seconds: float,
    soundfont: Path,
) -> np.ndarray:
    """The notes as played by the soundfont, (2, T)."""
    channel = 9 if name == "drums" else 0
    events = [(0.0, mido.Message("program_change", channel=channel, program=program))]
    for control, value in ((10, pan), (91, 40), (7, 110)):
        change = mido.Message("control_change", channel=channel, control=control, value=value)
        events.append((0.0, change))
    for start, length, key, velocity in notes:
        on = mido.Message("note_on", channel=channel, note=key, velocity=velocity)
        off = mido.Message("note_off", channel=channel, note=key)
        events += [(start, on), (start + length, off)]
    events.sort(key=lambda event: (event[0], event[1].type == "note_on"))
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(tempo))])
    last = 0
    for beat, message in events:
        tick = round(beat * _TICKS)
        track.append(message.copy(time=tick - last))
        last = tick
    with tempfile.TemporaryDirectory() as folder:
        midi, wave = Path(folder) / "song.mid", Path(folder) / "song.wav"
        mido.MidiFile(ticks_per_beat=_TICKS, tracks=[track]).save(midi)
        subprocess.run(
            ["fluidsynth", "-ni", "-q", "-g", "0.5", "-r", str(RATE), "-O", "float",
             "-F", str(wave), str(soundfont), str(midi)],
            check=True, capture_output=True,
        )  # fmt: skip
        x = sf.read(wave, dtype="float32", always_2d=True)[0].T
    length = round(seconds * RATE)
    return np.ascontiguousarray(np.pad(x, ((0, 0), (0, max(0, length - x.shape[1]))))[:, :length])
