"""Collects what gpu.sh needs on a machine without network: programs, sounds and Python packages.

Writes into OUT: `files.tar.xz` (MMA and the chosen soundfonts, by their paths from the root),
`libraries.tar.xz` (libfluidsynth and what it loads), `sources.tsv` and `others.tsv` (the rows of
the corpus recipe's tables whose files travel), `sources.tar.xz` (sounds of no Debian package, drum
performances) and `wheels/`. The chosen sounds are small enough to travel; a corpus rendered from
them has fewer sounds than one rendered here.
"""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[2]))

from recipes.corpus.human import FOLDER as PERFORMANCES
from recipes.corpus.patches import OTHERS, TABLE

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "deb:csound-soundfont", "deb:timgm6mb-soundfont", "deb:denemo-data", "models.py",
    "npm:@coderline/alphatab@1.8.4",
)  # fmt: skip
"""Sources that are small: 22 MB in all."""

PROGRAMS = ("usr/bin/mma", "usr/share/mma")
WHEELS = ("mido", "soundfile", "soxr", "cffi", "pycparser", "packaging")
LEFT_OUT = re.compile(r"(libc|libm|libdl|librt|libpthread|ld-linux[\w-]*|libgcc_s|libstdc\+\+)\.so")
"""Libraries that every machine has, and must keep its own of."""

LIMIT = 64 * 2**20


def rows_of(packages: tuple[str, ...], table: Path = TABLE) -> tuple[str, list[dict[str, str]]]:
    """A table of sources with the rows of some packages alone, as text and as rows."""
    with table.open(newline="") as stream:
        reader = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        rows = [row for row in reader if row["package"] in packages]
        names = list(reader.fieldnames or [])
    out = io.StringIO()
    writer = csv.DictWriter(
        out, names, delimiter="\t", quoting=csv.QUOTE_NONE, lineterminator="\n", quotechar=None
    )
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue(), rows


def libraries() -> list[Path]:
    """libfluidsynth and the libraries it loads, but for those of LEFT_OUT.

    Raises:
        ValueError: if it is not installed.
    """
    listed = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"libfluidsynth\.so\.\d+ .*=> (\S+)", listed)
    if found is None:
        raise ValueError("libfluidsynth was not found: install the Debian package `fluidsynth`")
    first = Path(found[1])
    needed = subprocess.run(["ldd", str(first)], capture_output=True, text=True, check=True).stdout
    paths = [first, *map(Path, re.findall(r"=> (/\S+)", needed))]
    return [path for path in paths if not LEFT_OUT.match(path.name)]


def pack(target: Path, files: dict[str, Path]) -> None:
    """A tar archive of files by their names in it."""
    with tarfile.open(target, "w:xz", preset=3) as tar:
        for name, path in sorted(files.items()):
            tar.add(path.resolve(), arcname=name)


def bundle(
    out: Path, packages: tuple[str, ...], sources: Path, root: Path = Path("/")
) -> list[Path]:
    """Writes everything but the Python packages.

    Arguments:
        out: the folder; emptied first.
        packages: of the sounds.
        sources: folder of the sounds that are of no Debian package, and of the performances.
        root: where the Debian packages are installed.

    Raises:
        ValueError: if a package has no sounds of stems, a file is not there, or a source is not a
            soundfont.
    """
    table, rows = rows_of(packages)
    if unknown := set(packages) - {row["package"] for row in rows}:
        raise ValueError(f"{TABLE} has no sources of {', '.join(sorted(unknown))}")
    if odd := {row["kind"] for row in rows} - {"sf2", "model"}:
        raise ValueError(f"sources of the kinds {', '.join(sorted(odd))} do not travel")
    wanted = {row["file"]: row["package"] for row in rows if row["kind"] == "sf2"}
    debian = {f: root / f for f, package in wanted.items() if package.startswith("deb:")}
    others = {f: sources / f for f, package in wanted.items() if not package.startswith("deb:")}
    others[PERFORMANCES] = sources / PERFORMANCES
    files = {**debian, **{name: root / name for name in PROGRAMS}}
    if missing := [str(path) for path in [*files.values(), *others.values()] if not path.exists()]:
        raise ValueError(f"not installed: {', '.join(missing)}; see recipes/corpus/README.md")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / "sources.tsv").write_text(table)
    (out / "others.tsv").write_text(rows_of(packages, OTHERS)[0])
    pack(out / "sources.tar.xz", others)
    pack(out / "files.tar.xz", files)
    pack(out / "libraries.tar.xz", {path.name: path for path in libraries()})
    return sorted(path for path in out.rglob("*") if path.is_file())


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
@click.option("--package", "packages", multiple=True, default=PACKAGES, help="Of the sounds.")
@click.option(
    "--sources",
    type=click.Path(path_type=Path),
    envvar="MGDM_CORPUS_SOURCES",
    default=Path("."),
    help="Folder of sounds of no Debian package.",
)
@click.option("--python", default="3.12", show_default=True, help="Its Python version.")
@click.option("--no-wheels", is_flag=True, help="The machine has all Python packages.")
def main(out: Path, packages: tuple[str, ...], sources: Path, python: str, no_wheels: bool) -> None:
    try:
        bundle(out, packages, sources)
        if not no_wheels:
            download_wheels(out / "wheels", python)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        raise click.ClickException(str(error)) from error
    size, tree = sum(p.stat().st_size for p in out.rglob("*") if p.is_file()), tree_size()
    click.echo(
        f"{out}: {size / 2**20:.1f} MiB, with the repository's {tree / 2**20:.1f} MiB of "
        f"{LIMIT / 2**20:.0f} MiB (the weights in pretrained/ stay here)"
    )
    if size + tree > LIMIT:
        raise click.ClickException("that is too much: choose fewer packages")


if __name__ == "__main__":
    main()
