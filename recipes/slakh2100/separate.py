"""Separates the tracks of a split as a preset says, chunk by chunk, and continues where it stopped.

Several processes or machines share the work with --shard 1/4, 2/4, ... into one --out folder: the
stems are the same whoever makes them, in whatever order.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from mgdm_audio import STEMS, Separator, hub
from mgdm_audio.denoise import CountingDenoiser
from mgdm_audio.draws import SeededDraws
from mgdm_audio.engine import EngineError
from mgdm_audio.models import Models
from mgdm_audio.operators import Mixture
from mgdm_audio.precision import choose_precision
from mgdm_audio.samplers.base import Problem
from mgdm_audio.separate import resolve_device
from mgdm_audio.write import clear_time_stamp
from recipes.parallel import chosen_engine, engine_options, results
from recipes.prior.data import FULL_SCALE, StemCorpus
from recipes.slakh2100.prepare import warn_of_absent
from recipes.slakh2100.presets import Preset, load_preset

RATE = 22050
RECORD = "run.json"
DONE = "done.json"
LEFT_OUT = 3
"""Exit code where all was done but tracks that broke the sampler."""

Callback = Callable[[int, int], None]


def chunk_seed(seed: int, track: int, chunk: int) -> int:
    """Seed of a chunk's draws, in [0, 2^63)."""
    state = np.random.SeedSequence([seed, track, chunk]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def mixture(stems: np.ndarray) -> np.ndarray:
    """The sum of the stems of a track, float32 (T,); int16 (4, T) with full scale at 32768."""
    return (stems.astype(np.float64).sum(0) / FULL_SCALE).astype(np.float32)


@dataclass(frozen=True)
class Work:
    """A preset with its model, ready to separate.

    Attributes:
        preset: how.
        models: the model.
        device: where.
        precision: of the network's layers.
    """

    preset: Preset
    models: Models
    device: torch.device
    precision: torch.dtype

    @classmethod
    def load(cls, preset: Preset, device: str = "auto", precision: str = "float32") -> Work:
        """Loads the preset's model.

        Raises:
            ValueError: if there is none, or it does not suit the sampler.
        """
        place = resolve_device(device)
        models = Models.load(preset.sampler(), preset.model, None, place)
        if models.main.stems != STEMS or models.main.sample_rate != RATE:
            raise ValueError(
                f"model '{models.main.name}' has the stems {models.main.stems} at "
                f"{models.main.sample_rate} Hz; expected {STEMS} at {RATE} Hz"
            )
        return cls(preset, models, place, choose_precision(place, precision))

    @property
    def fingerprint(self) -> str:
        """See `Preset.fingerprint`; the precision counts as well."""
        return f"{self.preset.fingerprint(self.models.main.sha256)}-{self.precision}"

    def chunks(
        self, mix: np.ndarray, track: int, folder: Path, callback: Callback | None = None
    ) -> tuple[np.ndarray, int, float]:
        """Stems of the full chunks of a mix, float32 (4, n * chunk), network calls and seconds.

        Groups of ``batch`` chunks are kept in ``folder`` until the track is done, with what they
        took; the groups are always the same, so that a continued run makes what an uninterrupted
        one makes.
        """
        p, sampler = self.preset, self.preset.sampler()
        count = len(mix) // p.chunk
        parts, calls, seconds = [], 0, 0.0
        for first in range(0, count, p.batch):
            numbers = range(first, min(first + p.batch, count))
            file = folder / f"{first:04d}.npy"
            took = file.with_suffix(".json")
            if not (file.is_file() and took.is_file()):
                start, denoise = time.monotonic(), CountingDenoiser(self.models.asked())
                y = np.stack([mix[n * p.chunk : (n + 1) * p.chunk] for n in numbers])
                observed = torch.from_numpy(y)[:, None].to(self.device)
                shape = (len(numbers), len(STEMS), p.chunk)
                problem = Problem(Mixture(len(STEMS)), observed, p.sigma_y, shape)
                seeds = [chunk_seed(p.seed, track, n) for n in numbers]
                half = self.precision != torch.float32
                with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                    stems = sampler.sample(denoise, problem, SeededDraws(seeds, self.device))
                drawn = stems.float().cpu().numpy()
                cost = {"calls": denoise.calls, "seconds": time.monotonic() - start}
                write_text(took, json.dumps(cost))
                write_array(file, drawn)
            cost = json.loads(took.read_text())
            calls, seconds = calls + cost["calls"], seconds + cost["seconds"]
            parts += list(np.load(file))
            if callback is not None:
                callback(numbers[-1] + 1, count)
        joined = np.concatenate(parts, axis=1) if parts else np.zeros((len(STEMS), 0), np.float32)
        return joined, calls, seconds

    def whole(self, mix: np.ndarray, track: int) -> tuple[np.ndarray, int, float]:
        """Stems of a whole mix in overlapping windows, float32 (4, T), calls and seconds."""
        p = self.preset
        separator = Separator(
            self.models.main,
            p.method,
            p.preset or "paper",
            device=self.device,
            precision="float32" if self.precision == torch.float32 else "bfloat16",
            window=p.chunk,
            overlap=p.overlap or 0,
            batch=p.batch,
            **{key: getattr(p.sampler(), key) for key in p.settings},
        )
        result = separator.separate(mix, RATE, seed=chunk_seed(p.seed, track, 0))
        stems = np.stack([np.asarray(result.stems[name], np.float32) for name in STEMS])
        return stems, int(result.stats["calls"]), float(result.stats["seconds"])


def write_array(path: Path, array: np.ndarray) -> None:
    """A file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.npy")
    np.save(part, array)
    os.replace(part, path)


def write_text(path: Path, text: str) -> None:
    """Text and a line end, in a file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text + "\n")
    os.replace(part, path)


