"""Scores the stems that separate.py made, in the reading of the preset and in both others.

Writes RESULTS/PRESET.json, from which report.py makes the table, RESULTS/PRESET.csv with a line a
track and stem, and RESULTS/PRESET-windows.csv with a line a window.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).parents[2]))

from mgdm_audio import STEMS
from mgdm_audio.engine import Engine, EngineError, LocalEngine
from mgdm_audio.evaluate import Evaluation, TrackScores, evaluate_track
from recipes.parallel import chosen_engine, engine_options, results
from recipes.prior.data import FULL_SCALE, StemCorpus
from recipes.slakh2100.prepare import absent
from recipes.slakh2100.presets import Preset, load_preset
from recipes.slakh2100.separate import DONE, RATE, RECORD

RESULTS = Path(__file__).parent / "results"


def score_track(stems: np.ndarray, folder: Path, name: str) -> TrackScores | None:
    """Scores of a track's stems against its true ones, cropped to what was separated.

    Returns:
        The scores, or None for a track of which nothing was separated: it is shorter than a chunk.

    Raises:
        ValueError: if the estimates are not what separate.py wrote.
    """
    estimates = []
    for stem in STEMS:
        samples, rate = soundfile.read(folder / f"{stem}.wav", dtype="float32")
        if rate != RATE or samples.ndim != 1 or len(samples) > stems.shape[1]:
            raise ValueError(
                f"{folder / stem}.wav has {rate} Hz and shape {samples.shape}; expected one "
                f"channel at {RATE} Hz, at most {stems.shape[1]} samples"
            )
        estimates.append(samples)
    length = len(estimates[0])
    if not length:
        return None
    reference = stems[:, :length].astype(np.float64) / FULL_SCALE
    return evaluate_track(reference, np.stack(estimates), RATE, name=name)


@dataclass(frozen=True)
class Score:
    """Makes workers that score tracks, see :data:`mgdm_audio.engine.Make`.

    Arguments:
        corpus: folder of the split.
        out: folder of the estimates.
    """

    corpus: Path
    out: Path

    def __call__(self) -> Callable[[tuple[int, str]], TrackScores | None]:
        """The worker, which is given the place of a track in the split, and its name."""
        corpus = StemCorpus(self.corpus)
        return lambda track: score_track(corpus.stems(track[0]), self.out / track[1], track[1])


def evaluate(
    preset: Preset, corpus: StemCorpus, out: Path, engine: Engine | None = None
) -> tuple[Evaluation, dict[str, Any]]:
    """Scores all tracks of a split whose stems are there.

    Arguments:
        preset: that made them.
        corpus: the split.
        out: folder of the stems.
        engine: where they are scored; by default in this process.

    Returns:
        The scores, and what the report shows: numbers by stem in the three readings, bootstrap
        intervals, tracks scored, missing (of the list) and too short, chunks, calls and seconds.

    Raises:
        ValueError: if there is nothing to score, or another preset made it.
        EngineError: if a track cannot be scored.
    """
    made = json.loads((out / RECORD).read_text())
    if not made["fingerprint"].startswith(preset.fingerprint(made["sha256"]) + "-"):
        raise ValueError(
            f"the stems in {out} were not made by the preset '{preset.title}' as it is now; name "
            "the one that made them, or separate again"
        )
    found: list[tuple[int, str]] = []
    calls = seconds = 0.0
    for number, song in enumerate(corpus.songs):
        name = song["track"]
        done = out / name / DONE
        if not done.is_file():
            continue
        record = json.loads(done.read_text())
        calls += record["calls"]
        seconds += record["seconds"]
        found.append((number, name))
    make = Score(corpus.folder.resolve(), out.resolve())
    scored = dict(results(engine or LocalEngine(), make, found, lambda track: track[1]))
    in_order = [scored[i] for i in range(len(found))]
    tracks = [scores for scores in in_order if scores is not None]
    short = [name for (_, name), scores in zip(found, in_order, strict=True) if scores is None]
    names = {name for _, name in found}
    # The list's tracks that were never prepared are missing as well.
    missing = {song["track"] for song in corpus.songs} - names
    missing |= {*absent(made["list"], made["split"], names)}
    if not tracks:
        raise ValueError(f"{out} holds no separated track; run separate.py first")
    evaluation = Evaluation(tuple(tracks))
    summary = evaluation.to_dict()["summary"]
    result = {
        "title": preset.title,
        "reading": preset.reading,
        "here": summary[f"{preset.reading}_mean"],
        "track": summary["track_mean"],
        "track_interval": summary["track_interval"],
        "chunk": summary["chunk_mean"],
        "active": summary["active_mean"],
        "silent_level_db": summary["silent_level_db"],
        "residual_db": summary["residual_db"],
        "tracks": len(tracks),
        "missing": len(missing),
        "too_short": short,
        "windows": summary["windows"],
        "chunks": summary["chunks"],
        "calls_per_chunk": calls / max(1, summary["chunks"]),
        "seconds_per_chunk": seconds / max(1, summary["chunks"]),
        **made,
    }
    return evaluation, result


@click.command(help=__doc__)
@click.argument("preset")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Of prepare.py.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Of separate.py.")
@click.option(
    "--results", "target", type=click.Path(path_type=Path), default=RESULTS, show_default="here"
)
@engine_options
def main(
    preset: str, data: Path, out: Path, target: Path, engine: str, workers: int | None
) -> None:
    try:
        chosen = load_preset(preset)
        record = json.loads((out / RECORD).read_text())
        corpus = StemCorpus(data / record["list"] / record["split"])
        evaluation, result = evaluate(chosen, corpus, out, chosen_engine(engine, workers))
    except (ValueError, OSError, EngineError) as error:
        raise click.ClickException(str(error)) from error
    target.mkdir(parents=True, exist_ok=True)
    name = Path(preset).stem
    evaluation.to_csv(target / f"{name}.csv")
    evaluation.windows_to_csv(target / f"{name}-windows.csv")
    part = target / f".{name}.{os.getpid()}.part"
    part.write_text(json.dumps(result, indent=2) + "\n")
    os.replace(part, target / f"{name}.json")
    click.echo(evaluation.to_markdown())
    if result["missing"]:
        click.echo(
            f"{result['missing']} tracks of the list '{record['list']}', split "
            f"'{record['split']}', have not been separated yet",
            err=True,
        )


if __name__ == "__main__":
    # By its own name, by which workers elsewhere find what they are sent.
    from recipes.slakh2100.evaluate import main as by_name

    by_name()
