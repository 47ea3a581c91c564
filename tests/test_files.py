"""From files to files: the null test for any rate, format and length; killed and resumed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mgdm_audio import STEMS, Separator, write
from mgdm_audio.files import Options, Task, output_format, separate_files
from mgdm_audio.store import FolderStore

sys.path.insert(0, str(Path(__file__).parent))

from conftest import make_prior

CHEAP = {"steps": 4, "repetitions": 1, "gradient_steps": ((0, 1),), "sigma_max": 1.0}
WINDOW = {"window": 8192, "overlap": 2048}


def task(source, folder, names=STEMS, report=False):
    outputs = {name: folder / f"{name}.wav" for name in names}
    return Task(source, outputs, folder / ".work", folder / "report.json" if report else None)


def noise(path, length, channels=1, rate=22050, subtype="PCM_16", seed=0, form=None):
    """Noise with a slow swell, so that windows differ; not at full scale."""
    rng = np.random.default_rng(seed)
    swell = 0.5 + 0.4 * np.sin(np.arange(length) / 3000)
    x = np.clip(0.15 * rng.standard_normal((length, channels)) * swell[:, None], -0.9, 0.9)
    sf.write(path, x, rate, subtype=subtype, format=form)
    return path


@pytest.fixture(scope="module")
def separator():
    return Separator(make_prior(), **WINDOW, **CHEAP)


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rate=st.sampled_from([8000, 11025, 22050, 22051, 44100, 48000, 96000, 192000]),
    channels=st.integers(1, 8),
    length=st.sampled_from([1, 2, 3, 997, 8191, 8192, 8193, 14336, 14337, 16411]),
    form=st.sampled_from(
        [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "PCM_32"), ("WAV", "FLOAT"),
         ("WAV", "DOUBLE"), ("WAV", "PCM_U8"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24")]
    ),
    container=st.sampled_from(["wav", "flac"]),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_length_null_and_place_of_channels(
    separator, tmp_path_factory, rate, channels, length, form, container, seed
):
    folder = tmp_path_factory.mktemp("null")
    kind, subtype = form
    path = noise(folder / "in", length, channels, rate, subtype, seed, kind)
    if channels > 1:  # one channel is silent, and stays so: they are not swapped
        x, _ = sf.read(path, dtype="float64", always_2d=True)
        x[:, seed % channels] = 0
        sf.write(path, x, rate, subtype=subtype, format=kind)
    whole = sf.read(path, dtype="float64", always_2d=True)[0]
    outputs = {name: folder / f"{name}.{container}" for name in STEMS}
    options = Options(seed=seed, container=container)
    (result,) = separate_files(separator, [Task(path, outputs, folder / "w")], options)
    if container == "flac" and "full scale" in str(result.error):
        return
    assert result.error is None, result.error
    parts = [sf.read(p, dtype="float64", always_2d=True)[0] for p in outputs.values()]
    assert all(part.shape == whole.shape for part in parts)
    wanted = output_format(subtype, container, None)
    assert {sf.info(p).subtype for p in outputs.values()} <= {wanted, "FLOAT"}
    assert sf.info(outputs["bass"]).samplerate == rate
    miss = np.abs(sum(parts) - whole).max()
    if wanted.startswith("PCM") and result.report["subtype"] != "FLOAT":
        bits = int(wanted[-2:])
        assert miss <= (0 if subtype not in ("FLOAT", "DOUBLE", "PCM_32") else 2.0 ** (1 - bits))
    else:
        assert miss <= 1e-6
    if channels > 1:
        silent = max(np.abs(part[:, seed % channels]).max() for part in parts)
        assert silent <= (2.0**-6 if subtype == "PCM_U8" else 1e-6)
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        ["in", *(f"{name}.{container}" for name in STEMS)]
    )


def test_files_are_what_the_array_gives(separator, tmp_path):
    path = noise(tmp_path / "a.wav", 50_000, 2, 44100, "FLOAT")
    (result,) = separate_files(separator, [task(path, tmp_path / "o")], Options(seed=3))
    assert result.error is None
    array = separator.separate(sf.read(path, dtype="float32")[0].T, 44100, seed=3)
    for name in STEMS:
        found = sf.read(tmp_path / "o" / f"{name}.wav", dtype="float32")[0].T
        assert np.array_equal(found, array.stems[name])


@pytest.mark.parametrize("size", [1, 3])
def test_a_song_does_not_depend_on_the_others_in_the_call(tmp_path, size):
    separator = Separator(make_prior(), batch=size, **WINDOW, **CHEAP)
    paths = [
        noise(tmp_path / f"{i}.wav", length, seed=i, subtype="FLOAT")
        for i, length in enumerate((30_000, 5_000, 20_000))
    ]
    together = [task(path, tmp_path / "t" / path.stem) for path in paths]
    for result in separate_files(separator, together, Options(seed=1)):
        assert result.error is None
    for path in paths:
        alone = task(path, tmp_path / "a" / path.stem)
        (result,) = separate_files(separator, [alone], Options(seed=1))
        assert result.error is None
        for name in STEMS:
            a, b = (sf.read(tmp_path / k / path.stem / f"{name}.wav")[0] for k in "ta")
            assert np.array_equal(a, b)


def test_errors_are_results_and_leave_nothing(separator, tmp_path):
    good = noise(tmp_path / "good.wav", 9000)
    (tmp_path / "text.wav").write_text("no audio\n" * 100)
    many = noise(tmp_path / "many.wav", 900, channels=9)
    tasks = [task(tmp_path / n, tmp_path / "o" / n) for n in ("text.wav", "gone.wav", "good.wav")]
    results = list(separate_files(separator, tasks, Options(seed=0)))
    assert {r.task.source.name: r.error is None for r in results} == {
        "text.wav": False,
        "gone.wav": False,
        "good.wav": True,
    }
    assert [p.name for p in (tmp_path / "o").iterdir()] == [good.name]
    flac = Options(seed=0, container="flac")
    (result,) = separate_files(separator, [task(many, tmp_path / "f")], flac)
    assert "at most 8 channels" in str(result.error)
    assert not (tmp_path / "f").exists()


def test_a_lock_keeps_a_second_process_out(separator, tmp_path):
    path = noise(tmp_path / "a.wav", 9000)
    with FolderStore(tmp_path / "o" / ".work"):
        (result,) = separate_files(separator, [task(path, tmp_path / "o")], Options(seed=0))
    assert "another process" in str(result.error)


def cancel_after(calls):
    def told(task, done, total):
        if done >= calls:
            raise KeyboardInterrupt

    return told


def test_cancelled_and_resumed(separator, tmp_path):
    path = noise(tmp_path / "a.wav", 40_000)
    (whole,) = separate_files(separator, [task(path, tmp_path / "whole", report=True)], Options(9))
    per_window = separator.sampler.cost().calls
    cut = task(path, tmp_path / "cut", report=True)
    with pytest.raises(KeyboardInterrupt):
        list(separate_files(separator, [cut], Options(9), cancel_after(2 * per_window + 1)))
    assert [p.name for p in (tmp_path / "cut").iterdir()] == [".work"]
    # Another seed would be another song; without one, the seed is the one of the finished windows.
    (refused,) = separate_files(separator, [cut], Options(10, resume=True))
    assert "seed was 9 and is now 10" in str(refused.error)
    assert refused.kept
    (resumed,) = separate_files(separator, [cut], Options(resume=True))
    assert resumed.error is None
    assert resumed.report["seed"] == 9
    assert 0 < resumed.report["stats"]["calls"] < whole.report["stats"]["calls"]
    for name in STEMS:
        a, b = (tmp_path / k / f"{name}.wav" for k in ("whole", "cut"))
        assert a.read_bytes() == b.read_bytes()
    report = json.loads((tmp_path / "cut" / "report.json").read_text())
    assert report == json.loads(json.dumps(resumed.report))
    assert not (tmp_path / "cut" / ".work").exists()


def test_what_is_there_needs_no_room_again(separator, tmp_path, monkeypatch):
    path, cut = noise(tmp_path / "a.wav", 40_000), task(tmp_path / "a.wav", tmp_path / "o")
    per_window, needed = separator.sampler.cost().calls, []

    def asked(folder, size, check=write.check_space):
        needed.append(size)
        check(folder, size)

    monkeypatch.setattr(write, "check_space", asked)
    with pytest.raises(KeyboardInterrupt):
        list(separate_files(separator, [cut], Options(9), cancel_after(3 * per_window + 1)))
    there = sum(found.stat().st_size for found in cut.work.glob("*.f32"))
    assert there > 100_000
    # So much is left of what there was room for.
    usage = SimpleNamespace(free=needed[0] - there)
    monkeypatch.setattr(write.shutil, "disk_usage", lambda folder: usage)
    (refused,) = separate_files(separator, [task(path, tmp_path / "new")], Options(9))
    assert isinstance(refused.error, write.NoSpace)
    (resumed,) = separate_files(separator, [cut], Options(9, resume=True))
    assert resumed.error is None


def test_damaged_state_is_made_again(separator, tmp_path):
    path = noise(tmp_path / "a.wav", 40_000)
    (whole,) = separate_files(separator, [task(path, tmp_path / "whole")], Options(9))
    assert whole.error is None
    per_window = separator.sampler.cost().calls
    cut = task(path, tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        list(separate_files(separator, [cut], Options(9), cancel_after(3 * per_window + 1)))
    for name in ("window-000002.f32", "known-000002-0000.f32"):
        damaged = cut.work / name
        damaged.write_bytes(damaged.read_bytes()[:-5])
    (resumed,) = separate_files(separator, [cut], Options(9, resume=True))
    assert resumed.error is None
    for name in STEMS:
        a, b = (tmp_path / k / f"{name}.wav" for k in ("whole", "cut"))
        assert a.read_bytes() == b.read_bytes()


def test_a_failing_write_keeps_the_windows(separator, tmp_path, monkeypatch):
    path = noise(tmp_path / "a.wav", 20_000)

    def full(self, data):
        raise sf.LibsndfileError(2, "Error in write: ")

    with monkeypatch.context() as patch:
        patch.setattr(sf.SoundFile, "write", full)
        (result,) = separate_files(separator, [task(path, tmp_path / "o")], Options(1))
    assert isinstance(result.error, OSError)
    assert result.kept
    assert [p.name for p in (tmp_path / "o").iterdir()] == [".work"]
    (again,) = separate_files(separator, [task(path, tmp_path / "o")], Options(1, resume=True))
    assert again.error is None
    assert again.report["stats"]["calls"] == 0


CHILD = """
import os, signal, sys, threading, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch
torch.set_num_threads(1)
from test_files import CHEAP, WINDOW, make_prior, task
from mgdm_audio import Separator
from mgdm_audio.files import Options, separate_files
seconds, settings = float(sys.argv[4]), eval(sys.argv[5])
separator = Separator(make_prior(), **WINDOW, **CHEAP, **settings)
began = time.process_time()
# By time of the processor, which does not depend on what else the machine does.
def kill():
    while time.process_time() - began < seconds:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=kill, daemon=True).start()
