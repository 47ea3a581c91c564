"""What travels to a machine without network, and the run there: rendered, trained, brought back."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from test_training import BACKBONE, NETWORK, SETTINGS, write_corpus

from recipes.corpus.human import FOLDER as PERFORMANCES
from recipes.prior import bundle, pieces, unpack
from recipes.prior import sounds as sounds_module
from recipes.prior.data import validation_crops
from recipes.prior.train import PriorTask, resume
from recipes.training.trainer import REWARM, Trainer, load_state

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(tmp_path: Path) -> Trainer:
    trainer = Trainer(PriorTask(SETTINGS, NETWORK, write_corpus(tmp_path / "corpus")))
    trainer.prepare()
    trainer.advance()
    trainer.advance()
    trainer.save(tmp_path / "checkpoint.pt")
    return trainer


# -- pieces --------------------


def test_pieces_make_the_averaged_weights_again(run: Trainer, tmp_path: Path) -> None:
    paths = pieces.split(tmp_path / "checkpoint.pt", tmp_path / "pieces", size=5000)
    assert len(paths) > 3
    assert all(path.stat().st_size <= 5000 for path in paths)
    # They come back in two calls, into two folders.
    (tmp_path / "more").mkdir()
    for path in paths[2:]:
        shutil.move(path, tmp_path / "more")
    step = pieces.join([tmp_path / "more", tmp_path / "pieces"], tmp_path / "b" / "checkpoint.pt")
    assert step == 2
    again = resume(tmp_path / "b" / "checkpoint.pt", run.task.corpus)  # type: ignore[attr-defined]
    assert (again.step, again.seconds, again.songs) == (run.step, run.seconds, run.songs)
    for key, value in run.average.state_dict().items():
        for net in (again.net, again.average):
            assert torch.allclose(net.state_dict()[key], value, rtol=1e-3, atol=1e-6), key
    assert torch.equal(again.net.sigma_data, run.net.sigma_data)
    assert not again.optimiser.state_dict()["state"]


def test_the_rate_rises_again_after_a_start_from_pieces(run: Trainer, tmp_path: Path) -> None:
    assert run.rate() == run.task.rate(2)
    pieces.split(tmp_path / "checkpoint.pt", tmp_path / "pieces")
    pieces.join([tmp_path / "pieces"], tmp_path / "checkpoint.pt")
    again = resume(tmp_path / "checkpoint.pt", run.task.corpus)  # type: ignore[attr-defined]
    assert again.rate() == pytest.approx(run.task.rate(2) / REWARM)
    again.advance()
    again.save(tmp_path / "checkpoint.pt")
    assert again.rate() == pytest.approx(run.task.rate(3) * 2 / REWARM)
    later = resume(tmp_path / "checkpoint.pt", run.task.corpus)  # type: ignore[attr-defined]
    assert later.rate() == again.rate()


def test_pieces_that_do_not_fit_together(run: Trainer, tmp_path: Path) -> None:
    folder = tmp_path / "pieces"
    paths = pieces.split(tmp_path / "checkpoint.pt", folder, size=5000)
    with pytest.raises(ValueError, match=r"no pieces\.json"):
        pieces.join([tmp_path / "nothing"], tmp_path / "x.pt")
    data = paths[1].read_bytes()
    paths[1].write_bytes(data[:-1] + b"!")
    with pytest.raises(ValueError, match="checksum"):
        pieces.join([folder], tmp_path / "x.pt")
    paths[1].unlink()
    with pytest.raises(ValueError, match=f"piece {paths[1].name} is missing"):
        pieces.join([folder], tmp_path / "x.pt")
    assert not (tmp_path / "x.pt").exists()
    # Another checkpoint's pieces take the place of all old ones.
    run.advance()
    run.save(tmp_path / "checkpoint.pt")
    new = pieces.split(tmp_path / "checkpoint.pt", folder)
    assert sorted(folder.glob("step*")) == sorted(new)


def test_pieces_fit_the_limit_of_a_transfer():
    assert pieces.PIECE < 16 * 2**20


# -- bundle --------------------

FONT, KIT = "deb:csound-soundfont", "github:becks/becks-drumkit"
GUITARS = ("npm:tonejs-instrument-guitar-acoustic-wav@1.1.0", "github:freepats/synth-bass-1")
RATE = 44100


def tone(seconds: float, channels: int = 1, rate: int = RATE) -> np.ndarray:
    """A decaying note of 300 Hz, (n, channels), the channels at different levels."""
    t = np.arange(int(seconds * rate)) / rate
    note = 0.2 * np.sin(2 * np.pi * 300 * t) * np.exp(-t)
    return note[:, None] * np.linspace(1, 0.5, channels)


def wav_with_loop(path: Path, sound: np.ndarray, first: int, last: int) -> bytes:
    """Writes a WAV file with one loop; returns the body of its `smpl` chunk."""
    soundfile.write(path, sound, RATE, "PCM_24", format="WAV")
    chunk = struct.pack("<9I", 0, 0, 22676, 60, 0, 0, 0, 1, 0) + struct.pack(
        "<6I", 0, 0, first, last, 0, 0
    )
    data = path.read_bytes() + b"smpl" + struct.pack("<I", len(chunk)) + chunk
    path.write_bytes(data[:4] + struct.pack("<I", len(data) - 8) + data[8:])
    return chunk


def small_font(path: Path, sounds: list[np.ndarray]) -> None:
    """A soundfont whose preset 0:2 sounds with the first sample, 0:3 with the second and so on."""

    def chunk(name: bytes, *parts: bytes) -> bytes:
        body = b"".join(parts)
        return name + struct.pack("<I", len(body)) + body

    smpl, heads = b"", []
    for k, sound in enumerate(sounds):
        start = len(smpl) // 2
        smpl += np.rint(sound * 32767).astype("<i2").tobytes() + bytes(92)
        end = start + len(sound)
        heads.append((b"s%d" % k, start, end, start + 10, end - 10, RATE, 60, 0, 0, 1))
    heads.append((b"EOS", 0, 0, 0, 0, 0, 0, 0, 0, 0))
    count = range(len(sounds) + 1)
    two = [struct.pack("<HH", k, 0) for k in count]
    pdta = [
        chunk(b"phdr", *(struct.pack("<20sHHHIII", b"p", 2 + k, 0, k, 0, 0, 0) for k in count)),
        chunk(b"pbag", *two),
        chunk(b"pmod", bytes(10)),
        chunk(b"pgen", *(struct.pack("<HH", 41, k) for k in count)),
        chunk(b"inst", *(struct.pack("<20sH", b"i", k) for k in count)),
        chunk(b"ibag", *two),
        chunk(b"imod", bytes(10)),
        chunk(b"igen", *(struct.pack("<HH", 53, k) for k in count)),
        chunk(b"shdr", *(struct.pack("<20s5IBbHH", *head) for head in heads)),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    info = chunk(b"LIST", b"INFO", chunk(b"ifil", struct.pack("<HH", 2, 1)))
    sdta = chunk(b"LIST", b"sdta", chunk(b"smpl", smpl))
    path.write_bytes(chunk(b"RIFF", b"sfbk", info, sdta, chunk(b"LIST", b"pdta", *pdta)))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders `root` and `sources` with the programs and a few sounds."""
    root, sources = tmp_path / "root", tmp_path / "sources"
    for name in ("usr/bin/mma", "usr/share/mma/lib/a.mma", "sfizz_render"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    (sources / PERFORMANCES).mkdir(parents=True)
    (sources / PERFORMANCES / "info.csv").write_text("id")
    monkeypatch.setattr(bundle, "libraries", lambda: [root / "usr/bin/mma"])
    monkeypatch.setattr(bundle, "sfizz", lambda: str(root / "sfizz_render"))
    return tmp_path


def there_and_back(home: Path, packages: tuple[str, ...]) -> Path:
    """Bundles packages and unpacks them; returns the folder they come into."""
    parts = bundle.bundle(home / "out", packages, home / "sources", home / "root")
    for part in parts:
        unpack.unpack(part, home / "work", home / "there", jobs=1)
    return home / "work"


def nearly(found: np.ndarray, sent: np.ndarray) -> bool:
    """Whether the noise of the coding is 20 dB below the sound."""
    assert found.shape == sent.shape
    return float(np.square(found - sent).mean()) < 0.01 * float(np.square(sent).mean())


def test_tables_of_the_sounds_that_travel(tmp_path: Path) -> None:
    packages = bundle.all_packages()
    text, rows = bundle.rows_of(packages)
    assert {row["package"] for row in rows} == set(packages)
    assert "deb:freepats" not in packages
    assert {row["stem"] for row in rows} == {"bass", "drums", "guitar", "piano"}
    original = bundle.TABLE.read_text().splitlines()
    assert set(text.splitlines()) <= set(original)
    for table in (bundle.TABLE, bundle.OTHERS):
        assert {row["split"] for row in bundle.rows_of(packages, table)[1]} == {"train"}
    with pytest.raises(ValueError, match="no train sources of deb:nothing"):
        bundle.bundle(tmp_path / "out", ("deb:nothing",), tmp_path)
    with pytest.raises(ValueError, match="kinds gus do not travel"):
        bundle.bundle(tmp_path / "out", ("deb:freepats",), tmp_path)


def test_a_source_that_is_missing_is_named(home: Path) -> None:
    with pytest.raises(ValueError, match=r"not installed: .*sf_GMbank\.sf2.*becks"):
        bundle.bundle(home / "out", (FONT, KIT), home / "sources", home / "root")


def test_samples_come_back_as_they_were(home: Path) -> None:
    folder = home / "sources" / "tonejs-instrument-guitar-acoustic-wav"
    folder.mkdir()
    sounds = {"A2": tone(0.4, 2), "A3": tone(0.6), "C4": tone(0.5) / 20}
    for name, sound in sounds.items():
        soundfile.write(folder / f"{name}.wav", sound, RATE, "PCM_16")
    chunk = wav_with_loop(folder / "C5.wav", tone(12.0), 400, 500_000)
    soundfile.write(folder / "C7.wav", tone(0.3), RATE)  # above what is played
    soundfile.write(folder / "G2.wav", tone(12.0), RATE)
    kit = home / "sources" / "becks-drumkit" / "becks"
    kit.mkdir(parents=True)
    drums = "<kit><instrument><name>{}</name><filename>{}</filename></instrument></kit>"
    (kit / "drumkit.xml").write_text(drums.format("Kick", "kick.flac"))
    soundfile.write(kit / "kick.flac", tone(0.3, rate=22050), 22050)
    soundfile.write(kit / "unused.flac", tone(0.3), RATE)
    work = there_and_back(home, (GUITARS[0], KIT))
    found = work / "sources" / folder.name
    assert {p.name for p in found.iterdir()} == {"A2.wav", "A3.wav", "C4.wav", "C5.wav", "G2.wav"}
    for name, sound in sounds.items():
        back, rate = soundfile.read(found / f"{name}.wav", always_2d=True)
        assert rate == RATE
        mean = np.repeat(sound.mean(1, keepdims=True), sound.shape[1], axis=1)
        assert nearly(back, mean), name
    # A loop keeps its sample whole; without one, what comes late has faded out.
    whole = (found / "C5.wav").read_bytes()
    assert sounds_module.loop_chunk(whole) == chunk
    assert struct.unpack_from("<I", whole, 4)[0] == len(whole) - 8
    assert nearly(soundfile.read(found / "C5.wav")[0], tone(12.0)[:, 0])
    cut = soundfile.read(found / "G2.wav")[0]
    assert len(cut) == 12 * RATE
    assert not cut[6 * RATE :].any()
    assert (found.parent / "becks-drumkit/becks/drumkit.xml").read_text().startswith("<kit>")
    back, rate = soundfile.read(found.parent / "becks-drumkit/becks/kick.flac")
    assert rate == 22050
    assert nearly(back, tone(0.3, rate=22050)[:, 0])
    assert not (found.parent / "becks-drumkit/becks/unused.flac").exists()


def test_an_instrument_comes_with_what_is_played_of_it(home: Path) -> None:
    folder = home / "sources" / "synth-bass-1"
    (folder / "samples").mkdir(parents=True)
    (folder / "more.txt").write_text("<region> sample=b.wav key=36 lorand=0.5 hirand=1\n")
    (folder / "SynthBass1 20190723.sfz").write_text(
        "<control> default_path=samples/\n<region> sample=a.flac lokey=20 hikey=30\n"
        '#include "more.txt"\n<region> sample=c.wav key=100\n'
    )
    for name in ("a.flac", "b.wav", "c.wav"):
        soundfile.write(folder / "samples" / name, tone(0.3), RATE)
    found = there_and_back(home, (GUITARS[1],)) / "sources" / folder.name
    text = (found / "SynthBass1 20190723.sfz").read_text()
    assert "sample=a.wav lokey=20" in text
    assert "seq_length=2 seq_position=2" in text
    assert "c.wav" not in text
    assert {p.name for p in (found / "samples").iterdir()} == {"a.wav", "b.wav"}
    assert nearly(soundfile.read(found / "samples" / "a.wav")[0], tone(0.3)[:, 0])
    (folder / "samples" / "b.wav").unlink()
    with pytest.raises(OSError, match=r"b\.wav"):
        there_and_back(home, (GUITARS[1],))


@pytest.mark.parametrize("limit", [0, 10**6])
def test_a_soundfont_keeps_the_samples_of_its_patches(
    limit: int, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "LOSSLESS", limit)
    path = "usr/share/sounds/sf2/sf_GMbank.sf2"
    sent = [tone(0.5)[:, 0], tone(0.25)[:, 0], 0.5 * tone(1.0)[:, 0]]
    small_font(home / "root" / path, sent)
    presets = {(row["bank"], row["program"]) for row in bundle.rows_of((FONT,))[1]}
    presets |= {(r["bank"], r["program"]) for r in bundle.rows_of((FONT,), bundle.OTHERS)[1]}
    kept = [k for k in range(3) if ("0", str(2 + k)) in presets]
    assert kept == [0, 1]
    there_and_back(home, (FONT,))
    data = (home / "there" / path).read_bytes()
    assert struct.unpack_from("<I", data, 4)[0] == len(data) - 8
    font = sounds_module.Font(home / "there" / path)
    for k, sound in enumerate(sent):
        found, head = font.sound(k), font.samples[k]
        if k not in kept:
            assert not found.any()
            continue
        assert (head[3] - head[1], head[2] - head[4]) == (10, 10)
        assert nearly(found, sound)
        if limit:
            assert np.array_equal(found, np.rint(sound * 32767) / 32768)
    assert font.used({(0, 3)}) == [1]


def test_parts_come_in_order_and_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_font(home / "root/usr/share/sounds/sf2/sf_GMbank.sf2", [tone(0.5)[:, 0]] * 2)
    kit = home / "sources" / "becks-drumkit" / "becks"
    kit.mkdir(parents=True)
    soundfile.write(kit / "kick.ogg", tone(0.3), RATE, format="OGG")
    monkeypatch.setattr(bundle, "PART", 1)
    parts = bundle.bundle(home / "out", (KIT, FONT), home / "sources", home / "root")
    assert [part.name for part in parts] == ["1", "2", "3"]
    work, there = home / "work", home / "there"
    (work / "tree/recipes/corpus").mkdir(parents=True)
    with pytest.raises(ValueError, match="part 1 has not been unpacked"):
        unpack.unpack(parts[1], work, there, jobs=1)
    # What lies in the system already stays as it is.
    own = there / "usr/share/mma/lib/a.mma"
    own.parent.mkdir(parents=True)
    own.write_text("own")
    for part in parts:
        assert " in " in unpack.unpack(part, work, there, jobs=1)
        assert "before" in unpack.unpack(part, work, there, jobs=1)
    assert own.read_text() == "own"
    assert (there / "usr/bin/mma").read_text() == "x"
    # A first part unpacked again, for new code, does not bring its smaller table back.
    (work / "tree/recipes/corpus/sources.tsv").write_text("of the repository")
    assert "before" in unpack.unpack(parts[0], work, there, jobs=1)
    for folder in (work / "tables", work / "tree/recipes/corpus"):
        assert (folder / "sources.tsv").read_text() == bundle.rows_of((FONT, KIT))[0]
        assert {p.name for p in folder.iterdir()} == {"sources.tsv", "others.tsv"}
    assert not [p for p in home.rglob("*") if p.name.startswith(".unpack")]


def test_songs_to_validate_on_come_cut(home: Path, tmp_path: Path) -> None:
    small_font(home / "root/usr/share/sounds/sf2/sf_GMbank.sf2", [tone(0.5)[:, 0]] * 2)
    corpus = tmp_path / "corpus"
    write_corpus(corpus)
    songs = bundle.Songs(tmp_path / "songs")
    songs.add(corpus, "corpus/valid", 2, 4096)
    parts = bundle.bundle(home / "out", (FONT,), home / "sources", home / "root", songs=songs)
    unpack.unpack(parts[0], home / "work", home / "there", jobs=1)
    found = validation_crops(home / "work/corpus/valid", 4096)
    assert np.array_equal(found, validation_crops(corpus, 4096)[:2])


def test_what_is_over_full_scale_in_a_coded_part_is_clipped(tmp_path: Path) -> None:
    t = np.arange(22050) / 22050
    soundfile.write(
        tmp_path / "x.ogg", 1.2 * np.sin(2 * np.pi * 300 * t), 22050, "VORBIS", format="OGG"
    )
    unpack.unpack_song(tmp_path / "x.ogg", tmp_path / "there", {"song": 0, "file": "0.npy"})
    found = np.load(tmp_path / "there" / "0.npy")
    assert found.dtype == np.int16
    assert found.shape == (1, 22050)
    peaks = np.sin(2 * np.pi * 300 * t) > 0.95
    assert found[0, peaks].min() > 32000
    assert np.abs(np.diff(found[0].astype(int))).max() < 5000  # no jump to the other sign


def test_a_training_that_runs_is_not_begun_again(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "train.pid").write_text(str(os.getpid()))
    done = subprocess.run(
        ["bash", str(ROOT / "recipes/prior/gpu.sh"), "begin", "1"],
        env={**os.environ, "WORK": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "training is running" in done.stderr
    assert "gpu.sh end first" in done.stderr
    assert (tmp_path / "tree").is_dir()  # what runs is as it was


@pytest.mark.parametrize("begun", [False, True])
def test_options_of_a_run_that_goes_on(begun: bool, tmp_path: Path) -> None:
    """train.py is given what is usual at a run's start, and what was asked for whenever it was."""
    for folder in ("corpus/train", "run-prior"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "corpus/train/index.jsonl").write_text("{}\n")
    if begun:
        (tmp_path / "run-prior/checkpoint.pt").write_text("")
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python").chmod(0o755)
    environment = {
        **os.environ, "WORK": str(tmp_path), "PYTHON": str(tmp_path / "python"), "FIRST": "1",
        "RECIPE": "prior", "BATCH": "7",
    }  # fmt: skip
    for name in ("SECONDS_OF_CROP", "NETWORK", "MORE"):
        environment.pop(name, None)
    told = subprocess.run(
        ["bash", str(ROOT / "recipes/prior/gpu.sh"), "train", "1"],
        env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "--batch 7" in told
    assert "--steps 20000" in told
    assert ("--seconds 3.99" in told) == ("--network" in told) == (not begun)


def test_a_part_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reel").write_bytes(bytes(3 * 2**20))
    bundle.check_size(tmp_path, 2**20)
    monkeypatch.setattr(bundle, "LIMIT", 3 * 2**20)
    with pytest.raises(click.ClickException, match="too much"):
        bundle.check_size(tmp_path, 2**20)


def test_scripts_of_the_system_stay_there():
    for name in ("libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2", "libstdc++.so.6"):
        assert bundle.LEFT_OUT.match(name)
    for name in ("libcrypto.so.3", "libmp3lame.so.0", "libglib-2.0.so.0", "libdbus-1.so.3"):
        assert not bundle.LEFT_OUT.match(name)


# -- everything, on a CPU with a tiny network --------------------

SOUNDS = Path(os.environ.get("MGDM_CORPUS_SOURCES", ROOT / "recipes/corpus/sources"))


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("mma") is None or not (SOUNDS / "sonivox.sf2").is_file(),
    reason="needs the programs and sounds of recipes/corpus",
)
@pytest.mark.parametrize("recipe", ["prior", "regressor"])
def test_render_train_stop_continue_bring_back(recipe: str, tmp_path: Path) -> None:
    work = tmp_path / "work"
    write_corpus(tmp_path / "valid", songs=1, samples=140_000)
    others = write_corpus(tmp_path / "valid-others", songs=1, samples=140_000)
    np.save(others.folder / "0.npy", np.load(others.folder / "0.npy")[:1])
    packages = ("deb:csound-soundfont", "deb:timgm6mb-soundfont", "deb:denemo-data", "models.py")
    options = [f"--package={package}" for package in packages]
    options += [f"--sources={SOUNDS}", "--songs=1", "--no-wheels", f"--valid={tmp_path / 'valid'}"]
    options += [f"--valid-others={others.folder}"]
    bundled = CliRunner().invoke(bundle.main, [str(work / "parts"), *options])
    assert bundled.exit_code == 0, bundled.output
    unet = {"channels": [4, 4, 4], "embedding": 8}
    network = BACKBONE if recipe == "prior" else unet

    def call(work: Path, out: str) -> dict[str, object]:
        environment = {
            **os.environ, "WORK": str(work), "OUT": str(tmp_path / out), "PYTHON": sys.executable,
            "RECIPE": recipe, "SONGS": "2", "FIRST": "2", "JOBS": "1", "RESIDENT": "0.2",
            "OTHERS": "2", "NETWORK": json.dumps(network),
            "STEPS": "1000000", "BATCH": "2", "SECONDS_OF_CROP": "0.5", "PRECISION": "fp32",
            "DEVICE": "cpu", "WORKERS": "0",
        }  # fmt: skip
        for arguments in (["begin", "0.3"], ["add", "1"], ["end"]):
            done = subprocess.run(
                ["bash", str(ROOT / "recipes/prior/gpu.sh"), *arguments],
                env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
        names = {path.name for path in (tmp_path / out).iterdir()}
        assert {"pieces.json", "log.jsonl", "curves.png"} < names
        assert len(names) <= 8
        return json.loads((tmp_path / out / "pieces.json").read_text())

    first = call(work, "one")
    assert load_state(work / f"run-{recipe}" / "checkpoint.pt")["step"] == first["step"] >= 1
    second = call(work, "two")
    assert second["step"] > first["step"]
    # Another machine: the bundle, the pieces that came back, and songs rendered anew or not.
    other = tmp_path / "other"
    shutil.copytree(work / "parts", other / "parts")
    shutil.copytree(work / "corpus", other / "corpus")
    shutil.copytree(tmp_path / "two", other / f"pieces-{recipe}")
    third = call(other, "three")
    assert third["step"] > second["step"]
    assert load_state(other / f"run-{recipe}" / "checkpoint.pt")["restart"] == second["step"]
