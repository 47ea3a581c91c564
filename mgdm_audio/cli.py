"""The command line. All printing is here; heavy imports happen inside the commands."""

from __future__ import annotations

import json
import os
import shutil
import string
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mgdm_audio import STEMS, __version__, samplers

if TYPE_CHECKING:
    from mgdm_audio.separate import Separation

TEMPLATE = "{track}/{stem}.{ext}"
FIELDS = ("track", "stem", "ext", "model", "method")


class Progress:
    """A line on stderr with percentage and time left; redrawn on a terminal, sparse elsewhere."""

    def __init__(self, label: str, quiet: bool) -> None:
        self.label, self.quiet = _printable(label), quiet
        self.start = time.monotonic()
        self.shown = -1
        self.live = sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        percent = 100 * done // max(1, total)
        if self.quiet or percent == self.shown or (not self.live and percent % 10):
            return
        self.shown = percent
        spent = time.monotonic() - self.start
        left = spent * (total - done) / done if done else 0.0
        text = f"{self.label}: {percent:3d} %, {_duration(left)} left"
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            click.echo("\r" + text[:width].ljust(width), nl=False, err=True)
        else:
            click.echo(text, err=True)

    def close(self) -> None:
        """Ends the line."""
        if self.live and self.shown >= 0:
            click.echo(err=True)


