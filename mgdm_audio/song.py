r"""One recording on its way to its stems, a piece at a time.

A recording is read three times, never whole. :meth:`Song.scan` makes of it what the prior hears
(:mod:`mgdm_audio.recording`). The windows of that mono mix are jobs for a
sampler (:meth:`Song.ready`, :meth:`Song.finish`). :meth:`Song.output` joins them, makes them add up
to the mix, brings them back to the recording's rate and divides the channels among them.

How neighbouring windows are made to agree is one of `SEAMS`:

- ``condition``: a window is told the stems of the window before it where they overlap, up to the
  end of the fade; the sampler takes them as observed along with the mix, and goes on from them.
  The windows of a recording then come one after another.
- ``fade``: windows are drawn independently of each other and cross-faded.
"""

from __future__ import annotations

__all__ = ["SEAMS", "Job", "Settings", "Song"]

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mgdm_audio import audio
from mgdm_audio.consistency import consistent, make_consistent
from mgdm_audio.other import Spectrum
from mgdm_audio.recording import Heard, Source
from mgdm_audio.spread import spread
from mgdm_audio.store import Store
from mgdm_audio.stream import with_context
from mgdm_audio.windows import WindowPlan, window_seed

SEAMS = ("condition", "fade")

MISSED = 3.0
"""Residual in dB above which a sampler has gone astray. A mix unlike all music leaves one of about
0: its stems are silent."""

MULTIPLE = 2048
"""A recording shorter than a window is padded to a multiple of this."""

Callback = Callable[[int, int], None]
"""Told (done, total) in planned network calls; raising in it cancels."""


def astray(residual_db: float) -> tuple[str, ...]:
    """The warning of a sampler that left so much, in dB relative to what it was to explain; none
    below `MISSED`."""
    if not residual_db > MISSED:
        return ()
    return (
        f"what was drawn misses the mix by {residual_db:.0f} dB more than the mix is loud: the "
        "sampler did not come to an end with these settings; take another preset, more steps, or "
        "another method",
    )


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
        heard: what the prior hears of the recording.
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
        self.heard = Heard(source, settings.rate, settings.level, folder)
        self.spectrum: Spectrum | None = None
        self.calls = self.vjps = 0
        self.residual_db = -math.inf
        self._done = 0

    def scan(self) -> None:
        """Reads the recording once.

        Raises:
            AudioError: if it cannot be read.
        """
        settings = self.settings
        self.heard.scan()
        self.plan = WindowPlan(self.heard.length, settings.window, settings.overlap, MULTIPLE)
        self._sounding = [i for i in range(len(self.plan.starts)) if bool(self._window(i).any())]
        self._heard_windows = set(self._sounding)
        if settings.other is not None:
            self.spectrum = Spectrum(piece[0] for piece in self.heard.pieces(1 << 16))

    @property
    def frames(self) -> int:
        """Samples T of the recording (after `scan`)."""
        return self.heard.frames

    @property
    def digest(self) -> str:
        """Checksum of what the prior hears (after `scan`)."""
        return self.heard.digest

    @property
    def silent(self) -> bool:
        """Whether every sample is zero."""
        return self.heard.power == 0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know about the recording and its stems (after `output`)."""
        found = [*self.source.warnings]
        if self.heard.cancels:
            found.append(
                "the channels cancel in their mean, which is all that the prior hears: the stems "
                "are shares of the input, not a separation"
            )
        return (*found, *astray(self.residual_db))

    @property
    def windows(self) -> int:
        """Number of windows, silent ones included."""
        return 0 if self.silent else len(self.plan.starts)

    @property
    def kept(self) -> int:
        """Samples of a stem that the store has at most: of windows, of what the next ones are told
        of each, and of samples whose mean is still to be."""
        if self.silent:
            return 0
        plan, average = self.plan, self.settings.average
        told = sum(
            end - start for start, (_, end) in zip(plan.starts[1:], plan.fades(), strict=True)
        )
        told *= average * (self.settings.seams == "condition")
        return (len(plan.starts) + average) * plan.size + told

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
        self.store.put(_sample(job.index, job.sample), stems)
        try:
            self._close_window(job.index)
        except BaseException:
            # Or its window would never be ready again, and never there.
            self.store.drop(_sample(job.index, job.sample))
            raise

    def _close_window(self, index: int) -> None:
        average = self.settings.average
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
            for channels in self.heard.channels():
                yield channels.new_zeros(count, *channels.shape), channels
            return
        stems = self._mono_stems()
        if source.sample_rate == settings.rate and source.channels == 1:
            pairs = zip(
                with_context(stems, self.frames, audio.BLOCK),
                with_context(self.heard.channels(), self.frames, audio.BLOCK),
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
                with_context(self.heard.channels(), self.frames, audio.BLOCK),
                strict=True,
            )
            spreaded = spread(
                (torch.cat([stem.to(channels), channels]) for stem, channels in both),
                count, self.frames, self.heard.power, source.sample_rate, settings.rate,
            )  # fmt: skip
        for parts, channels in spreaded:
            # What rounding left over, shared alike; the sum is then exact to the last bits.
            exact = parts + (channels - parts.sum(0)) / count
            if not bool(torch.isfinite(exact).all()):
                raise FloatingPointError("the stems hold NaN or infinite samples")
            yield exact, channels

    def close(self) -> None:
        """Gives memory and temporary files back."""
        self.heard.close()

    def _mono_stems(self) -> Iterator[Tensor]:
        """The stems of the mono mix at the prior's rate and the recording's level, (K, n)."""
        heard, settings = self.heard, self.settings
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
                mix = heard.read(done, done + piece.shape[-1])
                left = mix - piece.sum(0)
                rest += float(left.double().square().sum())
                whole += float(mix.double().square().sum())
                done += piece.shape[-1]
                yield torch.cat([piece, left if settings.residual else mix])

        if settings.residual:
            parts = joined()
        else:
            parts = consistent(joined(), heard.length, heard.mean_square())
        yield from (part / heard.gain for part in parts)
        self.residual_db = 10 * math.log10(rest / whole) if rest > 0 else -math.inf

    def _job(self, index: int, sample: int) -> Job:
        known = self._get(_known(index, sample)) if self._follows(index) else None
        # Sample s of a seed is the one sample of seed + s.
        seed = window_seed(self.seed + sample, index)
        return Job(self, index, sample, self._window(index), known, seed)

    def _window(self, index: int) -> Tensor:
        """The mix of a window at the prior's level, (size,)."""
        start, stop = self.plan.span(index)
        mix = self.heard.read(start, stop)[0]
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


def _window(index: int) -> str:
    return f"window-{index:06d}"


def _sample(index: int, sample: int) -> str:
    return f"sample-{index:06d}-{sample:04d}"


def _known(index: int, sample: int) -> str:
    return f"known-{index:06d}-{sample:04d}"
