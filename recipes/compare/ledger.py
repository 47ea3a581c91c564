"""Scores of single clips, and the file that keeps them between machines.

Samples take hundreds of megabytes and stay where they were drawn; their scores take a line a clip
and go with the results. A table is made of them anew without a sample, a long run goes on on
another machine, and methods are compared song by song.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from mgdm_audio.evaluate import TrackScores
from mgdm_audio.metrics import WindowScores

DIGITS = 7
"""Significant digits of a value in the file."""


@dataclass(frozen=True)
class Spent:
    """What samples of a clip cost.

    Attributes:
        calls: network calls, with or without a gradient; what samples of a mean share, once.
        vjps: vector-Jacobian products of the network.
        seconds: elapsed, in the sampler.
        cpu_seconds: of all threads of the process, in the sampler.
        peak_mib: largest memory while sampling: of the process on a CPU, allocated on a GPU.
    """

    calls: float = 0.0
    vjps: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_mib: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.calls + other.calls,
            self.vjps + other.vjps,
            self.seconds + other.seconds,
            self.cpu_seconds + other.cpu_seconds,
            max(self.peak_mib, other.peak_mib),
        )


@dataclass(frozen=True)
class Scored:
    """A separated clip without its stems.

    Attributes:
        track: scores of the estimates.
        residual_db: what the sampler left of the mixture, see :class:`mgdm_audio.Separation`.
        spent: cost of all samples that went in.
        day: when it was scored, as YYYY-MM-DD.
    """

    track: TrackScores
    residual_db: float
    spent: Spent
    day: str = field(default_factory=lambda: str(date.today()))


class Ledger:
    """Scores by place and number of samples; a place is a clip's folder in the store.

    Arguments:
        path: JSON Lines file, read if it is there; without one nothing is kept.

    Raises:
        ValueError: for a line that is not of the form that :meth:`save` writes; it names the file.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._lines: dict[tuple[str, int], dict[str, Any]] = _read(self.path)
        self._added: dict[tuple[str, int], dict[str, Any]] = {}

    def get(self, place: str, samples: int) -> Scored | None:
        """Scores of the mean of so many samples."""
        line = self._lines.get((place, samples))
        return None if line is None else _scored(line)

    def add(self, place: str, samples: int, scored: Scored) -> Scored:
        """Keeps scores, :meth:`save` writes them; gives what :meth:`get` will, rounded."""
        line = {"place": place, "samples": samples, **_plain(dataclasses.asdict(scored))}
        self._keep(line)
        return _scored(line)

    def failed(self, place: str) -> bool:
        """Whether the sampler gave values that are not finite there."""
        return (place, 0) in self._lines

    def add_failed(self, place: str) -> None:
        """Keeps that it did."""
        self._keep({"place": place, "samples": 0, "day": str(date.today())})

    def merge(self, path: str | Path) -> None:
        """Adds what another ledger has and this one has not; a score that is there stays.

        Raises:
            ValueError: as reading does.
        """
        for key, line in _read(Path(path)).items():
            if key not in self._lines:
                self._keep(line)

    def save(self) -> None:
        """Writes the file: what was added, and what others have added meanwhile.

        Lines are in the order of their places, so that two versions of the file differ where their
        scores do.
        """
        if self.path is None or not self._added:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Several processes add to one file: what another writes in between would be lost.
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            self._lines = {**_read(self.path), **self._added}
            lines = [json.dumps(self._lines[key], allow_nan=False) for key in sorted(self._lines)]
            write_whole(self.path, "".join(line + "\n" for line in lines).encode())

    def _keep(self, line: dict[str, Any]) -> None:
        key = line["place"], line["samples"]
        self._lines[key] = self._added[key] = line


def write_whole(path: Path, content: bytes) -> None:
    """A file under its final name only when it is complete."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    os.replace(part, path)


def _read(path: Path | None) -> dict[tuple[str, int], dict[str, Any]]:
    """The lines of a file by place and number of samples; none where there is no file."""
    if path is None or not path.is_file():
        return {}
    lines = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
            if line["samples"]:
                _scored(line)
            lines[str(line["place"]), int(line["samples"])] = line
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number}: {error!r}") from error
    return lines


def _scored(line: Mapping[str, Any]) -> Scored:
    """What :func:`_plain` made plain."""
    track = line["track"]
    windows = track["windows"]
    kinds = {"start": np.int64, "end": np.int64, "active": bool, "silent_estimate": bool}
    stems = tuple(track["stems"])

    def table(values: Iterable[Any], kind: Any = np.float64) -> Any:
        # The shape says how many stems there are even where there is no window.
        return np.array(values, dtype=kind).reshape(-1, len(stems))

    arrays = {
        name: np.array(values, kinds[name]) if name in ("start", "end")
        else table(values, kinds.get(name, np.float64))
        for name, values in windows.items() if name != "total"
    }  # fmt: skip
    return Scored(
        track=TrackScores(
            name=track["name"],
            stems=stems,
            sample_rate=track["sample_rate"],
            samples=track["samples"],
            windows=WindowScores(**arrays, total=windows["total"]),
            chunks=table(track["chunks"]),
            residual_db=float(track["residual_db"]),
        ),
        residual_db=float(line["residual_db"]),
        spent=Spent(**line["spent"]),
        day=line["day"],
    )


def _plain(value: Any) -> Any:
    """For JSON: arrays as lists, values rounded, those that are not finite as text."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if key != "museval"}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else str(value)
    return value
