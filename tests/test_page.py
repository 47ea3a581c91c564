"""The page: it holds what it shows, nothing from outside, and plays in a real browser."""

import base64
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile as sf
from browser import chromium, errors

from mgdm_audio import STEMS
from mgdm_audio.page import page
from mgdm_audio.uncertainty import assess

RATE = 22050


@pytest.fixture
def music(music):
    """Ten seconds: a busy machine is slow to press pause."""
    return np.tile(music, 5)


@pytest.fixture
def stems(music):
    return dict(zip(STEMS, music, strict=True))


@pytest.fixture
def text(stems, music):
    rng = np.random.default_rng(0)
    draws = [music + 0.01 * rng.normal(size=music.shape) for _ in range(4)]
    return page(
        "A song <b>&amp;</b> more",
        music.sum(0),
        stems,
        RATE,
        {"method": "ding", "sampler": {"levels": 40}},
        facts={"residual": "-61.2 dB"},
        warnings=("the file ends </script><script>alert(1)</script>",),
        uncertainty=assess(draws, STEMS, RATE),
    )


def data_of(text):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(found.group(1))


def test_the_page_holds_all_and_asks_for_nothing(text, stems, music):
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text)
    assert "default-src 'none'" in text
    assert "<title>A song &lt;b&gt;&amp;amp;&lt;/b&gt; more</title>" in text
    assert text.count("</script>") == 2
    data = data_of(text)
    assert [t["name"] for t in data["tracks"]] == ["mix", *STEMS]
    for track, x in zip(data["tracks"], [music.sum(0), *music], strict=True):
        decoded, rate = sf.read(io.BytesIO(base64.b64decode(track["audio"])))
        assert rate == RATE
        assert np.corrcoef(decoded, x)[0, 1] > 0.95
        grid = np.frombuffer(base64.b64decode(track["spectrum"]["values"]), np.uint8)
        assert len(grid) == track["spectrum"]["rows"] * track["spectrum"]["columns"]
        assert grid.max() > 100
    assert "doubt" not in data["tracks"][0]
    assert ["sampler levels", "40"] in data["settings"]
    assert ["draws", "4"] in data["facts"]


def test_flac_is_exact_to_its_bits(stems, music):
    data = data_of(page("x", music.sum(0), stems, RATE, {}, audio="flac"))
    decoded, _ = sf.read(io.BytesIO(base64.b64decode(data["tracks"][1]["audio"])))
    assert np.abs(decoded - music[0]).max() < 2.0**-15


def test_errors_say_what_was_expected(stems, music):
    with pytest.raises(ValueError, match="ogg, flac"):
        page("x", music.sum(0), stems, RATE, {}, audio="mp3")
    with pytest.raises(ValueError, match="shapes"):
        page("x", music.sum(0)[:-1], stems, RATE, {})
    with pytest.raises(ValueError, match="uncertainty"):
        page(
            "x",
            music[0],
            {"flute": music[0]},
            RATE,
            {},
            uncertainty=assess([music] * 2, STEMS, RATE),
        )


PAGES = """
import json, sys
import numpy as np
from mgdm_audio.page import page
texts = []
for rate, channels, audio in json.loads(sys.argv[1]):
    x = 0.1 * np.sin(2 * np.pi * 1000 * np.arange(rate // 10) / rate) * np.ones((channels, 1))
    texts.append(page("x", x, {"bass": x}, rate, {}, audio=audio))
print(json.dumps(texts))
"""


