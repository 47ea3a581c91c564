"""A recording, and what the prior hears of it: one channel at the prior's rate and level.

The recording is read as often as it is wanted and is never whole in memory. What is heard of it is
kept at the prior's rate, in memory or in a temporary file, and is read at will.
"""

from __future__ import annotations

__all__ = ["ArraySource", "Given", "Heard", "Source", "gain_to", "in_memory"]

import hashlib
import math
import numbers
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mgdm_audio import audio
from mgdm_audio.stream import Spool

Given = str | os.PathLike[str] | NDArray[Any] | Tensor
"""What a recording is taken from: a file, or samples in memory."""


class Source(Protocol):
    """A recording that can be read as often as wanted: `ArraySource` or `audio.AudioFile`."""

    @property
    def sample_rate(self) -> int:
        """In hertz."""
        ...

    @property
    def channels(self) -> int:
        """Number of channels C."""
        ...

    @property
    def subtype(self) -> str:
        """Sample format of the file, empty for an array."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know, after the blocks were read once."""
        ...

    def blocks(self) -> Iterator[NDArray[np.floating]]:
        """The samples in blocks of shape (C, n)."""
        ...


@dataclass(frozen=True)
class ArraySource:
    """Samples in memory, (C, T), float32 or float64."""

    samples: NDArray[np.floating]
    sample_rate: int
    subtype: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        """See `Source`."""
        return self.samples.shape[0]

    def blocks(self) -> Iterator[NDArray[np.floating]]:
        """See `Source`."""
        for start in range(0, self.samples.shape[1], audio.BLOCK):
            yield self.samples[:, start : start + audio.BLOCK]


def in_memory(
    source: Given, sample_rate: float | None
) -> tuple[ArraySource, Callable[[Tensor], Any]]:
    """A recording that was given, and the way from a result (C, T) back to its kind and shape.

    Arguments:
        source: path of a file; or samples, (T,) or (C, T), see `Separator.separate`.
        sample_rate: in hertz, a whole number of any numeric type; required for samples, not
            allowed for files.

    Raises:
        AudioError: for a file or samples that cannot be used.
        ValueError: for a rate that is missing, no whole number, or not allowed.
        TypeError: for a source of another type.
    """
    if isinstance(source, (str, os.PathLike)):
        if sample_rate is not None:
            raise ValueError("sample_rate is read from the file; give it only with samples")
        read = audio.read(source)
        kept = ArraySource(read.samples, read.sample_rate, read.subtype, read.warnings)
        return kept, lambda x: x.numpy()
    if not isinstance(source, (np.ndarray, Tensor)):
        raise TypeError(
            f"expected a path, a NumPy array or a torch tensor, got {type(source).__name__}"
        )
    if sample_rate is None:
        raise ValueError("samples need their sample_rate in hertz, got None")
    rate = _whole(sample_rate)
    kind = source
    if isinstance(source, Tensor):
        held = source.detach().cpu()
        # NumPy has no bfloat16.
        array = (held.float() if held.dtype == torch.bfloat16 else held).numpy()
    else:
        array = source
    if array.ndim not in (1, 2) or array.size == 0:
        raise audio.AudioError(
            f"samples must have shape (T,) or (C, T) and not be empty, got {array.shape}"
        )
    if array.ndim == 2 and array.shape[0] > max(32, array.shape[1]):
        raise audio.AudioError(
            f"samples must have shape (C, T), channels first, got {array.shape}; transpose them"
        )
    if array.dtype.kind == "i":
        array = array / -float(np.iinfo(array.dtype).min)
    elif array.dtype.kind != "f":
        raise audio.AudioError(f"samples must be floats or signed integers, got {array.dtype}")
    if not np.isfinite(array).all():
        first = int(np.argwhere(~np.isfinite(np.atleast_2d(array)).all(0))[0, 0])
        raise audio.AudioError(
            f"samples must be finite, got NaN or infinity at sample {first} ({first / rate:.6f} s)"
        )
    dtype = np.float64 if array.dtype == np.float64 and kind.dtype in _DOUBLE else np.float32
    samples: NDArray[Any] = np.array(np.atleast_2d(array), dtype=dtype, order="C")

    def restore(x: Tensor) -> Any:
        shaped = x.reshape(kind.shape)
        return shaped.to(kind.device) if isinstance(kind, Tensor) else shaped.numpy()

    return ArraySource(samples, rate), restore


def _whole(rate: Any) -> int:
    """A sample rate as an int. Raises ValueError if it is no whole number of hertz from 1 up."""
    real = isinstance(rate, numbers.Real) and not isinstance(rate, bool)
    if not real or not math.isfinite(rate) or rate != int(rate) or rate < 1:
        raise ValueError(f"sample_rate must be a whole number of hertz, got {rate!r}")
    return int(rate)


