"""Writing: exact sums on disk, formats, large files, all or nothing."""

from __future__ import annotations

import errno
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

from mgdm_audio import audio, write

NOISE = 0.1 * np.random.default_rng(0).standard_normal((22050, 2))


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**31), st.sampled_from([16, 24, 32]), st.integers(1, 6), st.booleans())
def test_integers_add_up_and_none_moves_a_unit(seed, bits, stems, single):
    rng = np.random.default_rng(seed)
    dtype = np.float32 if single and bits < 32 else np.float64
    x = rng.uniform(-0.9, 0.9, (stems, 2, 50)).astype(dtype) / stems
    x[0, :, 10:20] = 0
    scale = 2.0 ** (bits - 1)
    mix = np.rint(x.astype(np.float64).sum(0) * scale) / scale
    x = (x + (mix - x.astype(np.float64).sum(0)) / stems).astype(dtype)
    units = write.quantise(x, mix, bits)
    assert np.array_equal(units.sum(0), np.rint(mix * scale))
    # Single precision misses the sum itself by up to a unit of 24 bits and more stems.
    bound = 1 if dtype == np.float64 else 1 + stems * scale * 2**-24
    assert np.abs(units - x.astype(np.float64) * scale).max() <= bound + 1e-3


def test_a_silent_stem_stays_silent():
    rng = np.random.default_rng(1)
    x = rng.uniform(-0.2, 0.2, (4, 1, 5000)).astype(np.float32)
    x[2] = 0
    mix = (np.rint(x.sum(0) * 2**15) / 2**15).astype(np.float32)
    x[0] += mix - x.sum(0)
    units = write.quantise(x, mix, 16)
    assert not units[2].any()
    assert np.array_equal(units.sum(0), np.rint(mix * 2.0**15))


def test_quantising_refuses_what_does_not_add_up():
    with pytest.raises(ValueError, match="add up"):
        write.quantise(np.zeros((4, 1, 8)), np.full((1, 8), 0.1), 16)


@pytest.mark.parametrize("channels", [1, 2, 7])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("length", [1, 2, audio.BLOCK + 1])
def test_written_stems_null(tmp_path, channels, subtype, length):
    rng = np.random.default_rng(length)
    sf.write(
        tmp_path / "mix.wav", rng.uniform(-0.5, 0.5, (length, channels)), 48000, subtype=subtype
    )
    mix = audio.read(tmp_path / "mix.wav").samples
    stems = rng.uniform(-0.1, 0.1, (4, channels, length)).astype(mix.dtype)
    stems[0] = mix - stems[1:].sum(0)
    paths = [tmp_path / "new" / "deep" / f"{i}.wav" for i in range(4)]
    assert write.write_stems(paths, stems, mix, 48000, subtype) == subtype
    dtype = "int32" if subtype.startswith("PCM") else "float64"
    parts = [sf.read(path, dtype=dtype, always_2d=True)[0] for path in paths]
    whole = sf.read(tmp_path / "mix.wav", dtype=dtype, always_2d=True)[0]
    miss = np.abs(np.sum(parts, axis=0, dtype=np.float64) - whole).max()
    assert miss == 0 if dtype == "int32" else miss <= 1e-6
    info = sf.info(paths[0])
    assert (info.frames, info.channels, info.samplerate) == (length, channels, 48000)
    assert info.subtype == subtype


def test_stems_beyond_full_scale_are_written_as_float_and_never_clipped(tmp_path):
    mix = np.full((1, 100), 0.25, np.float32)
    stems = np.concatenate([mix[None] + 1, -np.ones((1, 1, 100), np.float32)])
    paths = [tmp_path / "a.wav", tmp_path / "b.wav"]
    assert write.write_stems(paths, stems, mix, 22050, "PCM_16") == "FLOAT"
    for path, stem in zip(paths, stems, strict=True):
        assert np.array_equal(sf.read(path, dtype="float32")[0], stem[0])


