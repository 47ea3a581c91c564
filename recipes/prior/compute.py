"""Fits validation loss against compute, level by level, and says what more of it should give.

The loss at a noise level is fitted as floor + a * hours^-b over the hours of audio seen, with the
floor not below what a perfect denoiser of the same preconditioning could have (0). Only
validations at the end of a fall of the learning rate are comparable; the others lie above, which
the fit ignores: it is a description, and its extrapolation is a guess.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

sys.path.insert(0, str(Path(__file__).parents[2]))

from recipes.training.log import LEVELS, level_name, read

Curve = NDArray[np.float64]


def history(lines: list[dict[str, Any]]) -> tuple[Curve, dict[str, Curve]]:
    """Hours of audio seen at each validation, and the losses there by level."""
    hours, seen = [], 0.0
    losses: dict[str, list[float]] = {level_name(level): [] for level in LEVELS}
    for line in lines:
        seen = line.get("hours_seen", seen)
        if "valid" in line:
            hours.append(seen)
            for name, values in losses.items():
                values.append(line["valid"][name])
    return np.array(hours), {name: np.array(values) for name, values in losses.items()}


def fit(hours: Curve, loss: Curve) -> tuple[float, float, float]:
    """Floor, a and b of floor + a * hours^-b, least squares; b from 0.05 to 1.5.

    Raises:
        ValueError: for fewer than four validations.
    """
    if len(hours) < 4:
        raise ValueError(f"got {len(hours)} validations, a fit of three numbers needs at least 4")

    def error(p: Curve) -> Curve:
        return np.asarray(p[0] + p[1] * hours ** -p[2] - loss)

    start = [0.9 * loss.min(), loss.max() - 0.9 * loss.min(), 0.5]
    found = least_squares(error, start, bounds=([0, 0, 0.05], [loss.max(), 10, 1.5])).x
    return float(found[0]), float(found[1]), float(found[2])


def table(hours: Curve, losses: dict[str, Curve], factors: tuple[int, ...] = (10, 100)) -> str:
    """Markdown: the loss at the end, what the last doubling gave, and the extrapolation."""
    more = " | ".join(f"x{factor} (fit)" for factor in factors)
    rows = [
        f"| sigma | {hours[0]:.0f} h | {hours[-1]:.0f} h | last doubling | {more} | exponent |",
        "| ---: | ---: | ---: | ---: |" + " ---: |" * (len(factors) + 1),
    ]
    for name, loss in losses.items():
        floor, a, b = fit(hours, loss)
        half = float(np.interp(hours[-1] / 2, hours, loss))
        ahead = " | ".join(f"{floor + a * (hours[-1] * f) ** -b:.3f}" for f in factors)
        rows.append(
            f"| {name} | {loss[0]:.3f} | {loss[-1]:.3f} | {loss[-1] - half:+.3f} | {ahead} | "
            f"{b:.2f} |"
        )
    return "\n".join(rows)


def chart(hours: Curve, losses: dict[str, Curve], path: Path) -> None:
    """Draws losses and fits over the hours, to a hundred times the compute."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.5))
    ahead = np.geomspace(hours[0], 100 * hours[-1], 100)
    for name, loss in losses.items():
        floor, a, b = fit(hours, loss)
        (line,) = axis.plot(hours, loss, "o", label=f"sigma {name}")
        axis.plot(ahead, floor + a * ahead**-b, "--", color=line.get_color(), linewidth=1)
    axis.set_xscale("log")
    axis.set_xlabel("hours of audio seen (dashed: fit and extrapolation)")
    axis.set_ylabel("validation loss")
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


@click.command(help=__doc__)
@click.argument("log", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="PNG to draw.")
def main(log: Path, out: Path | None) -> None:
    hours, losses = history(read(log))
    try:
        click.echo(table(hours, losses))
    except ValueError as error:
        raise click.ClickException(f"{log}: {error}") from error
    if out is not None:
        chart(hours, losses, out)


if __name__ == "__main__":
    main()
