"""Sums of decaying partials: struck strings and synthesiser basses, another one for every draw.

A partial is a damped complex exponential. Strings are stiff, so their partials are sharp of the
harmonics; high ones die first; what is struck at a fraction of its length lacks the partials that
have a node there; two or three strings a note beat (N. Fletcher and T. Rossing, The Physics of
Musical Instruments, chapter 12). The colour of the soundboard is a random curve.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recipes.corpus.synth import RENDER_RATE

Audio = NDArray[np.float32]

HIGHEST, MOST = 10_000.0, 80  # Hz, and number, of partials
BLOCK = 256
COLOUR = np.geomspace(30, 11_000, 9)  # Hz of the points of a colour


@dataclass(frozen=True)
class Partials:
    """What makes an instrument: all of it is drawn by `draw_piano` or `draw_synth_bass`."""

    stiff: float  # inharmonicity of the string at a (220 Hz)
    place: float  # of the hammer along the string, 0 for all partials alike
    even: float  # level of the even partials
    soft: float  # cut-off of the softest note, Hz
    hard: float  # of the hardest
    slope: float  # order of the cut-off
    decay: float  # seconds to -60 dB at 220 Hz
    damping: float  # how much sooner partials die by kilohertz
    sustain: float  # share that does not decay while the note is held
    strings: tuple[float, ...]  # detuning in cents
    colour: tuple[float, ...]  # dB at `COLOUR`
    knock: float  # level of the noise of the attack
    dull: float  # its highest frequency, Hz
    attack: float  # seconds
    release: float  # seconds to -60 dB after the end of a note


def draw_piano(rng: np.random.Generator) -> Partials:
    """Draw a piano, upright or grand, well kept or not, or something between it and a harp."""
    count = int(rng.integers(1, 4))
    spread = float(rng.choice([0.4, 0.8, 2.0, 7.0], p=[0.35, 0.35, 0.2, 0.1]))
    return Partials(
        stiff=float(np.exp(rng.uniform(np.log(5e-5), np.log(1.2e-3)))),
        place=float(rng.uniform(0.06, 0.25)),
        even=1.0,
        soft=float(rng.uniform(250, 900)),
        hard=float(rng.uniform(900, 4500)),
        slope=float(rng.uniform(1.5, 3.5)),
        decay=float(rng.uniform(4, 22)),
        damping=float(rng.uniform(0.3, 3.0)),
        sustain=0.0,
        strings=tuple(float(rng.normal(0, spread)) for _ in range(count)),
        colour=tuple(float(v) for v in rng.normal(0, 4, len(COLOUR))),
        knock=float(rng.choice([0.0, rng.uniform(0.02, 0.3)])),
        dull=float(rng.uniform(300, 2500)),
        attack=float(rng.uniform(0.0005, 0.004)),
        release=float(rng.uniform(0.08, 0.5)),
    )


def draw_synth_bass(rng: np.random.Generator) -> Partials:
    """Draw a bass of an analogue synthesiser: saw, square or between, through a closing filter."""
    fat = rng.random() < 0.4
    return Partials(
        stiff=0.0,
        place=0.0,
        even=float(rng.choice([1.0, 1.0, rng.uniform(0, 1), 0.02])),
        soft=float(rng.uniform(80, 500)),
        hard=float(rng.uniform(200, 3000)),
        slope=float(rng.uniform(1.5, 5)),
        decay=float(rng.uniform(0.8, 6)),
        damping=float(rng.uniform(1, 12)),
        sustain=float(rng.choice([0.0, rng.uniform(0.2, 1.0)])),
        strings=tuple(float(v) for v in rng.normal(0, 7, 2)) if fat else (0.0,),
        colour=tuple(float(v) for v in rng.normal(0, 2, len(COLOUR))),
        knock=0.0,
        dull=1000.0,
        attack=float(rng.uniform(0.001, 0.015)),
        release=float(rng.uniform(0.03, 0.25)),
    )


def strike(
    partials: Partials, pitch: float, steps: int, seconds: float, rng: np.random.Generator
) -> Audio:
    """Play one note, from softest to hardest.

    Args:
        partials: The instrument.
        pitch: MIDI note, fractions allowed.
        steps: How many velocities.
        seconds: Length.
        rng: Phases of the partials, noise of the attack.

    Returns:
        (steps, T) float32 at 44.1 kHz; the hardest one at an RMS of the attack of about 1.
    """
    base = 440 * 2 ** ((pitch - 69) / 12)
    stiff = partials.stiff * 2 ** ((pitch - 57) / 9)
    n = np.arange(1, MOST + 1)
    hertz = n * base * np.sqrt(1 + stiff * n**2) / np.sqrt(1 + stiff)
    n, hertz = n[hertz < HIGHEST], hertz[hertz < HIGHEST]
    level = 10 ** (np.interp(np.log(hertz), np.log(COLOUR), partials.colour) / 20) / n**0.5
    if partials.place:
        level *= 0.02 + np.abs(np.sin(np.pi * n * partials.place))
    level *= np.where(n % 2 == 0, partials.even, 1.0)
    cutoffs = partials.soft * (partials.hard / partials.soft) ** np.linspace(0, 1, steps)
    # Notes above the cut-off lose less than the filter says, or the treble would be silent.
    cutoffs = np.maximum(cutoffs, 1.2 * base)[:, None]
    weights = level / (1 + (hertz / cutoffs) ** partials.slope)
    lasts = partials.decay * (220 / base) ** 0.5 / (1 + partials.damping * hertz / 1000)
    total = int(seconds * RENDER_RATE)
    out = np.zeros((steps, total), dtype=np.float32)
    for cents in partials.strings:
        moved = hertz * 2 ** (cents / 1200)
        phase = np.exp(1j * rng.uniform(-0.6, 0.6, len(n)) - 0.5j * np.pi)
        dying = weights * (1 - partials.sustain)
        out += np.real(_decaying(moved, lasts * rng.uniform(0.7, 1.3), phase, dying, total))
        if partials.sustain:
            held = weights * partials.sustain
            out += np.real(_decaying(moved, np.full(len(n), 60.0), phase, held, total))
    out /= len(partials.strings) * np.sqrt(np.square(weights[-1]).sum() / 2)
    time = np.arange(total, dtype=np.float32) / RENDER_RATE
    out *= np.minimum(1, time / partials.attack)
    if partials.knock:
        size = min(total, int(0.25 * RENDER_RATE))
        spectrum = np.fft.rfft(rng.normal(size=size))
        spectrum /= 1 + (np.fft.rfftfreq(size, 1 / RENDER_RATE) / partials.dull) ** 4
        noise = np.fft.irfft(spectrum, n=size) * 10 ** (-3 * time[:size] / 0.12)
        noise /= np.sqrt(np.square(noise).mean()) + 1e-12
        out[:, :size] += partials.knock * np.linspace(0.2, 1, steps)[:, None] * noise
    return out.astype(np.float32)


def _decaying(
    hertz: NDArray[np.float64],
    lasts: NDArray[np.float64],
    phase: NDArray[np.complex128],
    weights: NDArray[np.float64],
    total: int,
) -> NDArray[np.complex64]:
    """Weighted sums (rows, total) of damped exponentials: weights (rows, N), of N partials.

    An exponential of a sum is a product, so only one block and the steps from block to block are
    exponentials; the rest are products of matrices.
    """
    rate = 2j * np.pi * hertz / RENDER_RATE - 6.907755 / (lasts * RENDER_RATE)
    blocks = -(-total // BLOCK)
    within = np.exp(rate[:, None] * np.arange(BLOCK)).astype(np.complex64)
    between = np.exp(rate[:, None] * BLOCK * np.arange(blocks)).astype(np.complex64)
    first = (weights * phase).astype(np.complex64)
    rows = [(between * row[:, None]).T @ within for row in first]
    return np.stack(rows).reshape(len(rows), -1)[:, :total]
