"""The trained models that a sampler asks, loaded and checked against each other."""

from __future__ import annotations

__all__ = ["Models"]

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mgdm_audio import hub
from mgdm_audio.denoise import Denoiser
from mgdm_audio.regress import Regressor, WithRegressor
from mgdm_audio.samplers.base import Sampler

Named = str | os.PathLike[str]

Power = Callable[[int], Tensor]
"""Power of a sound beside the stems in each bin of a transform of so many samples."""


@dataclass(frozen=True)
class Models:
    """A prior, a regressor, or both.

    Attributes:
        prior: the prior, None where none is asked.
        regressor: the regressor, None where none is asked.

    Raises:
        ValueError: if both are there and differ in stems or sample rate.
    """

    prior: hub.Prior | None
    regressor: hub.Regressor | None = None

    def __post_init__(self) -> None:
        a, b = self.prior, self.regressor
        if a and b and (a.stems, a.sample_rate) != (b.stems, b.sample_rate):
            raise ValueError(
                f"prior '{a.name}' has the stems {', '.join(a.stems)} at {a.sample_rate} Hz and "
                f"regressor '{b.name}' has {', '.join(b.stems)} at {b.sample_rate} Hz; choose two "
                "that are alike"
            )

    @classmethod
    def load(
        cls,
        sampler: Sampler,
        model: Named | hub.Prior | hub.Regressor | None = None,
        regressor: Named | hub.Regressor | None = None,
        device: str | torch.device = "cpu",
    ) -> Models:
        """The models that a sampler needs.

        Arguments:
            sampler: see `Sampler.needs`.
            model: name, folder or loaded model: the prior, or the regressor of a sampler that
                asks nothing else. By default the shipped one, `default` or `regressor`.
            regressor: the same of the regressor; of no meaning to a sampler that asks none.
            device: where models that are loaded go.

        Raises:
            ValueError: if there is no such model, it is of the other kind, two regressors are
                given where one is asked, the sampler asks for noise levels that the prior was
                not trained on, or it takes a product of single-stem priors and gets a joint one.
        """
        if "prior" not in sampler.needs:
            if model is not None and regressor is not None:
                raise ValueError(
                    f"sampler '{sampler.name}' asks one regressor: give model or regressor"
                )
            given = regressor if model is None else model
            return cls(None, _regressor("regressor" if given is None else given, device))
        prior = _prior("default" if model is None else model, device)
        noise = sampler.noise_range()
        low, high = prior.sigma_min * (1 - 1e-9), prior.sigma_max * (1 + 1e-9)
        if noise is not None and not low <= noise[0] <= noise[1] <= high:
            raise ValueError(
                f"sampler '{sampler.name}' asks for noise levels from {noise[0]:.4g} to "
                f"{noise[1]:.4g} with these settings, but model '{prior.name}' was trained from "
                f"{prior.sigma_min:g} to {prior.sigma_max:g}; choose another preset, or set "
                "sigma_min and sigma_max"
            )
        if sampler.takes_product and getattr(prior.denoise, "joint", False):
            raise ValueError(
                f"sampler '{sampler.name}' takes a product of single-stem priors with these "
                f"settings, and model '{prior.name}' is a joint prior; choose another preset or "
                "model, or set priors='marginal' for one with a noise level for each stem"
            )
        if "regressor" not in sampler.needs:
            return cls(prior)
        return cls(prior, _regressor("regressor" if regressor is None else regressor, device))

    @property
    def main(self) -> hub.Prior | hub.Regressor:
        """The model that decides rate, stems and level: the prior where there is one."""
        main = self.prior or self.regressor
        assert main is not None  # no sampler needs nothing
        return main

    def asked(self) -> Denoiser:
        """What a sampler is given: the prior, or a `WithRegressor`."""
        if self.regressor is None:
            assert self.prior is not None
            return self.prior.denoise
        return WithRegressor(self._regress(), self.prior.denoise if self.prior else None)

    def _regress(self) -> Regressor:
        """The regressor, at the level of mixes that the prior has."""
        assert self.regressor is not None
        network: Any = self.regressor.regress
        gain = self.regressor.level / self.main.level

        def regress(
            mix: Tensor, stems: Tensor, known: Tensor, other: Power | None = None
        ) -> Tensor:
            more = () if other is None else (other(network.frame.n_fft).to(mix) * gain**2,)
            out = network(mix * gain, stems * gain, known, *more) / gain
            return torch.where(known[:, :, None], stems, out)

        return regress

    def regressor_call(self, x: Tensor) -> Tensor:
        """One call of the regressor about the sum of `x`, (B, K, T), for timing it."""
        nothing = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        return self._regress()(x.sum(1, keepdim=True), x, nothing)


def _prior(model: Named | hub.Prior | hub.Regressor, device: str | torch.device) -> hub.Prior:
    if isinstance(model, hub.Regressor):
        raise ValueError(
            f"model '{model.name}' is a regressor, and a prior is wanted: choose a prior, or a "
            "method that asks a regressor ('regressor' or 'gibbs')"
        )
    return model if isinstance(model, hub.Prior) else hub.load(model, device)


def _regressor(
    model: Named | hub.Prior | hub.Regressor, device: str | torch.device
) -> hub.Regressor:
    if isinstance(model, hub.Prior):
        raise ValueError(
            f"model '{model.name}' is a prior, and a regressor is wanted: choose a regressor, or "
            "a method that asks a prior, such as 'mgdm'"
        )
    return model if isinstance(model, hub.Regressor) else hub.load_regressor(model, device)
