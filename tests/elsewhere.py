"""A device that computes on the CPU, and insists like a GPU that operands are on it.

A tensor there is of the device ``meta`` to all who ask; its numbers are kept beside it. An
operation that mixes it with a tensor of the CPU raises, as it would on a GPU: this finds what was
forgotten to move, on machines that have no GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")

_aten = torch.ops.aten
# As on a GPU: copies go from one device to another, and indices may be on the CPU.
_ACROSS = {_aten.copy_.default, _aten._to_copy.default, _aten.index.Tensor}


class ElsewhereTensor(Tensor):
    """A tensor of the device, with its numbers in ``numbers``."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> ElsewhereTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls, numbers.shape, strides=numbers.stride(), dtype=numbers.dtype, device=DEVICE,
            storage_offset=numbers.storage_offset(),
        )  # fmt: skip
        made.numbers = numbers
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """Tensors of Python numbers, which no dispatch sees being made."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None:
            return func(*args, **{**kwargs, "device": None}).to(device)
        if func is Tensor.new_tensor and isinstance(args[0], ElsewhereTensor):
            return args[0].numbers.new_tensor(*args[1:], **kwargs).to(DEVICE)
        if func is Tensor.__getitem__ and isinstance(args[1], list):
            return args[0][torch.tensor(args[1])]
        return func(*args, **kwargs)


@contextlib.contextmanager
def elsewhere() -> Iterator[torch.device]:
    """While it lasts, what is made on the device has its numbers; gives the device."""
    with _Elsewhere(), _Literals():
        yield DEVICE


class _Elsewhere(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    here = [x for x in tensors if isinstance(x, ElsewhereTensor)]
    wanted = kwargs.get("device")
    there = bool(here) if wanted is None else torch.device(wanted) == DEVICE
    if here and func not in _ACROSS:
        # A GPU takes a number of the CPU, but nothing with an axis.
        strangers = [x for x in tensors if not isinstance(x, ElsewhereTensor) and x.ndim]
        if strangers:
            raise RuntimeError(f"{func}: operands on {DEVICE} and on {strangers[0].device}")
    if any(x.device == DEVICE for x in tensors if not isinstance(x, ElsewhereTensor)):
        raise RuntimeError(f"{func}: a tensor of {DEVICE} that has no numbers")
    if func is _aten._conj.default and here:
        # The lazy one leaves a mark on its result that operations do not see from in here.
        func = _aten.conj_physical.default
    if func is _aten.copy_.default:
        there = isinstance(args[0], ElsewhereTensor)
    if func is _aten.index.Tensor and not isinstance(args[0], ElsewhereTensor) and here:
        raise RuntimeError(f"{func}: a tensor of the CPU with an index of {DEVICE}")
    if wanted is not None:
        kwargs = {**kwargs, "device": "cpu"}
    out = func(*tree_map(_numbers, args), **tree_map(_numbers, kwargs))
    if not there:
        return out
    out = tree_map(lambda x: ElsewhereTensor(x) if isinstance(x, Tensor) else x, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if here else out


def _numbers(x: Any) -> Any:
    return x.numbers if isinstance(x, ElsewhereTensor) else x
