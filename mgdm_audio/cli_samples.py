"""Options of ``separate`` that make more of a song than its stems: samples, pages, known stems."""

from __future__ import annotations

__all__ = ["ADDED", "Added", "run_added"]

import functools
import os
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mgdm_audio import STEMS, arguments, samplers
from mgdm_audio.terminal import Progress, error_line, printable, warning_line
from mgdm_audio.tree import Input, find_inputs, track_name

if TYPE_CHECKING:
    from mgdm_audio.cli_separate import Request
    from mgdm_audio.uncertainty import Uncertainty

_TAKEN = (
    "files", "output", "model", "regressor", "method", "preset", "quality", "average", "warm_start",
    "warm_sigma", "seed", "window", "overlap", "batch", "device", "precision", "overwrite", "quiet",
)  # fmt: skip
"""Options of ``separate`` that go with those below."""

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
                 "result; with several samples, how sure it is. This and the options above write "
                 "whole stems as WAV. Of the other options they go with "
                 + ", ".join("--" + name.replace("_", "-") for name in _TAKEN if name != "files")
                 + " alone "
                 "(--average with --report, where nothing else is asked)."),
]  # fmt: skip
"""Options of ``separate``, in the order in which --help lists them."""

_SUM = 1e-3
"""How far stems that --redo starts from may miss their song, of its peak: they may have 16 bits."""


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


@dataclass(frozen=True)
class _Asked:
    """The options above, read.

    Attributes:
        seeds: of the draws.
        known: files of the stems that are there.
        also: files of further mixes, and their gains.
        redo: seconds that are drawn anew, and the folder with the stems.
        page: whether a page is written.
    """

    seeds: list[int]
    known: dict[str, Path]
    also: list[tuple[Path, list[float]]]
    redo: tuple[float, float, Path] | None
    page: bool

    def files(self, folder: Path, names: Sequence[str]) -> list[Path]:
        """What is written for a song: the stems of each draw, those of the mean, and the rest."""
        sets = [""] if len(self.seeds) == 1 else [*(f"seed-{s}" for s in self.seeds), "mean"]
        paths = [folder / one / f"{name}.wav" for one in sets for name in names]
        if len(self.seeds) > 1:
            paths.append(folder / "uncertainty.json")
        return [*paths, folder / "report.html"] if self.page else paths


def run_added(request: Request, added: Added) -> int:
    """Does what ``separate`` does with the options above; returns the exit code."""
    from mgdm_audio.cli_separate import check_writable, claim

    asked = _asked(request, added)
    inputs, errors = find_inputs(request.files, request.output)
    if len(inputs) > 1:
        for flag, given in (("also", asked.also), ("known", asked.known), ("redo", asked.redo)):
            if given:
                raise click.UsageError(f"--{flag} takes one FILE, whose recordings it names")
    for argument, reason in errors:
        click.echo(printable(error_line(argument, reason)), err=True)
    failed = len(errors)
    todo: list[tuple[Path, Path]] = []
    owners: dict[Path, Path] = {}
    read = {item.path.resolve() for item in inputs}
    read |= {path.resolve() for path in (*asked.known.values(), *(path for path, _ in asked.also))}
    for item in inputs:
        claim(owners, read, item.path, asked.files(_folder(request, item), STEMS))
    if asked.redo is not None:  # stems may be drawn anew in their place
        read |= {(asked.redo[2] / f"{name}.wav").resolve() for name in STEMS}
    for item in inputs:
        folder = _folder(request, item)
        try:
            if folder.is_dir() and any(folder.iterdir()) and not request.overwrite:
                raise OSError(f"{folder} is not empty; use --overwrite")
            check_writable(folder)
        except OSError as error:
            click.echo(printable(error_line(item.path, error)), err=True)
            failed += 1
            continue
        todo.append((item.path, folder))
    if not todo:
        return 1
    separator, measured = _separator(request, added)
    for file, folder in todo:
        progress = Progress(file.name, request.quiet)
        try:
            written, warnings = _separate(separator, measured, file, folder, asked, progress)
        except KeyboardInterrupt:
            progress.close()
            click.echo("\ninterrupted; finished songs are kept, nothing partial is left", err=True)
            return 130
        except (ValueError, OSError, ArithmeticError, RuntimeError, MemoryError) as error:
            progress.close()
            click.echo(printable(error_line(file, error)), err=True)
            failed += 1
            continue
        finally:
            progress.close()
        for warning in warnings:
            click.echo(printable(warning_line(file, warning)), err=True)
        if request.overwrite:
            _tidy(folder, {path.resolve() for path in written} | read)
        if not request.quiet:
            made = separator.describe()
            text = f"{file}: {made['method']} ({made['preset']}), seeds {_ranges(asked.seeds)}"
            click.echo(printable(text), err=True)
        for path in written:
            click.echo(os.fsencode(path))
    return 1 if failed else 0


