"""The clips that methods are compared on: one crop of each of some songs of a split.

Of twelve evenly spaced places in a song the clip is at the one where the quietest stem is loudest,
so that as many stems as possible play; or, for what a method does with stems that are not there,
at the one where it is quietest.

A folder that :mod:`recipes.compare.pack` wrote has some lists' clips alone and stands in for a
split of the corpus where that is too large to go.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from mgdm_audio.metrics import is_silent
from recipes.prior.data import FULL_SCALE, StemCorpus

RATE = 22_050
"""Sample rate of the corpus in hertz."""

PLACES = 12

PACKED = "clips.json"
"""Index of a folder of packed clips."""


@dataclass(frozen=True)
class ClipList:
    """How many clips, how long, and from where in a song.

    Arguments:
        songs: at most so many songs, evenly spaced in the split's list.
        samples: length of a clip at 22050 Hz.
        sparse: whether the clip is where the quietest stem is quietest, not loudest.
        active: whether songs are left out in whose clip a stem is silent (see
            :func:`mgdm_audio.metrics.is_silent`), before they are chosen.
    """

    songs: int
    samples: int
    sparse: bool = False
    active: bool = False


LISTS = {
    # One window of the separator, which is also one chunk of the papers: 11.9 s.
    "full": ClipList(24, 262_144),
    "small": ClipList(12, 6 * RATE),
    "tune": ClipList(4, 4 * RATE, active=True),
    "sparse": ClipList(4, 6 * RATE, sparse=True),
}
"""The lists by name."""


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip with its true stems.

    Attributes:
        name: split and song, such as "test-007".
        song: number of the song in its split, from 0.
        stems: float32 (4, T), full scale at 1; the mixture is their sum.
        digest: of the stems' samples: another rendering is another clip.
        start: where in the song it begins, in samples.
    """

    name: str
    song: int
    stems: NDArray[np.float32]
    digest: str
    start: int = 0

    @property
    def mix(self) -> NDArray[np.float32]:
        return self.stems.sum(0)

    @property
    def seconds(self) -> float:
        return self.stems.shape[1] / RATE


def clips(folder: str | Path, which: ClipList) -> list[Clip]:
    """The clips of a list from a split's folder, or a packed one, in the order of the songs.

    Raises:
        FileNotFoundError: if the folder has no index.
        ValueError: if a song is shorter than a clip; if the list was not packed, or a packed clip
            is not what it was.
    """
    folder = Path(folder)
    if (folder / PACKED).is_file():
        return _packed(folder, which)
    corpus = StemCorpus(folder)
    found = []
    for number in sorted(range(len(corpus.songs)), key=lambda n: corpus.songs[n]["song"]):
        stems, song = corpus.stems(number), int(corpus.songs[number]["song"])
        if stems.shape[1] < which.samples:
            raise ValueError(
                f"song {song} of {folder} has {stems.shape[1]} samples, a clip of this list has "
                f"{which.samples}; render longer songs or take another list"
            )
        start = _place(stems, which)
        part = np.ascontiguousarray(stems[:, start : start + which.samples])
        if not which.active or not is_silent(part / FULL_SCALE).any():
            found.append((song, start, part))
    chosen = np.linspace(0, len(found) - 1, min(which.songs, len(found)))
    return [_clip(folder, *found[round(i)]) for i in chosen]


def _clip(folder: Path, song: int, start: int, part: NDArray[np.int16]) -> Clip:
    return Clip(
        name=f"{folder.name}-{song:03d}",
        song=song,
        stems=part.astype(np.float32) / np.float32(FULL_SCALE),
        digest=hashlib.sha256(part.tobytes()).hexdigest(),
        start=start,
    )


def _packed(folder: Path, which: ClipList) -> list[Clip]:
    """The clips of a list from a packed folder."""
    lists = json.loads((folder / PACKED).read_text(encoding="utf-8"))
    lines = next((x["clips"] for x in lists if x["list"] == dataclasses.asdict(which)), None)
    if lines is None:
        raise ValueError(f"{folder} does not have this list; pack it with recipes/compare/pack.py")
    found = []
    for line in lines:
        start = line["start"]
        sound, _ = sf.read(
            folder / line["file"], which.samples, start - line["from"], dtype="int16"
        )
        clip = _clip(folder, line["song"], start, np.ascontiguousarray(sound.T))
        if clip.digest != line["digest"]:
            raise ValueError(f"{folder / line['file']} is not what was packed; pack it again")
        found.append(clip)
    return found


def _place(stems: NDArray[np.int16], which: ClipList) -> int:
    """First sample of the clip in a song (4, T)."""
    starts = np.linspace(0, stems.shape[1] - which.samples, PLACES).astype(int)
    levels = [
        np.square(stems[:, s : s + which.samples] / FULL_SCALE).mean(axis=1).min() for s in starts
    ]
    best = np.argmin(levels) if which.sparse else np.argmax(levels)
    return int(starts[best])
