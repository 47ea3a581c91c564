"""Models are found by name, checked, and refused for every fault that can be met."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import mgdm_audio.nn
from mgdm_audio import STEMS, hub
from mgdm_audio.hub import ModelError, load, models, save_model

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mgdm_audio"


class Tiny(nn.Module):
    """A denoiser with one weight matrix and one buffer."""

    sigma_data: Tensor

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.mix = nn.Linear(4, width)
        self.register_buffer("sigma_data", torch.full((4, 1), 0.1234567))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        s2 = sigma.reshape(len(x), -1, 1) ** 2
        skip = self.sigma_data**2 / (s2 + self.sigma_data**2)
        return skip * x + 0.01 * self.mix(x.mT).mT


CONFIG = {
    "name": "tiny",
    "summary": "a prior for tests",
    "network": {"class": "Tiny", "args": {"width": 4}},
    "sample_rate": 22050,
    "stems": list(STEMS),
    "level": 0.1,
    "sigma_min": 0.001,
    "sigma_max": 3.0,
    "licence": "CC0-1.0",
    "score": {"si_sdri": 1.5},
}


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(name: str, args: dict[str, Any]) -> nn.Module:
        if name != "Tiny":
            raise ValueError(f"unknown network class '{name}'; known: Tiny")
        return Tiny(**args)

    monkeypatch.setattr(mgdm_audio.nn, "build", build)


@pytest.fixture
def network() -> Tiny:
    net = Tiny()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return net


@pytest.fixture
def folder(tmp_path: Path, network: Tiny, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model named tiny, found by name."""
    monkeypatch.setenv(hub.PATH_VARIABLE, str(tmp_path / "models"))
    save_model(tmp_path / "models" / "tiny", network, CONFIG)
    return tmp_path / "models" / "tiny"


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / hub.CONFIG
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def put_weights(folder: Path, data: bytes) -> None:
    """Replaces the weights, with the right checksum."""
    (folder / hub.WEIGHTS).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    edit(folder, lambda config: config["weights"].update(sha256=digest))


# -- what works --------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_saved_weights_load_as_float32(tmp_path: Path, network: Tiny, dtype: str) -> None:
    before = {key: value.clone() for key, value in network.state_dict().items()}
    info = save_model(tmp_path / "tiny", network, CONFIG, dtype)
    prior = load(tmp_path / "tiny")
    assert info == prior.info
    assert info.parameters == 20
    assert info.config["weights"]["dtype"] == dtype
    loaded = prior.denoise.state_dict()
    for key, value in before.items():
        assert torch.equal(network.state_dict()[key], value)
        assert loaded[key].dtype == torch.float32
        stored = value if key == "sigma_data" else value.to(getattr(torch, dtype)).float()
        assert torch.equal(loaded[key], stored)
    assert sorted(p.name for p in (tmp_path / "tiny").iterdir()) == [hub.CONFIG, hub.WEIGHTS]