def _folder(request: Request, item: Input) -> Path:
    return request.output / item.folder / track_name(item.path)


def _asked(request: Request, added: Added) -> _Asked:
    """The options, checked against each other."""
    context = click.get_current_context()
    for name in context.params:
        given = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if given and name not in _TAKEN and name not in Added.__dataclass_fields__:
            flag = next(p.opts[0] for p in context.command.params if p.name == name)
            raise click.UsageError(
                f"{flag} does not go with --samples, --seeds, --known, --also, --redo and --report"
            )
    if (added.redo is None) != (added.stems_from is None):
        raise click.UsageError("--redo and --from go together: what to draw anew, and of what")
    if sum(map(bool, (added.known, added.also, added.redo))) > 1:
        raise click.UsageError("--known, --also and --redo exclude each other")
    redo = None
    if added.redo is not None and added.stems_from is not None:
        redo = (*arguments.interval(added.redo), added.stems_from)
    return _Asked(
        _seeds(added, request.seed),
        arguments.pairs(added.known),
        [arguments.gains(text) for text in added.also],
        redo,
        added.page,
    )


def _separate(
    separator: Any,
    measured: float,
    file: Path,
    folder: Path,
    asked: _Asked,
    progress: Progress,
) -> tuple[list[Path], list[str]]:
    """What was written, all of it or nothing, and what the user should know of it."""
    import numpy as np

    from mgdm_audio import audio, write
    from mgdm_audio.conditional import redo, separate_known, separate_pair, whole_stems
    from mgdm_audio.uncertainty import assess

    recording = audio.read(file)
    mix, rate, seeds = recording.samples, recording.sample_rate, asked.seeds
    names, whole = list(separator.prior.stems), mix
    facts: dict[str, Any] = {}
    found: tuple[str, ...] = ()
    stacks = []
    if asked.redo is not None:
        start, stop, place = asked.redo
        stems = {name: arguments.stem(place / f"{name}.wav", rate) for name in STEMS}
        base = np.stack([stems[name] for name in names])
        whole = base.sum(0)
        off = np.abs(whole - mix).max() if whole.shape == mix.shape else np.inf
        if not off <= _SUM * np.abs(mix).max():
            raise ValueError(f"the stems in {place} are not of this song: they do not add up to it")
        result = redo(separator, stems, start, stop, rate, seeds, callback=progress)
        settings, found = result.settings | {"redo": f"{start:g}-{stop:g}"}, result.warnings
        for draw in result.draws:
            new = np.stack([draw[name] for name in names])
            # The change alone: where there is none, stems of any precision are what they were.
            change = new - base.astype(np.float32)
            stacks.append(np.where(change == 0, base, base + change))
    elif asked.known:
        given = {name: arguments.stem(path, rate) for name, path in asked.known.items()}
        result = separate_known(separator, mix, given, rate, seeds, progress)
        stacks, found = [whole_stems(x, given, mix) for x in result.draws], result.warnings
        settings = result.settings | {"known": {n: str(p) for n, p in asked.known.items()}}
    elif asked.also:
        mixes = [mix, *(arguments.stem(path, rate) for path, _ in asked.also)]
        gains = [[1.0] * len(STEMS), *(row for _, row in asked.also)]
        result = separate_pair(separator, mixes, gains, rate, seeds, progress)
        stacks, found = [whole_stems(x, {}, mix) for x in result.draws], result.warnings
        also = [arguments.gains_text(path, row) for path, row in asked.also]
        settings = result.settings | {"also": also}
    else:
        for i, seed in enumerate(seeds):
            one = separator.separate(
                mix, rate, seed=seed,
                callback=lambda d, t, i=i: progress(i * t + d, len(seeds) * t),
            )  # fmt: skip
            facts[f"residual of seed {seed}"] = f"{one.residual_db:.1f} dB"
            found += one.warnings
            stacks.append(np.stack([np.asarray(one.stems[name]) for name in names]))
        settings = separator.describe()
    warnings = list(dict.fromkeys((*recording.warnings, *found)))
    report = {"file": str(file), "seeds": seeds, "settings": settings, **facts}
    uncertainty: Uncertainty | None = None
    if len(seeds) > 1:
        uncertainty = assess(stacks, names, rate, measured)
        stacks.append(uncertainty.mean)
        report["uncertainty"] = uncertainty.to_dict()
    paths = asked.files(folder, names)
    subtype = write.output_subtype(recording.subtype)
    with write.staged(paths) as temporary:
        rest = iter(temporary)
        for stack in stacks:
            write.fill_stems([next(rest) for _ in names], stack, whole, rate, subtype)
        if uncertainty is not None:
            arguments.write_json(next(rest), report)
        if asked.page:
            from mgdm_audio.page import page

            text = page(
                file.name, mix, dict(zip(names, stacks[-1], strict=True)), rate,
                {"seeds": seeds, **settings}, facts=facts, warnings=warnings,
                uncertainty=uncertainty,
            )  # fmt: skip
            next(rest).write_text(text, encoding="utf-8")
    return paths, warnings


