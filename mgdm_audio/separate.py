"""Separation of recordings: from a file or an array to its stems.

The prior hears one channel at its own rate, so a recording is brought to the mean of its channels,
the prior's sample rate and the level of the mixtures the prior was trained on; it is sampled in
overlapping windows; the stems are made to add up to the mono mix; and they are brought back to the
recording's level, rate and channels (:mod:`mgdm_audio.spread` says what is inferred there and what
is not). The stems always add up to the recording. :mod:`mgdm_audio.song` has the steps;
:mod:`mgdm_audio.files` takes them from files to files in flat memory.
"""

from __future__ import annotations

__all__ = ["DeviceError", "Separation", "Separator", "resolve_device"]

import dataclasses
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mgdm_audio import STEMS, batch, hub, samplers, write
from mgdm_audio.cost import QUALITIES
from mgdm_audio.denoise import CountingDenoiser, Denoiser
from mgdm_audio.draws import SeededDraws
from mgdm_audio.models import Models
from mgdm_audio.operators import Mask, Mixture, PointwiseOperator, Stack
from mgdm_audio.other import NAME, Spectrum, WithOther
from mgdm_audio.precision import choose_precision
from mgdm_audio.recording import Given, in_memory
from mgdm_audio.regress import Answers, WithRegressor
from mgdm_audio.samplers.base import Problem, Sampler
from mgdm_audio.song import Callback, Job, Settings, Song
from mgdm_audio.store import MemoryStore
from mgdm_audio.varispeed import Varispeed

WINDOW = 262_144
"""Samples of a window at the prior's rate (11.9 s at 22.05 kHz)."""

OVERLAP = 32_768
"""Samples that neighbouring windows share (1.5 s at 22.05 kHz)."""


@dataclass(frozen=True)
class Separation:
    """The stems of a recording and how they were made.

    Attributes:
        stems: by name, each with the shape of the recording: arrays of the kind that was given
            (NumPy for a file), floating point with full scale at 1. They add up to the recording.
        sample_rate: in hertz.
        seed: the seed that gives the same stems again.
        residual_db: what the sampler's stems left of the mono mix before they were made to add
            up to it, relative to the mix, in dB.
        settings: model, its checksum, method, preset and the sampler's settings.
        stats: windows, network calls, vector-Jacobian products, seconds, real-time factor.
        mix: what the stems add up to.
        subtype: sample format of the source's file, None for an array.
        warnings: what a user should know about the source, in sentences.
    """

    stems: dict[str, Any]
    sample_rate: int
    seed: int
    residual_db: float
    settings: dict[str, Any]
    stats: dict[str, Any]
    mix: Any = field(repr=False)
    subtype: str | None = None
    warnings: tuple[str, ...] = ()

    def write(self, paths: Mapping[str, str | os.PathLike[str]]) -> str:
        """Writes stems as WAV files, all of them or none.

        Arguments:
            paths: the file of each stem that is wanted; missing folders are made.

        Returns:
            The sample format used: that of the source's file where WAV has it (see
            :func:`mgdm_audio.write.output_subtype`), FLOAT for arrays and where a stem exceeds
            full scale.

        Raises:
            ValueError: for a stem that there is not, if none is named, and if two have one file.
            OSError: if a file cannot be written; nothing is left behind then.
        """
        names = list(self.stems)
        if not paths:
            raise ValueError(f"no stem is named; there are {', '.join(names)}")
        if unknown := [name for name in paths if name not in names]:
            raise ValueError(f"there is no stem '{unknown[0]}'; there are {', '.join(names)}")
        subtype = "FLOAT" if self.subtype is None else write.output_subtype(self.subtype)
        # All stems, whatever is wanted: they are rounded so that together they are the mix.
        stack, mix = np.stack([_rows(stem) for stem in self.stems.values()]), _rows(self.mix)
        files = [Path(path) for path in paths.values()]
        owners: dict[Path, str] = {}
        for name, file in zip(paths, files, strict=True):
            # A link is replaced, not followed: only the folder may have two names.
            other = owners.setdefault(file.parent.resolve() / file.name, name)
            if other != name:
                raise ValueError(
                    f"{other} and {name} would both be written to {file}; give each its own file"
                )
        groups = [(names.index(name),) for name in paths]
        return write.write_stems(files, stack, mix, self.sample_rate, subtype, groups)


def _rows(samples: Any) -> NDArray[np.floating]:
    """Samples of a stem, (T,) or (C, T), an array or a tensor on any device, as (C, T)."""
    return np.atleast_2d(torch.as_tensor(samples).cpu().numpy())


