"""Training items from a rendered corpus: crops, remixing between songs, gains, muted stems.

The corpus is a folder written by ``recipes/corpus``: one int16 array (4, T) a song and an
``index.jsonl`` that names it. Songs may be added while a training runs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FULL_SCALE = 32768.0


@dataclass(frozen=True)
class Augmentation:
    """How crops are varied.

    Arguments:
        remix: the share of items whose stems come from four unrelated places.
        mute: the probability that a stem is silenced.
        stem_gain_db: standard deviation of each stem's gain, in dB.
        mix_gain_db: standard deviation of the common gain, in dB.
    """

    remix: float = 0.5
    mute: float = 0.08
    stem_gain_db: float = 2.0
    mix_gain_db: float = 2.5


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
        self.songs = [json.loads(line) for line in lines if line.endswith("}")]
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
            places = [self._place(rng, samples, songs) for _ in range(4)]
        else:
            places = [self._place(rng, samples, songs)] * 4
        gain = rng.normal(0.0, augmentation.mix_gain_db)
        for k, (song, start) in enumerate(places):
            if rng.random() < augmentation.mute:
                continue
            source = self.stems(song)[k, start : start + samples]
            db = gain + rng.normal(0.0, augmentation.stem_gain_db)
            polarity = 1.0 if rng.random() < 0.5 else -1.0
            stems[k, : len(source)] = source * np.float32(polarity * 10 ** (db / 20) / FULL_SCALE)
        return stems

    def _place(self, rng: np.random.Generator, samples: int, songs: int) -> tuple[int, int]:
        song = int(rng.integers(songs))
        spare = max(0, self.songs[song]["samples"] - samples)
        return song, int(rng.integers(spare + 1))


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
