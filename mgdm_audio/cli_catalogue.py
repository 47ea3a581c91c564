"""The command ``separate-catalogue``: any number of songs, on one machine or many."""

from __future__ import annotations

__all__ = ["separate_catalogue"]

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import click

from mgdm_audio import arguments
from mgdm_audio.cli_separate import (
    Request,
    check_options,
    check_regressor,
    output_names,
    separate,
    with_quality,
)
from mgdm_audio.terminal import Line, duration, error_line, printable, warning_line

if TYPE_CHECKING:
    from mgdm_audio.catalogue import Summary
    from mgdm_audio.engine import Engine
    from mgdm_audio.manifest import Record

TAKEN = (
    "quality", "model", "regressor", "method", "preset", "average", "warm_start", "warm_sigma",
    "independent", "seams", "window", "overlap", "batch", "device", "precision", "stems", "drop",
    "sums", "residual", "other", "other_level", "start", "duration", "container", "bits", "quiet",
)  # fmt: skip
"""Options of ``separate`` that mean the same here."""


@dataclass(frozen=True)
class Asked:
    """The options of this command alone, under their names."""

    source: str
    output: str
    engine: str
    workers: int | None
    threads: int
    gpu_share: float | None
    group: int | None
    scratch: str | None
    seed: int
    dry_run: bool


@click.command("separate-catalogue")
@click.argument("source", metavar="INPUT")
@click.option("-o", "--output", required=True, metavar="OUTPUT", help="Folder or URL of the runs.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
              help="Processes of this machine, or a Ray cluster: the one of RAY_ADDRESS, or one "
              "that is started here.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Songs at a time. By default "
              "one a GPU, or one a processor core.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True,
              help="Threads of a worker; the last bits of its stems depend on them.")  # fmt: skip
@click.option("--gpu-share", type=arguments.Finite(0, 1), metavar="SHARE",
              help="Of a GPU that a worker takes, with --engine ray. By default 1 where there are "
              "any (and --device is not cpu), else 0.")  # fmt: skip
@click.option("--group", type=click.IntRange(1), metavar="N", help="Songs that go to a worker "
              "together, to fill its batches. By default 1, and --batch on GPUs.")  # fmt: skip
@click.option("--scratch", metavar="FOLDER", help="For what is not finished, on each worker's "
              "machine; $NAMES are of its environment. By default OUTPUT if that is a folder, "
              "else the machine's folder for temporary files.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True,
              help="Of songs that have none of their own.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say how many songs are to do, and do nothing.")
def separate_catalogue(**options: Any) -> None:
    """Separate all songs of INPUT: a folder, a pattern, or a table (.csv, .parquet).

    A table has the column path, and if needed name, seed, settings and known (JSON). INPUT and
    OUTPUT are paths or URLs, such as s3://bucket/folder. What becomes of each song is in the
    Parquet files of OUTPUT/run-.../manifest; the same command again does what is missing or has
    failed. Other settings make another run. Folders of runs go to standard output, everything else
    to standard error. Exit codes: 0 all done, 1 a song failed, 2 wrong usage, 130 interrupted.

    \b
    mgdm-audio separate-catalogue albums/ -o stems
    mgdm-audio separate-catalogue songs.csv -o s3://bucket/stems --engine ray --quality fast
    """
    asked = Asked(**{field.name: options.pop(field.name) for field in fields(Asked)})
    with _reported():
        request = _request(options)
        _check(asked, request)
        sys.exit(_run(asked, request))


def _request(options: dict[str, Any]) -> Request:
    """The options as those of ``separate``, whose checks they pass."""
    context = click.get_current_context()
    defaults = {p.name: p.get_default(context) for p in separate.params}
    known = {field.name for field in fields(Request)}
    values: dict[str, Any] = {str(n): v for n, v in defaults.items() if n in known}
    request = Request(**(values | {"files": (), "seed": None, **options}))
    check_options(request)
    check_regressor(request)
    return with_quality(request)


def _check(asked: Asked, request: Request) -> None:
    """Refuses options of this command that would make no difference."""
    if asked.gpu_share is None:
        return
    if asked.engine != "ray":
        raise click.UsageError(
            "--gpu-share needs --engine ray; local workers share the GPUs, however many --workers "
            "there are"
        )
    if request.device == "cpu":
        raise click.UsageError("--gpu-share and --device cpu exclude each other")


