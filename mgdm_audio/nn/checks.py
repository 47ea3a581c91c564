"""What the networks ask of their arguments and of what they are given."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def check_least(least: int, **numbers: int | Sequence[int]) -> None:
    """Checks numbers, or all numbers of a list, by the names of their arguments.

    Torch builds layers of no width, and a loop over a negative number of blocks makes none: such a
    network would be built without complaint.

    Raises:
        ValueError: if one is below the least.
    """
    for name, given in numbers.items():
        if any(number < least for number in (given if isinstance(given, Sequence) else [given])):
            raise ValueError(f"got {name} = {given}, expected {least} or more")


def check_noisy(x: Tensor, sigma: Tensor, stems: int) -> None:
    """Checks what a denoiser of that many stems is given.

    Raises:
        ValueError: unless x has shape (B, K, T), and sigma (B,) or (B, K).
    """
    if x.ndim != 3 or x.shape[1] != stems:
        raise ValueError(f"x must have shape (batch, {stems}, time), got {tuple(x.shape)}")
    if sigma.shape not in (x.shape[:1], x.shape[:2]):
        raise ValueError(
            f"sigma must have shape ({x.shape[0]},) or ({x.shape[0]}, {stems}), "
            f"got {tuple(sigma.shape)}"
        )
