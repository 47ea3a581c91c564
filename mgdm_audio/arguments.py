"""What stands behind options: numbers, stems with files, other mixes; and how errors are told."""

from __future__ import annotations

__all__ = [
    "Finite",
    "check_preset",
    "gains",
    "gains_text",
    "interval",
    "intervals",
    "made",
    "names",
    "pairs",
    "reported",
    "stem",
    "write_floats",
    "write_json",
]

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mgdm_audio import STEMS, samplers
from mgdm_audio.engine import EngineError
from mgdm_audio.model_info import ModelError
from mgdm_audio.terminal import printable, said, warning_line


class Finite(click.FloatRange):
    """A number within a range; infinity and NaN, which every range of click's has in it, are not
    numbers here."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """See :meth:`click.ParamType.convert`."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


@contextmanager
def reported() -> Iterator[None]:
    """Turns the errors of a command into one line."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("\ninterrupted; nothing partial is left", err=True)
        raise SystemExit(130) from None
    except (click.exceptions.Exit, click.Abort, BrokenPipeError):
        # They are RuntimeErrors; and click ends in silence where nobody reads on, as `head` does.
        raise
    except (
        ValueError, OSError, ArithmeticError, MemoryError, ImportError, RuntimeError, EngineError,
    ) as error:  # fmt: skip
        raise click.ClickException(printable(said(error))) from error


@contextmanager
def made() -> Iterator[None]:
    """Around the making of a separator of a command's options: what it refuses is wrong usage, but
    for a model or a device that is not there."""
    try:
        yield
    except ValueError as error:
        from mgdm_audio.separate import DeviceError  # it imports torch

        if isinstance(error, (ModelError, DeviceError)):
            raise
        raise click.UsageError(printable(said(error))) from error


def names(text: str) -> list[str]:
    """A,B,... as names of stems."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in found if name not in STEMS]:
        raise click.UsageError(f"unknown stem '{unknown[0]}', expected some of {', '.join(STEMS)}")
    return found


def check_preset(method: str, preset: str) -> None:
    """Refuses a preset that a method has not."""
    presets = samplers.sampler_class(method).PRESETS
    if preset not in presets:
        raise click.BadParameter(
            f"'{preset}' is not a preset of {method}; there are {', '.join(presets)}",
            param_hint="'--preset'",
        )


def pairs(texts: tuple[str, ...]) -> dict[str, Path]:
    """STEM=FILE, as often as there are such stems, as files by stem."""
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or name not in STEMS or name in found or not Path(path).is_file():
            raise click.UsageError(
                f"got '{text}', expected STEM=FILE with an existing file and different stems of "
                f"{', '.join(STEMS)}"
            )
        found[name] = Path(path)
    return found


def gains(text: str) -> tuple[Path, list[float]]:
    """FILE:STEM=GAIN,... as the file and a gain for each stem."""
    name, _, rest = text.rpartition(":")
    found = dict.fromkeys(STEMS, 1.0)
    try:
        for part in rest.split(","):
            name_of, _, value = part.partition("=")
            found[STEMS[STEMS.index(name_of)]] = float(value)
        if not Path(name).is_file() or not all(map(math.isfinite, found.values())):
            raise ValueError(text)
    except ValueError:
        raise click.UsageError(
            f"got '{text}', expected FILE:STEM=GAIN,... with an existing file, stems of "
            f"{', '.join(STEMS)} and finite gains, as instrumental.wav:drums=0"
        ) from None
    return Path(name), list(found.values())


def gains_text(path: Path, row: list[float]) -> str:
    """The text that `gains` reads."""
    named = [f"{stem}={gain:g}" for stem, gain in zip(STEMS, row, strict=True) if gain != 1]
    return f"{path}:{','.join(named or [STEMS[0] + '=1'])}"


def interval(text: str) -> tuple[float, float]:
    """START-STOP, in seconds."""
    try:
        start, stop = map(float, text.split("-"))
        if not 0 <= start < stop < math.inf:
            raise ValueError(text)
    except ValueError:
        raise click.UsageError(
            f"got '{text}', expected START-STOP in seconds, the first before the second, as "
            "12.5-12.8"
        ) from None
    return start, stop


def intervals(mask: Path, rate: int, length: int) -> list[tuple[float, float]]:
    """Seconds (start, stop) in which a recording of this rate and length is not silent."""
    import numpy as np

    heard = np.abs(stem(mask, rate)).max(0) > 0
    if len(heard) != length or not heard.any():
        raise ValueError(
            f"{mask} has {len(heard)} samples, {int(heard.sum())} of them not silent; expected "
            f"{length}, and sound where the recording is to be filled in"
        )
    edges = np.flatnonzero(np.diff(np.concatenate([[False], heard, [False]])))
    return [(a / rate, b / rate) for a, b in edges.reshape(-1, 2).tolist()]


def stem(path: Path, rate: int) -> Any:
    """A recording (C, T), as it was read, that must have this sample rate; what a user should know
    of the file is told."""
    from mgdm_audio import audio

    read = audio.read(path)
    if read.sample_rate != rate:
        raise ValueError(f"{path} has {read.sample_rate} Hz, expected {rate}")
    for warning in read.warnings:
        click.echo(printable(warning_line(path, warning)), err=True)
    return read.samples


def write_floats(path: Path, samples: Any, rate: int, subtype: str) -> None:
    """A recording (C, T) as a WAV file, FLOAT or DOUBLE."""
    import soundfile as sf

    from mgdm_audio import write

    with open(path, "wb") as file:  # of names soundfile takes text alone
        sf.write(file, samples.T, rate, subtype, format="WAV")
    write.clear_time_stamp(path)


def write_json(path: Path, value: Any) -> None:
    """A value as a file of JSON."""
    path.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
