"""The training loop that all recipes share.

A run is the same whatever it runs on: every training item, its noise and its noise level are a
function of the seed and the item's number alone, so neither the number of processes nor of data
workers, nor the size of the parts in which a batch goes through the network, nor an interruption
changes what is learnt (up to the order in which floating point numbers are added).
"""

from __future__ import annotations

import copy
import itertools
import math
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from recipes.training.log import level_name
from recipes.training.processes import Processes

FORMAT = 2
"""Layout of checkpoints. The first one had no number, and states of two random generators
instead of items that know their number; it is read as well."""

REWARM = 300
"""Steps over which the learning rate rises after a start without the optimiser's moments."""

Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides every run, kept with its checkpoint; tasks add their own.

    Arguments:
        steps: optimiser steps of the whole run.
        batch: items a step, over all processes together.
        samples: length of an item in samples.
        lr: peak learning rate.
        ema: decay of the averaged weights per step; 0 for the weights themselves.
        seed: seed of weights, noise and data.
    """

    steps: int
    batch: int
    samples: int
    lr: float
    ema: float
    seed: int


@dataclass(frozen=True)
class Runtime:
    """How a run is carried out; none of it changes what is learnt but for the precision.

    Arguments:
        precision: "fp32", or "bf16" for the layers that bear it.
        micro: items that go through the network together in a process; 0 for the whole of its
            share of the batch. Smaller parts take less memory; gradients are added up.
        workers: data processes; 0 makes items in the process itself.
        resident: hours of songs kept in the device's memory, where the items are then made; 0
            leaves both to the processor. The items have the same random numbers, but a prior's
            noise is the device's.
    """

    precision: str = "fp32"
    micro: int = 0
    workers: int = 0
    resident: float = 0.0


class Task(ABC):
    """What is learnt.

    Attributes:
        settings: of the run.
        network: class and arguments of the network, see :func:`mgdm_audio.nn.build`.
    """

    settings: Settings
    network: dict[str, Any]
    stems: tuple[str, ...]

    @abstractmethod
    def build(self) -> nn.Module:
        """A network with fresh weights from the global generator."""

    def prepare(self, net: nn.Module) -> None:  # noqa: B027 (some tasks need nothing)
        """Measures on the data what the network needs to know, or gives it another one's weights,
        at the start of a run."""

    @abstractmethod
    def optimiser(self, net: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of the network's parameters."""

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return self.settings.lr

    clip: float | None = None
    """Limit of the gradient's norm."""

    @abstractmethod
    def songs(self) -> int:
        """Reads the data's index and says how many songs there are."""

    def parts(self) -> int:
        """Reads the index of what may be mixed with the songs and says how much of it there is; 0
        where a task has nothing of the kind."""
        return 0

    @abstractmethod
    def item(
        self, rng: np.random.Generator, number: int, songs: int, parts: int = 0
    ) -> dict[str, np.ndarray]:
        """A training item: a function of its own generator, its number, and the songs and parts in
        use."""

    def reside(self, device: torch.device, hours: float) -> None:
        """Keeps so many hours of songs on a device, and makes the items there.

        Raises:
            ValueError: if the recipe cannot.
        """
        raise ValueError("this recipe makes its items on the processor alone: leave out --resident")

    def complete(self, batch: Batch) -> Batch:
        """What is left to make of a batch on the device."""
        return batch

    @abstractmethod
    def losses(self, net: nn.Module, batch: Batch) -> Tensor:
        """Loss of each item and stem, (B, K)."""

    def asked(self, batch: Batch) -> Tensor | None:
        """Which of the losses mean something, bool (B, K): the others, 0, are not logged. None for
        all."""
        return None

    @abstractmethod
    def level(self, batch: Batch) -> Tensor:
        """A noise level of each item, (B,), or another number under which its loss is logged."""

    def label(self, level: float) -> str:
        """What the losses of a level are called in the log."""
        return level_name(level)

    @abstractmethod
    def validate(self, net: nn.Module) -> dict[str, float]:
        """Losses on fixed data, by name."""

    @abstractmethod
    def score(self, net: nn.Module) -> dict[str, float]:
        """Separation scores on fixed data in dB, by stem."""


