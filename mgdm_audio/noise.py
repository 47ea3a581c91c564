r"""Noise levels of the diffusion, and the Gaussian bridges between them.

A clean signal :math:`x_0` is noised to level :math:`\sigma_t` in one of two equivalent views:

* variance exploding (VE):   :math:`x_t = x_0 + \sigma_t n`
* variance preserving (VP):  :math:`x_t = \sqrt{a_t}\,(x_0 + \sigma_t n)`,
  :math:`a_t = 1 / (1 + \sigma_t^2)`

with :math:`n \sim N(0, I)`. Both are Markov in :math:`t`; given a cleaner state :math:`x_s` and a
noisier state :math:`x_u`, the state between them is Gaussian (the bridge of DDIM, Song et al. 2021,
arXiv:2010.02502, with stochasticity :math:`\eta`; :math:`\eta = 1` is the exact conditional).

Everything here is float64 on the CPU and is formed from :math:`\sigma^2` alone: :math:`1 - a_t`
is :math:`\sigma_t^2 / (1 + \sigma_t^2)`, never a difference of numbers close to one, which would
lose the small levels. `broadcast` carries a coefficient to the type and device of a state.
"""

from __future__ import annotations

__all__ = [
    "NoiseLevels",
    "bridge",
    "bridge_ve",
    "broadcast",
    "forward",
    "int_linspace",
    "karras_sigmas",
]

from dataclasses import dataclass

import torch
from torch import Tensor


