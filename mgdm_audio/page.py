"""A separation as one HTML page: to hear, to see, to doubt.

The page needs nothing but itself: audio, spectrograms and the player are inside, and it asks no
network. Mix and stems play in time with each other, with solo and mute. Where there are several
draws, it shows how sure each stem is, by band and over time.
"""

from __future__ import annotations

__all__ = ["page"]

import base64
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from mgdm_audio.audio import resample
from mgdm_audio.page_template import TEMPLATE
from mgdm_audio.terminal import printable
from mgdm_audio.uncertainty import BANDS, Uncertainty

COLUMNS = 800
"""Columns of a spectrogram."""

ROWS = 80
"""Rows of a spectrogram, on a logarithmic axis of frequency."""

RANGE_DB = 80.0
"""From the loudest cell of the mix down to black."""

FORMATS = {"ogg": ("OGG", "VORBIS"), "flac": ("FLAC", "PCM_16")}
"""OGG is a tenth of the size; FLAC loses nothing but bits beyond 16 and rates beyond `RATE`."""

RATE = 48000
"""Highest sample rate of the audio inside, in hertz: the players have no higher one, and above
200 kHz libsndfile's Vorbis encoder crashes."""

CHANNELS = {"ogg": 255, "flac": 8}
"""Most channels of a format. Beyond them FLAC has an error and libsndfile's Vorbis encoder crashes,
so their mean is embedded."""


def page(
    title: str,
    mix: NDArray[Any],
    stems: Mapping[str, NDArray[Any]],
    sample_rate: int,
    settings: Mapping[str, Any],
    *,
    facts: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
    uncertainty: Uncertainty | None = None,
    audio: str = "ogg",
) -> str:
    """The page as text.

    Arguments:
        title: such as the name of the recording.
        mix: what was separated, (T,) or (C, T).
        stems: by name, of the same shape.
        sample_rate: in hertz.
        settings: what decided the result; shown as a table.
        facts: what was found, such as the residual; shown as a table.
        warnings: sentences shown on top; one more tells of channels that were mixed, see CHANNELS.
        uncertainty: of the stems, if there are several draws.
        audio: ``ogg`` or ``flac``.

    Raises:
        ValueError: for an unknown format, shapes that differ, or stems without uncertainty.
    """
    if audio not in FORMATS:
        raise ValueError(f"got audio '{audio}', expected one of {', '.join(FORMATS)}")
    mixed = np.atleast_2d(np.asarray(mix))
    tracks = {"mix": mixed} | {n: np.atleast_2d(np.asarray(x)) for n, x in stems.items()}
    if any(x.shape != mixed.shape for x in tracks.values()):
        shapes = {name: x.shape for name, x in tracks.items()}
        raise ValueError(f"got shapes {shapes}, expected those of the mix for all stems")
    if uncertainty is not None and not set(stems) <= set(uncertainty.names):
        raise ValueError(f"got the uncertainty of {uncertainty.names} for stems {list(stems)}")
    pictures = {name: _spectrum(x.mean(0), sample_rate) for name, x in tracks.items()}
    top = max(float(picture.max()) for picture in pictures.values())
    listed = [
        {
            "name": name,
            "muted": name == "mix",
            "audio": _encoded(x, sample_rate, audio),
            "spectrum": _grid((pictures[name] - top) / RANGE_DB + 1),
        }
        | ({} if uncertainty is None or name == "mix" else _doubt(uncertainty, name))
        for name, x in tracks.items()
    ]
    found = dict(facts or {})
    if uncertainty is not None:
        found |= _found(uncertainty)
    told = list(warnings)
    if len(mixed) > CHANNELS[audio]:
        told.append(f"{len(mixed)} channels are more than {audio} has: their mean is played")
    title = printable(title)  # the name of a file may be no text
    data = {
        "title": title,
        "seconds": mixed.shape[1] / sample_rate,
        "tracks": listed,
        "warnings": told,
        "legend": _legend(uncertainty, sample_rate),
        "facts": _rows(found),
        "settings": _rows(settings),
    }
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    # In one pass: what is put in may hold the marks too.
    parts = {"__TITLE__": escape(title), "__DATA__": text}
    return re.sub("|".join(parts), lambda mark: parts[mark[0]], TEMPLATE)


