"""What the command line prints: progress, durations, names that no terminal would take."""

from __future__ import annotations

__all__ = [
    "Line",
    "Progress",
    "duration",
    "error_line",
    "printable",
    "said",
    "size",
    "warning_line",
]

import shutil
import sys
import time
from pathlib import Path

import click


class Line:
    """A line on stderr for what grows; redrawn on a terminal, at every tenth elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.live = sys.stderr.isatty()
        self._tenth, self._drawn = -1, 0.0

    def __call__(self, text: str, percent: int) -> None:
        """Shows a text if it is time to."""
        if self.quiet:
            return
        if self.live and (time.monotonic() - self._drawn > 0.1 or percent == 100):
            width = shutil.get_terminal_size().columns - 1
            click.echo("\r" + text[:width].ljust(width), nl=False, err=True)
            self._drawn = time.monotonic()
        elif not self.live and percent // 10 > self._tenth:
            self._tenth = percent // 10
            click.echo(text, err=True)

    def close(self) -> None:
        """Ends the line; what follows is below it."""
        if self.live and self._drawn:
            click.echo(err=True)
            self._drawn = 0.0


class Progress:
    """A `Line` with percentage and time left."""

    def __init__(self, label: str, quiet: bool) -> None:
        self.label = printable(label)
        self.start = time.monotonic()
        self.first = -1
        self._line = Line(quiet)

    def __call__(self, done: int, total: int) -> None:
        """Shows how much is done of a total."""
        percent = 100 * done // max(1, total)
        if self.first < 0:
            self.first = done  # what was there before is no measure of speed
        ours = done - self.first
        left = ""
        if ours:
            seconds = (time.monotonic() - self.start) * (total - done) / ours
            left = f", {duration(seconds)} left"
        self._line(f"{self.label}: {percent:3d} %{left}", percent)

    def close(self) -> None:
        """Ends the line."""
        self._line.close()


def printable(text: object) -> str:
    """Text with undecodable bytes of file names replaced, which no terminal would take."""
    return str(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(count: float) -> str:
    """Bytes in MB or GB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def said(error: BaseException) -> str:
    """What an error says, in one line."""
    # A device that fails says much, memory that does not suffice says nothing.
    return " ".join(str(error).split()) or type(error).__name__


def error_line(source: Path | str, error: BaseException) -> str:
    """One line that names the input."""
    text = said(error)
    return f"error: {text}" if text.startswith(str(source)) else f"error: {source}: {text}"


def warning_line(source: Path | str, text: str) -> str:
    """One line that names the input."""
    return f"warning: {text}" if text.startswith(str(source)) else f"warning: {source}: {text}"
