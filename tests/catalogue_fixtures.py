"""A catalogue of short songs, and a separator that costs nothing, for workers anywhere."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import soundfile as sf

from mgdm_audio import STEMS, Separator, catalogue
from mgdm_audio.engine import LocalEngine
from mgdm_audio.manifest import Manifest
from mgdm_audio.places import Place, join
from mgdm_audio.songs import find_songs
from mgdm_audio.songwork import Separate

sys.path.insert(0, str(Path(__file__).parent))

from conftest import make_prior

OPTIONS = {
    "method": "mgdm", "precision": "float32", "window": 8192, "overlap": 2048, "steps": 4,
    "repetitions": 1, "gradient_steps": ((0, 1),), "sigma_max": 1.0,
}  # fmt: skip
FILES = catalogue.Files(STEMS, seed=5)


def build(**options):
    """The separator of all workers; tuples are lists after a way through JSON."""
    return Separator(make_prior(), **options)


def write_songs(folder, count, start=0):
    """Songs of different lengths, some in folders."""
    for i in range(start, start + count):
        path = folder / (f"{i:02d}.wav" if i % 3 else f"album/{i:02d}.flac")
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(i)
        swell = 0.5 + 0.4 * np.sin(np.arange(4000 + 700 * i) / 3000)
        sf.write(path, 0.1 * rng.standard_normal(swell.size) * swell, 22050, subtype="PCM_16")
    return folder


def separate(source, output, engine=None, files=FILES, group=1, scratch=None, callback=None, **own):
    """One call of the command; returns the plan and the summary."""
    songs = find_songs(str(source), str(output))
    plan = catalogue.plan(songs, str(output), {**OPTIONS, **own}, files, group, build)
    make = Separate("cpu", 1, 1, scratch, build)
    told = callback or (lambda record, summary: None)
    return plan, catalogue.run(engine or LocalEngine(), make, plan, told)


def contents(url):
    """All stems below a run, by name."""
    place = Place(join(url, "stems"))
    files = place.read_all(sorted(place.files()))
    return {path[len(place.root) + 1 :]: content for path, content in files.items()}


def records(url):
    """The latest record of each song."""
    return Manifest(join(url, "manifest")).read()


def check_complete(url, good, bad=()):
    """Every song is there exactly once, or a failure with its reason; nothing else is left."""
    found = records(url)
    assert set(found) == {*good, *bad}
    for name, record in found.items():
        assert record.status == ("ok" if name in good else "failed"), record.error
        assert bool(record.error) == (name in bad)
    assert set(contents(url)) == {f"{name}/{stem}.wav" for name in good for stem in STEMS}
    rows = [path for path in Place(join(url, "manifest")).files() if path.endswith(".parquet")]
    assert len(rows) == 1
