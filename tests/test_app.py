"""The local page: what it does, and that it does it in a real browser."""

import asyncio
import builtins
import threading
import time
import zipfile

import numpy as np
import pytest
import soundfile as sf
from browser import chromium
from click.testing import CliRunner

from mgdm_audio import STEMS
from mgdm_audio import app as local_page
from mgdm_audio.app import OnlyHere, Studio, build, launch, serve

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


@pytest.mark.parametrize(
    ("headers", "answered"),
    [
        ({"host": "127.0.0.1:7860"}, True),
        ({"host": "LocalHost:1"}, True),
        ({"host": "[::1]:7860", "origin": "http://[::1]:7860"}, True),
        ({"host": "localhost", "origin": "http://127.0.0.1:7860"}, True),
        ({"host": "evil.example:7860"}, False),
        ({"host": "127.0.0.1.evil.example"}, False),
        ({"host": "0.0.0.0:7860"}, False),
        ({"host": "[::1:7860"}, False),
        ({}, False),
        ({"host": "127.0.0.1:7860", "origin": "http://evil.example"}, False),
        ({"host": "127.0.0.1:7860", "origin": "https://localhost.evil.example"}, False),
        ({"host": "127.0.0.1:7860", "origin": "null"}, False),
        ({"host": "evil.example", "origin": "http://localhost"}, False),
    ],
)
def test_who_is_answered(headers, answered):
    said = []

    async def app(scope, receive, send):
        said.append("answer")

    async def send(message):
        said.append(message.get("status", message["type"]))

    def ask(kind):
        said.clear()
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        asyncio.run(OnlyHere(app)({"type": kind, "headers": raw}, None, send))
        return said[0]

    assert ask("http") == ("answer" if answered else 403)
    assert ask("websocket") == ("answer" if answered else "websocket.close")
    assert ask("lifespan") == "answer"


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """Gradio's folder for copies; a function that says what is in it."""
    pytest.importorskip("gradio")
    folder = tmp_path / "cache"
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    # Its field for files makes one more file for each, with nothing in it.
    return lambda: [p.name for p in folder.rglob("*") if p.is_file() and p.stat().st_size]


@pytest.fixture
def blocks(prior, cache):
    blocks = build(prior, "cpu", **OPTIONS)
    yield blocks
    blocks.close(verbose=False)
    blocks.studio.close()


def test_other_websites_have_no_answer(blocks, cache):
    import httpx

    url = serve(blocks, prevent_thread_lock=True, quiet=True).rstrip("/")

    def upload(**headers):
        song = {"files": ("song.wav", b"no matter what")}
        answer = httpx.post(f"{url}/gradio_api/upload", files=song, headers=headers)
        return answer.status_code

    assert upload(Origin="http://evil.example") == 403
    assert cache() == []
    assert upload(Origin=url) == 200
    assert cache() == ["song.wav"]
    port = url.rpartition(":")[2]
    for host, status in (("evil.example", 403), ("localhost", 200)):
        headers = {"Host": f"{host}:{port}"}
        assert httpx.get(f"{url}/config", headers=headers).status_code == status
    assert blocks.max_file_size == 4 * 1024**3
    blocks.max_file_size = 10  # such a file is too large for a test
    assert upload() == 413


def test_one_thing_at_a_time(blocks, monkeypatch):
    """A separation and a stem that is drawn again, of two pages that are open."""
    from gradio_client import Client

    running, most = [], []

    def slow(*arguments):
        running.append(arguments)
        most.append(len(running))
        time.sleep(0.5)
        running.pop()
        raise ValueError("that was all")

    monkeypatch.setattr(blocks.studio, "separate", slow)
    monkeypatch.setattr(blocks.studio, "redraw", slow)
    url = serve(blocks, prevent_thread_lock=True, quiet=True)
    pages = [Client(url, verbose=False) for _ in range(2)]
    jobs = [
        pages[0].submit(None, "fast", 0, api_name="/separate"),
        pages[1].submit("piano", "fast", 0, api_name="/redraw"),
    ]
    assert ["that was all" in str(job.exception(timeout=60)) for job in jobs] == [True, True]
    assert most == [1, 1]


def test_nothing_is_left_of_a_song(prior, cache, song, monkeypatch):
    """When the page is stopped, though it is still open in a browser."""
    import httpx
    from gradio_client import Client, handle_file

    heard = threading.Event()

    def stay(url):
        try:
            with httpx.stream("GET", f"{url}gradio_api/heartbeat/page", timeout=None) as answer:
                for _ in answer.iter_lines():
                    heard.set()
        except httpx.HTTPError:
            pass

    found = []

    def use(blocks):
        url = blocks.local_url
        page = threading.Thread(target=stay, args=(url,), daemon=True)
        page.start()
        client = Client(url, verbose=False)
        client.predict(handle_file(str(song)), "fast", 0, api_name="/separate")
        assert heard.wait(60)
        found.extend([blocks.studio.folder, *cache()])
        raise KeyboardInterrupt

    monkeypatch.setattr(local_page, "_wait", use)
    monkeypatch.setattr(local_page, "build", lambda *a: build(*a, **OPTIONS))
    monkeypatch.setattr(
        local_page, "serve", lambda blocks, **options: serve(blocks, quiet=True, **options)
    )
    launch(prior, "cpu", None, False)
    folder, *copies = found
    assert {"song.wav", "bass.wav", "take-001.zip", "report.html"} <= set(copies)
    assert cache() == []
    assert not folder.exists()


def test_files_go_with_the_next_take_and_with_the_session(blocks, song):
    studio = blocks.studio
    first = studio.separate(str(song), "fast", 0, lambda done, total: None)
    assert len(list(studio.folder.iterdir())) == 2
    state = next(b for b in blocks.blocks.values() if b.get_block_name() == "state")
    state.delete_callback(None)
    state.delete_callback(first)
    assert list(studio.folder.iterdir()) == []
    studio.discard(first)  # a second time does no harm


@pytest.fixture
def driver(tmp_path):
    yield from chromium(str(tmp_path / "downloads"))


def test_in_a_browser(driver, prior, song, tmp_path):
    pytest.importorskip("gradio")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    blocks = build(prior, "cpu", **OPTIONS)
    url = serve(blocks, prevent_thread_lock=True, quiet=True)
    try:
        driver.get(url)
        wait = WebDriverWait(driver, 90)

        def find(css):
            return wait.until(lambda d: d.find_element(By.CSS_SELECTOR, css))

        def archive():
            links = driver.find_elements(By.CSS_SELECTOR, "#files a[href]")
            addresses = [link.get_attribute("href") for link in links]
            return next(address for address in addresses if address.endswith(".zip"))

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
        earlier = archive()
        box = find("#new-seed input")
        box.clear()
        box.send_keys("7")
        find("#again").click()
        wait.until(lambda d: "bass 7" in find("#said").text)
        # The files of the first take are gone, and what the page had of it is still served.
        assert sorted(p.name for p in blocks.studio.folder.iterdir()) == [
            "take-002",
            "take-002.zip",
        ]
        assert earlier != archive()
        for link in (earlier, archive()):
            size = driver.execute_async_script(
                "const done = arguments[1];"
                "fetch(arguments[0]).then(r => r.arrayBuffer()).then(b => done(b.byteLength))",
                link,
            )
            assert size > 4 * 4 * 10000
    finally:
        blocks.close()
        blocks.studio.close()
