"""What the training commands share: their options, and a run from start or checkpoint to end."""

from __future__ import annotations

import functools
import json
import math
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click
import torch
from click.core import ParameterSource

from recipes.training.log import Log, Window
from recipes.training.processes import Processes, processes, relaunch, wanted
from recipes.training.trainer import Runtime, Settings, Task, Trainer, load_state

LOG_STEPS = 100
CHECKPOINT = "checkpoint.pt"

AnySettings = TypeVar("AnySettings", bound=Settings)

_OPTIONS = [
    click.option(
        "--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True
    ),
    click.option(
        "--devices",
        default="auto",
        show_default=True,
        help="Processes on this machine; auto: one for each GPU.",
    ),
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu"]),
        default="auto",
        show_default=True,
        help="cpu leaves the GPUs alone.",
    ),
    click.option(
        "--micro", default=0, help="Items through the network at once (gradient accumulation)."
    ),
    click.option("--workers", default=0, show_default=True, help="Data processes a process."),
    click.option(
        "--resident",
        default=0.0,
        show_default=True,
        help="Hours of songs kept on the device, where the items are then made.",
    ),
    click.option("--save-minutes", default=4.0, show_default=True),
    click.option("--validate-minutes", default=12.0, show_default=True),
    click.option("--score-minutes", default=60.0, show_default=True),
    click.option("--minutes", default=math.inf, help="Stop after this time (the run can go on)."),
    click.option(
        "--fit",
        is_flag=True,
        help="Move the run's end to where --minutes stops, by the speed so far, with every "
        "checkpoint: the learning rate has come down by then.",
    ),
]
_NAMES = (
    "precision", "devices", "device", "micro", "workers", "resident", "save_minutes",
    "validate_minutes", "score_minutes", "minutes", "fit",
)  # fmt: skip


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of how a run is carried out; the command gets them as ``options``."""

    @functools.wraps(command)
    def wrapped(**values: Any) -> Any:
        return command(options={name: values.pop(name) for name in _NAMES}, **values)

    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


def samples_of(seconds: float) -> int:
    """Length of a crop in samples: a multiple of the hop of the STFT."""
    return round(seconds * 22050 / 512) * 512


def given() -> dict[str, Any]:
    """The present command's parameters that were not left to their defaults."""
    context = click.get_current_context()
    return {
        name: value
        for name, value in context.params.items()
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }


def continued(
    settings: AnySettings, network: dict[str, Any] | None = None, **kept: Any
) -> AnySettings:
    """Settings of a run that goes on: its checkpoint's, with the end that is asked for.

    What a run was begun with stays as it is; an option that says otherwise must not be passed over.

    Arguments:
        settings: the checkpoint's.
        network: arguments of the backbone, where they are an option of the run.
        kept: what else the run was begun with, by the name of its option; None for nothing.

    Raises:
        ClickException: if the command was given something else.
    """
    asked = given()
    kept |= {name: getattr(settings, name) for name in ("batch", "lr", "seed")}
    if samples_of(asked.get("seconds", 0.0)) != settings.samples:
        kept["seconds"] = f"{settings.samples / 22050:.2f}"
    if network is not None and json.loads(asked.get("network", "{}")) != network:
        kept["network"] = json.dumps(network)
    for name, value in kept.items():
        if name in asked and asked[name] != value:
            had = f"no --{name}" if value is None else f"--{name} {value}"
            raise click.ClickException(f"this run has {had}; leave it out or choose another --out")
    return replace(settings, steps=asked.get("steps", settings.steps))


def train(
    make: Callable[[dict[str, Any] | None], Task], out: Path, options: dict[str, Any]
) -> None:
    """Trains from the start or from the run folder's checkpoint, in one process or several.

    Arguments:
        make: the task, given a checkpoint's state or None.
        out: the run's folder.
        options: see `training_options`.
    """
    out.mkdir(parents=True, exist_ok=True)
    try:
        devices = options["devices"]
        if options["device"] == "cpu" and devices == "auto":
            devices = "1"  # not a process for each GPU, which is left alone
        if relaunch(wanted(devices)):
            return
        with processes(options["device"]) as place:
            checkpoint = out / CHECKPOINT
            state = load_state(checkpoint) if checkpoint.exists() else None
            names = ("precision", "micro", "workers", "resident")
            runtime = Runtime(**{name: options[name] for name in names})
            trainer = Trainer(make(state), place, runtime)
            if state is None:
                trainer.prepare()
            else:
                trainer.load(state)
                say(place, f"continues at step {trainer.step} of {trainer.settings.steps}")
            del state
            run(trainer, out, options)
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        raise click.ClickException(str(error)) from error


