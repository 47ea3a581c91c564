"""Commands and options that only a posterior sampler has: samples, known stems, regions, repair."""

from __future__ import annotations

__all__ = ["ADDED", "Added", "app", "generate", "repair", "run_added"]

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mgdm_audio import STEMS, arguments, samplers
from mgdm_audio.terminal import Progress, error_line, printable

if TYPE_CHECKING:
    from mgdm_audio.cli_separate import Request
    from mgdm_audio.uncertainty import Uncertainty

ADDED = [
    click.option("--samples", type=click.IntRange(2, 1000), metavar="N",
                 help="Several plausible separations, with seeds from --seed on, their mean, and "
                 "how sure each stem is."),
    click.option("--seeds", metavar="0-7", help="The same with these seeds; sample i is what its "
                 "seed alone gives."),
    click.option("--known", multiple=True, metavar="STEM=FILE",
                 help="A stem that is there already: it is kept as it is, the rest is inferred."),
    click.option("--also", multiple=True, metavar="FILE:STEM=GAIN,...", help="Another mix of the "
                 "same performance, in time with the first: an instrumental (drums=0), or one "
                 "channel of known panning. Gains are relative to the first mix, 1 if not named."),
    click.option("--redo", metavar="START-STOP", help="Draw these seconds anew and keep all else; "
                 "with --from."),
    click.option("--from", "stems_from", metavar="FOLDER",
                 type=click.Path(exists=True, file_okay=False, path_type=Path),
                 help="Folder with the stems that --redo starts from."),
    click.option("--report", "page", is_flag=True, help="Write a web page to hear and see the "
                 "result; with several samples, how sure it is."),
]  # fmt: skip
"""Options of ``separate``, in the order in which --help lists them."""

_TAKEN = (
    "files", "output", "model", "regressor", "method", "preset", "quality", "average", "warm_start",
    "warm_sigma", "seed", "window", "overlap", "batch", "device", "precision", "overwrite", "quiet",
)  # fmt: skip
"""Options of ``separate`` that go with those."""


@dataclass(frozen=True)
class Added:
    """The options above, under their names."""

    samples: int | None = None
    seeds: str | None = None
    known: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    redo: str | None = None
    stems_from: Path | None = None
    page: bool = False

    @property
    def any(self) -> bool:
        """Whether one of them was given."""
        return self != Added()


def run_added(request: Request, added: Added) -> int:
    """Does what ``separate`` does with the options above; returns the exit code."""
    context = click.get_current_context()
    for name in context.params:
        given = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if given and name not in _TAKEN and name not in Added.__dataclass_fields__:
            flag = "--" + name.replace("_", "-")
            raise click.UsageError(
                f"{flag} does not go with --samples, --seeds, --known, --also, --redo and --report"
            )
    if (added.redo is None) != (added.stems_from is None):
        raise click.UsageError("--redo and --from go together: what to draw anew, and of what")
    if sum(map(bool, (added.known, added.also, added.redo))) > 1:
        raise click.UsageError("--known, --also and --redo exclude each other")
    known, also = arguments.pairs(added.known), [arguments.gains(text) for text in added.also]
    if also and len(request.files) > 1:
        raise click.UsageError("--also takes one FILE, of which there are other mixes")
    seeds = _seeds(added, request.seed)
    failed = 0
    with arguments.reported():
        separator, measured = _separator(request, added, len(seeds))
    for file in map(Path, request.files):
        folder = request.output / (file.stem if file.stem.strip(".") else file.name)
        if folder.exists() and any(folder.iterdir()) and not request.overwrite:
            click.echo(error_line(file, OSError(f"{folder} is not empty; use --overwrite")),
                       err=True)  # fmt: skip
            failed += 1
            continue
        progress = Progress(file.name, request.quiet)
        try:
            written, warnings = _separate(
                separator, measured, file, folder, seeds, known, also, added, progress
            )
        except (ValueError, OSError, ArithmeticError, RuntimeError, MemoryError) as error:
            click.echo(printable(error_line(file, error)), err=True)
            failed += 1
            continue
        finally:
            progress.close()
        for warning in warnings:
            click.echo(printable(f"warning: {warning}"), err=True)
        for path in written:
            click.echo(printable(path))
    return 1 if failed else 0


