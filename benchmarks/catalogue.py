"""What a catalogue's engine costs beside the separation itself, and what a second worker brings.

The separator is a stub, exact Gaussian bands that cost next to nothing, which is the hardest case
for the engine. The plain loop calls `separate_files` on the same songs, one at a time, and writes
the same files. Songs go through loop and engine by turns, so that what else the machine does bears
on both. Seconds are of the clock and of the processors (all processes but those of a cluster, the
start of workers included); songs a minute are counted while all workers have songs.

    python benchmarks/catalogue.py --songs 2000 --seconds 1
    python benchmarks/catalogue.py --songs 20 --seconds 60
    python benchmarks/catalogue.py --songs 40 --seconds 5 --wait 0.5 --workers 1 --workers 2
    python benchmarks/catalogue.py --dispatch 5000 --ray      # items of nothing
    python benchmarks/catalogue.py --core examples/mix.wav    # the shipped models on one core
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import soundfile as sf
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from mgdm_audio import STEMS, Separator, catalogue, hub
from mgdm_audio.cost import QUALITIES
from mgdm_audio.engine import Engine, LocalEngine, run_all
from mgdm_audio.files import Options, Task, separate_files
from mgdm_audio.manifest import Record
from mgdm_audio.songs import find_songs
from mgdm_audio.songwork import Separate

RATE = 22050
OPTIONS = {
    "method": "mgdm", "precision": "float32", "steps": 4, "repetitions": 1,
    "gradient_steps": ((0, 1),), "sigma_max": 1.0,
}  # fmt: skip


class Bands(nn.Module):
    """Independent stationary Gaussian stems, whose denoiser is a filter.

    Arguments:
        wait: seconds that each call sleeps, as a processor elsewhere would let it.
    """

    def __init__(self, wait: float) -> None:
        super().__init__()
        self.wait = wait
        self.register_buffer("centre", torch.tensor([0.0025, 0.3, 0.0115, 0.05]))
        self.centre: Tensor

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        time.sleep(self.wait)
        f = torch.fft.rfftfreq(x.shape[-1], device=x.device)
        distance = (f[None] + 1e-3).log() - self.centre.log()[:, None]
        power = 0.01 * torch.exp(-2 * distance**2) + 1e-7
        level = sigma.reshape(len(x), -1, 1) ** 2
        return torch.fft.irfft(torch.fft.rfft(x) * power / (power + level), n=x.shape[-1])


def build(wait: float, **options: Any) -> Separator:
    """The separator of loop and workers."""
    info = hub.ModelInfo(
        name="bands", summary="Gaussian bands", path=Path("bands"), sample_rate=RATE, stems=STEMS,
        level=0.1, sigma_min=3e-4, sigma_max=20.0, licence="CC0-1.0", score={}, parameters=0,
        sha256="0" * 64, config={},
    )  # fmt: skip
    return Separator(hub.Prior(Bands(wait).requires_grad_(False), info), **options)


@dataclass
class Spent:
    """Seconds of the clock and of the processors.

    Attributes:
        warm, seconds: songs that came after each worker had given its first, and in what time.
    """

    clock: float = 0.0
    processor: float = 0.0
    warm: int = 0
    seconds: float = 0.0

    def add(self, work: Callable[[], Any]) -> None:
        clock, processor = time.monotonic(), _processor()
        work()
        self.clock += time.monotonic() - clock
        self.processor += _processor() - processor


def _processor() -> float:
    """Seconds of processors that this process and its children that ended have used."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        total += used.ru_utime + used.ru_stime
    return total


def write_songs(folder: Path, count: int, seconds: float) -> None:
    """Stereo noise, all different."""
    folder.mkdir(parents=True)
    for i in range(count):
        x = 0.1 * np.random.default_rng(i).standard_normal((round(seconds * RATE), 2))
        sf.write(folder / f"{i:06d}.wav", x, RATE, subtype="PCM_16")


def loop(source: Path, out: Path, make: Callable[..., Separator]) -> None:
    """The work without an engine."""
    separator = make(device="cpu", batch=1, **OPTIONS)
    for path in sorted(source.iterdir()):
        outputs = {name: out / path.stem / f"{name}.wav" for name in STEMS}
        (result,) = separate_files(
            separator, [Task(path, outputs, out / f".{path.stem}")], Options(0)
        )
        if result.error is not None:
            raise result.error


