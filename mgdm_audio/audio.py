r"""Reading and resampling of audio, with libsndfile (``soundfile``) and libsoxr.

Signals are arrays of shape (C, T), channels first and time last, with full scale at 1. Nothing is
allocated from what a header claims, and a file can be read block by block, as often as wanted.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile as sf
import soxr
from numpy.typing import NDArray

__all__ = ["AudioError", "AudioFile", "Recording", "inspect", "read", "resample", "resampled"]

ACCEPTED = "WAV, FLAC, OGG or MP3"
BLOCK = 1 << 16
"""Frames read or written at a time."""

_MORE_THAN_SINGLE = ("PCM_32", "ALAC_32", "DOUBLE")


class AudioError(ValueError):
    """A file or an array that cannot be used as audio; the message names it and says why."""


@dataclass(frozen=True)
class Recording:
    """A decoded audio file.

    Attributes:
        samples: the signal, with shape (C, T), full scale at 1; float32, or float64 where the
            file holds more than 24 significant bits (PCM_32, ALAC_32, DOUBLE).
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


@dataclass
class AudioFile:
    """A file, or a part of one, that is read block by block as often as wanted.

    Arguments:
        path: the file.
        start: where the part begins, in seconds.
        duration: how long it is at most, in seconds; None is to the end.

    Attributes:
        sample_rate: in hertz.
        channels: number of channels C.
        subtype: libsndfile's name of the sample format.
        dtype: of the blocks: float32, or float64 where the file holds more than 24 significant
            bits (PCM_32, ALAC_32, DOUBLE).
        declared: frames that the part has if the header is right; not to be trusted.
        warnings: known after the blocks were read once, see :func:`read`.

    Raises:
        AudioError: as :func:`inspect` does.
        ValueError: if the start is negative or the duration is not positive.
    """

    path: Path
    start: float = 0.0
    duration: float | None = None
    sample_rate: int = field(init=False)
    channels: int = field(init=False)
    subtype: str = field(init=False)
    dtype: str = field(init=False)
    declared: int = field(init=False)
    warnings: tuple[str, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        if not 0 <= self.start < math.inf:
            raise ValueError(f"the start must be at least 0 s, got {self.start}")
        if self.duration is not None and not 0 < self.duration < math.inf:
            raise ValueError(f"the duration must be positive, got {self.duration} s")
        with _opened(self.path) as file:
            self.sample_rate, self.channels = file.samplerate, file.channels
            self.subtype = file.subtype
            self.dtype = "float64" if file.subtype in _MORE_THAN_SINGLE else "float32"
            first, limit = self._part()
            frames = _count(file) if _unknown_length(file) else file.frames
            self.declared = max(0, min(limit, frames - first))

    def _part(self) -> tuple[int, int]:
        """The first frame of the part, and how many it has at most."""
        first = round(self.start * self.sample_rate)
        if self.duration is None:
            return first, 1 << 62
        return first, max(1, round(self.duration * self.sample_rate))

    def blocks(self) -> Iterator[NDArray[np.floating]]:
        """The samples in blocks of shape (C, n).

        Raises:
            AudioError: if the file cannot be decoded to the end of the part, holds NaN or infinite
                samples (with the time of the first), or has nothing there.
        """
        first, limit = self._part()
        with _opened(self.path) as file:
            rate, frames, given = file.samplerate, 0, 0
            if first and file.format in ("WAV", "WAVEX", "RF64"):
                # Elsewhere a seek can go wrong; decoding up to there cannot.
                frames = file.seek(min(first, file.frames))
            try:
                while given < limit:
                    block = file.read(BLOCK, dtype=self.dtype, always_2d=True)
                    if len(block) == 0:
                        break
                    part = block[max(0, first - frames) :][: limit - given]
                    offset = frames + len(block) if frames + len(block) <= first else first + given
                    _check_finite(self.path, part, offset, rate)
                    frames += len(block)
                    given += len(part)
                    if len(part):
                        yield np.ascontiguousarray(part.T)
            except sf.LibsndfileError as error:
                raise AudioError(
                    f"{self.path}: cannot be decoded after {frames / rate:.3f} s "
                    f"({error.error_string}); the file is damaged or truncated"
                ) from error
            if given == 0:
                where = f" after {self.start:g} s, it ends at {frames / rate:.3f} s"
                raise AudioError(f"{self.path}: contains no audio{where if first else ''}")
            if given < limit:
                self.warnings = _truncation(self.path, file, frames)


def read(path: str | os.PathLike[str]) -> Recording:
    """Decodes a whole file.

    The frames that arrive are counted against those that the header declares, because libsndfile
    reads truncated WAV, MP3 and OGG files without complaint, and MP3 files that were joined no
    further than the first; a difference becomes a warning.

    Raises:
        AudioError: as :func:`inspect` does, and if the file cannot be decoded to its end, or holds
            NaN or infinite samples (with the time of the first).
    """
    file = AudioFile(Path(path))
    samples = np.concatenate(list(file.blocks()), axis=1)
    return Recording(samples, file.sample_rate, file.subtype, file.warnings)


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
        if _unknown_length(file):
            # After a read soundfile seeks to where it is, which fails at an end that is not known.
            file.seekable = _never
        yield file


def _unknown_length(file: sf.SoundFile) -> bool:
    """Whether the header has no length, as that of a FLAC file that was written to a pipe."""
    return file.frames >= 1 << 62


def _never() -> bool:
    return False


def _count(file: sf.SoundFile) -> int:
    """Frames to the end of a file, decoded for that."""
    frames = 0
    with suppress(sf.LibsndfileError):  # damage is told where it is read
        while found := len(file.read(BLOCK, dtype="int16", always_2d=True)):
            frames += found
    return frames


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
    if frames < declared and not _unknown_length(file):
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
    if file.format == "MP3" and _goes_on_mp3(path):
        return (
            f"{path}: goes on after the {frames} frames ({frames / file.samplerate:.3f} s) that "
            "its header declares, as MP3 files that were joined do; what follows is not read, "
            "convert the file first, for example with ffmpeg",
        )
    return ()


def _ends_ogg(path: Path) -> bool:
    """Whether the last Ogg page (at most 65307 bytes long) has the flag "end of stream"."""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - 65307))
        tail = stream.read()
    page = tail.rfind(b"OggS")
    return 0 <= page < len(tail) - 5 and bool(tail[page + 5] & 4)


