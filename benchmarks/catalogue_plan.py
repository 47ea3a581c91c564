"""How a catalogue of 100,000 songs goes with any number of workers: a simulation, drawn.

Each worker takes the next song, fetches it, separates it and sends its stems; the first process
gives out songs and takes their records. What is shared is a queue: the network to the storage, its
requests, and the first process. Figures come from `benchmarks/catalogue.py` and the options, which
are those of your own machines.

    python benchmarks/catalogue_plan.py --out docs/catalogue.png
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

REQUESTS = 12
"""Of the storage for a song: state and content of the recording, four stems, the record, and some
that are repeated or listed."""


@dataclass(frozen=True)
class Figures:
    """What a song costs.

    Arguments:
        core: seconds of a worker for a minute of song.
        overhead: seconds of a worker for a song, whatever its length.
        first: seconds of the first process for a song.
        read, written: bytes for a minute of song.
        network: bytes a second between all workers and the storage.
        link: bytes a second of one worker.
        requests: of the storage in a second.
    """

    core: float
    overhead: float
    first: float
    read: float
    written: float
    network: float
    link: float
    requests: float


class Shared:
    """Something that serves one after another."""

    def __init__(self) -> None:
        self.free = self.busy = 0.0

    def serve(self, at: float, seconds: float) -> float:
        """When what is asked for at a time is done."""
        self.free = max(self.free, at) + seconds
        self.busy += seconds
        return self.free


def simulate(f: Figures, workers: int, songs: int, seed: int = 0) -> tuple[float, dict[str, float]]:
    """Hours until all songs are done, and the share of them in which each thing is busy."""
    rng = np.random.default_rng(seed)
    # Lengths of songs: 4 minutes on average, most from 2 to 7.
    minutes = np.exp(rng.normal(np.log(4) - 0.08, 0.4, songs))
    shared = {name: Shared() for name in ("network", "requests", "first process")}
    ready = [(0.0, i) for i in range(workers)]
    end = worked = 0.0
    for length in minutes:
        at, worker = heapq.heappop(ready)
        began = shared["first process"].serve(at, f.first)
        shared["requests"].serve(began, REQUESTS / f.requests)
        at = max(
            shared["network"].serve(began, length * f.read / f.network),
            shared["requests"].free,
            began + length * f.read / f.link,
        )
        at += length * f.core + f.overhead
        worked += length * f.core
        size = length * f.written
        # What is sent waits for what was asked for before it; the queue is that of arrival.
        at = max(shared["network"].serve(began, size / f.network), at + size / f.link)
        heapq.heappush(ready, (at, worker))
        end = max(end, at)
    busy = {name: thing.busy / end for name, thing in shared.items()}
    return end / 3600, {"workers": worked / workers / end, **busy}


@click.command(help=__doc__)
@click.option("--core", default=42.8, show_default=True, help="Seconds of a core for a minute.")
@click.option("--faster", default=30.0, show_default=True, help="A GPU, in cores.")
@click.option("--overhead", default=0.012, show_default=True, help="Seconds a song of a worker.")
@click.option("--first", default=0.0055, show_default=True, help="Seconds a song, first process.")
@click.option("--songs", default=100_000, show_default=True)
@click.option("--gbit", default=10.0, show_default=True, help="Network to the storage, Gbit/s.")
@click.option("--link", default=1.0, show_default=True, help="Network of a worker, Gbit/s.")
@click.option("--requests", default=3500.0, show_default=True, help="Of the storage in a second.")
@click.option("--core-price", default=0.04, show_default=True, help="Of a core, an hour.")
@click.option("--gpu-price", default=2.0, show_default=True, help="Of a GPU, an hour.")
@click.option("--out", type=click.Path(path_type=Path), help="Plot (PNG).")
def main(
    core: float,
    faster: float,
    overhead: float,
    first: float,
    songs: int,
    gbit: float,
    link: float,
    requests: float,
    core_price: float,
    gpu_price: float,
    out: Path | None,
) -> None:
    wav = 60 * 44100 * 2 * 2  # a minute of 16-bit stereo
    shared = (overhead, first, wav, 4 * wav, gbit * 1e9 / 8, link * 1e9 / 8, requests)
    kinds = {"CPU core": (Figures(core, *shared), core_price)}
    kinds[f"GPU of {faster:g} cores"] = (Figures(core / faster, *shared), gpu_price)
    counts = [1, 3, 10, 30, 100, 300, 1000, 3000, 10_000]
    curves: dict[str, list[float]] = {}
    click.echo("| workers | hours | songs an hour | GB/s | price | busiest |")
    click.echo("| --- | ---: | ---: | ---: | ---: | --- |")
    for kind, (figures, price) in kinds.items():
        curves[kind] = []
        for count in counts:
            hours, busy = simulate(figures, count, songs)
            curves[kind].append(songs / hours)
            most = max(busy, key=lambda name: busy[name])
            rate = busy["network"] * gbit / 8
            click.echo(
                f"| {count} x {kind} | {hours:,.1f} | {songs / hours:,.0f} | {rate:.3f} | "
                f"{hours * count * price:,.0f} | {most} ({100 * busy[most]:.0f} %) |"
            )
    if out is not None:
        draw(counts, curves, gbit, wav, first, out)


def draw(
    counts: list[int],
    curves: dict[str, list[float]],
    gbit: float,
    wav: float,
    first: float,
    out: Path,
) -> None:
    """Songs an hour by number of workers, and what bounds them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for kind, rates in curves.items():
        axes.loglog(counts, rates, "o-", label=f"workers of a {kind}")
    network = gbit * 1e9 / 8 / (5 * wav * 4) * 3600
    axes.axhline(network, color="0.4", ls="--", label=f"network to the storage, {gbit:g} Gbit/s")
    axes.axhline(3600 / first, color="0.6", ls=":", label="first process (Ray Data)")
    axes.set(xlabel="workers", ylabel="songs of 4 minutes an hour")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
