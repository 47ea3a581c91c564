"""Instruments that are computed, another one for every draw: they sound like no sample set.

Plucked strings are a delay line with a low-pass in its loop (K. Karplus and A. Strong, 1983;
extensions by D. Jaffe and J. Smith, 1983); electric pianos are frequency modulation (J. Chowning,
1973); `struck.py` has pianos and synthesiser basses, `drum_synth.py` kits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from recipes.corpus.drum_synth import ComputedKit
from recipes.corpus.struck import Partials, draw_piano, draw_synth_bass, strike
from recipes.corpus.synth import RENDER_RATE

Audio = NDArray[np.float32]

SOFTEST, STEPS = 20, 4  # velocities are played in so many steps from the softest to 127
LONGEST = 3.5  # seconds of a note


def _velocities() -> NDArray[np.float64]:
    return np.linspace(SOFTEST, 127, STEPS)


@dataclass(frozen=True)
class Guitar:
    """What makes a guitar: all of it is drawn by `draw_guitar`."""

    pick: float  # place along the string, 0 to 0.5
    pickup: float  # place of a magnetic pickup, 0 where there is none
    soft: float  # cut-off of the softest pluck, Hz
    hard: float  # cut-off of the hardest one, Hz
    decay: float  # seconds to -60 dB of a string at 110 Hz
    loss: float  # share of the loop filter's neighbours, 0 to 0.3: how fast high partials die
    twin: float  # detuning in cents of the string's second polarisation
    release: float  # seconds to -60 dB after the end of a note
    body: tuple[tuple[float, float, float], ...]  # resonances: Hz, seconds to -60 dB, level


def draw_guitar(rng: np.random.Generator, acoustic: bool) -> Guitar:
    """Draw a guitar with a resonant body or one with a pickup."""
    modes = int(rng.integers(6, 13)) if acoustic else 0
    places = np.geomspace(95, 1100, modes) * np.exp(rng.normal(0, 0.12, modes))
    body = tuple(
        (float(f), float(rng.uniform(0.06, 0.35)), float(rng.uniform(0.1, 0.6) / (1 + f / 500)))
        for f in places
    )
    return Guitar(
        pick=float(rng.uniform(0.05, 0.4)),
        pickup=0.0 if acoustic else float(rng.uniform(0.06, 0.28)),
        soft=float(rng.uniform(500, 2000)),
        hard=float(rng.uniform(2500, 9000)),
        decay=float(rng.uniform(2.0, 7.0)),
        loss=float(rng.uniform(0.01, 0.16)),
        twin=float(rng.uniform(0.2, 2.5)),
        release=float(rng.uniform(0.05, 0.3)),
        body=body,
    )


def draw_bass(rng: np.random.Generator, upright: bool) -> Guitar:
    """Draw a bass guitar or a double bass."""
    modes = int(rng.integers(3, 7)) if upright else 0
    places = np.geomspace(60, 500, modes) * np.exp(rng.normal(0, 0.15, modes))
    body = tuple(
        (float(f), float(rng.uniform(0.05, 0.25)), float(rng.uniform(0.1, 0.7))) for f in places
    )
    return Guitar(
        pick=float(rng.uniform(0.06, 0.45)),
        pickup=0.0 if upright else float(rng.uniform(0.05, 0.3)),
        soft=float(rng.uniform(120, 700)),
        hard=float(rng.uniform(500, 5000)),
        decay=float(rng.uniform(0.8, 2.5) if upright else rng.uniform(1.5, 6.0)),
        loss=float(rng.uniform(0.02, 0.3)),
        twin=float(rng.uniform(0.1, 2.0)),
        release=float(rng.uniform(0.04, 0.2)),
        body=body,
    )


def pluck(guitar: Guitar, pitch: float, rng: np.random.Generator) -> Audio:
    """Play one note at every step of velocity.

    Args:
        guitar: The instrument.
        pitch: MIDI note, fractions allowed.
        rng: Noise of the plucks.

    Returns:
        (STEPS, T) float32 at 44.1 kHz.
    """
    frequency = 440 * 2 ** ((pitch - 69) / 12)
    lasts = guitar.decay * (110 / frequency) ** 0.6  # seconds to -60 dB
    total = int(min(LONGEST, max(lasts, 0.5)) * RENDER_RATE)
    voices = np.zeros((STEPS, total))
    cutoffs = guitar.soft * (guitar.hard / guitar.soft) ** np.linspace(0, 1, STEPS)
    for cents, share in ((0.0, 0.7), (guitar.twin, 0.3)):
        period = RENDER_RATE / (frequency * 2 ** (cents / 1200))
        whole = int(period) - 1
        rest = period - whole  # 1 to 2 samples, by a second-order Lagrange interpolation
        delay = [(rest - 1) * (rest - 2) / 2, -rest * (rest - 2), rest * (rest - 1) / 2]
        around = np.array([guitar.loss / 2, 1 - guitar.loss, guitar.loss / 2])
        kernel = np.convolve(delay, around)[::-1] * 10 ** (-3 / (frequency * lasts))
        noise = rng.uniform(-1, 1, whole + 8)
        burst = np.stack(
            [
                signal.sosfilt(signal.butter(1, c, fs=RENDER_RATE, output="sos"), noise)
                for c in cutoffs
            ]
        )
        place = max(int(guitar.pick * period), 1)
        burst -= np.pad(burst, ((0, 0), (place, 0)))[:, : burst.shape[1]]
        line = np.zeros((STEPS, total + whole + 8))
        line[:, : whole + 8] = burst - burst.mean(1, keepdims=True)
        # A sample follows from those `whole` - 1 to `whole` + 3 before it (the loop filter's own
        # delay of one is taken off), so that many can be computed at a time.
        step, at = whole - 1, whole + 8
        while at < line.shape[1]:
            count = min(step, line.shape[1] - at)
            old = line[:, at - whole - 3 : at - whole + 1 + count]
            line[:, at : at + count] = sum(
                weight * old[:, k : k + count] for k, weight in enumerate(kernel)
            )
            at += count
        voices += share * line[:, 8 : 8 + total]
    if guitar.pickup:
        place = max(int(guitar.pickup * RENDER_RATE / frequency), 1)
        voices[:, place:] -= voices[:, :-place].copy()
    return voices.astype(np.float32)


def resonate(guitar: Guitar, sound: Audio) -> Audio:
    """Add what the body of a guitar radiates, (T,)."""
    out = sound.astype(np.float64)
    for hertz, seconds, level in guitar.body:
        radius = 10 ** (-3 / (seconds * RENDER_RATE))
        angle = 2 * np.pi * hertz / RENDER_RATE
        poles = [1, -2 * radius * np.cos(angle), radius**2]
        scale = level * (1 - radius) * 8
        out += signal.lfilter([scale, 0, -scale], poles, sound)
    return out.astype(np.float32)


@dataclass(frozen=True)
class Tines:
    """An electric piano of two pairs of modulator and carrier, drawn by `draw_tines`."""

    ratio: float  # modulator to carrier of the tine
    bell: float  # and of the attack
    index: float  # of modulation at full velocity
    bright: float  # of the attack
    decay: float  # seconds to -60 dB at middle c
    dull: float  # seconds to -60 dB of the modulation
    tremolo: float  # depth
    release: float  # seconds to -60 dB after the end of a note


def draw_tines(rng: np.random.Generator) -> Tines:
    """Draw an electric piano."""
    return Tines(
        ratio=float(rng.choice([1.0, 1.0, 2.0, 3.0])),
        bell=float(rng.choice([5.0, 7.0, 9.0, 11.0, 14.0])),
        index=float(rng.uniform(0.6, 3.5)),
        bright=float(rng.uniform(0.05, 0.5)),
        decay=float(rng.uniform(2.5, 9.0)),
        dull=float(rng.uniform(0.6, 3.0)),
        tremolo=float(rng.choice([0.0, rng.uniform(0.1, 0.5)])),
        release=float(rng.uniform(0.1, 0.4)),
    )


def ring(tines: Tines, pitch: float) -> Audio:
    """Play one note at every step of velocity; returns (STEPS, T) float32 at 44.1 kHz."""
    frequency = 440 * 2 ** ((pitch - 69) / 12)
    time = np.arange(int(LONGEST * RENDER_RATE)) / RENDER_RATE
    phase = 2 * np.pi * frequency * time
    slow = tines.decay * (262 / frequency) ** 0.5
    loud = 10 ** (-3 * time / slow)
    spread = np.minimum(1, 3000 / (frequency * max(tines.ratio, 1)))  # keeps side bands in band
    out = np.zeros((STEPS, len(time)))
    for row, velocity in enumerate(_velocities() / 127):
        index = tines.index * velocity**1.5 * spread * 10 ** (-3 * time / tines.dull)
        out[row] = loud * np.sin(phase + index * np.sin(tines.ratio * phase))
        if tines.bell * frequency < 0.4 * RENDER_RATE:
            bell = tines.bright * velocity**2 * 10 ** (-3 * time / 0.35)
            out[row] += bell * np.sin(tines.bell * phase)
    out *= 1 + tines.tremolo * np.sin(2 * np.pi * 5 * time)
    out *= np.minimum(1, time / 0.002)
    return out.astype(np.float32)


@dataclass(frozen=True)
class Instrument:
    """What plays: a note by pitch at every step of velocity, (STEPS, T), and what the body adds."""

    note: Callable[[float], Audio]
    release: float  # seconds to -60 dB after the end of a note
    body: Callable[[Audio], Audio] = lambda sound: sound


def _plucked(guitar: Guitar, rng: np.random.Generator) -> Instrument:
    return Instrument(partial(pluck, guitar, rng=rng), guitar.release, partial(resonate, guitar))


def _struck(partials: Partials, rng: np.random.Generator) -> Instrument:
    note = partial(strike, partials, steps=STEPS, seconds=LONGEST, rng=rng)
    return Instrument(note, partials.release)


def _tines(rng: np.random.Generator) -> Instrument:
    tines = draw_tines(rng)
    return Instrument(partial(ring, tines), tines.release)


INSTRUMENTS: dict[str, Callable[[np.random.Generator], Instrument]] = {
    "acoustic guitar": lambda rng: _plucked(draw_guitar(rng, acoustic=True), rng),
    "electric guitar": lambda rng: _plucked(draw_guitar(rng, acoustic=False), rng),
    "bass guitar": lambda rng: _plucked(draw_bass(rng, upright=False), rng),
    "double bass": lambda rng: _plucked(draw_bass(rng, upright=True), rng),
    "synth bass": lambda rng: _struck(draw_synth_bass(rng), rng),
    "piano": lambda rng: _struck(draw_piano(rng), rng),
    "electric piano": _tines,
}
"""Instruments that play notes, by name; "drum kit" is the one that does not."""


def render_model(
    name: str,
    notes: NDArray[np.float64],
    samples: int,
    cents: float,
    rng: np.random.Generator,
) -> Audio:
    """Play notes on a newly drawn instrument.

    Args:
        name: one of `INSTRUMENTS`, or "drum kit".
        notes: (n, 4): start and end in seconds, pitch, velocity.
        samples: Length at 44.1 kHz.
        cents: Detuning.
        rng: Draws the instrument and the noise of its strings.

    Returns:
        (samples,) float32.

    Raises:
        ValueError: No model has this name.
    """
    if name == "drum kit":
        return ComputedKit(rng).render(notes, samples, rng)
    if name not in INSTRUMENTS:
        raise ValueError(f"no model {name!r}: use drum kit, {', '.join(INSTRUMENTS)}")
    instrument = INSTRUMENTS[name](rng)
    tail = int(1.5 * instrument.release * RENDER_RATE)
    fade = (10 ** (-3 * np.arange(tail) / RENDER_RATE / instrument.release)).astype(np.float32)
    played: dict[int, Audio] = {}
    out = np.zeros(samples, dtype=np.float32)
    for start, end, pitch, velocity in notes:
        if int(pitch) not in played:
            played[int(pitch)] = instrument.note(int(pitch) + cents / 100)
        row = int(np.argmin(np.abs(_velocities() - velocity)))
        held = int((end - start) * RENDER_RATE)
        sound = played[int(pitch)][row, : held + tail] * np.float32((velocity / 127) ** 1.5)
        if len(sound) > held:
            sound[held:] *= fade[: len(sound) - held]
        first = int(start * RENDER_RATE)
        last = min(first + len(sound), samples)
        if first < last:
            out[first:last] += sound[: last - first]
    return instrument.body(out)
