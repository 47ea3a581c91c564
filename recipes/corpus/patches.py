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
OTHERS = Path(__file__).parent / "others.tsv"  # instruments that no stem is
SPLITS = ("train", "valid", "test")
RARE = {"deb:opl3-soundfont": 0.3}  # chip sounds: seasoning
BANKS = ("sf2", "gus", "zyn")  # kinds whose patches are different sounds
COMPUTED = {"bass": 0.3, "drums": 0.3, "guitar": 0.05, "piano": 0.05}
"""Share of a stem's parts, but for those of synthesisers, that are computed: a computed piano is
too near to a plucked string, and with more of them a network takes guitars for pianos. Of the
others a third are soundfonts'."""
SYNTHESISED = {"bass": 0.2, "guitar": 0.1, "piano": 0.2}
"""Share of a stem's parts that a synthesiser plays; the others keep their proportions."""


@dataclass(frozen=True)
class Patch:
    """One sound with its licence and split.

    `kind` is sf2 (patch `bank`, `program` of a soundfont), gus (`program` of a TiMidity
    configuration), sfz (an SFZ instrument or a folder of samples named for their notes), kit (a
    folder of drum samples), zyn (an instrument of ZynAddSubFX), voice (a speaker, by `name`, that
    sings) or model (computed, without a file); for the last five `program` only says what General
    MIDI sound it is nearest to. An sfz or zyn sounds its notes `transpose` semitones below what is
    asked; an sfz is rendered with `gain` dB and has the MIDI controllers `controls` ("100=127
    101=64"). Notes outside `low` to `high` are moved by octaves.
    """

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
    transpose: int = 0
    gain: float = 0.0
    controls: str = ""
    low: int = 0
    high: int = 127

    @property
    def label(self) -> str:
        """Short name for the index: file, bank:program and name."""
        if self.kind not in ("sf2", "gus"):
            return f"{self.package.rsplit('/', 1)[-1]} {self.name}"
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
                row["stem"],
                row["kind"],
                row["package"],
                row["file"],
                int(row["bank"]),
                int(row["program"]),
                row["name"],
                row["licence"],
                row["split"],
                row["permissive"] == "yes",
                int(row["transpose"]),
                float(row["gain"]),
                row["controls"],
                int(row["low"]),
                int(row["high"]),
            )
            for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]


def check_files(patches: list[Patch]) -> None:
    """Check that every file of the patches is there.

    Raises:
        MissingProgram: A file is absent; the message names each missing package.
    """
    needed = [p for p in patches if p.kind != "model"]
    missing = sorted({(p.package, str(p.path)) for p in needed if not p.path.exists()})
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
        """Draw a patch: soundfont, samples, synthesiser or computed first, then a source, then a
        patch.

        Sources are weighted by a power of how many patches they have: the patches of a General MIDI
        bank differ, those of a sample set are mappings of the same recordings.
        """
        groups = self._groups[stem]
        weights = np.array(
            [
                len(v) ** (0.5 if v[0].kind in BANKS else 0.25) * RARE.get(k, 1.0)
                for k, v in groups.items()
            ]
        )
        kinds = np.array([v[0].kind for v in groups.values()])
        kinds = np.where(np.isin(kinds, ("sf2", "model", "zyn")), kinds, "samples")
        played = 1 - COMPUTED[stem]
        shares = {"sf2": played / 3, "samples": 2 * played / 3, "model": COMPUTED[stem]}
        synthesised = SYNTHESISED.get(stem, 0.0)
        shares["zyn"] = synthesised / (1 - synthesised)  # beside the others, which add up to 1
        for kind in np.unique(kinds):
            weights[kinds == kind] *= shares[str(kind)] / weights[kinds == kind].sum()
        package = list(groups)[int(rng.choice(len(groups), p=weights / weights.sum()))]
        return groups[package][int(rng.integers(len(groups[package])))]