_DEVICES = "use auto, cpu, cuda or cuda:N"


class DeviceError(ValueError):
    """A device that is not here."""


def resolve_device(device: str | torch.device) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps`` stands for.

    Raises:
        DeviceError: if there is no such device here.
    """
    if str(device) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("cpu")
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(f"unknown device '{device}'; {_DEVICES}") from error
    if wanted.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"device '{device}' is not supported; {_DEVICES}")
    if wanted.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (wanted.index or 0) >= count:
            raise DeviceError(
                f"device '{device}' is not available: this machine has {count} CUDA devices that "
                "this PyTorch can use; use --device cpu"
            )
    elif wanted.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device 'mps' is not available on this machine; use --device cpu")
    return wanted


class Separator:
    """Separates recordings with one prior and one sampler.

    With no quality, model, method, preset, average, warm start or setting named, it is the quality
    ``default``: MGDM begun from the regressor's estimate.

    Arguments:
        model: name or folder of a model, or a loaded one: a prior, or a regressor for the methods
            that ask nothing else. By default the shipped one of the kind that is asked.
        method: name of the sampler, see :func:`mgdm_audio.samplers.names`; by default ``mgdm``.
        preset: name of its settings, by default ``default``.
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda``, ``cuda:N``.
        precision: of the network's layers, see :func:`mgdm_audio.precision.choose_precision`.
        window: samples of a window at the prior's rate.
        overlap: samples that neighbouring windows share, at most half a window.
        batch: windows that are worked on together, by default 1 on a CPU and 8 on a GPU; a CPU
            takes those of a batch one after another, so that batches make no difference there.
        average: samples that are drawn of every window and averaged, by default 1: a draw from the
            posterior, with the sharpness of the prior; the mean of many is the posterior mean,
            which has the least squared error: averaging N gains 10 log10(2 / (1 + 1/N)) dB where
            the samples are exact, and blurs what the prior is unsure of.
        seams: how neighbouring windows are made to agree, see :data:`mgdm_audio.song.SEAMS`; by
            default ``condition``, and ``fade`` for samplers that take nothing but a mix.
        residual: whether what the sampler leaves of the mix becomes a stem of its own, called
            ``residual``, instead of being shared out among the stems.
        other: level in dB, relative to the mix, of a fifth stem called ``other``, for what the
            prior's stems are not (:mod:`mgdm_audio.other`); None where there is none.
        warm_start: name of a method whose estimate the sampler begins with, at a low noise level;
            its preset ``fast``, or another one after a colon, as in ``ddnm:default``.
        warm_sigma: that level, at the level of the prior's mixtures; required with `warm_start`.
        independent: take the stems as independent of each other: the product of the single-stem
            priors that the model holds in place of the joint one, at a network call for each stem.
        regressor: name or folder of the regressor that a method or its warm start asks, or a
            loaded one; by default the one of the quality, or the shipped one.
        quality: ``fast``, ``default`` or ``best``, see :data:`mgdm_audio.cost.QUALITIES`. It stands
            for method, preset, average, warm start and its level, so that none of them nor a
            setting goes with it, and for the regressor where none is named.
        settings: sampler settings that replace those of the preset.

    Raises:
        ValueError: for an unknown quality, model, method, preset, device or setting, for options
            that do not go together, and for a sampler whose noise levels the prior was not trained
            on, or that takes single-stem priors and gets a joint one.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | hub.Prior | hub.Regressor | None = None,
        method: str | None = None,
        preset: str | None = None,
        *,
        device: str | torch.device = "auto",
        precision: str = "auto",
        window: int = WINDOW,
        overlap: int = OVERLAP,
        batch: int | None = None,
        average: int | None = None,
        seams: str | None = None,
        residual: bool = False,
        other: float | None = None,
        warm_start: str | None = None,
        warm_sigma: float | None = None,
        independent: bool = False,
        regressor: str | os.PathLike[str] | hub.Regressor | None = None,
        quality: str | None = None,
        **settings: Any,
    ) -> None:
        self.device = resolve_device(device)
        decided = {
            "method": method, "preset": preset, "average": average, "warm_start": warm_start,
            "warm_sigma": warm_sigma, **settings,
        }  # fmt: skip
        named = [name for name, value in decided.items() if value is not None or name in settings]
        if quality is None and model is None and not named:
            quality = "default"
        if quality is not None:
            if quality not in QUALITIES:
                raise ValueError(f"unknown quality '{quality}'; there are {', '.join(QUALITIES)}")
            if named:
                raise ValueError(f"quality decides {named[0]}; give one of them")
            chosen = QUALITIES[quality]
            method, preset, average = chosen["method"], chosen["preset"], chosen["average"]
            warm_start, warm_sigma = chosen["warm_start"], chosen["warm_sigma"]
            regressor = chosen["regressor"] if regressor is None else regressor
        method, preset = method or "mgdm", preset or "default"
        average = 1 if average is None else average
        self.method, self.preset = method, preset
        self.sampler: Sampler = samplers.get(method, preset, **settings)
        if independent:
            self.sampler = samplers.independent(self.sampler, len(STEMS))
        if (warm_start is None) != (warm_sigma is None):
            raise ValueError(
                f"got warm_start = {warm_start} and warm_sigma = {warm_sigma}; a warm start needs "
                "both the method and the noise level"
            )
        if warm_start is not None and warm_sigma is not None:
            self.sampler = samplers.warm(self.sampler, warm_start, warm_sigma)
        self._more: dict[str, Any] = {} if warm_start is None else {"warm_start": warm_start}
        if independent:
            self._more["independent"] = True
        self.models = Models.load(self.sampler, model, regressor, self.device)
        self.prior = self.models.main
        if warm_start is not None and self.models.regressor is not None:
            self._more["regressor"] = self.models.regressor.name
            self._more["regressor_sha256"] = self.models.regressor.sha256
        self.dtype = choose_precision(self.device, precision)
        if seams == "condition" and not self.sampler.takes_parts:
            raise ValueError(
                f"sampler '{self.sampler.name}' makes nothing of parts of stems beside the mix and "
                "cannot be told the window before; choose seams 'fade', or another method"
            )
        if independent and other is not None:
            raise ValueError("independent stems are those of the prior; leave out other")
        asked = self.models.regressor
        if other is not None and asked is not None and not asked.knows_other:
            raise ValueError(
                f"method '{self.sampler.name}' asks the regressor '{asked.name}', which knows its "
                "own stems alone; leave out other, or choose another method or regressor"
            )
        self.song_settings = Settings(
            stems=len(self.prior.stems) + (other is not None),
            rate=self.prior.sample_rate,
            level=self.prior.level,
            window=window,
            overlap=overlap,
            average=average,
            seams=seams or ("condition" if self.sampler.takes_parts else "fade"),
            residual=residual,
            other=other,
        )
        if batch is not None and batch < 1:
            raise ValueError(f"batch must be at least 1 window, got {batch}")
        self.batch = batch or (1 if self.device.type == "cpu" else 8)
        self._answers = Answers(self.batch * max(1, self.sampler.cost().shared))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the stems that come out, in order."""
        settings = self.song_settings
        return (
            *self.prior.stems,
            *([NAME] if settings.other is not None else []),
            *(["residual"] if settings.residual else []),
        )

    def separate(
        self,
        source: Given,
        sample_rate: float | None = None,
        *,
        seed: int | None = None,
        callback: Callback | None = None,
    ) -> Separation:
        """Separates a recording, in memory.

        Arguments:
            source: path of a WAV, FLAC, OGG or MP3 file; or samples, a NumPy array or torch tensor
                of shape (T,) or (C, T), floating point with full scale at 1 or signed integers
                with full scale at the end of their range. It is never changed.
            sample_rate: in hertz, a whole number of any numeric type; required for samples, not
                allowed for files.
            seed: 0 to 2^63 - 1; by default a random one, which the result records.
            callback: told (done, total) in planned network calls; raising in it cancels.

        Returns:
            The stems, with the recording's rate, length and channels.

        Raises:
            AudioError: for a file or samples that cannot be used.
            ValueError: for a sample rate that is missing, no whole number, or not allowed, and for
                a seed out of range.
            TypeError: for a source of another type.
            FloatingPointError: if the sampler gives values that are not finite.
        """
        start = time.monotonic()
        seed = draw_seed() if seed is None else seed
        recording, restore = in_memory(source, sample_rate)
        song = Song(
            recording, self.song_settings, check_seed(seed), MemoryStore(),
            self.sampler.cost().calls, callback,
        )  # fmt: skip
        song.scan()
        ((_, error),) = self.run([song])
        if error is not None:
            raise error
        stems = torch.cat([stems for stems, _ in song.output()], dim=-1)
        seconds = time.monotonic() - start
        return Separation(
            stems={name: restore(stem) for name, stem in zip(self.names, stems, strict=True)},
            sample_rate=recording.sample_rate,
            seed=seed,
            residual_db=song.residual_db,
            settings=self.describe(),
            stats=stats(song, seconds),
            mix=restore(torch.from_numpy(recording.samples)),
            subtype=recording.subtype or None,
            warnings=song.warnings,
        )

    def describe(self) -> dict[str, Any]:
        """Everything that decides what is made of a recording and a seed."""
        settings = self.song_settings
        return {
            "model": self.prior.name,
            "sha256": self.prior.sha256,
            "method": self.method,
            "preset": self.preset,
            **self._more,
            "precision": str(self.dtype).removeprefix("torch."),
            "window": settings.window,
            "overlap": settings.overlap,
            "average": settings.average,
            "seams": settings.seams,
            "residual": settings.residual,
            "other": settings.other,
            "sampler": dataclasses.asdict(self.sampler),
        }

    def run(self, songs: Iterable[Song]) -> Iterator[tuple[Song, BaseException | None]]:
        """Samples the windows of scanned songs, see :func:`mgdm_audio.batch.run`."""
        return batch.run(self._draw, songs, self.batch)

    def _draw(self, jobs: list[Job], progress: Callable[[int], None]) -> tuple[Tensor, int, int]:
        """See `batch.Draw`."""
        if self.device.type != "cpu" or len(jobs) == 1:
            return self._draw_together(jobs, progress)
        # On a CPU a batch is no faster than its items, and rounds otherwise than they do.
        planned, parts, calls, vjps = self.sampler.cost().calls, [], 0, 0
        for i, job in enumerate(jobs):

            def part_of(done: int, before: int = i * planned) -> None:
                progress((before + done) // len(jobs))

            part, more_calls, more_vjps = self._draw_together([job], part_of)
            parts.append(part)
            calls, vjps = calls + more_calls, vjps + more_vjps
        return torch.cat(parts), calls, vjps

    def _draw_together(
        self, jobs: list[Job], progress: Callable[[int], None]
    ) -> tuple[Tensor, int, int]:
        """The stems of one batch of the network."""
        shape = (len(jobs), self.song_settings.stems, len(jobs[0].mix))
        operator: PointwiseOperator = Mixture(shape[1])
        y = torch.stack([job.mix for job in jobs])[:, None]
        if jobs[0].known is not None:
            known = torch.stack([_padded(job.known, shape[2]) for job in jobs])
            told = torch.tensor([0 if job.known is None else job.known.shape[1] for job in jobs])
            keep = torch.arange(shape[2]) < told[:, None, None]
            operator = Stack([operator, Mask(keep.expand(shape))])
            y = torch.cat([y, known], dim=1)
        y = y.to(self.device)
        counting = CountingDenoiser(self.models.asked())
        draws = SeededDraws([job.seed for job in jobs], self.device, y.dtype)
        half = self.dtype != torch.float32
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            stems = self.sampler.sample(
                self._asked(counting, jobs[0].song.spectrum, y[:, :1]),
                Problem(operator, y, 0.0, shape),
                draws,
                lambda done, _: progress(done),
            )
        return stems.cpu(), counting.calls, counting.vjps

    def _asked(
        self, counting: CountingDenoiser, spectrum: Spectrum | None, mix: Tensor
    ) -> Denoiser:
        """What the sampler is given: the models, with the other stem where there is one."""
        level = self.song_settings.other
        if spectrum is None or level is None:
            if counting.regress is None:
                return counting
            return WithRegressor(self._answers.of(counting.regress), counting)
        five = WithOther(counting, partial(spectrum.at, level=level))
        if five.regress is None:
            return five
        regress = self._answers.of(five.regress, spectrum)
        stems = mix.new_zeros(len(mix), self.song_settings.stems, mix.shape[2])
        nothing = torch.zeros(stems.shape[:2], dtype=torch.bool, device=mix.device)
        # What the sampler itself asks first; asked here, and not again by it.
        estimate = Varispeed(regress, self.sampler.speeds)(mix, stems, nothing)[:, -1:]
        return WithRegressor(regress, five.knowing(estimate))


def _padded(known: Tensor | None, size: int) -> Tensor:
    assert known is not None  # batches are of one kind
    return F.pad(known, (0, size - known.shape[1]))


def draw_seed() -> int:
    """A seed nobody chose."""
    return secrets.randbelow(2**31)


def check_seed(seed: int) -> int:
    """The seed. Raises ValueError if it is out of range."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"the seed must be from 0 to 2^63 - 1, got {seed}")
    return seed


def stats(song: Song, seconds: float) -> dict[str, Any]:
    """What a song cost, with the seconds that it took."""
    length = song.frames / song.source.sample_rate
    return {
        "windows": song.windows,
        "calls": song.calls,
        "vjps": song.vjps,
        "seconds": seconds,
        "real_time_factor": seconds / length,
    }
