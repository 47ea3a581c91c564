"""Drum kits that are computed, another one for every draw: falling tones, modes and noise.

What a drum machine does, over a wider range: a membrane is a tone whose pitch falls from the
stroke on, with a few modes above it; snares, hats and cymbals are noise in a band, the latter two
with inharmonic partials in it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from recipes.corpus.kits import Kit
from recipes.corpus.synth import RENDER_RATE

Audio = NDArray[np.float32]

Stroke = Callable[[float], NDArray[np.float64]]
"""A sound by how hard it is struck, 0 to 1; (T,) at 44.1 kHz."""

LAYERS = (0.35, 0.7, 1.0)  # velocities of the layers


class ComputedKit(Kit):
    """A kit of sounds that are computed.

    Args:
        rng: Draws all of its sounds.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.instruments = {}
        self._sounds = {}
        for role, layers in draw_drums(rng).items():
            names = [Path(f"{role}-{n}") for n in range(len(layers))]
            self._sounds.update(zip(names, layers, strict=True))
            tops = zip(LAYERS, names, strict=True)
            self.instruments[role] = [[(top, name, 1.0) for top, name in tops]]


def draw_drums(rng: np.random.Generator) -> dict[str, list[Audio]]:
    """Draw a kit: by role (see `kits.ROLES`) a sound for each of `LAYERS`, T at 44.1 kHz."""
    tuning = float(rng.uniform(0.8, 1.25))  # of all drums
    brightness = float(rng.uniform(0.6, 1.6))
    ring = float(np.exp(rng.normal(0, 0.4)))

    def layers(stroke: Stroke, level: float) -> list[Audio]:
        sounds = [stroke(hard) for hard in LAYERS]
        loudest = max(np.abs(s).max() for s in sounds) + 1e-9
        return [(level * s / loudest).astype(np.float32) for s in sounds]

    kit: dict[str, list[Audio]] = {}
    low = tuning * float(rng.uniform(42, 65))
    kick = _membrane(rng, low, float(rng.uniform(0.15, 0.6)) * ring, sweep=float(rng.uniform(1, 6)))
    click = _noise(rng, float(rng.uniform(800, 6000)), 0.006, float(rng.uniform(0, 0.5)))
    kit["kick"] = layers(lambda h: _sum(kick(h), h * click(h * brightness)), 1.0)
    body = _membrane(
        rng, tuning * float(rng.uniform(150, 260)), float(rng.uniform(0.08, 0.3)) * ring, sweep=0.4
    )
    wires = _noise(rng, float(rng.uniform(900, 4000)), float(rng.uniform(0.06, 0.3)) * ring, 1.0)
    mixed = float(rng.uniform(0.3, 1.5))
    kit["snare"] = layers(lambda h: _sum(body(h), mixed * wires(h * brightness)), 0.9)
    wood = _membrane(rng, tuning * float(rng.uniform(400, 1800)), 0.04, sweep=0.0)
    kit["stick"] = layers(lambda h: _sum(wood(h), 0.3 * click(h)), 0.5)
    for role, ratio in (("tom_low", 1.0), ("tom_mid", 1.4), ("tom_high", 1.9), ("conga", 2.6)):
        pitch = tuning * float(rng.uniform(70, 105)) * ratio
        tom = _membrane(rng, pitch, float(rng.uniform(0.2, 0.7)) * ring, sweep=0.5)
        kit[role] = layers(_both(tom, click, 0.3), 0.8)
    edge = brightness * float(rng.uniform(4000, 8500))
    metal = float(rng.uniform(0, 1.5))
    closed = float(rng.uniform(0.02, 0.09)) * ring
    for role, lasts in (
        ("hat_closed", closed), ("hat_pedal", 0.8 * closed),
        ("hat_open", float(rng.uniform(0.25, 1.0)) * ring),
    ):  # fmt: skip
        kit[role] = layers(_cymbal(rng, edge, lasts, metal), 0.45)
    for role, lasts, down, level in (
        ("ride", 2.0, 0.6, 0.45), ("crash", 2.2, 0.45, 0.7), ("china", 1.6, 0.4, 0.7),
        ("bell", 1.2, 0.3, 0.5),
    ):  # fmt: skip
        made = _cymbal(rng, edge * down, lasts * ring, metal * (3 if role == "bell" else 1))
        kit[role] = layers(made, level)
    clap = _noise(rng, float(rng.uniform(800, 1800)), float(rng.uniform(0.08, 0.25)), 1.0)
    kit["clap"] = layers(lambda h: _thrice(clap(h)), 0.7)
    shaker = _noise(rng, float(rng.uniform(4000, 8000)), float(rng.uniform(0.03, 0.1)), 1.0)
    kit["shaker"] = layers(shaker, 0.3)
    kit["tambourine"] = layers(_cymbal(rng, 6500, float(rng.uniform(0.1, 0.3)), 2.0), 0.4)
    kit["cowbell"] = layers(_cowbell(rng, float(rng.uniform(450, 800))), 0.5)
    return kit


