"""A local web page: drop a song, watch, listen, draw a stem again, download.

Needs Gradio (``pip install mgdm-audio[app]``). The page is served to this machine alone.
"""

from __future__ import annotations

__all__ = ["build", "launch", "serve"]

import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import soundfile as sf

from mgdm_audio import audio, hub
from mgdm_audio.conditional import separate_known
from mgdm_audio.cost import QUALITIES
from mgdm_audio.page import page
from mgdm_audio.posterior import DEFAULTS
from mgdm_audio.separate import Separator, check_seed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Messages = Callable[[MutableMapping[str, Any]], Awaitable[None]]

ALONE = ("ding", "default")
"""Method and preset for a prior without a regressor."""

HERE = ("127.0.0.1", "localhost", "::1")
"""The names of this machine that no other one can have."""

LARGEST = "4gb"
"""The largest song that can be dropped: all that a WAV file can hold."""

KEPT = (3600, 86400)
"""How often, in seconds, Gradio's copies of songs and stems are looked at, and the age at which
they are removed; the rest is when the page is stopped."""


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise ImportError(
            "the page needs Gradio, which is not installed; pip install 'mgdm-audio[app]'"
        ) from error
    return gradio


def _seed(number: float | None) -> int:
    """What stands in the field of the seed."""
    if number is None:
        raise ValueError("give a seed: a whole number from 0 on")
    return check_seed(int(number))


