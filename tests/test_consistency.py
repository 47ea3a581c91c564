"""The consistency step: the sum is exact, the loud stem takes the residual, silence stays."""

from __future__ import annotations

import pytest
import torch

from mgdm_audio.consistency import make_consistent, residual_db


@pytest.mark.parametrize("length", [1, 2, 511, 512, 513, 30011, 300_001])
def test_stems_add_up(length):
    g = torch.Generator().manual_seed(length)
    stems = torch.randn(4, length, generator=g) * torch.tensor([1.0, 0.1, 0.01, 0.0])[:, None]
    mix = stems.sum(0) + 0.1 * torch.randn(length, generator=g)
    out = make_consistent(stems, mix)
    assert (out.sum(0) - mix).abs().max() < 2e-6
    assert residual_db(out, mix) < -100


def test_what_adds_up_is_left_alone():
    stems = torch.randn(4, 20000, generator=torch.Generator().manual_seed(0))
    assert (make_consistent(stems, stems.sum(0)) - stems).abs().max() < 2e-6


def test_loud_stem_takes_the_residual_of_its_band():
    t = torch.arange(44100) / 22050
    low, high = torch.sin(2 * torch.pi * 100 * t), torch.sin(2 * torch.pi * 3000 * t)
    stems = 0.9 * torch.stack([low, high])
    out = make_consistent(stems, low + high)
    inner = slice(4096, -4096)
    assert (out[0] - low)[inner].abs().max() < 0.01
    assert (out[1] - high)[inner].abs().max() < 0.01


def test_blocks_do_not_show():
    """The correction of a long signal is that of its parts, away from their ends."""
    g = torch.Generator().manual_seed(0)
    stems = torch.randn(2, 512 * 600, generator=g)
    mix = stems.sum(0) + torch.randn(512 * 600, generator=g)
    whole = make_consistent(stems, mix)
    seam = 512 * 512
    part = slice(seam - 512 * 40, seam + 512 * 40)
    alone = make_consistent(stems[:, part], mix[part])
    inner = slice(512 * 10, 512 * 70)
    assert (whole[:, part][:, inner] - alone[:, inner]).abs().max() < 1e-4


def test_refuses_lengths_that_differ():
    with pytest.raises(ValueError, match="expected"):
        make_consistent(torch.zeros(4, 10), torch.zeros(11))