def test_loading_holds_weights_no_longer_than_needed(
    folder: Path, network: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's bytes are gone before there is a network, which alone is in float32."""
    gone: list[str] = []

    class Watched(bytes):
        def __del__(self) -> None:
            gone.append("bytes")

    build, read = mgdm_audio.nn.build, hub._verified_weights
    monkeypatch.setattr(hub, "_verified_weights", lambda info: Watched(read(info)))

    def built(name: str, args: dict[str, Any]) -> nn.Module:
        assert gone == ["bytes"]
        made = build(name, args)
        take = made.load_state_dict

        def load_state_dict(state: dict[str, Tensor]) -> Any:
            assert state["mix.weight"].dtype == torch.float16
            return take(state)

        monkeypatch.setattr(made, "load_state_dict", load_state_dict)
        return made

    monkeypatch.setattr(mgdm_audio.nn, "build", built)
    weight = load("tiny").denoise.state_dict()["mix.weight"]
    assert torch.equal(weight, network.mix.weight.half().float())


def test_saving_copies_no_weights_of_the_stored_type(
    tmp_path: Path, network: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, given = safetensors.torch.save, []

    def watched(tensors: dict[str, Tensor]) -> bytes:
        given.append({key: tensor.data_ptr() for key, tensor in tensors.items()})
        return save(tensors)

    monkeypatch.setattr(safetensors.torch, "save", watched)
    save_model(tmp_path / "tiny", network, CONFIG, "float32")
    assert given == [{key: value.data_ptr() for key, value in network.state_dict().items()}]
    # Memory that two share is written twice.
    network.sigma_data = network.mix.bias.detach().view(4, 1)
    save_model(tmp_path / "tiny", network, CONFIG, "float32")
    loaded = load(tmp_path / "tiny").denoise.state_dict()
    assert torch.equal(loaded["sigma_data"][:, 0], loaded["mix.bias"])
    assert torch.equal(loaded["mix.bias"], network.mix.bias)


def test_prior(folder: Path) -> None:
    prior = load("tiny", device="cpu")
    assert not prior.denoise.training
    assert not any(p.requires_grad for p in prior.denoise.parameters())
    assert (prior.name, prior.sample_rate, prior.stems) == ("tiny", 22050, STEMS)
    assert (prior.level, prior.sigma_min, prior.sigma_max) == (0.1, 0.001, 3.0)
    assert prior.sha256 == hashlib.sha256((folder / hub.WEIGHTS).read_bytes()).hexdigest()
    x = torch.zeros(2, 4, 8)
    assert prior.denoise(x, torch.ones(2)).shape == x.shape


def test_by_name_and_by_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tiny", str(folder), folder, f"{folder}/"):
        assert load(name).name == "tiny"
    monkeypatch.chdir(folder.parent)
    assert load("./tiny").name == "tiny"
    assert load("../models/tiny").name == "tiny"
    monkeypatch.delenv(hub.PATH_VARIABLE)
    with pytest.raises(ModelError, match="unknown model 'tiny'"):
        load("tiny")


def test_models_lists_what_is_there(folder: Path, network: Tiny, tmp_path: Path) -> None:
    (folder.parent / "not_a_model").mkdir()
    save_model(folder.parent / "another", network, {**CONFIG, "name": "another"})
    listed = [info.name for info in models()]
    assert listed == sorted(listed)
    assert {"another", "tiny"} <= set(listed)
    # Weights are not read for a list.
    (folder / hub.WEIGHTS).unlink()
    assert [info.name for info in models()] == listed


def test_the_first_folder_wins(
    folder: Path, network: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "first" / "tiny", network, {**CONFIG, "summary": "first"})
    monkeypatch.setenv(
        hub.PATH_VARIABLE,
        os.pathsep.join(["", str(tmp_path / "first"), str(folder.parent), "/nowhere"]),
    )
    assert [m.summary for m in models() if m.name == "tiny"] == ["first"]


def test_a_read_only_model_loads(folder: Path) -> None:
    for path in [*folder.iterdir(), folder]:
        path.chmod(0o500 if path.is_dir() else 0o400)
    assert load("tiny").name == "tiny"
    folder.chmod(0o700)


def test_models_does_not_import_torch(folder: Path) -> None:
    code = (
        "import sys; from mgdm_audio import hub; "
        "assert 'tiny' in [m.name for m in hub.models()]; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'safetensors')))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert run.returncode == 0


def test_global_random_state_is_untouched(folder: Path) -> None:
    # Building a network draws its first weights; loading must not move anybody's generator.
    state = torch.get_rng_state()
    load("tiny")
    assert torch.equal(torch.get_rng_state(), state)


# -- refusals --------------------


class Bomb:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.sentinel), "w"))


def test_a_pickle_is_refused(folder: Path, tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    put_weights(folder, pickle.dumps(Bomb(sentinel)))
    with pytest.raises(ModelError, match="not a safetensors file"):
        load("tiny")
    torch.save(Bomb(sentinel), folder / "model.pt")
    put_weights(folder, (folder / "model.pt").read_bytes())
    with pytest.raises(ModelError, match="not a safetensors file"):
        load("tiny")
    edit(folder, lambda config: config["weights"].update(file="model.pt"))
    with pytest.raises(ModelError, match=r"\.safetensors file.*'model.pt'"):
        load("tiny")
    assert not sentinel.exists()


def test_a_flipped_byte_is_refused(folder: Path) -> None:
    path = folder / hub.WEIGHTS
    data = bytearray(path.read_bytes())
    expected = hashlib.sha256(data).hexdigest()
    data[-3] ^= 1
    path.write_bytes(data)
    actual = hashlib.sha256(data).hexdigest()
    with pytest.raises(ModelError) as caught:
        load("tiny")
    assert all(text in str(caught.value) for text in (str(path), expected, actual))


@pytest.mark.parametrize("keep", [0, 5, 100])
def test_a_truncated_file_is_refused(folder: Path, keep: int) -> None:
    path = folder / hub.WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=rf"damaged.*\({keep} bytes read\)"):
        load("tiny")


