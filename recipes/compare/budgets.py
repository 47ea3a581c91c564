"""Equal budgets: what a sampler costs in network calls, and settings that fill a budget.

A vector-Jacobian product is counted as the network calls that take as long: a call through which
a gradient is taken costs 1 + ``vjp_cost`` calls. The factor is measured (:func:`measure_vjp_cost`)
and kept in ``candidates.yaml``, so that budgets do not change from run to run.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml

from mgdm_audio import samplers
from mgdm_audio.hub import ModelError, Prior
from mgdm_audio.samplers.base import Cost
from recipes.compare.bench import Bench, Entry, tuples
from recipes.compare.ledger import Spent

CANDIDATES = Path(__file__).parent / "candidates.yaml"
WINNERS = Path(__file__).parent / "winners.yaml"

_SMALLEST = 32
"""The smallest possible number of steps of any method is below this."""


def equivalents(cost: Cost | Spent, vjp_cost: float) -> float:
    """Network calls that take as long as a sampler's calls and vector-Jacobian products."""
    return cost.calls + vjp_cost * cost.vjps


@dataclass(frozen=True)
class Candidate:
    """Settings of a method that are tried, with one of them left to the budget.

    Arguments:
        method: name of the sampler.
        name: of the candidate, for tables.
        preset: where settings that are not named come from.
        settings: settings that are named.
        knob: an integer setting that the cost grows with: it is made as large as the budget
            allows, and at most as large as the budget. None for a method whose cost is fixed.
        per_knob: settings that are this number times the knob.
        at: settings by budget that a single knob cannot express.
    """

    method: str
    name: str
    preset: str = "default"
    settings: Mapping[str, Any] = field(default_factory=dict)
    knob: str | None = None
    per_knob: Mapping[str, float] = field(default_factory=dict)
    at: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)


def fit(bench: Bench, candidate: Candidate, budget: int, vjp_cost: float) -> Entry | None:
    """The candidate's settings at a budget; None if it has none that cost as little.

    Raises:
        ValueError: for a setting that the method does not have.
        ModelError: if it asks a model that is not there.
    """
    base = Entry(candidate.method, candidate.preset, candidate.settings, candidate.name)
    if candidate.at:
        if budget not in candidate.at:
            return None
        stated = replace(base, settings={**candidate.settings, **candidate.at[budget]})
        if (cost := _cost(bench, stated, vjp_cost)) > budget:
            raise ValueError(
                f"candidate '{candidate.name}' of '{candidate.method}' costs {cost:.0f} calls with "
                f"its settings at {budget}; lower them"
            )
        return stated
    if candidate.knob is None:
        return base if _cost(bench, base, vjp_cost) <= budget else None
    knob = candidate.knob
    fields = [field.name for field in dataclasses.fields(samplers.sampler_class(base.method))]
    if knob not in fields:
        raise ValueError(
            f"candidate '{candidate.name}': sampler '{candidate.method}' has no setting "
            f"'{knob}', expected one of {', '.join(fields)}"
        )

    def filled(value: int) -> Entry:
        extra = {key: factor * value for key, factor in candidate.per_knob.items()}
        return replace(base, settings={**candidate.settings, knob: value, **extra})

    def affordable(value: int) -> bool:
        try:
            return _cost(bench, filled(value), vjp_cost) <= budget
        except ModelError:
            raise
        except ValueError:
            return False  # no grid has so many points

    # From the smallest number that makes a grid, affordable ones go without a gap up to the best.
    for low in range(1, _SMALLEST + 1):
        try:
            bench.separator(filled(low))
            break
        except ValueError:
            if low == _SMALLEST:
                raise
    if not affordable(low):
        return None
    high = budget + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if affordable(middle) else (low, middle)
    return filled(low)


def _cost(bench: Bench, entry: Entry, vjp_cost: float) -> float:
    return equivalents(bench.separator(entry).sampler.cost(), vjp_cost)


def load_candidates(path: str | Path = CANDIDATES) -> tuple[float, dict[str, list[Candidate]]]:
    """Cost of a vector-Jacobian product and candidates by method, for all methods there are.

    A method that the file does not name is tried with its presets as they are.

    Raises:
        ValueError: for a field that is not known.
    """
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    result = {}
    for method in samplers.names():
        rows = content["methods"].get(method)
        if rows is None:
            presets = samplers.sampler_class(method).PRESETS
            rows = [{"name": preset, "preset": preset} for preset in presets if preset != "paper"]
        try:
            result[method] = [_candidate(method, row) for row in rows]
        except TypeError as error:
            raise ValueError(f"{path}: candidates of '{method}': {error}") from error
    return float(content["vjp_cost"]), result


def _candidate(method: str, row: Mapping[str, Any]) -> Candidate:
    candidate = Candidate(method=method, **row)
    at = {budget: _settings(settings) for budget, settings in candidate.at.items()}
    return replace(candidate, settings=_settings(candidate.settings), at=at)


def _settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuples(value) for key, value in settings.items()}


def load_winners(path: str | Path = WINNERS) -> dict[str, dict[int, Entry]]:
    """Tuned settings by method and budget, as :mod:`recipes.compare.tune` wrote them.

    Raises:
        FileNotFoundError: if nothing was tuned yet.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; run recipes/compare/tune.py first")
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    return {
        method: {
            budget: Entry(
                method,
                row["preset"],
                _settings(row["settings"]),
                f"{budget} calls, {row['chosen']}",
            )
            for budget, row in rows.items()
        }
        for method, rows in content["winners"].items()
    }


def measure_vjp_cost(prior: Prior, samples: int, dtype: torch.dtype, rounds: int = 5) -> float:
    """Network calls that one vector-Jacobian product takes as long as, beyond its own call.

    Arguments:
        prior: whose network is timed, on its own device.
        samples: length of the signals.
        dtype: of the network's layers.
        rounds: the median over so many is taken, after one that warms up.
    """
    device = next(iter(prior.denoise.parameters()), torch.zeros(0)).device
    x = prior.level * torch.ones(1, len(prior.stems), samples, device=device)
    sigma = torch.full((1,), 0.1, device=device)
    ratios = []
    for _ in range(rounds + 1):
        times = []
        for gradient in (False, True):
            start = time.process_time() if device.type == "cpu" else time.perf_counter()
            leaf = x.clone().requires_grad_(gradient)
            with (
                torch.set_grad_enabled(gradient),
                torch.autocast(device.type, torch.bfloat16, enabled=dtype != torch.float32),
            ):
                answer = prior.denoise(leaf, sigma).square().sum()
            last = torch.autograd.grad(answer, leaf)[0].sum() if gradient else answer
            float(last)  # waits for the device
            end = time.process_time() if device.type == "cpu" else time.perf_counter()
            times.append(end - start)
        ratios.append(times[1] / times[0] - 1)
    return median(ratios[1:])
