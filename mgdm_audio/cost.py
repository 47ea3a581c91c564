"""What a separation will cost: quality levels, network calls, and time from a calibration."""

from __future__ import annotations

__all__ = ["QUALITIES", "Calibration", "Estimate", "calibrate", "estimate"]

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from mgdm_audio.separate import Separator

QUALITIES: dict[str, dict[str, Any]] = {
    name: {
        "method": "mgdm",
        "preset": "light",
        "average": average,
        "warm_start": first,
        "warm_sigma": 0.03,
        "regressor": regressor,
    }
    for name, average, first, regressor in (
        ("fast", 1, "regressor:paper", None),
        ("default", 2, "regressor", None),
        ("best", 2, "regressor:best", "regressor-large"),
    )
}
"""Points on the curve of quality against time: MGDM begun at a low noise level from the regressor's
estimate, and the samples averaged. With the shipped models that is 2 network calls a sample, a
twentieth of a run from noise, and several dB better: the regressor decides which instrument a sound
is, where the prior alone is unsure (recipes/compare/results). It is asked once for all samples of a
window, by "fast" at one speed (its preset ``paper``), by the others at three, and by "best", which
asks a larger one, again with its own estimates. The lower the level, the less of its answer is
lost: one sample had 4.82 dB from 0.03 and 4.42 from 0.3, where the regressor had 4.87."""


@dataclass(frozen=True)
class Calibration:
    """Seconds that this machine takes for one network call on one window, 0 for what is not asked.

    Attributes:
        call: of the prior, without a gradient.
        vjp: of the prior, with one.
        regressor: of the regressor.
    """

    call: float
    vjp: float
    regressor: float


@dataclass(frozen=True)
class Estimate:
    """What a recording will cost.

    Attributes:
        windows: number of windows; silent ones will cost nothing, which is not known yet.
        calls: network calls.
        vjps: those of them with a gradient.
        seconds: of the network alone, None without a calibration.
    """

    windows: int
    calls: int
    vjps: int
    seconds: float | None = None


def calibrate(separator: Separator, songs: int = 1) -> Calibration:
    """Times the networks on a batch of windows as `separator` would ask for them.

    Arguments:
        separator: what asks.
        songs: recordings that are separated in one go, whose windows share batches.
    """
    import torch

    settings, device = separator.song_settings, separator.device
    shape = (_batch(separator, songs), len(separator.prior.stems), settings.window)
    x = settings.level * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x = x.to(device)
    sigma = torch.full((len(x),), 0.1, device=device)
    autocast = torch.autocast(device.type, torch.bfloat16, separator.dtype != torch.float32)

    prior, cost = separator.models.prior, separator.sampler.cost()

    def seconds(ask: Callable[[Tensor], Tensor], samples: int, gradient: bool) -> float:
        part = x[..., :samples].clone().requires_grad_(gradient)
        start = time.perf_counter()
        with autocast, torch.set_grad_enabled(gradient):
            out = ask(part)
            if gradient:
                out = torch.autograd.grad(out.square().sum(), part)[0]
        float(out.flatten()[0])  # waits for the device
        return (time.perf_counter() - start) / len(part)

    def warm(ask: Callable[[Tensor], Tensor], gradient: bool = False) -> float:
        seconds(ask, max(1, settings.window // 8), gradient)  # what the first call alone does
        return seconds(ask, settings.window, gradient)

    call = vjp = regressor = 0.0
    if prior is not None:
        denoise = prior.denoise

        def ask_prior(noisy: Tensor) -> Tensor:
            return denoise(noisy, sigma)

        call = warm(ask_prior)
        vjp = warm(ask_prior, gradient=True) if cost.vjps else 0.0
    if cost.regressor:
        regressor = warm(separator.models.regressor_call)
    return Calibration(call, vjp, regressor)


def _batch(separator: Separator, songs: int) -> int:
    """Items that a batch has as long as there are windows to do."""
    settings = separator.song_settings
    if separator.device.type == "cpu":
        return 1  # it takes those of a batch one after another
    if settings.seams != "condition":
        return separator.batch
    # The windows of a song wait for each other; songs with an other stem have batches of their own.
    together = songs if settings.other is None else 1
    return min(separator.batch, settings.average * together)


def estimate(
    separator: Separator, frames: int, sample_rate: int, calibration: Calibration | None = None
) -> Estimate:
    """What a recording of `frames` frames will cost at most."""
    from mgdm_audio.windows import WindowPlan

    settings, cost = separator.song_settings, separator.sampler.cost()
    length = max(1, -(-frames * settings.rate // sample_rate))
    plan = WindowPlan(length, settings.window, settings.overlap)
    windows = len(plan.starts)
    samples = windows * settings.average
    vjps = samples * cost.vjps
    # Samples of a window share what the regressor says of it.
    regressor = samples * (cost.regressor - cost.shared) + windows * cost.shared
    prior = samples * (cost.calls - cost.regressor)
    seconds = None
    if calibration is not None:
        spent = (prior - vjps) * calibration.call + vjps * calibration.vjp
        spent += regressor * calibration.regressor
        seconds = min(1.0, length / settings.window) * spent
    return Estimate(windows, prior + regressor, vjps, seconds)
