"""Separation of recordings: from a file or an array to its stems.

The prior hears one channel at its own rate, so a recording is brought to the mean of its channels,
the prior's sample rate and the level of the mixtures the prior was trained on; it is sampled in
overlapping windows; the stems are made to add up to the mono mix; and they are brought back to the
recording's level, rate and channels (:mod:`mgdm_audio.spread` says what is inferred there and what
is not). The stems always add up to the recording.
"""

from __future__ import annotations

__all__ = ["Separation", "Separator", "resolve_device"]

import dataclasses
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mgdm_audio import audio, hub, samplers
from mgdm_audio.consistency import make_consistent, residual_db
from mgdm_audio.denoise import CountingDenoiser
from mgdm_audio.draws import SeededDraws
from mgdm_audio.operators import Mixture
from mgdm_audio.precision import choose_precision
from mgdm_audio.samplers.base import Problem, Sampler
from mgdm_audio.spread import spread_stems
from mgdm_audio.windows import WindowPlan, window_seed

Source = str | os.PathLike[str] | NDArray[Any] | Tensor
Callback = Callable[[int, int], None]

WINDOW = 262_144
"""Samples of a window at the prior's rate (11.9 s at 22.05 kHz)."""

OVERLAP = 32_768
"""Samples that neighbouring windows share (1.5 s at 22.05 kHz)."""

MULTIPLE = 2048
"""A recording shorter than a window is padded to a multiple of this."""


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

    def write(self, paths: dict[str, Path]) -> str:
        """Writes each stem as a WAV file, all of them or none.

        Arguments:
            paths: the file of each stem.

        Returns:
            The sample format used: that of the source's file where WAV has it (see
            :func:`mgdm_audio.audio.output_subtype`), FLOAT for arrays.

        Raises:
            OSError: if a file cannot be written; nothing is left behind then.
        """
        subtype = "FLOAT" if self.subtype is None else audio.output_subtype(self.subtype)
        stack = np.stack([np.atleast_2d(np.asarray(self.stems[name])) for name in paths])
        mix = np.atleast_2d(np.asarray(self.mix))
        return audio.write_stems(list(paths.values()), stack, mix, self.sample_rate, subtype)