_DOUBLE = (np.dtype("float64"), torch.float64)


def gain_to(level: float, active: float) -> float:
    """The gain from a recording's active level to the prior's; 1 for silence.

    Raises:
        AudioError: if it is beyond what float32 holds, that of the samples.
    """
    gain = level / active if active else 1.0
    if not abs(gain) <= torch.finfo(torch.float32).max:
        raise audio.AudioError(
            f"the recording is too quiet, {-20 * math.log10(abs(active)):.0f} dB below full scale; "
            "amplify it first"
        )
    return gain


class Heard:
    """The mean of the channels of a recording at the prior's rate and at its level of mixtures.

    Arguments:
        source: the recording.
        rate: the prior's sample rate in hertz.
        level: the level of the mixtures that the prior was trained on.
        folder: for a temporary file that keeps memory flat; None keeps the mix in memory.

    Attributes:
        frames: samples T of the recording (after `scan`).
        digest: checksum of the mix at the recording's level (after `scan`).
        power: mean square of the channels (after `scan`).
        gain: from the recording's level to the prior's (after `scan`).
    """

    def __init__(self, source: Source, rate: int, level: float, folder: Path | None = None) -> None:
        self.source, self.rate, self.level = source, rate, level
        self.frames = 0
        self.digest = ""
        self.power = 0.0
        self.gain = 0.0
        self._mean_power = 0.0
        self._mix = Spool(1, folder)

    def scan(self) -> None:
        """Reads the recording once.

        Raises:
            AudioError: if it cannot be read, or is too quiet (see `gain_to`).
        """
        digest = hashlib.sha256()
        active = _ActiveLevel(max(1, self.rate // 10))

        def mono() -> Iterator[NDArray[np.floating]]:
            for block in self.source.blocks():
                channels = torch.from_numpy(block)
                mean = channels.mean(0)
                self.power += float(channels.double().square().sum())
                self._mean_power += float(mean.double().square().sum())
                self.frames += block.shape[1]
                yield mean.float()[None].numpy()

        for piece in audio.resampled(mono(), self.source.sample_rate, self.rate):
            mix = torch.from_numpy(piece)
            self._mix.append(mix)
            digest.update(piece.tobytes())
            active.add(mix[0])
        self.power /= self.frames * self.source.channels
        self._mean_power /= self.frames
        self.digest = digest.hexdigest()
        self.gain = gain_to(self.level, active.level())

    @property
    def length(self) -> int:
        """Samples of the mix."""
        return self._mix.length

    @property
    def cancels(self) -> bool:
        """Whether the mean of the channels is 60 dB below them: there is nothing to hear."""
        return self._mean_power < 1e-6 * self.power

    def read(self, start: int, stop: int) -> Tensor:
        """The mix from start to stop at the prior's level, (1, stop - start)."""
        return self._mix.read(start, stop) * self.gain

    def pieces(self, size: int) -> Iterator[Tensor]:
        """The whole mix at the prior's level in pieces of a size, (1, n)."""
        for piece in self._mix.pieces(size):
            yield piece * self.gain

    def mean_square(self) -> float:
        """Of the mix at the prior's level."""
        pieces = self.pieces(audio.BLOCK)
        return sum(float(piece.double().square().sum()) for piece in pieces) / self.length

    def channels(self) -> Iterator[Tensor]:
        """The recording's channels (C, n), which must be what they were when they were scanned.

        Raises:
            AudioError: if there are more or fewer of them.
        """
        seen = 0
        for block in self.source.blocks():
            seen += block.shape[1]
            yield torch.from_numpy(block)
        if seen != self.frames:
            raise audio.AudioError(
                f"the recording had {self.frames} frames and now has {seen}; it changed while it "
                "was separated"
            )

    def close(self) -> None:
        """Gives memory or the temporary file back."""
        self._mix.close()


class _ActiveLevel:
    """Root mean square of a mix over the blocks within 60 dB of the loudest."""

    def __init__(self, block: int) -> None:
        self.block = block
        self._left = torch.zeros(0)
        self._powers: list[Tensor] = []

    def add(self, mix: Tensor) -> None:
        mix = torch.cat([self._left, mix])
        whole = len(mix) // self.block * self.block
        self._powers.append(mix[:whole].double().unflatten(0, (-1, self.block)).square().mean(-1))
        self._left = mix[whole:].clone()

    def level(self) -> float:
        if not any(map(len, self._powers)):
            # Shorter than a block: the silence that would fill it is no part of the recording.
            return float(self._left.double().square().mean().sqrt())
        if len(self._left):
            self.add(torch.zeros(self.block - len(self._left)))
        power = torch.cat(self._powers)
        return float(power[power >= power.max() * 1e-6].mean().sqrt())
