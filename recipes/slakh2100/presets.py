"""How each column of the published table is made; the files are in ``presets/``.

As a command with names of presets it says which models they need, and fails if one is not there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parents[2]))

from mgdm_audio import STEMS, hub, samplers
from mgdm_audio.samplers.base import Sampler
from recipes.slakh2100 import config

FOLDER = Path(__file__).parent / "presets"
READINGS = ("chunk", "track")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How tracks are separated and scored.

    Arguments:
        title: the column's name.
        model: name or folder of the model.
        method: name of the sampler.
        preset: the sampler's preset; None where ``settings`` state everything that matters.
        settings: settings of the sampler.
        chunk: samples of a chunk, or of a window.
        overlap: samples that neighbouring windows share. None separates chunks as the authors do:
            side by side, each by itself, at the level they have, what is left at the end of a
            track is dropped, and the sampler's stems are what comes out. A number separates
            whole tracks with :class:`mgdm_audio.Separator`.
        sigma_y: noise that the likelihood assumes, for chunks.
        batch: chunks that go through the network together.
        seed: of the draws; each chunk has one of its own, made of it.
        reading: how windows are averaged: "track", 4 s windows of the joined chunks of a track,
            all windows of all tracks pooled; or "chunk", windows within each chunk, their means
            pooled.
        paper: the published SI-SDR improvement in dB, by stem and "all", as far as it is known.

    Raises:
        ValueError: if a field is out of range or the sampler has no such settings.
    """

    title: str
    model: str
    method: str
    preset: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    chunk: int
    overlap: int | None = None
    sigma_y: float = 0.0
    batch: int
    seed: int
    reading: str
    paper: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.reading not in READINGS:
            raise ValueError(f"got reading = '{self.reading}', expected one of {READINGS}")
        if min(self.chunk, self.batch) < 1:
            raise ValueError(f"got chunk = {self.chunk}, batch = {self.batch}, expected at least 1")
        if unknown := set(self.paper) - {*STEMS, "all"}:
            raise ValueError(f"got numbers of {unknown}, expected {', '.join(STEMS)} and all")
        self.sampler()

    def sampler(self) -> Sampler:
        """The sampler with these settings."""
        settings = {key: config.tuples(value) for key, value in self.settings.items()}
        return samplers.get(self.method, self.preset or "paper", **settings)

    def fingerprint(self, model: str) -> str:
        """A digest of all that decides the stems: the settings and the model's checksum."""
        parts = {
            "model": model,
            "method": self.method,
            "sampler": dataclasses.asdict(self.sampler()),
            "chunk": self.chunk,
            "overlap": self.overlap,
            "sigma_y": self.sigma_y,
            "batch": self.batch,
            "seed": self.seed,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def load_preset(path: str | Path) -> Preset:
    """A preset by the path of its file, or by name where it is one of this folder's.

    Raises:
        ValueError: if there is none, or it cannot be used.
    """
    file = Path(path)
    if not file.is_file():
        file = FOLDER / f"{path}.yaml"
    if not file.is_file():
        raise ValueError(f"there is no preset '{path}'; there are {', '.join(names())}")
    values = config.load(file)
    settings, paper = values.pop("settings", {}), values.pop("paper", {})
    return dataclasses.replace(config.fill(Preset, values, file), settings=settings, paper=paper)


def names() -> list[str]:
    """The presets of this folder: the published table's columns first."""
    table = ["mgdm", "dps", "pgdm", "ddnm", "msdm", "isdm", "demucs512"]
    return table + sorted({p.stem for p in FOLDER.glob("*.yaml")} - set(table))


@click.command(help=__doc__)
@click.argument("presets", nargs=-1, required=True)
def main(presets: tuple[str, ...]) -> None:
    try:
        for name in presets:
            click.echo(f"{name}: {hub.find(load_preset(name).model)}", err=True)
    except (ValueError, OSError) as error:
        raise click.ClickException(
            f"{error}; import the published checkpoints first (README.md)"
        ) from error


if __name__ == "__main__":
    main()
