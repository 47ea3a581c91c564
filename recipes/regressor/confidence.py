"""What share of a regressor's answer to believe of sounds that its training had none like.

Prints the SI-SDR improvement in dB of the four stems on the validation songs by confidence (see
:class:`mgdm_audio.nn.regressor.SpectralRegressor`): asked about a mix at so many speeds, with two
stems given, and with another part in the mix. The best one goes to `export.py --confidence`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from mgdm_audio import STEMS, hub
from mgdm_audio.nn import RegressorMean, SpectralRegressor
from recipes.prior.data import validation_crops
from recipes.regressor.train import STEM_DB
from recipes.regressor.validation import validate


@click.command(help=__doc__)
@click.option("--corpus", type=click.Path(path_type=Path), required=True, help="Corpus folder.")
@click.option("--others", type=click.Path(path_type=Path), help="Folder of the valid parts.")
@click.option("--model", default="regressor", show_default=True)
@click.option("--speeds", default=3, show_default=True)
@click.option("--confidence", "grid", multiple=True, type=click.FloatRange(0, 1),
              default=(1.0, 0.9, 0.8, 0.7, 0.6), show_default=True)  # fmt: skip
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
def main(
    corpus: Path,
    others: Path | None,
    model: str,
    speeds: int,
    grid: tuple[float, ...],
    precision: str,
) -> None:
    net = hub.load_regressor(model).regress
    assert isinstance(net, (SpectralRegressor, RegressorMean))
    parts = [part for part in net.modules() if isinstance(part, SpectralRegressor)]
    crops = validation_crops(corpus / "valid", 131_072)
    held_out = None
    if others is not None:
        held_out = validation_crops(others / "valid", 131_072) * np.float32(10 ** (STEM_DB / 20))
    click.echo(f"| confidence | {' | '.join(STEMS)} | mean | two given | another part, four | it |")
    click.echo("| ---: |" + " ---: |" * 8)
    for confidence in grid:
        for part in parts:
            part.confidence = confidence
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            found = validate(net, crops, held_out, speeds)
        beside = found.get("beside", [float("nan")] * 5)
        means = [float(np.mean(v)) for v in (found["none"], found["two"], beside[:4], beside[4])]
        row = [*found["none"], *means]
        click.echo(f"| {confidence:g} | " + " | ".join(f"{v:.2f}" for v in row) + " |")


if __name__ == "__main__":
    main()
