"""The local page: what it does, and that it does it in a real browser."""

import builtins
import zipfile

import numpy as np
import pytest
import soundfile as sf
from browser import chromium
from click.testing import CliRunner

from mgdm_audio import STEMS
from mgdm_audio.app import Studio

RATE = 22050
OPTIONS = {"window": 16384, "overlap": 4096, "precision": "float32"}


@pytest.fixture
def song(music, tmp_path):
    path = tmp_path / "song.wav"
    sf.write(path, music.sum(0)[:16000], RATE, "FLOAT")
    return path


@pytest.fixture
def studio(prior):
    studio = Studio(prior, "cpu", **OPTIONS)
    yield studio
    studio.close()
    assert not studio.folder.exists()


def test_separate_and_draw_again(studio, song):
    first = studio.separate(str(song), "fast", 0, lambda done, total: None)
    mix, _ = sf.read(song, dtype="float32")
    np.testing.assert_allclose(sum(x for x in first["stems"].values()).reshape(-1), mix, atol=1e-5)
    second = studio.redraw(first, "piano", "fast", 5, lambda done, total: None)
    partner = studio.partner(first["stems"], "piano")
    same = [n for n in STEMS if np.array_equal(first["stems"][n], second["stems"][n])]
    assert set(same) == set(STEMS) - {"piano", partner}
    np.testing.assert_allclose(sum(second["stems"].values()).reshape(-1), mix, atol=1e-5)
    assert second["seeds"]["piano"] == 5
    with zipfile.ZipFile(second["archive"]) as archive:
        assert sorted(archive.namelist()) == sorted(f"{n}.wav" for n in STEMS)
    written, rate = sf.read(second["files"]["piano"], dtype="float32")
    assert rate == RATE
    np.testing.assert_array_equal(written, second["stems"]["piano"].reshape(-1))


def test_the_shipped_models_begin_with_the_regressor():
    studio = Studio(None, "cpu", **OPTIONS)
    try:
        assert studio.prior.name == "default"
        for quality in ("fast", "best"):
            first, again = studio.separator(quality), studio.separator(quality, again=True)
            assert first.describe()["warm_start"].startswith("regressor")
            assert again.describe()["warm_start"] == "regressor"
            assert (first.method, again.method) == ("mgdm", "ding")
            assert again.preset == quality
            assert first.prior is studio.prior
        assert first.song_settings.average == 2
    finally:
        studio.close()


def test_messages(studio, song, tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"this is no audio")

    def nothing(done, total):
        pass

    with pytest.raises(ValueError, match="drop a song"):
        studio.separate(None, "fast", 0, nothing)
    with pytest.raises(ValueError, match=r"bad\.wav"):
        studio.separate(str(bad), "fast", 0, nothing)
    with pytest.raises(ValueError, match="give a seed"):
        studio.separate(str(song), "fast", None, nothing)
    with pytest.raises(ValueError, match="separate a song first"):
        studio.redraw(None, "piano", "fast", 0, nothing)


def test_without_gradio_there_is_one_clear_line(monkeypatch):
    from mgdm_audio.cli_posterior import app

    real = builtins.__import__

    def refuse(name, *rest, **more):
        if name == "gradio":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 1
    assert result.output.strip().splitlines() == [
        "Error: the page needs Gradio, which is not installed; pip install 'mgdm-audio[app]'"
    ]


@pytest.fixture
def driver(tmp_path):
    yield from chromium(str(tmp_path / "downloads"))


def test_in_a_browser(driver, prior, song, tmp_path):
    pytest.importorskip("gradio")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    from mgdm_audio.app import build

    blocks = build(prior, "cpu", **OPTIONS)
    _, url, _ = blocks.queue().launch(
        prevent_thread_lock=True, quiet=True, server_name="127.0.0.1",
        allowed_paths=[str(blocks.studio.folder)],
    )  # fmt: skip
    try:
        driver.get(url)
        wait = WebDriverWait(driver, 90)

        def find(css):
            return wait.until(lambda d: d.find_element(By.CSS_SELECTOR, css))

        def upload(path):
            find("#song input[type=file]").send_keys(str(path))
            wait.until(lambda d: path.name.split(".")[0] in find("#song").text)

        bad = tmp_path / "noaudio.wav"
        bad.write_bytes(b"this is no audio")
        upload(bad)
        find("#start").click()
        wait.until(lambda d: "noaudio.wav" in d.find_element(By.TAG_NAME, "body").text)
        assert blocks.studio.takes == 0
        driver.refresh()
        upload(song)
        find("#start").click()
        wait.until(lambda d: "bass 0" in find("#said").text)
        assert len(driver.find_elements(By.CSS_SELECTOR, "#files a[href]")) >= 2
        for name in STEMS:
            assert find(f"#{name} audio, #{name} [data-testid]") is not None
        box = find("#new-seed input")
        box.clear()
        box.send_keys("7")
        find("#again").click()
        wait.until(lambda d: "bass 7" in find("#said").text)
        links = [
            a.get_attribute("href") for a in driver.find_elements(By.CSS_SELECTOR, "#files a[href]")
        ]
        archive = next(link for link in links if link.endswith(".zip"))
        size = driver.execute_async_script(
            "const done = arguments[1];"
            "fetch(arguments[0]).then(r => r.arrayBuffer()).then(b => done(b.byteLength))",
            archive,
        )
        assert size > 4 * 4 * 10000
    finally:
        blocks.close()
        blocks.studio.close()
