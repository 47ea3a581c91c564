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

FULL_SCALE = 32768.0


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
    """

    remix: float = 0.5
    mute: float = 0.08
    stem_gain_db: float = 2.0
    mix_gain_db: float = 2.5
    equaliser_db: float = 3.0
    speed: float = 0.3
    fastest: float = 0.08


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
        stems = np.zeros((4, samples), np.float32)
        if rng.random() < augmentation.remix:
            places = [self._place(rng, samples, songs, augmentation) for _ in range(4)]
        else:
            places = [self._place(rng, samples, songs, augmentation)] * 4
        gain = rng.normal(0.0, augmentation.mix_gain_db)
        for k, place in enumerate(places):
            if rng.random() >= augmentation.mute:
                stems[k] = self._part(rng, samples, k, place, gain, augmentation)
        return stems

    def single(
        self, rng: np.random.Generator, samples: int, gain: float, augmentation: Augmentation
    ) -> np.ndarray:
        """The first row of some place, varied as stems are, (samples,); the gain is in dB."""
        place = self._place(rng, samples, len(self.songs), augmentation)
        return self._part(rng, samples, 0, place, gain, augmentation)

    def _part(
        self,
        rng: np.random.Generator,
        samples: int,
        k: int,
        place: tuple[int, int, float],
        gain: float,
        augmentation: Augmentation,
    ) -> np.ndarray:
        """Row k at a place, with its own speed, gain, polarity and response, float32 (samples,)."""
        song, start, speed = place
        wanted = samples if speed == 1.0 else int(samples * speed) + 2
        source = self.stems(song)[k, start : start + wanted] / np.float32(FULL_SCALE)
        if speed != 1.0:
            source = soxr.resample(source, speed, 1.0, quality="HQ")[:samples]
        db = gain + rng.normal(0.0, augmentation.stem_gain_db)
        polarity = 1.0 if rng.random() < 0.5 else -1.0
        source = equalise(source, rng, augmentation.equaliser_db)
        source = source * np.float32(polarity * 10 ** (db / 20))
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


def equalise(x: np.ndarray, rng: np.random.Generator, db: float, rate: int = 22050) -> np.ndarray:
    """Filters (T,) with a random smooth response of zero phase; see :class:`Augmentation`."""
    knots = rng.normal(0.0, db, 8)
    if not x.any() or db == 0:
        return x
    mel = np.log1p(np.fft.rfftfreq(len(x), 1 / rate) / 700)
    response = np.interp(mel, np.linspace(0, mel[-1], len(knots)), knots)
    filtered = np.fft.irfft(np.fft.rfft(x) * 10 ** (response / 20), n=len(x))
    return filtered.astype(np.float32)


def validation_crops(folder: str | Path, samples: int, per_song: int = 1) -> np.ndarray:
    """Fixed, untouched crops of every song: float32 (N, 4, samples), evenly spaced in each."""
    corpus = StemCorpus(folder)
    crops = []
    for number in range(len(corpus.songs)):
        stems = corpus.stems(number)
        for part in range(per_song):
            start = int((stems.shape[1] - samples) * (part + 0.5) / per_song)
            crops.append(stems[:, start : start + samples].astype(np.float32) / FULL_SCALE)
    return np.stack(crops)
