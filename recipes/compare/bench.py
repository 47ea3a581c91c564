"""Runs methods on clips through the product's own :class:`mgdm_audio.Separator`, resumably.

Every posterior sample of a clip is kept in a folder (the store) as soon as it is drawn, under the
fingerprint of all that it depends on. A run that was killed goes on where it was, and one sample,
the mean of two and the mean of four come out of the same four samples: the separator is run with
``average=N`` each time, and its sampler is played back from the store.

Samples of several clips may be drawn together, which a GPU does in hardly more time than one. They
are those that are drawn alone, to the rounding of the device.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mgdm_audio import Separator, __version__, hub, samplers
from mgdm_audio.engine import Engine, LocalEngine
from mgdm_audio.evaluate import evaluate_track
from mgdm_audio.recording import in_memory
from mgdm_audio.separate import resolve_device
from mgdm_audio.song import Song
from mgdm_audio.store import MemoryStore
from recipes.compare.clips import Clip
from recipes.compare.ledger import Ledger, Scored, Spent, write_whole
from recipes.compare.tape import Tape, cost_file, forget_peak, keep, peak_mib, recorded
from recipes.parallel import results

SEEDS_A_SONG = 1000
"""Sample s of song n has the seed (n + 1) * this + s, after that of the run."""


@dataclass(frozen=True)
class Entry:
    """A method with its settings.

    Arguments:
        method: name of the sampler.
        preset: name of its preset.
        settings: what replaces settings of the preset; other options of the separator, such as
            those of a warm start, may be among them.
        note: where the settings are from, for tables.
    """

    method: str
    preset: str = "default"
    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def text(self) -> str:
        """Preset and changed settings, for people."""
        changed = [f"{key}={value}" for key, value in self.settings.items()]
        return " ".join([self.preset, *changed])


@dataclass(frozen=True, eq=False)
class Outcome:
    """Separated stems of a clip.

    Attributes:
        stems: float32 (4, T), they add up to the mixture.
        residual_db: what the sampler left of the mixture, see :class:`mgdm_audio.Separation`.
        spent: cost of all samples that went in.
    """

    stems: NDArray[np.float32]
    residual_db: float
    spent: Spent


class Failed(RuntimeError):
    """A sampler whose values were not finite."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples that are drawn together.

    Attributes:
        entry: the method.
        clips: of equal length.
        number: which sample of each clip.
    """

    entry: Entry
    clips: tuple[Clip, ...]
    number: int

    @property
    def name(self) -> str:
        """For people."""
        more = f" and {len(self.clips) - 1} more" if len(self.clips) > 1 else ""
        return f"{self.entry.method} {self.entry.note} {self.clips[0].name}{more}"


class Share:
    """What one of several processes draws, each of which counts what all of them are given.

    Arguments:
        part: which one, from 0.
        parts: of how many.
    """

    def __init__(self, part: int = 0, parts: int = 1) -> None:
        self.part = part
        self._loads = [0.0] * parts

    def take(self, costs: Sequence[float]) -> list[bool]:
        """Which pieces of work are this process's; dear ones are given away first."""
        mine = [False] * len(costs)
        for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
            part = self._loads.index(min(self._loads))
            self._loads[part] += costs[i]
            mine[i] = part == self.part
        return mine


class _OneWindow(MemoryStore):
    """The windows of a song that has one, which is what is kept last of it."""

    last: Tensor

    def put(self, name: str, value: Tensor) -> None:
        """See `mgdm_audio.store.Store.put`."""
        super().put(name, value)
        self.last = value