def test_float_files_do_not_tell_the_time(tmp_path):
    x = NOISE[:100].T[None].astype(np.float32)
    write.write_stems([tmp_path / "a.wav"], x, x[0], 44100, "FLOAT")
    data = (tmp_path / "a.wav").read_bytes()
    stamp = data.index(b"PEAK") + 12
    assert data[stamp : stamp + 4] == bytes(4)
    assert np.array_equal(sf.read(tmp_path / "a.wav", dtype="float32")[0].T, x[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nothing_that_is_not_finite_is_written(tmp_path, bad):
    stems = np.zeros((2, 1, 5), np.float32)
    stems[1, 0, 3] = bad
    with pytest.raises(ValueError, match="finite"):
        write.write_stems(
            [tmp_path / "o/a.wav", tmp_path / "o/b.wav"], stems, stems[0], 8000, "PCM_16"
        )
    assert not (tmp_path / "o").exists()


def test_a_failure_leaves_no_file_and_no_new_folder(tmp_path):
    kept = tmp_path / "kept.wav"
    kept.write_text("old")

    def interrupted():
        with write.staged([kept, tmp_path / "x/y/z.wav"]) as temporary:
            for path in temporary:
                path.write_text("partial")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert kept.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.wav"]


def test_a_failing_write_is_an_os_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(self, data):
        raise sf.LibsndfileError(2, "Error in write: ")

    monkeypatch.setattr(sf.SoundFile, "write", full)
    x = np.zeros((2, 1, 10), np.float32)
    with pytest.raises(OSError, match="cannot write"):
        write.write_stems([tmp_path / "o/a.wav", tmp_path / "o/b.wav"], x, x[0], 8000, "FLOAT")
    assert not (tmp_path / "o").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no disk that is full")
@pytest.mark.parametrize("container", ["wav", "flac"])
def test_a_disk_that_fills_up_while_files_are_written(tmp_path, container):
    full = tmp_path / f"full.{container}"
    full.symlink_to("/dev/full")
    x = NOISE.T[None]
    with pytest.raises(write.NoSpace, match=r"no space left .* \(-o\)$"):
        write.write_blocks([full], [(0,)], [(x, x[0])], 44100, 2, 22050, "PCM_16", container)


@pytest.mark.parametrize(("container", "missing"), [("wav", 1), ("wav", 50_000), ("flac", 100)])
def test_the_reason_of_a_failing_write_is_told(tmp_path, container, missing):
    """Also of the last block of a FLAC file, of which libsndfile says nothing."""
    resource = pytest.importorskip("resource")
    x = NOISE.T[None]
    whole, cut = tmp_path / f"whole.{container}", tmp_path / "o" / f"cut.{container}"
    write.write_stems([whole], x, x[0], 44100, "PCM_16", None, container)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole.stat().st_size - missing, hard))
    try:
        with pytest.raises(OSError, match="cannot write: File too large") as error:
            write.write_stems([cut], x, x[0], 44100, "PCM_16", None, container)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG
    assert not cut.parent.exists()


def test_a_name_that_is_a_folder_s_is_refused_before_anything_is_replaced(tmp_path):
    (tmp_path / "a.wav").write_text("old")
    (tmp_path / "b.wav").mkdir()
    x = np.zeros((2, 1, 10), np.float32)
    with pytest.raises(OSError, match=r"b\.wav: is a folder; rename it"):
        write.write_stems([tmp_path / "a.wav", tmp_path / "b.wav"], x, x[0], 8000, "FLOAT")
    assert (tmp_path / "a.wav").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "b.wav"]


def test_names_on_another_file_system_than_the_work_folder(tmp_path):
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one file system")
    work = tmp_path / ".work"
    work.mkdir()
    with tempfile.TemporaryDirectory(dir=memory) as elsewhere:
        (tmp_path / "linked").symlink_to(elsewhere)
        paths = [tmp_path / "linked" / "a.wav", tmp_path / "own" / "b.wav"]
        with write.staged(paths, work) as temporary:
            assert [path.parent for path in temporary] == [paths[0].parent, work]
            for path in temporary:
                path.write_text("new")
        assert [path.read_text() for path in paths] == ["new", "new"]
        assert [path.name for path in Path(elsewhere).iterdir()] == ["a.wav"]


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("x")
    x = np.zeros((1, 1, 10), np.float32)
    with pytest.raises(OSError, match="file"):
        write.write_stems([tmp_path / "file/a.wav"], x, x[0], 8000, "FLOAT")
    assert (tmp_path / "file").read_text() == "x"


def test_names_as_long_as_the_file_system_allows(tmp_path):
    x = np.zeros((1, 1, 10), np.float32)
    path = tmp_path / ("n" * 251 + ".wav")
    write.write_stems([path], x, x[0], 8000, "PCM_16")
    assert path.exists()


