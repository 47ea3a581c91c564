"""Weights in eight bits, by themselves and in a model's file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mgdm_audio import hub
from mgdm_audio.eight_bits import decoded, encoded
from mgdm_audio.nn import build

NETWORK = {
    "class": "UNet2dRegressor",
    "args": {"backbone": {"channels": [8, 12], "parts": 5}, "stft": {"n_fft": 2048, "beside": 6.0}},
}
CONFIG = {
    "kind": "regressor", "name": "small", "summary": "s", "network": NETWORK, "sample_rate": 22050,
    "stems": ["bass", "drums", "guitar", "piano"], "level": 0.08, "licence": "MIT", "score": {},
}  # fmt: skip


def network(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    net = build(NETWORK["class"], NETWORK["args"])
    for parameter in net.parameters():  # the last layers begin at zero
        torch.nn.init.normal_(parameter, std=0.02)
    return net


def save(folder: Path, dtype: str = "int8") -> torch.nn.Module:
    net = network()
    hub.save_model(folder, net, CONFIG, dtype)
    return net


@pytest.mark.parametrize("shape", [(3, 5), (4, 2, 3, 3), (1, 1)])
def test_an_error_is_at_most_half_a_step_of_its_row(shape: tuple[int, ...]):
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    weights *= torch.logspace(-6, 3, len(weights)).view(-1, *[1] * (len(shape) - 1))
    stored = encoded("w", weights)
    assert stored["w"].dtype == torch.int8
    assert stored["w"].abs().flatten(1).amax(1).tolist() == [127] * len(weights)
    read = decoded(stored)["w"]
    step = weights.abs().flatten(1).amax(1) / 127
    assert ((read - weights).abs().flatten(1).amax(1) <= 0.5001 * step).all()
    # What was read can be written again without a loss.
    assert torch.allclose(decoded(encoded("w", read))["w"], read, rtol=1e-6, atol=0)


def test_rows_of_zeros_stay_zero():
    weights = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    assert decoded(encoded("w", weights))["w"][0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("weights", [torch.zeros(3), torch.tensor([[1.0, float("nan")]])])
def test_what_has_no_rows_or_is_not_finite_is_refused(weights: torch.Tensor):
    with pytest.raises(ValueError, match="'w' must be finite and have rows"):
        encoded("w", weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("w:scale"), "'w' is in eight bits and has no scale for each row"),
        (lambda t: t.update({"w:scale": torch.ones(3)}), "no scale for each row"),
        (lambda t: t.update(w=torch.ones(2, 3)), "'w:scale' are scales of nothing"),
        (lambda t: t.pop("w"), "'w:scale' are scales of nothing"),
    ],
)
def test_what_does_not_go_together_is_refused(change, message: str):
    tensors = encoded("w", torch.ones(2, 3))
    change(tensors)
    with pytest.raises(ValueError, match=message):
        decoded(tensors)


def test_a_model_in_eight_bits_answers_as_it_did(tmp_path: Path):
    net = save(tmp_path / "small").eval()
    save(tmp_path / "half", "float16")
    loaded = hub.load_regressor(tmp_path / "small").regress
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    generator = torch.Generator().manual_seed(2)
    mix, stems = torch.randn(1, 1, 8192, generator=generator), torch.zeros(1, 4, 8192)
    unknown = torch.zeros(1, 4, dtype=torch.bool)
    with torch.no_grad():
        exact, other = net(mix, stems, unknown), loaded(mix, stems, unknown)
    # 40 dB and more below the answer, where the weights' own error is 38 to 46 dB below them.
    assert (exact - other).norm() < 0.01 * exact.norm()
    size = {n: (tmp_path / n / "model.safetensors").stat().st_size for n in ("small", "half")}
    assert size["small"] < 0.6 * size["half"]


def test_only_a_model_in_eight_bits_asks_for_a_newer_version(tmp_path: Path):
    for dtype, version in (("int8", 2), ("float16", 1)):
        save(tmp_path / dtype, dtype)
        config = json.loads((tmp_path / dtype / "config.json").read_text())
        assert (config["format"], config["weights"]["dtype"]) == (version, dtype)


def test_weights_without_their_scales_are_not_loaded(tmp_path: Path):
    import hashlib

    import safetensors.torch

    save(tmp_path / "small")
    path = tmp_path / "small" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors = {key: t for key, t in tensors.items() if not key.endswith(":scale")}
    data = safetensors.torch.save(tensors)
    path.write_bytes(data)
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    config["weights"]["sha256"] = hashlib.sha256(data).hexdigest()
    (tmp_path / "small" / "config.json").write_text(json.dumps(config))
    with pytest.raises(hub.ModelError, match="is in eight bits and has no scale for each row"):
        hub.load_regressor(tmp_path / "small")