class _Items(Dataset[dict[str, np.ndarray]]):
    """The items by (number, songs, parts)."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.songs = self.parts = 0

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, np.ndarray]:
        number, songs, parts = key
        if songs > self.songs or parts > self.parts:
            # In a data process, whose copy of the index may be older.
            self.songs, self.parts = self.task.songs(), self.task.parts()
        rng = item_generator(self.task.settings.seed, number)
        return self.task.item(rng, number, songs, parts)


def item_generator(seed: int, number: int) -> np.random.Generator:
    """The generator of a training item."""
    return np.random.default_rng([seed, 1, number])


def _outlive_stop(worker: int) -> None:
    """Has a data process end by SIGTERM only where the run's own process sends it.

    A scheduler sends it to the run's whole group, and the run still needs items until its
    checkpoint is written; but where nothing else helps, DataLoader ends its processes by it.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS: the data process ends
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def watch() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


class _Loss(nn.Module):
    """The loss as a module, which is what DistributedDataParallel wraps."""

    def __init__(self, net: nn.Module, task: Task) -> None:
        super().__init__()
        self.net = net
        self.task = task

    def forward(self, batch: Batch) -> Tensor:
        return self.task.losses(self.net, batch)


class Trainer:
    """State of a run: network, averaged network, optimiser, step.

    Arguments:
        task: what is learnt.
        processes: this process among those of the run; alone on the CPU by default.
        runtime: how it is carried out.

    Raises:
        ValueError: if the batch cannot be shared out.
    """

    def __init__(
        self, task: Task, processes: Processes | None = None, runtime: Runtime | None = None
    ) -> None:
        self.task = task
        self.processes = processes or Processes(0, 1, torch.device("cpu"))
        self.runtime = runtime or Runtime()
        world, batch = self.processes.world, task.settings.batch
        if batch % world:
            raise ValueError(
                f"a batch of {batch} items cannot be shared by {world} processes; choose a "
                "multiple of their number or, for a run that goes on and whose batch is its "
                "checkpoint's, another number of processes"
            )
        self.share = batch // world
        self.micro = self.runtime.micro or self.share
        if self.runtime.resident:
            task.reside(self.processes.device, self.runtime.resident)
        torch.manual_seed(task.settings.seed)
        self.net = task.build().to(self.processes.device)
        self.average = copy.deepcopy(self.net).requires_grad_(False)
        self.optimiser = task.optimiser(self.net)
        self.step = 0
        self.seconds = 0.0  # of audio seen
        self.minutes = 0.0  # spent on steps, by the clock
        self.restart: int | None = None  # step at which the moments were last lost
        self.songs, self.parts = self._counts()
        self._batches: Iterator[Batch] | None = None
        loss = _Loss(self.net, task)
        self._loss: nn.Module = loss
        if world > 1:
            self._loss = DistributedDataParallel(loss, broadcast_buffers=False)

    @property
    def settings(self) -> Settings:
        return self.task.settings

    @property
    def network(self) -> dict[str, Any]:
        return self.task.network

    def prepare(self) -> None:
        """Gives the network what it needs to start; the same in every process."""
        self.task.prepare(self.net)
        if self.processes.world > 1:  # songs may have been added between two processes' looks
            for buffer in self.net.buffers():
                torch.distributed.broadcast(buffer, 0)
        self.average.load_state_dict(self.net.state_dict())

    def rate(self) -> float:
        """The learning rate of the next step."""
        rate = self.task.rate(self.step)
        if self.restart is None:
            return rate
        return rate * min(1.0, (self.step - self.restart + 1) / REWARM)

    def autocast(self) -> Any:
        """The precision's context."""
        half = self.runtime.precision == "bf16"
        return torch.autocast(self.processes.device.type, torch.bfloat16, enabled=half)

    def _loader(self) -> Iterator[Batch]:
        """Parts of this process's share of each step's batch, from the present step on."""
        first = self.processes.rank * self.share
        songs, parts, batch = self.songs, self.parts, self.settings.batch

        def keys() -> Iterator[list[tuple[int, int, int]]]:
            for step in itertools.count(self.step):
                share = range(step * batch + first, step * batch + first + self.share)
                for start in range(0, self.share, self.micro):
                    yield [(number, songs, parts) for number in share[start : start + self.micro]]

        workers = self.runtime.workers
        return iter(
            DataLoader(
                _Items(self.task),
                batch_sampler=keys(),
                num_workers=workers,
                worker_init_fn=_outlive_stop,
                pin_memory=self.processes.device.type == "cuda",
                multiprocessing_context="fork" if workers else None,
            )
        )

    def advance(self) -> tuple[Tensor, Tensor]:
        """One optimiser step.

        Returns:
            Losses (b, K), NaN where none was asked for, and levels (b,) of this process's share of
            the batch.

        Raises:
            FloatingPointError: if the gradient is not finite; the weights are as before the step.
        """
        start = time.monotonic()
        if self._batches is None:
            self._batches = self._loader()
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        self.optimiser.zero_grad(set_to_none=True)
        losses, levels = [], []
        parts = -(-self.share // self.micro)
        for part in range(parts):
            batch = {
                key: value.to(self.processes.device, non_blocking=True)
                for key, value in next(self._batches).items()
            }
            batch = self.task.complete(batch)
            # Gradients are exchanged once, with the last part.
            alone: Any = nullcontext()
            if isinstance(self._loss, DistributedDataParallel) and part + 1 < parts:
                alone = self._loss.no_sync()
            with alone:
                with self.autocast():
                    loss = self._loss(batch)
                # Processes' gradients are averaged: each stands for its share of the batch.
                (loss.sum() / (self.share * loss.shape[1])).backward()
            asked = self.task.asked(batch)
            loss = loss.detach()
            losses.append(loss if asked is None else torch.where(asked, loss, math.nan))
            levels.append(self.task.level(batch))
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.task.clip or float("inf"))
        if not bool(torch.isfinite(norm)):
            raise FloatingPointError(
                f"the gradient of step {self.step} is not finite; continue from the last "
                "checkpoint with a lower learning rate or in fp32"
            )
        self.optimiser.step()
        decay = min(self.settings.ema, (self.step + 1) / (self.step + 10))
        torch._foreach_lerp_(
            list(self.average.parameters()), list(self.net.parameters()), 1 - decay
        )
        self.step += 1
        self.seconds += self.settings.batch * self.settings.samples / 22050
        self.minutes += (time.monotonic() - start) / 60
        return torch.cat(losses), torch.cat(levels)

    def refresh(self) -> None:
        """Takes up songs and parts that were added to the data.

        Called where a checkpoint is written, so that a continued run sees the same ones.
        """
        counts = self._counts()
        if counts != (self.songs, self.parts):
            self.songs, self.parts = counts
            self._batches = None

    def _counts(self) -> tuple[int, int]:
        """Songs and parts that all processes have."""
        everywhere = self.processes.gather((self.task.songs(), self.task.parts()))
        songs, parts = (min(counts) for counts in zip(*everywhere, strict=True))
        return songs, parts

    def end_at(self, steps: int) -> None:
        """Moves the end of the run, and with it the decay of the learning rate."""
        self.task.settings = replace(self.settings, steps=steps)

    def state(self) -> dict[str, Any]:
        """All that a continued run needs."""
        return {
            "format": FORMAT,
            "settings": asdict(self.settings),
            "network": self.network,
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "minutes": self.minutes,
            "songs": self.songs,
            "parts": self.parts,
            "restart": self.restart,
        }

    def save(self, path: Path) -> None:
        """Writes the checkpoint to a temporary name, then renames it; the first process only."""
        if self.processes.first:
            temporary = path.with_suffix(".part")
            torch.save(self.state(), temporary)
            os.replace(temporary, path)

    def load(self, state: dict[str, Any]) -> None:
        """Continues from a checkpoint's state, also from one without the optimiser's (None).

        Raises:
            ValueError: if it is of a newer layout.
        """
        if state.get("format", 1) > FORMAT:
            raise ValueError(
                f"the checkpoint has layout {state['format']}, this code reads up to {FORMAT}"
            )
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        if state["optimiser"] is not None:
            self.optimiser.load_state_dict(state["optimiser"])
        self.restart, self.minutes = state.get("restart"), state.get("minutes", 0.0)
        self.step, self.seconds = state["step"], state["seconds"]
        # Elsewhere there may be fewer, or less room for them.
        songs, parts = self._counts()
        # Older checkpoints do not say how many parts there were.
        self.songs, self.parts = min(state["songs"], songs), min(state.get("parts", parts), parts)
        self._batches = None


def load_state(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU."""
    return torch.load(path, map_location="cpu", weights_only=True)
