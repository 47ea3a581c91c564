"""Scores of separated songs: a folder of estimates against a folder of references.

Every number is described in :mod:`mgdm_audio.metrics`. Songs are brought to mono (the mean of the
channels) before scoring, and the mixture is the sum of the reference stems.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mgdm_audio import STEMS, metrics
from mgdm_audio.metrics import Floats, MusevalScores, WindowScores

EXTENSIONS = (".wav", ".flac")
"""Extensions of stem files, in order of preference."""

READINGS = {
    "track_mean": "SI-SDRi, track reading (all stems of kept windows)",
    "chunk_mean": "SI-SDRi, chunk reading (2^18 samples, all stems)",
    "active_mean": "SI-SDRi, active stems, mean",
    "active_median": "SI-SDRi, active stems, median",
    "active_si_sdr": "SI-SDR, active stems, mean",
    "silent_level_db": "level where the stem is silent, dB re full scale",
    "silent_share": "share of kept windows where the stem is silent",
    "silent_estimates": "share of active windows with a silent estimate",
}
"""The rows of a summary, by key."""

_MUSEVAL = ("sdr", "isr", "sir", "sar")


@dataclass(frozen=True)
class TrackScores:
    """Scores of one track.

    Attributes:
        name: the track's name.
        stems: names of the K stems.
        sample_rate: in hertz.
        samples: its length.
        windows: scores of the kept windows of the whole track.
        chunks: scores of its full chunks, with shape (chunks, K).
        residual_db: level of the mixture less the sum of the estimates, in dB re the mixture; NaN
            where the mixture is silent.
        museval: BSS Eval scores, if they were asked for.
    """

    name: str
    stems: tuple[str, ...]
    sample_rate: int
    samples: int
    windows: WindowScores
    chunks: Floats
    residual_db: float
    museval: MusevalScores | None = None

    def summary(self) -> dict[str, Any]:
        """The track's scores by key of READINGS: see :meth:`Evaluation.summary`."""
        return _summary([self])


