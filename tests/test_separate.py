"""From recordings to stems: sums, shapes, levels, seeds, refusals."""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from mgdm_audio import STEMS, Separator, song
from mgdm_audio.audio import AudioError, resample
from mgdm_audio.files import Options, Task, separate_files
from mgdm_audio.metrics import si_sdr_improvement
from mgdm_audio.recording import ArraySource, Heard, in_memory
from mgdm_audio.samplers.mgdm import MGDM
from mgdm_audio.store import MemoryStore

CHEAP = {"steps": 6, "repetitions": 1, "gradient_steps": ((0, 2),), "sigma_max": 1.0}


@pytest.fixture
def separator(prior):
    return Separator(prior, window=16384, overlap=4096, **CHEAP)


def test_separates_what_the_prior_tells_apart(prior, music):
    stems = Separator(prior).separate(music.sum(0), 22050, seed=0).stems
    for name, true in zip(STEMS, music, strict=True):
        assert si_sdr_improvement(stems[name], true, music.sum(0)) > 10, name


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", [8000, 22050, 44100, 96000])
def test_rate_channels_length_and_sum(separator, channels, rate):
    rng = np.random.default_rng(rate + channels)
    x = 0.1 * rng.standard_normal((channels, 9973)).astype(np.float32)
    before = x.copy()
    result = separator.separate(x, rate, seed=1)
    assert list(result.stems) == list(STEMS)
    assert result.sample_rate == rate
    assert all(stem.shape == x.shape and stem.dtype == x.dtype for stem in result.stems.values())
    assert np.abs(sum(result.stems.values()) - x).max() < 1e-6
    assert np.array_equal(x, before)


@pytest.mark.parametrize("length", [1, 2, 16383, 16384, 16385, 28673, 40009])
def test_every_length(separator, length):
    x = np.random.default_rng(length).standard_normal(length).astype(np.float32) * 0.1
    result = separator.separate(x, 22050, seed=1)
    assert all(stem.shape == x.shape for stem in result.stems.values())
    assert np.abs(sum(result.stems.values()) - x).max() < 1e-6


def test_channels_keep_their_place(separator, music):
    left = np.stack([music.sum(0), np.zeros_like(music[0])])
    for stem in separator.separate(left, 22050, seed=0).stems.values():
        assert np.abs(stem[1]).max() < 1e-6
    assert np.abs(separator.separate(left, 22050, seed=0).stems["bass"][0]).max() > 0.01


def test_channels_that_cancel_are_reported(separator, music):
    mix = music.sum(0)
    result = separator.separate(np.stack([mix, -mix]), 44100, seed=0)
    assert "cancel" in result.warnings[0]
    assert np.abs(sum(result.stems.values()) - np.stack([mix, -mix])).max() < 1e-6
    assert separator.separate(np.stack([mix, mix]), 44100, seed=0).warnings == ()


def test_stems_that_miss_the_mix_are_reported(prior, music, tmp_path):
    """By a sampler whose prior answers with a constant, a hundred times as loud as the mix."""

    class Constant(torch.nn.Module):
        def forward(self, x, sigma):
            return torch.full_like(x, 10.0) + 0 * x

    wrong = dataclasses.replace(prior, denoise=Constant())
    mix = music.sum(0)[:20000]
    result = Separator(wrong, "dps", "fast", window=16384, overlap=4096).separate(
        mix, 22050, seed=0
    )
    assert result.residual_db > 0
    assert "misses the mix" in result.warnings[-1]
    assert np.abs(sum(result.stems.values()) - mix).max() < 1e-5
    sf.write(tmp_path / "mix.wav", mix, 22050, subtype="FLOAT")
    task = Task(tmp_path / "mix.wav", {n: tmp_path / f"{n}.wav" for n in STEMS}, tmp_path / "work")
    separator = Separator(wrong, "dps", "fast", window=16384, overlap=4096)
    (written,) = separate_files(separator, [task], Options(seed=0))
    assert any("misses the mix" in warning for warning in written.report["warnings"])


