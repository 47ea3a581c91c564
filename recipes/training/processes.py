"""One process or several, on one machine or several, by the same command.

The engine is PyTorch's own: ``torchrun`` starts the processes, ``DistributedDataParallel`` averages
their gradients. It comes with PyTorch, adds no dependency, leaves random numbers, checkpoints and
the loop to the training, and so lets a run be the same on any number of processes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = timedelta(hours=2)
"""How long processes wait for one of them, which may be scoring or writing."""


@dataclass(frozen=True)
class Processes:
    """This process among those of a training.

    Attributes:
        rank: its number; 0 writes the files.
        world: how many there are.
        device: where its network is.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in order of rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def agree(self, flags: list[bool]) -> list[bool]:
        """For each flag, whether it is set in any process."""
        if self.world == 1:
            return flags
        votes = torch.tensor(flags, dtype=torch.float32, device=self.device)
        dist.all_reduce(votes)
        return [vote > 0 for vote in votes.tolist()]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            dist.barrier()


def wanted(devices: str) -> int:
    """The number of processes that ``--devices`` asks for: a number, or auto, one a GPU.

    Raises:
        ValueError: for anything else.
    """
    if devices == "auto":
        return max(1, torch.cuda.device_count())
    if not devices.isdecimal() or int(devices) < 1:
        raise ValueError(f"got devices = '{devices}', expected auto or a number of at least 1")
    return int(devices)


def relaunch(count: int) -> bool:
    """Starts this command anew as ``count`` processes and waits for them, where that is needed.

    Returns:
        False in a process that is to do the work itself: the only one, or one of those started.
    """
    if count == 1 or "RANK" in os.environ:
        return False
    from torch.distributed.run import main as torchrun

    # Each process would otherwise take every core.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    torchrun(["--standalone", f"--nproc-per-node={count}", *sys.argv])
    return True


@contextmanager
def processes(device: str = "auto") -> Iterator[Processes]:
    """This process's place among those that torchrun started; alone where it started none.

    Arguments:
        device: auto (the process's GPU where there is one) or cpu.
    """
    gpu = device == "auto" and torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", 0))
    place = torch.device("cuda", local) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(place)
        torch.backends.cudnn.benchmark = True  # shapes are the same in all steps
    if "RANK" not in os.environ:
        yield Processes(0, 1, place)
        return
    # gloo carries what is on the CPU: the logs.
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=PATIENCE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), place)
    finally:
        dist.destroy_process_group()