def separate_track(
    work: Work, stems: np.ndarray, name: str, out: Path, callback: Callback | None = None
) -> dict[str, Any] | None:
    """Writes ``out/NAME/{bass,drums,guitar,piano}.wav`` (32-bit float) unless it is there.

    Returns:
        What it took, or None for a track that was done before.
    """
    target = out / name
    if (target / DONE).is_file():
        return None
    track = int(name.removeprefix("Track"))
    mix = mixture(stems)
    scratch = target / "chunks"
    if work.preset.overlap is None:
        estimate, calls, seconds = work.chunks(mix, track, scratch, callback)
    else:
        estimate, calls, seconds = work.whole(mix, track)
    target.mkdir(parents=True, exist_ok=True)
    for stem, samples in zip(STEMS, estimate, strict=True):
        part = target / f".{stem}.{os.getpid()}.wav"
        soundfile.write(part, samples, RATE, subtype="FLOAT")
        clear_time_stamp(part)
        os.replace(part, target / f"{stem}.wav")
    record = {
        "samples": int(estimate.shape[1]),
        "calls": calls,
        "seconds": seconds,
        "device": str(work.device),
    }
    write_text(target / DONE, json.dumps(record))
    shutil.rmtree(scratch, ignore_errors=True)
    return record


def claim(out: Path, work: Work, list_name: str, split: str) -> None:
    """Notes in the folder what makes its stems.

    Raises:
        ValueError: if it holds stems that were made otherwise.
    """
    record = {
        "fingerprint": work.fingerprint,
        "model": work.models.main.name,
        "sha256": work.models.main.sha256,
        "list": list_name,
        "split": split,
    }
    path = out / RECORD
    if path.is_file():
        if json.loads(path.read_text()) != record:
            raise ValueError(
                f"{out} holds stems made with other settings, another model or of another split; "
                "choose another --out, or delete it"
            )
        return
    write_text(path, json.dumps(record))