def test_upper_band_is_kept(separator, music):
    wide = resample(music.sum(0), 22050, 44100)
    hiss = np.sin(2 * np.pi * 15000 * np.arange(wide.size) / 44100).astype(np.float32) * 0.05
    stems = separator.separate(wide + hiss, 44100, seed=0).stems
    assert np.abs(sum(stems.values()) - wide - hiss).max() < 1e-6


def test_level_does_not_matter(separator, music):
    mix = music.sum(0)
    loud = separator.separate(mix, 22050, seed=5).stems["bass"]
    quiet = separator.separate(mix * np.float32(2**-12), 22050, seed=5).stems["bass"]
    assert np.abs(quiet * 2**12 - loud).max() < 1e-3 * np.abs(loud).max()


@pytest.mark.parametrize("length", [20, 200, 1000, 2204, 2205, 10_000])
def test_short_recordings_are_heard_at_the_prior_s_level(length):
    x = np.random.default_rng(length).standard_normal((1, length)).astype(np.float32)
    heard = Heard(ArraySource(x, 22050), 22050, 0.1)
    heard.scan()
    # One that is longer than a tenth of a second may end in a block that is not full.
    assert np.sqrt(heard.mean_square()) == pytest.approx(0.1, rel=1e-5 if length < 2206 else 0.1)


def test_the_quietest_recordings(separator, music):
    mix = music.sum(0)[:16384]
    mix = np.stack([mix, 0.5 * mix])
    loud = separator.separate(mix, 44100, seed=5).stems["bass"]
    quiet = separator.separate(mix * np.float32(2**-100), 44100, seed=5).stems["bass"]
    assert np.abs(quiet.astype(np.float64) * 2**100 - loud).max() < 1e-3 * np.abs(loud).max()
    with pytest.raises(AudioError, match="too quiet, 881 dB below full scale; amplify it first"):
        separator.separate(np.full((1, 9000), 1e-44, np.float32), 22050, seed=5)


def test_silence_stays_silent(separator):
    result = separator.separate(np.zeros((2, 30000), np.float32), 44100)
    assert all(not stem.any() for stem in result.stems.values())
    assert result.stats["calls"] == 0


def test_silent_windows_cost_nothing(separator, music):
    mix = np.concatenate([music.sum(0)[:16384], np.zeros(60000, np.float32)])
    result = separator.separate(mix, 22050, seed=0)
    assert result.stats["windows"] == 6
    assert result.stats["calls"] == 2 * MGDM(**CHEAP).cost().calls
    assert not any(stem[40000:].any() for stem in result.stems.values())


