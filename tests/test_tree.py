"""What arguments stand for."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgdm_audio.tree import Input, find_inputs, work_folder


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in (
        "in/b/x.wav",
        "in/a/x.WAV",
        "in/note.txt",
        "in/top.flac",
        "out/done.wav",
        "[x].wav",
        "x.wav",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_is_all_that_lies_below_it(tree):
    found, errors = find_inputs(["in"], Path("out"))
    assert found == [
        Input(Path("in/a/x.WAV"), Path("a")),
        Input(Path("in/b/x.wav"), Path("b")),
        Input(Path("in/top.flac"), Path()),
    ]
    assert errors == []


def test_the_output_folder_is_no_input(tree):
    paths = [item.path for item in find_inputs([".", "out/*.wav"], Path("out"))[0]]
    assert Path("x.wav") in paths
    assert Path("out/done.wav") not in paths


def test_names_come_before_patterns_and_nothing_comes_twice(tree):
    found, _ = find_inputs(["[x].wav", "*.wav", "./x.wav", "in/**/x.*"], Path("out"))
    assert [str(item.path) for item in found] == ["[x].wav", "x.wav", "in/a/x.WAV", "in/b/x.wav"]


def test_what_stands_for_nothing(tree):
    found, errors = find_inputs(["empty", "no*", "missing.wav"], Path("out"))
    # A name is tried, so that the error says what is wrong with it.
    assert [item.path for item in found] == [Path("missing.wav")]
    assert [name for name, _ in errors] == ["empty", "no*"]
    assert ".flac" in str(errors[0][1])


@pytest.mark.parametrize("argument", ["out", "out/", "out/*.wav", "in", "**/x.WAV"])
def test_what_lies_in_the_output_folder_alone(tree, argument):
    output = Path("out" if argument.startswith("out") else "in")
    found, ((name, error),) = find_inputs([argument], output)
    assert (found, name) == ([], argument)
    assert str(error) == (
        f"{argument}: all its audio files lie in the output folder; choose another one (-o)"
    )


def test_what_cannot_be_looked_at_does_not_stop_the_others(tree, monkeypatch):
    """Folders without permission are only met by those who are not root."""
    (tree / "loop.wav").symlink_to("loop.wav")
    is_dir = Path.is_dir

    def locked(path):
        if path.parts[0] == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", locked)
    long = "x" * 300
    found, errors = find_inputs(["locked/s.wav", long, "loop.wav", "x.wav"], Path("out"))
    assert found[-1] == Input(Path("x.wav"))
    told = {name: str(error) for name, error in errors}
    assert told["locked/s.wav"] == "locked/s.wav: Permission denied"
    # What this Python does not stumble over here is tried, and the error is that of the file.
    names = {*told, *(str(item.path) for item in found)}
    assert names == {"locked/s.wav", long, "loop.wav", "x.wav"}


def test_work_folders_are_hidden_and_differ():
    a, b = (work_folder(Path("o"), f"{name}/*.*") for name in ("a", "b"))
    assert a != b
    assert a.parent == Path("o")
    assert a.name.startswith(".mgdm-")
