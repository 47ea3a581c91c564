r"""Quantising and writing of stems, with libsndfile (``soundfile``).

Signals are arrays of shape (C, T), channels first and time last, with full scale at 1. Two rules
hold everywhere: the files of a song add up to it, and a file either appears complete under its
final name or not at all.
"""

from __future__ import annotations

import errno
import io
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from mgdm_audio.audio import BLOCK

__all__ = [
    "BITS",
    "NoSpace",
    "OutOfRange",
    "check_format",
    "check_space",
    "clear_time_stamp",
    "file_bytes",
    "fill_stems",
    "output_subtype",
    "quantise",
    "staged",
    "write_blocks",
    "write_stems",
]

PCM_BITS = {"PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
BITS = {"16": "PCM_16", "24": "PCM_24", "32": "PCM_32", "32f": "FLOAT", "64f": "DOUBLE"}
"""Sample formats by the name that a user gives them."""

LARGEST_WAV = (1 << 32) - (1 << 16)
"""Bytes of samples up to which a WAV file is a plain one; beyond it is an RF64 file."""

_SAME_OUT = {*PCM_BITS, "FLOAT", "DOUBLE"}
_DECODED_TO_PCM = {
    "ALAC_20": "PCM_24",
    "ALAC_24": "PCM_24",
    "ALAC_32": "PCM_32",
    "DWVW_24": "PCM_24",
}
_DECODED_TO_FLOAT = {"VORBIS", "OPUS", "MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III"}


class NoSpace(OSError):
    """A file system has less room than is needed."""


class OutOfRange(Exception):
    """A stem leaves the range of the integers that it was to be written in."""


def output_subtype(subtype: str) -> str:
    """The sample format in which stems are written (as WAV) for an input of a sample format.

    PCM of 16, 24 and 32 bits and floats keep their format. What is compressed without loss (ALAC,
    DWVW) becomes PCM of as many bits, or of the next more. 8-bit, companded and ADPCM input becomes
    PCM_16, which holds their values exactly. MP3 and OGG become FLOAT: their decoders give floats
    that often exceed full scale.
    """
    if subtype in _SAME_OUT:
        return subtype
    return "FLOAT" if subtype in _DECODED_TO_FLOAT else _DECODED_TO_PCM.get(subtype, "PCM_16")


def check_format(container: str, subtype: str, sample_rate: int, channels: int) -> None:
    """Raises ValueError if a container cannot hold a sample format, a rate or so many channels."""
    if subtype not in _SAME_OUT:
        raise ValueError(f"subtype must be one of {sorted(_SAME_OUT)}, got '{subtype}'")
    if container == "wav":
        limits, most = _SAME_OUT, 1024
    elif container == "flac":
        limits, most = {"PCM_16", "PCM_24"}, 8
        if sample_rate > 655_350:
            raise ValueError(f"FLAC holds rates up to 655350 Hz, got {sample_rate}; use wav")
        if sample_rate > 65_535 and sample_rate % 10:
            raise ValueError(
                f"FLAC holds rates above 65535 Hz in steps of 10 Hz, got {sample_rate}; use wav"
            )
    else:
        raise ValueError(f"unknown format '{container}', expected wav or flac")
    if subtype not in limits:
        raise ValueError(
            f"{container.upper()} does not hold {subtype} samples; use --bits 16 or 24, or wav"
        )
    if channels > most:
        raise ValueError(
            f"{container.upper()} holds at most {most} channels, got {channels}; use wav"
        )


def file_bytes(channels: int, length: int, subtype: str) -> int:
    """Bytes of the samples of a file without compression."""
    bits = PCM_BITS.get(subtype, 64 if subtype == "DOUBLE" else 32)
    return channels * length * bits // 8


def check_space(folder: Path, needed: int) -> None:
    """Raises NoSpace if a folder's file system (the folder need not exist) has less room."""
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    free = shutil.disk_usage(nearest).free
    if needed > free:
        raise NoSpace(
            f"{folder}: {needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free; free "
            "some space, or choose another folder (-o)"
        )


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
    units = _apportion(stems, mix, bits)
    return units if _fits(units, bits) else None


def _fits(units: NDArray[np.int64], bits: int) -> bool:
    scale = 1 << (bits - 1)
    return bool(units.min(initial=0) >= -scale and units.max(initial=0) <= scale - 1)


def _apportion(
    stems: NDArray[np.floating], mix: NDArray[np.floating], bits: int
) -> NDArray[np.int64]:
    scale = float(1 << (bits - 1))
    exact = stems.astype(np.float64) * scale
    units = np.rint(exact)
    gap = np.rint(mix.astype(np.float64) * scale) - units.sum(axis=0)
    if np.abs(gap).max(initial=0) > len(stems) + 4e-6 * scale * max(1.0, np.abs(stems).max()):
        raise ValueError(
            f"the stems must add up to the mix, but they miss it by {np.abs(gap).max() / scale:.3g}"
        )
    # Whole rounds first, a unit for every stem that sounds: with 32 bits the rounding of single
    # precision is some hundred units, which one by one take longer than the sampling.
    sounding = (stems != 0).astype(np.float64)
    count = sounding.sum(axis=0)
    rounds = np.where(count > 0, np.sign(gap) * (np.abs(gap) // np.maximum(count, 1)), 0)
    units += rounds * sounding
    gap -= rounds * count
    while np.any(gap):
        step = np.sign(gap)
        owed = np.where(stems == 0, -np.inf, step * (exact - units))
        chosen = np.argmax(owed, axis=0)[None]
        np.put_along_axis(units, chosen, np.take_along_axis(units, chosen, 0) + step, 0)
        gap -= step
    return units.astype(np.int64)


def write_stems(
    paths: Sequence[Path],
    stems: NDArray[np.floating],
    mix: NDArray[np.floating],
    sample_rate: int,
    subtype: str,
    groups: Sequence[Sequence[int]] | None = None,
    container: str = "wav",
) -> str:
    """Writes stems as files that add up to the mix, all of them or none; see `fill_stems`.

    Raises:
        ValueError: as `fill_stems` does.
        OSError: if a file cannot be written; then no file and no new folder is left.
    """
    with staged(paths) as temporary:
        return fill_stems(temporary, stems, mix, sample_rate, subtype, groups, container)


def fill_stems(
    paths: Sequence[Path],
    stems: NDArray[np.floating],
    mix: NDArray[np.floating],
    sample_rate: int,
    subtype: str,
    groups: Sequence[Sequence[int]] | None = None,
    container: str = "wav",
) -> str:
    """Writes stems as files that add up to the mix; for names that `staged` gave.

    In PCM the integers of the files add up to those of the mix exactly (:func:`quantise`). If a
    stem exceeds full scale there, every file of the song is written as FLOAT instead, where the
    sum holds to float rounding. Files of more than 4 GiB are written as RF64.

    Arguments:
        paths: file names.
        stems: with shape (K, C, T), full scale at 1.
        mix: what they add up to, with shape (C, T).
        sample_rate: in hertz.
        subtype: ``PCM_16``, ``PCM_24``, ``PCM_32``, ``FLOAT`` or ``DOUBLE``.
        groups: for each file the stems that it is the sum of; by default a file a stem.
        container: ``wav`` or ``flac``.

    Returns:
        The sample format that was used.

    Raises:
        ValueError: for another subtype, and for stems that are not finite (a NaN becomes a
            full-scale click in PCM) or do not add up to the mix, and for stems that FLAC, which
            has no floats, cannot hold.
        OSError: if a file cannot be written.
    """
    _, channels, length = stems.shape
    check_format(container, subtype, sample_rate, channels)
    sums = groups or [(k,) for k in range(len(stems))]

    def blocks() -> Iterator[tuple[NDArray[np.floating], NDArray[np.floating]]]:
        for start in range(0, length, BLOCK):
            yield stems[..., start : start + BLOCK], mix[..., start : start + BLOCK]

    for attempt in (subtype, "FLOAT"):
        try:
            write_blocks(paths, sums, blocks(), sample_rate, channels, length, attempt, container)
            break
        except OutOfRange:
            if container != "wav":
                raise ValueError(
                    "a stem exceeds full scale, which FLAC cannot hold; write WAV"
                ) from None
    return attempt


def write_blocks(
    paths: Sequence[Path],
    groups: Sequence[Sequence[int]],
    blocks: Iterable[tuple[NDArray[np.floating], NDArray[np.floating]]],
    sample_rate: int,
    channels: int,
    length: int,
    subtype: str,
    container: str = "wav",
) -> None:
    """Writes files that are sums of stems, block by block.

    Arguments:
        paths: the files; see :func:`staged` for files that appear complete or not at all.
        groups: for each file the stems that it is the sum of.
        blocks: pairs of stems, with shape (K, C, n), and of what they add up to, (C, n).
        sample_rate: in hertz.
        channels: number of channels C.
        length: the sum of the n.
        subtype: ``PCM_16``, ``PCM_24``, ``PCM_32``, ``FLOAT`` or ``DOUBLE``.
        container: ``wav`` (beyond 4 GiB RF64) or ``flac``.

    Raises:
        OutOfRange: if a sum leaves the range of the integers; nothing is ever clipped.
        ValueError: for stems that are not finite or do not add up.
        OSError: if a file cannot be written.
    """
    bits = PCM_BITS.get(subtype)
    kind = container.upper()
    if kind == "WAV" and file_bytes(channels, length, subtype) > LARGEST_WAV:
        kind = "RF64"
    outputs: list[_Output] = []
    written = 0
    try:
        with _told(outputs), ExitStack() as stack:
            for path in paths:
                outputs.append(stack.enter_context(_Output(path)))
            files = [
                stack.enter_context(
                    sf.SoundFile(output, "w", sample_rate, channels, subtype, format=kind)
                )
                for output in outputs
            ]
            for stems, mix in blocks:
                if not np.isfinite(stems).all():
                    raise ValueError(
                        "stems must be finite, got NaN or infinite samples; nothing was written"
                    )
                if bits is None:
                    wide: NDArray[Any] = stems.astype(np.float64)
                else:
                    wide = _apportion(stems, mix, bits)
                for file, group in zip(files, groups, strict=True):
                    data = wide[list(group)].sum(axis=0)
                    if bits is None:
                        data = data.astype(np.float64 if subtype == "DOUBLE" else np.float32)
                    elif _fits(data, bits):
                        # libsndfile takes the upper bits of an int32.
                        data = (data << (32 - bits)).astype(np.int32)
                    else:
                        raise OutOfRange
                    file.write(np.ascontiguousarray(data.T))
                written += stems.shape[-1]
    except sf.LibsndfileError as error:
        raise OSError(f"cannot write: {error.error_string}") from error
    if written != length:
        raise ValueError(f"expected {length} frames of stems, got {written}; nothing was written")
    if bits is None:
        for path in paths:
            clear_time_stamp(path)


class _Output(io.FileIO):
    """A file for libsndfile that keeps what the system said of a write that failed.

    libsndfile says only that one failed, and of the last block of a FLAC file not even that.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w")
        self.folder = path.parent
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Writes all of the data, or nothing if there was an error before; never raises.

        What is raised in libsndfile's callback is printed and forgotten.
        """
        done = 0
        try:
            while done < len(data) and self.error is None:
                done += super().write(data[done:])
        except OSError as error:
            self.error = error
        return done


@contextmanager
def _told(outputs: Sequence[_Output]) -> Iterator[None]:
    """Raises, in place of what came of it, the first error of a write to the files.

    Raises:
        NoSpace: if there was no room left.
        OSError: for another reason.
    """
    cause: Exception | None = None
    try:
        yield
    except Exception as error:
        cause = error
    for output in outputs:
        if (refused := output.error) is not None:
            if refused.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace(
                    f"{output.folder}: there is no space left for the stems; free some space, or "
                    "choose another folder (-o)"
                ) from refused
            raise OSError(refused.errno, f"cannot write: {refused.strerror}") from refused
    if cause is not None:
        raise cause


def clear_time_stamp(path: Path) -> None:
    """Zeroes the time of writing in a float WAV, so that equal samples give equal files."""
    with path.open("r+b") as stream:
        peak = stream.read(256).find(b"PEAK")
        if peak >= 0:
            stream.seek(peak + 12)
            stream.write(bytes(4))


@contextmanager
def staged(paths: Sequence[Path], work: Path | None = None) -> Iterator[list[Path]]:
    """Gives temporary names, and renames the files to the final ones when the block succeeds.

    If the block raises anything, the temporary files and the folders that were made for them are
    removed again, and files that stood under the final names are untouched. A final name that is a
    folder's is refused before the block, since files could replace others before it came to light.

    Arguments:
        paths: the final names; missing folders are made.
        work: a folder for the temporary files of those names that are on its file system; by
            default, and elsewhere, they lie beside the final ones.

    Raises:
        OSError: if a folder cannot be made, a final name is one, or a file cannot be renamed.
    """
    made: list[Path] = []
    # Short names: the final ones may be as long as the file system allows. No two alike, of threads
    # and of machines that share a folder either.
    token = secrets.token_hex(6)
    temporary: list[Path] = []
    complete = False
    try:
        for path in paths:
            for folder in (*reversed(path.parent.parents), path.parent):
                if not folder.exists():
                    folder.mkdir()
                    made.append(folder)
            if path.is_dir():
                raise IsADirectoryError(f"{path}: is a folder; rename it, or write elsewhere")
        for i, path in enumerate(paths):
            # Nothing can be renamed to another file system; a link may lead to one.
            near = work is not None and work.stat().st_dev == path.parent.stat().st_dev
            folder = work if work is not None and near else path.parent
            temporary.append(folder / f".mgdm-{token}-{i}.part")
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
