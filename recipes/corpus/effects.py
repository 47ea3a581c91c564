"""Effects of one mono stem, and the loudness rule; float32 (T,), every draw from the given rng."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import interpolate, signal

Audio = NDArray[np.float32]


def rms(x: Audio) -> float:
    """Return the root mean square."""
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if x.size else 0.0


def _level(x: Audio) -> float:
    """Return the RMS of the louder half of 50 ms frames, so that pauses do not count."""
    frames = x[: len(x) // 2048 * 2048].reshape(-1, 2048)
    power = np.sort(np.mean(np.square(frames, dtype=np.float64), axis=1)) if len(frames) else None
    if power is None or power[-1] <= 0:
        return rms(x)
    return float(np.sqrt(power[power > power[-1] * 1e-4].mean()))


def _sos(order: int, cutoff: float | list[float], kind: str, rate: int) -> NDArray[np.float64]:
    return np.asarray(signal.butter(order, cutoff, kind, fs=rate, output="sos"))


def filtered(x: Audio, sos: NDArray[np.float64]) -> Audio:
    """Run second-order sections over x."""
    return signal.sosfilt(sos, x).astype(np.float32)


def peaking(frequency: float, gain: float, q: float, rate: int) -> NDArray[np.float64]:
    """Return a peaking equaliser as one section (R. Bristow-Johnson's cookbook); gain in dB."""
    a, w = 10 ** (gain / 40), 2 * np.pi * frequency / rate
    alpha = np.sin(w) / (2 * q)
    b = np.array([1 + alpha * a, -2 * np.cos(w), 1 - alpha * a])
    d = np.array([1 + alpha / a, -2 * np.cos(w), 1 - alpha / a])
    return np.concatenate([b / d[0], d / d[0]])[None]


def shelf(frequency: float, gain: float, high: bool, rate: int) -> NDArray[np.float64]:
    """Return a low or high shelf of slope 1 as one section; gain in dB."""
    a, w = 10 ** (gain / 40), 2 * np.pi * frequency / rate
    c = -np.cos(w) if high else np.cos(w)  # a high shelf is the mirrored low shelf
    beta = np.sqrt(2 * a) * np.sin(w)
    s = -1.0 if high else 1.0
    b = np.array(
        [
            a * (a + 1 - (a - 1) * c + beta),
            s * 2 * a * (a - 1 - (a + 1) * c),
            a * (a + 1 - (a - 1) * c - beta),
        ]
    )
    d = np.array(
        [a + 1 + (a - 1) * c + beta, s * -2 * (a - 1 + (a + 1) * c), a + 1 + (a - 1) * c - beta]
    )
    return np.concatenate([b / d[0], d / d[0]])[None]


def equalise(x: Audio, rate: int, rng: np.random.Generator) -> Audio:
    """Tilt the spectrum and move one or two bands by a few dB."""
    tilt = float(rng.normal(0, 2.5))
    parts = [shelf(250, -tilt, False, rate), shelf(2500, tilt, True, rate)]
    for _ in range(int(rng.integers(0, 3))):
        frequency = float(np.exp(rng.uniform(np.log(120), np.log(6000))))
        parts.append(peaking(frequency, float(rng.normal(0, 3)), float(rng.uniform(0.6, 2)), rate))
    return filtered(x, np.concatenate(parts))


def colour(x: Audio, rate: int, rng: np.random.Generator) -> Audio:
    """Filter with a smooth random response, N(0, 4 dB) at points half an octave or more apart.

    It stands for what differs between bodies, microphones, cabinets and places in a room.
    """
    points = np.geomspace(50, 0.48 * rate, int(rng.integers(8, 18)))
    gain = np.clip(rng.normal(0, 4, len(points)), -10, 10)
    grid = np.geomspace(50, 0.48 * rate, 257)
    smooth = 10 ** (interpolate.PchipInterpolator(points, gain)(grid) / 20)
    taps = signal.firwin2(
        1023, [0, *grid, rate / 2], [smooth[0], *smooth, smooth[-1]], fs=rate
    ).astype(np.float32)
    return signal.oaconvolve(x, taps)[511 : 511 + len(x)].astype(np.float32)


def amplifier(x: Audio, rate: int, drive: float, rng: np.random.Generator) -> Audio:
    """Overdrive and a cabinet: high-pass, asymmetric soft clipping (2x oversampled), low-pass.

    Args:
        x: (T,) at any level; drive is counted from its level, so loudness does not matter.
        drive: Gain in dB of the average level into the curve, 0 (touch) to 40 (high gain).
    """
    level = _level(x)
    if level <= 0:
        return x
    x = filtered(x, _sos(1, float(rng.uniform(60, 250)), "highpass", rate))
    wide = signal.resample_poly(x, 2, 1) * (10 ** (drive / 20) / level / 4)
    bias = float(rng.uniform(0, 0.35))
    wide = np.tanh(wide + bias) - np.tanh(bias)
    if drive > 20 and rng.random() < 0.5:
        wide = np.tanh(1.8 * wide)
    x = signal.resample_poly(wide, 1, 2).astype(np.float32)
    cabinet = [
        _sos(2, float(rng.uniform(60, 110)), "highpass", rate),
        peaking(float(rng.uniform(90, 180)), float(rng.uniform(0, 5)), 1.0, rate),
        peaking(float(rng.uniform(350, 800)), float(rng.uniform(-6, 1)), 0.8, rate),
        peaking(float(rng.uniform(1800, 3800)), float(rng.uniform(1, 7)), 1.2, rate),
        _sos(4, float(rng.uniform(3800, 6500)), "lowpass", rate),
    ]
    return filtered(x, np.concatenate(cabinet))


def chorus(x: Audio, rate: int, rng: np.random.Generator) -> Audio:
    """Add one or two slowly modulated delays."""
    time = np.arange(len(x))
    out = x.copy()
    for _ in range(int(rng.integers(1, 3))):
        depth, centre = rng.uniform(0.4e-3, 2.5e-3), rng.uniform(6e-3, 20e-3)
        phase = 2 * np.pi * (rng.uniform(0.2, 2.0) * time / rate + rng.random())
        delay = (centre + depth * np.sin(phase)) * rate
        out += rng.uniform(0.4, 0.9) * np.interp(time - delay, time, x, left=0).astype(np.float32)
    return out.astype(np.float32)


def tremolo(x: Audio, rate: int, rng: np.random.Generator) -> Audio:
    """Modulate the amplitude at 3-8 Hz."""
    phase = 2 * np.pi * (rng.uniform(3, 8) * np.arange(len(x)) / rate + rng.random())
    depth = rng.uniform(0.2, 0.7)
    return (x * (1 - depth / 2 + depth / 2 * np.sin(phase))).astype(np.float32)


def echo(x: Audio, rate: int, rng: np.random.Generator) -> Audio:
    """Add a few decaying repeats."""
    out, delay, gain = x.copy(), int(rng.uniform(0.12, 0.5) * rate), float(rng.uniform(0.15, 0.4))
    for repeat in range(1, 4):
        if repeat * delay < len(x):
            out[repeat * delay :] += gain**repeat * x[: -repeat * delay]
    return out


def compress(x: Audio, rate: int, rng: np.random.Generator) -> Audio:
    """Feed-forward compressor: ratio 2-8 above a threshold near the stem's own level."""
    level = _level(x)
    if level <= 0:
        return x
    hop = 64
    frames = np.abs(x[: len(x) // hop * hop].reshape(-1, hop)).max(1).astype(np.float64)
    release = np.exp(-hop / (rng.uniform(0.05, 0.25) * rate))
    envelope = np.empty_like(frames)
    last = 0.0
    for i, value in enumerate(frames):  # peak detector: instant attack, exponential release
        last = max(value, last * release)
        envelope[i] = last
    over = 20 * np.log10(np.maximum(envelope, 1e-9) / (level * 10 ** (rng.uniform(-3, 6) / 20)))
    gain = 10 ** (-np.maximum(over, 0) * (1 - 1 / rng.uniform(2, 8)) / 20)
    attack = max(1, int(rng.uniform(0.001, 0.02) * rate / hop))
    gain = np.pad(gain, (attack - 1, 0), mode="edge")
    gain = np.convolve(gain, np.ones(attack) / attack, "valid")
    positions = (np.arange(len(gain)) + 0.5) * hop
    return (x * np.interp(np.arange(len(x)), positions, gain)).astype(np.float32)


def reverb(x: Audio, rate: int, seconds: float, wet: float, rng: np.random.Generator) -> Audio:
    """Convolve with decaying noise that darkens with time; `wet` is its energy against the dry."""
    length = int(seconds * rate)
    time = np.arange(length) / rate
    noise = rng.standard_normal(length)
    dark = signal.sosfilt(_sos(1, float(rng.uniform(1500, 5000)), "lowpass", rate), noise)
    mix = np.exp(-time / seconds * 4)
    response = (noise * mix**2 + 1.5 * dark * (1 - mix)) * np.exp(-6.9 * time / seconds)
    response[: int(rng.uniform(0.002, 0.02) * rate)] = 0
    response *= wet / np.sqrt(np.sum(response**2))
    tail = signal.oaconvolve(x, response.astype(np.float32))[: len(x)]
    return (x + tail).astype(np.float32)


def apply_chain(
    stem: str, program: int, x: Audio, rate: int, rng: np.random.Generator
) -> tuple[Audio, list[str]]:
    """Run a random chain of effects that suits the stem.

    Returns:
        The processed stem and the names of the effects used, in order.
    """
    used: list[str] = []

    def step(name: str, chance: float, effect: Callable[[Audio], Audio]) -> None:
        nonlocal x
        if rng.random() < chance:
            x = effect(x)
            used.append(name)

    steel = stem == "guitar" and program not in (24, 25)
    squeezed = {"guitar": 0.25, "bass": 0.4}.get(stem, 0.0)
    step("compressor", squeezed, lambda y: compress(y, rate, rng))
    if stem == "guitar":
        already = program in (29, 30)
        chance = 0.6 if steel and not already else 0.3 if already else 0.12
        drive = float(rng.uniform(0, 12 if already else 36))
        step(f"amplifier {drive:.0f} dB", chance, lambda y: amplifier(y, rate, drive, rng))
    if stem == "bass":
        drive = float(rng.uniform(-4, 18))
        step(f"amplifier {drive:.0f} dB", 0.35, lambda y: amplifier(y, rate, drive, rng))
    if stem == "piano" and program in (2, 4, 5, 7):
        drive = float(rng.uniform(-6, 10))
        step(f"amplifier {drive:.0f} dB", 0.3, lambda y: amplifier(y, rate, drive, rng))
    step("colour", 0.25 if stem == "drums" else 0.4, lambda y: colour(y, rate, rng))
    step("equaliser", 0.7, lambda y: equalise(y, rate, rng))
    electric = steel or (stem == "piano" and program in (2, 4, 5, 7))
    step(
        "chorus",
        0.18 if electric else 0.04 if stem != "drums" else 0.0,
        lambda y: chorus(y, rate, rng),
    )
    step("tremolo", 0.08 if electric else 0.0, lambda y: tremolo(y, rate, rng))
    step(
        "echo",
        0.1 if stem == "guitar" else 0.02 if stem == "piano" else 0.0,
        lambda y: echo(y, rate, rng),
    )
    step("compressor", 0.35 if stem == "drums" else 0.15, lambda y: compress(y, rate, rng))
    seconds, wet = float(rng.uniform(0.25, 2.2)), float(rng.uniform(0.05, 0.45))
    if stem == "bass":
        seconds, wet = seconds * 0.4, wet * 0.4
    step("reverb", 0.15 if stem == "bass" else 0.5, lambda y: reverb(y, rate, seconds, wet, rng))
    return x, used


def k_weighting(rate: int) -> NDArray[np.float64]:
    """Return the K weighting of ITU-R BS.1770-4 for a sampling rate, two sections.

    The standard tabulates 48 kHz only; these are the analogue prototypes of its two stages (a high
    shelf of 4 dB at 1.68 kHz, a high-pass at 38 Hz), which give the table back at 48 kHz.
    """
    k, q, high = np.tan(np.pi * 1681.974450955533 / rate), 0.7071752369554196, 3.999843853973347
    top = 10 ** (high / 20)
    middle = top**0.4996667741545416
    b = np.array([top + middle * k / q + k * k, 2 * (k * k - top), top - middle * k / q + k * k])
    a = np.array([1 + k / q + k * k, 2 * (k * k - 1), 1 - k / q + k * k])
    shelving = np.concatenate([b / a[0], a / a[0]])
    k, q = np.tan(np.pi * 38.13547087602444 / rate), 0.5003270373238773
    a = np.array([1 + k / q + k * k, 2 * (k * k - 1), 1 - k / q + k * k])
    return np.stack([shelving, np.concatenate([[1.0, -2.0, 1.0], a / a[0]])])


def loudness(x: Audio, rate: int) -> float:
    """Return the gated loudness of a mono signal in LUFS (ITU-R BS.1770-4); -inf where silent."""
    x = filtered(x, k_weighting(rate))
    size, hop = int(0.4 * rate), int(0.1 * rate)
    if len(x) < size:
        x = np.pad(x, (0, size - len(x)))
    total = np.concatenate([[0.0], np.cumsum(np.square(x, dtype=np.float64))])
    starts = np.arange(0, len(x) - size + 1, hop)
    power = (total[starts + size] - total[starts]) / size
    power = power[power > 10 ** ((-70 + 0.691) / 10)]
    if power.size == 0:
        return float("-inf")
    power = power[power > power.mean() / 10]
    return float(-0.691 + 10 * np.log10(power.mean()))
