"""Commands that only a posterior sampler has: an accompaniment, a repair, and the page for both."""

from __future__ import annotations

__all__ = ["app", "generate", "repair"]

import itertools
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import click

from mgdm_audio import STEMS, arguments, samplers
from mgdm_audio.terminal import Progress, printable, warning_line


def _common(command: Any) -> Any:
    """Options of the commands below."""
    for option in reversed([
        click.option("--model", help="Name or folder of the prior."),
        click.option("--method", type=click.Choice(samplers.names()),
                     help="Posterior sampler; by default one that suits the task."),
        click.option("--preset", help="Its settings, with --method; by default the preset "
                     "default."),
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
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True,
              help="Folder of the stems, which are WAV files of 32-bit floats.")  # fmt: skip
@click.option("--for", "wanted", metavar="A,B", help="Stems to write; by default all that are not "
              "given.")  # fmt: skip
@click.option("--silent", metavar="A,B", help="Stems that do not play.")
@click.option("--seconds", type=arguments.Finite(0, min_open=True), default=12.0,
              show_default=True, help="Length, where nothing is given.")  # fmt: skip
@click.option(
    "--level",
    type=arguments.Finite(-80, 0),
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

    from mgdm_audio import audio, conditional, write
    from mgdm_audio.cli_separate import check_writable

    with arguments.reported():
        files, quiet = arguments.pairs(given), arguments.names(silent or "")
        names = arguments.names(wanted) if wanted else None
        made = _to_write(files, quiet, names)
        paths = [output / f"{name}.wav" for name in made]
        paths.append(output / "settings.json")
        there = [path for path in paths if path.exists()]
        if there and not options["overwrite"]:
            raise ValueError(f"{there[0]} exists; use --overwrite")
        check_writable(output)
        rates = {name: audio.AudioFile(path).sample_rate for name, path in files.items()}
        if len(set(rates.values())) > 1:
            raise ValueError(f"the given stems have different sample rates: {rates}")
        separator = _made(options, ("ding", "default"))
        rate = next(iter(rates.values()), separator.prior.sample_rate)
        stems = {name: arguments.stem(path, rate) for name, path in files.items()}
        progress = Progress("generating", options["quiet"])
        try:
            result = conditional.generate(
                separator, stems, seconds, rate, [options["seed"]], names,
                quiet, None if level is None else 10 ** (level / 20), progress,
            )  # fmt: skip
        finally:
            progress.close()
        with write.staged(paths) as temporary:
            for name, path in zip(made, temporary[:-1], strict=True):
                arguments.write_floats(path, np.atleast_2d(result.draws[0][name]), rate, "FLOAT")
            arguments.write_json(temporary[-1], {
                "seed": options["seed"], "given": {n: str(p) for n, p in files.items()},
                "settings": result.settings,
            })  # fmt: skip
    for warning in result.warnings:
        click.echo(printable(f"warning: {warning}"), err=True)
    for path in paths[:-1]:
        click.echo(os.fsencode(path))


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True,
              help="File of the repair, which is WAV of 32-bit floats, or 64-bit ones where FILE "
              "has more than 24 bits.")  # fmt: skip
@click.option("--gap", multiple=True, metavar="START-STOP", help="Seconds to fill in.")
@click.option(
    "--mask",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Recording of FILE's length that is not silent where FILE is to be filled in.",
)
@click.option("--dropouts", is_flag=True, help="Fill in runs of digital silence.")
@click.option("--clipped", is_flag=True, help="Undo clipping; the level is looked for.")
@click.option("--clip-level", type=arguments.Finite(0, min_open=True), help="The level.")
@click.option("--lowpass", type=arguments.Finite(0, min_open=True), metavar="HZ",
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
    if output.suffix.lower() != ".wav":
        raise click.BadParameter(
            f"'{output}' must end in .wav: a repair is a WAV file of floats",
            param_hint="'-o'",
        )
    gaps = [arguments.interval(text) for text in gap]
    import numpy as np

    from mgdm_audio import audio, hub, write
    from mgdm_audio import repair as repairs
    from mgdm_audio.cli_separate import check_writable

    kind = next(name for name, asked in kinds.items() if asked)
    with arguments.reported():
        if output.exists() and not options["overwrite"]:
            raise ValueError(f"{output} exists; use --overwrite")
        check_writable(output.parent)
        recording = audio.read(file)
        if mask is not None:
            gaps += arguments.intervals(mask, recording.sample_rate, recording.samples.shape[1])
        separator = _made(options, repairs.METHODS[kind])
        # The shipped regressor is trained for the stems of the shipped prior.
        splits = kind == "gap" and stem is None and not options["method"] and not options["model"]
        regressor = hub.load_regressor("regressor", separator.device) if splits else None
        progress = Progress(file.name, options["quiet"])
        try:
            result = repairs.repair(
                separator, recording.samples, recording.sample_rate, kind, [options["seed"]],
                stem=stem, gaps=gaps or None, level=clip_level,
                cutoff=lowpass, bits=bits, way="draw" if options["method"] else None,
                regressor=regressor, callback=progress,
            )  # fmt: skip
        finally:
            progress.close()
        share = float(np.mean(result.damaged))
        with write.staged([output]) as (path,):
            # Repaired peaks go beyond full scale: no format with integers has room for them.
            kept = result.samples[0]
            subtype = "DOUBLE" if kept.dtype == np.float64 else "FLOAT"
            arguments.write_floats(path, kept, recording.sample_rate, subtype)
    for warning in (*recording.warnings, *result.warnings):
        click.echo(printable(warning_line(file, warning)), err=True)
    if not options["quiet"]:
        click.echo(f"{100 * share:.2f} % of the samples were in question: {result.way}",
                   err=True)  # fmt: skip
    click.echo(os.fsencode(output))


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


def _to_write(
    given: Collection[str], silent: Collection[str], wanted: list[str] | None
) -> list[str]:
    """The stems that are asked for; refuses one that is to be two things."""
    roles = (("--given", given), ("--silent", silent), ("--for", wanted or ()))
    for (one, first), (other, second) in itertools.combinations(roles, 2):
        if both := [name for name in first if name in second]:
            raise click.UsageError(f"{one} and {other} both name {both[0]}; leave it out of one")
    made = wanted or [name for name in STEMS if name not in (*given, *silent)]
    if not made:
        raise click.UsageError("--given and --silent leave no stem to draw; name fewer")
    return made


def _made(options: dict[str, Any], default: tuple[str, str]) -> Any:
    from mgdm_audio.separate import Separator

    method, preset = default
    if options["method"] is not None:
        method, preset = options["method"], options["preset"] or "default"
        arguments.check_preset(method, preset)
    elif options["preset"] is not None:
        raise click.UsageError("--preset needs --method, whose settings it names")
    with arguments.made():
        return Separator(
            options["model"], method, preset, device=options["device"],
            precision=options["precision"],
        )  # fmt: skip
