"""Audio files: reading what is there, refusing what is not, exact sums on disk, all or nothing."""

from __future__ import annotations

import os
from itertools import pairwise

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

from mgdm_audio import audio, write
from mgdm_audio.audio import AudioError

NOISE = 0.1 * np.random.default_rng(0).standard_normal((22050, 2))


def save(path, subtype, x=NOISE, rate=44100):
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
        ("a.caf", "ALAC_16", "PCM_16", np.float32),
        ("a.caf", "ALAC_20", "PCM_24", np.float32),
        ("a.caf", "ALAC_24", "PCM_24", np.float32),
        ("a.caf", "ALAC_32", "PCM_32", np.float64),
        ("a.ogg", "VORBIS", "FLOAT", np.float32),
        ("a.mp3", "MPEG_LAYER_III", "FLOAT", np.float32),
    ],
)
def test_formats(tmp_path, name, subtype, out, dtype):
    recording = audio.read(save(tmp_path / name, subtype))
    assert recording.samples.shape == (2, 22050)
    assert recording.samples.dtype == dtype
    assert recording.sample_rate == 44100
    assert recording.warnings == ()
    assert write.output_subtype(recording.subtype) == out
    reference = sf.read(tmp_path / name, dtype="float64")[0].T
    assert np.array_equal(recording.samples, reference.astype(dtype))


@pytest.mark.parametrize(("bits", "out"), [(12, 16), (16, 16), (24, 24)])
def test_bits_of_dwvw(bits, out):
    assert write.output_subtype(f"DWVW_{bits}") == f"PCM_{out}"


def test_names_do_not_matter(tmp_path):
    save(tmp_path / "a.flac", "PCM_16")
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
    save(tmp_path / "header.wav", "PCM_16", np.zeros((0, 2)))
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
    save(tmp_path / "a.wav", "FLOAT", x)
    with pytest.raises(AudioError, match=r"0\.250000 s \(frame 11025, channel 2\)"):
        audio.read(tmp_path / "a.wav")


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_truncated_wav_is_read_with_a_warning(tmp_path, subtype):
    recording = audio.read(halve(save(tmp_path / "a.wav", subtype)))
    frames = recording.samples.shape[1]
    (warning,) = recording.warnings
    assert "22050 frames" in warning
    assert f"only {frames} " in warning


def test_truncated_mp3_and_ogg_are_read_with_a_warning(tmp_path):
    (warning,) = audio.read(halve(save(tmp_path / "a.mp3", "MPEG_LAYER_III"))).warnings
    assert "22050 frames" in warning
    longer = np.tile(NOISE, (4, 1))
    (warning,) = audio.read(halve(save(tmp_path / "a.ogg", "VORBIS", longer))).warnings
    assert "no end mark" in warning


def id3(size):
    return b"ID3\4\0\0" + bytes([0, 0, size >> 7, size & 127]) + b"\xff\xfb" * (size // 2)


ID3V1 = b"TAG" + bytes(125)
APE = b"APETAGEX" + (2000).to_bytes(4, "little") * 2 + bytes(16) + bytes(2000)


@pytest.mark.parametrize(
    ("between", "behind", "warned"),
    [
        (b"", None, True),
        (ID3V1 + id3(9000), None, True),
        (APE, None, True),
        (ID3V1, b"", False),
        (APE + ID3V1, b"", False),
        (id3(9000), b"", False),
        (b"", bytes(20000), False),  # room that a program left
        (b"", b"\xff\xfb\x90\x64" + bytes(1000), False),  # a frame that was not counted
    ],
)
@pytest.mark.parametrize("before", [b"", id3(600)])
def test_joined_mp3_files_are_read_with_a_warning(tmp_path, before, between, behind, warned):
    one = save(tmp_path / "a.mp3", "MPEG_LAYER_III").read_bytes()
    (tmp_path / "a.mp3").write_bytes(before + one + between + (one if behind is None else behind))
    recording = audio.read(tmp_path / "a.mp3")
    assert recording.samples.shape == (2, 22050)
    assert len(recording.warnings) == warned
    if warned:
        assert "goes on after the 22050 frames" in recording.warnings[0]


def test_truncated_flac_is_refused(tmp_path):
    with pytest.raises(AudioError, match="damaged or truncated"):
        audio.read(halve(save(tmp_path / "a.flac", "PCM_16")))


def test_a_wav_written_to_a_pipe_declares_nothing(tmp_path):
    path = save(tmp_path / "a.wav", "PCM_16")
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = data[4:8] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    recording = audio.read(path)
    assert recording.warnings == ()
    assert recording.samples.shape == (2, 22050)


def test_a_flac_written_to_a_pipe_is_read_to_its_end(tmp_path):
    path = save(tmp_path / "a.flac", "PCM_16")
    whole = audio.read(path).samples
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # 36 bits: what an encoder leaves that writes to a pipe
    data[22:26] = bytes(4)
    path.write_bytes(data)
    recording = audio.read(path)
    assert recording.warnings == ()
    assert np.array_equal(recording.samples, whole)
    assert audio.AudioFile(path).declared == 22050
    part = audio.AudioFile(path, start=0.1, duration=0.2)
    assert part.declared == 8820
    assert np.array_equal(np.concatenate(list(part.blocks()), 1), whole[:, 4410:13230])


def test_a_header_alone_allocates_nothing(tmp_path):
    path = save(tmp_path / "a.wav", "PCM_16")
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


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 5000),
    st.sampled_from([8000, 22050, 22051, 44100, 96000]),
    st.lists(st.integers(1, 2000), min_size=1, max_size=6),
    st.booleans(),
)
def test_resampling_in_pieces_is_resampling(length, rate, cuts, wanted):
    x = np.random.default_rng(length).standard_normal((2, length)).astype(np.float32)
    edges = [0, *sorted({min(sum(cuts[:i]), length) for i in range(1, len(cuts) + 1)}), length]
    pieces = [x[:, a:b] for a, b in pairwise(edges) if b > a]
    target = length // 2 + 1 if wanted else None
    got = np.concatenate(list(audio.resampled(pieces, rate, 22050, target)), axis=1)
    assert np.array_equal(got, audio.resample(x, rate, 22050, target))


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg"])
def test_a_part_of_a_file(tmp_path, name):
    path = tmp_path / name
    sf.write(path, np.tile(NOISE, (5, 1)), 44100)
    whole = audio.read(path).samples
    for start, duration in ((0.0, 0.5), (0.25, None), (1.9, 0.7), (1.7, 1.0), (0.0, 1e-9)):
        part = np.concatenate(list(audio.AudioFile(path, start, duration).blocks()), axis=1)
        first = round(start * 44100)
        stop = None if duration is None else first + max(1, round(duration * 44100))
        assert np.array_equal(part, whole[:, first:stop])
    with pytest.raises(AudioError, match="after 3 s, it ends at"):
        list(audio.AudioFile(path, 3.0).blocks())
    for bad in ({"start": -1.0}, {"duration": 0.0}):
        with pytest.raises(ValueError, match="must be"):
            audio.AudioFile(path, **bad)
