"""A checkpoint in small pieces, for machines that files leave and reach a few megabytes at a time.

What travels are the averaged weights in half precision and where the run was. Joined again, they
are a checkpoint from which training goes on: the optimiser's moments start anew and the learning
rate rises again over the first steps.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from recipes.training.trainer import FORMAT, load_state

PIECE = 16 * 2**20 - 2**14
"""Bytes of a piece at most."""

INDEX = "pieces.json"


def compact(state: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a checkpoint's state."""
    average = {
        key: value.half() if value.is_floating_point() and value.ndim > 1 else value
        for key, value in state["average"].items()
        if not key.endswith("sigma_data")
    }
    scales = {k: v for k, v in state["average"].items() if k.endswith("sigma_data")}
    return {
        **{key: state[key] for key in ("settings", "network", "step", "seconds", "songs")},
        **{key: state[key] for key in ("parts",) if key in state},  # not in older checkpoints
        "minutes": state.get("minutes", 0.0),
        "average": {**average, **scales},
    }


def expand(small: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's state from what was kept: the weights are the averaged ones."""
    average = {
        key: value.float() if value.is_floating_point() else value
        for key, value in small["average"].items()
    }
    return {
        **small,
        "format": FORMAT,
        "net": average,
        "average": {key: value.clone() for key, value in average.items()},
        "optimiser": None,
        "restart": small["step"],
    }


def split(checkpoint: Path, folder: Path, size: int = PIECE) -> list[Path]:
    """Writes the pieces of a checkpoint and their index; older pieces are removed.

    Returns:
        The pieces, in order.
    """
    state = compact(load_state(checkpoint))
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("step*.part"), folder / INDEX]:
        old.unlink(missing_ok=True)
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    names = [f"step{state['step']:08d}-{n}of{len(parts)}.part" for n in range(1, len(parts) + 1)]
    for name, part in zip(names, parts, strict=True):
        (folder / name).write_bytes(part)
    index = {
        "step": state["step"],
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "pieces": names,
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return [folder / name for name in names]


def join(folders: list[Path], checkpoint: Path) -> int:
    """Puts pieces together, wherever in the folders they lie.

    Returns:
        The step that the checkpoint is of.

    Raises:
        ValueError: if the index or a piece is missing, or they do not belong together.
    """
    indices = [folder / INDEX for folder in folders if (folder / INDEX).is_file()]
    if not indices:
        raise ValueError(f"there is no {INDEX} in {', '.join(map(str, folders))}")
    index = max((json.loads(path.read_text()) for path in indices), key=lambda i: i["step"])
    data = b""
    for name in index["pieces"]:
        found = next((f / name for f in folders if (f / name).is_file()), None)
        if found is None:
            raise ValueError(f"the piece {name} is missing in {', '.join(map(str, folders))}")
        data += found.read_bytes()
    if hashlib.sha256(data).hexdigest() != index["sha256"]:
        raise ValueError(
            f"the pieces of step {index['step']} do not have the checksum of their index: one is "
            "damaged or of another checkpoint"
        )
    state = expand(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    part = checkpoint.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, checkpoint)
    return int(index["step"])


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command("split")
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
def split_command(checkpoint: Path, folder: Path) -> None:
    """Write the pieces of CHECKPOINT into FOLDER."""
    for path in split(checkpoint, folder):
        click.echo(f"{path} {path.stat().st_size}")


@main.command("join")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
def join_command(paths: tuple[Path, ...]) -> None:
    """Join the pieces in the folders FOLDER... CHECKPOINT, the last argument being written."""
    *folders, checkpoint = paths
    try:
        click.echo(f"{checkpoint}: step {join(list(folders), checkpoint)}")
    except ValueError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
