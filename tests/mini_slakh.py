"""A miniature Slakh2100 of the official layout: a few short tracks with everything that occurs."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

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

    def archive(self, path: Path) -> Path:
        """The tree as the publishers pack it."""
        with tarfile.open(path, "w:gz", compresslevel=1) as tar:
            tar.add(self.folder / ROOT, arcname=ROOT)
        return path