def resolve_device(device: str | torch.device) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps`` stands for.

    Raises:
        ValueError: if there is no such device here.
    """
    if str(device) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("cpu")
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device '{device}'; use auto, cpu, cuda or cuda:N") from error
    if wanted.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (wanted.index or 0) >= count:
            raise ValueError(
                f"device '{device}' is not available: this machine has {count} CUDA devices that "
                "this PyTorch can use; use --device cpu"
            )
    elif wanted.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps' is not available on this machine; use --device cpu")
    return wanted


class Separator:
    """Separates recordings with one prior and one sampler.

    Arguments:
        model: name or folder of a model, or a loaded prior.
        method: name of the sampler, see :func:`mgdm_audio.samplers.names`.
        preset: name of its settings.
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda``, ``cuda:N``.
        precision: of the network's layers, see :func:`mgdm_audio.precision.choose_precision`.
        window: samples of a window at the prior's rate.
        overlap: samples that neighbouring windows share, at most half a window.
        batch: windows that go through the network together; by default 1 on a CPU, 8 on a GPU.
        average: samples that are drawn of every window and averaged. One is a draw from the
            posterior, with the sharpness of the prior; the mean of many is the posterior mean,
            which has the least squared error: averaging N gains 10 log10(2 / (1 + 1/N)) dB where
            the samples are exact, and blurs what the prior is unsure of.
        settings: sampler settings that replace those of the preset.

    Raises:
        ValueError: for an unknown model, method, preset, device or setting, and for a sampler
            whose noise levels the prior was not trained on.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | hub.Prior = "default",
        method: str = "mgdm",
        preset: str = "default",
        *,
        device: str | torch.device = "auto",
        precision: str = "auto",
        window: int = WINDOW,
        overlap: int = OVERLAP,
        batch: int | None = None,
        average: int = 1,
        **settings: Any,
    ) -> None:
        self.device = resolve_device(device)
        self.method, self.preset = method, preset
        self.sampler: Sampler = samplers.get(method, preset, **settings)
        self.prior = model if isinstance(model, hub.Prior) else hub.load(model, self.device)
        low, high = self.prior.sigma_min, self.prior.sigma_max
        if self.sampler.sigma_min < low or self.sampler.sigma_max > high:
            raise ValueError(
                f"preset '{preset}' of '{method}' uses noise levels from "
                f"{self.sampler.sigma_min:g} to {self.sampler.sigma_max:g}, but model "
                f"'{self.prior.name}' was trained from {low:g} to {high:g}; choose another "
                "preset, or set sigma_min and sigma_max"
            )
        self.dtype = choose_precision(self.device, precision)
        WindowPlan(1, window, overlap)  # raises where these do not fit
        self.window, self.overlap = window, overlap
        if average < 1:
            raise ValueError(f"average must be at least 1 sample, got {average}")
        self.average = average
        self.batch = batch or (1 if self.device.type == "cpu" else 8)

    def separate(
        self,
        source: Source,
        sample_rate: int | None = None,
        *,
        seed: int | None = None,
        callback: Callback | None = None,
    ) -> Separation:
        """Separates a recording.

        Arguments:
            source: path of a WAV, FLAC, OGG or MP3 file; or samples, a NumPy array or torch tensor
                of shape (T,) or (C, T), floating point with full scale at 1 or signed integers
                with full scale at the end of their range. It is never changed.
            sample_rate: in hertz, required for samples, not allowed for files.
            seed: 0 to 2^63 - 1; by default a random one, which the result records.
            callback: told (done, total) in planned network calls; raising in it cancels.

        Returns:
            The stems, with the recording's rate, length and channels.

        Raises:
            AudioError: for a file or samples that cannot be used.
            FloatingPointError: if the sampler gives values that are not finite.
        """
        start = time.monotonic()
        seed = secrets.randbelow(2**31) if seed is None else seed
        if not 0 <= seed < 2**63:
            raise ValueError(f"the seed must be from 0 to 2^63 - 1, got {seed}")
        recording, restore = _recording(source, sample_rate)
        channels = torch.from_numpy(recording.samples)
        stems, residual, counts = self._stems(channels, recording.sample_rate, seed, callback)
        seconds = time.monotonic() - start
        length = channels.shape[-1] / recording.sample_rate
        return Separation(
            stems={name: restore(stem) for name, stem in zip(self.prior.stems, stems, strict=True)},
            sample_rate=recording.sample_rate,
            seed=seed,
            residual_db=residual,
            settings={
                "model": self.prior.name,
                "sha256": self.prior.sha256,
                "method": self.method,
                "preset": self.preset,
                "precision": str(self.dtype).removeprefix("torch."),
                "window": self.window,
                "overlap": self.overlap,
                "average": self.average,
                "sampler": dataclasses.asdict(self.sampler),
            },
            stats={**counts, "seconds": seconds, "real_time_factor": seconds / length},
            mix=restore(channels),
            subtype=recording.subtype or None,
            warnings=recording.warnings + _cancelling(channels),
        )

    def _stems(
        self, channels: Tensor, rate: int, seed: int, callback: Callback | None
    ) -> tuple[Tensor, float, dict[str, int]]:
        """Stems (K, C, T) of channels (C, T), the residual in dB, and what it cost."""
        names = self.prior.stems
        if not bool(channels.any()):
            counts = {"windows": 0, "calls": 0, "vjps": 0}
            return channels.new_zeros(len(names), *channels.shape), -math.inf, counts
        prior_rate = self.prior.sample_rate
        mono = channels.mean(0).float()
        mix = torch.from_numpy(audio.resample(mono.numpy(), rate, prior_rate))
        gain = self.prior.level / max(_active_level(mix, prior_rate), 1e-20)
        sampled, counts = self._sample(mix * gain, seed, callback)
        residual = residual_db(sampled, mix * gain)
        sampled = make_consistent(sampled, mix * gain) / gain
        if rate == prior_rate and len(channels) == 1:
            stems = sampled[:, None].to(channels)
        else:
            wide = audio.resample(sampled.numpy(), prior_rate, rate, channels.shape[-1])
            stems = spread_stems(torch.from_numpy(wide), channels, rate, prior_rate)
        # What rounding left over, shared alike; the sum is then exact to the last bits.
        stems = stems + (channels - stems.sum(0)) / len(names)
        if not bool(torch.isfinite(stems).all()):
            raise FloatingPointError("the stems hold NaN or infinite samples; nothing is returned")
        return stems, residual, counts

    def _sample(
        self, mix: Tensor, seed: int, callback: Callback | None
    ) -> tuple[Tensor, dict[str, int]]:
        """The sampler's stems (K, T) of a mono mix (T,) at the prior's rate and level."""
        plan = WindowPlan(len(mix), self.window, self.overlap, MULTIPLE)
        parts = [plan.cut(mix, index) for index in range(len(plan.starts))]
        sounding = [index for index, part in enumerate(parts) if bool(part.any())]
        denoise = CountingDenoiser(self.prior.denoise)
        planned = self.sampler.cost().calls
        silence = mix.new_zeros(len(self.prior.stems), plan.size)
        # Sample s of a seed is the one sample of seed + s.
        jobs = [(index, seed + s) for index in sounding for s in range(self.average)]
        sampled: dict[int, Tensor] = {}
        for first in range(0, len(jobs), self.batch):
            part = jobs[first : first + self.batch]

            def report(done: int, total: int, first: int = first, n: int = len(part)) -> None:
                if callback is not None:
                    callback(planned * first + done * n, planned * len(jobs))

            y = torch.stack([parts[index] for index, _ in part])[:, None].to(self.device)
            problem = Problem(Mixture(len(silence)), y, 0.0, (len(part), len(silence), plan.size))
            seeds = [window_seed(sample_seed, index) for index, sample_seed in part]
            half = self.dtype != torch.float32
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                stems = self.sampler.sample(
                    denoise, problem, SeededDraws(seeds, self.device, y.dtype), report
                )
            for (index, _), stem in zip(part, stems.cpu(), strict=True):
                share = stem / self.average
                sampled[index] = sampled[index] + share if index in sampled else share

        def windows() -> Iterator[Tensor]:
            for index in range(len(parts)):
                yield sampled.get(index, silence)

        counts = {"windows": len(parts), "calls": denoise.calls, "vjps": denoise.vjps}
        return plan.join(windows()), counts


