"""Collects what gpu.sh needs on a machine without network: programs, sounds and Python packages.

Writes OUT/1, OUT/2 and so on, parts that each fit one call and that `unpack.py` unpacks there in
their order. The first has the programs (MMA, libfluidsynth, sfizz), the Python packages that the
machine lacks, crops of songs to validate on and the soundfonts; then come the sets of samples, the
small ones first. All sounds are coded (`sounds.py`). The tables of a part, `sources.tsv` and
`others.tsv`, are the training rows of the corpus recipe's whose sounds have come so far.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).parents[2]))

from recipes.corpus.grooves import MissingProgram
from recipes.corpus.human import FOLDER as PERFORMANCES
from recipes.corpus.patches import OTHERS, TABLE, Patch, read_patches
from recipes.corpus.sfz import sfizz
from recipes.prior.sounds import LOSSLESS, Font, Reels, add_file, sample_files, write_blocks

ROOT = Path(__file__).parents[2]
SPLIT = "train"
KINDS = ("sf2", "model", "sfz", "kit")
"""Of the sources that travel: Gravis patches need another program for their few sounds."""

PROGRAMS = ("usr/bin/mma", "usr/share/mma")
WHEELS = ("mido", "soundfile", "soxr", "cffi", "pycparser", "packaging", "typing_extensions")
LEFT_OUT = re.compile(r"(libc|libm|libdl|librt|libpthread|ld-linux[\w-]*|libgcc_s|libstdc\+\+)\.so")
"""Libraries that every machine has, and must keep its own of."""

LIMIT = 64 * 2**20
PART = 56 * 2**20
"""Bytes of a part: the repository's files travel with each."""

CROP = 131072
"""Samples of each validation song that travel, from its middle, as train.py takes them."""


def rows_of(
    packages: tuple[str, ...], table: Path = TABLE, split: str = SPLIT
) -> tuple[str, list[dict[str, str]]]:
    """A table of sources with a split's rows of some packages alone, as text and as rows."""
    with table.open(newline="") as stream:
        reader = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        rows = [row for row in reader if row["package"] in packages and row["split"] == split]
        names = list(reader.fieldnames or [])
    out = io.StringIO()
    writer = csv.DictWriter(
        out, names, delimiter="\t", quoting=csv.QUOTE_NONE, lineterminator="\n", quotechar=None
    )
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue(), rows


def all_packages() -> tuple[str, ...]:
    """The packages with training sounds of a kind that travels, soundfonts first."""
    patches = [p for p in read_patches() if p.split == SPLIT and p.kind in KINDS]
    patches.sort(key=lambda patch: KINDS.index(patch.kind))
    return tuple(dict.fromkeys(patch.package for patch in patches))


def libraries() -> list[Path]:
    """libfluidsynth and the libraries that it and sfizz load, but for those of LEFT_OUT.

    Raises:
        ValueError: if it is not installed.
    """
    listed = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"libfluidsynth\.so\.\d+ .*=> (\S+)", listed)
    if found is None:
        raise ValueError("libfluidsynth was not found: install the Debian package `fluidsynth`")
    needed = subprocess.run(
        ["ldd", found[1], sfizz()], capture_output=True, text=True, check=True
    ).stdout
    paths = {Path(found[1]), *map(Path, re.findall(r"=> (/\S+)", needed))}
    return sorted(path for path in paths if not LEFT_OUT.match(path.name))