def _tidy(folder: Path, needed: Collection[Path]) -> None:
    """Removes what an earlier call wrote there of other draws, which does not go with these; not
    what is needed: written now, or read."""
    drawn = [p for p in folder.iterdir() if re.fullmatch(r"seed-\d+|mean", p.name) and p.is_dir()]
    places = [folder, *drawn]
    names = [f"{name}.wav" for name in STEMS]
    old = [place / name for place in places for name in names]
    for path in (*old, folder / "uncertainty.json", folder / "report.html"):
        if path.resolve() not in needed and not path.is_dir():
            path.unlink(missing_ok=True)
    for place in drawn:
        with suppress(OSError):  # something else lies there, or it is a link
            place.rmdir()


def _ranges(seeds: Sequence[int]) -> str:
    """Seeds as --seeds takes them."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _separator(request: Request, added: Added) -> tuple[Any, float]:
    """The separator that was asked for, or the one that suits the task; and its spread over its
    error, where that was measured."""
    from mgdm_audio.cli_separate import check_regressor, with_quality
    from mgdm_audio.posterior import DEFAULTS, SPREAD_OVER_ERROR, separator_for
    from mgdm_audio.run import window_sizes
    from mgdm_audio.separate import Separator

    source = click.get_current_context().get_parameter_source
    named = {
        name
        for name in ("quality", "method", "preset", "average", "warm_start", "warm_sigma")
        if source(name) is click.core.ParameterSource.COMMANDLINE
    }
    several = added.samples is not None or added.seeds is not None
    asked = {"samples": several, "redo": added.redo, "known": added.known, "also": added.also}
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
    with arguments.made():
        separator = make(request.model, **options, **window_sizes(request))
    own = request.model is None and request.regressor is None
    usual = "preset" not in named or request.preset == DEFAULTS["samples"]["preset"]
    measured = task == "samples" and suits and usual and own
    return separator, SPREAD_OVER_ERROR if measured else 1.0


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
    count = added.samples or 1
    if seed + count > 2**63:
        raise click.UsageError(f"seeds go up to 2^63 - 1; there are no {count} from {seed} on")
    return list(range(seed, seed + count))
