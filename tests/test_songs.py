"""Which songs an input stands for."""

from __future__ import annotations

import pytest

pytest.importorskip("fsspec")

from mgdm_audio.songs import find_songs
from mgdm_audio.tree import InputError


@pytest.fixture
def folder(tmp_path):
    for name in ("b.wav", "a/x.FLAC", "a/y.mp3", "a/deep/z.ogg", "notes.txt", "out/old.wav"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "in"


def names(source, output):
    return [song.name for song in find_songs(str(source), str(output))]


def test_folder_and_pattern(folder, monkeypatch):
    out = folder / "out"
    assert names(folder, out) == ["a/deep/z", "a/x", "a/y", "b"]
    assert names(f"{folder}/", out) == ["a/deep/z", "a/x", "a/y", "b"]
    assert names(folder / "a" / "*.mp3", out) == ["y"]
    assert names(folder / "**" / "*.wav", out) == ["b"]
    assert names(folder / "b.wav", out) == ["b"]
    monkeypatch.chdir(folder)
    assert names("a", "out") == ["deep/z", "x", "y"]
    assert names("*/x.*", "out") == ["a/x"]
    assert names("?.wav", "out") == ["b"]
    song = next(song for song in find_songs(".", "out") if song.name == "a/x")
    assert song.path == str(folder / "a" / "x.FLAC")
    status = (folder / "a" / "x.FLAC").stat()
    assert song.stamp == (status.st_size, str(status.st_mtime_ns))


@pytest.mark.parametrize("name", ["song [live].wav", "Artist :: Title.wav", "what?.wav"])
def test_names_that_look_like_patterns_or_urls(folder, name):
    (folder / name).touch()
    (song,) = find_songs(str(folder / name), str(folder / "out"))
    assert (song.name, song.path) == (name.removesuffix(".wav"), str(folder / name))
    assert song.name in names(folder, folder / "out")


def test_an_output_that_is_reached_through_a_link(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert names(folder, tmp_path / "link" / "out") == ["a/deep/z", "a/x", "a/y", "b"]
    assert names(tmp_path / "link", folder / "out") == ["a/deep/z", "a/x", "a/y", "b"]
    with pytest.raises(InputError, match="lie in the output folder"):
        find_songs(str(folder / "out"), str(tmp_path / "link" / "out"))


def test_folders_behind_links_each_once(folder, tmp_path):
    (tmp_path / "more" / "deep").mkdir(parents=True)
    (tmp_path / "more" / "deep" / "c.wav").touch()
    (folder / "a" / "there").symlink_to(tmp_path / "more")
    (tmp_path / "more" / "back").symlink_to(folder)  # and round
    (folder / "0").symlink_to(folder / "a")  # comes first by name; the tree itself counts
    expected = ["a/deep/z", "a/there/deep/c", "a/x", "a/y", "b"]
    assert names(folder, folder / "out") == expected
    assert names(folder / "a" / "there" / "*" / "*.wav", folder / "out") == ["deep/c"]


@pytest.mark.parametrize("source", ["notes.txt.d", "*.aiff"])
def test_nothing_there(folder, source):
    (folder / "notes.txt.d").mkdir()
    with pytest.raises(InputError, match="there is no song"):
        find_songs(str(folder / source), "out")


@pytest.mark.parametrize("source", ["out", "out/*.wav", "**/old.wav"])
def test_songs_that_all_lie_in_the_output(folder, source):
    with pytest.raises(InputError, match=r": all its audio files lie in the output folder; .*-o"):
        find_songs(str(folder / source), str(folder / "out"))


def test_an_input_that_is_not_there(folder, monkeypatch):
    for source in (str(folder / "nope.wav"), f"file://{folder}/nope.wav"):
        with pytest.raises(InputError, match=r"nope\.wav: there is no such file or folder"):
            find_songs(source, "out")
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=r"^nope: there is no such"):
        find_songs("nope", "out")
    # In object storage a song's worker says so.
    assert names("memory://bucket/nope.wav", "out") == ["nope"]


def test_songs_of_one_name(folder):
    (folder / "b.flac").touch()
    with pytest.raises(InputError, match=r"b\.(wav|flac) and .*b\.(wav|flac) have both the name"):
        find_songs(str(folder), "out")


def test_table(folder):
    table = folder / "songs.csv"
    table.write_text(
        "\ufeffpath,seed,name,settings,known\n"
        "a/x.FLAC,,,,\n"
        'a/x.FLAC,18446744073709,,"{""average"": 2}",\n'
        'b.wav,0,second/b,,"{""drums"": ""a/y.mp3"", ""bass"": ""s3://other/bass.wav""}"\n'
        "s3://bucket/c.wav,,,,\n"
        "../up.wav,,,,\n",
        encoding="utf-8",
    )
    found = {song.name: song for song in find_songs(str(table), "out")}
    assert set(found) == {"a/x", "a/x/seed-18446744073709", "second/b", "c", "up"}
    assert found["a/x"].path == str(folder / "a/x.FLAC")
    assert found["a/x/seed-18446744073709"].settings == {"average": 2}
    assert found["second/b"].seed == 0
    assert found["second/b"].known == {
        "drums": str(folder / "a/y.mp3"),
        "bass": "s3://other/bass.wav",
    }
    assert found["c"].path == "s3://bucket/c.wav"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,volume\na.wav,3\n", "row 1: unknown column 'volume'; there are path"),
        ("name\na\n", "row 1: the path is missing"),
        ("path,seed\na.wav,0\nb.wav,-1\n", "row 2: the seed must be a whole number"),
        ("path,seed\na.wav,9223372036854775808\n", "row 1: the seed must be"),
        ("path,settings\na.wav,{\n", "row 1: settings: '{' is not JSON"),
        ("path,settings\na.wav,3\n", "row 1: settings must be a JSON object"),
        ('path,known\na.wav,"{""voice"": ""v.wav""}"\n', "row 1: known stems must be files by"),
        ("path,name\na.wav,../b\n", "row 1: '../b' is no name"),
        ("path,name\na.wav,/b\n", "row 1: '/b' is no name"),
        ("path\na.wav,b.wav\n", "row 1: has more cells than there are columns"),
        (
            'path,settings\na.wav,{"steps": 3, "average": 2}\n',
            'put JSON in quotes, with "" for each quote in it',
        ),
        ("path\n", "there is no song"),
        ("path\na/x.wav\nb.wav\na/x.flac\n", "both the name 'a/x'"),
    ],
)
def test_tables_that_cannot_be(tmp_path, text, message):
    (tmp_path / "songs.csv").write_text(text)
    with pytest.raises(InputError) as error:
        find_songs(str(tmp_path / "songs.csv"), "out")
    assert message in str(error.value)


def test_a_table_that_is_none(tmp_path):
    (tmp_path / "songs.parquet").write_bytes(b"no table")
    with pytest.raises(InputError, match="cannot be read as a table"):
        find_songs(str(tmp_path / "songs.parquet"), "out")