class OnlyHere:
    """Middleware of a server: it answers this machine's own pages and nobody else (ASGI).

    That it listens on 127.0.0.1 alone does not do it. Any website that is open in the browser can
    post a file here: it may not see the answer, but the file is on the disk. And one that has its
    own name point to 127.0.0.1 (DNS rebinding) can read all answers. But it is the browser that
    writes ``Host`` and ``Origin``.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Messages) -> None:
        if scope["type"] == "lifespan" or self._ours(scope["headers"]):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})  # not accepted before: a 403
        else:
            text = b"This page is for this machine alone: open it at 127.0.0.1 or localhost.\n"
            headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(text))]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": text})

    @staticmethod
    def _ours(headers: list[tuple[bytes, bytes]]) -> bool:
        hosts = [b"//" + value for name, value in headers if name == b"host"]
        origins = [value for name, value in headers if name == b"origin"]
        try:
            names = [urlsplit(url.decode("latin-1")).hostname for url in (*hosts, *origins)]
        except ValueError:  # no URL
            return False
        return bool(hosts) and all(name in HERE for name in names)


class Studio:
    """What the page does, without the page.

    Arguments:
        model: name or folder of a prior, or a loaded one, which is then asked alone; None for the
            shipped one and its regressor.
        device: where it runs.
        options: other options of `Separator`.

    Raises:
        ValueError: if the model is not a prior.
    """

    def __init__(self, model: str | hub.Prior | None, device: str, **options: Any) -> None:
        self.device, self.options = device, options
        named = () if model is None else (model, *ALONE)
        first = Separator(*named, device=device)
        if not isinstance(first.prior, hub.Prior):
            raise ValueError(f"model '{first.prior.name}' is not a prior")
        self.prior, self.regressor = first.prior, first.models.regressor
        self.folder = Path(tempfile.mkdtemp(prefix="mgdm-audio-"))
        self.takes = 0

    def close(self) -> None:
        """Removes what was made."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @staticmethod
    def discard(state: dict[str, Any] | None) -> None:
        """Removes the files of a separation, where there is one."""
        if state is not None:
            Path(state["archive"]).unlink(missing_ok=True)
            shutil.rmtree(Path(state["page"]).parent, ignore_errors=True)

    def separator(self, quality: str, again: bool = False) -> Separator:
        """A separator of a quality; for a stem that is drawn again, one whose draws differ."""
        if quality not in QUALITIES:
            raise ValueError(f"got quality '{quality}', expected one of {', '.join(QUALITIES)}")
        chosen = DEFAULTS["samples"] | {"preset": quality} if again else QUALITIES[quality]
        if self.regressor is None:
            chosen = {"method": ALONE[0], "preset": quality}
        elif chosen.get("regressor") is None:
            chosen = {**chosen, "regressor": self.regressor}
        return Separator(self.prior, device=self.device, **(chosen | self.options))

    def separate(
        self, path: str | None, quality: str, seed: float, progress: Callable[[int, int], None]
    ) -> dict[str, Any]:
        """The state of a new separation: stems, rate, where they were written."""
        if not path:
            raise ValueError("drop a song first")
        recording = audio.read(path)
        mix = recording.samples.astype(np.float32)
        result = self.separator(quality).separate(
            mix, recording.sample_rate, seed=_seed(seed), callback=progress
        )
        stems = {name: np.asarray(x) for name, x in result.stems.items()}
        seeds = dict.fromkeys(stems, int(seed))
        facts = {"residual before the stems were made to add up": f"{result.residual_db:.1f} dB"}
        return self._written(
            Path(path).name, mix, stems, recording.sample_rate, seeds, result.settings, facts,
            (*recording.warnings, *result.warnings),
        )  # fmt: skip

    def redraw(
        self,
        state: dict[str, Any] | None,
        stem: str,
        quality: str,
        seed: float,
        progress: Callable[[int, int], None],
    ) -> dict[str, Any]:
        """The state with one stem drawn again.

        The stems must go on adding up to the mix, so one other stem, the most alike, is drawn
        with it; the rest is kept.
        """
        if state is None:
            raise ValueError("separate a song first")
        names = list(state["stems"])
        if stem not in names:
            raise ValueError(f"unknown stem '{stem}', expected one of {', '.join(names)}")
        partner = self.partner(state["stems"], stem)
        kept = {n: x for n, x in state["stems"].items() if n not in (stem, partner)}
        result = separate_known(
            self.separator(quality, again=True), state["mix"], kept, state["rate"],
            [_seed(seed)], progress,
        )  # fmt: skip
        stems = result.draws[0]
        seeds = state["seeds"] | {stem: int(seed), partner: int(seed)}
        return self._written(
            state["title"], state["mix"], stems, state["rate"], seeds, result.settings, {},
            result.warnings,
        )  # fmt: skip

    @staticmethod
    def partner(stems: dict[str, np.ndarray[Any, Any]], stem: str) -> str:
        """The stem that takes up what another one loses: the most alike in its spectrum."""

        def shape(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            mono = np.atleast_2d(x).mean(0)
            power = np.abs(np.fft.rfft(mono)) ** 2
            bands = np.array([b.sum() for b in np.array_split(power, 64)])
            return bands / max(float(np.linalg.norm(bands)), 1e-20)

        mine = shape(stems[stem])
        others = [n for n in stems if n != stem]
        return max(others, key=lambda n: float(mine @ shape(stems[n])))

    def _written(
        self,
        title: str,
        mix: np.ndarray[Any, Any],
        stems: dict[str, np.ndarray[Any, Any]],
        rate: int,
        seeds: dict[str, int],
        settings: dict[str, Any],
        facts: dict[str, Any],
        warnings: tuple[str, ...],
    ) -> dict[str, Any]:
        self.takes += 1
        folder = self.folder / f"take-{self.takes:03d}"
        folder.mkdir()
        files = {}
        for name, x in stems.items():
            files[name] = str(folder / f"{name}.wav")
            sf.write(files[name], np.atleast_2d(x).T, rate, "FLOAT")
        archive = shutil.make_archive(str(folder), "zip", folder)
        html = folder / "report.html"
        text = page(
            title, mix, stems, rate, {"seeds": seeds, **settings}, facts=facts, warnings=warnings
        )
        html.write_text(text, encoding="utf-8")
        return {
            "title": title, "mix": mix, "stems": stems, "rate": rate, "seeds": seeds,
            "files": files, "archive": archive, "page": str(html), "warnings": warnings,
        }  # fmt: skip


def build(model: str | hub.Prior | None = None, device: str = "auto", **options: Any) -> Any:
    """The page, a ``gradio.Blocks``.

    Arguments:
        model, device, options: see `Studio`.

    Raises:
        ImportError: if Gradio is not installed.
        ValueError: if the model cannot be used.
    """
    gr = _gradio()
    studio = Studio(model, device, **options)
    names = list(studio.prior.stems)

    def shown(state: dict[str, Any]) -> list[Any]:
        seeds = ", ".join(f"{name} {seed}" for name, seed in state["seeds"].items())
        return [
            state,
            " ".join([f"Done. Seeds: {seeds}.", *(f"Warning: {w}." for w in state["warnings"])]),
            *(state["files"][name] for name in names),
            [state["archive"], state["page"]],
        ]

    # Gradio looks for its own object among the defaults.
    tracked = gr.Progress()

    def guarded(
        previous: dict[str, Any] | None,
        work: Callable[..., dict[str, Any]],
        *arguments: Any,
        progress: Any,
    ) -> list[Any]:
        def report(done: int, total: int) -> None:
            progress(done / max(1, total), desc=f"{done} of {total} network calls")

        try:
            state = work(*arguments, report)
        except (ValueError, OSError, ArithmeticError, MemoryError, RuntimeError) as error:
            raise gr.Error(" ".join(str(error).split()), print_exception=False) from error
        # What the page has of it are Gradio's copies.
        studio.discard(previous)
        return shown(state)

    def separate(
        state: Any, path: str | None, quality: str, seed: float, progress: Any = tracked
    ) -> list[Any]:
        return guarded(state, studio.separate, path, quality, seed, progress=progress)

    def redraw(
        state: Any, stem: str, quality: str, seed: float, progress: Any = tracked
    ) -> list[Any]:
        return guarded(state, studio.redraw, state, stem, quality, seed, progress=progress)

    with gr.Blocks(title="mgdm-audio", analytics_enabled=False, delete_cache=KEPT) as blocks:
        gr.Markdown("# mgdm-audio\nDrop a song; it becomes " + ", ".join(names) + ".")
        state = gr.State(None, delete_callback=studio.discard)
        with gr.Row():
            song = gr.File(label="Song (WAV, FLAC, OGG or MP3)", type="filepath", elem_id="song")
            with gr.Column():
                quality = gr.Radio(list(QUALITIES), value="fast", label="Quality")
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed")
                start = gr.Button("Separate", variant="primary", elem_id="start")
        said = gr.Markdown("", elem_id="said")
        players = [
            gr.Audio(label=name, interactive=False, elem_id=name, buttons=["download"])
            for name in names
        ]
        with gr.Row():
            stem = gr.Dropdown(names, value=names[0], label="Stem to draw again")
            new_seed = gr.Number(1, label="Its seed", precision=0, minimum=0, elem_id="new-seed")
            again = gr.Button("Draw again", elem_id="again")
        files = gr.File(
            label="Download: all stems, and a page to hear them together", file_count="multiple",
            interactive=False, elem_id="files",
        )  # fmt: skip
        outputs = [state, said, *players, files]
        # One at a time, of both together: they share the machine, and the count of takes.
        start.click(separate, [state, song, quality, seed], outputs, concurrency_id="work")
        again.click(redraw, [state, stem, quality, new_seed], outputs, concurrency_id="work")
    blocks.studio = studio
    return blocks


def serve(blocks: Any, **options: Any) -> str:
    """Serves a page of `build` to this machine alone; returns its address.

    Arguments:
        options: other ones of Gradio's ``launch``.
    """
    from starlette.middleware import Middleware  # comes with Gradio

    _, address, _ = blocks.queue().launch(
        server_name=HERE[0], share=False, allowed_paths=[str(blocks.studio.folder)],
        max_file_size=LARGEST, app_kwargs={"middleware": [Middleware(OnlyHere)]}, **options,
    )  # fmt: skip
    return str(address)


def launch(model: str | None, device: str, port: int, browser: bool) -> None:
    """Serves the page until it is stopped.

    Raises:
        ImportError: if Gradio is not installed.
        ValueError: if the model cannot be used.
    """
    blocks = build(model, device)
    try:
        serve(blocks, server_port=port, inbrowser=browser, prevent_thread_lock=True)
        with suppress(KeyboardInterrupt):
            _wait(blocks)
    finally:
        # Gradio, left to stop by itself, waits five seconds for the streams of pages that are
        # still open, and gives up before it removes its copies. This ends the streams.
        blocks.close()
        blocks.studio.close()


def _wait(blocks: Any) -> None:
    """Until somebody stops the server."""
    while blocks.is_running:
        time.sleep(0.2)
