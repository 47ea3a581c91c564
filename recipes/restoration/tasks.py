"""The ten operators of the paper's Table 1 (Janati et al. 2025, arXiv:2502.03332), for sound.

| paper's, on images    | here                                                     |
|-----------------------|----------------------------------------------------------|
| super-resolution x4   | ``down4``: every 4th sample, after an anti-alias filter  |
| super-resolution x16  | ``down16``                                               |
| box inpainting        | ``gap``: 100 ms in the middle are missing                |
| half mask             | ``half``: the second half is missing                     |
| Gaussian deblurring   | ``lowpass``: nothing above 2 kHz                         |
| motion deblurring     | ``reverb``: a room of 0.4 s                              |
| JPEG                  | ``bits``: 4 bits                                         |
| phase retrieval       | ``phase``: magnitudes of the short-time Fourier transform |
| nonlinear deblurring  | ``overdrive``: tanh of ten times the signal              |
| HDR                   | ``clip``: clipped at its root mean square                |

Each is applied to the mix or to one stem of four, and noise of 1e-3 is added (signals have an RMS
near 0.1). The target is what the operator was applied to.
"""

from __future__ import annotations

__all__ = ["LINEAR", "NOISE", "TASKS", "Task", "make"]

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mgdm_audio.compose import compose
from mgdm_audio.degradations import Clip, Magnitude, Overdrive, Quantise
from mgdm_audio.filters import Decimation, LowPass, Reverb
from mgdm_audio.observe import Operator
from mgdm_audio.operators import Mask, Mixture

NOISE = 1e-3


@dataclass(frozen=True, eq=False)
class Task:
    """One operator on one clip.

    Attributes:
        operator: from the stems (1, K, T) to the observation.
        target: from the stems to the signal that was damaged.
        y: the observation, (1, 1, T').
        truth: the signal, (T,).
    """

    operator: Operator
    target: Mixture
    y: Tensor
    truth: Tensor


def _gap(length: int, rate: int) -> Operator:
    keep = torch.ones(1, length)
    size = min(length // 2, rate // 10)
    keep[:, (length - size) // 2 : (length + size) // 2] = 0
    return Mask(keep)


def _half(length: int, rate: int) -> Operator:
    return Mask((torch.arange(length) < length // 2)[None].float())


def _room(length: int, rate: int) -> Operator:
    """A direct sound and noise that falls by 60 dB in 0.4 s; of norm 1."""
    t = torch.arange(min(length, int(0.4 * rate))) / rate
    tail = torch.randn(len(t), generator=torch.Generator().manual_seed(0))
    impulse = 0.05 * tail * 10 ** (-3 * t / 0.4)
    impulse[0] = 1.0
    loudest = torch.fft.rfft(impulse, n=length).abs().max()
    return Reverb(length, impulse / loudest)


TASKS: dict[str, Callable[[int, int], Operator]] = {
    "down4": lambda length, rate: Decimation(length, 4),
    "down16": lambda length, rate: Decimation(length, 16),
    "gap": _gap,
    "half": _half,
    "lowpass": lambda length, rate: LowPass(length, 2000 / rate),
    "reverb": _room,
    "bits": lambda length, rate: Quantise(4, 0.5),
    "phase": lambda length, rate: Magnitude(1024, 256, length=length),
    "overdrive": lambda length, rate: Overdrive(10.0),
    "clip": lambda length, rate: Clip(0.1),
}
"""The operator on one channel, by the number of samples and the sample rate."""

LINEAR = ("down4", "down16", "gap", "half", "lowpass", "reverb")


def make(name: str, stems: Tensor, target: int | None, rate: int, seed: int) -> Task:
    """Applies an operator to a clip.

    Arguments:
        name: one of `TASKS`.
        stems: (K, T) at the prior's level, T a multiple of 16.
        target: the stem, or None for the mix.
        rate: in hertz.
        seed: of the noise.
    """
    count, length = stems.shape
    gains = [1.0 if target in (None, k) else 0.0 for k in range(count)]
    mixture = Mixture(count, gains)
    truth = mixture.forward(stems[None])
    channel = TASKS[name](length, rate)
    clean = channel.forward(truth)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    y = clean if name == "bits" else clean + NOISE * noise  # rounding comes last
    if isinstance(channel, Mask):
        y = channel.forward(y)
    return Task(compose(channel, mixture), mixture, y, truth[0, 0])