def _separate(
    separator: Any,
    measured: float,
    file: Path,
    folder: Path,
    seeds: list[int],
    known: dict[str, Path],
    also: list[tuple[Path, list[float]]],
    added: Added,
    progress: Progress,
) -> tuple[list[Path], list[str]]:
    """What was written, and what the user should know of it."""
    import numpy as np

    from mgdm_audio import audio, write
    from mgdm_audio.conditional import redo, separate_known, separate_pair
    from mgdm_audio.uncertainty import assess

    recording = audio.read(file)
    mix, rate = recording.samples.astype(np.float32), recording.sample_rate
    facts: dict[str, Any] = {}
    found: tuple[str, ...] = ()
    if added.redo is not None and added.stems_from is not None:
        start, stop = arguments.interval(added.redo)
        stems = {name: arguments.stem(added.stems_from / f"{name}.wav", rate) for name in STEMS}
        result = redo(separator, stems, start, stop, rate, seeds, callback=progress)
        draws, settings = result.draws, result.settings | {"redo": added.redo}
        found = result.warnings
    elif known:
        given = {name: arguments.stem(path, rate) for name, path in known.items()}
        result = separate_known(separator, mix, given, rate, seeds, progress)
        draws, found = result.draws, result.warnings
        settings = result.settings | {"known": {n: str(p) for n, p in known.items()}}
    elif also:
        mixes = [mix, *(arguments.stem(path, rate) for path, _ in also)]
        gains = [[1.0] * len(STEMS), *(row for _, row in also)]
        result = separate_pair(separator, mixes, gains, rate, seeds, progress)
        draws, settings = result.draws, result.settings | {"also": list(added.also)}
        found = result.warnings
    else:
        done = []
        for i, seed in enumerate(seeds):
            one = separator.separate(
                mix, rate, seed=seed,
                callback=lambda d, t, i=i: progress(i * t + d, len(seeds) * t),
            )  # fmt: skip
            facts[f"residual of seed {seed}"] = f"{one.residual_db:.1f} dB"
            found += one.warnings
            done.append({name: np.asarray(x) for name, x in one.stems.items()})
        draws, settings = tuple(done), separator.describe()
    warnings = list(dict.fromkeys((*recording.warnings, *found)))
    names = list(draws[0])
    subtype = write.output_subtype(recording.subtype)
    written: list[Path] = []
    sets = {f"seed-{seed}": draw for seed, draw in zip(seeds, draws, strict=True)}
    uncertainty: Uncertainty | None = None
    if len(seeds) == 1:
        sets = {"": draws[0]}
    else:
        stacks = [np.stack([d[n] for n in names]) for d in draws]
        uncertainty = assess(stacks, names, rate, measured)
        sets["mean"] = dict(zip(names, uncertainty.mean, strict=True))
    shown = sets["mean"] if uncertainty is not None else draws[0]
    for name, stems in sets.items():
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        paths = [target / f"{stem}.wav" for stem in names]
        stack = np.stack([stems[stem] for stem in names])
        write.write_stems(paths, stack, stack.sum(0) if added.redo else mix, rate, subtype)
        written += paths
    report = {"file": str(file), "seeds": seeds, "settings": settings, **facts}
    if uncertainty is not None:
        report["uncertainty"] = uncertainty.to_dict()
        arguments.write_json(folder / "uncertainty.json", report)
        written.append(folder / "uncertainty.json")
    if added.page:
        from mgdm_audio.page import page, write_page

        text = page(
            file.name, mix, shown, rate, {"seeds": seeds, **settings}, facts=facts,
            warnings=warnings, uncertainty=uncertainty,
        )  # fmt: skip
        write_page(folder / "report.html", text)
        written.append(folder / "report.html")
    return written, warnings


def _common(command: Any) -> Any:
    """Options of the commands below."""
    for option in reversed([
        click.option("-o", "--output", type=click.Path(path_type=Path), required=True,
                     help="Output: a folder for generate, a file for repair."),
        click.option("--model", help="Name or folder of the prior."),
        click.option("--method", type=click.Choice(samplers.names()),
                     help="Posterior sampler; by default one that suits the task."),
        click.option("--preset", default="default", show_default=True,
                     help="Its settings, with --method."),
        click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True,
                     help="Same seed, same result."),
        click.option("--device", default="auto", show_default=True,
                     help="auto, cpu, cuda or cuda:N."),
        click.option("--precision", default="auto", show_default=True,
                     type=click.Choice(["auto", "fastest", "float32", "bfloat16"]),
                     help="auto is bfloat16 where the processor has it; fastest measures what is "
                     "faster."),
        click.option("--overwrite", is_flag=True, help="Replace what exists."),
        click.option("-q", "--quiet", is_flag=True, help="Only errors on stderr."),
    ]):  # fmt: skip
        command = option(command)
    return command


@click.command()
@click.option("--given", multiple=True, metavar="STEM=FILE", help="A stem to play along with.")
@click.option("--for", "wanted", metavar="A,B", help="Stems to write; by default all that are not "
              "given.")  # fmt: skip
