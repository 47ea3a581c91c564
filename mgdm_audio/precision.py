"""Which number format the network runs in. What a processor does fast is measured, not assumed."""

from __future__ import annotations

__all__ = ["PRECISIONS", "bfloat16_speedup", "choose_precision", "has_bfloat16"]

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

PRECISIONS = ("auto", "fastest", "float32", "bfloat16")


def choose_precision(device: torch.device, precision: str = "auto") -> torch.dtype:
    """The format in which the network's layers run on a device (everything else is float32).

    Arguments:
        device: where the network runs.
        precision: ``float32`` or ``bfloat16`` as said; ``auto`` is bfloat16 where the processor
            has instructions for it and float32 elsewhere, which is the same in every run;
            ``fastest`` takes bfloat16 on a CPU if it is measured to be faster there.

    Raises:
        ValueError: for another precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got '{precision}'")
    if precision in ("float32", "bfloat16"):
        return torch.float32 if precision == "float32" else torch.bfloat16
    if device.type == "cuda":
        with torch.cuda.device(device):  # it asks about the current one
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif precision == "fastest":
        fast = bfloat16_speedup(device) > 1.2
    else:
        fast = device.type == "cpu" and has_bfloat16()
    return torch.bfloat16 if fast else torch.float32


def has_bfloat16() -> bool:
    """Whether this CPU has instructions for products in bfloat16 (AVX512-BF16 or AMX)."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def bfloat16_speedup(device: torch.device) -> float:
    """How many times faster a matrix product and a convolution are in bfloat16 than in float32.

    The worse of the two, each the best of three runs of a few milliseconds.
    """
    matrix = torch.ones(256, 256, device=device)
    image = torch.ones(1, 32, 64, 64, device=device)
    kernel = torch.ones(32, 32, 3, 3, device=device)

    def product(dtype: torch.dtype) -> Callable[[], Tensor]:
        m = matrix.to(dtype)
        return lambda: m @ m

    def convolution(dtype: torch.dtype) -> Callable[[], Tensor]:
        x, w = image.to(dtype), kernel.to(dtype)
        return lambda: F.conv2d(x, w, padding=1)

    with torch.no_grad():
        return min(
            _seconds(work(torch.float32)) / _seconds(work(torch.bfloat16))
            for work in (product, convolution)
        )


def _seconds(work: Callable[[], Tensor]) -> float:
    times = []
    for _ in range(4):
        start = time.perf_counter()
        float(work().flatten()[0])  # waits for the device
        times.append(time.perf_counter() - start)
    return min(times[1:])  # the first one warms up