(result,) = separate_files(
    separator, [task(Path(sys.argv[2]), Path(sys.argv[3]), report=True)], Options(5, resume=True)
)
assert result.error is None, result.error
print(time.process_time() - began)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills with a signal")
@pytest.mark.parametrize("settings", [{}, {"batch": 3, "average": 2, "seams": "fade"}])
def test_killed_at_ten_random_moments_and_resumed(tmp_path, settings):
    path = noise(tmp_path / "a.wav", 600_000, 2, 44100)

    def separate(folder, seconds):
        command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), path, folder,
                   str(seconds), repr(settings)]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True)

    whole = separate(tmp_path / "whole", 1e9)
    assert whole.returncode == 0, whole.stderr
    wanted = {name: (tmp_path / "whole" / f"{name}.wav").read_bytes() for name in STEMS}
    rng = random.Random(0)
    kills = finished = runs = 0
    while kills < 10 or not finished:
        folder = tmp_path / f"run{runs}"
        done = separate(folder, rng.uniform(0, float(whole.stdout)) if kills < 10 else 1e9)
        # Whatever has a final name is complete.
        for name, content in wanted.items():
            found = folder / f"{name}.wav"
            assert not found.exists() or found.read_bytes() == content
        if done.returncode == -signal.SIGKILL:
            kills += 1
            continue
        assert done.returncode == 0, done.stderr
        names = [*(f"{name}.wav" for name in STEMS), "report.json"]
        assert sorted(p.name for p in folder.iterdir()) == sorted(names)
        finished, runs = finished + 1, runs + 1
    assert kills == 10