def test_sums_of_stems_and_their_null(tmp_path):
    rng = np.random.default_rng(2)
    stems = rng.uniform(-0.2, 0.2, (4, 2, 1000)).astype(np.float32)
    mix = (np.rint(stems.sum(0) * 2.0**15) / 2**15).astype(np.float32)
    stems[0] += mix - stems.sum(0)
    paths = [tmp_path / "bass.flac", tmp_path / "rest.flac"]
    blocks = [(stems[..., i : i + 333], mix[..., i : i + 333]) for i in range(0, 1000, 333)]
    write.write_blocks(paths, [(0,), (1, 2, 3)], blocks, 44100, 2, 1000, "PCM_16", "flac")
    parts = [sf.read(path, dtype="int16")[0].astype(int) for path in paths]
    assert np.array_equal(sum(parts), np.rint(mix.T * 2.0**15))
    assert np.abs(parts[1] - stems[1:].sum(0).T * 2.0**15).max() <= 3


def test_a_sum_may_be_in_range_where_a_stem_is_not(tmp_path):
    stems = np.stack([np.full((1, 10), 1.5), np.full((1, 10), -1.25)]).astype(np.float32)
    blocks = [(stems, stems.sum(0))]
    write.write_blocks([tmp_path / "a.wav"], [(0, 1)], blocks, 8000, 1, 10, "PCM_16")
    assert (sf.read(tmp_path / "a.wav")[0] == 0.25).all()
    with pytest.raises(write.OutOfRange):
        write.write_blocks([tmp_path / "b.wav"], [(0,)], blocks, 8000, 1, 10, "PCM_16")


def test_large_files_are_rf64(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "LARGEST_WAV", 100)
    x = np.full((1, 1, 60), 0.5, np.float32)
    write.write_stems([tmp_path / "a.wav"], x, x[0], 8000, "PCM_16")
    assert (tmp_path / "a.wav").read_bytes()[:4] == b"RF64"
    assert (sf.read(tmp_path / "a.wav")[0] == 0.5).all()


def test_missing_frames_are_an_error(tmp_path):
    x = np.zeros((1, 1, 9), np.float32)
    with pytest.raises(ValueError, match="expected 10 frames"):
        write.write_blocks([tmp_path / "a.wav"], [(0,)], [(x, x[0])], 8000, 1, 10, "PCM_16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("wav", "VORBIS", 44100, 2), "subtype"),
        (("mp3", "PCM_16", 44100, 2), "wav or flac"),
        (("flac", "FLOAT", 44100, 2), "does not hold"),
        (("flac", "PCM_24", 44100, 9), "at most 8"),
        (("flac", "PCM_24", 700000, 2), "655350"),
        (("flac", "PCM_16", 95904, 2), "steps of 10 Hz, got 95904; use wav"),
    ],
)
def test_formats_that_do_not_exist(arguments, message):
    with pytest.raises(ValueError, match=message):
        write.check_format(*arguments)


@pytest.mark.parametrize("rate", [44_101, 65_535, 65_540, 96_000, 655_350])
def test_rates_that_flac_has(tmp_path, rate):
    write.check_format("flac", "PCM_16", rate, 1)
    x = np.zeros((1, 1, 10), np.float32)
    write.write_stems([tmp_path / "a.flac"], x, x[0], rate, "PCM_16", None, "flac")
    assert sf.info(tmp_path / "a.flac").samplerate == rate


def test_too_little_space_is_an_error(tmp_path):
    write.check_space(tmp_path / "not" / "yet", 1000)
    with pytest.raises(OSError, match="GB are needed"):
        write.check_space(tmp_path / "not" / "yet", 1 << 60)


def test_single_precision_in_long_integers():
    """Some hundred units are missing then; they are shared out at once."""
    stems = 0.1 * np.random.default_rng(0).standard_normal((4, 2, 65_536)).astype(np.float32)
    stems[3] = 0
    mix = stems.sum(0)
    units = write.quantise(stems, mix, 32)
    assert units is not None
    assert np.array_equal(units.sum(0), np.rint(mix.astype(np.float64) * 2**31))
    assert not units[3].any()
    assert np.abs(units - stems.astype(np.float64) * 2**31).max() < 500


def test_threads_do_not_take_each_other_s_files(tmp_path):
    def kept(number):
        stems = np.full((4, 1, 20_000), 0.01 * number, np.float32)
        paths = [tmp_path / f"{number}-{k}.wav" for k in range(4)]
        write.write_stems(paths, stems, stems.sum(0), 8000, "FLOAT")
        return paths

    with ThreadPoolExecutor(4) as pool:
        for number, paths in enumerate(pool.map(kept, range(1, 9)), 1):
            assert all(np.allclose(sf.read(path)[0], 0.01 * number) for path in paths)
