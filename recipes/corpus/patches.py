"""Sound sources: the table of patches, which split may use them, and a random draw."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recipes.corpus.grooves import MissingProgram
from recipes.corpus.midi import STEMS

TABLE = Path(__file__).parent / "sources.tsv"
SPLITS = ("train", "valid", "test")
RARE = {"deb:opl3-soundfont": 0.3}  # chip sounds: seasoning


@dataclass(frozen=True)
class Patch:
    """One sound: a patch (`bank`, `program`) of a soundfont `file`, with its licence and split."""

    stem: str
    kind: str
    package: str
    file: str
    bank: int
    program: int
    name: str
    licence: str
    split: str
    permissive: bool

    @property
    def label(self) -> str:
        """Short name for the index: package, file, bank:program and name."""
        return f"{Path(self.file).name} {self.bank}:{self.program} {self.name}"

    @property
    def path(self) -> Path:
        """Where the file lies: Debian packages from the root, other ones in the sources folder."""
        if self.package.startswith("deb:"):
            return Path("/", self.file)
        folder = os.environ.get("MGDM_CORPUS_SOURCES", Path(__file__).parent / "sources")
        return Path(folder, self.file)


def read_patches(path: Path = TABLE) -> list[Patch]:
    """Read the table of sources."""
    with path.open(newline="") as stream:
        return [
            Patch(
                row["stem"], row["kind"], row["package"], row["file"], int(row["bank"]),
                int(row["program"]), row["name"], row["licence"], row["split"],
                row["permissive"] == "yes",
            )
            for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]


def check_files(patches: list[Patch]) -> None:
    """Check that every file of the patches is there.

    Raises:
        MissingProgram: A file is absent; the message names each missing package.
    """
    missing = sorted({(p.package, str(p.path)) for p in patches if not p.path.exists()})
    if missing:
        lines = "; ".join(f"{package} ({path})" for package, path in missing)
        raise MissingProgram(f"sound sources not installed: {lines}. See recipes/corpus/README.md")


class Palette:
    """Patches of one split by stem; draws a source first, then one of its patches."""

    def __init__(self, split: str, permissive_only: bool = False) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")
        self.patches = [
            p for p in read_patches() if p.split == split and (p.permissive or not permissive_only)
        ]
        self._groups: dict[str, dict[str, list[Patch]]] = defaultdict(lambda: defaultdict(list))
        for patch in self.patches:
            self._groups[patch.stem][patch.package].append(patch)
        lacking = [stem for stem in STEMS if stem not in self._groups]
        if lacking:
            raise ValueError(
                f"no source for {', '.join(lacking)} in split {split!r}: expected at least one "
                "patch a stem; leave out --permissive-only or add rows to sources.tsv"
            )

    def draw(self, stem: str, rng: np.random.Generator) -> Patch:
        """Draw a patch: sources weighted by the square root of how many patches they have."""
        groups = self._groups[stem]
        weights = np.array([len(v) ** 0.5 * RARE.get(k, 1.0) for k, v in groups.items()])
        package = list(groups)[int(rng.choice(len(groups), p=weights / weights.sum()))]
        return groups[package][int(rng.integers(len(groups[package])))]