def _time(seconds: float) -> NDArray[np.float64]:
    return np.arange(int(seconds * RENDER_RATE)) / RENDER_RATE


def _sum(*sounds: NDArray[np.float64]) -> NDArray[np.float64]:
    out = np.zeros(max(map(len, sounds)))
    for sound in sounds:
        out[: len(sound)] += sound
    return out


def _both(one: Stroke, other: Stroke, level: float) -> Stroke:
    return lambda hard: _sum(one(hard), level * hard * other(hard))


def _membrane(rng: np.random.Generator, hertz: float, lasts: float, sweep: float) -> Stroke:
    """A falling tone and modes above it, by hardness; `lasts` seconds to -20 dB."""
    glide = float(rng.uniform(0.01, 0.06))
    modes = 1 + np.cumsum(rng.uniform(0.3, 0.8, 3))
    levels = rng.uniform(0, 0.35, 3)
    bend = float(rng.uniform(1.0, 2.5))

    def make(hard: float) -> NDArray[np.float64]:
        t = _time(3 * lasts)
        fall = 1 + sweep * hard * np.exp(-t / glide)
        phase = 2 * np.pi * np.cumsum(hertz * fall) / RENDER_RATE
        out = np.sin(phase) * 10 ** (-t / lasts)
        for ratio, level in zip(modes, levels, strict=True):
            out += hard * level * np.sin(ratio * phase) * 10 ** (-2.5 * t / lasts)
        return np.tanh(bend * out) * np.minimum(1, t / 0.0015)

    return make


def _noise(rng: np.random.Generator, hertz: float, lasts: float, level: float) -> Stroke:
    """Noise in two octaves around a frequency, brighter where it is harder."""
    wide = float(rng.uniform(1.3, 3.0))
    size = int((3 * lasts + 0.01) * RENDER_RATE)
    white = rng.normal(size=size)

    def make(hard: float) -> NDArray[np.float64]:
        top = min(hertz * wide * (0.5 + hard), 0.45 * RENDER_RATE)
        bottom = min(hertz / wide, 0.6 * top)
        band = signal.butter(2, [bottom, top], "bandpass", fs=RENDER_RATE, output="sos")
        t = np.arange(size) / RENDER_RATE
        out = signal.sosfilt(band, white) * 10 ** (-t / lasts)
        return level * out / (np.abs(out).max() + 1e-9)

    return make


def _cymbal(rng: np.random.Generator, hertz: float, lasts: float, metal: float) -> Stroke:
    """Noise above a frequency and, as loud as `metal`, inharmonic partials in it."""
    count = int(rng.integers(5, 24))
    partials = hertz * rng.uniform(0.4, 2.2, count)
    partials = partials[partials < 0.4 * RENDER_RATE]
    phases = rng.uniform(0, 2 * np.pi, len(partials))
    hiss = _noise(rng, hertz * 1.3, lasts, 1.0)

    def make(hard: float) -> NDArray[np.float64]:
        t = _time(min(3 * lasts, 5.0))
        tones = np.zeros(len(t))
        for partial, phase in zip(partials, phases, strict=True):
            tones += np.sin(2 * np.pi * partial * t + phase)
        tones *= 10 ** (-t / lasts) / max(len(partials), 1) ** 0.5
        return _sum(hiss(hard)[: len(t)], metal * 0.5 * tones)

    return make


def _cowbell(rng: np.random.Generator, hertz: float) -> Stroke:
    ratio, lasts = float(rng.uniform(1.35, 1.6)), float(rng.uniform(0.08, 0.3))

    def make(hard: float) -> NDArray[np.float64]:
        t = _time(3 * lasts)
        tones = [np.tanh(3 * np.sin(2 * np.pi * f * t)) for f in (hertz, ratio * hertz)]
        band = signal.butter(2, [0.7 * hertz, 9000], "bandpass", fs=RENDER_RATE, output="sos")
        return np.asarray(signal.sosfilt(band, sum(tones) * 10 ** (-t / lasts)))

    return make


def _thrice(sound: NDArray[np.float64]) -> NDArray[np.float64]:
    """A clap: short strokes before the long one."""
    gap = int(0.011 * RENDER_RATE)
    short = sound[:gap] * np.linspace(1, 0, gap) ** 2
    return np.concatenate([short, short, short, sound])