def _encoded(x: NDArray[Any], sample_rate: int, audio: str) -> str:
    """Base64 of an audio file."""
    container, subtype = FORMATS[audio]
    if len(x) > CHANNELS[audio]:
        x = x.mean(0, keepdims=True)
    if sample_rate > RATE:
        x, sample_rate = resample(x, sample_rate, RATE), RATE
    buffer = io.BytesIO()
    with sf.SoundFile(buffer, "w", sample_rate, len(x), format=container, subtype=subtype) as file:
        # In pieces: libsndfile's Vorbis encoder keeps a whole call on the stack.
        for start in range(0, x.shape[1], 32768):
            file.write(np.clip(x[:, start : start + 32768].T, -1, 1).astype(np.float32))
    return base64.b64encode(buffer.getvalue()).decode()


def _spectrum(x: NDArray[Any], sample_rate: int) -> NDArray[np.float64]:
    """Levels in dB, (ROWS, columns), low frequencies first."""
    n_fft = 2048
    columns = min(COLUMNS, max(1, len(x) // (n_fft // 4)))
    starts = np.linspace(0, max(0, len(x) - n_fft), columns).astype(int)
    padded = np.pad(x, (0, n_fft)).astype(np.float32)
    frames = np.stack([padded[s : s + n_fft] for s in starts])
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(n_fft), axis=1))) / n_fft
    edges = np.geomspace(40, sample_rate / 2, ROWS + 1) * n_fft / sample_rate
    low = np.minimum(np.floor(edges[:-1]).astype(int), n_fft // 2)
    high = np.maximum(np.ceil(edges[1:]).astype(int), low + 1)
    cells = np.stack([power[:, a:b].mean(1) for a, b in zip(low, high, strict=True)])
    return 10 * np.log10(np.maximum(cells, 1e-14))


def _grid(values: NDArray[Any]) -> dict[str, Any]:
    """Values from 0 to 1 as bytes."""
    cells = np.round(255 * np.clip(values, 0, 1)).astype(np.uint8)
    return {
        "rows": cells.shape[0],
        "columns": cells.shape[1],
        "values": base64.b64encode(cells.tobytes()).decode(),
    }


def _doubt(uncertainty: Uncertainty, name: str) -> dict[str, Any]:
    """Uncertainty by band and time, levels between which the stem lies, and a note."""
    k = uncertainty.names.index(name)
    low, high = (bound[k] for bound in uncertainty.interval_db(0.9))
    step = max(1, math.ceil(len(low) / COLUMNS))
    # Where a stem is 60 dB below its loudest, nobody hears what is not known.
    power = 10 * np.log10(np.maximum(uncertainty.power[k], 1e-20))
    heard = np.clip((power - power.max() + 60) / 30, 0, 1)
    return {
        "doubt": _grid((uncertainty.relative()[k] * heard)[:, ::step]),
        "interval": {
            "low": [round(float(v), 1) for v in low[::step]],
            "high": [round(float(v), 1) for v in high[::step]],
        },
        "note": f"plays: {100 * uncertainty.presence[k]:.0f} %",
    }


def _found(uncertainty: Uncertainty) -> dict[str, Any]:
    error = uncertainty.error_db()
    return {
        "draws": uncertainty.draws,
        "nearest to the others": f"draw {uncertainty.ranking[0] + 1}",
    } | {
        f"expected SNR of the mean {name}": f"{error[k]:.1f} dB"
        for k, name in enumerate(uncertainty.names)
        if math.isfinite(error[k])
    }


def _legend(uncertainty: Uncertainty | None, sample_rate: int) -> str:
    text = (
        f"Spectrograms: 40 Hz to {sample_rate // 2} Hz, logarithmic, {RANGE_DB:.0f} dB. "
        "S plays a track alone, M silences it; the mix is silenced at first. A click goes there."
    )
    if uncertainty is None:
        return text
    edges = ", ".join(f"{edge:g}" for edge in BANDS[1:-1])
    return text + (
        f" Below each stem: how far the {uncertainty.draws} draws differ, in bands (edges "
        f"{edges} Hz, low ones at the bottom), from blue, where they agree, to red, where nothing "
        "is known but the power (what is inaudible counts as agreed); and the levels from 0 to -80 "
        "dB between which the stem lies "
        f"({100 * uncertainty.interval_probability(0.9):.0f} % by the draws)."
    )


def _rows(values: Mapping[str, Any]) -> list[list[str]]:
    """Names and values as text; nested settings are flattened."""
    rows: list[list[str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += [[f"{name} {inner}", text] for inner, text in _rows(value)]
        else:
            rows.append([str(name), f"{value:.4g}" if isinstance(value, float) else str(value)])
    return rows
