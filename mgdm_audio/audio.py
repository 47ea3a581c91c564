r"""Reading, resampling, quantising and writing of audio, with libsndfile (``soundfile``).

Signals are arrays of shape (C, T), channels first and time last, with full scale at 1. Two rules
hold everywhere: nothing is allocated from what a header claims, and a file either appears complete
under its final name or not at all.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr
from numpy.typing import NDArray

__all__ = [
    "AudioError",
    "Recording",
    "inspect",
    "output_subtype",
    "quantise",
    "read",
    "resample",
    "staged",
    "write_stems",
]

ACCEPTED = "WAV, FLAC, OGG or MP3"
BLOCK = 1 << 16
"""Frames read or written at a time."""

PCM_BITS = {"PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
_SAME_OUT = {*PCM_BITS, "FLOAT", "DOUBLE"}
_DECODED_TO_FLOAT = {"VORBIS", "OPUS", "MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III"}


class AudioError(ValueError):
    """A file or an array that cannot be used as audio; the message names it and says why."""


@dataclass(frozen=True)
class Recording:
    """A decoded audio file.

    Attributes:
        samples: the signal, with shape (C, T), full scale at 1; float32, or float64 where the
            file holds more than 24 significant bits (PCM_32, DOUBLE).
        sample_rate: in hertz.
        subtype: libsndfile's name of the sample format, such as ``PCM_16``.
        warnings: what a user should know about the file, in sentences (truncation).
    """

    samples: NDArray[np.floating]
    sample_rate: int
    subtype: str
    warnings: tuple[str, ...] = ()


def inspect(path: str | os.PathLike[str]) -> None:
    """Checks that a file can be opened as audio and holds at least one frame, without decoding it.

    Raises:
        AudioError: if it is missing, unreadable, not a plain file, empty or in an unknown format.
    """
    with _opened(Path(path)):
        pass


def read(path: str | os.PathLike[str]) -> Recording:
    """Decodes a whole file.

    The frames that arrive are counted against those that the header declares, because libsndfile
    reads truncated WAV, MP3 and OGG files without complaint; a difference becomes a warning.

    Raises:
        AudioError: as :func:`inspect` does, and if the file cannot be decoded to its end, or holds
            NaN or infinite samples (with the time of the first).
    """
    path = Path(path)
    with _opened(path) as file:
        dtype = "float64" if file.subtype in ("PCM_32", "DOUBLE") else "float32"
        blocks: list[NDArray[np.floating]] = []
        frames = 0
        try:
            while True:
                block = file.read(BLOCK, dtype=dtype, always_2d=True)
                if len(block) == 0:
                    break
                _check_finite(path, block, frames, file.samplerate)
                blocks.append(block)
                frames += len(block)
        except sf.LibsndfileError as error:
            raise AudioError(
                f"{path}: cannot be decoded after {frames / file.samplerate:.3f} s "
                f"({error.error_string}); the file is damaged or truncated"
            ) from error
        if frames == 0:
            raise AudioError(f"{path}: contains no audio")
        samples = np.ascontiguousarray(np.concatenate(blocks).T)
        warnings = _truncation(path, file, frames)
        return Recording(samples, file.samplerate, file.subtype, warnings)


@contextmanager
def _opened(path: Path) -> Iterator[sf.SoundFile]:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        link = "broken symbolic link" if path.is_symlink() else error.strerror or str(error)
        raise AudioError(f"{path}: {link}") from error
    if stat.S_ISDIR(mode):
        raise AudioError(f"{path}: is a folder; give {ACCEPTED} files")
    if not stat.S_ISREG(mode):
        raise AudioError(f"{path}: is not a regular file; give a {ACCEPTED} file")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: contains no audio (the file is empty)")
    if not os.access(path, os.R_OK):
        raise AudioError(f"{path}: permission denied")
    try:
        file = sf.SoundFile(_name(path))
    except (sf.LibsndfileError, OSError, TypeError) as error:
        cause = getattr(error, "error_string", str(error)).rstrip(".")
        raise AudioError(
            f"{path}: is not a {ACCEPTED} file that can be read ({cause}); "
            f"convert it first, for example with ffmpeg"
        ) from error
    with file:
        if file.frames == 0:
            raise AudioError(f"{path}: contains no audio (0 frames)")
        yield file


def _name(path: Path) -> str | bytes:
    """A file name as soundfile takes it, also where its bytes are no text."""
    return os.fsencode(path) if os.name == "posix" else str(path)


def _check_finite(path: Path, block: NDArray[np.floating], offset: int, sample_rate: int) -> None:
    finite = np.isfinite(block)
    if finite.all():
        return
    frame, channel = np.argwhere(~finite)[0]
    raise AudioError(
        f"{path}: holds a {block[frame, channel]} sample at {(offset + frame) / sample_rate:.6f} s "
        f"(frame {offset + frame}, channel {channel + 1}); every sample must be finite"
    )


def _truncation(path: Path, file: sf.SoundFile, frames: int) -> tuple[str, ...]:
    declared = file.frames
    data = re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    if data:
        claimed, present = int(data[1]), int(data[2])
        # Programs that write to a pipe leave 0 or the largest value: no length is declared.
        if 0 < present < claimed < 0xFFFFFF00:
            # The last frame may be cut: whole bytes a frame, unless several share one (ADPCM).
            size = present // frames or present / frames
            declared = int(claimed / size)
    if frames < declared:
        rate = file.samplerate
        return (
            f"{path}: is truncated: its header declares {declared} frames "
            f"({declared / rate:.3f} s), but only {frames} ({frames / rate:.3f} s) are there",
        )
    if file.format == "OGG" and not _ends_ogg(path):
        return (
            f"{path}: is probably truncated: the stream has no end mark after the {frames} frames "
            f"({frames / file.samplerate:.3f} s) that are there",
        )
    return ()


def _ends_ogg(path: Path) -> bool:
    """Whether the last Ogg page (at most 65307 bytes long) has the flag "end of stream"."""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - 65307))
        tail = stream.read()
    page = tail.rfind(b"OggS")
    return 0 <= page < len(tail) - 5 and bool(tail[page + 5] & 4)


def resample(
    x: NDArray[np.floating], rate_in: int, rate_out: int, length: int | None = None
) -> NDArray[np.floating]:
    """Changes the sample rate, without delay, with libsoxr at its highest quality.

    Arguments:
        x: the signals, with shape (..., T).
        rate_in: their rate in hertz.
        rate_out: the wanted rate in hertz.
        length: the wanted number of samples; by default ``ceil(T * rate_out / rate_in)``, which
            never loses the last sample, so that cropping brings the exact length back.

    Returns:
        The signals at the other rate, with shape (..., length) and the type of the input.

    Raises:
        ValueError: if a rate is not positive.
    """
    if rate_in <= 0 or rate_out <= 0:
        raise ValueError(f"sample rates must be positive, got {rate_in} and {rate_out}")
    if length is None:
        length = -(-x.shape[-1] * rate_out // rate_in)
    if rate_in == rate_out and length == x.shape[-1]:
        return x.copy()
    flat = x.reshape(-1, x.shape[-1])
    # soxr rounds its length down; a little silence behind the end makes it long enough.
    missing = max(0, math.ceil((length + 1) * rate_in / rate_out) + 1 - flat.shape[-1])
    padded = np.pad(flat, ((0, 0), (0, missing)))
    # One channel at a time: soxr bounds the number of channels of a call, files do not.
    rows = [soxr.resample(row, rate_in, rate_out, quality="VHQ")[:length] for row in padded]
    return np.stack(rows).reshape(*x.shape[:-1], length)


def output_subtype(subtype: str) -> str:
    """The sample format in which stems are written (as WAV) for an input of a sample format.

    PCM of 16, 24 and 32 bits and floats keep their format. 8-bit, companded and ADPCM input
    becomes PCM_16, which holds their values exactly. MP3 and OGG become FLOAT: their decoders
    give floats that often exceed full scale.
    """
    if subtype in _SAME_OUT:
        return subtype
    return "FLOAT" if subtype in _DECODED_TO_FLOAT else "PCM_16"


def quantise(
    stems: NDArray[np.floating], mix: NDArray[np.floating], bits: int
) -> NDArray[np.int64] | None:
    """Rounds stems to integers that add up to the rounded mix exactly.

    Each stem is rounded to the nearest integer. Where the sum then misses the mix, single units go
    to the stems whose rounding moved them furthest the other way (the largest-remainder method of
    apportionment), never to a stem that is exactly zero.

    Arguments:
        stems: with shape (K, ...); their sum equals the mix to within float rounding.
        mix: with shape (...).
        bits: 16, 24 or 32; full scale 1 is ``2**(bits - 1)`` units.

    Returns:
        The integers, with shape (K, ...), or None if the mix or a stem leaves the range of
        ``bits``; nothing is ever clipped.

    Raises:
        ValueError: if the stems do not add up to the mix.
    """
    scale = float(1 << (bits - 1))
    exact = stems.astype(np.float64) * scale
    units = np.rint(exact)
    gap = np.rint(mix.astype(np.float64) * scale) - units.sum(axis=0)
    if np.abs(gap).max(initial=0) > len(stems) + 4e-6 * scale * max(1.0, np.abs(stems).max()):
        raise ValueError(
            f"the stems must add up to the mix, but they miss it by {np.abs(gap).max() / scale:.3g}"
        )
    while np.any(gap):
        step = np.sign(gap)
        owed = np.where(stems == 0, -np.inf, step * (exact - units))
        chosen = np.argmax(owed, axis=0)[None]
        np.put_along_axis(units, chosen, np.take_along_axis(units, chosen, 0) + step, 0)
        gap -= step
    if units.min(initial=0) < -scale or units.max(initial=0) > scale - 1:
        return None
    return units.astype(np.int64)


def write_stems(
    paths: Sequence[Path],
    stems: NDArray[np.floating],
    mix: NDArray[np.floating],
    sample_rate: int,
    subtype: str,
) -> str:
    """Writes stems as WAV files that add up to the mix, all of them or none.

    In PCM the integers of the files add up to those of the mix exactly (:func:`quantise`). If a
    stem exceeds full scale there, every file of the song is written as FLOAT instead, where the
    sum holds to float rounding. Files of more than 4 GiB are written as RF64.

    Arguments:
        paths: K file names; missing folders are made.
        stems: with shape (K, C, T), full scale at 1.
        mix: what they add up to, with shape (C, T).
        sample_rate: in hertz.
        subtype: ``PCM_16``, ``PCM_24``, ``PCM_32``, ``FLOAT`` or ``DOUBLE``.

    Returns:
        The sample format that was used.

    Raises:
        ValueError: for another subtype, and for stems that are not finite (a NaN becomes a
            full-scale click in PCM) or do not add up to the mix.
        OSError: if a file cannot be written; then no file and no new folder is left.
    """
    if subtype not in _SAME_OUT:
        raise ValueError(f"subtype must be one of {sorted(_SAME_OUT)}, got '{subtype}'")
    if not np.isfinite(stems).all():
        raise ValueError("stems must be finite, got NaN or infinite samples; nothing was written")
    try:
        with staged(paths) as temporary:
            _write(temporary, stems, mix, sample_rate, subtype)
        return subtype
    except _OutOfRange:
        with staged(paths) as temporary:
            _write(temporary, stems, mix, sample_rate, "FLOAT")
        return "FLOAT"


class _OutOfRange(Exception):
    pass


def _write(
    paths: Sequence[Path],
    stems: NDArray[np.floating],
    mix: NDArray[np.floating],
    sample_rate: int,
    subtype: str,
) -> None:
    _, channels, length = stems.shape
    bits = PCM_BITS.get(subtype)
    size = channels * length * (bits or (64 if subtype == "DOUBLE" else 32)) // 8
    container = "WAV" if size < (1 << 32) - (1 << 16) else "RF64"
    files: list[sf.SoundFile] = []
    try:
        for path in paths:
            files.append(
                sf.SoundFile(_name(path), "w", sample_rate, channels, subtype, format=container)
            )
        for start in range(0, length, BLOCK):
            part = stems[..., start : start + BLOCK]
            if bits is None:
                data = part.astype(np.float64 if subtype == "DOUBLE" else np.float32)
            else:
                units = quantise(part, mix[..., start : start + BLOCK], bits)
                if units is None:
                    raise _OutOfRange
                # libsndfile takes the upper bits of an int32.
                data = (units << (32 - bits)).astype(np.int32)
            for file, stem in zip(files, data, strict=True):
                file.write(np.ascontiguousarray(stem.T))
    except sf.LibsndfileError as error:
        raise OSError(f"cannot write: {error.error_string}") from error
    finally:
        for file in files:
            file.close()
    if bits is None:
        for path in paths:
            _clear_time_stamp(path)


def _clear_time_stamp(path: Path) -> None:
    """Zeroes the time of writing in a float WAV, so that equal samples give equal files."""
    with path.open("r+b") as stream:
        peak = stream.read(256).find(b"PEAK")
        if peak >= 0:
            stream.seek(peak + 12)
            stream.write(bytes(4))


@contextmanager
def staged(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Gives temporary names beside the final ones, and renames them when the block succeeds.

    If the block raises anything, the temporary files and the folders that were made for them are
    removed again, and files that stood under the final names are untouched.

    Arguments:
        paths: the final names; missing folders are made.

    Raises:
        OSError: if a folder cannot be made or a file cannot be renamed.
    """
    made: list[Path] = []
    # Short names: the final ones may be as long as the file system allows.
    temporary = [path.parent / f".mgdm-{os.getpid()}-{i}.part" for i, path in enumerate(paths)]
    complete = False
    try:
        for path in paths:
            for folder in (*reversed(path.parent.parents), path.parent):
                if not folder.exists():
                    folder.mkdir()
                    made.append(folder)
        yield temporary
        for source, target in zip(temporary, paths, strict=True):
            os.replace(source, target)
        complete = True
    finally:
        if not complete:
            for path in temporary:
                path.unlink(missing_ok=True)
            for folder in reversed(made):
                if not any(folder.iterdir()):
                    folder.rmdir()
