"""Unpacks a part of what bundle.py collected, on the machine without network.

    python3 recipes/prior/unpack.py PART WORK

from the repository's root. Programs and Debian's sounds go to their places from the root (what is
there already stays as it is), other sounds to WORK/sources, Python packages to WORK/site, songs
that are there to validate to WORK/corpus/valid and WORK/others, and the tables of all sounds so far
to WORK/tables, and into WORK/tree/recipes/corpus where that is. The parts go in their order. A part
that has been unpacked only has its tables written. Songs may be rendered meanwhile: a file gets its
name when it is whole, and the tables come last.
"""

from __future__ import annotations

import argparse
import ctypes.util
import importlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it may come with the first part
    import numpy as np

TABLES = ("sources.tsv", "others.tsv")
LIBRARIES = "usr/local/lib/fluidsynth"


def place(target: str, work: Path, root: Path) -> Path:
    """Where a name in the bundle lies: `root/...` from the root, `sources/...` in WORK."""
    first, _, rest = target.partition("/")
    return root / rest if first == "root" else work / first / rest


def move(source: Path, target: Path) -> None:
    """Gives a file its name unless there is one; across file systems it is copied first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".unpack", delete=False) as stream:
        whole = Path(stream.name)
    shutil.copy2(source, whole)
    whole.rename(target)


def extract(tar: tarfile.TarFile, folder: Path) -> None:
    """Extracts an archive, with Python's precautions where it has them (not before 3.11.4)."""
    tar.extraction_filter = getattr(tarfile, "data_filter", None)
    tar.extractall(folder)


def unpack_files(part: Path, folder: Path, work: Path, root: Path) -> dict[str, Any]:
    """Puts programs and texts in their places; what else the archive has is left in a folder.

    Returns:
        The list of what the part has, see bundle.py.
    """
    with tarfile.open(part / "files.tar.xz") as tar:
        extract(tar, folder)
    for name in ("root", "sources"):
        for path in sorted((folder / name).rglob("*")):
            if path.is_file():
                move(path, place(str(path.relative_to(folder)), work, root))
    contents: dict[str, Any] = json.loads((folder / "contents.json").read_text())
    return contents


def unpack_libraries(archive: Path, root: Path) -> None:
    """Installs libfluidsynth and what it loads, behind the system's own, where it is not yet."""
    if root == Path("/") and ctypes.util.find_library("fluidsynth"):
        return
    (root / LIBRARIES).mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        extract(tar, root / LIBRARIES)
    if root == Path("/"):
        Path("/etc/ld.so.conf.d/zz-fluidsynth.conf").write_text(f"/{LIBRARIES}\n")
        subprocess.run(["ldconfig"], check=True)


