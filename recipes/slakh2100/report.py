"""Writes the table "published / here" into README.md, from evaluate.py's results.

It has all presets of this recipe, and those of your own that are named.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parents[2]))

from mgdm_audio import STEMS
from recipes.slakh2100.evaluate import RESULTS
from recipes.slakh2100.presets import Preset, load_preset, names

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- table: report.py -->", "<!-- end of table -->"


def cell(paper: float | None, here: float | None) -> str:
    """ "paper | here" of one number; a dash where one is not known."""
    left, right = (("-" if value is None else f"{value:.2f}") for value in (paper, here))
    return f"{left} / {right}"


def table(presets: dict[str, Preset], results: dict[str, dict[str, Any]]) -> str:
    """The table in Markdown: a line a preset, each number as published / as measured here."""
    lines = [
        "SI-SDR improvement in dB, published / measured here:",
        "",
        "| preset | reading | " + " | ".join([*STEMS, "all"]) + " | tracks, chunks | calls | s |",
        "| --- | --- |" + " ---: |" * 8,
    ]
    for name, preset in presets.items():
        result = results.get(name)
        here = result["here"] if result else {}
        numbers = [cell(preset.paper.get(stem), here.get(stem)) for stem in (*STEMS, "all")]
        cost = ["-", "-", "-"]
        if result:
            part = f"{result['tracks']}, {result['chunks']}"
            if result["missing"]:
                part += f" ({result['missing']} tracks missing)"
            cost = [
                part, f"{result['calls_per_chunk']:.0f}", f"{result['seconds_per_chunk']:.1f}"
            ]  # fmt: skip
        row = [f"`{name}` {preset.title}", preset.reading, *numbers, *cost]
        lines.append("| " + " | ".join(row) + " |")
    done = [f"`{name}`: model {r['model']} ({r['sha256'][:8]}), {r['list']} {r['split']}"
            for name, r in results.items()]  # fmt: skip
    lines += ["", "Calls and seconds are per chunk of 11.9 s. " + "; ".join(done)]
    return "\n".join(lines).rstrip() + "\n"


def insert(text: str, content: str) -> str:
    """A text with what stands between the marks replaced.

    Raises:
        ValueError: if a mark is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the text must hold the lines '{BEGIN}' and '{END}'")
    return f"{before}{BEGIN}\n{content}{END}{after}"


@click.command(help=__doc__)
@click.argument("presets", nargs=-1)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default="here")
@click.option("--readme", type=click.Path(path_type=Path), default=README, show_default="here")
def main(presets: tuple[str, ...], results: Path, readme: Path) -> None:
    try:
        # Whatever is asked for: what was measured before stays in the table.
        chosen = {Path(name).stem: load_preset(name) for name in (*names(), *presets)}
        found = {
            name: json.loads((results / f"{name}.json").read_text())
            for name in chosen
            if (results / f"{name}.json").is_file()
        }
        text = insert(readme.read_text(), table(chosen, found))
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    part = readme.with_name(f".{readme.name}.{os.getpid()}")
    part.write_text(text)
    os.replace(part, readme)
    click.echo(table(chosen, found))


if __name__ == "__main__":
    main()