MEMORY = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import numpy as np, soundfile as sf, torch
torch.set_num_threads(1)
from test_files import make_prior, task
from mgdm_audio import Separator
from mgdm_audio.files import Options, separate_files
separator = Separator(make_prior(), steps=4, repetitions=1, gradient_steps=((0, 1),), sigma_max=1.0)
separator._draw = lambda jobs, told: (
    torch.stack([job.mix.expand(4, -1) / 4 for job in jobs]), len(jobs), 0
)
path, minutes = Path(sys.argv[2]), int(sys.argv[3])
# Two channels at a rate that is not the prior's: all steps, but not so many samples.
tone = 0.2 * np.sin(np.arange(8000 * 10)[:, None] * [0.05, 0.07])
with sf.SoundFile(path, "w", 8000, 2, "PCM_16") as file:
    for _ in range(6 * minutes):
        file.write(tone)
(result,) = separate_files(separator, [task(path, path.parent / "o")], Options(0))
assert result.error is None, result.error
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_an_hour_needs_no_more_memory_than_ten_minutes(tmp_path):
    peaks = []
    for minutes in (10, 60):
        (tmp_path / str(minutes)).mkdir()
        path = tmp_path / str(minutes) / "a.wav"
        command = [sys.executable, "-c", MEMORY, str(Path(__file__).parent), path, str(minutes)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
        frames = sf.info(path).frames
        assert sf.info(path.parent / "o" / "bass.wav").frames == frames
        for found in path.parent.rglob("*.wav"):
            found.unlink()
    assert peaks[1] < 1.1 * peaks[0]