def test_seed_decides(separator, music):
    mix = music.sum(0)
    first, again, other = (separator.separate(mix, 22050, seed=s).stems["drums"] for s in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    free = separator.separate(mix, 22050)
    assert np.array_equal(
        free.stems["drums"], separator.separate(mix, 22050, seed=free.seed).stems["drums"]
    )


@pytest.mark.parametrize("seams", ["fade", "condition"])
def test_batches_give_the_same(prior, music, seams):
    settings = {"window": 16384, "overlap": 4096, "average": 2, "seams": seams, **CHEAP}
    one, three = (
        Separator(prior, batch=b, **settings).separate(music.sum(0), 22050, seed=2) for b in (1, 3)
    )
    for name in STEMS:
        assert np.array_equal(one.stems[name], three.stems[name]), name


def test_items_of_a_batch_are_what_they_are_alone(prior, music):
    """As on a GPU, where a batch goes through the network at once."""
    separator = Separator(prior, window=16384, overlap=4096, batch=3, seams="fade", **CHEAP)
    source = ArraySource(music.sum(0)[None], 22050)
    track = song.Song(source, separator.song_settings, 2, MemoryStore(), 1)
    track.scan()
    jobs = track.ready(3)
    together, calls, vjps = separator._draw_together(jobs, lambda done: None)
    for job, stems in zip(jobs, together, strict=True):
        alone, each, gradients = separator._draw_together([job], lambda done: None)
        assert (alone[0] - stems).abs().max() < 1e-5
        assert (calls, vjps) == (3 * each, 3 * gradients)


@pytest.mark.parametrize("seams", ["fade", "condition"])
def test_average_is_the_mean_of_the_samples(prior, music, monkeypatch, seams):
    # The consistency step depends on the stems' powers; what is left after it is linear.
    monkeypatch.setattr(
        song, "consistent", lambda pieces, *_: (piece[:-1].clone() for piece in pieces)
    )
    mix = music.sum(0)
    settings = {"window": 16384, "overlap": 4096, "seams": seams, **CHEAP}
    three = Separator(prior, average=3, **settings).separate(mix, 22050, seed=4)
    single = Separator(prior, **settings)
    each = [single.separate(mix, 22050, seed=4 + s) for s in range(3)]
    assert three.stats["calls"] == sum(result.stats["calls"] for result in each)
    for name in STEMS:
        mean = sum(result.stems[name] for result in each) / 3
        assert np.abs(three.stems[name] - mean).max() < 1e-5


def test_global_random_state_is_left_alone(separator, music):
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002  the legacy global state is what must not move
    before, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    separator.separate(music.sum(0), 22050)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_kinds_of_samples(separator, music, dtype):
    mix = music.sum(0)
    x = (mix * 32767).astype(dtype) if dtype == np.int16 else mix.astype(dtype)
    array = separator.separate(x, 22050, seed=0).stems["bass"]
    assert array.dtype == (np.float64 if dtype == np.float64 else np.float32)
    tensor = separator.separate(torch.from_numpy(x), 22050, seed=0).stems["bass"]
    assert isinstance(tensor, torch.Tensor)
    assert np.array_equal(tensor.numpy(), array)


def test_bfloat16_is_taken_as_float32(separator, music):
    x = torch.from_numpy(music.sum(0)).bfloat16()
    stem = separator.separate(x, 22050, seed=0).stems["bass"]
    assert stem.dtype == torch.float32
    assert torch.equal(stem, separator.separate(x.float(), 22050, seed=0).stems["bass"])


@pytest.mark.parametrize(
    "rate",
    [44100, np.int64(44100), np.uint16(44100), 44100.0, np.float32(44100), Fraction(44100)],
    ids=lambda rate: type(rate).__name__,
)
def test_whole_rates_of_any_type(rate):
    recording, _ = in_memory(np.zeros(4, np.float32), rate)
    assert (recording.sample_rate, type(recording.sample_rate)) == (44100, int)


@pytest.mark.parametrize(
    "rate",
    [44100.5, "44100", True, np.bool_(True), 0, -44100, 0.5, float("nan"), float("inf"), [44100]],
    ids=repr,
)
def test_rates_that_are_no_whole_number(rate):
    message = f"sample_rate must be a whole number of hertz, got {rate!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        in_memory(np.zeros(4, np.float32), rate)


def test_progress_is_whole_and_can_cancel(separator, music):
    seen = []
    mix = music.sum(0)
    separator.separate(mix, 22050, callback=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == 4 * MGDM(**CHEAP).cost().calls

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        separator.separate(mix, 22050, callback=stop)
    separator.separate(mix, 22050)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((0,), np.float32), "not be empty"),
        (np.zeros((44100, 2), np.float32), "transpose"),
        (np.array([0.0, np.nan], np.float32), "sample 1"),
        (np.zeros((2, 2, 2), np.float32), "shape"),
        (np.zeros(4, np.uint8), "floats or signed"),
    ],
)
def test_refuses_samples(separator, bad, message):
    with pytest.raises(AudioError, match=message):
        separator.separate(bad, 22050)


