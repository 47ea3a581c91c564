r"""One recording on its way to its stems, a piece at a time.

A recording is read three times, never whole. :meth:`Song.scan` brings it to the mean of its
channels and the prior's rate, and measures its level. The windows of that mono mix are jobs for a
sampler (:meth:`Song.ready`, :meth:`Song.finish`). :meth:`Song.output` joins them, makes them add up
to the mix, brings them back to the recording's rate and divides the channels among them.

How neighbouring windows are made to agree is one of `SEAMS`:

- ``condition``: a window is told the stems of the window before it where they overlap, up to the
  end of the fade; the sampler takes them as observed along with the mix, and goes on from them.
  The windows of a recording then come one after another.
- ``fade``: windows are drawn independently of each other and cross-faded.
"""

from __future__ import annotations

__all__ = ["SEAMS", "ArraySource", "Job", "Settings", "Song", "Source"]

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mgdm_audio import audio
from mgdm_audio.consistency import consistent, make_consistent
from mgdm_audio.other import Spectrum
from mgdm_audio.spread import spread
from mgdm_audio.store import Store
from mgdm_audio.stream import Spool, with_context
from mgdm_audio.windows import WindowPlan, window_seed

SEAMS = ("condition", "fade")

MULTIPLE = 2048
"""A recording shorter than a window is padded to a multiple of this."""

Callback = Callable[[int, int], None]
"""Told (done, total) in planned network calls; raising in it cancels."""


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


@dataclass(frozen=True)
class Settings:
    """How a recording is cut and put together.

    Arguments:
        stems: number of stems K, the other one included.
        rate: the prior's sample rate in hertz.
        level: the level of the mixtures that the prior was trained on.
        window: samples of a window at the prior's rate.
        overlap: samples that neighbouring windows share, at most half a window.
        average: samples that are drawn of every window and averaged.
        seams: one of `SEAMS`.
        residual: whether what the sampler leaves of the mix becomes a stem of its own, the last,
            instead of being shared out among the stems.
        other: power of the prior of a stem for what the prior's stems are not, the last one, in dB
            relative to the mix (:mod:`mgdm_audio.other`); None where there is no such stem.

    Raises:
        ValueError: if one of them is out of range.
    """

    stems: int
    rate: int
    level: float
    window: int
    overlap: int
    average: int = 1
    seams: str = "condition"
    residual: bool = False
    other: float | None = None

    def __post_init__(self) -> None:
        WindowPlan(1, self.window, self.overlap)  # raises where these do not fit
        if self.average < 1:
            raise ValueError(f"average must be at least 1 sample, got {self.average}")
        if self.seams not in SEAMS:
            raise ValueError(f"seams must be one of {', '.join(SEAMS)}, got '{self.seams}'")
        if self.other is not None and not -100 <= self.other <= 20:
            raise ValueError(f"the level of other must be from -100 to 20 dB, got {self.other}")


@dataclass(frozen=True)
class Job:
    """One sample of one window.

    Attributes:
        song: whose window it is.
        index: which window.
        sample: which of the samples that are averaged.
        mix: the window's mix at the prior's level, (size,).
        known: stems that are given at the window's start, (K, n), or None.
        seed: of this sample.
    """

    song: Song
    index: int
    sample: int
    mix: Tensor
    known: Tensor | None
    seed: int


