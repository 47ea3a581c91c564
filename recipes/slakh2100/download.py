"""The archive of Slakh2100: its checksum, and a safe way out of it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

CHECKSUMS = {
    "slakh2100_flac_redux.tar.gz": "f4b71b6c45ac9b506f59788456b3f0c4",
    "babyslakh_16k.tar.gz": "311096dc2bde7d61e97e930edbfc7f78",
}
"""MD5 of the archives as their publishers state them (Zenodo records 4599666 and 4603870)."""

MEMBER = re.compile(
    r"(?:^|/)(?P<track>Track\d{5})/(?P<file>metadata\.yaml|stems/S\d{2,3}\.(?:flac|wav))$"
)
"""What is taken out of the archive; everything else in it stays there."""

Callback = Callable[[int, int], None]


def verify(archive: Path, md5: str | None = None, callback: Callback | None = None) -> str:
    """Checks an archive's MD5, as stated by its publishers or as given.

    Arguments:
        archive: the file.
        md5: the expected sum; by default that of the file's name.
        callback: told (bytes done, bytes in all).

    Returns:
        The sum.

    Raises:
        ValueError: if it differs, or no sum is known for the file's name.
    """
    expected = md5 or CHECKSUMS.get(archive.name)
    if expected is None:
        raise ValueError(
            f"no checksum is known for '{archive.name}', only for {', '.join(CHECKSUMS)}; give the "
            "one that its publisher states with --md5, or --unverified to go without"
        )
    digest = hashlib.md5(usedforsecurity=False)  # the publishers state no other
    size, done = archive.stat().st_size, 0
    with archive.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
            done += len(block)
            if callback is not None:
                callback(done, size)
    if digest.hexdigest() != expected.lower():
        raise ValueError(
            f"{archive}: MD5 is {digest.hexdigest()}, expected {expected} ({size} bytes read); the "
            "file is incomplete or not what was published, get it again"
        )
    return expected


def extract(archive: Path, folder: Path, callback: Callback | None = None) -> int:
    """Takes metadata and stems out of the archive: ``folder/TrackNNNNN/...``.

    Only regular files whose path ends like one of the data set's are taken, and they are written
    to names made of the track's and the stem's number: no path of the archive is ever used, no
    link followed. A file that is there with its full size is passed over, so that an interrupted
    call continues; each is written under another name and renamed when it is complete.

    Arguments:
        archive: a tar file, compressed or not.
        folder: where the tracks go; created if absent.
        callback: told (bytes of the archive done, in all).

    Returns:
        The number of files written.

    Raises:
        ValueError: if it is no tar file, is damaged, or holds no track.
    """
    written = seen = 0
    size = archive.stat().st_size
    try:
        with archive.open("rb") as raw, tarfile.open(fileobj=raw, mode="r|*") as tar:
            for member in tar:
                match = MEMBER.search(member.name)
                if match is None or not member.isreg():
                    continue
                seen += 1
                target = folder / match["track"] / match["file"]
                if target.is_file() and target.stat().st_size == member.size:
                    continue
                source = tar.extractfile(member)
                if source is None:
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(f".{target.name}.part")
                with source, part.open("wb") as out:
                    shutil.copyfileobj(source, out, 2**20)
                if part.stat().st_size != member.size:
                    raise ValueError(f"{archive} ends within {member.name}")
                os.replace(part, target)
                written += 1
                if callback is not None:
                    callback(raw.tell(), size)
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the archive
        raise ValueError(f"{archive} is not a tar archive or is damaged: {error}") from error
    if not seen:
        raise ValueError(
            f"{archive} holds no TrackNNNNN/metadata.yaml or TrackNNNNN/stems/SNN.flac"
        )
    return written


def find_tracks(folder: Path) -> dict[str, Path]:
    """The tracks of an unpacked data set, by name: ``folder/[split/]TrackNNNNN``.

    Raises:
        ValueError: if there is none, or one is there twice.
    """
    found: dict[str, Path] = {}
    for path in sorted([*folder.glob("Track*"), *folder.glob("*/Track*")]):
        if path.is_dir() and re.fullmatch(r"Track\d{5}", path.name):
            if path.name in found:
                raise ValueError(f"{path.name} is in {folder} twice: {found[path.name]} and {path}")
            found[path.name] = path
    if not found:
        raise ValueError(f"{folder} holds no folders TrackNNNNN, also not one level down")
    return found
