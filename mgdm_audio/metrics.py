r"""Scores of separated stems: SI-SDR over windows, levels of silent stems, BSS Eval.

Two published readings of the same windows are given next to one that leaves silent stems out:

- **track reading** (MSDM): windows of 4 s every 2 s run over the whole track; a window is kept
  when at least two stems are active in it, and then *all* stems are scored, silent ones too;
- **chunk reading** (MGDM): the same windows inside separate chunks of :math:`2^{18}` samples,
  averaged per chunk first; a last chunk that is not full is left out;
- **active reading**: the windows of the track reading, but only stems that are active in them.

The first two reward silence: an exactly silent stem scores the level of the mixture over that of
the estimate, 40 dB for an estimate 40 dB below the mixture, and such values enter the mean. So
report the active reading as well, with the level of the estimates where the reference is silent.

Everything is computed in float64. Arrays may be numpy arrays or torch tensors on the CPU.

References:
    Multi-Source Diffusion Models for Simultaneous Music Generation and Separation
    (Mariani et al., 2024), https://arxiv.org/abs/2302.02257

    A Mixture-Based Framework for Guiding Diffusion Models (Janati et al., 2025)
    https://arxiv.org/abs/2502.03332

    SDR -- half-baked or well done? (Le Roux et al., 2019), https://arxiv.org/abs/1811.02508
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

EPS = 1e-8
"""Added to the four sums of SI-SDR. It caps a perfect estimate at 10 log10(|target|^2 / EPS)."""

RATE = 22050
"""Sampling rate in Hz for which the silence rule and the chunk length were published."""

WINDOW_SECONDS = 4.0
HOP_SECONDS = 2.0
CHUNK_SECONDS = 2**18 / RATE

SILENCE = 1.5e-5
"""A window is silent when its norm over its number of samples is below this (at RATE)."""

MIN_ACTIVE = 2
"""A window is kept when at least this many stems are active in it."""

FLOOR_DB = -200.0
"""The level in dB that stands for digital silence."""


def as_signals(signals: ArrayLike, name: str) -> Floats:
    """A float64 copy or view of signals, checked.

    Raises:
        ValueError: if there is no sample, or if any is NaN or infinite.
    """
    array = np.asarray(signals, dtype=np.float64)
    if array.ndim == 0 or array.size == 0:
        raise ValueError(
            f"{name} has shape {array.shape}; expected signals with time on the last axis"
        )
    finite = np.isfinite(array)
    if not finite.all():
        at = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(
            f"{name} contains NaN or infinite samples ({int((~finite).sum())} of {array.size}, "
            f"the first at index {at}); such a signal has no score, look for what produced it"
        )
    return array


def _check_lengths(**signals: Floats) -> None:
    lengths = {name: array.shape[-1] for name, array in signals.items()}
    if len(set(lengths.values())) > 1:
        got = ", ".join(f"{name} has {samples}" for name, samples in lengths.items())
        raise ValueError(
            f"signals must have the same number of samples, but {got}; "
            f"align or crop them before scoring"
        )


def _si_sdr(estimate: Floats, reference: Floats) -> Floats:
    power = (reference * reference).sum(-1)
    scale = ((estimate * reference).sum(-1) + EPS) / (power + EPS)
    target = scale[..., None] * reference
    error = target - estimate
    ratio = ((target * target).sum(-1) + EPS) / ((error * error).sum(-1) + EPS)
    return 10 * np.log10(ratio)


def si_sdr(estimate: ArrayLike, reference: ArrayLike) -> Floats:
    r"""Scale-invariant signal-to-distortion ratio in dB, in the form MSDM and MGDM report.

    .. math:: 10 \log_{10} \frac{|\alpha s|^2 + \epsilon}{|\alpha s - \hat s|^2 + \epsilon},
        \quad \alpha = \frac{\langle \hat s, s \rangle + \epsilon}{|s|^2 + \epsilon}

    with :math:`\epsilon` = 1e-8 and no removal of the mean. With a silent estimate the result is
    about 0 dB, with a silent reference about :math:`-10 \log_{10} (|\hat s|^2 / \epsilon)`, with
    both silent 0 dB.

    Arguments:
        estimate: estimated signals, with shape (..., T).
        reference: true signals, with shape (..., T); the leading axes broadcast.

    Returns:
        The ratios in dB, with shape (...).

    Raises:
        ValueError: for lengths that differ, no samples, NaN or infinite samples.
    """
    e, r = as_signals(estimate, "the estimate"), as_signals(reference, "the reference")
    _check_lengths(estimate=e, reference=r)
    return _si_sdr(e, r)


def si_sdr_improvement(estimate: ArrayLike, reference: ArrayLike, mixture: ArrayLike) -> Floats:
    """SI-SDR of the estimate less that of the mixture, in dB: see :func:`si_sdr`.

    Arguments:
        estimate: estimated signals, with shape (..., T).
        reference: true signals, with shape (..., T).
        mixture: the mixture, with shape (..., T); the leading axes broadcast.
    """
    m = as_signals(mixture, "the mixture")
    r = as_signals(reference, "the reference")
    _check_lengths(mixture=m, reference=r)
    return si_sdr(estimate, r) - _si_sdr(m, r)


def level_db(signals: ArrayLike) -> Floats:
    """RMS level in dB re full scale, (..., T) to (...); FLOOR_DB for digital silence."""
    power = np.square(as_signals(signals, "the signal")).mean(-1)
    return _power_db(power)


def _power_db(power: ArrayLike) -> Floats:
    return 10 * np.log10(np.maximum(power, 10 ** (FLOOR_DB / 10)))


def is_silent(signals: ArrayLike, rate: int = RATE) -> NDArray[np.bool_]:
    """Whether signals count as silent: norm over number of samples below 1.5e-5.

    The norm is divided by the number of samples, not by its root, so the RMS threshold depends on
    the length (-47 dB re full scale for 4 s at 22 050 Hz). At other rates the threshold is scaled
    by sqrt(22050 / rate): a recording is silent or not whatever rate it is stored at.

    Arguments:
        signals: the signals, with shape (..., T).
        rate: the sampling rate in Hz.
    """
    array = as_signals(signals, "the signal")
    density = np.linalg.norm(array, axis=-1) / array.shape[-1]
    return density < SILENCE * math.sqrt(RATE / rate)


def window_bounds(samples: int, rate: int = RATE) -> list[tuple[int, int]]:
    """Start and end, in samples, of the windows of a signal: 4 s every 2 s.

    There are ceil((samples - hop) / hop) of them; the last may be shorter than 4 s. A signal that
    is no longer than one hop has no window in the published rule and one, the whole, here.
    """
    window, hop = int(WINDOW_SECONDS * rate), int(HOP_SECONDS * rate)
    count = max(1, -(-(samples - hop) // hop))
    return [(k * hop, min(k * hop + window, samples)) for k in range(count)]


@dataclass(frozen=True)
class WindowScores:
    """Scores of the kept windows of one signal; n windows, K stems.

    Arguments:
        start: first sample of each kept window, with shape (n,).
        end: one past the last sample, with shape (n,).
        active: whether the stem is active in the window, with shape (n, K).
        si_sdr: SI-SDR in dB, with shape (n, K).
        improvement: SI-SDR improvement over the mixture in dB, with shape (n, K).
        power: mean square of the estimates, with shape (n, K).
        silent_estimate: whether the estimate is silent by the same rule, with shape (n, K).
        total: number of windows, kept or not.
    """

    start: NDArray[np.int64]
    end: NDArray[np.int64]
    active: NDArray[np.bool_]
    si_sdr: Floats
    improvement: Floats
    power: Floats
    silent_estimate: NDArray[np.bool_]
    total: int

    def masked(self, values: Floats) -> Floats:
        """``values`` with NaN where the stem is not active."""
        return np.where(self.active, values, np.nan)


def score_windows(
    reference: ArrayLike, estimate: ArrayLike, rate: int = RATE, mixture: ArrayLike | None = None
) -> WindowScores:
    """Scores a signal window by window.

    Arguments:
        reference: true stems, with shape (K, T).
        estimate: estimated stems, with shape (K, T).
        rate: the sampling rate in Hz.
        mixture: the mixture, with shape (T,); the sum of the reference stems if None.

    Raises:
        ValueError: for shapes or lengths that differ, NaN or infinite samples, or a bad rate.
    """
    if rate <= 0:
        raise ValueError(f"the sampling rate must be a positive number of Hz, got {rate}")
    r, e = as_signals(reference, "the reference"), as_signals(estimate, "the estimate")
    _check_lengths(reference=r, estimate=e)
    if r.ndim != 2 or r.shape != e.shape:
        raise ValueError(
            f"reference and estimate must both have shape (stems, samples), "
            f"got {r.shape} and {e.shape}"
        )
    m = r.sum(0) if mixture is None else as_signals(mixture, "the mixture")
    _check_lengths(reference=r, mixture=m)

    bounds = window_bounds(r.shape[-1], rate)
    active = [~is_silent(r[:, a:b], rate) for a, b in bounds]
    kept = [i for i, flags in enumerate(active) if flags.sum() >= MIN_ACTIVE]
    rows = np.zeros((4, len(kept), len(r)))
    for row, i in enumerate(kept):
        a, b = bounds[i]
        rows[0, row] = _si_sdr(e[:, a:b], r[:, a:b])
        rows[1, row] = rows[0, row] - _si_sdr(m[a:b], r[:, a:b])
        rows[2, row] = np.square(e[:, a:b]).mean(-1)
        rows[3, row] = is_silent(e[:, a:b], rate)
    return WindowScores(
        start=np.array([bounds[i][0] for i in kept], dtype=np.int64),
        end=np.array([bounds[i][1] for i in kept], dtype=np.int64),
        active=np.array([active[i] for i in kept], dtype=bool).reshape(len(kept), len(r)),
        si_sdr=rows[0],
        improvement=rows[1],
        power=rows[2],
        silent_estimate=rows[3] > 0,
        total=len(bounds),
    )


def chunk_scores(reference: ArrayLike, estimate: ArrayLike, rate: int = RATE) -> Floats:
    """Mean SI-SDR improvement of each full chunk of 2^18 samples (11.9 s), as MGDM reports it.

    Arguments:
        reference: true stems, with shape (K, T).
        estimate: estimated stems, with shape (K, T).
        rate: the sampling rate in Hz (the chunk keeps its duration at other rates).

    Returns:
        Means over the kept windows of each chunk, in dB, with shape (chunks, K); NaN for a chunk
        of which no window is kept. A track shorter than a chunk gives no row.
    """
    r, e = as_signals(reference, "the reference"), as_signals(estimate, "the estimate")
    _check_lengths(reference=r, estimate=e)
    size = round(CHUNK_SECONDS * rate)
    rows = []
    for start in range(0, r.shape[-1] - size + 1, size):
        part = slice(start, start + size)
        rows.append(nanmean(score_windows(r[:, part], e[:, part], rate).improvement))
    return np.array(rows).reshape(len(rows), len(r))


def nanmean(values: Floats) -> Floats:
    """Mean over the first axis of what is not NaN; NaN where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(values, axis=0) if len(values) else _nans(values))