class Song:
    """A recording, its windows, and the way to its stems.

    Arguments:
        source: the recording.
        settings: see `Settings`.
        seed: decides all samples.
        store: keeps the finished windows.
        planned: network calls of one job, for the progress report.
        callback: told (done, total) of them.
        folder: for temporary files that keep memory flat; None keeps everything in memory.

    Attributes:
        frames: samples T of the recording (after `scan`).
        digest: checksum of what the prior hears (after `scan`).
        spectrum: of the mix at the prior's level, if there is an other stem (after `scan`).
        calls, vjps: what was asked of the network so far.
        residual_db: what the sampler's stems leave of the mix, relative to it (after `output`).
    """

    def __init__(
        self,
        source: Source,
        settings: Settings,
        seed: int,
        store: Store,
        planned: int,
        callback: Callback | None = None,
        folder: Path | None = None,
    ) -> None:
        self.source, self.settings, self.seed, self.store = source, settings, seed, store
        self.planned, self.callback = planned, callback
        self.frames = 0
        self.digest = ""
        self.spectrum: Spectrum | None = None
        self.calls = self.vjps = 0
        self.residual_db = -math.inf
        self._mix = Spool(1, folder)
        self._power = self._heard = self._gain = 0.0
        self._done = 0

    def scan(self) -> None:
        """Reads the recording once.

        Raises:
            AudioError: if it cannot be read.
        """
        rate = self.settings.rate
        digest = hashlib.sha256()
        active = _ActiveLevel(max(1, rate // 10))

        def mono() -> Iterator[NDArray[np.floating]]:
            for block in self.source.blocks():
                channels = torch.from_numpy(block)
                mean = channels.mean(0)
                self._power += float(channels.double().square().sum())
                self._heard += float(mean.double().square().sum())
                self.frames += block.shape[1]
                yield mean.float()[None].numpy()

        for piece in audio.resampled(mono(), self.source.sample_rate, rate):
            mix = torch.from_numpy(piece)
            self._mix.append(mix)
            digest.update(piece.tobytes())
            active.add(mix[0])
        self._power /= self.frames * self.source.channels
        self._heard /= self.frames
        self.digest = digest.hexdigest()
        self._gain = self.settings.level / max(active.level(), 1e-20)
        self.plan = WindowPlan(
            self._mix.length, self.settings.window, self.settings.overlap, MULTIPLE
        )
        self._sounding = [i for i in range(len(self.plan.starts)) if bool(self._window(i).any())]
        self._heard_windows = set(self._sounding)
        if self.settings.other is not None:
            pieces = self._mix.pieces(1 << 16)
            self.spectrum = Spectrum(piece[0] * self._gain for piece in pieces)

    @property
    def silent(self) -> bool:
        """Whether every sample is zero."""
        return self._power == 0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know about the recording, in sentences."""
        # The mean of the channels, which the prior hears, is 60 dB below them.
        if self._heard >= 1e-6 * self._power:
            return self.source.warnings
        return (
            *self.source.warnings,
            "the channels cancel in their mean, which is all that the prior hears: the stems are "
            "shares of the input, not a separation",
        )

    @property
    def windows(self) -> int:
        """Number of windows, silent ones included."""
        return 0 if self.silent else len(self.plan.starts)

    @property
    def jobs(self) -> int:
        """Number of jobs in all."""
        return 0 if self.silent else len(self._sounding) * self.settings.average

    @property
    def complete(self) -> bool:
        """Whether every window that has to be sampled is there."""
        return self.silent or all(self.store.has(_window(i)) for i in self._sounding)

    def resume(self) -> None:
        """Drops finished windows that cannot be used, and those that must be made again for it."""
        if self.silent:
            return
        for index in reversed(self._sounding):
            if self.store.get(_window(index)) is None:
                self.store.drop(_window(index))
                if self._follows(index) and not all(
                    self.store.get(_known(index, s)) is not None
                    for s in range(self.settings.average)
                ):
                    self.store.drop(_window(index - 1))
            for sample in range(self.settings.average):
                self.store.drop(_sample(index, sample))
        done = sum(self.store.has(_window(i)) for i in self._sounding)
        self._done = done * self.settings.average * self.planned
        self.report(0)

    def ready(self, limit: int) -> list[Job]:
        """Jobs that can be done now, in order, at most `limit`."""
        found: list[Job] = []
        for index in [] if self.silent else self._sounding:
            if len(found) >= limit:
                break
            if self.store.has(_window(index)):
                continue
            if self._follows(index) and not self.store.has(_window(index - 1)):
                continue
            found += [
                self._job(index, sample)
                for sample in range(self.settings.average)
                if not self.store.has(_sample(index, sample))
            ]
        return found[:limit]

    def finish(self, job: Job, stems: Tensor) -> None:
        """Takes the stems (K, size) of a job."""
        index, average = job.index, self.settings.average
        self.store.put(_sample(index, job.sample), stems)
        if not all(self.store.has(_sample(index, s)) for s in range(average)):
            return
        mean: Tensor | None = None
        for sample in range(average):
            each = self._get(_sample(index, sample))
            if self._follows(index + 1):
                self.store.put(_known(index + 1, sample), self._tail(index, each))
            share = each / average
            mean = share if mean is None else mean + share
        assert mean is not None
        # What the next window needs is there before the window is, so that a window that is
        # there never lacks it.
        self.store.put(_window(index), mean)
        for sample in range(average):
            self.store.drop(_sample(index, sample))

    def report(self, calls: int) -> None:
        """Tells the callback that as many more planned calls are under way."""
        if self.callback is not None and self.jobs:
            self.callback(self._done + calls, self.planned * self.jobs)

    def spent(self, jobs: int, calls: int, vjps: int) -> None:
        """So many jobs were done, at this cost."""
        self._done += jobs * self.planned
        self.calls += calls
        self.vjps += vjps

    def output(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The stems (K, C, n) and the channels (C, n) that they add up to, piece by piece.

        With `Settings.residual` there is one more stem. It can be asked for again.
        """
        settings, source = self.settings, self.source
        count = settings.stems + settings.residual
        if self.silent:
            for channels in self._channels():
                yield channels.new_zeros(count, *channels.shape), channels
            return
        stems = self._mono_stems()
        if source.sample_rate == settings.rate and source.channels == 1:
            pairs = zip(
                with_context(stems, self.frames, audio.BLOCK),
                with_context(self._channels(), self.frames, audio.BLOCK),
                strict=True,
            )
            spreaded: Iterator[tuple[Tensor, Tensor]] = (
                (stem[:, None].to(channels), channels) for stem, channels in pairs
            )
        else:
            wide = audio.resampled(
                (stem.numpy() for stem in stems), settings.rate, source.sample_rate, self.frames
            )
            both = zip(
                with_context(map(torch.from_numpy, wide), self.frames, audio.BLOCK),
                with_context(self._channels(), self.frames, audio.BLOCK),
                strict=True,
            )
            spreaded = spread(
                (torch.cat([stem.to(channels), channels]) for stem, channels in both),
                count, self.frames, self._power, source.sample_rate, settings.rate,
            )  # fmt: skip
        for parts, channels in spreaded:
            # What rounding left over, shared alike; the sum is then exact to the last bits.
            exact = parts + (channels - parts.sum(0)) / count
            if not bool(torch.isfinite(exact).all()):
                raise FloatingPointError("the stems hold NaN or infinite samples")
            yield exact, channels

    def close(self) -> None:
        """Gives memory and temporary files back."""
        self._mix.close()

    def _mono_stems(self) -> Iterator[Tensor]:
        """The stems of the mono mix at the prior's rate and the recording's level, (K, n)."""
        length, settings = self._mix.length, self.settings
        rest = whole = 0.0

        def joined() -> Iterator[Tensor]:
            nonlocal rest, whole
            silence = torch.zeros(settings.stems, self.plan.size)
            windows = (
                self._get(_window(i)) if i in self._heard_windows else silence
                for i in range(len(self.plan.starts))
            )
            done = 0
            for piece in self.plan.pieces(windows):
                mix = self._mix.read(done, done + piece.shape[-1]) * self._gain
                left = mix - piece.sum(0)
                rest += float(left.double().square().sum())
                whole += float(mix.double().square().sum())
                done += piece.shape[-1]
                yield torch.cat([piece, left if settings.residual else mix])

        if settings.residual:
            yield from (piece / self._gain for piece in joined())
        else:
            mean = self._mean_square()
            yield from (piece / self._gain for piece in consistent(joined(), length, mean))
        self.residual_db = 10 * math.log10(rest / whole) if rest > 0 else -math.inf

    def _mean_square(self) -> float:
        """Mean square of the mono mix at the prior's level."""
        total = sum(
            float((piece * self._gain).double().square().sum())
            for piece in self._mix.pieces(audio.BLOCK)
        )
        return total / self._mix.length

    def _channels(self) -> Iterator[Tensor]:
        """The recording's channels (C, n), which must be what they were when they were scanned."""
        seen = 0
        for block in self.source.blocks():
            seen += block.shape[1]
            yield torch.from_numpy(block)
        if seen != self.frames:
            raise audio.AudioError(
                f"the recording had {self.frames} frames and now has {seen}; it changed while it "
                "was separated"
            )

    def _job(self, index: int, sample: int) -> Job:
        known = self._get(_known(index, sample)) if self._follows(index) else None
        # Sample s of a seed is the one sample of seed + s.
        seed = window_seed(self.seed + sample, index)
        return Job(self, index, sample, self._window(index), known, seed)

    def _window(self, index: int) -> Tensor:
        """The mix of a window at the prior's level, (size,)."""
        start, stop = self.plan.span(index)
        mix = self._mix.read(start, stop)[0] * self._gain
        return torch.nn.functional.pad(mix, (0, self.plan.size - len(mix)))

    def _follows(self, index: int) -> bool:
        """Whether a window is told the stems of the one before it."""
        conditioned = self.settings.seams == "condition"
        return conditioned and {index - 1, index} <= self._heard_windows

    def _tail(self, index: int, stems: Tensor) -> Tensor:
        """What the window after this one is told of it: up to the end of the fade, adding up."""
        start, following = self.plan.starts[index], self.plan.starts[index + 1]
        _, end = self.plan.fades()[index]
        exact = make_consistent(stems, self._window(index))
        return exact[:, following - start : end - start].contiguous()

    def _get(self, name: str) -> Tensor:
        value = self.store.get(name)
        if value is None:
            raise OSError(f"the finished window {name} is damaged; run again with --resume")
        return value


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
        if len(self._left):
            self.add(torch.zeros(self.block - len(self._left)))
        power = torch.cat(self._powers)
        return float(power[power >= power.max() * 1e-6].mean().sqrt())


def _window(index: int) -> str:
    return f"window-{index:06d}"


def _sample(index: int, sample: int) -> str:
    return f"sample-{index:06d}-{sample:04d}"


def _known(index: int, sample: int) -> str:
    return f"known-{index:06d}-{sample:04d}"