def _cancelling(channels: Tensor) -> tuple[str, ...]:
    """A warning where the mean of the channels, which the prior hears, is 60 dB below them."""
    power, heard = channels.double().square().mean(), channels.double().mean(0).square().mean()
    if not bool(power > 0) or bool(heard >= 1e-6 * power):
        return ()
    return (
        "the channels cancel in their mean, which is all that the prior hears: the stems are "
        "shares of the input, not a separation",
    )


def _active_level(mix: Tensor, rate: int) -> float:
    """Root mean square of a mix over the tenths of a second within 60 dB of the loudest."""
    block = max(1, rate // 10)
    padded = torch.nn.functional.pad(mix.double(), (0, -len(mix) % block))
    power = padded.unflatten(0, (-1, block)).square().mean(-1)
    return float(power[power >= power.max() * 1e-6].mean().sqrt())


def _recording(
    source: Source, sample_rate: int | None
) -> tuple[audio.Recording, Callable[[Tensor], Any]]:
    """A source as (C, T) samples, and the way from a result (C, T) back to its kind and shape."""
    if isinstance(source, (str, os.PathLike)):
        if sample_rate is not None:
            raise ValueError("sample_rate is read from the file; give it only with samples")
        return audio.read(source), lambda x: x.numpy()
    if not isinstance(source, (np.ndarray, Tensor)):
        raise TypeError(
            f"expected a path, a NumPy array or a torch tensor, got {type(source).__name__}"
        )
    if sample_rate is None or sample_rate < 1:
        raise ValueError(f"samples need their sample_rate in hertz, got {sample_rate}")
    kind = source
    array = source.detach().cpu().numpy() if isinstance(source, Tensor) else source
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
            f"samples must be finite, got NaN or infinity at sample {first} "
            f"({first / sample_rate:.6f} s)"
        )
    dtype = np.float64 if array.dtype == np.float64 and kind.dtype in _DOUBLE else np.float32
    samples = np.array(np.atleast_2d(array), dtype=dtype, order="C")

    def restore(x: Tensor) -> Any:
        shaped = x.reshape(kind.shape)
        return shaped.to(kind.device) if isinstance(kind, Tensor) else shaped.numpy()

    return audio.Recording(samples, sample_rate, ""), restore


_DOUBLE = (np.dtype("float64"), torch.float64)