def nanmedian(values: Floats) -> Floats:
    """Median over the first axis of what is not NaN; NaN where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmedian(values, axis=0) if len(values) else _nans(values))


def _nans(values: Floats) -> Floats:
    return np.full(values.shape[1:], np.nan)


def silent_level_db(scores: Sequence[WindowScores]) -> Floats:
    """RMS level in dB re full scale of the estimates where the reference stem is silent.

    Powers are averaged over the kept windows in which the stem is silent; (K,), NaN for a stem
    that is never silent.
    """
    quiet = np.concatenate([np.where(s.active, np.nan, s.power) for s in scores])
    return np.where(np.isnan(quiet).all(0), np.nan, _power_db(np.nan_to_num(nanmean(quiet))))


def silent_share(scores: Sequence[WindowScores]) -> Floats:
    """Share of the kept windows in which the reference stem is silent, (K,)."""
    return nanmean(np.concatenate([~s.active for s in scores]).astype(np.float64))


@dataclass(frozen=True)
class Interval:
    """A bootstrap confidence interval: per stem, with shape (K,), and of the mean of the stems."""

    low: Floats
    high: Floats
    low_all: float
    high_all: float
    level: float
    resamples: int
    seed: int


def bootstrap(
    groups: Sequence[ArrayLike], level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Percentile bootstrap of pooled means, with songs as the unit that is resampled.

    Windows of one song are alike, so whole songs are drawn with replacement, each with all its
    windows; the statistic is the mean over all windows drawn (NaN left out), per stem, and the
    plain mean of the stems' means, without stems that have no score in any song.

    Arguments:
        groups: one array of scores per song, with shape (windows, K).
        level: the coverage, in (0, 1).
        resamples: number of bootstrap draws.
        seed: seed of the draws' own generator.

    Returns:
        The interval, of NaN when fewer than two songs have a score.

    Raises:
        ValueError: for no song, or a level outside (0, 1).
    """
    if not groups:
        raise ValueError("a bootstrap needs the scores of at least one song, got none")
    if not 0 < level < 1:
        raise ValueError(f"the level must lie strictly between 0 and 1, got {level}")
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    sums = np.stack([np.nansum(a, axis=0) for a in arrays])
    counts = np.stack([(~np.isnan(a)).sum(0) for a in arrays])
    scored = counts.any(1)
    sums, counts = sums[scored], counts[scored]
    if len(sums) < 2:
        nans = np.full(arrays[0].shape[1:], np.nan)
        return Interval(nans, nans.copy(), math.nan, math.nan, level, resamples, seed)
    draws = np.random.default_rng(seed).integers(len(sums), size=(resamples, len(sums)))
    total, count = sums[draws].sum(1), counts[draws].sum(1)
    means = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    # A draw without any window of some stem that has a score elsewhere has no overall mean.
    known = counts.any(0)
    overall = (means if known.all() else means[:, known]).mean(1)
    tails = [(1 - level) / 2, (1 + level) / 2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        low, high = np.nanquantile(means, tails, axis=0)
        low_all, high_all = np.nanquantile(overall, tails)
    return Interval(low, high, float(low_all), float(high_all), level, resamples, seed)


@dataclass(frozen=True)
class MusevalScores:
    """BSS Eval v4 of one track: medians over frames of 1 s, in dB, one value per stem.

    Arguments:
        sdr, isr, sir, sar: with shape (K,); NaN for a skipped stem. An estimate that is silent
            throughout has SDR and ISR 0, by their definitions, and NaN for the others.
        skipped: indices of the stems left out because the reference is silent throughout.
        silent_estimates: indices of the other stems whose estimate is silent throughout.
        frames: number of frames.
        frames_used: frames in which every stem that was not skipped sounds, and every estimate
            that is not silent throughout; the others have no value for any stem.
    """

    sdr: Floats
    isr: Floats
    sir: Floats
    sar: Floats
    skipped: tuple[int, ...]
    silent_estimates: tuple[int, ...]
    frames: int
    frames_used: int


def museval_scores(reference: ArrayLike, estimate: ArrayLike, rate: int) -> MusevalScores:
    """Scores one track with museval (BSS Eval v4, frames of 1 s, median over frames).

    Arguments:
        reference: true stems, with shape (K, T).
        estimate: estimated stems, with shape (K, T).
        rate: the sampling rate in Hz.

    Raises:
        ValueError: for shapes or lengths that differ (museval itself would crop silently), NaN or
            infinite samples (museval's median would hide them).
        RuntimeError: if museval or the ffmpeg program that it looks for is not installed.
    """
    r, e = as_signals(reference, "the reference"), as_signals(estimate, "the estimate")
    _check_lengths(reference=r, estimate=e)
    if r.ndim != 2 or r.shape != e.shape:
        raise ValueError(
            f"reference and estimate must both have shape (stems, samples), "
            f"got {r.shape} and {e.shape}"
        )
    try:
        from museval import metrics as bss
    except ImportError as error:
        raise RuntimeError(
            f"BSS Eval scores need the package museval ({error}); install it with: "
            f"pip install museval"
        ) from error
    except RuntimeError as error:
        # Its dependency stempeg looks for the programs when it is imported.
        raise RuntimeError(
            "museval needs the programs ffmpeg and ffprobe and does not find them; install them "
            "(Debian and Ubuntu: apt-get install ffmpeg) or leave BSS Eval scores out"
        ) from error

    used = [k for k in range(len(r)) if r[k].any()]
    skipped = tuple(k for k in range(len(r)) if k not in used)
    silent = tuple(k for k in used if not e[k].any())
    medians = np.full((4, len(r)), np.nan)
    if not used:
        sdr, isr, sir, sar = medians
        return MusevalScores(sdr, isr, sir, sar, skipped, silent, 0, 0)
    # museval has no value for any stem of a frame with a silent estimate. What stands in for it
    # changes nothing of the others, whose values depend on all references and their own estimate.
    e = np.where(e.any(1, keepdims=True), e, r)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = bss.bss_eval(r[used, :, None], e[used, :, None], window=rate, hop=rate)[:4]
    frames = np.stack(values)
    for row, k in enumerate(used):
        medians[:, k] = nanmedian(frames[:, row].T)
    for k in silent:
        medians[:, k] = 0, 0, np.nan, np.nan
    kept = int((~np.isnan(frames[0]).any(0)).sum())
    sdr, isr, sir, sar = medians
    return MusevalScores(sdr, isr, sir, sar, skipped, silent, frames.shape[-1], kept)
