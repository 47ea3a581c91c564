"""Scores the stems that separate.py made, in the reading of the preset and in both others.

Writes RESULTS/PRESET.json, from which report.py makes the table, RESULTS/PRESET.csv with a line a
track and stem, and RESULTS/PRESET-windows.csv with a line a window.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).parents[2]))

from mgdm_audio import STEMS
from mgdm_audio.evaluate import Evaluation, TrackScores, evaluate_track
from recipes.prior.data import FULL_SCALE, StemCorpus
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


def evaluate(preset: Preset, corpus: StemCorpus, out: Path) -> tuple[Evaluation, dict[str, Any]]:
    """Scores all tracks of a split whose stems are there.

    Returns:
        The scores, and what the report shows: numbers by stem in the three readings, bootstrap
        intervals, tracks scored, missing and too short, chunks, calls and seconds.

    Raises:
        ValueError: if there is nothing to score.
    """
    tracks, missing, short = [], [], []
    calls = seconds = 0.0
    for number, song in enumerate(corpus.songs):
        name = song["track"]
        done = out / name / DONE
        if not done.is_file():
            missing.append(name)
            continue
        record = json.loads(done.read_text())
        calls += record["calls"]
        seconds += record["seconds"]
        scores = score_track(corpus.stems(number), out / name, name)
        if scores is None:
            short.append(name)
        else:
            tracks.append(scores)
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
        **json.loads((out / RECORD).read_text()),
    }
    return evaluation, result


@click.command(help=__doc__)
@click.argument("preset")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Of prepare.py.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Of separate.py.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default="here")
def main(preset: str, data: Path, out: Path, results: Path) -> None:
    try:
        chosen = load_preset(preset)
        record = json.loads((out / RECORD).read_text())
        corpus = StemCorpus(data / record["list"] / record["split"])
        evaluation, result = evaluate(chosen, corpus, out)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    results.mkdir(parents=True, exist_ok=True)
    name = Path(preset).stem
    evaluation.to_csv(results / f"{name}.csv")
    evaluation.windows_to_csv(results / f"{name}-windows.csv")
    part = results / f".{name}.{os.getpid()}.part"
    part.write_text(json.dumps(result, indent=2) + "\n")
    os.replace(part, results / f"{name}.json")
    click.echo(evaluation.to_markdown())
    if result["missing"]:
        click.echo(f"{result['missing']} tracks have not been separated yet", err=True)


if __name__ == "__main__":
    main()
