"""SFZ instruments through sfizz (the program `sfizz_render`), mono float32 at 44.1 kHz.

sfizz draws its round robins from an unseeded generator, writes 16-bit files, and what it reads from
disk while it plays may come late. An instrument is therefore rewritten before use: its includes are
put in line, random choices of samples become rotations, other random opcodes are dropped, samples
are held in memory, and its level is lowered until nothing clips.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import shutil
import subprocess
import sysconfig
import tempfile
from functools import lru_cache
from pathlib import Path

import mido
import numpy as np
import soundfile
from numpy.typing import NDArray

from recipes.corpus.grooves import MissingProgram
from recipes.corpus.synth import RENDER_RATE

Audio = NDArray[np.float32]

FULL = 0.98  # a file that reaches this is taken as clipped and rendered again,
STEP = 12.0  # so many dB softer
TRIES = 5
SAMPLE = re.compile(r"\bsample=(.*?)(?=\s+\w+=|\s*<|\s*$)", re.MULTILINE)


@lru_cache(maxsize=1)
def sfizz() -> str:
    """Return the path of sfizz_render.

    Raises:
        MissingProgram: It is neither on the path nor among the files of the package pysfizz.
    """
    beside = Path(sysconfig.get_paths()["purelib"], "bin", "sfizz_render")
    found = shutil.which("sfizz_render") or (str(beside) if beside.exists() else None)
    if found is None:
        raise MissingProgram(
            f"sfizz_render was not found: `pip install pysfizz==0.1.3`, then `chmod +x {beside}`"
        )
    return found


def _rotate(match: re.Match[str]) -> str:
    """Turn the random window of a region, lorand to hirand, into its place in a rotation."""
    bounds = dict(re.findall(r"\b(lorand|hirand)=([0-9.]+)", match.group(0)))
    low, high = float(bounds.get("lorand", 0)), float(bounds.get("hirand", 1))
    text = re.sub(r"[ \t]*\b(lorand|hirand)=[0-9.]+", "", match.group(0))
    if high - low <= 0 or high - low > 0.99:
        return text
    count = max(round(1 / (high - low)), 1)
    place = min(int(low * count + 0.5), count - 1) + 1
    return f"{text.rstrip()}\nseq_length={count} seq_position={place}\n"


def _key(text: str) -> int:
    """Read a key: a MIDI number or a name such as c#4 (60 is c4)."""
    named = re.fullmatch(r"([a-gA-G])([#b]?)(-?\d+)", text)
    if named is None:
        return int(text)
    step = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}[named.group(1).lower()]
    return step + {"#": 1, "b": -1, "": 0}[named.group(2)] + 12 * (int(named.group(3)) + 1)


