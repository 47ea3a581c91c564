"""The shared trainer: the same run on any number of processes, parts and data workers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recipes.prior.data import StemCorpus
from recipes.prior.train import PriorTask, Settings
from recipes.training.log import Log, Window, chart, level_name, read
from recipes.training.processes import Processes, relaunch, wanted
from recipes.training.scoring import separation_score
from recipes.training.trainer import Runtime, Trainer, load_state

ROOT = Path(__file__).parents[1]
BACKBONE = {
    "channels": [4, 4], "blocks": [1, 1], "width": 8, "depth": 1, "embedding": 8,
}  # fmt: skip
NETWORK = {
    "class": "TokenUNet",
    "args": {"backbone": {**BACKBONE, "bins": 128}, "stft": {"n_fft": 256}},
}
SETTINGS = Settings(steps=4, batch=4, samples=4096, lr=1e-2)


def write_corpus(folder: Path, songs: int = 3, samples: int = 12_000) -> StemCorpus:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "index.jsonl").open("w") as index:
        for n in range(songs):
            np.save(folder / f"{n}.npy", rng.normal(0, 1000, (4, samples + n)).astype(np.int16))
            line = {"song": n, "file": f"{n}.npy", "samples": samples + n}
            index.write(json.dumps(line) + "\n")
    return StemCorpus(folder)


@pytest.fixture
def corpus(tmp_path: Path) -> StemCorpus:
    return write_corpus(tmp_path / "corpus")


def trained(corpus: StemCorpus, steps: int = 4, **runtime: Any) -> Trainer:
    trainer = Trainer(PriorTask(SETTINGS, NETWORK, corpus), runtime=Runtime(**runtime))
    for _ in range(steps):
        trainer.advance()
    return trainer


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[key] - b[key]).abs().max()) for key in a)


def test_parts_and_workers_change_nothing(corpus):
    whole = trained(corpus).net.state_dict()
    fresh = trained(corpus, steps=0).net.state_dict()
    moved = distance(whole, fresh)
    assert moved > 1e-4
    for runtime in ({"micro": 1}, {"micro": 3}):
        # Adam's first moves have the size of the rate whatever the gradient's: rounding counts.
        assert distance(trained(corpus, **runtime).net.state_dict(), whole) < 0.05 * moved
    assert distance(trained(corpus, workers=1).net.state_dict(), whole) == 0


def test_the_batch_is_shared_out(corpus):
    """Two processes see what one sees, each its half."""
    task = PriorTask(SETTINGS, NETWORK, corpus)
    whole = next(Trainer(task)._loader())
    halves = []
    for rank in range(2):
        trainer = Trainer(task)
        trainer.processes = Processes(rank, 2, torch.device("cpu"))
        trainer.share = trainer.micro = 2
        halves.append(next(trainer._loader()))
    for key, value in whole.items():
        assert torch.equal(torch.cat([half[key] for half in halves]), value)


def test_batch_that_cannot_be_shared(corpus):
    with pytest.raises(ValueError, match=r"batch of 4 items cannot be shared by 3.*checkpoint's"):
        Trainer(PriorTask(SETTINGS, NETWORK, corpus), Processes(0, 3, torch.device("cpu")))


def test_averaged_weights(corpus):
    plain = PriorTask(replace(SETTINGS, ema=0.0), NETWORK, corpus)
    trainer = Trainer(plain)
    trainer.advance()
    trainer.advance()
    assert distance(trainer.net.state_dict(), trainer.average.state_dict()) == 0
    trainer = trained(corpus, steps=1)
    before = {k: v.clone() for k, v in trainer.average.state_dict().items()}
    trainer.advance()
    after, own = trainer.average.state_dict(), trainer.net.state_dict()
    for key in before:  # decay (1 + 1) / (1 + 10) in the second step
        mixed = before[key] * 2 / 11 + own[key] * 9 / 11
        assert torch.allclose(after[key], mixed, atol=1e-6), key


def test_new_songs_are_taken_up_with_a_checkpoint(corpus, tmp_path):
    trainer = trained(corpus, steps=1)
    write_corpus(corpus.folder, songs=5)
    trainer.advance()
    assert trainer.songs == 3
    trainer.refresh()
    assert trainer.songs == 5
    trainer.save(tmp_path / "c.pt")
    state = load_state(tmp_path / "c.pt")
    assert state["songs"] == 5  # what a continued run has is what this one goes on with
    shutil.rmtree(corpus.folder)
    write_corpus(corpus.folder, songs=2)
    elsewhere = trained(StemCorpus(corpus.folder), steps=0)
    elsewhere.load(state)
    assert elsewhere.songs == 2
    elsewhere.advance()


def test_data_processes_outlive_a_signal_to_the_group(corpus):
    """They end with the run, by DataLoader's last resort too, and where new songs are taken up."""
    trainer = trained(corpus, steps=1, workers=1)

    def worker() -> Any:
        return trainer._batches._workers[0]  # type: ignore[union-attr]

    first = worker()
    # From another process, as a scheduler would.
    subprocess.run(["bash", "-c", f"kill -TERM {first.pid}"], check=True)
    time.sleep(0.2)
    for _ in range(4):  # more than was made ahead
        trainer.advance()
    assert worker() is first
    assert first.is_alive()
    write_corpus(corpus.folder, songs=5)
    trainer.refresh()
    first.join(20)
    assert first.exitcode == 0
    trainer.advance()
    second = worker()
    second.terminate()
    second.join(20)
    assert second.exitcode == 0


