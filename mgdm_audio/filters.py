r"""Observations through filters: low-pass, reverberation, decimation.

.. math:: y_m = \downarrow_q \; h_m * \sum_k g_{mk} x_k

A `FilterOperator` convolves on a circle of T samples and keeps every q-th sample. The discrete
Fourier transform then takes the system apart: at each of the T / q frequencies of the observation,
the q frequencies of the stems that fold onto it make one M x M matrix,

.. math:: (A V A^T)_{mn}(f) = \Big(\sum_k g_{mk} v_k g_{nk}\Big)\,
          \frac{1}{q} \sum_{a=0}^{q-1} H_m(f_a) \overline{H_n(f_a)},

and pseudo-inverse, proximal step and posterior are exact, for variances that do not change over
time (for those that do, by conjugate gradients).

**The edges.** On the circle the end of a window runs into its beginning: what a filter smears over
the end comes back at the start. For a recording of silence at both ends, longer than the filter,
this is the usual convolution. For a window out of a longer recording, the samples within a
filter's length of an edge are not what such an operator says; leave them out (give them by
`Mask`, or pad the window with zeros where the recording is known to be silent).
"""

from __future__ import annotations

__all__ = ["Decimation", "FilterOperator", "LowPass", "Reverb", "low_pass_response"]

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mgdm_audio.observe import (
    LinearOperator,
    NoiseLevel,
    Variance,
    as_variance,
    divide,
    noise_column,
    precise,
    solve_singular,
    where_positive,
)

FLOOR = 1e-3
"""A low-pass is exactly 0 where its response falls below -60 dB: to invert less would only
amplify rounding."""

Gains = Sequence[float] | Tensor | None
"""Gains of the stems, K numbers, or None for the plain sum."""