def _goes_on_mp3(path: Path) -> bool:
    """Whether frames follow the end that an MP3 file's first one (Xing, Info) declares.

    Decoders stop at that end.
    """
    with path.open("rb") as stream:
        start = _behind_tags(stream, 0)
        stream.seek(start)
        first = stream.read(200)
        mark = max(first.find(b"Xing"), first.find(b"Info"))
        if mark < 0 or len(first) < mark + 16 or first[mark + 7] & 3 != 3:
            return False  # no numbers of frames and bytes
        end = _behind_tags(stream, start + int.from_bytes(first[mark + 12 : mark + 16], "big"))
        stream.seek(end)
        rest = stream.read(2048)
    # Some encoders leave a frame out of the count; what no frame begins in is an unknown tag.
    frame = re.compile(b"\xff[" + re.escape(bytes({first[1] | 1, first[1] & 254})) + b"]")
    return path.stat().st_size - end > 4096 and frame.search(rest) is not None


def _behind_tags(stream: BinaryIO, at: int) -> int:
    """Where an MP3 file goes on behind the tags (ID3, APE) that begin at a byte, if any do."""
    while True:
        stream.seek(at)
        head = stream.read(32).ljust(32, b"\0")
        if head.startswith(b"ID3"):
            size = 0
            for byte in head[6:10]:  # seven bits each
                size = size << 7 | byte & 127
            at += 10 + size + (10 if head[5] & 16 else 0)  # a footer repeats the header
        elif head.startswith(b"TAG"):
            at += 128
        elif head.startswith(b"APETAGEX"):
            at += 32 + int.from_bytes(head[12:16], "little")
        else:
            return at


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


def resampled(
    pieces: Iterable[NDArray[np.floating]], rate_in: int, rate_out: int, length: int | None = None
) -> Iterator[NDArray[np.floating]]:
    """Changes the sample rate of a signal that comes in pieces; together they are those of
    :func:`resample`, bit for bit, wherever the pieces are cut.

    Arguments:
        pieces: the signals, each with shape (N, n), with the same N.
        rate_in: their rate in hertz.
        rate_out: the wanted rate in hertz.
        length: the wanted number of samples; by default ``ceil(T * rate_out / rate_in)``.

    Returns:
        Pieces of shape (N, m).

    Raises:
        ValueError: if a rate is not positive.
    """
    if rate_in <= 0 or rate_out <= 0:
        raise ValueError(f"sample rates must be positive, got {rate_in} and {rate_out}")
    streams: list[soxr.ResampleStream] = []
    taken = given = 0
    like: NDArray[np.floating] | None = None

    def push(piece: NDArray[np.floating], last: bool) -> NDArray[np.floating]:
        return np.stack(
            [s.resample_chunk(np.ascontiguousarray(row), last=last)
             for s, row in zip(streams, piece, strict=True)]
        )  # fmt: skip

    for piece in pieces:
        taken += piece.shape[-1]
        like = piece[:, :0]
        if rate_in == rate_out:
            yield piece if length is None else piece[:, : max(0, length - given)]
            given += piece.shape[-1]
            continue
        if not streams:
            # One stream a signal: soxr bounds the number of channels of a stream.
            kind = str(piece.dtype)
            streams = [
                soxr.ResampleStream(rate_in, rate_out, 1, dtype=kind, quality="VHQ") for _ in piece
            ]
        out = push(piece, last=False)
        # How long the signal is without a wanted length is only known at its end, and soxr gives
        # less than that until then.
        out = out if length is None else out[:, : max(0, length - given)]
        given += out.shape[-1]
        if out.shape[-1]:
            yield out
    if like is None:
        return
    total = -(-taken * rate_out // rate_in) if length is None else length
    if rate_in == rate_out:
        if total > given:
            yield np.zeros((len(like), total - given), like.dtype)
        return
    missing = max(0, math.ceil((total + 1) * rate_in / rate_out) + 1 - taken)
    yield push(np.zeros((len(like), missing), like.dtype), last=True)[:, : max(0, total - given)]
