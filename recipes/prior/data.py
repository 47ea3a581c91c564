"""Training items from a rendered corpus: crops, remixing between songs, gains, muted stems.

The corpus is a folder written by ``recipes/corpus``: one int16 array (4, T) a song and an
``index.jsonl`` that names it. Songs may be added while a training runs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
import torch

from recipes.prior.timbre import equalised, reshaped

FULL_SCALE = 32768.0
KNOTS = 8

# Columns of a plan, see StemCorpus.plan; the last KNOTS are points of the equaliser, in dB.
SONG, START, SPEED, GAIN, RATIO, CONTRAST, EQUALISER = range(7)


@dataclass(frozen=True)
class Augmentation:
    """How crops are varied.

    Arguments:
        remix: the share of items whose stems come from four unrelated places.
        mute: the probability that a stem is silenced.
        stem_gain_db: standard deviation of each stem's gain, in dB.
        mix_gain_db: standard deviation of the common gain, in dB.
        equaliser_db: standard deviation, in dB, of each stem's frequency response at eight points
            of the mel scale (lines between them): sounds no sound set has.
        speed: the share of places that are played faster or slower, with their pitch.
        fastest: how much faster or slower at most, as the logarithm of the ratio.
        timbre: the share of stems whose spectral envelope is moved and flattened or sharpened, see
            `recipes.prior.timbre`: other sounds that play the same notes.
        moved: by how much at most, as the logarithm of the ratio.
        flattened: by how much the contrast of the envelope differs from 1 at most.
    """

    remix: float = 0.5
    mute: float = 0.08
    stem_gain_db: float = 2.0
    mix_gain_db: float = 2.5
    equaliser_db: float = 3.0
    speed: float = 0.3
    fastest: float = 0.08
    timbre: float = 0.0
    moved: float = 0.25
    flattened: float = 0.4


class StemCorpus:
    """The songs of one split.

    Arguments:
        folder: a folder with ``index.jsonl``.

    Raises:
        FileNotFoundError: if there is no index in the folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.index = self.folder / "index.jsonl"
        if not self.index.is_file():
            raise FileNotFoundError(
                f"{self.index} does not exist; render a corpus with recipes/corpus/render.py first"
            )
        self.songs: list[dict] = []
        self._maps: dict[str, np.ndarray] = {}
        self.refresh()

    def refresh(self) -> int:
        """Reads the index again and returns the number of songs."""
        lines = self.index.read_text().splitlines()
        songs = [json.loads(line) for line in lines if line.endswith("}")]
        # Two renderings at once may have listed a song twice.
        self.songs = list({song["file"]: song for song in songs}.values())
        return len(self.songs)

    @property
    def hours(self) -> float:
        return sum(song["samples"] for song in self.songs) / 22050 / 3600

    def stems(self, number: int) -> np.ndarray:
        """The song at a position of the index, int16 (4, T), memory-mapped."""
        file = self.songs[number]["file"]
        if file not in self._maps:
            if len(self._maps) > 900:  # stay well below the limit of open files
                self._maps.clear()
            self._maps[file] = np.load(self.folder / file, mmap_mode="r")
        return self._maps[file]

    def crop(
        self, rng: np.random.Generator, samples: int, songs: int, augmentation: Augmentation
    ) -> np.ndarray:
        """One training item, float32 (4, samples), from the first ``songs`` songs."""
        return self.played(self.plan(rng, samples, songs, augmentation), samples)

    def plan(
        self, rng: np.random.Generator, samples: int, songs: int, augmentation: Augmentation
    ) -> np.ndarray:
        """What a training item is made of: a row of numbers for each stem, float64 (4, columns).

        All that is random about it: the song's position in the index, the first sample, the speed,
        the gain (with its polarity, 0 for silence), ratio and contrast of the spectral envelope,
        and the equaliser's points in dB. :meth:`played` and ``ResidentSongs`` make audio of it.
        """
        rows = np.zeros((4, EQUALISER + KNOTS))
        if rng.random() < augmentation.remix:
            places = [self._place(rng, samples, songs, augmentation) for _ in range(4)]
        else:
            places = [self._place(rng, samples, songs, augmentation)] * 4
        gain = rng.normal(0.0, augmentation.mix_gain_db)
        for row, place in zip(rows, places, strict=True):
            silent = rng.random() < augmentation.mute
            row[:] = self._row(None if silent else rng, place, gain, augmentation)
        return rows

    def single_plan(
        self,
        rng: np.random.Generator,
        samples: int,
        songs: int,
        gain: float,
        augmentation: Augmentation,
    ) -> np.ndarray:
        """A plan of one row, of songs with one: some place, varied as stems are; gain in dB."""
        place = self._place(rng, samples, songs, augmentation)
        return self._row(rng, place, gain, augmentation)[None]

    def played(self, plan: np.ndarray, samples: int) -> np.ndarray:
        """The audio of a plan, float32 (rows, samples)."""
        out = np.zeros((len(plan), samples), np.float32)
        for k, row in enumerate(plan):
            if row[GAIN]:
                out[k] = self._part(row, k, samples)
        return out

    def _row(
        self,
        rng: np.random.Generator | None,
        place: tuple[int, int, float],
        gain: float,
        augmentation: Augmentation,
    ) -> np.ndarray:
        """A row of a plan; silent without a generator."""
        row = np.zeros(EQUALISER + KNOTS)
        row[[SONG, START, SPEED]] = place
        row[CONTRAST] = 1.0
        if rng is None:
            return row
        db = gain + rng.normal(0.0, augmentation.stem_gain_db)
        polarity = 1.0 if rng.random() < 0.5 else -1.0
        row[GAIN] = polarity * 10 ** (db / 20)
        row[EQUALISER:] = rng.normal(0.0, augmentation.equaliser_db, KNOTS)
        if augmentation.timbre and rng.random() < augmentation.timbre:
            row[RATIO] = rng.uniform(-augmentation.moved, augmentation.moved)
            row[CONTRAST] += rng.uniform(-augmentation.flattened, augmentation.flattened)
        return row

    def _part(self, row: np.ndarray, k: int, samples: int) -> np.ndarray:
        """Row k of the place that a plan's row names, varied as it says, float32 (samples,)."""
        start, speed = int(row[START]), float(row[SPEED])
        wanted = samples if speed == 1.0 else int(samples * speed) + 2
        source = self.stems(int(row[SONG]))[k, start : start + wanted] / np.float32(FULL_SCALE)
        if speed != 1.0:
            source = soxr.resample(source, speed, 1.0, quality="HQ")[:samples]
        sound = torch.from_numpy(source)[None]
        if row[RATIO] or row[CONTRAST] != 1.0:
            change = (torch.tensor([row[column]]) for column in (RATIO, CONTRAST))
            sound = reshaped(sound, *change)
        sound = equalised(sound, torch.from_numpy(row[None, EQUALISER:]).float())
        source = sound[0].numpy() * np.float32(row[GAIN])
        return np.pad(source, (0, samples - len(source)))

    def _place(
        self, rng: np.random.Generator, samples: int, songs: int, augmentation: Augmentation
    ) -> tuple[int, int, float]:
        """A song, a start in it, and a speed."""
        song = int(rng.integers(songs))
        speed = 1.0
        if rng.random() < augmentation.speed:
            speed = float(np.exp(rng.uniform(-augmentation.fastest, augmentation.fastest)))
        spare = max(0, self.songs[song]["samples"] - int(samples * speed) - 2)
        return song, int(rng.integers(spare + 1)), speed


def validation_crops(folder: str | Path, samples: int, per_song: int = 1) -> np.ndarray:
    """Fixed, untouched crops of every song, float32 (N, 4, samples), evenly spaced in each; in the
    order of the songs, whichever was rendered first."""
    corpus = StemCorpus(folder)
    crops = []
    numbers = [int(song["song"]) if "song" in song else n for n, song in enumerate(corpus.songs)]
    for number in sorted(range(len(numbers)), key=numbers.__getitem__):
        stems = corpus.stems(number)
        for part in range(per_song):
            start = int((stems.shape[1] - samples) * (part + 0.5) / per_song)
            crops.append(stems[:, start : start + samples].astype(np.float32) / FULL_SCALE)
    return np.stack(crops)
