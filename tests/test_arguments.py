"""What stands behind options."""

from __future__ import annotations

import click
import pytest

from mgdm_audio import arguments
from mgdm_audio.cli import cli
from mgdm_audio.model_info import ModelError
from mgdm_audio.separate import DeviceError


def test_all_numbers_of_all_commands_are_finite():
    for name, command in cli.commands.items():
        for option in command.params:
            assert type(option.type) is not click.FloatRange, f"{name} {option.opts}"


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999"])
def test_a_range_has_no_infinity(text):
    with pytest.raises(click.BadParameter, match=r"not a finite number|not in the range"):
        arguments.Finite(0).convert(text, None, None)
    with pytest.raises(click.BadParameter, match=r"not a finite number|not in the range"):
        arguments.Finite(-80, 0).convert(text, None, None)


def test_intervals():
    assert arguments.interval("0-12.8") == (0, 12.8)
    for text in ("nan-0.06", "0-inf", "2-1", "1-1", "-1-2", "1", ""):
        with pytest.raises(click.UsageError, match="expected START-STOP in seconds"):
            arguments.interval(text)


def test_errors_are_one_line():
    for error in (
        RuntimeError("much\n  of it"),
        OSError("much of it"),
        OverflowError("much of it"),
    ):
        with pytest.raises(click.ClickException, match=r"^much of it$"), arguments.reported():
            raise error
    with pytest.raises(click.ClickException, match="MemoryError"), arguments.reported():
        raise MemoryError
    with pytest.raises(SystemExit) as stopped, arguments.reported():
        raise KeyboardInterrupt
    assert stopped.value.code == 130
    # Of click's, and of a reader that wants no more, which click knows.
    for error in (click.UsageError("x"), click.exceptions.Exit(3), BrokenPipeError()):
        with pytest.raises(type(error)), arguments.reported():
            raise error


def test_what_a_separator_refuses_is_wrong_usage():
    with pytest.raises(click.UsageError, match=r"^overlap$"), arguments.made():
        raise ValueError("overlap")
    for error in (ModelError("none"), DeviceError("none")):
        with pytest.raises(type(error)), arguments.made():
            raise error
