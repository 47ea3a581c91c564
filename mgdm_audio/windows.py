r"""Long signals in overlapping windows, and the way back.

Windows of :math:`W` samples start every :math:`W - V` samples; the last one is moved back to end
with the signal, so that every window holds real audio, and only a signal shorter than one window
is padded. Neighbours share at least :math:`V` samples. In the middle of what they share, over
:math:`V/2` samples, one fades into the other; outside the fade each window has samples that are
used as context only, because a model is least reliable at the ends of what it sees:

.. code-block:: text

    window i    ------------------------------\                 w: 0 -> 1 along the fade
    window i+1               .....            /-----------------------------
                 used        context   fade   context        used

The fade is written :math:`a + w (b - a)`. Its weights :math:`1 - w` and :math:`w` sum to one, so
the sum over stems survives, and where both windows agree it returns their samples bit for bit
(which :math:`(1 - w) a + w b` does not). Because :math:`V \le W/2`, no two fades meet: at most two
windows contribute to a sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["WindowPlan", "window_seed"]


@dataclass(frozen=True)
class WindowPlan:
    """Where the windows of a signal lie.

    Arguments:
        length: samples of the signal, at least 1.
        window: samples of a window :math:`W`; a shorter signal gets one window of its own length.
        overlap: samples that neighbours share at least, :math:`0 \\le V \\le W/2`.
        multiple: the one window of a shorter signal is padded with zeros to a multiple of this.

    Raises:
        ValueError: if one of them is out of range.
    """

    length: int
    window: int
    overlap: int = 0
    multiple: int = 1

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length must be at least 1 sample, got {self.length}")
        if self.window < 1:
            raise ValueError(f"window must be at least 1 sample, got {self.window}")
        if not 0 <= self.overlap <= self.window // 2:
            raise ValueError(
                f"overlap must be between 0 and half the window ({self.window // 2} samples), "
                f"got {self.overlap}"
            )
        if self.multiple < 1:
            raise ValueError(f"multiple must be at least 1, got {self.multiple}")

    @property
    def size(self) -> int:
        """Samples of each window, padding included."""
        padded = -(-self.length // self.multiple) * self.multiple
        return self.window if self.length >= self.window else min(self.window, padded)

    @property
    def starts(self) -> tuple[int, ...]:
        """The first sample of each window."""
        last = max(0, self.length - self.window)
        return (*range(0, last, self.window - self.overlap), last)

    def fades(self) -> list[tuple[int, int]]:
        """For each pair of neighbours, the samples [low, high) of the fade between them."""
        starts = self.starts
        fades = []
        for start, following in pairwise(starts):
            low = (following + start + self.window - self.overlap // 2) // 2
            fades.append((low, low + self.overlap // 2))
        return fades

    def span(self, index: int) -> tuple[int, int]:
        """The samples [start, stop) of the signal that a window holds, padding not included."""
        start = self.starts[index]
        return start, min(start + self.size, self.length)

    def cut(self, x: Tensor, index: int) -> Tensor:
        """One window of a signal.

        Arguments:
            x: the signal, with shape (..., length).
            index: which window.

        Returns:
            Its samples, with shape (..., size); a view where nothing is padded.

        Raises:
            ValueError: if the signal does not have the length of the plan.
        """
        if x.shape[-1] != self.length:
            raise ValueError(f"expected {self.length} samples, got shape {tuple(x.shape)}")
        start, stop = self.span(index)
        return F.pad(x[..., start:stop], (0, self.size - (stop - start)))

    def join(self, windows: Iterable[Tensor]) -> Tensor:
        """Puts the windows of a signal together again.

        Arguments:
            windows: one tensor a window, in order, each with shape (..., size).

        Returns:
            The signal, with shape (..., length).

        Raises:
            ValueError: if there are more or fewer windows than in the plan.
        """
        return torch.cat(list(self.pieces(windows)), dim=-1)

    def pieces(self, windows: Iterable[Tensor]) -> Iterator[Tensor]:
        """The same as :meth:`join` in pieces, holding no more than two windows at a time."""
        starts = self.starts
        fades = self.fades()
        done = 0
        previous: Tensor | None = None
        count = 0
        for piece in windows:
            if count == len(starts):
                raise ValueError(f"expected {len(starts)} windows, got more")
            if previous is not None:
                low, high = fades[count - 1]
                before, after = starts[count - 1], starts[count]
                weight = torch.arange(1, high - low + 1, dtype=piece.dtype, device=piece.device)
                weight = (weight - 0.5) / max(1, high - low)
                a = previous[..., low - before : high - before]
                b = piece[..., low - after : high - after]
                yield previous[..., done - before : low - before]
                yield a + weight * (b - a)
                done = high
            previous = piece
            count += 1
        if previous is None or count < len(starts):
            raise ValueError(f"expected {len(starts)} windows, got {count}")
        yield previous[..., done - starts[-1] : self.length - starts[-1]]


def window_seed(seed: int, index: int) -> int:
    """The seed of one window: the first word of ``numpy.random.SeedSequence((seed, index))``.

    Seeds from 2^32 on have two words, and window 0 of one is a window of a smaller one.

    It depends on nothing else, so a window's sample is the same in any batch, and NumPy keeps the
    algorithm stable. 32 bits, because torch's CPU generator uses no more.

    Raises:
        ValueError: if the seed or the index is negative.
    """
    return int(np.random.SeedSequence((seed, index)).generate_state(1)[0])