def _run(asked: Asked, request: Request) -> int:
    from mgdm_audio import catalogue
    from mgdm_audio.run import separator_options
    from mgdm_audio.songs import find_songs
    from mgdm_audio.songwork import Separate

    begun = time.monotonic()
    songs = find_songs(asked.source, asked.output)
    options = separator_options(request)
    device, batch = options.pop("device"), options.pop("batch")
    options["precision"], gpus = _here(asked.engine, device, options["precision"])
    engine: Engine | None = None
    if not asked.dry_run:
        engine, gpus = _engine(asked, device, gpus)
    batch = batch or (8 if gpus else 1)
    files = catalogue.Files(
        tuple(output_names(request)), asked.seed, request.start, request.duration,
        request.container, request.bits,
    )  # fmt: skip
    try:
        todo = catalogue.plan(
            songs, asked.output, options, files, asked.group or (batch if gpus else 1),
            keep=() if request.regressor is None else ("regressor",),
        )  # fmt: skip
    except catalogue.OptionsError as error:
        raise click.UsageError(printable(error)) from error
    if not request.quiet or asked.dry_run:
        click.echo(f"{len(songs)} songs, {todo.done} done, {todo.songs} to do", err=True)
    code = 0
    if engine is not None and todo.units:
        shown = _Shown(todo.songs, engine, request.quiet)
        make = Separate(device, batch, asked.threads, asked.scratch)
        try:
            summary = catalogue.run(engine, make, todo, shown)
        except KeyboardInterrupt:
            shown.close()
            click.echo("\ninterrupted; finished songs are kept, the same command goes on", err=True)
            return 130
        finally:
            shown.close()
        if not request.quiet:
            click.echo(_told(summary, time.monotonic() - begun), err=True)
        code = 1 if summary.failed else 0
    for run in todo.runs:
        click.echo(os.fsencode(run.url))
    return code


def _here(engine: str, device: str, precision: str) -> tuple[str, int]:
    """The precision by its own name, and the GPUs of this machine that may be used."""
    if engine == "ray" and precision in ("float32", "bfloat16"):
        return precision, 0  # nothing is decided here, and the device need not be here

    import torch

    from mgdm_audio.precision import choose_precision
    from mgdm_audio.separate import DeviceError, resolve_device

    try:
        place = resolve_device(device)
    except DeviceError as error:
        if engine != "ray":
            raise
        raise DeviceError(
            f"{error}, or, if the workers have it, name --precision float32 or bfloat16, which is "
            "otherwise decided here"
        ) from error
    chosen = str(choose_precision(place, precision)).removeprefix("torch.")
    named_one = place.index is not None
    gpus = 0 if place.type != "cuda" else 1 if named_one else torch.cuda.device_count()
    return chosen, gpus


def _engine(asked: Asked, device: str, gpus: int) -> tuple[Engine, int]:
    """The engine, and how many GPUs it has."""
    from mgdm_audio.engine import engine_of

    if asked.engine == "ray":
        share = 0.0 if device == "cpu" else asked.gpu_share
        cluster = engine_of("ray", asked.workers, asked.threads, share)
        return cluster, getattr(cluster, "gpus", 0)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = asked.workers or gpus or max(1, (cores or 1) // asked.threads)
    return engine_of("local", count, gpus=gpus), gpus


class _Shown:
    """What is told while songs are under way."""

    def __init__(self, songs: int, engine: Engine, quiet: bool) -> None:
        self.songs = songs
        self.began = time.monotonic()
        self.line = Line(quiet)
        page = getattr(engine, "dashboard", None)
        if not quiet:
            click.echo(f"{engine.workers} workers" + (f", {page}" if page else ""), err=True)

    def __call__(self, record: Record, summary: Summary) -> None:
        if record.error is not None:
            self.line.close()
            click.echo(printable(error_line(record.source, OSError(record.error))), err=True)
        for warning in record.warnings:
            self.line.close()
            click.echo(printable(warning_line(record.source, warning)), err=True)
        finished = summary.done + summary.failed
        spent = time.monotonic() - self.began
        left = spent / finished * (self.songs - finished)
        self.line(
            f"{finished} of {self.songs} songs, {summary.failed} failed, "
            f"{summary.audio_seconds / spent:.2f} hours of audio an hour, "
            f"{duration(left)} left",
            100 * finished // self.songs,
        )

    def close(self) -> None:
        self.line.close()


def _told(summary: Summary, seconds: float) -> str:
    return (
        f"{summary.done} songs separated, {summary.failed} failed, "
        f"{summary.audio_seconds / 3600:.2f} hours of audio in {duration(seconds)}"
    )


@contextmanager
def _reported() -> Iterator[None]:
    """Turns errors into one line, and those of absent packages into what installs them."""
    with arguments.reported():
        try:
            yield
        except ImportError as error:
            wanted = "s3" if "s3fs" in str(error) else "catalogue"
            raise ImportError(f"{error}: pip install 'mgdm-audio[{wanted}]'") from error


separate_catalogue.params += [
    option for option in separate.params if option.name in TAKEN
]  # after what is said of the catalogue, as ``separate --help`` has them