def test_a_folder_without_songs_and_room_for_none_are_named(tmp_path):
    (tmp_path / "index.jsonl").write_text("")
    with pytest.raises(ValueError, match=f"{tmp_path} holds no song"):
        Trainer(PriorTask(SETTINGS, NETWORK, StemCorpus(tmp_path)))
    corpus = write_corpus(tmp_path / "corpus")
    with pytest.raises(ValueError, match=r"--resident 0\.0001 has room for no song"):
        trained(corpus, steps=0, resident=1e-4)


def test_a_gradient_that_is_not_finite_stops_the_run(corpus):
    trainer = trained(corpus, steps=1)
    before = {k: v.clone() for k, v in trainer.net.state_dict().items()}
    with torch.no_grad():
        trainer.net.sigma_data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="step 1 is not finite"):
        trainer.advance()
    for name, value in trainer.net.named_parameters():
        assert torch.equal(value, before[name])


def test_a_failed_save_leaves_the_old_checkpoint(corpus, tmp_path, monkeypatch):
    trainer = trained(corpus, steps=0)
    path = tmp_path / "checkpoint.pt"
    trainer.save(path)
    before = path.read_bytes()

    def fail(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space"):
        trainer.save(path)
    assert path.read_bytes() == before


def test_devices_and_launch(monkeypatch):
    assert wanted("3") == 3
    assert wanted("auto") == max(1, torch.cuda.device_count())
    for wrong in ("0", "-1", "two"):
        with pytest.raises(ValueError, match="expected auto or a number"):
            wanted(wrong)
    assert not relaunch(1)
    monkeypatch.setenv("RANK", "1")
    assert not relaunch(4)  # one of those that were started


def test_losses_by_level_and_stem():
    window = Window()
    window.add(torch.tensor([[1.0, 3.0], [5.0, 7.0]]), torch.tensor([0.011, 0.9]))
    window.add(torch.tensor([[3.0, 5.0]]), torch.tensor([0.009]))
    levels, stems = window.summary(Processes(0, 1, torch.device("cpu")))
    assert levels == {"0.01": 3.0, "1": 6.0}
    assert stems == [3.0, 5.0]
    assert level_name(20.0) == "1"


def test_log_of_a_run_that_went_back(tmp_path):
    """Lines after the checkpoint are of a lost part; a line that was cut off is passed over."""
    with Log(tmp_path, 0, ("bass",)) as log:
        for step in (100, 200, 300):
            log.write({"step": step, "loss": {"0.1": 0.5}, "stems": [0.4], "lr": 1e-3})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 400, "lo')
    with Log(tmp_path, 200, ("bass",)) as log:
        log.write({"step": 250, "valid": {"0.1": 0.3}, "score": {"bass": float("nan")}})
        log.chart(tmp_path / "curves.png")
    assert [line["step"] for line in read(tmp_path / "log.jsonl")] == [100, 200, 250]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "tensorboard").iterdir())
    chart([], ("bass",), tmp_path / "empty.png")


def test_separation_score_of_a_perfect_denoiser():
    """Stems in bands of their own, and the denoiser that knows them."""
    from conftest import BandGaussian

    class Bands(BandGaussian):
        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

    net = Bands().double().float()
    rng = np.random.default_rng(0)
    f = np.fft.rfftfreq(2**16)
    crops = []
    for _ in range(2):
        stems = []
        for centre in net.centre.tolist():
            distance = np.log(f + 1e-3) - np.log(centre)
            white = np.fft.rfft(rng.normal(size=2**16))
            stems.append(np.fft.irfft(white * 0.1 * np.exp(-(distance**2))))
        crops.append(np.stack(stems).astype(np.float32))
    score = separation_score(net, np.stack(crops))
    assert set(score) == {"bass", "drums", "guitar", "piano", "all"}
    assert score["all"] > 3

    class Broken(Bands):
        def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return x * float("inf")

    assert np.isnan(separation_score(Broken(), np.stack(crops))["all"])


# -- the command, in processes of its own --------------------