def evaluate_track(
    reference: ArrayLike,
    estimate: ArrayLike,
    sample_rate: int,
    *,
    name: str = "track",
    stems: Sequence[str] = STEMS,
    museval: bool = False,
) -> TrackScores:
    """Scores the stems of one track.

    Arguments:
        reference: true stems, with shape (K, T); a stem of zeros is one the track lacks.
        estimate: estimated stems, with shape (K, T).
        sample_rate: in hertz.
        name: the track's name, for tables.
        stems: names of the stems.
        museval: whether to compute BSS Eval as well (slow; needs museval and ffmpeg).

    Raises:
        ValueError: for shapes or lengths that differ, or samples that are not finite.
        RuntimeError: if BSS Eval is asked for and museval or ffmpeg is missing.
    """
    r = metrics.as_signals(reference, "the reference")
    e = metrics.as_signals(estimate, "the estimate")
    if r.ndim != 2 or len(r) != len(stems):
        raise ValueError(
            f"the reference must have shape ({len(stems)}, samples) for the stems "
            f"{', '.join(stems)}, got {r.shape}"
        )
    windows = metrics.score_windows(r, e, sample_rate)
    mixture = r.sum(0)
    residual = math.nan
    if mixture.any():
        residual = float(metrics.level_db(mixture - e.sum(0)) - metrics.level_db(mixture))
    return TrackScores(
        name=name,
        stems=tuple(stems),
        sample_rate=sample_rate,
        samples=r.shape[-1],
        windows=windows,
        chunks=metrics.chunk_scores(r, e, sample_rate),
        residual_db=residual,
        museval=metrics.museval_scores(r, e, sample_rate) if museval else None,
    )


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of tracks.

    Attributes:
        tracks: the scores of each track, in order of name.
    """

    tracks: tuple[TrackScores, ...]

    def __post_init__(self) -> None:
        if not self.tracks:
            raise ValueError("an evaluation needs at least one track, got none")
        if len({track.stems for track in self.tracks}) > 1:
            raise ValueError("the tracks of an evaluation must have the same stems")

    @property
    def stems(self) -> tuple[str, ...]:
        return self.tracks[0].stems

    def summary(self, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
        """Scores over all tracks.

        Windows (or chunks) of all tracks are pooled, then averaged; the value "all" is the plain
        mean of the stems. BSS Eval is the median over tracks of the medians over frames.

        Arguments:
            level, resamples, seed: of the bootstrap over songs, see
                :func:`~mgdm_audio.metrics.bootstrap`.

        Returns:
            Under each key of READINGS a value by stem and "all" (NaN where nothing could be
            scored); "track_interval" and "active_interval", (low, high) by stem and "all";
            "museval", by measure, if computed; "tracks", "seconds", "windows", "windows_total",
            "chunks" and "residual_db" (the worst track's, of those whose mixture is not silent).
        """
        result = _summary(self.tracks)
        scores = [track.windows for track in self.tracks]
        for key, groups in (
            ("track_interval", [s.improvement for s in scores]),
            ("active_interval", [s.masked(s.improvement) for s in scores]),
        ):
            interval = metrics.bootstrap(groups, level, resamples, seed)
            bounds = zip(interval.low.tolist(), interval.high.tolist(), strict=True)
            result[key] = dict(zip(self.stems, bounds, strict=True))
            result[key]["all"] = (interval.low_all, interval.high_all)
        return result

    def to_dict(self) -> dict[str, Any]:
        """Summary, and scores by track, ready for JSON: NaN becomes None."""
        tracks = {track.name: track.summary() for track in self.tracks}
        return {
            "stems": list(self.stems),
            "summary": _plain(self.summary()),
            "tracks": {name: _plain(row) for name, row in tracks.items()},
        }

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes one row per track and stem; cells without a value are empty."""
        measures = _MUSEVAL if self.tracks[0].museval else ()
        header = ["track", "stem", "seconds", "windows", "chunks", *READINGS]
        rows: list[list[object]] = [[*header, *(f"museval_{m}" for m in measures)]]
        for track in self.tracks:
            row = track.summary()
            for stem in track.stems:
                values = [row[key][stem] for key in READINGS]
                values += [row["museval"][m][stem] for m in measures]
                first = [track.name, stem, row["seconds"], row["windows"], row["chunks"]]
                rows.append([*first, *map(_cell, values)])
        _write_csv(Path(path), rows)

    def windows_to_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes one row per kept window: SI-SDRi of each stem and which stems are active."""
        active = [f"{stem}_active" for stem in self.stems]
        header = ["track", "start_sample", "end_sample", *self.stems, *active]
        rows: list[list[object]] = [[*header]]
        for track in self.tracks:
            w = track.windows
            for start, end, values, flags in zip(
                w.start, w.end, w.improvement, w.active, strict=True
            ):
                cells = [*map(_cell, values.tolist()), *(int(flag) for flag in flags)]
                rows.append([track.name, int(start), int(end), *cells])
        _write_csv(Path(path), rows)

    def to_markdown(self) -> str:
        """The summary as a table, then one line per track with its active-stem means."""
        summary = self.summary()
        stems = [*self.stems, "all"]
        lines = [
            f"{summary['tracks']} tracks, {summary['seconds']:.0f} s, "
            f"{summary['windows']} of {summary['windows_total']} windows kept, "
            f"{summary['chunks']} full chunks; values in dB, "
            f"in brackets the 95 % bootstrap interval over songs.",
            "",
            _line(["", *stems]),
            _line(["---"] + ["---:"] * len(stems)),
        ]
        for key, title in READINGS.items():
            intervals = summary.get(f"{key.removesuffix('_mean')}_interval", {})
            cells = [_text(summary[key][s], key, intervals.get(s)) for s in stems]
            lines.append(_line([title, *cells]))
        for measure, values in summary.get("museval", {}).items():
            cells = [_text(values[s], measure, None) for s in stems]
            lines.append(_line([f"museval {measure.upper()}, median", *cells]))
        lines += ["", _line(["SI-SDRi, active stems", *stems])]
        lines.append(_line(["---"] + ["---:"] * len(stems)))
        for track in self.tracks:
            row = track.summary()["active_mean"]
            lines.append(_line([track.name, *(_text(row[s], "", None) for s in stems)]))
        measured = [track.museval for track in self.tracks if track.museval is not None]
        if skipped := sum(len(scores.skipped) for scores in measured):
            lines += ["", f"museval left out {skipped} stems that are silent throughout."]
        if silent := sum(len(scores.silent_estimates) for scores in measured):
            lines += ["", f"{silent} estimates are silent throughout: museval SDR 0 dB."]
        return "\n".join(lines) + "\n"


def _summary(tracks: Sequence[TrackScores]) -> dict[str, Any]:
    stems = tracks[0].stems
    scores = [track.windows for track in tracks]
    improvement = np.concatenate([s.improvement for s in scores])
    active = np.concatenate([s.masked(s.improvement) for s in scores])
    silent = np.concatenate([s.masked(s.silent_estimate.astype(np.float64)) for s in scores])
    values = {
        "track_mean": metrics.nanmean(improvement),
        "chunk_mean": metrics.nanmean(np.concatenate([track.chunks for track in tracks])),
        "active_mean": metrics.nanmean(active),
        "active_median": metrics.nanmedian(active),
        "active_si_sdr": metrics.nanmean(np.concatenate([s.masked(s.si_sdr) for s in scores])),
        "silent_level_db": metrics.silent_level_db(scores),
        "silent_share": metrics.silent_share(scores),
        "silent_estimates": metrics.nanmean(silent),
    }
    residuals = [track.residual_db for track in tracks if not math.isnan(track.residual_db)]
    result: dict[str, Any] = {
        "tracks": len(tracks),
        "seconds": sum(track.samples / track.sample_rate for track in tracks),
        "windows": sum(len(s.start) for s in scores),
        "windows_total": sum(s.total for s in scores),
        "chunks": sum(len(track.chunks) for track in tracks),
        "residual_db": max(residuals, default=math.nan),
        **{key: _by_stem(stems, row) for key, row in values.items()},
    }
    measured = [track.museval for track in tracks if track.museval is not None]
    if measured:
        result["museval"] = {
            measure: _by_stem(
                stems, metrics.nanmedian(np.stack([getattr(m, measure) for m in measured]))
            )
            for measure in _MUSEVAL
        }
    return result


def _by_stem(stems: Sequence[str], values: Floats) -> dict[str, float]:
    """Values by stem, and their plain mean over the stems that have one as "all"."""
    result = dict(zip(stems, values.tolist(), strict=True))
    result["all"] = float(metrics.nanmean(values))
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _text(value: float, key: str, interval: tuple[float, float] | None) -> str:
    if math.isnan(value):
        return "-"
    if key in ("silent_share", "silent_estimates"):
        return f"{100 * value:.1f} %"
    text = f"{value:.2f}"
    if interval is not None and not math.isnan(interval[0]):
        text += f" [{interval[0]:.2f}, {interval[1]:.2f}]"
    return text


def _write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    """A table under its final name only when it is complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # Names of tracks are names of folders, which may be bytes that are no text.
        with open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def evaluate_folders(
    reference_dir: str | os.PathLike[str],
    estimate_dir: str | os.PathLike[str],
    *,
    museval: bool = False,
    callback: Callable[[int, int], None] | None = None,
    stems: Sequence[str] = STEMS,
    failed: Callable[[str, Exception], None] | None = None,
) -> Evaluation:
    """Scores a folder of separated songs.

    Each folder holds either one folder per track with the files ``bass.wav``, ``drums.wav``,
    ``guitar.wav``, ``piano.wav`` (or ``.flac``), or these files directly. A stem that the
    reference lacks is silent; one that the estimate lacks is an error.

    Arguments:
        reference_dir: the true stems.
        estimate_dir: the estimates, under the same track names; other tracks are not looked at.
        museval: whether to compute BSS Eval as well (slow; needs museval and ffmpeg).
        callback: called with (tracks done, tracks in all) after each track.
        stems: names of the stems.
        failed: told the name of a track that cannot be scored and why, the others are scored; by
            default that is an error.

    Raises:
        FileNotFoundError: for a folder, track or estimate that is not there; all are named before
            any track is scored.
        ValueError: for files that are not audio, or whose lengths or sampling rates differ; what
            their headers tell is named before any track is scored. If no track can be scored.
        RuntimeError: if BSS Eval is asked for and museval or ffmpeg is missing.
    """
    references, estimates = Path(reference_dir), Path(estimate_dir)
    for folder in (references, estimates):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder")
    wanted = ", ".join(f"{stem}.wav" for stem in stems)
    if _stem_files(references, stems):
        pairs = [(references.resolve().name, references, estimates)]
    else:
        folders = sorted(path for path in references.iterdir() if path.is_dir())
        pairs = [(f.name, f, estimates / f.name) for f in folders if _stem_files(f, stems)]
        if not pairs:
            raise FileNotFoundError(
                f"{references} holds no reference stems: expected {wanted} (or .flac), "
                f"in it or in one folder per track"
            )
    missing = [
        str(estimate / f"{stem}.wav")
        for _, _, estimate in pairs
        for stem in stems
        if stem not in _stem_files(estimate, stems)
    ]
    if missing:
        raise FileNotFoundError(
            f"estimates are missing: {_listed(missing, ', ')}; every reference track needs "
            f"an estimate of every stem ({wanted}, or .flac)"
        )
    problems = [text for _, true, guess in pairs for text in _problems(true, guess, stems)]
    if problems:
        raise ValueError(_listed(problems, "; "))
    tracks = []
    for done, (name, reference, estimate) in enumerate(pairs, start=1):
        try:
            r, e, rate = _read_track(reference, estimate, stems)
            tracks.append(evaluate_track(r, e, rate, name=name, stems=stems, museval=museval))
        except (ValueError, OSError) as error:
            if failed is None:
                raise
            failed(name, error)
        if callback is not None:
            callback(done, len(pairs))
    if not tracks:
        raise ValueError(f"none of the {len(pairs)} tracks can be scored")
    return Evaluation(tuple(tracks))


def _listed(texts: Sequence[str], separator: str) -> str:
    more = f" and {len(texts) - 4} more" if len(texts) > 4 else ""
    return separator.join(texts[:4]) + more


def _stem_files(folder: Path, stems: Sequence[str]) -> dict[str, Path]:
    """The stem files in a folder, by stem."""
    found: dict[str, Path] = {}
    for stem in stems:
        for extension in EXTENSIONS:
            if (path := folder / f"{stem}{extension}").is_file():
                found.setdefault(stem, path)
    return found


def _files(reference: Path, estimate: Path, stems: Sequence[str]) -> list[Path]:
    """The files of both sides of one track."""
    return [*_stem_files(reference, stems).values(), *_stem_files(estimate, stems).values()]


def _problems(reference: Path, estimate: Path, stems: Sequence[str]) -> Iterator[str]:
    """Why one track cannot be scored, as far as the headers of its files tell."""
    from mgdm_audio.audio import AudioError, AudioFile

    sizes = []
    for path in _files(reference, estimate, stems):
        try:
            file = AudioFile(path)
            sizes.append((path, file.sample_rate, file.declared))
        except AudioError as error:
            yield str(error)
    yield from (text for size in sizes if (text := _differ(sizes[0], size)))


def _differ(first: tuple[Path, int, int], other: tuple[Path, int, int]) -> str:
    """What differs between the rates or lengths of (path, rate, samples), "" if nothing does."""
    if other[1] != first[1]:
        return (
            f"{other[0]} is at {other[1]} Hz but {first[0]} at {first[1]} Hz; resample one of "
            "them before scoring"
        )
    if other[2] != first[2]:
        return (
            f"{other[0]} has {other[2]} samples but {first[0]} has {first[2]}; align or crop them "
            "before scoring"
        )
    return ""


def _read_track(
    reference: Path, estimate: Path, stems: Sequence[str]
) -> tuple[Floats, Floats, int]:
    """Both sides of one track, with shape (K, T), and the sampling rate they share."""
    from mgdm_audio import audio

    recordings = {path: audio.read(path) for path in _files(reference, estimate, stems)}
    sizes = [(path, r.sample_rate, r.samples.shape[-1]) for path, r in recordings.items()]
    first = sizes[0][0]
    for size in sizes:
        if text := _differ(sizes[0], size):
            raise ValueError(text)
    sides = []
    for folder in (reference, estimate):
        side = np.zeros((len(stems), recordings[first].samples.shape[-1]))
        found = _stem_files(folder, stems)
        for k, stem in enumerate(stems):
            if stem in found:
                side[k] = recordings[found[stem]].samples.mean(0, dtype=np.float64)
        sides.append(side)
    return sides[0], sides[1], recordings[first].sample_rate
