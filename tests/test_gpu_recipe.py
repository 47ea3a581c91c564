"""What travels to a machine without network, and the run there: rendered, trained, brought back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from test_training import BACKBONE, NETWORK, SETTINGS, write_corpus

from recipes.corpus.human import FOLDER as PERFORMANCES
from recipes.prior import bundle, pieces
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


def test_table_of_the_sounds_that_travel(tmp_path: Path) -> None:
    text, rows = bundle.rows_of(bundle.PACKAGES)
    assert {row["package"] for row in rows} == set(bundle.PACKAGES)
    for split in ("train", "valid"):
        stems = {row["stem"] for row in rows if row["split"] == split}
        assert stems == {"bass", "drums", "guitar", "piano"}
    original = bundle.TABLE.read_text().splitlines()
    assert set(text.splitlines()) <= set(original)
    _, others = bundle.rows_of(bundle.PACKAGES, bundle.OTHERS)
    assert {row["split"] for row in others} == {"train", "valid"}
    with pytest.raises(ValueError, match="no sources of deb:nothing"):
        bundle.bundle(tmp_path / "out", ("deb:nothing",), tmp_path)


def test_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, sources = tmp_path / "root", tmp_path / "sources"
    for name in ("usr/bin/mma", "usr/share/mma/lib/a.mma"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    packages = ("deb:csound-soundfont", "npm:@coderline/alphatab@1.8.4")
    with pytest.raises(ValueError, match=r"not installed: .*sf_GMbank\.sf2.*sonivox\.sf2.*groove"):
        bundle.bundle(tmp_path / "out", packages, sources, root)
    font = root / "usr/share/sounds/sf2/sf_GMbank.sf2"
    font.parent.mkdir(parents=True)
    font.write_text("font")
    (sources / PERFORMANCES).mkdir(parents=True)
    (sources / PERFORMANCES / "info.csv").write_text("id")
    (sources / "sonivox.sf2").write_text("font")
    monkeypatch.setattr(bundle, "libraries", lambda: [font])
    bundle.bundle(tmp_path / "out", packages, sources, root)
    with tarfile.open(tmp_path / "out" / "files.tar.xz") as tar:
        assert {m.name for m in tar if m.isfile()} == {
            "usr/bin/mma", "usr/share/mma/lib/a.mma", "usr/share/sounds/sf2/sf_GMbank.sf2",
        }  # fmt: skip
    with tarfile.open(tmp_path / "out" / "sources.tar.xz") as tar:
        assert {m.name for m in tar if m.isfile()} == {"sonivox.sf2", f"{PERFORMANCES}/info.csv"}
    with pytest.raises(ValueError, match="kinds sfz do not travel"):
        bundle.bundle(tmp_path / "out2", ("github:freepats/upright-piano-KW",), sources, root)


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
    bundle.bundle(work / "parts", bundle.PACKAGES, SOUNDS)
    unet = {"channels": [4, 4, 4], "embedding": 8}
    network = BACKBONE if recipe == "prior" else unet

    def call(work: Path, out: str) -> dict[str, object]:
        environment = {
            **os.environ, "WORK": str(work), "OUT": str(tmp_path / out), "PYTHON": sys.executable,
            "RECIPE": recipe, "SONGS": "2", "FIRST": "2", "VALID": "1", "JOBS": "1",
            "OTHERS": "2", "NETWORK": json.dumps(network),
            "STEPS": "1000000", "BATCH": "2", "SECONDS_OF_CROP": "0.5", "PRECISION": "fp32",
            "DEVICE": "cpu", "WORKERS": "0", "RESERVE": "0", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        done = subprocess.run(
            ["bash", str(ROOT / "recipes/prior/gpu.sh"), "0.2"],
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
