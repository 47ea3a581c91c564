r"""Signals that come in pieces: cut anew into blocks with context, and kept for a second reading.

A filter with a finite reach gives the same on blocks that carry enough context as on the whole
signal. So a chain of filters over a signal of any length is a chain of generators, each of which
asks for its input in the blocks that suit it:

.. code-block:: text

    pieces     |----|--|------|---|--------|-----|
    blocks     [edge|  block 0  |edge]
                          [edge|  block 1  |edge]
"""

from __future__ import annotations

__all__ = ["Spool", "with_context"]

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def with_context(
    pieces: Iterable[Tensor], length: int, block: int, edge: int = 0
) -> Iterator[Tensor]:
    """Cuts a signal that comes in pieces into blocks with context at both sides.

    Arguments:
        pieces: the signal, in pieces of shape (..., n) with at least one sample in all.
        length: samples to be cut into blocks; what the signal lacks of it is zero.
        block: samples of a block; the last one may have fewer.
        edge: samples of context at each side of a block; zeros outside the signal.

    Returns:
        For start = 0, block, 2 block, ... the samples [start - edge, stop + edge), where stop is
        start + block or the length.

    Raises:
        ValueError: if the signal has more samples than that, or no piece comes at all.
    """
    source = iter(pieces)
    held: Tensor | None = None
    seen, ended = 0, False
    for start in range(0, length, block):
        stop = min(start + block, length)
        parts = [] if held is None else [held]
        have = 0 if held is None else held.shape[-1]
        while have < stop - start + 2 * edge and not ended:
            piece = next(source, None)
            if piece is None:
                ended = True
                break
            if held is None and not parts:
                parts.append(piece.new_zeros(*piece.shape[:-1], edge))
                have = edge
            parts.append(piece)
            have += piece.shape[-1]
            seen += piece.shape[-1]
        if not parts:
            raise ValueError("expected a signal in pieces, got no piece")
        missing = stop - start + 2 * edge - have
        if missing > 0:
            parts.append(parts[-1].new_zeros(*parts[-1].shape[:-1], missing))
        whole = torch.cat(parts, dim=-1)
        yield whole[..., : stop - start + 2 * edge]
        held = whole[..., block:]
    seen += sum(piece.shape[-1] for piece in source)
    if seen > length:
        raise ValueError(f"expected at most {length} samples, got {seen}")


class Spool:
    """A float32 signal (N, T) that is written once from start to end and read at will.

    Arguments:
        rows: number of channels N.
        folder: where to keep it in a nameless temporary file; None keeps it in memory.

    Attributes:
        length: samples T so far.
    """

    def __init__(self, rows: int, folder: Path | None = None) -> None:
        self.rows, self.length = rows, 0
        self._file = None if folder is None else tempfile.TemporaryFile(dir=folder)
        self._pieces: list[Tensor] = []

    def append(self, piece: Tensor) -> None:
        """Adds samples, (N, n)."""
        if piece.ndim != 2 or piece.shape[0] != self.rows:
            raise ValueError(f"expected shape ({self.rows}, n), got {tuple(piece.shape)}")
        piece = piece.to(torch.float32)
        if self._file is None:
            self._pieces.append(piece.clone())
        else:
            self._file.seek(0, 2)
            self._file.write(np.ascontiguousarray(piece.numpy().T).tobytes())
        self.length += piece.shape[-1]

    def read(self, start: int, stop: int) -> Tensor:
        """The samples [start, stop), (N, stop - start); a copy or a view that is not to be changed.

        Raises:
            ValueError: if they are not all there.
        """
        if not 0 <= start <= stop <= self.length:
            raise ValueError(f"samples {start} to {stop} are not among the {self.length} here")
        if self._file is None:
            if len(self._pieces) > 1:
                self._pieces = [torch.cat(self._pieces, dim=-1)]
            return self._pieces[0][:, start:stop] if self._pieces else torch.zeros(self.rows, 0)
        self._file.seek(4 * self.rows * start)
        data = bytearray(self._file.read(4 * self.rows * (stop - start)))
        flat = torch.frombuffer(data, dtype=torch.float32) if data else torch.zeros(0)
        return flat.reshape(-1, self.rows).T.contiguous()

    def pieces(self, size: int) -> Iterator[Tensor]:
        """The whole signal in pieces of a size."""
        for start in range(0, self.length, size):
            yield self.read(start, min(start + size, self.length))

    def close(self) -> None:
        """Gives the file or the memory back."""
        if self._file is not None:
            self._file.close()
        self._pieces = []
