"""A track of Slakh2100 as its four stems: sources summed by class, at 22.05 kHz.

A class is decided by the General MIDI program (piano 0-7, guitar 24-31, bass 32-39, drums 128 or
the drum flag); sources of other programs are left out. The sources of a class are added as they
are, without any normalisation, and the sum is resampled. What is wrong with a track is counted and
never stops the rest.

A folder without metadata that holds bass.wav, drums.wav, guitar.wav or piano.wav is one of the
ready tracks of MSDM's authors: these are its stems, and one that is absent is silent.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

from mgdm_audio import STEMS
from mgdm_audio.audio import resample

VERSION = 1
"""Rises with every change that alters samples; each track's record has it."""

RATE = 22050
FULL_SCALE = 32768.0
READY_SPREAD = RATE // 10
"""Samples by which ready stems may differ in length, as by their authors."""

PROGRAMS = {
    **dict.fromkeys(range(0, 8), "piano"),
    **dict.fromkeys(range(24, 32), "guitar"),
    **dict.fromkeys(range(32, 40), "bass"),
    128: "drums",
}
FAULTS = {
    "metadata": "metadata missing or unreadable (track left out)",
    "no_audio": "no source of the four classes could be read (track left out)",
    "missing": "source listed as rendered, file missing",
    "unreadable": "source file empty or not audio",
    "not_finite": "source with samples that are not finite",
    "channels": "source with several channels (their mean was taken)",
    "rates": "sources with different sampling rates (track left out)",
    "unequal": "source shorter than the longest (padded with silence)",
    "silent": "source that is silent throughout",
    "clipped": "stem beyond full scale (clipped)",
    "ready_rate": f"ready stem of another sampling rate than {RATE} Hz (track left out)",
    "ready_lengths": "ready stems that differ by more than 0.1 s (track left out)",
    "ready_longer": "ready stem longer than the shortest (cropped)",
}
"""The kinds of faults, as they are counted; one count is one source, stem or track."""


@dataclass
class Track:
    """What became of a track.

    Attributes:
        name: TrackNNNNN.
        samples: length at 22.05 kHz; 0 if the track was left out.
        sources: number of sources by stem.
        others: number of sources of other classes.
        rms: level of each stem.
        mixture_rms: level of the sum of the stems.
        faults: what was wrong, by key of FAULTS, each "source" or "".
        origin: size of every source file, or ready stem, from which a change is noticed.
        version: see VERSION.
    """

    name: str
    samples: int = 0
    sources: dict[str, int] = field(default_factory=dict)
    others: int = 0
    rms: dict[str, float] = field(default_factory=dict)
    mixture_rms: float = 0.0
    faults: list[tuple[str, str]] = field(default_factory=list)
    origin: dict[str, int] = field(default_factory=dict)
    version: int = VERSION

    def counts(self) -> Counter[str]:
        """Faults by kind."""
        return Counter(kind for kind, _ in self.faults)


def stem_of(entry: Any) -> str | None:
    """The class of a source by its metadata, or None for one that is left out."""
    if not isinstance(entry, dict):
        return None
    if entry.get("is_drum") is True:
        return "drums"
    program = entry.get("program_num")
    return PROGRAMS.get(program) if type(program) is int else None


def read_metadata(folder: Path) -> dict[str, Any]:
    """The sources of a track, by id, in order.

    Raises:
        ValueError: if the file is missing, not YAML, or lists no stems.
    """
    try:
        content = yaml.safe_load((folder / "metadata.yaml").read_text(encoding="utf-8"))
        stems = content["stems"]
        return {str(key): stems[key] for key in sorted(stems)}
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise ValueError(f"{folder}: {error}") from error


def _source(path: Path, key: str, track: Track) -> tuple[np.ndarray, int] | None:
    """Samples (T,) and rate of a source's file, or None, with what was wrong noted."""
    track.origin[key] = path.stat().st_size
    try:
        samples, rate = soundfile.read(path, dtype="float64", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, OSError):
        samples, rate = np.zeros((0, 1)), 0
    if not len(samples):
        track.faults.append(("unreadable", key))
        return None
    if not np.isfinite(samples).all():
        track.faults.append(("not_finite", key))
        return None
    if samples.shape[1] > 1:
        track.faults.append(("channels", key))
    mono = samples.mean(1)
    if not mono.any():
        track.faults.append(("silent", key))
    return mono, rate


