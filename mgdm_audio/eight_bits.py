"""Weights in eight bits: whole numbers from -127 to 127, and a scale for each row.

Half the size of float16. A row is what lies under one index of the first axis: the weights of one
output of a matrix or a convolution. Its largest weight is 127 times its scale, so the error of a
weight is at most a 254th of that.
"""

from __future__ import annotations

__all__ = ["decoded", "encoded"]

from collections.abc import Mapping

import torch
from torch import Tensor

SCALE = ":scale"
"""What the key of the scales ends in; no key of a network has a colon."""


def encoded(key: str, weights: Tensor) -> dict[str, Tensor]:
    """The tensors that stand for one of at least two axes: itself in int8, and scales in float32.

    Raises:
        ValueError: for a tensor of fewer axes, or one that is not finite.
    """
    if weights.ndim < 2 or not weights.isfinite().all():
        raise ValueError(f"'{key}' must be finite and have rows, its shape is {(*weights.shape,)}")
    weights = weights.float()
    rows = (-1, *[1] * (weights.ndim - 1))
    scale = weights.abs().flatten(1).amax(1) / 127
    whole = (weights / scale.clamp_min(torch.finfo(torch.float32).tiny).view(rows)).round()
    return {key: whole.to(torch.int8), key + SCALE: scale}


def decoded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by key, those in int8 with their scales made one in float32; others as they are.

    Raises:
        ValueError: for int8 without a scale a row, or scales without their tensor.
    """
    coded = {key for key, tensor in tensors.items() if tensor.dtype == torch.int8}
    found = {}
    for key, tensor in tensors.items():
        if key in coded:
            scale = tensors.get(key + SCALE)
            if scale is None or tensor.ndim < 2 or tuple(scale.shape) != tuple(tensor.shape[:1]):
                raise ValueError(f"'{key}' is in eight bits and has no scale for each row")
            found[key] = tensor.float() * scale.float().view(-1, *[1] * (tensor.ndim - 1))
        elif key.endswith(SCALE):
            if key.removesuffix(SCALE) not in coded:
                raise ValueError(f"'{key}' are scales of nothing")
        else:
            found[key] = tensor
    return found
