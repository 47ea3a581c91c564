"""What a training writes of itself: JSON lines, TensorBoard, and a chart of the curves."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.training.processes import Processes

LEVELS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Noise levels under which losses are told."""


def level_name(sigma: float) -> str:
    """The nearest of LEVELS, as a label."""
    return f"{min(LEVELS, key=lambda s: abs(math.log(s / sigma))):g}"


class Window:
    """Losses since the last line of the log, over all processes."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.levels: list[Tensor] = []

    def add(self, losses: Tensor, levels: Tensor) -> None:
        self.losses.append(losses)
        self.levels.append(levels)

    def summary(
        self, processes: Processes, label: Callable[[float], str] = level_name
    ) -> tuple[dict[str, float], list[float]]:
        """Mean loss by what the levels are called, and by stem, and a fresh start.

        Losses that are NaN, not asked for, or are there in other steps alone, do not count.
        """
        width = max(losses.shape[1] for losses in self.losses)
        full = [F.pad(x, (0, width - x.shape[1]), value=math.nan) for x in self.losses]
        own = (torch.cat(full).cpu(), torch.cat(self.levels).cpu())
        self.losses, self.levels = [], []
        parts = processes.gather(own)
        losses, levels = (torch.cat([part[i] for part in parts]) for i in range(2))
        by_level: dict[str, list[float]] = defaultdict(list)
        for loss, level in zip(losses.nanmean(1).tolist(), levels.tolist(), strict=True):
            by_level[label(level)].append(loss)
        means = {name: round(float(np.mean(v)), 4) for name, v in sorted(by_level.items())}
        return means, [round(v, 4) for v in losses.nanmean(0).tolist()]


class Log:
    """Appends to ``log.jsonl`` and the TensorBoard files of a run folder.

    Arguments:
        out: the run's folder.
        step: the step from which the run goes on: later lines are of a lost part of the run.
        stems: names of the stems.
    """

    def __init__(self, out: Path, step: int, stems: tuple[str, ...]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = out / "log.jsonl"
        self.stems = stems
        if self.path.is_file():
            kept = [line for line in read(self.path) if line["step"] <= step]
            self.path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = self.path.open("a", buffering=1)
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._board.close()

    def write(self, line: dict[str, Any]) -> None:
        """A line: "step" and values; those of "loss", "valid" and "score" are curves."""
        self._file.write(json.dumps(line) + "\n")
        step = line["step"]
        curves = {**line, "stems": dict(zip(self.stems, line.get("stems", []), strict=False))}
        for group in ("loss", "stems", "valid", "score"):
            for name, value in curves.get(group, {}).items():
                self._board.add_scalar(f"{group}/{name}", value, step)
        for name in ("lr", "songs", "hours_seen"):
            if name in line:
                self._board.add_scalar(f"run/{name}", line[name], step)
        self._board.flush()

    def chart(self, path: Path) -> None:
        """Draws all curves, see :func:`chart`."""
        chart(read(self.path), self.stems, path)


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last one that was cut off is left out."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def chart(lines: list[dict[str, Any]], stems: tuple[str, ...], path: Path) -> None:
    """Draws training loss by level and by stem, validation loss, separation score (PNG)."""
    from matplotlib.figure import Figure

    curves: dict[str, dict[str, list[tuple[int, float]]]] = {
        name: defaultdict(list) for name in ("loss", "stems", "valid", "score")
    }
    for line in lines:
        named = {**line, "stems": dict(zip(stems, line.get("stems", []), strict=False))}
        for group, by_name in curves.items():
            for name, value in named.get(group, {}).items():
                by_name[name].append((line["step"], value))
    titles = {
        "loss": "training loss", "stems": "training loss by stem",
        "valid": "validation loss", "score": "SI-SDRi of active stems / dB",
    }  # fmt: skip
    figure = Figure(figsize=(11, 8), layout="constrained")
    for axes, (group, by_name) in zip(figure.subplots(2, 2).flat, curves.items(), strict=True):
        for name, points in by_name.items():
            axes.plot(
                *zip(*points, strict=True), marker="." if len(points) < 50 else "", label=name
            )
        axes.set(title=titles[group], xlabel="step")
        axes.grid(alpha=0.3)
        if by_name:
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)
