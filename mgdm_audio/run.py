"""The work of the command ``separate``: what is to do, doing it, and saying what became of it."""

from __future__ import annotations

__all__ = ["run", "separator_options", "window_sizes"]

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mgdm_audio import arguments, audio, hub, write
from mgdm_audio.audio import AudioError, AudioFile
from mgdm_audio.cli_separate import Request, check_writable, existing
from mgdm_audio.files import Options, Result, Task, output_format, separate_files
from mgdm_audio.terminal import Progress, duration, error_line, printable, size, warning_line

if TYPE_CHECKING:
    from mgdm_audio.separate import Separator


def run(request: Request, tasks: Sequence[Task], failed: Sequence[str] = ()) -> int:
    """Separates the files of tasks, or says what that would cost.

    Arguments:
        request: the options.
        tasks: the files, none of which writes what another does.
        failed: arguments that stand for no file; they are reported by now.

    Returns:
        The exit code: 0, 1 if anything failed, 130 if the user interrupted.
    """
    states = dict.fromkeys(failed, "failed")
    todo: list[Task] = []
    for task in tasks:
        state = _state(request, task)
        if state is None:
            todo.append(task)
        else:
            states[str(task.source)] = state
    if todo:
        separator = _separator(request)
        if request.dry_run:
            _dry_run(request, separator, todo, states)
        elif _separate(request, separator, todo, states) == 130:
            return 130
    if not request.quiet and not request.dry_run and len(states) > 1:
        _summary(states)
    return 1 if "failed" in states.values() else 0


def _state(request: Request, task: Task) -> str | None:
    """What is already known to become of a task: skipped or failed, said to the user; or None."""
    there = existing(task)
    complete = len(there) == len(task.outputs) + (task.report is not None)
    if request.skip_existing and complete:
        click.echo(printable(f"{task.source}: skipped, its stems exist"), err=True)
        return "skipped"
    under_way = request.resume and task.work.exists()
    if request.resume and complete and not under_way:
        click.echo(printable(f"{task.source}: skipped, it is done"), err=True)
        return "skipped"
    try:
        audio.inspect(task.source)
        # Of a song under way, an interruption between two renamings may have left some.
        if there and not (request.overwrite or under_way):
            # Of all its files these options would have made it one to skip.
            if request.skip_existing or request.resume:
                advice = ", and others are missing; use --overwrite"
            else:
                advice = "; use --overwrite or --skip-existing"
            raise AudioError(f"{task.source}: {there[0]} exists{advice}")
        for folder in sorted({path.parent for path in task.outputs.values()}):
            check_writable(folder)
    except (AudioError, OSError) as error:
        click.echo(printable(error_line(task.source, error)), err=True)
        return "failed"
    return None


def separator_options(request: Request) -> dict[str, Any]:
    """Arguments of :class:`mgdm_audio.Separator` that a request stands for.

    Raises:
        ValueError: if there is no such model.
    """
    return {
        "model": request.model,
        "device": request.device,
        "precision": request.precision,
        "seams": request.seams,
        "residual": request.residual,
        "other": request.other_level if request.other else None,
        "batch": request.batch,
        **request.settings(),
        **window_sizes(request),
    }