@click.option("--silent", metavar="A,B", help="Stems that do not play.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=12.0,
              show_default=True, help="Length, where nothing is given.")  # fmt: skip
@click.option(
    "--level",
    type=click.FloatRange(-80, 0),
    metavar="DB",
    help="RMS level of the whole mix; by default as loud as the given stems suggest.",
)
@_common
def generate(
    given: tuple[str, ...], wanted: str | None, silent: str | None, seconds: float,
    level: float | None, output: Path, **options: Any,
) -> None:  # fmt: skip
    """Draw stems that go with given ones, or a whole song of all stems out of nothing.

    \b
    mgdm-audio generate --given bass=bass.wav --for drums -o out
    mgdm-audio generate --seconds 20 --seed 3 -o out
    """
    import numpy as np
    import soundfile as sf

    from mgdm_audio import conditional

    files = arguments.pairs(given)
    names = arguments.names(wanted) if wanted else None
    with arguments.reported():
        rates = {name: sf.info(str(path)).samplerate for name, path in files.items()}
        if len(set(rates.values())) > 1:
            raise ValueError(f"the given stems have different sample rates: {rates}")
        separator = _made(options, ("ding", "default"))
        rate = next(iter(rates.values()), separator.prior.sample_rate)
        stems = {name: arguments.stem(path, rate) for name, path in files.items()}
        progress = Progress("generating", options["quiet"])
        result = conditional.generate(
            separator, stems, seconds, rate, [options["seed"]], names,
            arguments.names(silent or ""), None if level is None else 10 ** (level / 20), progress,
        )  # fmt: skip
        progress.close()
        output.mkdir(parents=True, exist_ok=True)
        for name, x in result.draws[0].items():
            path = output / f"{name}.wav"
            if path.exists() and not options["overwrite"]:
                raise ValueError(f"{path} exists; use --overwrite")
            sf.write(path, np.atleast_2d(x).T, rate, "FLOAT")
            click.echo(printable(path))
        arguments.write_json(output / "settings.json", {
            "seed": options["seed"], "given": {n: str(p) for n, p in files.items()},
            "settings": result.settings,
        })  # fmt: skip


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--gap", multiple=True, metavar="START-STOP", help="Seconds to fill in.")
@click.option(
    "--mask",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Recording of FILE's length that is not silent where FILE is to be filled in.",
)
@click.option("--dropouts", is_flag=True, help="Fill in runs of digital silence.")
@click.option("--clipped", is_flag=True, help="Undo clipping; the level is looked for.")
@click.option("--clip-level", type=click.FloatRange(0, min_open=True), help="The level.")
@click.option("--lowpass", type=click.FloatRange(0, min_open=True), metavar="HZ",
              help="Add what is missing above this frequency.")  # fmt: skip
@click.option("--bits", type=click.IntRange(2, 16), help="Undo rounding to so many bits.")
@click.option("--stem", type=click.Choice(STEMS), help="FILE is this stem, not a mix.")
@_common
def repair(
    file: Path, gap: tuple[str, ...], mask: Path | None, dropouts: bool, clipped: bool,
    clip_level: float | None, lowpass: float | None, bits: int | None, stem: str | None,
    output: Path, **options: Any,
) -> None:  # fmt: skip
    """Repair FILE, a mix or a stem. What is not damaged stays as it is.

    Short gaps and clipping are estimated, as near to what was there as can be; with --method, and
    for all else, the repair is a draw.

    \b
    mgdm-audio repair song.wav --gap 12.5-12.8 -o fixed.wav
    mgdm-audio repair drums.wav --clipped --stem drums -o fixed.wav
    mgdm-audio repair old.wav --lowpass 4000 -o wide.wav
    """
    kinds = {
        "gap": bool(gap) or dropouts or mask is not None, "clip": clipped or clip_level is not None,
        "lowpass": lowpass is not None, "bits": bits is not None,
    }  # fmt: skip
    if sum(kinds.values()) != 1:
        raise click.UsageError(
            "say what to repair: one of --gap, --mask or --dropouts, --clipped, --lowpass, --bits"
        )
    if dropouts and (gap or mask is not None):
        raise click.UsageError("--dropouts looks for gaps; leave out --gap and --mask, or it")
    if output.exists() and not options["overwrite"]:
        raise click.ClickException(f"{output} exists; use --overwrite")
    import numpy as np
    import soundfile as sf

    from mgdm_audio import audio, hub
    from mgdm_audio import repair as repairs

    kind = next(name for name, asked in kinds.items() if asked)
    with arguments.reported():
        recording = audio.read(file)
        gaps = [arguments.interval(text) for text in gap]
        if mask is not None:
            gaps += arguments.intervals(mask, recording.sample_rate, recording.samples.shape[1])
        separator = _made(options, repairs.METHODS[kind])
        # The shipped regressor is trained for the stems of the shipped prior.
        splits = kind == "gap" and stem is None and not options["method"] and not options["model"]
        regressor = hub.load_regressor("regressor", separator.device) if splits else None
        progress = Progress(file.name, options["quiet"])
        result = repairs.repair(
            separator, recording.samples, recording.sample_rate, kind, [options["seed"]],
            stem=stem, gaps=gaps or None, level=clip_level,
            cutoff=lowpass, bits=bits, way="draw" if options["method"] else None,
            regressor=regressor, callback=progress,
        )  # fmt: skip
        progress.close()
        share = float(np.mean(result.damaged))
        output.parent.mkdir(parents=True, exist_ok=True)
        # Repaired peaks go beyond full scale: no format with integers has room for them.
        sf.write(output, result.samples[0].T, recording.sample_rate, "FLOAT", format="WAV")
    if not options["quiet"]:
        click.echo(f"{100 * share:.2f} % of the samples were in question: {result.way}",
                   err=True)  # fmt: skip
    click.echo(printable(output))


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=7860, show_default=True)
@click.option("--model", help="Name or folder of the prior.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--no-browser", is_flag=True, help="Do not open a browser.")
def app(port: int, model: str | None, device: str, no_browser: bool) -> None:
    """Open a page in the browser: drop a song, listen, draw a stem again, download.

    The page is served to this machine alone, and nothing leaves it.
    """
    from mgdm_audio import app as page

    with arguments.reported():
        page.launch(model, device, port, not no_browser)


