"""Audio files: reading what is there, refusing what is not, exact sums on disk, all or nothing."""

from __future__ import annotations

import os

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

from mgdm_audio import audio
from mgdm_audio.audio import AudioError

NOISE = 0.1 * np.random.default_rng(0).standard_normal((22050, 2))


def write(path, subtype, x=NOISE, rate=44100):
    sf.write(path, x, rate, subtype=subtype)
    return path


def halve(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


@pytest.mark.parametrize(
    ("name", "subtype", "out", "dtype"),
    [
        ("a.wav", "PCM_U8", "PCM_16", np.float32),
        ("a.wav", "PCM_16", "PCM_16", np.float32),
        ("a.wav", "PCM_24", "PCM_24", np.float32),
        ("a.wav", "PCM_32", "PCM_32", np.float64),
        ("a.wav", "FLOAT", "FLOAT", np.float32),
        ("a.wav", "DOUBLE", "DOUBLE", np.float64),
        ("a.wav", "ULAW", "PCM_16", np.float32),
        ("a.flac", "PCM_16", "PCM_16", np.float32),
        ("a.flac", "PCM_24", "PCM_24", np.float32),
        ("a.ogg", "VORBIS", "FLOAT", np.float32),
        ("a.mp3", "MPEG_LAYER_III", "FLOAT", np.float32),
    ],
)
def test_formats(tmp_path, name, subtype, out, dtype):
    recording = audio.read(write(tmp_path / name, subtype))
    assert recording.samples.shape == (2, 22050)
    assert recording.samples.dtype == dtype
    assert recording.sample_rate == 44100
    assert recording.warnings == ()
    assert audio.output_subtype(recording.subtype) == out
    reference = sf.read(tmp_path / name, dtype="float64")[0].T
    assert np.array_equal(recording.samples, reference.astype(dtype))


def test_names_do_not_matter(tmp_path):
    write(tmp_path / "a.flac", "PCM_16")
    for name in ("flac-named.wav", "NO_EXTENSION", "[x] *ü é.WAV", "-o.wav", "n" * 200 + ".flac"):
        (tmp_path / name).write_bytes((tmp_path / "a.flac").read_bytes())
        assert audio.read(tmp_path / name).samples.shape == (2, 22050)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.wav", b"", "contains no audio"),
        ("text.wav", b"this is not audio at all\n" * 40, "is not a WAV, FLAC, OGG or MP3 file"),
        ("text.raw", b"this is not audio at all\n" * 40, "is not a WAV, FLAC, OGG or MP3 file"),
        ("stub.wav", b"RIFF", "is not a WAV, FLAC, OGG or MP3 file"),
    ],
)
def test_refuses_what_is_no_audio(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    for function in (audio.inspect, audio.read):
        with pytest.raises(AudioError, match=message) as caught:
            function(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_refuses_what_is_no_file(tmp_path):
    (tmp_path / "link.wav").symlink_to(tmp_path / "nowhere.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    write(tmp_path / "header.wav", "PCM_16", np.zeros((0, 2)))
    for name, message in {
        "missing.wav": "No such file",
        "link.wav": "broken symbolic link",
        "pipe.wav": "not a regular file",
        ".": "is a folder",
        "header.wav": "0 frames",
    }.items():
        with pytest.raises(AudioError, match=message) as caught:
            audio.inspect(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_refuses_samples_that_are_not_finite(tmp_path, bad):
    x = NOISE.copy()
    x[11025, 1] = bad
    write(tmp_path / "a.wav", "FLOAT", x)
    with pytest.raises(AudioError, match=r"0\.250000 s \(frame 11025, channel 2\)"):
        audio.read(tmp_path / "a.wav")


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_truncated_wav_is_read_with_a_warning(tmp_path, subtype):
    recording = audio.read(halve(write(tmp_path / "a.wav", subtype)))
    frames = recording.samples.shape[1]
    (warning,) = recording.warnings
    assert "22050 frames" in warning
    assert f"only {frames} " in warning


def test_truncated_mp3_and_ogg_are_read_with_a_warning(tmp_path):
    (warning,) = audio.read(halve(write(tmp_path / "a.mp3", "MPEG_LAYER_III"))).warnings
    assert "22050 frames" in warning
    longer = np.tile(NOISE, (4, 1))
    (warning,) = audio.read(halve(write(tmp_path / "a.ogg", "VORBIS", longer))).warnings
    assert "no end mark" in warning


def test_truncated_flac_is_refused(tmp_path):
    with pytest.raises(AudioError, match="damaged or truncated"):
        audio.read(halve(write(tmp_path / "a.flac", "PCM_16")))


def test_a_wav_written_to_a_pipe_declares_nothing(tmp_path):
    path = write(tmp_path / "a.wav", "PCM_16")
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = data[4:8] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    recording = audio.read(path)
    assert recording.warnings == ()
    assert recording.samples.shape == (2, 22050)


def test_a_header_alone_allocates_nothing(tmp_path):
    path = write(tmp_path / "a.wav", "PCM_16")
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = (0xF0000000).to_bytes(4, "little")
    path.write_bytes(data)
    recording = audio.read(path)
    assert recording.samples.shape == (2, 22050)
    assert "truncated" in recording.warnings[0]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3000),
    st.sampled_from([8000, 11025, 22050, 22051, 44100, 48000, 96000, 192000]),
)
def test_resampling_there_and_back_keeps_the_length(length, rate):
    x = np.ones((2, length), np.float32)
    there = audio.resample(x, rate, 22050)
    assert there.shape == (2, -(-length * 22050 // rate))
    back = audio.resample(there, 22050, rate, length)
    assert back.shape == x.shape
    assert back.dtype == np.float32


def test_resampling_is_in_time_and_in_tune():
    def tone(rate, seconds=1.0):
        return np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)

    for rate in (8000, 44100, 48000, 96000):
        ours = audio.resample(tone(22050), 22050, rate)
        inner = slice(rate // 10, -rate // 10)
        assert np.abs(ours - tone(rate))[inner].max() < 1e-5


def test_resampling_copies_and_refuses():
    x = np.ones(5, np.float32)
    assert not np.shares_memory(audio.resample(x, 8000, 8000), x)
    with pytest.raises(ValueError, match="positive"):
        audio.resample(x, 0, 8000)


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
    units = audio.quantise(x, mix, bits)
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
    units = audio.quantise(x, mix, 16)
    assert not units[2].any()
    assert np.array_equal(units.sum(0), np.rint(mix * 2.0**15))


def test_quantising_refuses_what_does_not_add_up():
    with pytest.raises(ValueError, match="add up"):
        audio.quantise(np.zeros((4, 1, 8)), np.full((1, 8), 0.1), 16)


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
    assert audio.write_stems(paths, stems, mix, 48000, subtype) == subtype
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
    assert audio.write_stems(paths, stems, mix, 22050, "PCM_16") == "FLOAT"
    for path, stem in zip(paths, stems, strict=True):
        assert np.array_equal(sf.read(path, dtype="float32")[0], stem[0])


def test_float_files_do_not_tell_the_time(tmp_path):
    x = NOISE[:100].T[None].astype(np.float32)
    audio.write_stems([tmp_path / "a.wav"], x, x[0], 44100, "FLOAT")
    data = (tmp_path / "a.wav").read_bytes()
    stamp = data.index(b"PEAK") + 12
    assert data[stamp : stamp + 4] == bytes(4)
    assert np.array_equal(sf.read(tmp_path / "a.wav", dtype="float32")[0].T, x[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nothing_that_is_not_finite_is_written(tmp_path, bad):
    stems = np.zeros((2, 1, 5), np.float32)
    stems[1, 0, 3] = bad
    with pytest.raises(ValueError, match="finite"):
        audio.write_stems(
            [tmp_path / "o/a.wav", tmp_path / "o/b.wav"], stems, stems[0], 8000, "PCM_16"
        )
    assert not (tmp_path / "o").exists()


def test_a_failure_leaves_no_file_and_no_new_folder(tmp_path):
    kept = tmp_path / "kept.wav"
    kept.write_text("old")

    def interrupted():
        with audio.staged([kept, tmp_path / "x/y/z.wav"]) as temporary:
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
        audio.write_stems([tmp_path / "o/a.wav", tmp_path / "o/b.wav"], x, x[0], 8000, "FLOAT")
    assert not (tmp_path / "o").exists()


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("x")
    x = np.zeros((1, 1, 10), np.float32)
    with pytest.raises(OSError, match="file"):
        audio.write_stems([tmp_path / "file/a.wav"], x, x[0], 8000, "FLOAT")
    assert (tmp_path / "file").read_text() == "x"


def test_names_as_long_as_the_file_system_allows(tmp_path):
    x = np.zeros((1, 1, 10), np.float32)
    path = tmp_path / ("n" * 251 + ".wav")
    audio.write_stems([path], x, x[0], 8000, "PCM_16")
    assert path.exists()