@dataclass
class Songs:
    """Songs that were rendered here, and where they lie there."""

    folder: Path
    entries: list[dict[str, Any]] = field(default_factory=list)

    def add(self, corpus: Path, target: str, count: int | None, crop: int | None) -> None:
        """Takes the first songs of a corpus.

        Arguments:
            corpus: folder with an index.
            target: folder there, in WORK.
            count: of songs; all if None.
            crop: samples of each, from its middle, kept to the bit; whole and coded if None.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for text in (corpus / "index.jsonl").read_text().splitlines()[:count]:
            line = json.loads(text)
            pcm = np.load(corpus / line["file"], mmap_mode="r")
            name = f"{target.replace('/', '-')}-{line['song']:06d}"
            if crop is None:
                name = f"{name}.ogg"
                sound = pcm[0] / 32768.0
                write_blocks(self.folder / name, sound, format="OGG", subtype="VORBIS")
            else:
                name = f"{name}.flac"
                start = int((pcm.shape[1] - crop) * 0.5)
                cut = np.ascontiguousarray(pcm[:, start : start + crop].T)
                soundfile.write(self.folder / name, cut, 22050, "PCM_16", format="FLAC")
                line["samples"] = crop
            self.entries.append({"sound": name, "folder": target, "line": line})


@dataclass
class Content:
    """What a package brings, or the programs do: reels, files by their names in the archive."""

    packages: tuple[str, ...] = ()
    reels: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    files: dict[str, Path | bytes] = field(default_factory=dict)
    fonts: dict[str, dict[str, Any]] = field(default_factory=dict)
    songs: Songs | None = None

    def size(self, folder: Path) -> int:
        """About how many bytes of a part it takes, its reels being in a folder."""
        texts = [len(f) if isinstance(f, bytes) else f.stat().st_size for f in self.files.values()]
        pieces = sum(map(len, self.reels.values()))
        reels = sum((folder / reel).stat().st_size for reel in self.reels)
        songs = size_of(self.songs.folder) if self.songs is not None else 0
        return reels + songs + int(0.15 * sum(texts)) + 30 * pieces  # the archive shrinks its files


def coded(package: str, base: Path, folder: Path) -> Content:
    """Writes a package's sounds on reels.

    Arguments:
        package: its name.
        base: the folder that its files are named from: of Debian's packages or of the other ones.
        folder: for the reels.
    """
    first = "root" if package.startswith("deb:") else "sources"
    content = Content((package,))
    name = re.sub(r"\W+", "-", package.split(":", 1)[-1])

    def there(path: str | Path) -> str:
        return f"{first}/{Path(path).relative_to(base)}"

    patches = [
        replace(patch, file=str(base / patch.file))
        for table in (TABLE, OTHERS)
        for patch in read_patches(table)
        if patch.package == package and patch.split == SPLIT
    ]
    presets: dict[Path, set[tuple[int, int]]] = {}
    for patch in patches:
        if patch.kind == "sf2":
            presets.setdefault(patch.path, set()).add((patch.bank, patch.program))
    for path, wanted in sorted(presets.items()):
        font = Font(path)
        reels = Reels(folder, f"{name}-{path.stem}", font.frames(wanted) < LOSSLESS)
        skeleton, told = font.add(reels, wanted, there(path))
        reels.close()
        content.reels.update(reels.contents)
        content.files[f"fonts/{path.name}"] = skeleton
        content.fonts[there(path)] = {"skeleton": f"fonts/{path.name}", **told}
    content.files.update({there(p): p for p in kit_texts(patches)})
    texts: dict[Path, str] = {}
    reels = Reels(folder, name)
    for path, target, tail in sample_files([p for p in patches if p.kind in ("sfz", "kit")], texts):
        add_file(reels, path, there(target), tail)
    reels.close()
    content.reels.update(reels.contents)
    content.files.update({there(path): text.encode() for path, text in texts.items()})
    return content


def kit_texts(patches: list[Patch]) -> list[Path]:
    """The descriptions of Hydrogen kits."""
    paths = [patch.path / "drumkit.xml" for patch in patches if patch.kind == "kit"]
    return [path for path in paths if path.is_file()]


def expanded(name: str, path: Path) -> dict[str, Path | bytes]:
    """A file, or all files of a folder, by their names in the archive."""
    if path.is_file():
        return {name: path}
    return {f"{name}/{p.relative_to(path)}": p for p in path.rglob("*") if p.is_file()}


def programs(sources: Path, root: Path) -> dict[str, Path | bytes]:
    """MMA, sfizz and the drum performances, by their names in the archive."""
    files: dict[str, Path | bytes] = {}
    for name in PROGRAMS:
        files.update(expanded(f"root/{name}", root / name))
    files.update(expanded(f"sources/{PERFORMANCES}", sources / PERFORMANCES))
    return {**files, "root/usr/local/bin/sfizz_render": Path(sfizz())}


def write_archive(target: Path, files: dict[str, Path | bytes]) -> None:
    """A tar archive of files, folders and texts by their names in it."""

    def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = "root"
        return info

    with tarfile.open(target, "w:xz", preset=6) as tar:
        for name, content in sorted(files.items()):
            if isinstance(content, bytes):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                tar.add(content.resolve(), arcname=name, filter=plain)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def shares(contents: list[Content], folder: Path, first: int) -> list[list[Content]]:
    """Divides everything into parts: each of it comes with the first part that has room for it.

    Arguments:
        contents: of the programs and packages.
        folder: where their reels are.
        first: bytes that the first part has already.
    """
    parts: list[list[Content]] = [[]]
    taken = [first]
    for content in contents:
        size = content.size(folder)
        fits = (k for k, have in enumerate(taken) if have + size <= PART or not parts[k])
        number = next(fits, len(parts))
        if number == len(parts):
            parts.append([])
            taken.append(0)
        parts[number].append(content)
        taken[number] += size
    return parts


def write_part(
    part: Path, number: int, contents: list[Content], reels: Path, packages: tuple[str, ...]
) -> None:
    """Writes a part's archive, reels, songs and tables.

    Arguments:
        part: its folder.
        number: its number.
        contents: what it brings.
        reels: folder that the reels are taken from.
        packages: all so far.
    """
    files: dict[str, Path | bytes] = {}
    reeled: dict[str, list[dict[str, Any]]] = {}
    fonts: dict[str, dict[str, Any]] = {}
    songs: list[dict[str, Any]] = []
    (part / "reels").mkdir(parents=True, exist_ok=True)
    for content in contents:
        files.update(content.files)
        reeled.update(content.reels)
        fonts.update(content.fonts)
        for reel in content.reels:
            shutil.move(reels / reel, part / "reels" / reel)
        if content.songs is not None:
            shutil.copytree(content.songs.folder, part / "songs", dirs_exist_ok=True)
            songs += content.songs.entries
    listed = {"reels": reeled, "fonts": fonts, "songs": songs}
    files["contents.json"] = json.dumps(listed).encode()
    write_archive(part / "files.tar.xz", files)
    (part / "sources.tsv").write_text(rows_of(packages)[0])
    (part / "others.tsv").write_text(rows_of(packages, OTHERS)[0])
    (part / "part.json").write_text(json.dumps({"part": number}) + "\n")


def check(packages: tuple[str, ...], sources: Path, root: Path) -> None:
    """Checks that everything is there.

    Raises:
        ValueError: if a package has no sounds, a file is not there, or a kind does not travel.
    """
    rows = rows_of(packages)[1]
    if unknown := set(packages) - {row["package"] for row in rows}:
        raise ValueError(f"{TABLE} has no {SPLIT} sources of {', '.join(sorted(unknown))}")
    if odd := {row["kind"] for row in rows} - set(KINDS):
        raise ValueError(f"sources of the kinds {', '.join(sorted(odd))} do not travel")
    needed = {
        (root if row["package"].startswith("deb:") else sources) / row["file"]
        for row in rows
        if row["kind"] != "model"
    }
    needed |= {*(root / name for name in PROGRAMS), sources / PERFORMANCES}
    if missing := sorted(str(path) for path in needed if not path.exists()):
        raise ValueError(f"not installed: {', '.join(missing)}; see recipes/corpus/README.md")


def bundle(
    out: Path,
    packages: tuple[str, ...],
    sources: Path,
    root: Path = Path("/"),
    songs: Songs | None = None,
    late: Songs | None = None,
    python: str | None = None,
) -> list[Path]:
    """Writes all parts.

    Arguments:
        out: the folder; emptied first.
        packages: of the sounds.
        sources: folder of the sounds that are of no Debian package, and of the performances.
        root: where the Debian packages are installed.
        songs: those that come with the first part.
        late: those that come with the last one.
        python: the version of Python there, for the Python packages; without it none travel.

    Returns:
        The folders of the parts.

    Raises:
        ValueError: if something is not there, see `check`.
    """
    check(packages, sources, root)
    shutil.rmtree(out, ignore_errors=True)
    first = out / "1"
    first.mkdir(parents=True)
    shared = {path.name: path for path in libraries()}
    write_archive(first / "libraries.tar.xz", dict(shared))
    if python is not None:
        download_wheels(first / "wheels", python)
    with tempfile.TemporaryDirectory(dir=out) as name:
        reels = Path(name)
        contents = []
        for package in packages:
            base = root if package.startswith("deb:") else sources
            contents.append(coded(package, base, reels))
        # Soundfonts, with many sounds each, come before sets of samples, small ones before large.
        contents.sort(key=lambda content: (not content.fonts, content.size(reels)))
        start = Content(files=programs(sources, root), songs=songs)
        parts = shares([start, *contents], reels, size_of(first))
        if late is not None:
            parts[-1].append(Content(songs=late))
        so_far: list[str] = []
        for number, share in enumerate(parts, 1):
            so_far += [package for content in share for package in content.packages]
            write_part(out / str(number), number, share, reels, tuple(so_far))
    return [out / str(number) for number in range(1, len(parts) + 1)]


def download_wheels(folder: Path, python: str) -> None:
    """Fetches the wheels of the Python packages that the machine lacks."""
    platforms = [f"manylinux_2_{n}_x86_64" for n in (17, 24, 27, 28, 31, 34, 35)]
    options = [option for p in (*platforms, "manylinux2014_x86_64") for option in ("--platform", p)]
    subprocess.run(
        [
            sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:",
            "--python-version", python, "--implementation", "cp", *options, "-d", str(folder),
            *WHEELS,
        ],
        check=True,
    )  # fmt: skip


def tree_size() -> int:
    """Bytes of the files that git tracks, which travel as well, but for the models' weights."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    kept = [path for path in paths if path.is_file() and path.suffix != ".safetensors"]
    return sum(path.stat().st_size for path in kept)


