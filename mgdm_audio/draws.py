"""Randomness handed to a sampler from outside, one independent stream per batch item.

No sampler touches a global random state: every number comes from a `Draws`. `SeededDraws` gives
item i a stream that depends on its seed alone, so that an item is the same in any batch and on
any device; `RecordedDraws` replays numbers written down before.
"""

from __future__ import annotations

__all__ = ["Draws", "RecordedDraws", "SeededDraws"]

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor


class Draws(Protocol):
    """Source of the random numbers of one sampling run with B batch items."""

    def normal(self, shape: tuple[int, ...], items: Sequence[int] | None = None) -> Tensor:
        """Standard normal numbers, in the type and on the device of the draws object.

        Arguments:
            shape: shape of the result; its first axis is the batch.
            items: the batch items that draw, ascending, when not all do: row j of the result
                comes from the stream of item ``items[j]`` and the other streams stand still.
        """
        ...

    def integers(self, low: int | Tensor, high: int | Tensor) -> Tensor:
        """One uniform integer in [low, high) for each item, int64 (B,) on the CPU.

        Arguments:
            low: smallest value, int or (B,).
            high: one above the largest value, int or (B,).
        """
        ...


class SeededDraws:
    """Draws from one CPU generator per batch item.

    Arguments:
        seeds: one seed per item, B in all, each in [0, 2^63).
        device: where the normals go after they were drawn on the CPU.
        dtype: floating type of the normals. Another type gives other numbers.

    Raises:
        ValueError: if there is no seed or one is out of range.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if not seeds:
            raise ValueError("got no seeds, expected one for each batch item")
        for seed in seeds:
            if not 0 <= seed < 2**63:
                raise ValueError(f"got seed {seed}, expected an integer from 0 to 2^63 - 1")
        self.device = torch.device(device)
        self.dtype = dtype
        self._generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        # A network on a GPU waits for these numbers, and the streams do not wait for each other. On
        # a CPU the cores are the network's.
        threads = min(len(seeds), os.cpu_count() or 1) if self.device.type != "cpu" else 1
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def normal(self, shape: tuple[int, ...], items: Sequence[int] | None = None) -> Tensor:
        """See `Draws.normal`. Raises ValueError if shape[0] is not the number of items."""
        chosen = self._generators if items is None else [self._generators[i] for i in items]
        if shape[0] != len(chosen):
            raise ValueError(
                f"got shape {tuple(shape)} for {len(chosen)} streams, expected one row for each; "
                "give as many seeds as batch items"
            )
        z = torch.empty(shape, dtype=self.dtype)
        fill = map if self._pool is None else self._pool.map
        for _ in fill(lambda row, generator: row.normal_(generator=generator), z, chosen):
            pass
        return z.to(self.device)

    def integers(self, low: int | Tensor, high: int | Tensor) -> Tensor:
        """See `Draws.integers`. Raises ValueError if a range is empty."""
        n = len(self._generators)
        bounds = [
            (int(a), int(b)) for a, b in zip(_per_item(low, n), _per_item(high, n), strict=True)
        ]
        for a, b in bounds:
            if a >= b:
                raise ValueError(f"got the empty range [{a}, {b}), expected low < high")
        values = [
            torch.randint(a, b, (), generator=generator)
            for (a, b), generator in zip(bounds, self._generators, strict=True)
        ]
        return torch.stack(values)


class RecordedDraws:
    """Replays numbers in the order in which they are asked for.

    Arguments:
        normals: arrays, one per call of `normal`, each of the full batch shape (B, ...).
        integers: one per call of `integers`: an int shared by the batch, or (B,).
        device: where the normals go.
        dtype: floating type of the normals.
    """

    def __init__(
        self,
        normals: Sequence[Tensor],
        integers: Sequence[int | Tensor] = (),
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self._normals = [torch.as_tensor(z).to(device=device, dtype=dtype) for z in normals]
        self._integers = [torch.as_tensor(i, dtype=torch.int64) for i in integers]
        self._batch = self._normals[0].shape[0] if self._normals else 1
        self.normals_used = 0
        self.integers_used = 0

    @property
    def exhausted(self) -> bool:
        """Whether every recorded number was handed out."""
        return self.normals_used == len(self._normals) and self.integers_used == len(self._integers)

    def normal(self, shape: tuple[int, ...], items: Sequence[int] | None = None) -> Tensor:
        """See `Draws.normal`.

        Raises:
            ValueError: if nothing is left or the recorded shape is another one.
        """
        if self.normals_used == len(self._normals):
            raise ValueError(
                f"all {len(self._normals)} recorded normals are used up, one more was asked for; "
                "record more, or check that the settings are the recorded ones"
            )
        z = self._normals[self.normals_used]
        if items is not None:
            z = z[list(items)]
        if z.shape != tuple(shape):
            raise ValueError(
                f"recorded normal {self.normals_used} has shape {tuple(z.shape)}, but "
                f"{tuple(shape)} was asked for"
            )
        self.normals_used += 1
        return z.clone()

    def integers(self, low: int | Tensor, high: int | Tensor) -> Tensor:
        """See `Draws.integers`.

        Raises:
            ValueError: if nothing is left or the recorded integer is outside [low, high).
        """
        if self.integers_used == len(self._integers):
            raise ValueError(
                f"all {len(self._integers)} recorded integers are used up, one more was asked "
                "for; record more, or check that the settings are the recorded ones"
            )
        value = self._integers[self.integers_used].expand(self._batch)
        if bool((value < low).any()) or bool((value >= high).any()):
            raise ValueError(
                f"recorded integer {self.integers_used} is {value.tolist()}, outside the range "
                f"[{low}, {high}) that was asked for"
            )
        self.integers_used += 1
        return value.clone()


def _per_item(bound: int | Tensor, n: int) -> list[int]:
    values = torch.as_tensor(bound, dtype=torch.int64).cpu()
    if values.ndim and values.shape != (n,):
        raise ValueError(f"got bounds of shape {tuple(values.shape)}, expected an int or ({n},)")
    return values.expand(n).tolist()