def window_sizes(request: Request) -> dict[str, int]:
    """Window and overlap in samples, where the request names one of them.

    Raises:
        ValueError: if there is no such model.
    """
    from mgdm_audio.separate import OVERLAP, WINDOW
    from mgdm_audio.song import MULTIPLE

    if request.window is None and request.overlap is None:
        return {}
    rate = hub.read_config(hub.find(request.model_name())).sample_rate
    window, overlap = WINDOW, OVERLAP
    if request.window is not None:
        window = max(1, round(request.window * rate / MULTIPLE)) * MULTIPLE
        overlap = min(OVERLAP, window // 8)
    if request.overlap is not None:
        overlap = round(request.overlap * rate)
    return {"window": window, "overlap": overlap}


def _separator(request: Request) -> Separator:
    from mgdm_audio.separate import Separator

    with arguments.made():
        return Separator(**separator_options(request))


def _separate(
    request: Request, separator: Separator, todo: Sequence[Task], states: dict[str, str]
) -> int:
    options = Options(
        request.seed, request.start, request.duration, request.container, request.bits,
        request.resume,
    )  # fmt: skip
    progress: dict[Path, Progress] = {}

    def report(task: Task, done: int, total: int) -> None:
        if task.source not in progress:
            progress[task.source] = Progress(task.source.name, request.quiet)
        # Of songs that share batches, the first one stands for all.
        if next(iter(progress)) == task.source:
            progress[task.source](done, total)

    try:
        for result in separate_files(separator, todo, options, report):
            if (shown := progress.pop(result.task.source, None)) is not None:
                shown.close()
            states[str(result.task.source)] = "failed" if result.error else "separated"
            _tell(request, result)
    except KeyboardInterrupt:
        left = [task for task in todo if str(task.source) not in states]
        kept = any(task.work.exists() for task in left)
        more = "; go on with --resume" if kept else ""
        click.echo(
            f"\ninterrupted; finished songs are kept, nothing partial is left{more}", err=True
        )
        return 130
    return 0


def _tell(request: Request, result: Result) -> None:
    """Says what became of one file."""
    source = result.task.source
    if result.error is not None:
        if not isinstance(
            result.error, (ValueError, OSError, ArithmeticError, RuntimeError, MemoryError)
        ):
            raise result.error
        line = error_line(source, result.error)
        if result.kept and "--resume" not in line:
            line += " (finished windows are kept, go on with --resume)"
        click.echo(printable(line), err=True)
        return
    for warning in result.report["warnings"]:
        click.echo(printable(warning_line(source, warning)), err=True)
    if not request.quiet:
        _describe(source, result.report)
    for path in existing(result.task):
        click.echo(os.fsencode(path))


def _describe(source: object, report: dict[str, Any]) -> None:
    s, stats = report["settings"], report["stats"]
    residual = report["residual_db"]
    level = "nothing" if residual is None else f"{residual:.1f} dB"
    warm = f" from {s['warm_start']}" if "warm_start" in s else ""
    apart = ", independent stems" * s.get("independent", False)
    line = (
        f"{source}: model {s['model']} ({s['sha256'][:8]}), {s['method']} "
        f"({s['preset']}{warm}{apart}), "
        f"seed {report['seed']}, {stats['calls']} network calls ({stats['vjps']} with a gradient) "
        f"in {stats['windows']} windows, {duration(stats['seconds'])} "
        f"({stats['real_time_factor']:.2f} s a second of song), residual before the consistency "
        f"step {level}, {report['subtype']}"
    )
    click.echo(printable(line), err=True)


def _summary(states: dict[str, str]) -> None:
    width = max(len(printable(name)) for name in states)
    click.echo("", err=True)
    for name, state in states.items():
        click.echo(f"{printable(name):{width}}  {state}", err=True)
    counts = {state: list(states.values()).count(state) for state in dict.fromkeys(states.values())}
    click.echo(", ".join(f"{count} {state}" for state, count in counts.items()), err=True)


def _dry_run(
    request: Request, separator: Separator, todo: Sequence[Task], states: dict[str, str]
) -> None:
    """Prints plan and cost of each file, and the sum."""
    from mgdm_audio.cost import calibrate, estimate

    calibration = calibrate(separator, len(todo))
    total = 0.0
    for task in todo:
        try:
            file = AudioFile(task.source, request.start, request.duration)
            if not file.declared:
                raise AudioError(f"{task.source}: contains no audio after {request.start:g} s")
        except AudioError as error:
            click.echo(printable(error_line(task.source, error)), err=True)
            states[str(task.source)] = "failed"
            continue
        cost = estimate(separator, file.declared, file.sample_rate, calibration)
        subtype = output_format(file.subtype, request.container, request.bits)
        room = write.file_bytes(file.channels, file.declared, subtype) * len(task.outputs)
        total += cost.seconds or 0.0
        click.echo(
            printable(
                f"{task.source}: {duration(file.declared / file.sample_rate)}, {file.sample_rate} "
                f"Hz, {file.channels} channels; {cost.windows} windows, {cost.calls} network "
                f"calls ({cost.vjps} with a gradient), about {duration(cost.seconds or 0)}; "
                f"{len(task.outputs)} files, {request.container} {subtype}, {size(room)}"
            )
        )
        for path in [*task.outputs.values(), *([task.report] if task.report else [])]:
            click.echo(b"  " + os.fsencode(path))
    timed = (
        (calibration.call, "s a call of the prior"),
        (calibration.vjp, "s with a gradient"),
        (calibration.regressor, "s a call of the regressor"),
    )
    calls = ", ".join(f"{seconds:.2f} {what}" for seconds, what in timed if seconds)
    click.echo(f"{len(todo)} files, about {duration(total)} on {separator.device} ({calls})")
    sys.stdout.flush()