def convert(folder: Path, name: str) -> tuple[Track, np.ndarray | None]:
    """The stems of a track.

    Returns:
        What became of it, and int16 (4, T) at 22.05 kHz, 32768 being 1.0, in the order of STEMS;
        None for a track that is left out.
    """
    track = Track(name)
    ready = ready_stems(folder)
    stems = _read_ready(ready, track) if ready else _summed(folder, track)
    if stems is None:
        return track, None
    peak = np.abs(stems).max(1)
    for stem, value in zip(STEMS, peak, strict=True):
        if value > 1:
            track.faults.append(("clipped", stem))
    pcm = np.clip(np.rint(stems * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
    track.samples = stems.shape[1]
    level = np.sqrt(np.mean(np.square(stems), axis=1))
    track.rms = {stem: float(value) for stem, value in zip(STEMS, level, strict=True)}
    track.mixture_rms = float(np.sqrt(np.mean(np.square(stems.sum(0)))))
    return track, pcm


def ready_stems(folder: Path) -> dict[str, Path]:
    """The files of a ready track by stem; none where there is metadata, which goes first."""
    if (folder / "metadata.yaml").is_file():
        return {}
    paths = {stem: folder / f"{stem}.wav" for stem in STEMS}
    return {stem: path for stem, path in paths.items() if path.is_file()}


def _read_ready(paths: dict[str, Path], track: Track) -> np.ndarray | None:
    """The stems of a ready track, (4, T), or None for one that is left out."""
    stems: dict[str, np.ndarray] = {}
    for stem, path in paths.items():
        read = _source(path, stem, track)
        if read is None:
            continue
        stems[stem], rate = read
        track.sources[stem] = 1
        if rate != RATE:
            track.faults.append(("ready_rate", stem))
    if not stems:
        track.faults.append(("no_audio", ""))
    lengths = {stem: len(samples) for stem, samples in stems.items()}
    shortest = min(lengths.values(), default=0)
    if max(lengths.values(), default=0) - shortest > READY_SPREAD:
        track.faults.append(("ready_lengths", ""))
    if track.counts().keys() & {"ready_rate", "no_audio", "ready_lengths"}:
        return None
    track.faults += [("ready_longer", stem) for stem, n in lengths.items() if n > shortest]
    silence = np.zeros(shortest)
    return np.stack([stems.get(stem, silence)[:shortest] for stem in STEMS])


def _summed(folder: Path, track: Track) -> np.ndarray | None:
    """The stems of a track made of its sources, (4, T), or None for one that is left out."""
    try:
        metadata = read_metadata(folder)
    except ValueError:
        track.faults.append(("metadata", ""))
        return None
    sums: dict[str, np.ndarray] = {}
    lengths: dict[str, int] = {}
    rates = set()
    for key, entry in metadata.items():
        stem = stem_of(entry)
        if stem is None:
            track.others += 1
            continue
        # More sources are listed than were rendered; that is no fault.
        if entry.get("audio_rendered") is False:
            continue
        files = [folder / "stems" / f"{key}.{extension}" for extension in ("flac", "wav")]
        path = next((p for p in files if p.is_file()), None)
        if path is None:
            track.faults.append(("missing", key))
            continue
        read = _source(path, key, track)
        if read is None:
            continue
        samples, rate = read
        rates.add(rate)
        lengths[key] = len(samples)
        total = sums.get(stem, np.zeros(0))
        longer, shorter = (total, samples) if len(total) > len(samples) else (samples, total)
        longer = longer.copy()
        longer[: len(shorter)] += shorter
        sums[stem] = longer
        track.sources[stem] = track.sources.get(stem, 0) + 1
    if not sums or len(rates) > 1:
        track.faults.append(("rates", "") if sums else ("no_audio", ""))
        return None
    longest = max(lengths.values())
    track.faults += [("unequal", key) for key, n in lengths.items() if n < longest]
    rate = rates.pop()
    samples_out = -(-longest * RATE // rate)
    stems = np.zeros((len(STEMS), samples_out))
    for row, stem in zip(stems, STEMS, strict=True):
        if stem in sums:
            padded = np.pad(sums[stem], (0, longest - len(sums[stem])))
            row[:] = resample(padded, rate, RATE, samples_out)
    return stems


def prepare_track(folder: str, name: str, out: str) -> Track:
    """Converts a track into ``out/TrackNNNNN.npy`` and its record ``out/TrackNNNNN.json``.

    A track whose record is there, of this version and of the same source files, is left alone.
    """
    record = Path(out) / f"{name}.json"
    done = load_record(record)
    if done is not None and done.version == VERSION and _same_origin(Path(folder), done):
        return done
    track, pcm = convert(Path(folder), name)
    if pcm is not None:
        part = Path(out) / f".{name}.{os.getpid()}.npy"
        np.save(part, pcm)
        os.replace(part, Path(out) / f"{name}.npy")
    part = record.with_name(f".{name}.{os.getpid()}.json")
    part.write_text(json.dumps(track.__dict__) + "\n")
    os.replace(part, record)
    return track


def load_record(path: Path) -> Track | None:
    """What became of a track, or None if it was not converted (whole)."""
    try:
        content = json.loads(path.read_text())
        content["faults"] = [(kind, what) for kind, what in content["faults"]]
        track = Track(**content)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return track if not track.samples or path.with_suffix(".npy").is_file() else None


def _same_origin(folder: Path, track: Track) -> bool:
    """Whether the files that a track was made of are still there with the same sizes."""
    ready = ready_stems(folder)
    if ready or track.origin.keys() & set(STEMS):
        return track.origin == {stem: path.stat().st_size for stem, path in ready.items()}
    sizes = {p.stem: p.stat().st_size for p in sorted((folder / "stems").glob("S*.*"))}
    absent = {what for kind, what in track.faults if kind == "missing"}
    metadata = ("metadata", "") in track.faults and (folder / "metadata.yaml").is_file()
    return (
        not metadata
        and all(sizes.get(key) == size for key, size in track.origin.items())
        and not absent & sizes.keys()
    )
