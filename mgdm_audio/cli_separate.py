"""The command ``separate``: what a user can ask for, checked, and turned into tasks."""

from __future__ import annotations

import os
import string
import sys
import tempfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mgdm_audio import STEMS, arguments, samplers
from mgdm_audio.cli_samples import ADDED, Added, run_added
from mgdm_audio.cost import QUALITIES
from mgdm_audio.terminal import error_line, printable
from mgdm_audio.tree import Input, find_inputs, track_name, work_folder

if TYPE_CHECKING:
    from mgdm_audio.files import Task
    from mgdm_audio.samplers.base import Sampler

TEMPLATE = "{track}/{stem}.{ext}"
FIELDS = ("track", "stem", "ext", "model", "method")
RESIDUAL = "residual"
OTHER = "other"
DECIDED = ("method", "preset", "average", "warm_start", "warm_sigma")
"""Options that --quality stands for."""

LEVEL = -10.0
"""Level of the other stem's prior, see :data:`mgdm_audio.other.LEVEL`, which imports torch."""


@dataclass(frozen=True)
class Request:
    """The options of ``separate``, under their names on the command line."""

    files: tuple[str, ...]
    output: Path
    filename: str
    model: str | None
    regressor: str | None
    method: str
    preset: str
    quality: str | None
    average: int
    warm_start: str | None
    warm_sigma: float | None
    independent: bool
    seed: int | None
    stems: str | None
    drop: str | None
    sums: tuple[str, ...]
    residual: bool
    other: bool
    other_level: float
    start: float
    duration: float | None
    container: str
    bits: str | None
    seams: str | None
    window: float | None
    overlap: float | None
    batch: int | None
    device: str
    precision: str
    overwrite: bool
    skip_existing: bool
    resume: bool
    report: bool
    dry_run: bool
    quiet: bool

    def settings(self) -> dict[str, Any]:
        """What decides the sampler: method, preset, samples averaged."""
        more: dict[str, Any] = {"independent": True} if self.independent else {}
        if self.regressor is not None:
            more["regressor"] = self.regressor
        if self.quality is not None:
            return {**QUALITIES[self.quality], **more}
        if self.warm_start is not None:
            more |= {"warm_start": self.warm_start, "warm_sigma": self.warm_sigma}
        return {"method": self.method, "preset": self.preset, "average": self.average, **more}

    def model_name(self) -> str:
        """Name or folder of the model that decides rate and level."""
        if self.model is not None:
            return self.model
        settings = self.settings()
        asked = samplers.get(settings["method"], settings["preset"]).needs
        return "default" if "prior" in asked else self.regressor or "regressor"


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
    if not value.endswith((".{ext}", ".wav", ".flac")):
        raise click.BadParameter(f"'{value}' must end in .{{ext}}, .wav or .flac")
    path = Path(value)
    if path.is_absolute() or ".." in path.parts:
        raise click.BadParameter(f"'{value}' must stay inside the output folder (-o)")
    return value