def test_refuses_settings(prior):
    with pytest.raises(ValueError, match="trained from"):
        Separator(prior, sigma_max=50.0)
    with pytest.raises(ValueError, match="no preset"):
        Separator(prior, preset="nothing")
    with pytest.raises(ValueError, match="unknown sampler"):
        Separator(prior, method="nothing")
    with pytest.raises(ValueError, match="not available"):
        Separator(prior, device="cuda:42")
    with pytest.raises(ValueError, match="sample_rate"):
        Separator(prior, **CHEAP).separate(np.zeros(4, np.float32))


def test_not_finite_is_an_error(prior, music):
    class Broken(torch.nn.Module):
        def forward(self, x, sigma):
            return x * float("nan")

    broken = dataclasses.replace(prior, denoise=Broken())
    with pytest.raises(FloatingPointError):
        Separator(broken, **CHEAP).separate(music.sum(0), 22050)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize("channels", [1, 2])
def test_written_stems_null(separator, music, tmp_path, subtype, channels):
    mix = resample(music.sum(0), 22050, 44100)
    stereo = np.stack([mix, 0.5 * np.roll(mix, 30)])[:channels]
    sf.write(tmp_path / "song.wav", stereo.T, 44100, subtype=subtype)
    result = separator.separate(tmp_path / "song.wav", seed=0)
    paths = {name: tmp_path / "out" / f"{name}.wav" for name in STEMS}
    assert result.write(paths) == subtype
    dtype = "float64" if subtype == "FLOAT" else "int32"
    read = [sf.read(p, dtype=dtype, always_2d=True)[0] for p in [*paths.values()]]
    source = sf.read(tmp_path / "song.wav", dtype=dtype, always_2d=True)[0]
    rest = np.abs(sum(r.astype(np.float64) for r in read) - source).max()
    assert rest == 0 if dtype == "int32" else rest <= 1e-6
    assert sf.info(paths["bass"]).samplerate == 44100


def test_some_stems_are_those_of_all(separator, music, tmp_path):
    """Units that rounding shares out do not depend on what is written."""
    sf.write(tmp_path / "song.wav", music.sum(0), 22050, subtype="PCM_16")
    result = separator.separate(tmp_path / "song.wav", seed=0)
    result.write({name: tmp_path / "all" / f"{name}.wav" for name in STEMS})
    some = {"piano": str(tmp_path / "some" / "p.wav"), "drums": tmp_path / "some" / "d.wav"}
    assert result.write(some) == "PCM_16"
    assert {path.name for path in (tmp_path / "some").iterdir()} == {"p.wav", "d.wav"}
    for name, path in some.items():
        assert Path(path).read_bytes() == (tmp_path / "all" / f"{name}.wav").read_bytes()


def test_stems_of_a_tensor_are_written(separator, music, tmp_path):
    result = separator.separate(torch.from_numpy(music.sum(0)), 22050, seed=0)
    assert result.write({"drums": str(tmp_path / "d.wav")}) == "FLOAT"
    assert np.array_equal(sf.read(tmp_path / "d.wav", dtype="float32")[0], result.stems["drums"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("bass", "voice"), "^there is no stem 'voice'; there are bass, drums, guitar, piano$"),
        ((), "^no stem is named; there are bass, drums, guitar, piano$"),
    ],
)
def test_stems_that_cannot_be_written(separator, music, tmp_path, names, message):
    result = separator.separate(music.sum(0)[:4000], 22050, seed=0)
    with pytest.raises(ValueError, match=message):
        result.write({name: tmp_path / "out" / f"{name}.wav" for name in names})
    assert not (tmp_path / "out").exists()


def test_two_stems_of_one_file_are_refused(separator, music, tmp_path):
    result = separator.separate(music.sum(0)[:4000], 22050, seed=0)
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for other in ("out/x.wav", "out/../out/x.wav", "link/x.wav"):
        with pytest.raises(ValueError, match=r"bass and piano would both be written to .*x\.wav"):
            result.write({"bass": tmp_path / "out" / "x.wav", "piano": str(tmp_path / other)})
    assert not any((tmp_path / "out").iterdir())
