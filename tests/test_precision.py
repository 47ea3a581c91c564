"""Which number format the network runs in."""

from __future__ import annotations

import contextlib

import pytest
import torch

from mgdm_audio import precision
from mgdm_audio.precision import bfloat16_speedup, choose_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx512": True, "avx512_bf16": False}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_auto_is_what_the_processor_has_instructions_for(monkeypatch, capabilities, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_precision(CPU) == dtype
    # What is said is done, whatever the processor has.
    assert choose_precision(CPU, "float32") == torch.float32
    assert choose_precision(CPU, "bfloat16") == torch.bfloat16


def test_the_gpu_that_is_named_is_asked(monkeypatch):
    current = [torch.device("cuda:0")]

    @contextlib.contextmanager
    def device(named):
        current.append(named)
        yield
        current.pop()

    def supported(including_emulation):
        return current[-1].index == 1 and not including_emulation

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert choose_precision(torch.device("cuda:0")) == torch.float32
    assert choose_precision(torch.device("cuda:1")) == torch.bfloat16
    assert len(current) == 1


@pytest.mark.parametrize(("speedup", "dtype"), [(1.1, torch.float32), (2.0, torch.bfloat16)])
def test_fastest_is_what_was_measured(monkeypatch, speedup, dtype):
    monkeypatch.setattr(precision, "bfloat16_speedup", lambda device: speedup)
    assert choose_precision(CPU, "fastest") == dtype


def test_the_measurement_and_the_list_of_this_processor_work():
    assert 0 < bfloat16_speedup(CPU) < 1000
    assert precision.has_bfloat16() in (True, False)


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="float32, bfloat16"):
        choose_precision(CPU, "float16")
