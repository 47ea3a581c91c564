"""What stands behind options: stems with files, other mixes, intervals; and how errors are told."""

from __future__ import annotations

__all__ = [
    "check_preset",
    "gains",
    "gains_text",
    "interval",
    "intervals",
    "names",
    "pairs",
    "reported",
    "stem",
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
from mgdm_audio.terminal import printable, warning_line


@contextmanager
def reported() -> Iterator[None]:
    """Turns the errors of a command into one line."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("\ninterrupted; nothing partial is left", err=True)
        raise SystemExit(130) from None
    except (click.exceptions.Exit, click.Abort):
        raise  # they are RuntimeErrors
    except (
        ValueError, OSError, ArithmeticError, MemoryError, ImportError, RuntimeError, EngineError,
    ) as error:  # fmt: skip
        raise click.ClickException(printable(" ".join(str(error).split()))) from error


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
    except ValueError:
        raise click.UsageError(f"got '{text}', expected seconds, as 12.5-12.8") from None
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


def write_json(path: Path, value: Any) -> None:
    """A value as a file of JSON."""
    path.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