def install(wheels: list[Path], site: Path) -> None:
    """Unpacks the Python packages that the machine lacks; none has more than files to import."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(site)


def find_packages(site: Path) -> None:
    """Makes packages importable that were installed after this process began."""
    if str(site) not in sys.path:
        sys.path.insert(0, str(site))
    importlib.invalidate_caches()  # it may have looked for the folder before


def write_wav(path: Path, sound: Any, piece: dict[str, Any]) -> None:
    """Writes a sample as WAV, whatever its name, as long as it was and with its loops."""
    import numpy as np
    import soundfile

    whole = np.zeros((piece["frames"], piece["channels"]), np.float32)
    whole[: len(sound)] = sound[:, None]
    kind = "FLOAT" if piece["float"] else "PCM_16"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".unpack", delete=False) as stream:
        whole_file = Path(stream.name)
    soundfile.write(whole_file, whole, piece["rate"], kind, format="WAV")
    if chunk := bytes.fromhex(piece["loop"]):
        with whole_file.open("r+b") as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.write(bytes(end % 2) + b"smpl" + struct.pack("<I", len(chunk)) + chunk)
            size = stream.tell() - 8
            stream.seek(4)
            stream.write(struct.pack("<I", size))
    whole_file.chmod(0o644)
    whole_file.rename(path)


def unwind(
    reel: Path, pieces: list[dict[str, Any]], fonts: dict[str, tuple[Path, int]], work: Path,
    root: Path,
) -> int:  # fmt: skip
    """Writes the sounds of a reel.

    Arguments:
        reel: the sound file.
        pieces: what is on it.
        fonts: by their names in the bundle, files to write samples into, from a byte on.
        work: for sounds of no Debian package.
        root: for sounds of Debian packages.

    Returns:
        How many there were.
    """
    find_packages(work / "site")
    import numpy as np
    import soundfile
    from scipy import signal

    whole, _ = soundfile.read(reel, dtype="float32")
    for piece in pieces:
        sound = whole[piece["at"] : piece["at"] + piece["coded"]]
        if piece["halved"]:
            sound = signal.resample_poly(sound, 2, 1)
        sound = sound[: piece["kept"]] * np.float32(piece["gain"])
        if "file" in piece:
            path = place(piece["file"], work, root)
            if not path.exists():
                write_wav(path, sound, piece)
        elif piece["font"] in fonts:
            file, start = fonts[piece["font"]]
            pcm = sixteen_bits(sound).tobytes()
            with file.open("r+b") as stream:
                for at in piece["places"]:
                    stream.seek(start + 2 * at)
                    stream.write(pcm)
    return len(pieces)


def sixteen_bits(sound: np.ndarray) -> np.ndarray:
    """Samples as whole numbers, 32768 being 1.0; what is over full scale is clipped."""
    import numpy as np

    return np.clip(np.rint(sound * 32768), -32768, 32767).astype("<i2")


def empty_font(skeleton: Path, told: dict[str, Any], target: Path) -> Path:
    """A soundfont with silence for its samples, beside where it will lie."""
    target.parent.mkdir(parents=True, exist_ok=True)
    data = skeleton.read_bytes()
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".unpack", delete=False) as stream:
        stream.write(data[: told["head"]])
        stream.seek(2 * told["frames"], os.SEEK_CUR)
        stream.write(data[told["head"] :])
        path = Path(stream.name)
    path.chmod(0o644)
    return path


def unpack_song(sound: Path, folder: Path, line: dict[str, Any]) -> None:
    """Writes a song, or a part of one, as recipes/corpus has it, and its line of the index."""
    import numpy as np
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    index = folder / "index.jsonl"
    known = index.read_text().splitlines() if index.exists() else []
    if any(json.loads(text)["song"] == line["song"] for text in known):
        return
    # What is over full scale in Ogg Vorbis changes its sign where it is read as whole numbers.
    samples, _ = soundfile.read(sound, dtype="float32", always_2d=True)
    temporary = folder / f".{line['file']}"
    np.save(temporary, np.ascontiguousarray(sixteen_bits(samples).T))
    temporary.rename(folder / line["file"])
    with index.open("a") as stream:
        stream.write(json.dumps(line) + "\n")


def copy_tables(source: Path, folder: Path) -> None:
    """Copies the tables of sounds, each at once."""
    for name in TABLES:
        temporary = folder / f".{name}"
        shutil.copy(source / name, temporary)
        temporary.rename(folder / name)


def unpack(part: Path, work: Path, root: Path = Path("/"), jobs: int | None = None) -> str:
    """Unpacks a part, see above.

    Arguments:
        part: one of the folders of the bundle.
        work: the folder of the run.
        root: of Debian's files.
        jobs: processes; one for each core by default.

    Returns:
        What was done.

    Raises:
        ValueError: if the part before it has not been unpacked.
    """
    number = json.loads((part / "part.json").read_text())["part"]
    done = work / "last-part"
    last = int(done.read_text()) if done.exists() else 0
    if number > last + 1:
        raise ValueError(f"{part} is part {number}, and part {last + 1} has not been unpacked")
    told = "was unpacked before"
    if number == last + 1:
        told = _unpack_sounds(part, work, root, jobs)
        (work / "tables").mkdir(exist_ok=True)
        copy_tables(part, work / "tables")
        done.write_text(str(number))
    if (tree := work / "tree/recipes/corpus").is_dir():
        copy_tables(work / "tables", tree)
    return told


def _unpack_sounds(part: Path, work: Path, root: Path, jobs: int | None) -> str:
    begin = time.monotonic()
    work.mkdir(parents=True, exist_ok=True)
    if wheels := sorted((part / "wheels").glob("*.whl")):
        install(wheels, work / "site")
    if (part / "libraries.tar.xz").exists():
        unpack_libraries(part / "libraries.tar.xz", root)
    with tempfile.TemporaryDirectory(dir=work) as name, ProcessPoolExecutor(jobs) as pool:
        folder = Path(name)
        contents = unpack_files(part, folder, work, root)
        fonts: dict[str, tuple[Path, int]] = {}
        for target, font in contents["fonts"].items():
            if not place(target, work, root).exists():
                path = empty_font(folder / font["skeleton"], font, place(target, work, root))
                fonts[target] = (path, font["head"])
        tasks = [
            pool.submit(unwind, part / "reels" / reel, pieces, fonts, work, root)
            for reel, pieces in contents["reels"].items()
        ]
        sounds = sum(task.result() for task in tasks)
        for target, (path, _) in fonts.items():
            path.rename(place(target, work, root))
    find_packages(work / "site")
    for song in contents["songs"]:
        unpack_song(part / "songs" / song["sound"], work / song["folder"], song["line"])
    return f"{sounds} sounds, {len(contents['songs'])} songs in {time.monotonic() - begin:.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("part", type=Path, help="A folder that bundle.py wrote.")
    parser.add_argument("work", type=Path, help="The folder of the run.")
    parser.add_argument("--root", type=Path, default=Path("/"), help="Of Debian's files.")
    parser.add_argument("--jobs", type=int, help="Processes; one for each core by default.")
    given = parser.parse_args()
    try:
        told = unpack(given.part, given.work.resolve(), given.root, given.jobs)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"unpack.py: {error}")
    print(f"{given.part}: {told}")


if __name__ == "__main__":
    main()