PLAIN = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def command(corpus: Path, out: Path, *args: str) -> list[str]:
    return [
        sys.executable, str(ROOT / "recipes/prior/train.py"), "--corpus", str(corpus), "--out",
        str(out), "--batch", "2", "--seconds", "0.4", "--network", json.dumps(BACKBONE),
        "--device", "cpu", *args,
    ]  # fmt: skip


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "songs" / "train", samples=30_000)
    write_corpus(tmp_path / "songs" / "valid", songs=1, samples=140_000)
    return tmp_path / "songs"


def run(args: list[str]) -> str:
    done = subprocess.run(
        args, env={**os.environ, **PLAIN}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(songs, tmp_path):
    """Gloo on the CPU, the same command; then the run goes on in one process alone."""
    run(command(songs, tmp_path / "one", "--steps", "6"))
    run(command(songs, tmp_path / "two", "--steps", "6", "--devices", "2", "--minutes", "1000"))
    one, two = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("one", "two")
    )
    assert one["step"] == two["step"] == 6
    assert one["seconds"] == two["seconds"]
    fresh = Trainer(PriorTask(
        Settings(**one["settings"]), one["network"], StemCorpus(songs / "train")
    ))  # fmt: skip
    moved = distance(one["net"], fresh.net.state_dict())
    assert distance(one["net"], two["net"]) < 0.05 * moved
    assert distance(one["average"], two["average"]) < 0.05 * moved
    logs = [read(tmp_path / name / "log.jsonl") for name in ("one", "two")]
    for a, b in zip(*logs, strict=True):
        for group in ("loss", "valid"):
            assert a.get(group, {}).keys() == b.get(group, {}).keys()
            for key, value in a.get(group, {}).items():
                assert value == pytest.approx(b[group][key], rel=1e-2)
    assert [line for line in logs[0] if "score" in line]
    assert (tmp_path / "two" / "curves.png").is_file()
    text = run(command(songs, tmp_path / "two", "--steps", "8"))
    assert "continues at step 6 of 8" in text


def torchrun(args: list[str], *options: str) -> list[str]:
    """The command as one of the README's lines: so many processes, on this of the machines."""
    return [args[0], "-m", "torch.distributed.run", *options, *args[1:]]


def descendants(pid: int) -> list[int]:
    """A process and all that it started and they started."""
    found = [pid]
    for parent in found:
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False
        )
        found += [int(child) for child in listed.stdout.split()]
    return found


def killed(commands: list[list[str]], checkpoint: Path) -> int:
    """Runs commands until they write a checkpoint, kills all their processes; gives its step."""
    before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
    started = [subprocess.Popen(args, env={**os.environ, **PLAIN}) for args in commands]
    try:
        end = time.monotonic() + 300
        while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before:
            assert time.monotonic() < end
            assert all(process.poll() is None for process in started)
            time.sleep(0.01)
    finally:
        # torchrun gives its processes sessions of their own, in which they would outlive it.
        for pid in [pid for process in started for pid in descendants(process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in started:
            process.wait()
    return torch.load(checkpoint, weights_only=True)["step"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ps") is None, reason="kills processes with ps")
def test_killed_and_continued_with_other_numbers_of_processes(songs, tmp_path):
    """Two processes, then two machines of one, then one alone; the lines are the README's."""
    steps = ["--steps", "60", "--save-minutes", "0", "--validate-minutes", "1000"]
    run(command(songs, tmp_path / "one", *steps))
    args, checkpoint = command(songs, tmp_path / "out", *steps), tmp_path / "out" / "checkpoint.pt"
    first = killed([torchrun(args, "--standalone", "--nproc-per-node=2")], checkpoint)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = [
        torchrun(
            args, "--nnodes=2", "--nproc-per-node=1", f"--node-rank={rank}",
            "--master-addr=127.0.0.1", f"--master-port={port}",
        )
        for rank in range(2)
    ]  # fmt: skip
    second = killed(machines, checkpoint)
    assert 0 < first < second < 60
    assert f"continues at step {second} of 60" in run(args)
    one, out = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("one", "out")
    )
    assert out["step"] == one["step"] == 60
    assert out["seconds"] == one["seconds"]
    last = [read(tmp_path / name / "log.jsonl") for name in ("one", "out")]
    curves = [[line["valid"] for line in log if "valid" in line][-1] for log in last]
    for key, value in curves[0].items():
        assert curves[1][key] == pytest.approx(value, rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_told_to_stop_it_writes_its_checkpoint(songs, tmp_path, workers):
    """Also where its whole group is told, data processes included."""
    args = command(songs, tmp_path / "run", "--steps", "1000000", "--workers", str(workers))
    process = subprocess.Popen(
        args, env={**os.environ, **PLAIN}, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    assert "step 100 " in process.stderr.readline()
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=300) == 0
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["step"] >= 100
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "checkpoint.pt", "log.jsonl", "curves.png", "tensorboard",
    }  # fmt: skip