def through(
    engine: Engine, source: Path, out: Path, make: Callable[..., Separator], spent: Spent
) -> None:
    """The same with an engine."""
    times: list[float] = []
    names: list[str] = []

    def told(record: Record, summary: catalogue.Summary) -> None:
        times.append(time.monotonic())
        names.append(record.worker)

    songs = find_songs(str(source), str(out))
    plan = catalogue.plan(songs, str(out), OPTIONS, catalogue.Files(STEMS), build=make)
    work = Separate("cpu", 1, 1, None, make)
    summary = catalogue.run(engine, work, plan, told)
    # From the first song of the last worker to come, to when the first one is out of songs.
    first = max(names.index(name) for name in names)
    last = min(len(names) - 1 - names[::-1].index(name) for name in names)
    spent.warm += max(0, last - first)
    spent.seconds += max(0.0, times[last] - times[first])
    if summary.failed or summary.done != len(songs):
        raise RuntimeError(f"{summary.done} of {len(songs)} songs, {summary.failed} failed")


def nothing() -> Callable[[int], int]:
    """A worker that does nothing."""
    return abs


def dispatch(engines: dict[str, Engine], items: int) -> None:
    """Items a second of each engine, which is the most that its first process keeps up with."""
    for name, engine in engines.items():
        answers = run_all(engine, nothing, range(items + 1))
        next(answers)  # workers are there
        clock, processor = time.monotonic(), _processor()
        left = sum(1 for _ in answers)
        clock, processor = time.monotonic() - clock, _processor() - processor
        click.echo(
            f"{name}: {left / clock:.0f} items a second, {1000 * processor / left:.2f} ms of the "
            "first process's processor each"
        )


def core(path: Path) -> None:
    """Processor seconds and calls of the shipped models on a recording, with one thread."""
    x, rate = sf.read(path, always_2d=True)
    samples = np.ascontiguousarray(np.tile(x, (3, 1)).T)
    minutes = samples.shape[1] / rate / 60
    for quality in ("fast", "default"):
        separator = Separator(**QUALITIES[quality], device="cpu")
        separator.separate(samples[:, : 2 * rate], rate, seed=0)
        began = _processor()
        result = separator.separate(samples, rate, seed=0)
        spent = _processor() - began
        click.echo(
            f"{quality}: {spent / minutes:.1f} processor seconds a minute of song "
            f"({result.stats['calls']} calls, {result.settings['precision']})"
        )


@click.command(help=__doc__)
@click.option("--songs", default=200, show_default=True)
@click.option("--seconds", default=1.0, show_default=True, help="Length of a song.")
@click.option("--wait", default=0.0, show_default=True, help="Seconds each network call sleeps.")
@click.option("--turns", default=4, show_default=True, help="Parts that the songs go in, by turns.")
@click.option("--workers", multiple=True, default=(1,), show_default=True, type=int)
@click.option("--ray", "with_ray", is_flag=True, help="On a Ray cluster of this machine as well.")
@click.option("--dispatch", "items", default=0, help="Instead: items of nothing.")
@click.option("--core", "recording", type=click.Path(exists=True, path_type=Path),
              help="Instead: the shipped models on this recording.")  # fmt: skip
def main(
    songs: int,
    seconds: float,
    wait: float,
    turns: int,
    workers: tuple[int, ...],
    with_ray: bool,
    items: int,
    recording: Path | None,
) -> None:
    torch.set_num_threads(1)
    if recording is not None:
        core(recording)
        return
    make = partial(build, wait)
    engines: dict[str, Engine] = {
        f"local, {n} workers": LocalEngine(n, isolate=items > 0) for n in workers
    }
    if with_ray:
        from mgdm_audio.engine_ray import RayEngine

        engines |= {f"ray, {n} workers": RayEngine(n) for n in workers}
    if items:
        dispatch(engines, items)
        return
    spent = {name: Spent() for name in ("loop", *engines)}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(turns):
            part = Path(folder) / str(turn)
            write_songs(part / "in", songs // turns, seconds)
            spent["loop"].add(partial(loop, part / "in", part / "loop", make))
            for i, (name, engine) in enumerate(engines.items()):
                mine = spent[name]
                mine.add(partial(through, engine, part / "in", part / str(i), make, mine))
    count = songs // turns * turns
    click.echo(f"{count} songs of {seconds:g} s, a call of the network waits {wait:g} s\n")
    click.echo(
        "| | seconds a song | of processors | to the loop: clock | processors | songs a minute |"
    )
    click.echo("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, s in spent.items():
        clock, processor = s.clock / spent["loop"].clock, s.processor / spent["loop"].processor
        rate = 60 * s.warm / s.seconds if s.seconds else 60 * count / s.clock
        click.echo(
            f"| {name} | {s.clock / count:.4f} | {s.processor / count:.4f} | {clock:.3f} | "
            f"{processor:.3f} | {rate:.1f} |"
        )


if __name__ == "__main__":
    main()