def _printable(text: object) -> str:
    """Text with undecodable bytes of file names replaced, which no terminal would take."""
    return str(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _template(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Refuses a template that would lose stems or leave the output folder."""
    try:
        parsed = [field for field in string.Formatter().parse(value) if field[1] is not None]
    except ValueError as error:
        raise click.BadParameter(f"'{value}' is not a template: {error}") from error
    fields = [name for _, name, _, _ in parsed]
    unknown = [name for name in fields if name not in FIELDS]
    if unknown:
        known = ", ".join("{" + name + "}" for name in FIELDS)
        raise click.BadParameter(f"unknown field {{{unknown[0]}}} in '{value}'; there are {known}")
    if "stem" not in fields:
        raise click.BadParameter(f"'{value}' lacks {{stem}}: all stems would get one name")
    if any(spec or conversion for _, _, spec, conversion in parsed):
        raise click.BadParameter(f"'{value}': fields take no format, write {{stem}} alone")
    if not value.endswith((".{ext}", ".wav")):
        raise click.BadParameter(f"'{value}' must end in .{{ext}} or .wav: stems are WAV files")
    path = Path(value)
    if path.is_absolute() or ".." in path.parts:
        raise click.BadParameter(f"'{value}' must stay inside the output folder (-o)")
    return value


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="mgdm-audio")
def cli() -> None:
    """Separates music into bass, drums, guitar and piano by posterior sampling.

    \b
    mgdm-audio separate song.wav
    mgdm-audio separate *.flac -o stems --preset fast
    mgdm-audio models
    mgdm-audio evaluate true_stems separated
    """


@cli.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("separated"),
    show_default=True,
    help="Output folder.",
)
@click.option(
    "--filename",
    default=TEMPLATE,
    show_default=True,
    callback=_template,
    help="Names in the output folder; fields: " + ", ".join("{" + f + "}" for f in FIELDS) + ".",
)
@click.option("--model", default="default", show_default=True, help="Name or folder of the prior.")
@click.option(
    "--method",
    type=click.Choice(samplers.names()),
    default="mgdm",
    show_default=True,
    help="Posterior sampler.",
)
@click.option("--preset", default="default", show_default=True, help="Settings of the sampler.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    help="Same seed, same stems. By default a random one, which is reported.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "fastest", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="auto is float32 on a CPU; fastest measures whether bfloat16 is faster.",
)
@click.option(
    "--average",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Samples to average: closer to the true stems, less sharp, and N times the time.",
)
@click.option("--overwrite", is_flag=True, help="Replace stems that exist.")
@click.option("--skip-existing", is_flag=True, help="Leave out files whose stems all exist.")
@click.option("-q", "--quiet", is_flag=True, help="Only warnings and errors on stderr.")
def separate(
    files: tuple[str, ...],
    output: Path,
    filename: str,
    model: str,
    method: str,
    preset: str,
    seed: int | None,
    device: str,
    precision: str,
    average: int,
    overwrite: bool,
    skip_existing: bool,
    quiet: bool,
) -> None:
    """Separate each FILE (WAV, FLAC, OGG or MP3) into bass, drums, guitar and piano.

    The stems are WAV files with the rate, channels, length and sample format of FILE, and add up
    to it. Their paths go to standard output, everything else to standard error.
    """
    if overwrite and skip_existing:
        raise click.UsageError("--overwrite and --skip-existing exclude each other")
    if preset not in (presets := samplers.sampler_class(method).PRESETS):
        raise click.BadParameter(
            f"'{preset}' is not a preset of {method}; there are {', '.join(presets)}",
            param_hint="'--preset'",
        )
    plans = _plan(files, output, filename, model, method)
    try:
        failed = _separate_all(
            plans, model, method, preset, seed, device, precision, average,
            overwrite, skip_existing, quiet,
        )  # fmt: skip
    except KeyboardInterrupt:
        click.echo("interrupted; finished songs are kept, nothing partial is left", err=True)
        sys.exit(130)
    sys.exit(1 if failed else 0)


def _plan(
    files: tuple[str, ...], output: Path, filename: str, model: str, method: str
) -> dict[Path, dict[str, Path]]:
    """The files to write for each input, by stem; refuses names that clash."""
    plans: dict[Path, dict[str, Path]] = {}
    owners: dict[Path, Path] = {}
    for source in dict.fromkeys(map(Path, files)):
        # A file called "...wav" has the stem "..", which would lead out of the output folder.
        track = source.stem if source.stem.strip(".") else source.name.replace(".", "_")
        names = {"track": track, "ext": "wav", "model": Path(model).name, "method": method}
        plans[source] = {stem: output / filename.format(**names, stem=stem) for stem in STEMS}
        for path in plans[source].values():
            if ".." in path.relative_to(output).parts:
                raise click.UsageError(f"{path} must stay inside the output folder (-o)")
            if path in owners:
                raise click.UsageError(
                    f"{owners[path]} and {source} would both be written to {path}; "
                    "separate them into different folders (-o)"
                )
            owners[path] = source
    return plans


def _separate_all(
    plans: dict[Path, dict[str, Path]],
    model: str,
    method: str,
    preset: str,
    seed: int | None,
    device: str,
    precision: str,
    average: int,
    overwrite: bool,
    skip_existing: bool,
    quiet: bool,
) -> int:
    """Separates what can be separated; returns the number of inputs that failed."""
    from mgdm_audio import audio

    failed = 0
    todo: list[Path] = []
    for source, paths in plans.items():
        existing = [path for path in paths.values() if path.exists()]
        if skip_existing and len(existing) == len(paths):
            click.echo(_printable(f"{source}: skipped, its stems exist"), err=True)
            continue
        try:
            audio.inspect(source)
            if existing and not overwrite:
                raise audio.AudioError(
                    f"{source}: {existing[0]} exists; use --overwrite or --skip-existing"
                )
            for folder in {path.parent for path in paths.values()}:
                _check_writable(folder)
        except (audio.AudioError, OSError) as error:
            click.echo(_printable(_error(source, error)), err=True)
            failed += 1
            continue
        todo.append(source)
    if not todo:
        return failed

    from mgdm_audio.separate import Separator

    try:
        separator = Separator(
            model, method, preset, device=device, precision=precision, average=average
        )
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    for source in todo:
        progress = Progress(source.name, quiet)
        try:
            result = separator.separate(source, seed=seed, callback=progress)
            subtype = result.write(plans[source])
        except (ValueError, OSError, ArithmeticError, RuntimeError, MemoryError) as error:
            # RuntimeError is what torch raises when a device fails or has no memory left.
            click.echo(_printable(_error(source, error)), err=True)
            failed += 1
            continue
        finally:
            progress.close()
        for warning in result.warnings:
            click.echo(_printable(f"warning: {warning}"), err=True)
        if not quiet:
            _report(source, result, subtype)
        for path in plans[source].values():
            click.echo(os.fsencode(path))
    return failed


def _error(source: Path, error: BaseException) -> str:
    """One line that names the input."""
    text = " ".join(str(error).split()) or type(error).__name__
    return f"error: {text}" if text.startswith(str(source)) else f"error: {source}: {text}"


def _check_writable(folder: Path) -> None:
    """Raises OSError if nothing can be written in a folder, made or not. Leaves nothing behind."""
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise OSError(f"{folder} cannot be made, {nearest} is not a folder")
    try:
        # Permissions say too little: to root everything looks writable.
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise OSError(f"{folder} cannot be written: {error.strerror} at {nearest}") from error


def _report(source: Path, result: Separation, subtype: str) -> None:
    s, stats = result.settings, result.stats
    line = (
        f"{source}: model {s['model']} ({s['sha256'][:8]}), {s['method']} ({s['preset']}), "
        f"seed {result.seed}, {stats['calls']} network calls ({stats['vjps']} with a gradient) in "
        f"{stats['windows']} windows, {_duration(stats['seconds'])} "
        f"({stats['real_time_factor']:.1f} x real time), residual before the consistency step "
        f"{result.residual_db:.1f} dB, {subtype}"
    )
    click.echo(_printable(line), err=True)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON, with everything the configs say.")
def models(as_json: bool) -> None:
    """List the priors there are: licence, sample rate, size and score."""
    from mgdm_audio import hub

    try:
        found = hub.models()
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps([info.config for info in found], indent=2))
        return
    if not found:
        raise click.ClickException(f"no models in {', '.join(map(str, hub.search_path()))}")
    for info in found:
        score = ", ".join(f"{key} {value}" for key, value in info.score.items()) or "no score"
        click.echo(
            f"{info.name}  {info.sample_rate} Hz  {info.parameters / 1e6:.1f} M parameters  "
            f"{info.licence}\n    {info.summary}\n    {score}\n    {info.path}"
        )


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
    try:
        result = evaluate_folders(reference_dir, estimate_dir, museval=museval, callback=progress)
    except (ValueError, OSError, RuntimeError) as error:
        raise click.ClickException(str(error)) from error
    finally:
        progress.close()
    if csv is not None:
        result.to_csv(csv)
    click.echo(_json(result.to_dict()) if as_json else result.to_markdown(), nl=as_json)


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
    from mgdm_audio import checkpoint

    try:
        info, assumed = checkpoint.import_checkpoints(
            files,
            output,
            level=checkpoint.LEVEL if level is None else level,
            dtype=dtype,
            skip=skip,
            overwrite=overwrite,
        )
    except (ValueError, OSError) as error:
        raise click.ClickException(_printable(error)) from error
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