@dataclass(frozen=True)
class Tracks:
    """Makes workers that separate tracks, see :data:`mgdm_audio.engine.Make`.

    Arguments:
        preset: how.
        device, precision: see `Work.load`; it is where the worker lives that decides.
        data: folder of the data.
        name, split: of them, the list of tracks and its split.
        out: folder of the stems.
        threads: of a worker on a processor; the last bits of the stems depend on them.
        report: told a track's name, chunks done and chunks; for a worker in this process.
    """

    preset: Preset
    device: str
    precision: str
    data: Path
    name: str
    split: str
    out: Path
    threads: int = 1
    report: Callable[[str, int, int], None] | None = None

    def __call__(self) -> Callable[[tuple[int, str]], dict[str, Any] | None]:
        """The worker, which is given the place of a track in the split, and its name.

        It returns what `separate_track` does, or why a track was left out.
        """
        torch.set_num_threads(self.threads)
        work = Work.load(self.preset, self.device, self.precision)
        claim(self.out, work, self.name, self.split)
        corpus = StemCorpus(self.data / self.name / self.split)

        def separate(track: tuple[int, str]) -> dict[str, Any] | None:
            position, name = track
            report = None if self.report is None else partial(self.report, name)
            try:
                return separate_track(work, corpus.stems(position), name, self.out, report)
            except FloatingPointError as error:
                # It would come to the same again; the other tracks need not wait for it.
                return {"left_out": f"{name}: {error}"}

        return separate


def shard_of(text: str) -> tuple[int, int]:
    """This process's number, from 0, and how many share the work, of "2/4".

    Raises:
        ValueError: for anything else.
    """
    part, _, count = text.partition("/")
    if part.isdecimal() and count.isdecimal() and 1 <= int(part) <= int(count):
        return int(part) - 1, int(count)
    raise ValueError(f"got shard '{text}', expected a part of all such as 1/4")


@click.command(help=__doc__)
@click.argument("preset")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Of prepare.py.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the stems.")
@click.option("--model", help="Another model than the preset's.")
@click.option("--list", "name", default="redux", show_default=True, help="List of tracks.")
@click.option("--split", default="test", show_default=True)
@click.option("--tracks", type=int, help="The first tracks only.")
@click.option("--shard", default="1/1", show_default=True, help="This process's part of all.")
@engine_options
@click.option("--threads", default=1, show_default=True, help="Of a worker on a processor.")
@click.option("--device", default="auto", show_default=True)
@click.option("--precision", default="float32", show_default=True)
def main(
    preset: str,
    data: Path,
    out: Path,
    model: str | None,
    name: str,
    split: str,
    tracks: int | None,
    shard: str,
    engine: str,
    workers: int | None,
    threads: int,
    device: str,
    precision: str,
) -> None:
    try:
        found = load_preset(preset)
        chosen = replace(found, model=model or found.model)
        corpus = StemCorpus(data / name / split)
        hub.find(chosen.model)
        number, count = shard_of(shard)
        if not corpus.songs:
            raise ValueError(f"{corpus.folder} has no tracks; choose another --split or --list")
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    warn_of_absent(name, split, [song["track"] for song in corpus.songs])
    names = [(i, song["track"]) for i, song in enumerate(corpus.songs[:tracks])][number::count]
    start, spent, finished = time.monotonic(), 0.0, 0

    def report(track: str, chunk: int, chunks: int) -> None:
        minutes = (time.monotonic() - start) / 60
        share = (finished + chunk / chunks) / len(names)
        click.echo(
            f"{track}: {chunk} of {chunks} chunks; {100 * share:.1f} % of the tracks, "
            f"{minutes / share - minutes:.0f} min left",
            err=True,
        )

    gpus = torch.cuda.device_count() if device == "auto" else 0
    where = chosen_engine(engine, workers, threads, gpus)
    alone = engine == "local" and where.workers == 1
    told = report if alone else None
    make = Tracks(
        chosen, device, precision, data.resolve(), name, split, out.resolve(), threads, told
    )
    left_out = 0
    try:
        for index, record in results(where, make, names, lambda track: track[1]):
            finished += 1
            if record and "left_out" in record:
                click.echo(f"left out: {record['left_out']}", err=True)
                left_out += 1
            elif record:
                spent += record["seconds"]
            if not alone:
                report(names[index][1], 0, 1)
    except EngineError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{len(names) - left_out} tracks in {out}, {spent / 60:.1f} min", err=True)
    if left_out:
        click.echo(f"{left_out} tracks were left out, see above", err=True)
        sys.exit(LEFT_OUT)


if __name__ == "__main__":
    # By its own name, by which workers elsewhere find what they are sent.
    from recipes.slakh2100.separate import main as by_name

    by_name()
