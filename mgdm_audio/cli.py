"""The command line. All printing is here; heavy imports happen inside the commands."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from mgdm_audio import __version__
from mgdm_audio.cli_catalogue import separate_catalogue
from mgdm_audio.cli_posterior import app, generate, repair
from mgdm_audio.cli_separate import check_writable, separate
from mgdm_audio.terminal import Progress, error_line, printable


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="mgdm-audio")
def cli() -> None:
    """Separates music into bass, drums, guitar and piano by posterior sampling.

    \b
    mgdm-audio separate song.wav
    mgdm-audio separate album/ -o stems --quality fast
    mgdm-audio models
    mgdm-audio evaluate true_stems separated
    """


cli.add_command(separate)
cli.add_command(separate_catalogue)
cli.add_command(generate)
cli.add_command(repair)
cli.add_command(app)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON, with everything the configs say.")
def models(as_json: bool) -> None:
    """List the models there are: what they are, licence, sample rate, size and score."""
    from mgdm_audio import hub

    try:
        found = hub.models()
    except (ValueError, OSError) as error:
        raise click.ClickException(printable(error)) from error
    if as_json:
        click.echo(json.dumps([info.config for info in found], indent=2))
        return
    if not found:
        raise click.ClickException(f"no models in {', '.join(map(str, hub.search_path()))}")
    for info in found:
        score = ", ".join(f"{key} {value}" for key, value in info.score.items()) or "no score"
        click.echo(
            f"{info.name}  {info.kind}  {info.sample_rate} Hz  "
            f"{info.parameters / 1e6:.1f} M parameters  "
            f"{info.licence}\n    {info.summary}\n    {score}"
        )
        click.echo(b"    " + os.fsencode(info.path))


@cli.command()
@click.argument("reference_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("estimate_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--museval", is_flag=True, help="BSS Eval as well (slow; needs ffmpeg).")
@click.option("--csv", type=click.Path(path_type=Path, dir_okay=False), help="Scores by track.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
def evaluate(
    reference_dir: Path,
    estimate_dir: Path,
    museval: bool,
    csv: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compare stems in ESTIMATE_DIR with true ones in REFERENCE_DIR.

    Both hold TRACK/{bass,drums,guitar,piano}.wav, or the four files of one track. A stem that is
    absent from REFERENCE_DIR is silence. SI-SDR improvement over the mixture, by track and over
    all, in the published reading (all stems of windows of 4 s with two active stems) and over
    active stems alone.
    """
    from mgdm_audio.evaluate import evaluate_folders

    progress = Progress("evaluating", quiet)
    failed: list[str] = []
    try:
        if csv is not None:
            check_writable(csv.parent)
        result = evaluate_folders(
            reference_dir, estimate_dir, museval=museval, callback=progress,
            failed=lambda name, error: failed.append(error_line(name, error)),
        )  # fmt: skip
        if csv is not None:
            csv.parent.mkdir(parents=True, exist_ok=True)
            result.to_csv(csv)
    except (ValueError, OSError, RuntimeError) as error:
        raise click.ClickException(printable(error)) from error
    finally:
        progress.close()
        for line in failed:
            click.echo(printable(line), err=True)
    text = _json(result.to_dict()) if as_json else printable(result.to_markdown())
    click.echo(text, nl=as_json)
    sys.exit(1 if failed else 0)


@cli.command("import-checkpoint")
@click.argument(
    "files",
    nargs=-1,
    required=True,
    metavar="FILE...",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the model, called like it. By default msdm or isdm in pretrained/.",
)
@click.option("--level", type=float, help="RMS of the training mixtures; by default an estimate.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Stored type of the weights; float32 keeps every bit.",
)
@click.option("--skip", multiple=True, metavar="NAME", help="Class in FILE to pass over.")
@click.option("--overwrite", is_flag=True, help="Replace a model that exists.")
def import_checkpoint(
    files: tuple[Path, ...],
    output: Path | None,
    level: float | None,
    dtype: str,
    skip: tuple[str, ...],
    overwrite: bool,
) -> None:
    """Make a model of the published checkpoint FILE of MSDM, without running anything in it.

    Four single-stem FILES (ISDM: bass, drums, guitar, piano, in this order) make one model of
    independent priors. The model is then used by its name:

    \b
    mgdm-audio import-checkpoint "avid-darkness-164/epoch=419-valid_loss=0.014.ckpt"
    mgdm-audio separate song.wav --model msdm --method msdm --preset paper
    """
    from mgdm_audio import checkpoint, hub

    try:
        check_writable(hub.search_path()[0] if output is None else output)
        info, assumed = checkpoint.import_checkpoints(
            files,
            output,
            level=checkpoint.LEVEL if level is None else level,
            dtype=dtype,
            skip=skip,
            overwrite=overwrite,
        )
    except (ValueError, OSError) as error:
        raise click.ClickException(printable(error)) from error
    if assumed:
        click.echo(f"not stated in the file, taken as published: {', '.join(assumed)}", err=True)
    click.echo(
        f"{info.name}: {info.parameters / 1e6:.1f} M parameters, SHA-256 {info.sha256}", err=True
    )
    click.echo(os.fsencode(info.path))


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False)


def main() -> None:
    """Entry point of ``mgdm-audio``."""
    cli(prog_name="mgdm-audio")
