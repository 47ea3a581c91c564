"""Where the recipes work: the engines of :mod:`mgdm_audio.engine`, by the same two options."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import click

from mgdm_audio.engine import Engine, EngineError, Failed, Make, R, T, engine_of, run_all

Command = TypeVar("Command", bound=Callable[..., Any])


def engine_options(command: Command) -> Command:
    """Adds ``--engine`` and ``--workers``, which `chosen_engine` takes."""
    kind = click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Processes of this machine, or a Ray cluster that sees the same folders.",
    )
    workers = click.option("--workers", type=click.IntRange(1), help="How many work at a time.")
    return kind(workers(command))


def chosen_engine(kind: str, workers: int | None, threads: int = 1, gpus: int = 0) -> Engine:
    """The engine of these options; one worker locally, and what a cluster has room for, if None.

    Arguments:
        kind: ``local`` or ``ray``.
        workers: their number.
        threads: of a worker.
        gpus: of this machine, among which local workers are shared out; 0 leaves that to the work.

    Raises:
        click.ClickException: if Ray is not installed, or the cluster cannot be used.
    """
    try:
        return engine_of(kind, workers, threads, gpus=gpus)
    except EngineError as error:
        raise click.ClickException(str(error)) from error


def results(
    engine: Engine, make: Make[T, R], items: Sequence[T], name: Callable[[T], str] = str
) -> Generator[tuple[int, R], None, None]:
    """The number and result of each item, as they come; closed, it stops the workers.

    Arguments:
        engine: where.
        make: makes a worker.
        items: what it is called with.
        name: of an item, for the error.

    Raises:
        EngineError: for the first item that fails, or if workers die whatever they are given.
    """
    for number, outcome in run_all(engine, make, items):
        if isinstance(outcome, Failed):
            raise EngineError(f"{name(items[number])}: {outcome.reason}")
        yield number, outcome
