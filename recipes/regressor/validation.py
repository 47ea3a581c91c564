"""Scores of a regressor on validation crops, with other parts in the mix and without."""

from __future__ import annotations

import math

import numpy as np
import torch

from mgdm_audio.metrics import si_sdr_improvement
from mgdm_audio.nn import RegressorMean, SpectralRegressor
from mgdm_audio.varispeed import Varispeed
from recipes.regressor.loss import other_power


@torch.no_grad()
def validate(
    net: SpectralRegressor | RegressorMean,
    crops: np.ndarray,
    others: np.ndarray | None = None,
    speeds: int = 1,
) -> dict[str, list[float]]:
    """SI-SDR improvement in dB, by stem, where it sounds.

    "none": no stem is given; "two": the two that follow it are; "beside": none is, and the mix
    holds another part, whose improvement is the fifth figure. An autocast around it decides the
    network's precision.

    Arguments:
        net: the regressor.
        crops: of validation songs, (N, 4, T).
        others: other parts, (N, 1, T), for "beside".
        speeds: at which the network is asked where no stem is given, see `Varispeed`.
    """
    scores: dict[str, list[list[float]]] = {
        "none": [[] for _ in range(4)],
        "two": [[] for _ in range(4)],
        **({} if others is None else {"beside": [[] for _ in range(5)]}),
    }
    for number, crop in enumerate(crops):
        active = [k for k in range(4) if crop[k].std() > 0.002]
        if len(active) < 2:
            continue
        for k in range(-1, 4):
            if k >= 0 and k not in active:
                continue
            known = np.zeros(4, bool)
            known[[(k + 1) % 4, (k + 2) % 4] if k >= 0 else []] = True
            asked = speeds if k < 0 else 1
            estimate = _estimate(net, crop, known, speeds=asked)
            for j in active if k < 0 else [k]:
                gain = si_sdr_improvement(estimate[j], crop[j], crop.sum(0))
                scores["none" if k < 0 else "two"][j].append(float(gain))
        if others is not None and others[number].std() > 0.002:
            estimate = _estimate(net, crop, np.zeros(4, bool), others[number])
            true = np.concatenate([crop, others[number]])
            for j in (*active, 4):
                gain = si_sdr_improvement(estimate[j], true[j], true.sum(0))
                scores["beside"][j].append(float(gain))
    return {
        case: [round(float(np.mean(s)), 3) if s else math.nan for s in by_stem]
        for case, by_stem in scores.items()
    }


def _estimate(
    net: SpectralRegressor | RegressorMean,
    crop: np.ndarray,
    known: np.ndarray,
    other: np.ndarray | None = None,
    speeds: int = 1,
) -> np.ndarray:
    """Estimated stems (K, T), with another part (1, T) in the mix (K + 1, T)."""
    device = next(net.parameters()).device
    clean = torch.from_numpy(crop)[None]
    mix, mask = clean.sum(1, keepdim=True), torch.from_numpy(known)[None].to(device)
    power = None
    if other is not None:
        mix = mix + torch.from_numpy(other)
        power = other_power(mix[0, 0], net.frame.n_fft).to(device)
    clean, mix = clean.to(device), mix.to(device)

    def regress(mix: torch.Tensor, stems: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        return net(mix, stems, known, power)

    stems = Varispeed(regress, speeds)(mix, clean, mask)
    if other is not None:
        stems = torch.cat([stems, mix - stems.sum(1, keepdim=True)], dim=1)
    return stems[0].float().cpu().numpy()