class FilterOperator(LinearOperator):
    """Rows of filtered sums of stems, each with every q-th sample kept; see the module.

    Arguments:
        response: H, complex (M, T // 2 + 1), the rows' frequency responses on the grid of
            ``torch.fft.rfft``.
        length: T, samples of the stems.
        gains: g, (M, K).
        factor: q, a divisor of T.

    Raises:
        ValueError: if the shapes disagree, q does not divide T, or an entry is not finite.
    """

    def __init__(self, response: Tensor, length: int, gains: Tensor, factor: int = 1) -> None:
        bins = length // 2 + 1
        if response.ndim != 2 or response.shape[1] != bins or gains.ndim != 2:
            raise ValueError(
                f"got responses {tuple(response.shape)} and gains {tuple(gains.shape)}, expected "
                f"(M, {bins}) for {length} samples and (M, K)"
            )
        if len(response) != len(gains):
            raise ValueError(f"got {len(response)} responses for {len(gains)} rows of gains")
        if factor < 1 or length % factor:
            raise ValueError(
                f"got a factor {factor} for {length} samples, which it does not divide; pad the "
                "stems to a multiple"
            )
        if not bool(torch.isfinite(response).all()) or not bool(torch.isfinite(gains).all()):
            raise ValueError("the operator has entries that are not finite")
        self.length, self.factor = length, factor
        self.gains = gains.detach().to(torch.float64)
        self.response = response.detach().to(torch.complex128)
        self._pairs = self._folded()

    @property
    def rows(self) -> int:
        """Number of observed channels M."""
        return self.gains.shape[0]

    @property
    def stems(self) -> int:
        """Number of stems K."""
        return self.gains.shape[1]

    def _folded(self) -> Tensor:
        """sum_a H_m conj(H_n) / q at the observation's frequencies, (M, M, T / q // 2 + 1)."""
        # Real filters: the responses above T / 2 are the conjugates of those below.
        above = self.response[:, 1 : (self.length + 1) // 2].flip(1).conj()
        full = torch.cat([self.response, above], dim=1)
        short = self.length // self.factor
        aliases = full.unflatten(1, (self.factor, short))[:, :, : short // 2 + 1]
        return torch.einsum("maf,naf->mnf", aliases, aliases.conj()) / self.factor

    def forward(self, x: Tensor) -> Tensor:
        """A x, (B, K, T) -> (B, M, T / q). Raises ValueError if K or T do not fit."""
        self._check(x, self.stems, self.length, "stems")
        mixed = torch.einsum("mk,bkt->bmt", self.gains.to(x), x)
        spectrum = torch.fft.rfft(mixed) * self._like(self.response, mixed)
        return torch.fft.irfft(spectrum, n=self.length)[..., :: self.factor].to(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Aᵀ y, (B, M, T / q) -> (B, K, T). Raises ValueError if M or T do not fit."""
        self._check(y, self.rows, self.length // self.factor, "observed channels")
        stuffed = y.new_zeros(*y.shape[:2], self.length)
        stuffed[..., :: self.factor] = y
        spectrum = torch.fft.rfft(stuffed) * self._like(self.response.conj(), y)
        return torch.einsum(
            "mk,bmt->bkt", self.gains.to(y), torch.fft.irfft(spectrum, n=self.length)
        )

    def norm(self) -> float:
        """See `LinearOperator.norm`; exact."""
        one = torch.ones(1, self.stems, 1, dtype=torch.float64)
        return float(torch.linalg.matrix_norm(self._gram(one), ord=2).max().sqrt())

    def pinv(self, y: Tensor) -> Tensor:
        """See `LinearOperator.pinv`."""
        work = y.to(precise(y))
        return self.adjoint(self._solve(work.new_ones(1, self.stems, 1), 0.0, work, False)).to(y)

    def gram_function(self, y: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """See `LinearOperator.gram_function`."""
        work = y.to(precise(y))
        gram = self._gram(work.new_ones(1, self.stems, 1))
        spectrum = torch.fft.rfft(work).mT
        values, basis = torch.linalg.eigh(gram)
        floor = values.max() * self.rows * 1e-13
        rotated = (basis.mH @ spectrum[..., None])[..., 0] * where_positive(function, values, floor)
        answer = (basis @ rotated[..., None])[..., 0].mT
        return torch.fft.irfft(answer, n=y.shape[-1]).to(y)

    def posterior_mean(self, mean: Tensor, var: Variance, y: Tensor, sigma_y: NoiseLevel) -> Tensor:
        """See `LinearOperator.posterior_mean`."""
        work = mean.to(precise(mean))
        v = as_variance(var, work)
        if v.shape[2] > 1:
            return super().posterior_mean(mean, var, y, sigma_y)
        residual = y.to(work) - self.forward(work)
        solved = self._solve(v.expand(-1, self.stems, 1), sigma_y, residual, True)
        return mean + (v * self.adjoint(solved)).to(mean)

    def posterior(
        self, mean: Tensor, var: Variance, y: Tensor, sigma_y: NoiseLevel
    ) -> tuple[Tensor, Tensor]:
        """See `LinearOperator.posterior`; the variances repeat every q samples."""
        work = mean.to(precise(mean))
        v = as_variance(var, work)
        if v.shape[2] > 1:
            return super().posterior(mean, var, y, sigma_y)
        wide = v.expand(len(mean), self.stems, 1)
        explained = torch.zeros_like(work)
        for phase in range(self.factor):
            for k in range(self.stems):
                pulse = torch.zeros_like(work)
                pulse[:, k, phase] = 1
                column = self.forward(pulse)
                solved = self._solve(wide, sigma_y, column, True)
                explained[:, k, phase :: self.factor] = (column * solved).sum((1, 2))[:, None]
        variance = (v - v**2 * explained).clamp_min(0)
        return self.posterior_mean(mean, var, y, sigma_y), variance.to(mean)

    def _gram(self, v: Tensor) -> Tensor:
        """A V Aᵀ at each frequency, (B, F, M, M), for variances v (B, K, 1)."""
        g = self.gains.to(v)
        power = torch.einsum("mk,bk,nk->bmn", g, v[..., 0], g)
        return power[:, None] * self._pairs.to(v.device).permute(2, 0, 1)

    def _solve(self, v: Tensor, sigma_y: NoiseLevel, r: Tensor, equilibrate: bool) -> Tensor:
        """(A V Aᵀ + Σ)⁻¹ r for r (B, M, T / q)."""
        gram = self._gram(v)
        noise = noise_column(sigma_y, r)[:, :, 0] ** 2  # (1, 1 or M)
        spectrum = torch.fft.rfft(r)
        if self.rows == 1:
            # Rounding is what is left of an empty band: it is nothing, not something to divide by.
            power = gram[:, :, 0, 0].real
            power = torch.where(power > power.amax(-1, keepdim=True) * 1e-13, power, 0)
            answer = divide(spectrum, (power + noise)[:, None])
        else:
            system = gram + torch.diag_embed(noise.expand(*gram.shape[:3])).to(gram)
            answer = solve_singular(system, spectrum.mT, equilibrate).mT
        return torch.fft.irfft(answer, n=r.shape[-1])

    @staticmethod
    def _like(response: Tensor, x: Tensor) -> Tensor:
        complex_type = torch.complex128 if x.dtype == torch.float64 else torch.complex64
        return response.to(x.device, complex_type)

    @staticmethod
    def _check(x: Tensor, channels: int, length: int, what: str) -> None:
        if x.ndim != 3 or x.shape[1:] != (channels, length):
            raise ValueError(
                f"got shape {tuple(x.shape)}, expected (B, {channels}, {length}) with {channels} "
                f"{what}"
            )


class LowPass(FilterOperator):
    """The mix, or one stem, without its upper band: see `low_pass_response` (M = 1).

    Arguments:
        length: T, samples of the stems.
        cutoff: end of the passband, as a share of the sample rate, below 1/2.
        stems: number of stems K.
        gains: gains of the stems, see `Gains`.
        width: width of the transition, relative to the cutoff.
    """

    def __init__(
        self, length: int, cutoff: float, stems: int = 1, gains: Gains = None, width: float = 0.2
    ) -> None:
        response = low_pass_response(length, cutoff, width)
        super().__init__(response[None], length, _row(gains, stems))


class Reverb(FilterOperator):
    """The mix, or one stem, in a room: convolved with an impulse response (M = 1).

    Arguments:
        length: T, samples of the stems.
        impulse: the impulse response, (L,), L at most T.
        stems: number of stems K.
        gains: gains of the stems, see `Gains`.

    Raises:
        ValueError: if the response is longer than the stems or has no sample.
    """

    def __init__(self, length: int, impulse: Tensor, stems: int = 1, gains: Gains = None) -> None:
        if impulse.ndim != 1 or not 1 <= len(impulse) <= length:
            raise ValueError(
                f"got an impulse response of shape {tuple(impulse.shape)}, expected (L,) with at "
                f"most {length} samples; shorten it, or pad the stems"
            )
        response = torch.fft.rfft(impulse.double(), n=length)
        super().__init__(response[None], length, _row(gains, stems))


class Decimation(FilterOperator):
    """The mix, or one stem, at a rate that is q times lower (M = 1).

    Arguments:
        length: T, samples of the stems, a multiple of the factor.
        factor: q.
        stems: number of stems K.
        gains: gains of the stems, see `Gains`.
        antialias: whether a low-pass comes first, as in every sample rate converter; without it
            every q-th sample is kept as it is, and what was above the new band folds into it.
        width: width of the low-pass's transition, relative to its cutoff; it ends at the new
            Nyquist frequency.
    """

    def __init__(
        self,
        length: int,
        factor: int,
        stems: int = 1,
        gains: Gains = None,
        antialias: bool = True,
        width: float = 0.1,
    ) -> None:
        response = torch.ones(length // 2 + 1, dtype=torch.complex128)
        if antialias and factor > 1:
            response = low_pass_response(length, 0.5 / factor / (1 + width), width)
        super().__init__(response[None], length, _row(gains, stems), factor)


def low_pass_response(length: int, cutoff: float, width: float) -> Tensor:
    """Response of a low-pass without phase on the grid of ``torch.fft.rfft``, complex128.

    It is 1 up to the cutoff, falls like a cosine over `width` times the cutoff, and is 0 above.

    Arguments:
        length: samples of the signal.
        cutoff: as a share of the sample rate, between 0 and 1/2.
        width: of the transition, relative to the cutoff, >= 0.

    Raises:
        ValueError: if a value is out of range.
    """
    if not 0 < cutoff < 0.5 or not 0 <= width < math.inf:
        raise ValueError(
            f"got cutoff {cutoff} and width {width}, expected a share of the sample rate between "
            "0 and 0.5, and a width of at least 0"
        )
    f = torch.arange(length // 2 + 1, dtype=torch.float64) / length
    ramp = ((f - cutoff) / max(width * cutoff, 1e-300)).clamp(0, 1)
    gain = 0.5 * (1 + torch.cos(math.pi * ramp))
    return torch.where(gain >= FLOOR, gain, 0).to(torch.complex128)


def _row(gains: Gains, stems: int) -> Tensor:
    g = torch.ones(stems) if gains is None else torch.as_tensor(gains, dtype=torch.float64)
    if g.shape != (stems,):
        raise ValueError(
            f"got gains of shape {tuple(g.shape)}, expected one number for each of {stems} stems"
        )
    return g.double()[None]