def _separator(request: Request, added: Added, draws: int) -> tuple[Any, float]:
    """The separator that was asked for, or the one that suits the task; and its spread over its
    error, where that was measured."""
    from mgdm_audio.cli_separate import check_regressor, with_quality
    from mgdm_audio.posterior import DEFAULTS, SPREAD_OVER_ERROR, separator_for
    from mgdm_audio.separate import OVERLAP, WINDOW, Separator

    source = click.get_current_context().get_parameter_source
    named = {
        name
        for name in ("quality", "method", "preset", "average", "warm_start", "warm_sigma")
        if source(name) is click.core.ParameterSource.COMMANDLINE
    }
    asked = {"samples": draws > 1, "redo": added.redo, "known": added.known, "also": added.also}
    task = next((name for name, here in asked.items() if here), None)
    if task is not None and "average" in named:
        raise click.UsageError("--average goes with --report alone: what is drawn here is a sample")
    suits = task is not None and named <= {"preset"}
    if not suits or request.model is not None:
        check_regressor(request)  # what suits a task begins with one, unless a prior is named
    options = {"device": request.device, "precision": request.precision, "batch": request.batch}
    if request.regressor is not None:
        options["regressor"] = request.regressor
    make: Any = Separator
    if task is None:
        options |= with_quality(request).settings()
    elif suits:
        make = functools.partial(separator_for, task)
        if named:
            options["preset"] = request.preset
            method = DEFAULTS[task]["method"]
            if request.preset not in samplers.sampler_class(method).PRESETS:
                raise click.UsageError(f"--preset {request.preset} needs --method")
    else:
        options |= request.settings() | {"average": 1}
    separator = make(request.model, **options)
    own = request.model is None and request.regressor is None
    measured = task == "samples" and not named and own
    spread = SPREAD_OVER_ERROR if measured else 1.0
    if request.window is None and request.overlap is None:
        return separator, spread
    rate = separator.prior.sample_rate
    window = WINDOW if request.window is None else round(request.window * rate)
    overlap = min(OVERLAP, window // 2)
    if request.overlap is not None:
        overlap = round(request.overlap * rate)
    return make(request.model, window=window, overlap=overlap, **options), spread


def _made(options: dict[str, Any], default: tuple[str, str]) -> Any:
    from mgdm_audio.separate import Separator

    method, preset = default
    if options["method"] is not None:
        method, preset = options["method"], options["preset"]
    return Separator(
        options["model"], method, preset, device=options["device"],
        precision=options["precision"],
    )  # fmt: skip


def _seeds(added: Added, seed: int | None) -> list[int]:
    from mgdm_audio.samples import parse_seeds

    if added.seeds is not None:
        if added.samples is not None or seed is not None:
            raise click.UsageError("--seeds excludes --samples and --seed")
        try:
            return parse_seeds(added.seeds)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="'--seeds'") from error
    if seed is None:
        from mgdm_audio.separate import draw_seed

        seed = draw_seed()
    return list(range(seed, seed + (added.samples or 1)))
