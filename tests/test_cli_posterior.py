"""Commands for samples, known stems, regions, accompaniment and repair."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from click.testing import CliRunner

from mgdm_audio import STEMS, Separator, separate, terminal
from mgdm_audio.cli import cli

RATE = 22050


@pytest.fixture
def song(music, tmp_path, monkeypatch, prior):
    """A folder with a song and its stems; the shipped model is the exact Gaussian one."""
    monkeypatch.chdir(tmp_path)
    for name, x in zip(STEMS, music[:, :12000], strict=True):
        sf.write(f"{name}.wav", x, RATE, "FLOAT")
    sf.write("song.wav", music.sum(0)[:12000], RATE, "FLOAT")
    real = separate.Separator
    monkeypatch.setattr(separate, "Separator", lambda model, *args, **kw: real(prior, *args, **kw))
    return tmp_path


def run(*arguments, code=0):
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


def sound(path):
    return sf.read(path, dtype="float32")[0]


FAST = ("--preset", "fast", "-q", "--precision", "float32")


def test_samples_and_their_page(song):
    out = run("separate", "song.wav", "-o", "out", "--seeds", "3,5", "--report", *FAST).stdout
    folder = song / "out" / "song"
    names = {f"{d}/{s}.wav" for d in ("seed-3", "seed-5", "mean") for s in STEMS}
    names |= {"uncertainty.json", "report.html"}
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == names
    assert len(out.splitlines()) == len(names)
    total = sum(sound(folder / "mean" / f"{s}.wav") for s in STEMS)
    np.testing.assert_allclose(total, sound("song.wav"), atol=1e-6)
    report = json.loads((folder / "uncertainty.json").read_text())
    assert report["seeds"] == [3, 5]
    assert report["settings"]["method"] == "ding"
    assert set(report["uncertainty"]["stems"]) == set(STEMS)
    run("separate", "song.wav", "-o", "two", "--samples", "2", "--seed", "5", *FAST)
    alone = sound(song / "two" / "song" / "seed-5" / "bass.wav")
    assert np.array_equal(alone, sound(folder / "seed-5" / "bass.wav"))
    assert "not empty" in run("separate", "song.wav", "-o", "out", "--samples", 2, code=1).output
    said = run("separate", "song.wav", "-o", "one", "--seeds", "5", "--precision", "float32",
               "--preset", "fast").stderr  # fmt: skip
    assert "song.wav: ding (fast), seeds 5" in said
    assert np.array_equal(alone, sound(song / "one" / "song" / "bass.wav"))
    run("separate", "song.wav", "-o", "out", "--seeds", "5", "--overwrite", *FAST)
    left = {str(p.relative_to(folder)) for p in folder.rglob("*")}
    assert left == {f"{s}.wav" for s in STEMS}  # of the earlier draws nothing is left
    far = run("separate", "song.wav", "--samples", 2, "--seed", 2**63 - 1, code=2)
    assert "seeds go up to" in far.output


def test_a_page_changes_nothing_else(song):
    quick = ("--seed", 4, "-q", "--precision", "float32")
    run("separate", "song.wav", "-o", "a", *quick)
    run("separate", "song.wav", "-o", "b", "--report", *quick)
    for s in STEMS:
        assert np.array_equal(sound(f"a/song/{s}.wav"), sound(f"b/song/{s}.wav"))
    # Windows of a song are the same windows, in whatever way they are asked for.
    for o, more in (("e", ()), ("f", ("--report",))):
        run("separate", "song.wav", "-o", o, *more, "--window", 0.3, "--quality", "fast", *quick)
    for s in STEMS:
        assert np.array_equal(sound(f"e/song/{s}.wav"), sound(f"f/song/{s}.wav"))
    run("separate", "song.wav", "-o", "c", "--report", "--quality", "fast", *quick)
    assert "--average goes with" in run("separate", "song.wav", "-o", "d", "--samples", 2,
                                        "--average", 2, code=2).output  # fmt: skip


def test_known_stems_and_a_region(song):
    run("separate", "song.wav", "-o", "a", "--known", "drums=drums.wav", "--seed", 1, *FAST)
    assert np.array_equal(sound("a/song/drums.wav"), sound("drums.wav"))
    run("separate", "song.wav", "-o", "b", "--redo", "0.2-0.3", "--from", "a/song", "--seed", 2,
        *FAST)  # fmt: skip
    before, after = sound("a/song/bass.wav"), sound("b/song/bass.wav")
    changed = np.flatnonzero(before != after) / RATE
    assert 0.2 <= changed.min() < changed.max() <= 0.3
    run("separate", "song.wav", "-o", "a", "--redo", "0.2-0.3", "--from", "a/song", "--seed", 2,
        "--overwrite", *FAST)  # fmt: skip
    assert np.array_equal(sound("a/song/bass.wav"), after)  # in their place
    # What is read of an earlier set of draws is not tidied away.
    run("separate", "song.wav", "-o", "c", "--seeds", "1-2", *FAST)
    known = ("--known", "drums=c/song/mean/drums.wav", "--seed", 1, "--overwrite", *FAST)
    run("separate", "song.wav", "-o", "c", *known)
    left = {str(p.relative_to(song / "c" / "song")) for p in (song / "c").rglob("*.wav")}
    assert left == {"mean/drums.wav", *(f"{s}.wav" for s in STEMS)}
    two = run("separate", "song.wav", "bass.wav", "--known", "drums=drums.wav", code=2)
    assert "--known takes one FILE" in two.output


@pytest.mark.parametrize(
    "options", [("--report",), ("--seeds", "1,2", "--report"), ("--known", "drums=drums.wav")]
)
def test_what_went_astray_is_told(song, monkeypatch, prior, options):
    """By a sampler whose prior answers with a constant, a hundred times as loud as the mix."""

    class Constant(torch.nn.Module):
        def forward(self, x, sigma):
            return torch.full_like(x, 10.0) + 0 * x

    wrong = dataclasses.replace(prior, denoise=Constant())
    monkeypatch.setattr(separate, "Separator", lambda model, *a, **kw: Separator(wrong, *a, **kw))
    result = run("separate", "song.wav", "-o", "out", "--method", "dps", *options, *FAST)
    assert result.stderr.startswith("warning: song.wav: what was drawn misses the mix by")
    assert len(result.stderr.splitlines()) == 1  # of samples that say the same, once
    loud = ("--method", "dps", *FAST)
    made = run("generate", "--given", "drums=drums.wav", "-o", "band", "--overwrite", *loud)
    assert "misses the mix" in made.stderr
    fixed = run("repair", "song.wav", "--gap", "0.1-0.2", "-o", "r.wav", "--overwrite", *loud)
    assert "misses the mix" in fixed.stderr
    if "--report" in options:
        assert "misses the mix" in (song / "out" / "song" / "report.html").read_text()


def _none_made(*arguments, **options):
    raise AssertionError("work was begun")


def test_what_would_be_lost_is_refused_before_work(song, monkeypatch):
    for folder in ("a", "b"):
        (song / "album" / folder).mkdir(parents=True)
        sf.write(f"album/{folder}/song.wav", sound("song.wav"), RATE, "FLOAT")
    (song / "drums").mkdir()
    sf.write("drums/drums.wav", sound("drums.wav"), RATE, "FLOAT")
    monkeypatch.setattr(separate, "Separator", _none_made)
    every = ("--overwrite", "--report", *FAST)
    twice = run("separate", "album/a/song.wav", "album/b/song.wav", "-o", "out", *every, code=2)
    assert "would both be written to out/song/bass.wav" in twice.output
    own = run("separate", "drums/drums.wav", "-o", ".", *every, code=2)
    assert "drums/drums.wav is one of the files that are read" in own.output
    known = run(
        "separate", "drums.wav", "--known", "drums=drums/drums.wav", "-o", ".", *every, code=2
    )
    assert "drums/drums.wav is one of the files" in known.output
    assert np.array_equal(sound("drums/drums.wav"), sound("drums.wav"))
    lost = run("separate", "song.wav", "-o", "song.wav/x", "--report", *FAST, code=1)
    assert "is not a folder" in lost.output
    assert "unknown stem" in run("generate", "--for", "flute", "-o", "x", code=2).output
    assert "needs --method" in run("generate", "--preset", "fast", "-o", "x", code=2).output
    (song / "band").mkdir()
    (song / "band" / "piano.wav").write_bytes(b"mine")
    assert "piano.wav exists" in run("generate", "-o", "band", code=1).output
    (song / "text.wav").write_text("no audio")
    text = run("generate", "--given", "drums=text.wav", "-o", "x", code=1)
    assert "Error: text.wav: is not a WAV" in text.output
    repair = ("repair", "song.wav", "--gap", "0.1-0.2")
    assert "must end in .wav" in run(*repair, "-o", "x.flac", code=2).output
    assert "needs --method" in run(*repair, "-o", "x.wav", "--preset", "fast", code=2).output
    bad = run(*repair, "-o", "x.wav", "--method", "ding", "--preset", "none", code=2)
    assert "not a preset of ding" in bad.output
    assert "is not a folder" in run(*repair, "-o", "song.wav/x.wav", code=1).output


def test_folders_and_patterns_keep_their_places(song):
    for folder in ("a", "b"):
        (song / "album" / folder).mkdir(parents=True)
        sf.write(f"album/{folder}/song.wav", sound("song.wav")[:4000], RATE, "FLOAT")
    out = run("separate", "album", "none/*.wav", "-o", "out", "--report", *FAST, code=1)
    assert "no file matches" in out.stderr
    assert {path.rpartition("/")[0] for path in out.stdout.split()} == {"out/a/song", "out/b/song"}


@pytest.mark.parametrize("error", [ValueError("no page"), KeyboardInterrupt()])
def test_all_of_a_song_is_written_or_nothing(song, monkeypatch, error):
    from mgdm_audio import page

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(page, "page", fail)
    stopped = isinstance(error, KeyboardInterrupt)
    result = run(
        "separate", "song.wav", "-o", "out", "--seeds", "1-2", "--report", *FAST,
        code=130 if stopped else 1,
    )  # fmt: skip
    assert ("interrupted" if stopped else "song.wav: no page") in result.output
    assert result.stdout == ""
    assert not list((song / "out").rglob("*.*"))


SHORT = [
    ("separate", "song.wav", "--report", "-o", "out", "--quality", "fast"),
    ("generate", "--seconds", 0.2, "-o", "out", "--method", "ding", "--preset", "fast"),
    ("repair", "song.wav", "--gap", "0.1-0.2", "-o", "r.wav", "--method", "ding",
     "--preset", "fast"),
]  # fmt: skip


@pytest.mark.parametrize("command", SHORT, ids=lambda command: command[0])
def test_errors_stand_below_the_line_of_progress(song, monkeypatch, command):
    """On a terminal, where that line is drawn again and again."""

    class Live(terminal.Line):
        def __init__(self, quiet):
            super().__init__(quiet)
            self.live = True

    def fail(self, jobs, progress):
        progress(1)
        raise ValueError("no more")

    def fail_at_last(self, *arguments, **options):
        options["callback"](1, 1)
        raise ValueError("no more")

    monkeypatch.setattr(terminal, "Line", Live)
    monkeypatch.setattr(Separator, "_draw", fail)
    monkeypatch.setattr("mgdm_audio.conditional.draw", lambda s, e, d, c: fail(s, e, _one(c)))
    monkeypatch.setattr("mgdm_audio.repair.repair", fail_at_last)
    lines = run(*command, code=1).stderr.splitlines()
    assert "%" in lines[-2]
    assert lines[-1].casefold() in ("error: no more", "error: song.wav: no more")


def _one(callback):
    return lambda done: callback(done, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="needs file names that are bytes")
def test_paths_that_are_not_text_are_printed_as_they_are(song):
    name = os.fsdecode(b"caf\xe9.wav")
    Path(name).write_bytes(Path("song.wav").read_bytes())
    folder = os.fsdecode(b"\xe9")
    draw = ("--method", "ding", *FAST)
    made = run("separate", name, "--report", "-o", "out", *draw)
    assert b"out/caf\xe9/bass.wav\n" in made.stdout_bytes
    made = run("generate", "--seconds", 0.2, "-o", folder, *draw)
    assert b"\xe9/bass.wav\n" in made.stdout_bytes
    made = run("repair", "song.wav", "--gap", "0.1-0.11", "-o", name + ".wav", "-q")
    assert made.stdout_bytes == b"caf\xe9.wav.wav\n"


def test_what_only_looks_like_earlier_draws_stays(song):
    folder = song / "out" / "song"
    (folder / "report.html").mkdir(parents=True)
    (folder / "mean").write_text("mine")
    (song / "elsewhere").mkdir()
    (folder / "seed-7").symlink_to(song / "elsewhere")
    run("separate", "song.wav", "-o", "out", "--known", "drums=drums.wav", "--overwrite", *FAST)
    assert (folder / "mean").read_text() == "mine"
    assert (folder / "report.html").is_dir()
    assert (folder / "seed-7").is_symlink()


@pytest.mark.parametrize("options", [("--report",), ("--known", "drums=drums.wav")])
def test_the_sum_of_long_integers_is_exact(song, options):
    sf.write("long.wav", sound("song.wav").astype(float) + 2**-29, RATE, "PCM_32")
    run("separate", "long.wav", "-o", "out", *options, *FAST)
    read = [sf.read(f"out/long/{s}.wav", dtype="int32")[0].astype(np.int64) for s in STEMS]
    assert np.array_equal(sum(read), sf.read("long.wav", dtype="int32")[0])


def test_stems_of_another_song_are_not_drawn_anew(song):
    run("separate", "song.wav", "-o", "a", "--report", *FAST)
    sf.write("other.wav", 0.5 * sound("song.wav"), RATE, "FLOAT")
    anew = ("--redo", "0.2-0.3", "--from", "a/song", "-o", "b", *FAST)
    assert "not of this song" in run("separate", "other.wav", *anew, code=1).output
    beyond = ("--redo", "0.2-9", "--from", "a/song", "-o", "b", *FAST)
    assert "a region inside" in run("separate", "song.wav", *beyond, code=1).output


def test_another_mix_of_the_song(song):
    without = sound("song.wav") - sound("drums.wav")
    sf.write("instrumental.wav", without, RATE, "FLOAT")
    run("separate", "song.wav", "-o", "a", "--also", "instrumental.wav:drums=0", "--seed", 1,
        "--report", *FAST)  # fmt: skip
    drawn = {s: sound(f"a/song/{s}.wav") for s in STEMS}
    np.testing.assert_allclose(drawn["drums"], sound("drums.wav"), atol=1e-5)
    np.testing.assert_allclose(sum(drawn.values()), sound("song.wav"), atol=1e-5)
    assert "instrumental.wav:drums=0" in (song / "a" / "song" / "report.html").read_text()


def test_generate(song):
    run("generate", "--given", "bass=bass.wav", "--for", "drums", "-o", "band", "--method", "ding",
        *FAST)  # fmt: skip
    assert sound("band/drums.wav").shape == sound("bass.wav").shape
    assert not (song / "band" / "piano.wav").exists()
    assert json.loads((song / "band" / "settings.json").read_text())["seed"] == 0
    text = run("generate", "--given", "flute=bass.wav", "-o", "x", code=2).output
    assert "STEM=FILE" in text


def test_repair(song):
    x = sound("song.wav")
    x[3000:3200] = 0
    sf.write("hole.wav", x, RATE, "FLOAT")
    run("repair", "hole.wav", "--dropouts", "-o", "whole.wav", "--method", "ding", *FAST)
    out = sound("whole.wav")
    assert np.array_equal(out[:3000], x[:3000])
    assert np.array_equal(out[3200:], x[3200:])
    assert np.abs(out[3000:3200]).max() > 0.01
    mask = np.zeros(12000, np.float32)
    mask[3000:3100] = mask[3150:3200] = 1
    sf.write("mask.wav", mask, RATE)
    run("repair", "hole.wav", "--mask", "mask.wav", "-o", "part.wav", "--method", "ding", *FAST)
    assert np.array_equal(np.flatnonzero(sound("part.wav") != x), np.flatnonzero(mask))
    sf.write("short.wav", mask[:99], RATE)
    assert (
        "expected 12000"
        in run("repair", "hole.wav", "--mask", "short.wav", "-o", "q.wav", code=1).output
    )
    assert "one of --gap" in run("repair", "hole.wav", "-o", "y.wav", code=2).output
    assert "exists" in run("repair", "hole.wav", "--dropouts", "-o", "whole.wav", code=1).output
    assert "no level" in run("repair", "hole.wav", "--clipped", "-o", "z.wav", code=1).output


def test_repair_without_a_method_is_an_estimate(song):
    x = sound("bass.wav")
    x[3000:3200] = 0
    sf.write("hole.wav", x, RATE, "FLOAT")
    text = run("repair", "hole.wav", "--dropouts", "--stem", "bass", "-o", "whole.wav").output
    assert "% of the samples were in question: estimate" in text
    truth, out = sound("bass.wav"), sound("whole.wav")
    assert np.array_equal(out[:3000], x[:3000])
    assert np.square(out - truth).sum() < 0.1 * np.square(x - truth).sum()
    mix = sound("song.wav")
    clipped = np.clip(mix, -0.3 * np.abs(mix).max(), 0.3 * np.abs(mix).max())
    sf.write("clipped.wav", clipped, RATE, "FLOAT")
    run("repair", "clipped.wav", "--clipped", "-o", "round.wav")
    assert np.square(sound("round.wav") - mix).sum() < 0.5 * np.square(clipped - mix).sum()


def test_repair_keeps_the_precision_of_the_file(song):
    """64-bit floats hold what 32-bit integers do, and what is beyond full scale."""
    x = sound("song.wav").astype(np.float64) + 2.0**-29
    x[3000:3200] = 0
    for subtype, kept in (("PCM_32", "DOUBLE"), ("DOUBLE", "DOUBLE"), ("PCM_24", "FLOAT")):
        sf.write("hole.wav", x, RATE, subtype)
        run("repair", "hole.wav", "--dropouts", "-o", "whole.wav", "--overwrite", "-q")
        assert sf.info("whole.wav").subtype == kept
        before, after = (sf.read(name)[0] for name in ("hole.wav", "whole.wav"))
        changed = np.flatnonzero(before != after)
        assert set(changed) == set(range(3000, 3200))


def test_what_is_wrong_with_files_is_told(song):
    """Of the recording and of all that is read beside it."""
    for name in ("song", "drums"):
        sf.write(f"short-{name}.wav", sound(f"{name}.wav"), RATE, "FLOAT")
        whole = (song / f"short-{name}.wav").read_bytes()
        (song / f"short-{name}.wav").write_bytes(whole[:-4000])
    told = "is truncated"
    fixed = run("repair", "short-song.wav", "--gap", "0.1-0.11", "-o", "r.wav", "-q")
    assert fixed.stderr.count(told) == 1
    assert fixed.stderr.startswith("warning: short-song.wav")
    assert np.abs(sound("short-drums.wav")).max(initial=0) > 0
    mask = (
        "--mask",
        "short-drums.wav",
        "-o",
        "m.wav",
        "-q",
        "--method",
        "ding",
        "--preset",
        "fast",
    )
    assert run("repair", "short-song.wav", *mask).stderr.count(told) == 2
    given = ("--given", "drums=short-drums.wav", "--for", "bass", "-o", "band")
    assert told in run("generate", *given, "--method", "ding", *FAST).stderr
    known = run(
        "separate", "short-song.wav", "-o", "out", "--known", "drums=short-drums.wav", *FAST
    )
    assert known.stderr.count(told) == 2


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["generate", "--given", "bass=bass.wav", "--for", "bass"], "--given and --for both name"),
        (["generate", "--given", "bass=bass.wav", "--silent", "bass"], "--given and --silent both"),
        (["generate", "--silent", "bass", "--for", "drums,bass"], "--silent and --for both name"),
        (["generate", "--silent", ",".join(STEMS)], "leave no stem to draw"),
        (["generate", "--level", "nan"], "'--level': nan is not a finite number"),
        (["generate", "--seconds", "inf"], "'--seconds': inf is not a finite number"),
        (["repair", "song.wav", "--gap", "nan-0.06"], "got 'nan-0.06', expected START-STOP"),
        (["repair", "song.wav", "--gap", "0.2-0.1"], "got '0.2-0.1', expected START-STOP"),
        (["repair", "song.wav", "--lowpass", "nan"], "'--lowpass': nan is not a finite number"),
        (["repair", "song.wav", "--clip-level", "inf"], "'--clip-level': inf is not a finite"),
        (["separate", "song.wav", "--redo", "2-1", "--from", "."], "expected START-STOP"),
    ],
)
def test_wrong_usage_is_told_before_work(song, monkeypatch, command, text):
    monkeypatch.setattr(separate, "Separator", _none_made)
    assert text in run(*command, "-o", "new.wav", code=2).output
    assert not (song / "new.wav").exists()


def test_what_a_separator_refuses(song, monkeypatch):
    kind = ("repair", "song.wav", "--gap", "0.1-0.2", "-o", "new.wav")
    wrong = run(*kind, "--method", "regressor", code=2)  # of the prior of these tests
    assert "a regressor is wanted" in wrong.stderr
    for command in (kind, ("generate", "-o", "new"), ("separate", "song.wav", "--report")):
        absent = run(*command, "--device", "cuda:42", code=1)
        assert "device 'cuda:42' is not available" in absent.stderr


def test_files_without_permission_are_told(song, monkeypatch):
    """Which root, who may run the tests, does not meet."""
    is_file = Path.is_file

    def locked(path):
        if path.name == "locked.wav":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", locked)
    for command in (
        ("generate", "--given", "bass=locked.wav", "-o", "x"),
        ("separate", "song.wav", "--known", "bass=locked.wav"),
        ("separate", "song.wav", "--also", "locked.wav:bass=0"),
    ):
        told = run(*command, code=1).stderr
        assert told == "Error: [Errno 13] Permission denied: 'locked.wav'\n"


def test_what_goes_with_several_samples_is_what_the_help_says(song, monkeypatch):
    from mgdm_audio.cli import cli

    monkeypatch.setattr(separate, "Separator", _none_made)
    params = cli.commands["separate"].params
    (text,) = [option.help for option in params if option.name == "page"]
    flags = {o.opts[-1]: o for o in params if o.opts[-1].startswith("--")}
    named = {flag for flag in flags if f"{flag}," in text or f"{flag} alone" in text}
    assert {"--batch", "--quiet", "--quality"} <= named
    assert not {"--independent", "--seams", "--json"} & named
    for flag in ("--independent", "--seams", "--json", "--resume"):
        more = ["fade"] if flag == "--seams" else []
        refused = run("separate", "song.wav", "--report", flag, *more, code=2)
        assert f"{flag} does not go with" in refused.output


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--samples", "2", "--sum", "piano+guitar"], "--sum does not go with"),
        (["--redo", "1-2"], "--redo and --from go together"),
        (["--seeds", "4-2"], "ascending"),
        (["--seeds", "1-2", "--samples", "2"], "--seeds excludes"),
        (["--known", "bass"], "STEM=FILE"),
        (["--also", "bass.wav"], "FILE:STEM=GAIN"),
        (["--also", "bass.wav:flute=1"], "FILE:STEM=GAIN"),
        (["--also", "bass.wav:bass=inf"], "finite gains"),
        (["--also", "none.wav:bass=1"], "existing file"),
        (["--also", "bass.wav:bass=1", "--known", "bass=bass.wav"], "exclude each other"),
    ],
)
def test_wrong_usage(song, options, text):
    assert text in run("separate", "song.wav", *options, code=2).output


def test_help_names_what_there_is():
    text = run("separate", "--help").output
    for option in ("--samples", "--seeds", "--known", "--also", "--redo", "--report"):
        assert option in text
    for command in ("generate", "repair", "app"):
        assert command in run("--help").output
        assert run(command, "--help").output