def test_what_an_encoder_has_no_room_for():
    """In a process of its own, which libsndfile's encoder would take with it."""
    sizes = [(96000, 2), (768000, 1), (8000, 300), (48000, 9)]
    cases = [(rate, channels, audio) for rate, channels in sizes for audio in ("ogg", "flac")]
    command = [sys.executable, "-c", PAGES, json.dumps(cases)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for (rate, channels, audio), text in zip(cases, json.loads(out), strict=True):
        data = data_of(text)
        embedded = io.BytesIO(base64.b64decode(data["tracks"][1]["audio"]))
        x, rate_in = sf.read(embedded, always_2d=True)
        assert rate_in == min(rate, 48000)
        assert abs(len(x) / rate_in - 0.1) < 2e-3
        peak = np.argmax(np.abs(np.fft.rfft(x.mean(1)))) * rate_in / len(x)
        assert peak == pytest.approx(1000, abs=20)
        mixed = channels > (255 if audio == "ogg" else 8)
        assert x.shape[1] == (1 if mixed else channels)
        assert len(data["warnings"]) == mixed


@pytest.mark.parametrize(
    ("title", "shown"), [(b"caf\xe9.wav", "caf\ufffd.wav"), (b"__DATA__.wav", "__DATA__.wav")]
)
def test_names_that_are_no_text_or_marks_of_the_template(stems, music, title, shown):
    text = page(os.fsdecode(title), music.sum(0), stems, RATE, {})
    text.encode("utf-8")  # it can be written
    assert f"<title>{shown}</title>" in text
    assert data_of(text)["title"] == shown


@pytest.fixture
def driver(tmp_path):
    yield from chromium(str(tmp_path))


def opened(driver, wait, folder, text):
    """The play button of a page that has decoded what it holds."""
    path = folder / "page.html"
    path.write_text(text, encoding="utf-8")
    driver.get(path.as_uri())
    play = driver.find_element("id", "play")
    wait.until(lambda _: play.is_enabled())
    return play


def test_in_a_browser(driver, text, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(driver, 60)
    play = opened(driver, wait, tmp_path, text)

    def gains():
        return driver.execute_script("return player.gains()")

    def press(kind, name):
        driver.find_element(By.CSS_SELECTOR, f"[data-name={name}] .{kind}").click()

    assert driver.find_element(By.ID, "title").text == "A song <b>&amp;</b> more"
    assert "</script>" in driver.find_element(By.ID, "warnings").text
    assert gains() == [0, 1, 1, 1, 1]
    press("solo", "drums")
    assert gains() == [0, 0, 1, 0, 0]
    press("solo", "mix")
    assert gains() == [1, 0, 1, 0, 0]
    press("solo", "drums")
    press("solo", "mix")
    press("mute", "bass")
    assert gains() == [0, 0, 1, 1, 1]
    # What was decoded is in time: the stems add up to the mix, but for what OGG loses.
    left = driver.execute_script(
        "const x = player.tracks.map(t => t.buffer.getChannelData(0));"
        "const n = Math.min(...x.map(c => c.length)); let rest = 0, all = 0;"
        "for (let i = 0; i < n; i++) { const sum = x[1][i] + x[2][i] + x[3][i] + x[4][i];"
        "rest += (sum - x[0][i]) ** 2; all += x[0][i] ** 2; } return [rest / all, n];"
    )
    assert left[0] < 0.05
    assert left[1] > 9.9 * driver.execute_script("return player.context.sampleRate")
    play.click()
    wait.until(lambda _: driver.execute_script("return player.playing && player.time() > 0.2"))
    assert play.text == "Pause"
    play.click()
    paused = driver.execute_script("return player.time()")
    assert not driver.execute_script("return player.playing")
    assert 0.2 < paused < 10
    driver.find_element(By.CSS_SELECTOR, "[data-name=piano] .view").click()  # its middle
    assert driver.execute_script("return player.time()") == pytest.approx(5.0, abs=0.1)
    painted = driver.execute_script(
        "return [...document.querySelectorAll('canvas')].map(c => c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data.some(v => v > 0 && v < 255))"
    )
    assert painted == [True] * len(painted)
    assert len(painted) == 5 + 2 * 4
    driver.execute_script("player.seek(player.duration - 0.3)")
    play.click()
    wait.until(lambda _: driver.execute_script("return player.time() >= player.duration"))
    assert not driver.execute_script("return player.playing")  # it ends by itself
    assert not errors(driver)


# Whatever the tracks play is counted, and the context resumes when the test says so.
HELD = """
const context = player.context, make = context.createBufferSource.bind(context);
window.sources = 0;
context.createBufferSource = () => {
  const source = make();
  const start = source.start.bind(source), stop = source.stop.bind(source);
  source.start = (...a) => { window.sources++; start(...a); };
  source.stop = () => { window.sources--; stop(); };
  return source;
};
const resume = context.resume.bind(context);
window.held = [];
context.resume = () => new Promise((done, fail) => window.held.push(
  (works) => (works ? resume().then(done) : fail(new Error("no device")))));
"""


def test_presses_while_the_context_resumes(driver, stems, music, tmp_path):
    """Two of play start every track once; a stop or a seek in between holds; a failure does not."""
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(driver, 60)
    play = opened(driver, wait, tmp_path, page("x", music.sum(0), stems, RATE, {}))
    driver.execute_script(HELD)

    def resumed(works="true"):
        """Lets the context resume; how many sources play then."""
        driver.execute_async_script(
            f"for (const go of window.held.splice(0)) go({works});setTimeout(arguments[0], 300);"
        )
        return driver.execute_script("return window.sources")

    play.click()
    play.click()
    assert resumed() == 1 + len(STEMS)
    assert driver.execute_script("return player.playing")
    play.click()
    assert driver.execute_script("return [window.sources, player.playing]") == [0, False]
    play.click()
    driver.execute_script("player.stop()")
    assert resumed() == 0
    play.click()
    driver.execute_script("player.stop(); player.play()")
    assert resumed() == 1 + len(STEMS)
    driver.execute_script("player.seek(3); player.seek(6)")
    assert resumed() == 1 + len(STEMS)
    assert driver.execute_script("return player.offset") == 6
    driver.execute_script("player.stop(); player.play().catch(() => 0)")
    assert resumed("false") == 0
    play.click()
    assert resumed() == 1 + len(STEMS)
