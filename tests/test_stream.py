"""Signals in pieces: blocks with context, and what is kept for a second reading."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mgdm_audio.stream import Spool, with_context


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 200),
    st.lists(st.integers(0, 40), max_size=12),
    st.integers(1, 60),
    st.integers(0, 30),
    st.integers(0, 20),
)
def test_blocks_are_those_of_the_padded_signal(length, cuts, block, edge, more):
    x = torch.arange(1.0, length + 1).expand(2, -1)
    sizes = [*cuts, length]
    pieces, at = [], 0
    for size in sizes:
        pieces.append(x[:, at : at + size])
        at = min(length, at + size)
    padded = F.pad(x, (edge, edge + more + block))
    blocks = list(with_context(pieces, length + more, block, edge))
    starts = range(0, length + more, block)
    assert len(blocks) == len(starts)
    for start, found in zip(starts, blocks, strict=True):
        stop = min(start + block, length + more)
        assert torch.equal(found, padded[:, start : stop + 2 * edge])


def test_too_much_signal_and_none_are_errors():
    with pytest.raises(ValueError, match="at most 5"):
        list(with_context([torch.zeros(1, 9)], 5, 2))
    with pytest.raises(ValueError, match="no piece"):
        list(with_context([], 5, 2))


@pytest.mark.parametrize("in_file", [False, True])
def test_a_spool_gives_back_what_it_was_given(tmp_path, in_file):
    x = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    spool = Spool(3, tmp_path if in_file else None)
    assert spool.read(0, 0).shape == (3, 0)
    for piece in x.split(137, dim=1):
        spool.append(piece)
        assert torch.equal(spool.read(0, 5), x[:, :5])
    assert spool.length == 1000
    assert torch.equal(spool.read(130, 700), x[:, 130:700])
    assert torch.equal(torch.cat(list(spool.pieces(64)), dim=1), x)
    with pytest.raises(ValueError, match="not among the 1000"):
        spool.read(990, 1001)
    with pytest.raises(ValueError, match="shape"):
        spool.append(x[:2])
    spool.close()
    assert not list(tmp_path.iterdir())
