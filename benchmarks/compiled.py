"""What torch.compile makes of the shipped networks: a call eager and compiled, and compiling.

Processor time, the least of three calls on a window of 11.9 s without gradients.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from mgdm_audio import STEMS, hub
from mgdm_audio.separate import WINDOW


def seconds(call: Callable[[], Tensor]) -> float:
    """Processor seconds of the fastest of three calls, after one that warms up."""
    call()
    taken = []
    for _ in range(3):
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return min(taken)


@click.command(help=__doc__)
@click.option("--threads", default=1, show_default=True)
@torch.no_grad()
def main(threads: int) -> None:
    torch.set_num_threads(threads)
    x = 0.1 * torch.randn(1, len(STEMS), WINDOW, generator=torch.Generator().manual_seed(0))
    sigma, known = torch.full((1,), 0.05), torch.zeros(x.shape[:2], dtype=torch.bool)
    prior, regressor = hub.load("default"), hub.load_regressor("regressor")
    calls = {
        "prior": (prior, prior.denoise, (x, sigma)),
        "regressor": (regressor, regressor.regress, (x.sum(1, keepdim=True), x, known)),
    }
    for name, (model, network, given) in calls.items():
        eager = seconds(lambda network=network, given=given: network(*given))
        start = time.monotonic()
        compiled = torch.compile(network, dynamic=False)
        error = float((compiled(*given) - network(*given)).abs().max())
        took = time.monotonic() - start
        then = seconds(lambda compiled=compiled, given=given: compiled(*given))
        click.echo(
            f"{name} {model.sha256[:8]}: {eager:.2f} s a call, compiled {then:.2f} s "
            f"({eager / then:.2f} times as fast) after {took:.0f} s of compiling; they differ by "
            f"{error:.0e}"
        )


if __name__ == "__main__":
    main()