@pytest.mark.parametrize("keep", [0, 5, 100])
def test_a_truncated_file_with_its_own_checksum_is_refused(folder: Path, keep: int) -> None:
    put_weights(folder, (folder / hub.WEIGHTS).read_bytes()[:keep])
    with pytest.raises(ModelError, match="not a safetensors file"):
        load("tiny")


def test_a_large_file_pointer_is_explained(folder: Path) -> None:
    (folder / hub.WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelError, match="git lfs pull"):
        load("tiny")


def test_missing_weights_are_refused(folder: Path) -> None:
    (folder / hub.WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors.*No such file"):
        load("tiny")


@pytest.mark.parametrize("value", [None, "", "abc", "g" * 64])
def test_a_missing_checksum_is_refused(folder: Path, value: str | None) -> None:
    if value is None:
        edit(folder, lambda config: config["weights"].pop("sha256"))
    else:
        edit(folder, lambda config: config["weights"].update(sha256=value))
    with pytest.raises(ModelError, match=r"weights\.sha256"):
        load("tiny")


def test_tensors_that_do_not_fit_are_all_named(folder: Path, network: Tiny) -> None:
    import safetensors.torch

    tensors = {
        "mix.weight": torch.zeros(3, 4),
        "sigma_data": torch.ones(4, 1),
        "extra.one": torch.zeros(1),
    }
    put_weights(folder, safetensors.torch.save(tensors))
    with pytest.raises(ModelError) as caught:
        load("tiny")
    for text in ("missing: mix.bias", "not in the network: extra.one", "(3, 4), expected (4, 4)"):
        assert text in str(caught.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folder: Path, network: Tiny, bad: float) -> None:
    import safetensors.torch

    tensors = {key: value.clone() for key, value in network.state_dict().items()}
    tensors["mix.bias"][2] = bad
    put_weights(folder, safetensors.torch.save(tensors))
    with pytest.raises(ModelError, match=r"NaN or infinite weights in mix\.bias"):
        load("tiny")


def test_a_newer_format_is_refused(folder: Path) -> None:
    edit(folder, lambda config: config.update(format=hub.FORMAT + 1))
    with pytest.raises(ModelError, match="newer than the installed mgdm_audio"):
        load("tiny")
    with pytest.raises(ModelError, match="newer"):
        models()


@pytest.mark.parametrize(
    "name", ["nothing", "../tiny", "/nowhere/tiny", "", ".", "..", "tiny/../../tiny", "tiny\0"]
)
def test_unknown_names_are_refused(folder: Path, name: str) -> None:
    with pytest.raises(ModelError, match=r"unknown model.*models here:.*tiny"):
        load(name)


@pytest.mark.parametrize("key", [*CONFIG, "format", "weights", "parameters"])
def test_every_field_is_needed(folder: Path, key: str) -> None:
    edit(folder, lambda config: config.pop(key))
    with pytest.raises(ModelError, match=f"'{key}'"):
        load("tiny")


@pytest.mark.parametrize(
    "change",
    [
        {"sample_rate": "22050"},
        {"sample_rate": 0},
        {"sample_rate": True},
        {"level": 0},
        {"level": float("nan")},
        {"sigma_min": 3.0},
        {"stems": []},
        {"stems": ["bass", "bass"]},
        {"stems": ["bass", "../drums"]},
        {"stems": ["bass", 3]},
        {"score": 3},
        {"network": {"class": "Tiny"}},
        {"network": {"class": "Other", "args": {}}},
        {"network": {"class": "Tiny", "args": {"depth": 3}}},
        {"weights": {"file": "../tiny/model.safetensors", "sha256": "0" * 64}},
        {"weights": {"file": "/tmp/model.safetensors", "sha256": "0" * 64}},
    ],
    ids=str,
)
def test_fields_that_make_no_sense_are_refused(folder: Path, change: dict[str, Any]) -> None:
    edit(folder, lambda config: config.update(change))
    with pytest.raises(ModelError, match=r"config\.json"):
        load("tiny")


@pytest.mark.parametrize("text", ["", "{", "[]", "\udcff"])
def test_a_config_that_is_not_json_is_refused(folder: Path, text: str) -> None:
    (folder / hub.CONFIG).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError, match=r"config\.json"):
        load("tiny")


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json.*No such file"):
        load(tmp_path)