def karras_sigmas(n: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    r"""Noise levels of Karras et al. (2022, arXiv:2206.00364, eq. 5), descending.

    .. math:: \sigma_i = \big(\sigma_{max}^{1/\rho} + \tfrac{i}{n-1}
              (\sigma_{min}^{1/\rho} - \sigma_{max}^{1/\rho})\big)^\rho,\quad i = 0, \dots, n-1

    Arguments:
        n: number of positive levels, at least 2.
        sigma_min: smallest positive level, in units of the signal.
        sigma_max: largest level, in units of the signal.
        rho: exponent; larger values put more levels near `sigma_min`.

    Returns:
        float64 tensor (n + 1,), descending, the last entry 0.

    Raises:
        ValueError: if n < 2, or not 0 < sigma_min < sigma_max, or rho <= 0, or rho is so small
            that levels coincide.
    """
    if n < 2:
        raise ValueError(f"got n = {n} noise levels, expected at least 2; raise `levels`")
    if not 0 < sigma_min < sigma_max < float("inf"):
        raise ValueError(
            f"got sigma_min = {sigma_min} and sigma_max = {sigma_max}, expected "
            "0 < sigma_min < sigma_max; change either one"
        )
    if not rho > 0:
        raise ValueError(f"got rho = {rho}, expected a positive exponent; 3 and 7 are usual")
    ramp = torch.arange(n, dtype=torch.float64) / (n - 1)
    try:
        high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    except OverflowError:
        high, low = float("inf"), 0.0
    sigmas = (high + ramp * (low - high)) ** rho
    sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
    if not bool((sigmas.diff() < 0).all()):  # NaN, too, is not descending
        raise ValueError(
            f"got rho = {rho}, with which {n} levels from {sigma_max} to {sigma_min} coincide; 3 "
            "and 7 are usual"
        )
    return sigmas


def int_linspace(stop: int, n: int) -> list[int]:
    """n integers from 0 to `stop`, equally spaced before truncation, ascending.

    The first half is counted up from 0 and the second half down from `stop`, each truncated
    towards zero. This is the rule of ``torch.linspace`` for integer types; it can differ by one
    from ``floor(stop * j / (n - 1))``.

    Arguments:
        stop: last integer, >= 0.
        n: number of points, >= 1; a single point is 0.

    Raises:
        ValueError: if stop < 0 or n < 1.
    """
    if stop < 0 or n < 1:
        raise ValueError(f"got stop = {stop} and n = {n}, expected stop >= 0 and n >= 1")
    if n == 1:
        return [0]
    step = stop / (n - 1)
    return [int(step * j) if j < n // 2 else int(stop - step * (n - 1 - j)) for j in range(n)]


@dataclass(frozen=True, eq=False)
class NoiseLevels:
    r"""An ascending grid of noise levels :math:`0 = \sigma_0 < \sigma_1 < \dots < \sigma_n`.

    An index t of the grid is an int or an int64 tensor (B,) with one index per batch item; what
    the methods return has the same shape (a 0-dim tensor for an int), in float64 on the CPU.

    Arguments:
        sigmas: float64 tensor (n + 1,), ascending, in units of the signal; ``sigmas[0]`` is 0,
            so index 0 is the clean signal.

    Raises:
        ValueError: if `sigmas` is not such a grid.
    """

    sigmas: Tensor

    def __post_init__(self) -> None:
        s = self.sigmas
        if s.ndim != 1 or s.dtype != torch.float64 or len(s) < 2:
            raise ValueError(
                f"got sigmas of shape {tuple(s.shape)} and type {s.dtype}, expected a float64 "
                "vector of at least two levels"
            )
        if s[0] != 0 or not bool((s.diff() > 0).all()) or not bool(torch.isfinite(s).all()):
            raise ValueError("sigmas must start at 0 and ascend strictly; use NoiseLevels.karras")

    @classmethod
    def karras(cls, n: int, sigma_min: float, sigma_max: float, rho: float) -> NoiseLevels:
        """Grid of n positive `karras_sigmas` in ascending order, after a leading 0."""
        return cls(karras_sigmas(n, sigma_min, sigma_max, rho).flip(0))

    def __len__(self) -> int:
        """Number of indices, n + 1."""
        return len(self.sigmas)

    def sigma(self, t: int | Tensor) -> Tensor:
        r""":math:`\sigma_t`, the noise level in the VE view."""
        if isinstance(t, Tensor):
            t = t.cpu()
        return self.sigmas[t]

    def alpha_bar(self, t: int | Tensor) -> Tensor:
        r""":math:`a_t = 1 / (1 + \sigma_t^2)`, the squared signal scale in the VP view."""
        return 1 / (1 + self.sigma(t) ** 2)

    def one_minus_alpha_bar(self, t: int | Tensor) -> Tensor:
        r""":math:`1 - a_t = \sigma_t^2 / (1 + \sigma_t^2)`, the noise variance in the VP view."""
        variance = self.sigma(t) ** 2
        return variance / (1 + variance)

    def subgrid(self, n: int) -> list[int]:
        """n indices from 0 to the last but one, by `int_linspace`, ascending.

        The topmost index is left out on purpose: it is where the sampler's initial noise is
        scaled, while the first network call is made one index below.

        Raises:
            ValueError: if n is below 2 or gives the same index twice.
        """
        if not 2 <= n <= len(self) - 1:
            raise ValueError(
                f"got {n} steps, expected 2 to {len(self) - 1} on a grid of {len(self) - 1} "
                "levels; lower `steps` or raise `levels`"
            )
        return int_linspace(len(self) - 2, n)


def bridge_ve(
    sigma_s: Tensor, sigma_t: Tensor, sigma_u: Tensor, eta: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Bridge :math:`q^\eta(x_t | x_s, x_u) = N(c_s x_s + c_u x_u, d^2 I)` in the VE view.

    .. math::
        d = \eta \sqrt{\frac{(\sigma_t^2 - \sigma_s^2)(\sigma_u^2 - \sigma_t^2)}
                            {\sigma_u^2 - \sigma_s^2}},\quad
        c_u = \sqrt{\frac{\sigma_t^2 - \sigma_s^2 - d^2}{\sigma_u^2 - \sigma_s^2}},\quad
        c_s = 1 - c_u

    Arguments:
        sigma_s: level of the cleaner end, scalar or (B,), float64.
        sigma_t: level between, sigma_s <= sigma_t < sigma_u.
        sigma_u: level of the noisier end.
        eta: stochasticity in [0, 1]; 1 is the exact conditional, 0 the deterministic DDIM move.

    Returns:
        c_s, c_u and the standard deviation d, float64, each scalar or (B,).

    Raises:
        ValueError: if eta is outside [0, 1] or the levels are not in order.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"got eta = {eta}, expected a stochasticity in [0, 1]")
    s2, t2, u2 = sigma_s**2, sigma_t**2, sigma_u**2
    if bool((s2 > t2).any()) or bool((t2 >= u2).any()):
        raise ValueError(
            f"got bridge levels {sigma_s}, {sigma_t}, {sigma_u}, expected "
            "sigma_s <= sigma_t < sigma_u"
        )
    exact = (t2 - s2) * (u2 - t2) / (u2 - s2)
    std = eta * exact.sqrt()
    # The difference is >= 0; rounding may leave it a hair below where t is s.
    c_u = ((t2 - s2 - std**2).clamp_min(0) / (u2 - s2)).sqrt()
    return 1 - c_u, c_u, std


def bridge(
    levels: NoiseLevels, s: int | Tensor, t: int | Tensor, u: int | Tensor, eta: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Bridge :math:`q^\eta(x_t | x_s, x_u) = N(c_s x_s + c_u x_u, d^2 I)` in the VP view.

    It is `bridge_ve` between :math:`x / \sqrt{a}`, scaled back.

    Arguments:
        levels: the grid.
        s: index of the cleaner end, int or int64 (B,).
        t: index between, s <= t < u.
        u: index of the noisier end.
        eta: stochasticity in [0, 1].

    Returns:
        c_s, c_u and the standard deviation d, float64, each scalar or (B,).

    Raises:
        ValueError: if eta is outside [0, 1] or the indices are not in order.
    """
    c_s, c_u, std = bridge_ve(levels.sigma(s), levels.sigma(t), levels.sigma(u), eta)
    a_t = levels.alpha_bar(t)
    return (
        c_s * (a_t / levels.alpha_bar(s)).sqrt(),
        c_u * (a_t / levels.alpha_bar(u)).sqrt(),
        std * a_t.sqrt(),
    )


def forward(levels: NoiseLevels, s: int | Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
    r"""Noising :math:`q(x_t | x_s) = N(c\,x_s, d^2 I)` in the VP view, s <= t.

    Returns:
        :math:`c = \sqrt{a_t / a_s}` and :math:`d = \sqrt{1 - a_t / a_s}`, float64.

    Raises:
        ValueError: if s > t.
    """
    s2, t2 = levels.sigma(s) ** 2, levels.sigma(t) ** 2
    if bool((s2 > t2).any()):
        raise ValueError(f"got s = {s} and t = {t}, expected s <= t: noising only adds noise")
    return ((1 + s2) / (1 + t2)).sqrt(), ((t2 - s2) / (1 + t2)).sqrt()


def broadcast(coefficient: float | Tensor, x: Tensor) -> Tensor:
    """Coefficient (scalar or per item, (B,)) in the type and on the device of x (B, ...).

    A per-item coefficient gets trailing axes of length 1, so that it multiplies x item by item.

    Raises:
        ValueError: if the coefficient is neither a scalar nor of shape (B,).
    """
    c = torch.as_tensor(coefficient, dtype=torch.float64)
    if c.ndim == 1 and c.shape[0] in (1, x.shape[0]):
        c = c.reshape(-1, *[1] * (x.ndim - 1))
    elif c.ndim != 0:
        raise ValueError(
            f"got a coefficient of shape {tuple(c.shape)} for a state of shape "
            f"{tuple(x.shape)}, expected a scalar or one value per batch item"
        )
    return c.to(device=x.device, dtype=x.dtype)