def mapped(folder: Path) -> str:
    """Map a folder of files named for their notes (Gs2.wav) over the keys, each to its nearest.

    Raises:
        MissingProgram: The folder has no such file.
    """
    keys = {
        _key(path.stem.replace("s", "#")): path.name
        for path in folder.glob("*.wav")
        if re.fullmatch(r"[A-G]s?\d", path.stem)
    }
    if not keys:
        raise MissingProgram(f"{folder} has no samples such as C4.wav: fetch the set anew")
    centres = sorted(keys)
    edges = [0, *((a + b + 1) // 2 for a, b in itertools.pairwise(centres)), 128]
    return "<global> ampeg_release=0.25\n" + "".join(
        f"<region> sample={keys[k]} pitch_keycenter={k} lokey={low} hikey={high - 1}\n"
        for k, low, high in zip(centres, edges, edges[1:], strict=False)
    )


def flatten(path: Path) -> str:
    """Return an instrument as one text that has no randomness left.

    Args:
        path: An .sfz file; files it includes are looked for from its folder. Or a folder of samples
            named for their notes.

    Raises:
        MissingProgram: A file that it includes is absent.
    """
    defined: dict[str, str] = {}

    def expand(text: str) -> str:
        for name in sorted(defined, key=len, reverse=True):
            text = text.replace(name, defined[name])
        return text

    def read(file: Path) -> str:
        if not file.is_file():
            raise MissingProgram(f"{path} includes {file}, which is absent: fetch the set anew")
        lines: list[str] = []
        for line in file.read_text(errors="replace").splitlines():
            line = re.sub(r"(^|\s)//.*", "", line)
            while define := re.search(r"#define\s+(\$\w+)\s+(\S+)", line):
                defined[define.group(1)] = define.group(2)
                line = line[: define.start()] + line[define.end() :]
            while include := re.search(r'#include\s+"([^"]+)"', line):
                lines.append(expand(line[: include.start()]))
                lines.append(read(path.parent / expand(include.group(1)).replace("\\", "/")))
                line = line[include.end() :]
            lines.append(expand(line))
        return "\n".join(lines)

    if path.is_dir():
        return mapped(path)
    text = read(path).replace("$sample_dir", "../Samples")
    text = re.sub(r"\b(amp|pitch|fil|offset|delay)_?random=\S+", "", text)
    return re.sub(r"<(group|region)>[^<]*", _rotate, text)


def missing_samples(text: str, folder: Path) -> list[str]:
    """Return the samples of a flattened instrument that are absent (sfizz plays a tone instead)."""
    lacking: set[str] = set()
    prefix = ""
    for line in text.splitlines():
        start = re.search(r"\bdefault_path=(\S.*?)\s*$", line)
        if start:
            prefix = start.group(1)
        for name in SAMPLE.findall(line):
            if name.strip() == "*silence":
                continue
            if not (folder / (prefix + name.strip()).replace("\\", "/")).is_file():
                lacking.add(name.strip())
    return sorted(lacking)


def only_keys(text: str, pitches: set[int]) -> str:
    """Leave out the regions that none of the pitches reaches, so that they need not be loaded."""
    order = ("global", "master", "group", "region")
    ranges: dict[str, tuple[int | None, int | None]] = {}
    kept: list[str] = []
    parts = re.split(r"<(\w+)>", text)
    kept.append(parts[0])
    for header, body in zip(parts[1::2], parts[2::2], strict=True):
        if header in order:
            found = dict(re.findall(r"\b(key|lokey|hikey)=([#\w-]+)", body))
            low, high = found.get("lokey", found.get("key")), found.get("hikey", found.get("key"))
            ranges = {k: v for k, v in ranges.items() if order.index(k) < order.index(header)}
            ranges[header] = (_key(low) if low else None, _key(high) if high else None)
        if header == "region":
            lows = [ranges[k][0] for k in order if k in ranges and ranges[k][0] is not None]
            highs = [ranges[k][1] for k in order if k in ranges and ranges[k][1] is not None]
            low_key, high_key = (lows or [0])[-1] or 0, (highs or [127])[-1]
            if not any(low_key <= pitch <= (high_key or 0) for pitch in pitches):
                continue
        kept.append(f"<{header}>{body}")
    return "".join(kept)


_SPACE: list[tempfile.TemporaryDirectory[str]] = []


@lru_cache(maxsize=256)
def _prepared(path: Path) -> tuple[str, Path]:
    """Return the flattened instrument and a folder with links to its samples to write it to.

    Raises:
        MissingProgram: Samples are absent; sfizz would play a tone in their place.
    """
    text = flatten(path)
    folder = path if path.is_dir() else path.parent
    lacking = missing_samples(text, folder)
    if lacking:
        raise MissingProgram(
            f"{path} lacks {len(lacking)} samples, the first {lacking[0]}: fetch the set anew"
        )
    if not _SPACE:
        _SPACE.append(tempfile.TemporaryDirectory(prefix="sfz"))
    root = Path(_SPACE[0].name, hashlib.sha1(str(path).encode()).hexdigest()[:12])
    home = root / folder.name
    home.mkdir(parents=True)
    for entry in folder.parent.iterdir():
        if entry != folder:
            (root / entry.name).symlink_to(entry)
    for entry in folder.iterdir():
        (home / entry.name).symlink_to(entry)
    return text, home


def _instrument(text: str, gain: float, pitches: set[int]) -> str:
    """Return an instrument with what is needed for the pitches, in memory, at a gain in dB."""
    text = "<control> hint_ram_based=1\n" + only_keys(text, pitches)
    if "<global>" in text:
        return text.replace("<global>", f"<global> global_volume={gain:g} ")
    return re.sub(
        r"<(group|region|master)>", f"<global> global_volume={gain:g}\n<\\1>", text, count=1
    )


def midi_file(
    notes: NDArray[np.float64], samples: int, cents: float, controls: dict[int, int]
) -> mido.MidiFile:
    """Return notes (n, 4), in seconds, as a MIDI file of one track and channel."""
    midi = mido.MidiFile(ticks_per_beat=960)
    track = mido.MidiTrack()
    midi.tracks.append(track)
    track.append(mido.MetaMessage("set_tempo", tempo=1_000_000))  # a beat is a second
    for number, value in controls.items():
        track.append(mido.Message("control_change", control=number, value=value))
    track.append(mido.Message("pitchwheel", pitch=int(np.clip(cents / 200 * 8192, -8192, 8191))))
    events: list[tuple[int, int, int, int]] = []
    for start, end, pitch, velocity in notes:
        first, last = round(start * 960), round(end * 960)
        events.append((first, 1, int(pitch), int(np.clip(round(velocity), 1, 127))))
        events.append((max(last, first + 1), 0, int(pitch), 0))
    now = 0
    for tick, on, pitch, velocity in sorted(events):
        kind = "note_on" if on else "note_off"
        track.append(mido.Message(kind, note=pitch, velocity=velocity, time=tick - now))
        now = tick
    length = round(samples / RENDER_RATE * 960)
    track.append(mido.MetaMessage("end_of_track", time=max(length - now, 0)))
    return midi


def render_sfz(
    path: Path,
    notes: NDArray[np.float64],
    samples: int,
    cents: float = 0.0,
    controls: dict[int, int] | None = None,
    gain: float = 0.0,
) -> Audio:
    """Render notes with an SFZ instrument.

    Args:
        path: The .sfz file.
        notes: (n, 4): start and end in seconds, pitch, velocity.
        samples: Length at 44.1 kHz.
        cents: Detuning, within 200.
        controls: MIDI controllers set before the first note.
        gain: Volume in dB given to sfizz, so that soft sets use the bits of its 16-bit file.

    Returns:
        (samples,) float32, mean of both channels.

    Raises:
        MissingProgram: sfizz_render or samples of the instrument are absent.
        ValueError: sfizz failed.
    """
    sound = np.zeros(0, dtype=np.float32)
    text, home = _prepared(path)
    pitches = {int(pitch) for pitch in notes[:, 2]}
    for attempt in range(TRIES):
        with tempfile.TemporaryDirectory(prefix="play", dir=home) as folder:
            source, target = Path(folder, "in.mid"), Path(folder, "out.wav")
            instrument = home / f"{Path(folder).name}.sfz"
            instrument.write_text(_instrument(text, gain - STEP * attempt, pitches))
            midi_file(notes, samples, cents, controls or {}).save(source)
            done = subprocess.run(
                [
                    sfizz(),
                    "--sfz",
                    str(instrument),
                    "--midi",
                    str(source),
                    "--wav",
                    str(target),
                    "--samplerate",
                    str(RENDER_RATE),
                    "--use-eot",
                ],
                capture_output=True,
                text=True,
                timeout=300,
            )
            if done.returncode != 0 or not target.exists():
                told = (done.stderr or done.stdout)[-300:]
                raise ValueError(f"sfizz failed on {path}: {told}")
            instrument.unlink()
            stereo, _ = soundfile.read(target, dtype="float32", always_2d=True)
        if len(stereo) == 0 or np.abs(stereo).max() < FULL:
            sound = stereo.mean(1)
            break
    else:
        lowest = gain - STEP * (TRIES - 1)
        raise ValueError(f"{path} clips at {lowest:g} dB still: leave it out of sources.tsv")
    return np.pad(sound, (0, max(0, samples - len(sound))))[:samples].astype(np.float32)
