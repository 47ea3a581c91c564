"""Songs in the memory of the device that trains, and training items made there.

To read, resample and filter four stems takes a processor longer than a GPU needs to learn from
them. Only what is random about an item (its plan, see `recipes.prior.data`) is drawn by the
processor; the audio is made of it for a whole batch at once.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recipes.prior.data import (
    CONTRAST,
    EQUALISER,
    FULL_SCALE,
    GAIN,
    RATIO,
    SONG,
    SPEED,
    START,
    StemCorpus,
)
from recipes.prior.timbre import RATE, equalised, reshaped

HALF = 16  # taps of the resampling filter on either side
PHASES = 4096  # of it, between two samples: 70 dB


class ResidentSongs:
    """The songs of a corpus on a device.

    Arguments:
        corpus: the songs; more of them may be added while a training runs.
        device: where they are kept.
        hours: of audio there is room for; songs beyond it are not used.
        rows: the first ones of a song, which are kept.
    """

    def __init__(self, corpus: StemCorpus, device: torch.device, hours: float, rows: int = 4):
        self.corpus, self.rows, self.hours = corpus, rows, hours
        self.capacity = int(hours * 3600 * RATE)
        self.device = device
        self.starts: list[int] = [0]
        self._audio: Tensor | None = None

    def count(self) -> int:
        """How many songs of the corpus's index there is room for."""
        ends = np.cumsum([song["samples"] for song in self.corpus.songs])
        return int(np.searchsorted(ends, self.capacity, side="right"))

    def fill(self) -> None:
        """Brings the songs here that are in the index and not here yet."""
        if self._audio is None:
            shape = (self.rows, self.capacity)
            self._audio = torch.empty(shape, dtype=torch.int16, device=self.device)
        self.corpus.refresh()  # a data process may have seen more of them
        for number in range(len(self.starts) - 1, self.count()):
            stems = torch.from_numpy(np.array(self.corpus.stems(number)[: self.rows]))
            start = self.starts[-1]
            self._audio[:, start : start + stems.shape[1]] = stems.to(self.device)
            self.starts.append(start + stems.shape[1])

    def played(self, plans: Tensor, samples: int) -> Tensor:
        """The audio of plans (B, rows, columns), float32 (B, rows, samples).

        As `StemCorpus.played` makes it, but for the resampling filter.
        """
        if int(plans[..., SONG].max()) >= len(self.starts) - 1:
            self.fill()
        flat = plans.flatten(0, 1)
        row = torch.arange(self.rows, device=self.device).repeat(len(plans))
        out = torch.zeros(len(flat), samples, device=self.device)
        changed = flat[:, SPEED] != 1.0
        for some, make in ((~changed, self._as_it_is), (changed, self._at_speed)):
            chosen = torch.nonzero(some)[:, 0]
            if len(chosen):
                out[chosen] = make(flat[chosen], row[chosen], samples)
        reshape = (flat[:, RATIO] != 0) | (flat[:, CONTRAST] != 1)
        chosen = torch.nonzero(reshape)[:, 0]
        if len(chosen):
            some = flat[chosen]
            out[chosen] = reshaped(out[chosen], some[:, RATIO], some[:, CONTRAST])
        out = equalised(out, flat[:, EQUALISER:].float())
        return (out * flat[:, GAIN, None].float()).unflatten(0, plans.shape[:2])

    def _read(self, plans: Tensor, row: Tensor, where: Tensor) -> Tensor:
        """Samples at positions (N, n) from each song's beginning; 0 outside of it."""
        assert self._audio is not None
        starts = torch.tensor(self.starts, device=self.device)
        song = plans[:, SONG].long()
        first = starts[song][:, None]
        length = starts[song + 1][:, None] - first
        inside = (where >= 0) & (where < length)
        place = row[:, None] * self.capacity + first + torch.where(inside, where, 0)
        found = self._audio.flatten()[place].float() / FULL_SCALE
        return torch.where(inside, found, 0)

    def _as_it_is(self, plans: Tensor, row: Tensor, samples: int) -> Tensor:
        where = plans[:, START].long()[:, None] + torch.arange(samples, device=self.device)
        return self._read(plans, row, where)

    def _at_speed(self, plans: Tensor, row: Tensor, samples: int) -> Tensor:
        """Read at another speed, by a windowed sinc below both Nyquist frequencies."""
        speed = plans[:, SPEED]
        exact = torch.arange(samples, device=self.device) * speed[:, None]  # float64
        whole = exact.long()
        phase = ((exact - whole) * PHASES).round().long()
        longest = int(samples * float(speed.max())) + 2 * HALF + 2
        near = torch.arange(longest, device=self.device) - HALF + plans[:, START].long()[:, None]
        source = self._read(plans, row, near)
        filters = sinc_filters(speed)  # (N, PHASES + 1, taps)
        out = torch.zeros(len(plans), samples, device=self.device)
        some = 8  # taps at a time: few kernels, and little memory
        for tap in range(0, 2 * HALF, some):
            taps = torch.arange(tap, tap + some, device=self.device)
            place = (whole[:, :, None] + (taps + 1)).flatten(1)
            near = source.gather(1, place).unflatten(1, (samples, some))
            table = filters[:, :, tap : tap + some]
            weights = table.gather(1, phase[:, :, None].expand(-1, -1, some))
            out += torch.linalg.vecdot(weights, near)
        return out


def sinc_filters(speed: Tensor) -> Tensor:
    """Interpolation filters (N, PHASES + 1, 2 HALF) for reading at speeds (N,), at each phase."""
    cutoff = 0.95 / speed.clamp_min(1.0)[:, None, None]
    phase = torch.arange(PHASES + 1, device=speed.device, dtype=torch.float64) / PHASES
    tap = torch.arange(2 * HALF, device=speed.device, dtype=torch.float64) - HALF + 1
    distance = tap[None, :] - phase[:, None]
    window = torch.cos(torch.pi * distance / (2 * HALF)).clamp_min(0).square()
    filters = cutoff * torch.sinc(cutoff * distance) * window
    return (filters / filters.sum(2, keepdim=True)).float()
