"""A miniature Slakh2100 of the official layout: a few short tracks with everything that occurs."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

from recipes.corpus.charts import random_chart
from recipes.corpus.patches import Patch
from recipes.corpus.slakh import write_track
from recipes.corpus.song import Layer, Song

RATE = 44100
ROOT = "slakh2100_flac_redux"
CLASSES = {0: "Piano", 3: "Guitar", 4: "Bass", 16: "Drums", 6: "Strings (continued)"}


def tone(frequency: float, seconds: float, level: float = 0.2, phase: float = 0.0) -> np.ndarray:
    t = np.arange(round(seconds * RATE)) / RATE
    return level * np.sin(2 * np.pi * frequency * t + phase)


def entry(program: int, name: str, *, rendered: bool = True, drum: bool = False) -> dict[str, Any]:
    """A source's metadata with every field that the official files have."""
    return {
        "audio_rendered": rendered, "inst_class": name, "integrated_loudness": -13.2,
        "is_drum": drum, "midi_program_name": name, "midi_saved": True,
        "plugin_name": "scarbee_pre_bass.nkm", "program_num": program,
    }  # fmt: skip


class Mini:
    """Writes tracks below ``folder / ROOT``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def track(
        self,
        number: int,
        split: str,
        sources: dict[str, tuple[dict[str, Any], np.ndarray | bytes | None]],
    ) -> Path:
        """A track; a source is its metadata and samples, raw bytes, or None for no file."""
        name = f"Track{number:05d}"
        path = self.folder / ROOT / split / name
        (path / "stems").mkdir(parents=True)
        (path / "MIDI").mkdir()
        metadata = {
            "UUID": f"{number:032x}", "audio_dir": "stems", "lmd_midi_dir": "lmd_matched/x.mid",
            "midi_dir": "MIDI", "normalization_factor": -13.0, "normalized": True,
            "overall_gain": 0.18, "target_peak": -1.0,
            "stems": {key: meta for key, (meta, _) in sources.items()},
        }  # fmt: skip
        (path / "metadata.yaml").write_text(yaml.safe_dump(metadata))
        (path / "all_src.mid").write_bytes(b"MThd")
        (path / "mix.flac").write_bytes(b"fLaC not read")
        for key, (_, audio) in sources.items():
            (path / "MIDI" / f"{key}.mid").write_bytes(b"MThd")
            file = path / "stems" / f"{key}.flac"
            if isinstance(audio, bytes):
                file.write_bytes(audio)
            elif audio is not None:
                soundfile.write(file, audio, RATE, subtype="PCM_16")
        return path

    def standard(self, number: int, split: str, seconds: float, seed: int = 0) -> Path:
        """A track with all four classes, two of them of several sources, and one more source."""
        rng = np.random.default_rng([number, seed])
        n = round(seconds * RATE)
        clicks = rng.normal(size=n) * np.exp(-((np.arange(n) / RATE * 3) % 1) * 25) * 0.2
        f = float(rng.uniform(0.9, 1.1))
        return self.track(number, split, {
            "S00": (entry(33, "Bass"), tone(60 * f, seconds)),
            "S01": (entry(128, "Drums", drum=True), clicks),
            "S02": (entry(25, "Guitar"), tone(330 * f, seconds, 0.1)),
            "S03": (entry(30, "Guitar"), tone(495 * f, seconds, 0.1)),
            "S04": (entry(0, "Piano"), tone(880 * f, seconds, 0.1)),
            "S05": (entry(4, "Piano"), tone(1100 * f, seconds, 0.1)),
            "S06": (entry(48, "Strings (continued)"), tone(2000, seconds, 0.1)),
            "S07": (entry(5, "Piano", rendered=False), None),
        })  # fmt: skip

    def rendered(self, number: int, split: str, seconds: float) -> Path:
        """A track of `recipes.corpus.slakh`, played by its computed instruments.

        Two guitars and a bass, no drums (which are samples); beside them sources that official
        tracks have too: one of another program, and one whose file is damaged.
        """
        rng = np.random.default_rng(number)
        chart = random_chart(rng, 4, seconds)
        layers = {
            "bass": [self.layer("bass", "electric guitar", 33, 40, seconds)],
            "drums": [],
            "guitar": [
                self.layer("guitar", "acoustic guitar", 25, 60, seconds),
                self.layer("guitar", "electric guitar", 27, 67, seconds),
            ],
            "piano": [self.layer("piano", "electric piano", 4, 72, seconds)],
        }
        song = Song(seconds, chart, layers, np.linspace(0, seconds, len(chart.bars) + 1))
        path = write_track(song, self.folder / ROOT / split / f"Track{number:05d}", rng)
        metadata = yaml.safe_load((path / "metadata.yaml").read_text())
        metadata["stems"] |= {"S80": entry(48, "Strings (continued)"), "S81": entry(1, "Piano")}
        (path / "metadata.yaml").write_text(yaml.safe_dump(metadata))
        soundfile.write(path / "stems" / "S80.flac", tone(2000, seconds, 0.1), RATE, "PCM_16")
        (path / "stems" / "S81.flac").write_bytes(b"fLaC damaged")
        return path

    @staticmethod
    def layer(stem: str, model: str, program: int, pitch: int, seconds: float) -> Layer:
        """Quarter notes on a scale."""
        starts = np.arange(0, seconds - 1, 0.5)
        pitches = pitch + np.array([0, 2, 4, 5, 7, 5, 4, 2])[np.arange(len(starts)) % 8]
        loud = np.full_like(starts, 96.0)
        notes = np.stack([starts, starts + 0.45, pitches, loud], axis=1)
        patch = Patch(stem, "model", "models.py", "", 0, program, model, "MIT", "train", True)
        return Layer(notes, patch, 0.0)

    def archive(self, path: Path) -> Path:
        """The tree as the publishers pack it."""
        with tarfile.open(path, "w:gz", compresslevel=1) as tar:
            tar.add(self.folder / ROOT, arcname=ROOT)
        return path
