"""Posterior samples of a clip in a folder, and a sampler that is played back from them.

A folder holds the stems of each sample and what it cost. Samples that are not in it are drawn and
recorded when they are asked for.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mgdm_audio.denoise import CountingDenoiser, Denoiser
from mgdm_audio.draws import Draws
from mgdm_audio.samplers.base import Callback, Cost, Problem, Progress, Sampler
from recipes.compare.ledger import Spent, write_whole


@dataclass(frozen=True, kw_only=True)
class Tape(Sampler):
    """Plays samples of one clip back, and records those that are not on the tape.

    Arguments:
        inner: the sampler.
        folder: where the clip's samples are.
        position: a list of one: number of the next sample; it counts on.
    """

    name: ClassVar[str] = "tape"

    inner: Sampler
    folder: Path
    position: list[int]

    @property
    def needs(self) -> tuple[str, ...]:
        """See `Sampler.needs`."""
        return self.inner.needs

    @property
    def speeds(self) -> int:
        """See `Sampler.speeds`."""
        return self.inner.speeds

    def cost(self) -> Cost:
        """See `Sampler.cost`."""
        return self.inner.cost()

    def sample(
        self,
        denoise: Denoiser,
        problem: Problem,
        draws: Draws,
        callback: Callback | None = None,
    ) -> Tensor:
        """See `Sampler.sample`; each row of the batch is the next sample."""
        first = self.position[0]
        numbers = range(first, first + problem.shape[0])
        self.position[0] += len(numbers)
        if not all(recorded(self.folder, s) for s in numbers):
            self._record(denoise, problem, draws, callback, numbers)
        rows = [torch.from_numpy(np.load(stems_file(self.folder, s))) for s in numbers]
        return torch.stack(rows).to(problem.y)

    def _sample(
        self, denoise: Denoiser, problem: Problem, draws: Draws, progress: Progress
    ) -> Tensor:
        # Never reached: `sample`, which calls it, is what a tape replaces.
        raise NotImplementedError("a tape is played with `sample`")

    def _record(
        self,
        denoise: Denoiser,
        problem: Problem,
        draws: Draws,
        callback: Callback | None,
        numbers: range,
    ) -> None:
        counted = CountingDenoiser(denoise)
        device = problem.y.device
        forget_peak(device)
        start, cpu = time.monotonic(), time.process_time()
        rows = self.inner.sample(counted, problem, draws, callback).float().cpu().numpy()
        n = len(numbers)
        spent = Spent(
            calls=counted.calls / n,
            vjps=counted.vjps / n,
            seconds=(time.monotonic() - start) / n,
            cpu_seconds=(time.process_time() - cpu) / n,
            peak_mib=peak_mib(device),
        )
        for s, row in zip(numbers, rows, strict=True):
            keep(self.folder, s, row, spent)


def recorded(folder: Path, number: int) -> bool:
    """Whether a sample is in a folder of the store."""
    return stems_file(folder, number).is_file()


def keep(folder: Path, number: int, stems: NDArray[np.float32], spent: Spent) -> None:
    """Puts a sample into a folder of the store, and what it cost."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(cost_file(folder, number), json.dumps(dataclasses.asdict(spent)).encode())
    part = stems_file(folder, number).with_suffix(f".{os.getpid()}.part")
    with open(part, "wb") as file:
        np.save(file, stems)
    os.replace(part, stems_file(folder, number))


def stems_file(folder: Path, number: int) -> Path:
    return folder / f"{number:04d}.npy"


def cost_file(folder: Path, number: int) -> Path:
    return folder / f"{number:04d}.json"


def forget_peak(device: torch.device) -> None:
    """Starts the measurement of the largest memory anew, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return  # not allowed here: the peak is then that of the process so far


def peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)