def _options(command: Any) -> Any:
    """The options, in the order in which --help lists them."""
    folder = click.Path(path_type=Path, file_okay=False)
    fields = ", ".join("{" + name + "}" for name in FIELDS)
    levels = "; ".join(
        f"{name}: {q['method']} from {q['warm_start']} {q['warm_sigma']:g} x {q['average']}"
        for name, q in QUALITIES.items()
    )
    for option in reversed(
        [
            click.argument("files", nargs=-1, required=True, metavar="FILE..."),
            click.option("-o", "--output", type=folder, default=Path("separated"),
                         show_default=True, help="Output folder."),
            click.option("--filename", default=TEMPLATE, show_default=True, callback=_template,
                         help=f"Names in the output folder; fields: {fields}."),
            click.option("--stems", metavar="A,B", help="Write these alone, of "
                         + ", ".join(STEMS) + "."),
            click.option("--drop", metavar="A,B", help="Write all but these."),
            click.option("--sum", "sums", multiple=True, metavar="A+B",
                         help="Write the sum of stems instead of each, as piano+guitar."),
            click.option("--residual", is_flag=True, help="Write what no stem explains as a file "
                         "of its own, instead of sharing it out."),
            click.option("--other", is_flag=True, help="A fifth stem, called other, for what the "
                         "four are not: voices, strings, winds."),
            click.option("--other-level", type=arguments.Finite(-100, 20), default=LEVEL,
                         show_default=True, metavar="DB",
                         help="How much of the mix it may be beforehand, in each band."),
            click.option("--start", type=arguments.Finite(0), default=0.0, show_default=True,
                         metavar="SECONDS", help="Begin there."),
            click.option("--duration", type=arguments.Finite(0, min_open=True),
                         metavar="SECONDS", help="Separate no more than this."),
            click.option("--format", "container", type=click.Choice(["wav", "flac"]),
                         default="wav", show_default=True, help="File format."),
            click.option("--bits", type=click.Choice(["16", "24", "32", "32f", "64f"]),
                         help="Sample format; f is floating point. By default that of FILE."),
            click.option("--quality", type=click.Choice(list(QUALITIES)),
                         help=f"Instead of method, preset, average and warm start ({levels}). "
                         "The default where none of these, nor a model, is named."),
            click.option("--model", help="Name or folder of the prior, or of the regressor for the "
                         "methods that ask nothing else. By default the shipped one."),
            click.option("--regressor", metavar="NAME", help="Name or folder of the regressor "
                         "that a quality, a warm start, regressor or gibbs asks. By default "
                         f"regressor, and {QUALITIES['best']['regressor']} for the quality best."),
            click.option("--method", type=click.Choice(samplers.names()), default="mgdm",
                         help="Posterior sampler, which begins with noise unless there is a warm "
                         "start. mgdm where --quality does not decide it."),
            click.option("--preset", default="default",
                         help="Settings of the sampler; default where --quality does not decide "
                         "it."),
            click.option("--average", type=click.IntRange(1), default=1,
                         help="Samples to average: closer to the true stems, less sharp, and N "
                         "times the time. 1 where --quality does not decide it."),
            click.option("--warm-start", metavar="METHOD[:PRESET]", help="Begin with the stems of "
                         "this method, by default of its preset fast, plus noise of level "
                         "--warm-sigma."),
            click.option("--warm-sigma", type=arguments.Finite(0, min_open=True), metavar="LEVEL",
                         help="Noise that is added to the start: 0.03 keeps nearly all of it, 1 "
                         "little (a mix has an RMS of some 0.07)."),
            click.option("--independent", is_flag=True, help="Take the stems as independent of "
                         "each other, as ISDM does, at four times the network calls."),
            click.option("--seed", type=click.IntRange(0, 2**63 - 1),
                         help="Same seed, same stems. By default a random one, which is "
                         "reported."),
            click.option("--seams", type=click.Choice(["condition", "fade"]),
                         help="Windows are told the stems of the one before, or drawn apart and "
                         "cross-faded. By default the first, where the method can."),
            click.option("--window", type=arguments.Finite(0, min_open=True), metavar="SECONDS",
                         help="Length of a window; shorter ones need less memory."),
            click.option("--overlap", type=arguments.Finite(0), metavar="SECONDS",
                         help="What windows share, at most half of one."),
            click.option("--batch", type=click.IntRange(1), metavar="N",
                         help="Windows at a time on a GPU, by default 8; a CPU takes one."),
            click.option("--device", default="auto", show_default=True,
                         help="auto, cpu, cuda or cuda:N."),
            click.option("--precision",
                         type=click.Choice(["auto", "fastest", "float32", "bfloat16"]),
                         default="auto", show_default=True,
                         help="auto is bfloat16 where the processor has it; fastest measures "
                         "what is faster."),
            click.option("--overwrite", is_flag=True, help="Replace stems that exist."),
            click.option("--skip-existing", is_flag=True,
                         help="Leave out files whose stems all exist."),
            click.option("--resume", is_flag=True, help="Go on from the finished windows of an "
                         "interrupted call, and leave out what is done."),
            click.option("--json", "report", is_flag=True, help="Write a report beside the stems: "
                         "settings, seed, model, versions, residual, calls, times."),
            click.option("--dry-run", is_flag=True,
                         help="Print what would be done and about how long it would take."),
            click.option("-q", "--quiet", is_flag=True,
                         help="Only warnings and errors on stderr."),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


def _added_options(command: Any) -> Any:
    """Options that ask for more than one separation, see `mgdm_audio.cli_samples`."""
    for option in reversed(ADDED):
        command = option(command)
    return command


@click.command()
@_options
@_added_options
def separate(**options: Any) -> None:
    """Separate each FILE (WAV, FLAC, OGG or MP3) into bass, drums, guitar and piano.

    A folder stands for the files below it, whose places it keeps, and a pattern for what matches
    it. The stems have the rate, channels, length and sample format of FILE, and add up to it. Their
    paths go to standard output, everything else to standard error. Exit codes: 0 all done, 1 a file
    failed, 2 wrong usage, 130 interrupted.

    \b
    mgdm-audio separate song.wav
    mgdm-audio separate album/ "live/**/*.flac" -o stems --quality fast
    mgdm-audio separate song.wav --sum piano+guitar --format flac --start 60 --duration 30
    """
    added = Added(**{name: options.pop(name) for name in Added.__dataclass_fields__})
    request = Request(**options)
    with arguments.reported():
        check_options(request)
        sys.exit(run_added(request, added) if added.any else _run(request))


def _run(request: Request) -> int:
    """Does what was asked; returns the exit code."""
    check_regressor(request)
    request = with_quality(request)
    names = output_names(request)
    inputs, errors = find_inputs(request.files, request.output)
    tasks = plan(request, names, inputs)
    for argument, error in errors:
        click.echo(printable(error_line(argument, error)), err=True)

    from mgdm_audio import run

    return run.run(request, tasks, failed=[argument for argument, _ in errors])


def _named(*options: str) -> list[str]:
    """Those of the options that stand on the command line."""
    source = click.get_current_context().get_parameter_source
    return [name for name in options if source(name) is click.core.ParameterSource.COMMANDLINE]


def with_quality(request: Request) -> Request:
    """The request, of default quality where the command line decides nothing of it."""
    if request.quality is None and not _named("model", *DECIDED):
        return replace(request, quality="default")
    return request


def check_options(request: Request) -> None:
    """Refuses options that exclude each other."""
    if request.overwrite + request.skip_existing + request.resume > 1:
        raise click.UsageError("--overwrite, --skip-existing and --resume exclude each other")
    if request.quality is not None and (named := _named(*DECIDED)):
        name = named[0].replace("_", "-")
        raise click.UsageError(f"--quality decides --{name}; give one of them")
    if (request.warm_start is None) != (request.warm_sigma is None):
        raise click.UsageError("--warm-start and --warm-sigma go together; give both")
    if _named("other_level") and not request.other:
        raise click.UsageError("--other-level needs --other, the stem whose level it is")
    arguments.check_preset(request.method, request.preset)
    if request.warm_start is not None:
        _first(request.warm_start)
    if request.independent:
        if "prior" not in samplers.get(request.method, request.preset).needs:
            message = f"--independent needs a prior, which {request.method} does not ask"
            raise click.UsageError(message)
        if request.other:
            raise click.UsageError("--independent and --other exclude each other")
    if not request.filename.endswith((".{ext}", "." + request.container)):
        raise click.BadParameter(
            f"'{request.filename}' does not end like a {request.container} file (--format); end "
            "it in .{ext}",
            param_hint="'--filename'",
        )
    if request.container == "flac" and request.bits not in (None, "16", "24"):
        raise click.BadParameter("flac has 16 or 24 bits", param_hint="'--bits'")


def check_regressor(request: Request) -> None:
    """Refuses a regressor that nothing would ask."""
    if request.regressor is None:
        return
    settings = with_quality(request).settings()
    asked = samplers.get(settings["method"], settings["preset"]).needs
    if request.model is not None and "prior" not in asked:
        raise click.UsageError(
            f"--model and --regressor are the same for {request.method}; give one of them"
        )
    if settings.get("warm_start") is not None:
        asked += _first(settings["warm_start"]).needs
    if "regressor" not in asked:
        raise click.UsageError(
            f"--regressor needs what asks one, and {request.method} does not: --quality, a warm "
            "start, or --method regressor or gibbs"
        )


def _first(warm_start: str) -> Sampler:
    """The sampler that a warm start names."""
    method, _, preset = warm_start.partition(":")
    try:
        return samplers.get(method, preset or "fast")
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--warm-start'") from error


def output_names(request: Request) -> list[str]:
    """What is written for each file: stems, and sums of them joined by ``+``."""

    known = [*STEMS, *([OTHER] if request.other else [])]

    def chosen(text: str | None, option: str, separator: str = ",") -> list[str]:
        names = [name.strip() for name in (text or "").split(separator) if name.strip()]
        unknown = [name for name in names if name not in known]
        if unknown or len(set(names)) < len(names):
            raise click.BadParameter(
                f"got '{text}', expected different stems of {', '.join(known)}",
                param_hint=f"'--{option}'",
            )
        return names

    names = chosen(request.stems, "stems") or known
    dropped = chosen(request.drop, "drop")
    names = [name for name in names if name not in dropped]
    for text in request.sums:
        parts = chosen(text, "sum", "+")
        if len(parts) < 2:
            raise click.BadParameter(
                f"got '{text}', expected stems joined by +, such as piano+guitar",
                param_hint="'--sum'",
            )
        names = [name for name in names if name not in parts] + ["+".join(parts)]
    if request.residual:
        names.append(RESIDUAL)
    if not names:
        raise click.UsageError("--stems, --drop and --sum leave nothing to write")
    return list(dict.fromkeys(names))


def plan(request: Request, names: Sequence[str], inputs: Sequence[Input]) -> list[Task]:
    """The files to write for each input; refuses names that clash."""
    from mgdm_audio.files import Task

    tasks: list[Task] = []
    sources = {item.path.resolve() for item in inputs}
    owners: dict[Path, Path] = {}
    for item in inputs:
        fields = {
            "track": track_name(item.path),
            # Of "./" the folder's own name, and of a link the link's.
            "model": os.path.basename(os.path.abspath(request.model_name())),
            "method": request.settings()["method"],
        }

        def path(
            stem: str, ext: str, template: str = request.filename, fields: Any = fields,
            folder: Path = item.folder,
        ) -> Path:  # fmt: skip
            return request.output / folder / template.format(**fields, stem=stem, ext=ext)

        outputs = {name: path(name, request.container) for name in names}
        report = path("report", "json").with_suffix(".json") if request.report else None
        targets = [*outputs.values(), *([report] if report else [])]
        for target in targets:
            if ".." in target.relative_to(request.output).parts:
                raise click.UsageError(f"{target} must stay inside the output folder (-o)")
        claim(owners, sources, item.path, targets)
        # Only the option is a template: what the user's folders are called is no part of it.
        pattern = request.filename.format(**fields, stem="*", ext="*")
        work = work_folder(request.output, str(item.folder / pattern))
        tasks.append(Task(item.path, outputs, work, report))
    return tasks


def claim(
    owners: dict[Path, Path], sources: Collection[Path], path: Path, targets: Iterable[Path]
) -> None:
    """Notes what is written for a file; refuses what another file writes, and what is read."""
    for target in targets:
        if target in owners:
            raise click.UsageError(
                f"{owners[target]} and {path} would both be written to {target}; separate them "
                "into different folders (-o)"
            )
        if target.resolve() in sources:
            raise click.UsageError(
                f"{target} is one of the files that are read; choose another output folder (-o)"
            )
        owners[target] = path


def check_writable(folder: Path) -> None:
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


def existing(task: Task) -> list[Path]:
    """Those of a task's files that are there."""
    every = [*task.outputs.values(), *([task.report] if task.report else [])]
    return [path for path in every if os.path.lexists(path)]