# -- saving --------------------


def test_saving_refuses_what_loading_would(tmp_path: Path, network: Tiny) -> None:
    with pytest.raises(ValueError, match="unknown dtype 'int4'"):
        save_model(tmp_path / "m", network, CONFIG, "int4")
    with pytest.raises(ModelError, match="'licence' is missing"):
        save_model(tmp_path / "m", network, {k: v for k, v in CONFIG.items() if k != "licence"})
    with torch.no_grad():
        network.mix.bias[0] = 1e6
    with pytest.raises(ModelError, match=r"mix\.bias.*too large for float16"):
        save_model(tmp_path / "m", network, CONFIG)
    assert not (tmp_path / "m").exists()
    save_model(tmp_path / "m", network, CONFIG, "bfloat16")


def test_a_failure_leaves_the_old_model(
    folder: Path, network: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / hub.CARD).write_text("card")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with torch.no_grad():
        network.mix.bias[0] = 7

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(hub.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            save_model(folder, network, CONFIG)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    save_model(folder, network, CONFIG)
    assert load("tiny").denoise.state_dict()["mix.bias"][0] == 7
    assert (folder / hub.CARD).read_text() == "card"


# -- the package and what it ships --------------------

SOURCES = [*PACKAGE.rglob("*.py"), *(ROOT / "recipes").rglob("*.py")]


def unsafe_calls(tree: ast.AST) -> list[str]:
    """Loads that could run code, by the text of the call."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names]
            module = getattr(node, "module", None) or ""
            banned = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
            if banned & {n.split(".")[0] for n in [*names, module]}:
                found.append(ast.unparse(node))
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func)
        options = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if call in ("eval", "exec", "compile", "__import__"):
            found.append(ast.unparse(node))
        if call == "torch.load" and options.get("weights_only") != "True":
            found.append(ast.unparse(node))
        if options.get("allow_pickle", "False") != "False":
            found.append(ast.unparse(node))
        if call in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"):
            found.append(ast.unparse(node))
    return found


def test_unsafe_calls_are_noticed() -> None:
    bad = [
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p, allow_pickle=True)",
        "yaml.load(f)",
        "eval(text)",
        "import pickle",
        "from pickle import loads",
    ]
    good = ["torch.load(p, weights_only=True)", "np.load(p)", "network.eval()"]
    assert all(unsafe_calls(ast.parse(code)) for code in bad)
    assert not any(unsafe_calls(ast.parse(code)) for code in good)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_loads_code(path: Path) -> None:
    # The reader of published checkpoints subclasses the unpickler to look no name up;
    # tests/test_checkpoint.py holds it to that. The Ray executor's items go from its own driver to
    # its own workers, as Ray sends everything; no file is read so.
    allowed = ["import pickle"] if path.name in ("archive.py", "engine_ray.py") else []
    assert unsafe_calls(ast.parse(path.read_text(encoding="utf-8"))) == allowed


SHIPPED = sorted(path.parent for path in (ROOT / "pretrained").glob("*/config.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_shipped_models_are_complete(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the networks of the package
    kind = hub.read_config(path).kind
    model = load(path) if kind == "prior" else hub.load_regressor(path)
    network = model.denoise if isinstance(model, hub.Prior) else model.regress
    assert isinstance(network, torch.nn.Module)
    info = model.info
    assert info.name == path.name
    assert info.stems == STEMS
    assert info.summary
    assert info.licence
    assert info.score
    assert info.parameters == sum(p.numel() for p in network.parameters())
    assert (path / info.config["weights"]["file"]).stat().st_size < 95e6
    card = (path / hub.CARD).read_text(encoding="utf-8")
    assert info.licence in card
    assert str(info.sample_rate) in card.replace(" ", "").replace(",", "")
    x = torch.zeros(1, len(info.stems), info.sample_rate // 4)
    if isinstance(model, hub.Prior):
        low, high = torch.tensor([model.sigma_min]), torch.tensor([model.sigma_max])
        outs = [network(x, low), network(x, high)]
    else:
        outs = [network(x.sum(1, keepdim=True), x, torch.zeros(x.shape[:2], dtype=torch.bool))]
    for out in outs:
        assert out.shape == x.shape
        assert out.isfinite().all()


@pytest.mark.skipif(not SHIPPED, reason="no model is shipped yet")
def test_the_default_model_is_shipped() -> None:
    assert "default" in [path.name for path in SHIPPED]
