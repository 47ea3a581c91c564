"""Options that the commands share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import torch

from mgdm_audio import hub
from mgdm_audio.separate import resolve_device
from recipes.compare.bench import Bench, Share, tuples
from recipes.compare.ledger import Ledger
from recipes.parallel import chosen_engine, engine_options

Command = TypeVar("Command", bound=Callable[..., Any])

_SHARED = (
    click.option(
        "--corpus", type=click.Path(path_type=Path), required=True, help="Folder of the splits."
    ),
    click.option("--model", default="default", show_default=True, help="Name or folder."),
    click.option("--regressor", help="Name or folder; by default the shipped one, if there is."),
    click.option(
        "--store",
        type=click.Path(path_type=Path),
        default=Path("work/compare"),
        show_default=True,
        help="Folder of the samples, with which a run goes on where it was.",
    ),
    click.option("--device", default="auto", show_default=True),
    click.option(
        "--precision",
        type=click.Choice(["auto", "fastest", "float32", "bfloat16"]),
        default="auto",
        show_default=True,
    ),
    click.option("--threads", default=1, show_default=True, help="Threads on a CPU."),
    engine_options,
    click.option("--seed", default=0, show_default=True),
    click.option("--minutes", type=float, help="Begin no sample after so many minutes."),
    click.option(
        "--share",
        default="1/1",
        show_default=True,
        callback=lambda ctx, param, value: parse_share(value),
        help="i/n: draw the i-th of n parts of the samples, for n processes at once.",
    ),
)


def shared(command: Command) -> Command:
    """Adds the options that make a bench, and what it may do."""
    for option in reversed(_SHARED):
        command = option(command)
    return command


def make_bench(
    model: str,
    regressor: str | None,
    store: Path,
    device: str,
    precision: str,
    threads: int,
    engine: str,
    workers: int | None,
    seed: int,
    ledger: Ledger | None = None,
) -> Bench:
    """The bench of a command's options; its progress goes to stderr."""
    torch.set_num_threads(threads)
    place = resolve_device(device)
    # Where its weights did not go, what asks it is left out.
    shipped = {info.name for info in hub.models() if (info.path / hub.WEIGHTS).is_file()}
    if regressor is None and "regressor" in shipped:
        regressor = "regressor"
    return Bench(
        hub.load(model, place),
        store,
        regressor=None if regressor is None else hub.load_regressor(regressor, place),
        device=device,
        precision=precision,
        seed=seed,
        say=lambda line: click.echo(line, err=True),
        ledger=ledger,
        engine=chosen_engine(engine, workers, threads),
    )


def parse_share(text: str) -> Share:
    """``i/n``."""
    try:
        part, parts = map(int, text.split("/"))
    except ValueError as error:
        raise click.BadParameter(f"'{text}' is not of the form i/n, such as 1/2") from error
    if not 1 <= part <= parts:
        raise click.BadParameter(f"'{text}': the part must be from 1 to {parts}")
    return Share(part - 1, parts)


def parse_setting(text: str) -> tuple[str, Any]:
    """``name=value`` with a JSON value; lists become tuples. Plain words are text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise click.BadParameter(f"'{text}' is not of the form name=value")
    try:
        return name, tuples(json.loads(value))
    except json.JSONDecodeError:
        return name, value