class Bench:
    """Methods, clips and the store.

    Arguments:
        prior: the prior of all methods.
        store: folder of the samples; it can be deleted at any time.
        regressor: the regressor of the methods that ask one; by default the shipped one.
        device, precision, batch: see :class:`mgdm_audio.Separator`.
        seed: of the run.
        say: told one line of progress at a time.
        ledger: scores that need not be drawn again; new ones are added.
        engine: where samples are drawn; workers elsewhere need the same store.
    """

    def __init__(
        self,
        prior: hub.Prior,
        store: str | Path,
        *,
        regressor: hub.Regressor | None = None,
        device: str = "auto",
        precision: str = "auto",
        batch: int | None = None,
        seed: int = 0,
        say: Callable[[str], None] = lambda line: None,
        ledger: Ledger | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.prior, self.store, self.seed, self.say = prior, Path(store), seed, say
        self.ledger = ledger or Ledger()
        self.engine: Engine = engine or LocalEngine()
        self.regressor = regressor
        self._regressors: dict[str, hub.Regressor] = {}
        self.device = resolve_device(device)
        self.options = {"device": device, "precision": precision, "batch": batch}
        self._fingerprints: dict[str, str] = {}

    def separator(self, entry: Entry, average: int = 1, batch: int | None = None) -> Separator:
        """The separator of an entry; `batch` instead of the bench's.

        Raises:
            ValueError: for a method, preset or setting that is not there or does not fit the prior.
            ModelError: if it asks a regressor and there is none.
        """
        options: dict[str, Any] = {**self.options, "regressor": self.regressor, **entry.settings}
        if batch is not None:
            options["batch"] = batch
        name = options["regressor"]
        if isinstance(name, str):
            if name not in self._regressors:
                self._regressors[name] = hub.load_regressor(name, self.device)
            options["regressor"] = self._regressors[name]
        model = self.prior if "prior" in samplers.get(entry.method).needs else None
        return Separator(model, entry.method, entry.preset, average=average, **options)

    def possible(self, entries: Iterable[Entry]) -> list[Entry]:
        """Those of the entries whose models are there; what is left out is said."""
        found = []
        for entry in entries:
            try:
                self.separator(entry)
            except hub.ModelError as error:
                self.say(f"{entry.method} {entry.note} is left out: {error}")
            else:
                found.append(entry)
        return found

    def describe(self, entry: Entry) -> dict[str, Any]:
        """All that a sample of an entry depends on but the clip."""
        separator = self.separator(entry)
        sampler = dataclasses.asdict(separator.sampler)
        asked = {}
        if "regressor" in separator.sampler.needs and separator.models.regressor is not None:
            asked["regressor"] = separator.models.regressor.sha256
        return {
            "version": __version__,
            "model": separator.prior.sha256,
            **asked,
            "method": entry.method,
            "sampler": sampler,
            # What is no setting of the sampler is one of the separator.
            "options": {k: v for k, v in entry.settings.items() if k not in sampler},
            "precision": str(separator.dtype).removeprefix("torch."),
            "seed": self.seed,
        }

    def folder(self, entry: Entry, clip: Clip) -> Path:
        """Where the samples of a clip are."""
        # The level that mixtures are brought to is the model's, but is not in its checksum.
        model = f"{self.prior.sha256[:8]}-{self.prior.level:g}"
        folder = self.store / model / f"{entry.method}-{self.fingerprint(entry)}"
        return folder / f"{clip.name}-{clip.digest[:8]}"

    def fingerprint(self, entry: Entry) -> str:
        """Of :meth:`describe`; it is the same on all devices and with all versions of torch."""
        asked = f"{entry.method} {entry.preset} {sorted(entry.settings.items())}"
        if asked not in self._fingerprints:
            text = json.dumps(self.describe(entry), sort_keys=True, default=str)
            self._fingerprints[asked] = hashlib.sha256(text.encode()).hexdigest()[:12]
        return self._fingerprints[asked]

    def done(self, entry: Entry, clip: Clip) -> int:
        """Number of samples of a clip in the store, from the first without a gap."""
        folder, count = self.folder(entry, clip), 0
        while recorded(folder, count):
            count += 1
        return count

    def failed(self, entry: Entry, clip: Clip) -> bool:
        """Whether the sampler gave values that are not finite on a clip."""
        folder = self.folder(entry, clip)
        return (folder / "failed.txt").is_file() or self.ledger.failed(self._place(folder))

    def known(self, entry: Entry, clip: Clip, count: int = 1) -> bool:
        """Whether the ledger holds the scores of the mean of `count` samples."""
        place = self._place(self.folder(entry, clip))
        return self.ledger.failed(place) or self.ledger.get(place, count) is not None

    def _place(self, folder: Path) -> str:
        """What the ledger calls a folder of the store."""
        return folder.relative_to(self.store).as_posix()

    def separate(self, entry: Entry, clip: Clip, first: int = 0, count: int = 1) -> Outcome:
        """The mean of samples `first` to `first + count - 1` of a clip, drawn where missing.

        Raises:
            Failed: if the sampler gives values that are not finite, now or when it was first run.
        """
        separator = self.separator(entry, count)
        folder = self.folder(entry, clip)
        failed = folder / "failed.txt"
        if failed.is_file():
            raise Failed(failed.read_text())
        tape = Tape(inner=separator.sampler, folder=folder, position=[first])
        separator.sampler = tape
        seed = self._seed(clip, first)
        try:
            result = separator.separate(clip.mix, self.prior.sample_rate, seed=seed)
        except FloatingPointError as error:
            self._keep_failure(folder, error)
            raise Failed(str(error)) from error
        spent = Spent()
        for s in range(first, tape.position[0]):
            spent += Spent(**json.loads(cost_file(folder, s).read_text()))
        # Drawn one by one here, the samples of a user's mean share these.
        again = (tape.position[0] - first - 1) * separator.sampler.cost().shared
        spent = dataclasses.replace(spent, calls=spent.calls - again)
        stems = np.stack([result.stems[name] for name in self.prior.stems])
        return Outcome(stems, result.residual_db, spent)

    def _seed(self, clip: Clip, number: int) -> int:
        return self.seed + (clip.song + 1) * SEEDS_A_SONG + number

    def draw(self, batch: Batch) -> list[float | str]:
        """Draws a batch into the store.

        The time that it takes, and on a device that works on a batch as a whole its calls too, are
        shared out evenly among its samples; the peak of memory is that of the batch.

        Returns:
            Of each clip the seconds, or why there is no sample.
        """
        if len(batch.clips) == 1:
            return [self._alone(batch.entry, batch.clips[0], batch.number)]
        rate, number = self.prior.sample_rate, batch.number
        separator = self.separator(batch.entry, batch=len(batch.clips))
        planned = separator.sampler.cost().calls
        drawn: dict[Clip, float | str] = {}
        clips: dict[Song, tuple[Clip, _OneWindow]] = {}
        for clip in batch.clips:
            source, _ = in_memory(clip.mix, rate)
            store = _OneWindow()
            seed = self._seed(clip, number)
            song = Song(source, separator.song_settings, seed, store, planned)
            song.scan()
            if song.jobs == 1:
                clips[song] = clip, store
            else:  # silent, or longer than a window
                drawn[clip] = self._alone(batch.entry, clip, number)
        device, n = separator.device, max(1, len(clips))
        forget_peak(device)
        start, cpu = time.monotonic(), time.process_time()
        outcomes = list(separator.run(clips))
        seconds = (time.monotonic() - start) / n
        spent = Spent(
            seconds=seconds,
            cpu_seconds=(time.process_time() - cpu) / n,
            peak_mib=peak_mib(device),
        )
        errors = []
        for song, error in outcomes:
            clip, store = clips[song]
            folder = self.folder(batch.entry, clip)
            if isinstance(error, FloatingPointError):
                self._keep_failure(folder, error)
                drawn[clip] = str(error)
            elif isinstance(error, MemoryError):  # others have it now; the sample is still missing
                drawn[clip] = str(error)
            elif error is not None:
                errors.append(error)
            else:
                cost = dataclasses.replace(spent, calls=song.calls, vjps=song.vjps)
                keep(folder, number, store.last.float().numpy(), cost)
                drawn[clip] = seconds
        if errors:
            raise errors[0]
        return [drawn[clip] for clip in batch.clips]

    def _alone(self, entry: Entry, clip: Clip, number: int) -> float | str:
        try:
            return self.separate(entry, clip, number).spent.seconds
        except Failed as error:
            return str(error)

    def _keep_failure(self, folder: Path, error: FloatingPointError) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "failed.txt", str(error).encode())

    def fill(
        self,
        jobs: Iterable[tuple[Entry, Clip, int]],
        minutes: float | None = None,
        share: Share | None = None,
        together: int = 1,
        told: Callable[[Batch], None] = lambda batch: None,
    ) -> bool:
        """Draws samples that are not in the store.

        Arguments:
            jobs: entry, clip and number of the sample.
            minutes: no sample is begun after this time.
            share: what this process draws of them. Samples that are drawn together, and all of
                those of a clip, are one process's.
            together: clips of equal length whose samples are drawn in one batch, at most.
            told: of each batch, as soon as it is in the store.

        Returns:
            Whether all of its share was drawn.
        """
        missing = []
        for batch in self._batches(list(jobs), share or Share(), together):
            left = tuple(clip for clip in batch.clips if not self._settled(batch, clip))
            if left:
                missing.append(dataclasses.replace(batch, clips=left))
        samples, done = sum(len(batch.clips) for batch in missing), 0
        start = time.monotonic()
        # Told to the workers, so that what they have begun is finished.
        until = None if minutes is None else time.time() + 60 * minutes
        draw = _Draw(self, torch.get_num_threads(), until)
        for index, outcomes in results(self.engine, draw, missing, lambda batch: batch.name):
            if outcomes is None:
                continue
            batch = missing[index]
            told(batch)
            done += len(batch.clips)
            for clip, outcome in zip(batch.clips, outcomes, strict=True):
                if isinstance(outcome, str):
                    self.say(f"{batch.entry.method} {clip.name}: {outcome}")
            if seconds := [outcome for outcome in outcomes if not isinstance(outcome, str)]:
                left_seconds = (time.monotonic() - start) / done * (samples - done)
                self.say(
                    f"{done}/{samples} {batch.name} sample {batch.number}: {sum(seconds):.1f} s, "
                    f"about {left_seconds / 60:.0f} min left"
                )
        if done < samples:
            self.say(f"out of time: {samples - done} of {samples} samples not drawn")
        return done == samples

    def _settled(self, batch: Batch, clip: Clip) -> bool:
        """Whether a sample is in the store, or known to be none."""
        folder = self.folder(batch.entry, clip)
        return recorded(folder, batch.number) or (folder / "failed.txt").is_file()

    def _batches(
        self, jobs: Sequence[tuple[Entry, Clip, int]], share: Share, together: int
    ) -> list[Batch]:
        """Jobs in batches, those of one process alone, in the order of their first ones."""
        places: dict[tuple[str, int], dict[Clip, dict[int, int]]] = {}
        entries: dict[str, Entry] = {}
        for place, (entry, clip, number) in enumerate(jobs):
            key = self.fingerprint(entry)
            entries.setdefault(key, entry)
            of_clips = places.setdefault((key, clip.stems.shape[1]), {})
            of_clips.setdefault(clip, {}).setdefault(number, place)
        units: list[tuple[str, list[Clip], dict[Clip, dict[int, int]]]] = []
        for (key, _), of_clips in places.items():
            parts = -(-len(of_clips) // together)
            listed = list(of_clips)
            cuts = [len(listed) * part // parts for part in range(parts + 1)]
            units += [(key, listed[a:b], of_clips) for a, b in pairwise(cuts)]
        units.sort(key=lambda unit: min(min(unit[2][clip].values()) for clip in unit[1]))
        costs = {key: self._cost(entry) for key, entry in entries.items()}
        mine = share.take(
            [
                costs[key] * sum(len(of_clips[clip]) * clip.seconds for clip in clips)
                for key, clips, of_clips in units
            ]
        )
        found: list[tuple[int, Batch]] = []
        for (key, clips, of_clips), own in zip(units, mine, strict=True):
            for number in sorted({n for clip in clips for n in of_clips[clip]}) if own else ():
                these = tuple(clip for clip in clips if number in of_clips[clip])
                first = min(of_clips[clip][number] for clip in these)
                found.append((first, Batch(entries[key], these, number)))
        return [batch for _, batch in sorted(found, key=lambda pair: pair[0])]

    def _cost(self, entry: Entry) -> float:
        """Of a second of sound; a vector-Jacobian product takes about as long as its call."""
        cost = self.separator(entry).sampler.cost()
        return cost.calls + cost.vjps

    def score(
        self, entry: Entry, clips: Sequence[Clip], count: int = 1, first: int = 0
    ) -> list[Scored]:
        """Scores of the mean of `count` samples of each clip that has them.

        They are in the ledger or, all of them, in the store; those of samples from the first on are
        added to the ledger.
        """
        found = []
        for clip in clips:
            folder = self.folder(entry, clip)
            place = self._place(folder)
            if (folder / "failed.txt").is_file():
                self.ledger.add_failed(place)
                continue
            scored = self.ledger.get(place, count) if first == 0 else None
            if scored is None:
                if self.done(entry, clip) < first + count:
                    continue
                try:
                    outcome = self.separate(entry, clip, first, count)
                except Failed:  # a sample so large that no sum of it is finite
                    self.ledger.add_failed(place)
                    continue
                rate = self.prior.sample_rate
                track = evaluate_track(clip.stems, outcome.stems, rate, name=clip.name)
                scored = Scored(track, outcome.residual_db, outcome.spent)
                if first == 0:
                    scored = self.ledger.add(place, count, scored)
            found.append(scored)
        return found


@dataclass(frozen=True)
class _Draw:
    """Makes workers that draw samples into the store, see :data:`mgdm_audio.engine.Make`.

    Arguments:
        bench: with which; it goes to the worker without its voice.
        threads: of a worker on a processor.
        until: seconds since the epoch after which it begins nothing, None for ever.
    """

    bench: Bench
    threads: int
    until: float | None = None

    def __call__(self) -> Callable[[Batch], list[float | str] | None]:
        """The worker: :meth:`Bench.draw`, or None where it is too late for that."""
        torch.set_num_threads(self.threads)
        return self._work

    def _work(self, batch: Batch) -> list[float | str] | None:
        late = self.until is not None and time.time() >= self.until
        return None if late else self.bench.draw(batch)

    def __getstate__(self) -> dict[str, Any]:
        silent = copy.copy(self.bench)
        silent.say, silent.engine = _nothing, LocalEngine()
        return {"bench": silent, "threads": self.threads, "until": self.until}


def _nothing(line: str) -> None:
    """Says nothing."""


def tuples(value: Any) -> Any:
    """Lists as tuples, all the way down: settings are immutable."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value