@click.command(help=__doc__)
@click.argument("out", type=click.Path(path_type=Path), default=Path("work/gpu/parts"))
@click.option("--package", "packages", multiple=True, help="Of the sounds; all by default.")
@click.option(
    "--sources",
    type=click.Path(path_type=Path),
    envvar="MGDM_CORPUS_SOURCES",
    default=Path("."),
    help="Folder of sounds of no Debian package.",
)
@click.option("--python", default="3.12", show_default=True, help="Its Python version.")
@click.option("--no-wheels", is_flag=True, help="The machine has all Python packages.")
@click.option("--valid", type=click.Path(path_type=Path), help="Folder of validation songs.")
@click.option("--valid-others", type=click.Path(path_type=Path), help="Of their other parts.")
@click.option("--songs", default=8, show_default=True, help="Validation songs that travel.")
@click.option("--voices", type=click.Path(path_type=Path), help="Folder of sung parts to train on.")
def main(
    out: Path,
    packages: tuple[str, ...],
    sources: Path,
    python: str,
    no_wheels: bool,
    valid: Path | None,
    valid_others: Path | None,
    songs: int,
    voices: Path | None,
) -> None:
    try:
        with tempfile.TemporaryDirectory() as name:
            fixed, late = Songs(Path(name, "fixed")), Songs(Path(name, "late"))
            for folder, target in ((valid, "corpus/valid"), (valid_others, "others/valid")):
                if folder is not None:
                    fixed.add(folder, target, songs, CROP)
            if voices is not None:
                late.add(voices, "others/train", None, None)
            parts = bundle(
                out,
                packages or all_packages(),
                sources.resolve(),
                songs=fixed if fixed.entries else None,
                late=late if late.entries else None,
                python=None if no_wheels else python,
            )
    except (ValueError, MissingProgram, OSError, subprocess.CalledProcessError) as error:
        raise click.ClickException(str(error)) from error
    tree = tree_size()
    for part in parts:
        check_size(part, tree)


def check_size(part: Path, tree: int) -> None:
    """Says what a part and the repository's files take.

    Raises:
        click.ClickException: if it is too much for one call.
    """
    size = size_of(part)
    click.echo(
        f"{part}: {size / 2**20:.1f} MiB, with the repository's {tree / 2**20:.1f} MiB of "
        f"{LIMIT / 2**20:.0f} MiB (the weights in pretrained/ stay here)"
    )
    if size + tree > LIMIT:
        raise click.ClickException("that is too much: choose fewer packages")


if __name__ == "__main__":
    main()
