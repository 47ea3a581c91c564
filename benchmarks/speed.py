"""How fast and how large: real-time factors, network calls, GFLOP/s, memory against length.

For each quality a song is separated from file to file, and the same song by the plain way: float32,
one window at a time, every window, by the same sampler. Printed are

- x real time: seconds a second of song (below 1 is faster than real time), by the clock and, on a
  CPU, of processor time, all threads together, which other work on the machine does not change;
- calls: network calls, and how many of them with a gradient;
- GFLOP/s: products and sums of the network alone (a gradient counts twice a call: to the input
  only) over the whole time, file to file; and as a share of what a large matrix product reaches
  here in the same number format. On a CPU both by processor time, which is a core's share;
- plain: the plain way's time over ours, by the same time.

With --memory, the peak memory of whole runs in processes of their own: of ten and sixty minutes
with a sampler that does nothing, and of ten minutes with the network (a song with two windows that
are not silent: the others would cost time and no memory).
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import soundfile as sf
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from mgdm_audio import STEMS, Separator
from mgdm_audio.cost import QUALITIES
from mgdm_audio.draws import SeededDraws
from mgdm_audio.files import Options, Task, separate_files
from mgdm_audio.operators import Mixture
from mgdm_audio.samplers.base import Problem
from mgdm_audio.windows import WindowPlan, window_seed

RATE = 44100


def clock(device: torch.device) -> float:
    """Seconds of the processor on a CPU, of the clock on the wall elsewhere."""
    return time.process_time() if device.type == "cpu" else time.perf_counter()


def matmul_rate(dtype: torch.dtype, device: torch.device, size: int = 1024) -> float:
    """GFLOP/s of a large matrix product, the best of five."""
    a = torch.ones(size, size, dtype=dtype, device=device)
    best = 0.0
    for _ in range(5):
        start = clock(device)
        float((a @ a)[0, 0])
        best = max(best, 2 * size**3 / (clock(device) - start) / 1e9)
    return best


def flops(separator: Separator, stats: dict[str, float], seconds: float) -> float:
    """Products and sums of the network calls of a run over a song of so many seconds."""
    models, settings = separator.models, separator.song_settings
    cost = separator.sampler.cost()
    # Songs shorter than a window have a shorter one.
    window = WindowPlan(
        round(seconds * separator.prior.sample_rate), settings.window, settings.overlap
    ).size
    x = torch.zeros(1, len(separator.prior.stems), window, device=separator.device)

    def of(call: Callable[[], Tensor]) -> float:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call()
        return float(counter.get_total_flops())

    asked = stats["windows"] * (cost.shared + settings.average * (cost.regressor - cost.shared))
    total = 0.0
    if (prior := models.prior) is not None:
        sigma = torch.full((1,), 0.1, device=x.device)
        own = stats["calls"] - asked + stats["vjps"]
        total += own * of(lambda: prior.denoise(x, sigma))
    return total + (asked * of(lambda: models.regressor_call(x)) if asked else 0)


def write_song(path: Path, seconds: float, silence: tuple[float, float] | None = None) -> None:
    """Noise that swells, in stereo; silent between two moments."""
    rng = np.random.default_rng(0)
    with sf.SoundFile(path, "w", RATE, 2, "PCM_16") as file:
        done, length = 0, round(seconds * RATE)
        while done < length:
            n = min(RATE, length - done)
            second = done / RATE
            quiet = silence is not None and silence[0] <= second < silence[1]
            file.write(np.zeros((n, 2)) if quiet else 0.1 * rng.standard_normal((n, 2)))
            done += n


def timed(separator: Separator, path: Path) -> tuple[float, float, dict[str, float]]:
    """Seconds by the wall and by `clock`, and counts, of a run from file to file."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = {name: Path(folder) / f"{name}.wav" for name in STEMS}
        task = Task(path, outputs, Path(folder) / ".work")
        began, start = time.perf_counter(), clock(separator.device)
        (result,) = separate_files(separator, [task], Options(seed=0))
        if result.error is not None:
            raise result.error
        took = clock(separator.device) - start
        return time.perf_counter() - began, took, result.report["stats"]


