"""Makes one model of several regressors, which answers with the mean of their answers; or takes
such a model apart, to train its networks on.

    python recipes/regressor/mean.py pretrained/regressor --of work/one 0.6 --of work/other 0.4
    python recipes/regressor/mean.py work/mean --of work/one 1,1,0.4,1 --of work/other 0,0,0.6,0
    python recipes/regressor/mean.py work/parts --parts-of regressor
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parents[2]))

from mgdm_audio import hub
from mgdm_audio.hub import ModelInfo, save_model
from mgdm_audio.nn import RegressorMean, SpectralRegressor

LEVEL_DB = 0.5
"""By which the levels of networks of one model may differ; the first one's is the model's."""

SUMMARY = "Regressor of bass, drums, guitar and piano from their mix: the mean of {} networks"


def join(
    folder: Path,
    models: list[hub.Regressor],
    shares: Sequence[float | list[float]],
    dtype: str = "float16",
) -> ModelInfo:
    """Writes the mean of some regressors as a model called like its folder, without a card; `dtype`
    is that of the weights, see `save_model`.

    Raises:
        ValueError: if the networks do not go together, see `RegressorMean`, or their models differ
            in rate, stems or level, or one of them is a mean itself.
    """
    networks = [model.regress for model in models]
    plain = [net for net in networks if isinstance(net, SpectralRegressor)]
    if len(plain) < len(networks):
        raise ValueError("a mean of means is not made: take these apart first (--parts-of)")
    first = models[0].info.config
    for key in ("sample_rate", "stems", "level"):
        values = [model.info.config[key] for model in models]
        apart = any(value != first[key] for value in values)
        if key == "level":
            apart = 20 * math.log10(max(values) / min(values)) > LEVEL_DB
        if apart:
            found = ", ".join(f"{m.name} {m.info.config[key]}" for m in models)
            raise ValueError(f"the models differ in {key}: {found}")
    config = {
        "kind": "regressor",
        "name": folder.name,
        "summary": SUMMARY.format(len(models)),
        "network": {
            "class": "RegressorMean",
            "args": {"of": [m.info.config["network"] for m in models], "shares": [*shares]},
        },
        **{key: first[key] for key in ("sample_rate", "stems", "level", "licence")},
        "score": {},
        "training": {"of": [_training(model) for model in models]},
    }
    return save_model(folder, RegressorMean(plain, shares), config, dtype)


def part(model: hub.Regressor, number: int, folder: Path, dtype: str = "float16") -> ModelInfo:
    """Writes one of the networks of a mean as a model of its own; `dtype` as for `join`."""
    network = model.regress
    assert isinstance(network, RegressorMean)
    config = dict(model.info.config)
    name = f"{model.name}-{number}"
    own: dict[str, Any] = {
        "name": name,
        "network": config["network"]["args"]["of"][number],
        "training": config["training"]["of"][number],
        "summary": f"Network {number} of {model.name}",
        "score": {},
    }
    return save_model(folder / name, network.networks[number], {**config, **own}, dtype)


def _training(model: hub.Regressor) -> dict[str, Any]:
    return {**model.info.config.get("training", {}), "sha256": model.sha256}


def _share(text: str) -> float | list[float]:
    """A number, or one for each stem, joined by commas."""
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"'{text}' is no number, nor numbers joined by commas") from error
    return numbers if len(numbers) > 1 else numbers[0]


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--of",
    type=(str, str),
    multiple=True,
    metavar="MODEL SHARE",
    help="SHARE is a number, or one for each stem, joined by commas.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "int8"]),
    default="float16",
    show_default=True,
    help="Of the weights.",
)
@click.option("--parts-of", help="A model that is a mean: its networks go to this folder.")
def main(folder: Path, of: tuple[tuple[str, str], ...], dtype: str, parts_of: str | None) -> None:
    if len(of) == 1 or bool(of) == bool(parts_of):
        raise click.UsageError("give either --of, twice or more, or --parts-of")
    if parts_of:
        model = hub.load_regressor(parts_of)
        if not isinstance(model.regress, RegressorMean):
            raise click.UsageError(f"{parts_of} is one network already")
        infos = [part(model, n, folder, dtype) for n in range(len(model.regress.networks))]
    else:
        models = [hub.load_regressor(name) for name, _ in of]
        try:
            infos = [join(folder, models, [_share(share) for _, share in of], dtype)]
        except ValueError as error:
            raise click.ClickException(str(error)) from error
    for info in infos:
        click.echo(f"{info.path}: {info.parameters} parameters, sha256 {info.sha256}")


if __name__ == "__main__":
    main()