def say(place: Processes, text: str) -> None:
    """Tells a line on stderr, once."""
    if place.first:
        click.echo(text, err=True)


def run(trainer: Trainer, out: Path, options: dict[str, Any]) -> None:
    """Steps, logs, checkpoints, validates and scores until the end or the time given."""
    place, window = trainer.processes, Window()
    stop: list[int] = []
    # A machine that is taken back says so: the checkpoint is written before the end.
    previous = signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    start = time.monotonic()
    first, last = trainer.step, False
    due = dict.fromkeys(("save", "validate", "score"), start)
    pace: tuple[float, int] | None = None  # where its measuring began, after what comes once

    def is_due(name: str) -> bool:
        return time.monotonic() - due[name] > options[f"{name}_minutes"] * 60

    log = Log(out, trainer.step, trainer.task.stems) if place.first else None
    try:
        while trainer.step < trainer.settings.steps and not last:
            window.add(*trainer.advance())
            minutes = (time.monotonic() - start) / 60
            flags = [bool(stop), minutes > options["minutes"], *map(is_due, due)]
            stopped, timed_out, *now_due = place.agree(flags)
            last = stopped or timed_out or trainer.step == trainer.settings.steps
            if trainer.step % LOG_STEPS == 0 or last:
                report(trainer, window, log, minutes, trainer.step - first)
                if options["fit"] and not last:
                    if pace is not None:
                        fit(trainer, *pace, options["minutes"] - minutes)
                    pace = pace or (time.monotonic(), trainer.step)
            for name, wanted in zip(due, now_due, strict=True):
                # Told to stop there is no time for more than the checkpoint.
                if not (wanted or last) or (stopped and name != "save"):
                    continue
                if name == "save":
                    if not last:  # before: a continued run goes on with the same songs
                        trainer.refresh()
                    trainer.save(out / CHECKPOINT)
                elif log is not None:
                    measure(trainer, name, log)
                    log.chart(out / "curves.png")
                due[name] = time.monotonic()
                place.wait()
    finally:
        signal.signal(signal.SIGTERM, previous)
        if log is not None:
            with log:
                log.chart(out / "curves.png")


def fit(trainer: Trainer, since: float, first: int, minutes: float) -> None:
    """Moves the run's end to the steps that the minutes left allow, by the pace so far.

    Arguments:
        trainer: the run.
        since: the time from which steps are counted, see `time.monotonic`.
        first: the step that the run was at then.
        minutes: that are left.
    """
    pace = (trainer.step - first) / (time.monotonic() - since)
    end = min(trainer.processes.gather(trainer.step + max(1, int(pace * minutes * 60))))
    trainer.end_at(end)


def report(trainer: Trainer, window: Window, log: Log | None, minutes: float, steps: int) -> None:
    """Writes the losses since the last line, and says how the run goes."""
    settings = trainer.settings
    loss, stems = window.summary(trainer.processes, trainer.task.label)
    if log is not None:
        log.write(
            {
                "step": trainer.step,
                "minutes": round(minutes, 2),
                "hours_seen": round(trainer.seconds / 3600, 3),
                "lr": trainer.rate(),
                "songs": trainer.songs,
                "loss": loss,
                "stems": stems,
            }
        )
    speed = steps / (minutes * 60)
    audio = settings.batch * settings.samples / 22050
    left = (settings.steps - trainer.step) / speed / 60
    say(
        trainer.processes,
        f"step {trainer.step} ({100 * trainer.step / settings.steps:.1f} %), "
        f"{speed * audio:.1f} audio-s/s, {left:.0f} min left",
    )


def measure(trainer: Trainer, name: str, log: Log) -> None:
    """Validates or scores the averaged network, in the first process."""
    task = trainer.task.validate if name == "validate" else trainer.task.score
    key = "valid" if name == "validate" else name
    trainer.average.eval()
    with torch.no_grad(), trainer.autocast():
        values = task(trainer.average)
    log.write({"step": trainer.step, key: values})
    say(trainer.processes, f"step {trainer.step} {key} {values}")