def plain(separator: Separator, path: Path) -> float:
    """Seconds of the plain way by `clock`, without reading and writing."""
    settings = separator.song_settings
    x = torch.from_numpy(sf.read(path, dtype="float32")[0][::2].mean(1))
    plan = WindowPlan(len(x), settings.window, settings.overlap)
    shape = (1, len(STEMS), plan.size)
    start = clock(separator.device)
    for sample in range(settings.average):
        for index in range(len(plan.starts)):
            y = plan.cut(x, index)[None, None].to(separator.device)
            draws = SeededDraws([window_seed(sample, index)], separator.device)
            separator.sampler.sample(
                separator.models.asked(), Problem(Mixture(), y, 0.0, shape), draws
            )
    return clock(separator.device) - start


def models(separator: Separator) -> str:
    """Names and checksums of what a separator asks."""
    found = (separator.models.prior, separator.models.regressor)
    return ", ".join(f"{m.name} {m.sha256[:8]}" for m in found if m is not None)


def child(kind: str, minutes: int, folder: Path) -> None:
    """One run in this process; prints its peak memory in MiB."""
    path = folder / "song.wav"
    separator = Separator(precision="fastest", **QUALITIES["fast"])
    if kind == "stub":
        write_song(path, 60 * minutes)
        # Everything but the network takes part.
        separator._draw = _nothing  # type: ignore[method-assign]
    else:
        write_song(path, 60 * minutes, (12, 60 * minutes - 12))
    timed(separator, path)
    print(round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def _nothing(jobs: list, progress: Callable[[int], None]) -> tuple[Tensor, int, int]:
    return torch.stack([job.mix.expand(4, -1) / 4 for job in jobs]), 0, 0


@click.command(help=__doc__)
@click.option("--seconds", default=24.0, show_default=True, help="Length of the song.")
@click.option("--qualities", default="fast,default", show_default=True)
@click.option("--precision", default="fastest", show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--batch", type=int)
@click.option("--threads", default=0, show_default=True, help="0 is PyTorch's own choice.")
@click.option("--memory", is_flag=True, help="Peak memory as well.")
@click.option("--plain/--no-plain", "compare", default=True, show_default=True)
@click.option("--child", "child_kind", hidden=True)
@click.option("--minutes", default=10, hidden=True)
@click.option("--folder", type=click.Path(path_type=Path), hidden=True)
def main(
    seconds: float,
    qualities: str,
    precision: str,
    device: str,
    batch: int | None,
    threads: int,
    memory: bool,
    compare: bool,
    child_kind: str | None,
    minutes: int,
    folder: Path | None,
) -> None:
    if threads:
        torch.set_num_threads(threads)
    if child_kind is not None and folder is not None:
        child(child_kind, minutes, folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "song.wav"
        write_song(path, seconds)
        for name in [q for q in qualities.split(",") if q]:
            separator = Separator(
                device=device, precision=precision, batch=batch, **QUALITIES[name]
            )
            rate = matmul_rate(separator.dtype, separator.device)
            wall, took, stats = timed(separator, path)
            calls, vjps = stats["calls"], stats["vjps"]
            share = f"{took / seconds:.2f} of processor time"
            cores = f" ({share})" if separator.device.type == "cpu" else ""
            achieved = flops(separator, stats, seconds) / took / 1e9
            line = (
                f"{name} ({models(separator)}), {seconds:g} s of sound: "
                f"{wall / seconds:.2f} x real time by the clock{cores}, {calls} calls "
                f"({vjps} with a gradient), {achieved:.0f} GFLOP/s of {rate:.0f} "
                f"({achieved / rate:.0%}), "
                f"{str(separator.dtype).removeprefix('torch.')}, {torch.get_num_threads()} "
                f"threads, {separator.device}"
            )
            if compare:
                whole = Separator(device=device, precision="float32", batch=1, **QUALITIES[name])
                line += f"; plain {plain(whole, path) / took:.2f} x the time"
            click.echo(line)
    if not memory:
        return
    for kind, length in (("stub", 10), ("stub", 60), ("network", 10)):
        with tempfile.TemporaryDirectory() as temporary:
            command = [
                sys.executable, __file__, "--child", kind, "--minutes", str(length),
                "--folder", temporary, "--threads", str(threads),
            ]  # fmt: skip
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            click.echo(f"{length} minutes, {kind}: peak {done.stdout.strip()} MiB")


if __name__ == "__main__":
    main()
