"""Import of published checkpoints: files of exactly their format, and files that lie."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from torch import Tensor

from mgdm_audio import hub, samplers
from mgdm_audio.archive import Archive, ArchiveError, Placeholder
from mgdm_audio.checkpoint import PREFIXES, import_checkpoints, read_checkpoint
from mgdm_audio.cli import cli
from mgdm_audio.draws import SeededDraws
from mgdm_audio.nn import build
from mgdm_audio.operators import Mixture
from mgdm_audio.samplers.base import Problem

KEYS = Path(__file__).parents[2] / "shared" / "reference" / "msdm_state_dict.tsv"
TINY: dict[str, Any] = {
    "channels": 64, "patch_factor": 16, "multipliers": [1, 1, 1], "factors": [4, 2],
    "num_blocks": [2, 2], "attentions": [False, True], "attention_heads": 2,
    "attention_features": 8, "attention_multiplier": 2, "resnet_groups": 8,
    "kernel_multiplier_downsample": 2,
}  # fmt: skip
RUNS = ("laced-dream-329", "ancient-voice-289", "honest-fog-332", "ruby-dew-290")


@pytest.fixture
def foreign() -> Iterator[dict[str, type]]:
    """Classes as the training had them, importable only while a file is written."""
    made: dict[str, type] = {}
    for module, name in (
        ("audio_diffusion_pytorch.diffusion", "LogNormalDistribution"),
        ("main.data", "MultiSourceDataset"),
        ("pytorch_lightning.utilities.parsing", "AttributeDict"),
        ("omegaconf.listconfig", "ListConfig"),
    ):
        base = dict if name == "AttributeDict" else object
        made[name] = type(name, (base,), {"__module__": module})
    saved = dict(sys.modules)
    for cls in made.values():
        parts = cls.__module__.split(".")
        for i in range(len(parts)):
            sys.modules[".".join(parts[: i + 1])] = types.ModuleType(".".join(parts[: i + 1]))
    for name, cls in made.items():
        setattr(sys.modules[cls.__module__], name, cls)
    yield made
    for key in set(sys.modules) - set(saved):
        del sys.modules[key]
    sys.modules.update(saved)


def weights(stems: int, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of a narrow network by published name, without prefix."""
    torch.manual_seed(seed)
    net = build("UNet1d", {"backbone": {**TINY, "in_channels": stems}})
    return {key.removeprefix("unet."): value for key, value in net.state_dict().items()}


def lightning(
    foreign: dict[str, type], tensors: dict[str, Tensor], stems: int, **hyper: Any
) -> dict[str, Any]:
    """The object that Lightning 1.7 saves for the published training."""
    state = torch.nn.Module().state_dict()  # an OrderedDict with _metadata
    for prefix in PREFIXES:
        for key, value in tensors.items():
            state[prefix + key] = value
    dataset = foreign["MultiSourceDataset"]()
    dataset.tracks = ["Track00001", "Track00002"]  # type: ignore[attr-defined]
    dataset.audio_files_dir = Path("data/slakh2100/train")  # type: ignore[attr-defined]
    distribution = foreign["LogNormalDistribution"]()
    distribution.__dict__.update(mean=-3.0, std=1.0)
    return {
        "epoch": 419,
        "global_step": 123_456,
        "pytorch-lightning_version": "1.7.7",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 420}}}},
        "hparams_name": "kwargs",
        "hyper_parameters": {
            "learning_rate": 1e-4, "beta1": 0.9, "beta2": 0.99, "in_channels": stems, **TINY,
            "patch_blocks": 1, "use_nearest_upsample": False, "use_skip_scale": True,
            "use_attention_bottleneck": True, "kernel_sizes_init": [1, 3, 7],
            "diffusion_sigma_distribution": distribution, "diffusion_sigma_data": 0.2,
            "diffusion_dynamic_threshold": 0.0, **hyper,
        },
        "datamodule_hparams_name": "kwargs",
        "datamodule_hyper_parameters": foreign["AttributeDict"](
            train_dataset=dataset, val_dataset=dataset, batch_size=8
        ),
    }  # fmt: skip


@pytest.fixture
def joint(tmp_path: Path, foreign: dict[str, type]) -> Path:
    path = tmp_path / "avid-darkness-164" / "epoch=419-valid_loss=0.014.ckpt"
    path.parent.mkdir()
    torch.save(lightning(foreign, weights(4), 4), path)
    return path


@pytest.fixture
def singles(tmp_path: Path, foreign: dict[str, type]) -> list[Path]:
    paths = []
    for seed, run in enumerate(RUNS):
        path = tmp_path / run / f"epoch={seed}.ckpt"
        path.parent.mkdir()
        torch.save(lightning(foreign, weights(1, seed), 1), path)
        paths.append(path)
    return paths


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any], foreign: dict[str, type]) -> None:
    content = lightning(foreign, weights(4), 4)
    change(content)
    torch.save(content, path)


# -- what works --------------------


def test_the_format_is_the_published_one(joint: Path) -> None:
    """Loading it plainly fails, as it does with the real files: its classes are not here."""
    with pytest.raises(pickle.UnpicklingError):
        torch.load(joint, weights_only=True)
    assert len(Archive(joint).content["state_dict"]) == 2 * len(weights(4))


def test_joint_checkpoint(joint: Path, tmp_path: Path) -> None:
    info, assumed = import_checkpoints([joint], tmp_path / "models" / "msdm")
    assert assumed == ()
    prior = hub.load(tmp_path / "models" / "msdm")
    loaded = prior.denoise.state_dict()
    assert {k.removeprefix("unet.") for k in loaded} == weights(4).keys()
    for key, value in weights(4).items():
        assert torch.equal(loaded[f"unet.{key}"], value), key
    assert (prior.name, prior.stems, prior.sample_rate) == ("msdm", hub_stems(), 22050)
    source = info.config["source"][0]
    assert source["run"] == "avid-darkness-164"
    assert source["epoch"] == 419
    written = {path.name for path in (tmp_path / "models" / "msdm").iterdir()}
    ignored = (tmp_path / "models" / "msdm" / ".gitignore").read_text()
    assert {line.removeprefix("/") for line in ignored.split()} == written
    card = (tmp_path / "models" / "msdm" / hub.CARD).read_text()
    assert source["sha256"] in card
    assert "Do not pass them on" in card


def hub_stems() -> tuple[str, ...]:
    return ("bass", "drums", "guitar", "piano")


def test_four_single_stem_checkpoints(singles: list[Path], tmp_path: Path) -> None:
    import_checkpoints(singles, tmp_path / "isdm")
    prior = hub.load(tmp_path / "isdm")
    x, sigma = torch.randn(1, 4, 1024), torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    out = prior.denoise(x, sigma)
    for k in range(4):
        single = build("UNet1d", {"backbone": {**TINY, "in_channels": 1}})
        single.load_state_dict({f"unet.{key}": v for key, v in weights(1, k).items()})
        assert torch.equal(out[:, k : k + 1], single(x[:, k : k + 1], sigma[:, k]))


@pytest.mark.parametrize(
    ("kind", "method", "settings"),
    [
        ("msdm", "msdm", {"preset": "paper", "levels": 20, "churn": 2.6}),
        ("msdm", "mgdm", {"steps": 5}),
        ("isdm", "isdm", {"preset": "paper", "levels": 20, "churn": 2.6}),
    ],
)
def test_samplers_run_on_imported_models(
    joint: Path,
    singles: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    method: str,
    settings: dict[str, Any],
) -> None:
    monkeypatch.setenv(hub.PATH_VARIABLE, str(tmp_path / "models"))
    import_checkpoints([joint] if kind == "msdm" else singles)
    prior = hub.load(kind)
    y = 0.1 * torch.randn(1, 1, 1024, generator=torch.Generator().manual_seed(0))
    stems = samplers.get(method, **settings).sample(
        prior.denoise, Problem(Mixture(), y, 0.0, (1, 4, 1024)), SeededDraws([1])
    )
    assert stems.shape == (1, 4, 1024)
    if method != "mgdm":
        # Up to the last move, which random weights make large.
        assert (stems.sum(1, keepdim=True) - y).abs().max() < 0.1


def test_command_line(joint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(hub.PATH_VARIABLE, str(tmp_path / "models"))
    run = CliRunner().invoke(cli, ["import-checkpoint", str(joint), "--level", "0.09"])
    assert run.exit_code == 0, run.output
    assert run.stdout.strip() == str(tmp_path / "models" / "msdm")
    assert hub.load("msdm").level == 0.09
    again = CliRunner().invoke(cli, ["import-checkpoint", str(joint)])
    assert again.exit_code == 1
    assert "--overwrite" in again.output
    run = CliRunner().invoke(cli, ["import-checkpoint", str(joint), "--overwrite"])
    assert run.exit_code == 0
    mix = 0.1 * np.random.default_rng(0).normal(size=4000)
    soundfile.write(tmp_path / "song.wav", mix, 22050, subtype="FLOAT")
    args = ["separate", str(tmp_path / "song.wav"), "-o", str(tmp_path / "out"), "--seed", "1"]
    run = CliRunner().invoke(cli, [*args, "--model", "msdm", "--method", "msdm"])
    assert run.exit_code == 0, run.output
    stems = [soundfile.read(tmp_path / "out/song" / f"{stem}.wav")[0] for stem in hub_stems()]
    assert np.abs(np.sum(stems, axis=0) - mix).max() < 1e-5


@pytest.mark.parametrize("name", ["model.safetensors", "README.md", ".gitignore", "config.json"])
def test_files_that_are_there_are_kept(joint: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("mine")
    with pytest.raises(FileExistsError, match=f"mine holds {name} already"):
        import_checkpoints([joint], tmp_path / "mine")
    assert [path.read_text() for path in (tmp_path / "mine").iterdir()] == ["mine"]


def test_a_model_in_the_working_folder_has_its_name(
    joint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    info, _ = import_checkpoints([joint], ".")
    assert info.name == "here"
    assert (tmp_path / "here" / hub.CARD).read_text().startswith("# here\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--level", "nan"], "level must be positive"),
        (["--level", "-1"], "level must be positive"),
        (["-o", "taken/model"], "taken is not a folder"),
    ],
)
def test_options_are_checked_before_anything_is_read(
    joint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.setenv(hub.PATH_VARIABLE, str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").touch()
    joint.write_text("no checkpoint, which would be told")
    run = CliRunner().invoke(cli, ["import-checkpoint", str(joint), *options])
    assert run.exit_code == 1
    assert message in run.output
    assert not (tmp_path / "models").exists()


def test_halves_are_stored_on_request(joint: Path, tmp_path: Path) -> None:
    import_checkpoints([joint], tmp_path / "msdm", dtype="float16")
    assert hub.read_config(tmp_path / "msdm").config["weights"]["dtype"] == "float16"


def test_containers_of_omegaconf_count_as_unstated(
    tmp_path: Path, foreign: dict[str, type]
) -> None:
    """Hydra passes lists in its own class; where it hides a width, the shapes tell."""
    path = tmp_path / "hidden.ckpt"
    content = lightning(foreign, weights(4), 4, multipliers=foreign["ListConfig"]())
    torch.save(content, path)
    with pytest.raises(hub.ModelError, match="build its network"):
        read_checkpoint(path)
    torch.save(lightning(foreign, weights(4), 4, resnet_groups=foreign["ListConfig"]()), path)
    assert read_checkpoint(path).assumed == ("resnet_groups",)


@pytest.mark.skipif(not KEYS.is_file(), reason="the list of published keys is not here")
@pytest.mark.parametrize(("stems", "column"), [(4, 1), (1, 2)])
def test_the_full_list_of_published_keys(
    tmp_path: Path, foreign: dict[str, type], stems: int, column: int
) -> None:
    """All 868 tensors at full width, each a view of one number: names and shapes in 1 MB."""
    rows = [line.split("\t") for line in KEYS.read_text().splitlines() if line[0] != "#"][1:]
    state = {row[0]: torch.zeros(1).expand(ast.literal_eval(row[column])) for row in rows}
    assert len(state) == 868
    content = lightning(foreign, {}, stems)
    content["state_dict"] = state
    content["hyper_parameters"] = {}
    torch.save(content, tmp_path / "full.ckpt")
    checkpoint = read_checkpoint(tmp_path / "full.ckpt")
    assert checkpoint.stems == stems
    assert "channels" in checkpoint.assumed
    assert sum(t.numel() for t in checkpoint.tensors.values()) == {
        4: 405_497_700, 1: 405_491_100
    }[stems]  # fmt: skip

    broken = dict(state)
    del broken["model.unet.to_time.0.0.weights"]
    content["state_dict"] = broken
    torch.save(content, tmp_path / "broken.ckpt")
    with pytest.raises(hub.ModelError, match=r"different keys: to_time\.0\.0\.weights"):
        read_checkpoint(tmp_path / "broken.ckpt")


# -- refusals: of what does not fit --------------------


def _drop(content: dict[str, Any]) -> None:
    for prefix in PREFIXES:
        del content["state_dict"][prefix + "to_time.0.1.bias"]


def _reshape(content: dict[str, Any]) -> None:
    for prefix in PREFIXES:
        content["state_dict"][prefix + "to_time.0.1.bias"] = torch.zeros(5)


def _extra(content: dict[str, Any]) -> None:
    for prefix in PREFIXES:
        content["state_dict"][prefix + "to_time.0.1.gain"] = torch.zeros(5)


def _differ(content: dict[str, Any]) -> None:
    content["state_dict"][PREFIXES[1] + "to_time.0.1.bias"] = torch.full((256,), 7.0)


def _hyper(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["hyper_parameters"].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop, r"missing: to_time\.0\.1\.bias"),
        (_extra, r"not in the network: to_time\.0\.1\.gain"),
        (_reshape, r"to_time\.0\.1\.bias is \(5,\), expected \(256,\)"),
        (_differ, r"to_time\.0\.1\.bias.*must be the same tensor"),
        (_hyper(use_skip_scale=False), "use_skip_scale = False"),
        (_hyper(diffusion_dynamic_threshold=0.5), "diffusion_dynamic_threshold = 0.5"),
        (_hyper(in_channels=1), "in_channels = 1"),
        (_hyper(channels=30), "build its network"),
        (lambda c: c["state_dict"].update({"ema.decay": torch.ones(1)}), r"keys.*ema\.decay"),
        (lambda c: c["state_dict"].update({PREFIXES[0] + "x": 3}), "is not a tensor"),
        (lambda c: c["state_dict"].update({PREFIXES[0] + "x": torch.ones(1).int()}), "floating"),
        (lambda c: c.update(state_dict={}), "no 'state_dict'"),
        (lambda c: c.update(state_dict={PREFIXES[0] + "x": torch.ones(1)}), "lacks"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, foreign: dict[str, type], change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    rewrite(tmp_path / "x.ckpt", change, foreign)
    with pytest.raises(hub.ModelError, match=message):
        read_checkpoint(tmp_path / "x.ckpt")


def test_wrong_number_or_order_of_files(
    joint: Path, singles: list[Path], tmp_path: Path, foreign: dict[str, type]
) -> None:
    target = tmp_path / "out"
    with pytest.raises(hub.ModelError, match="got 2 checkpoints"):
        import_checkpoints(singles[:2], target)
    with pytest.raises(hub.ModelError, match="network of 1 stems, expected 4"):
        import_checkpoints(singles[:1], target)
    with pytest.raises(hub.ModelError, match="prior of drums, but stands in the place of bass"):
        import_checkpoints([singles[1], singles[0], *singles[2:]], target)
    with pytest.raises(hub.ModelError, match="network of 4 stems, expected 1"):
        import_checkpoints([joint, *singles[1:]], target)
    assert not target.exists()


def test_weights_that_are_not_finite(tmp_path: Path, foreign: dict[str, type]) -> None:
    tensors = weights(4)
    tensors["to_time.0.1.bias"][3] = np.nan
    torch.save(lightning(foreign, tensors, 4), tmp_path / "nan.ckpt")
    with pytest.raises(hub.ModelError, match="NaN"):
        import_checkpoints([tmp_path / "nan.ckpt"], tmp_path / "out")
    assert not (tmp_path / "out" / hub.CONFIG).exists()


# -- refusals: of what is not to be trusted --------------------


class Bomb:
    """Pickles to a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("function", "place"),
    [
        (open, "top"), (os.mkdir, "hyper_parameters"), (exec, "state_dict"), (getattr, "top"),
        (subprocess.Popen, "deep"), (shutil.move, "deep"),
    ],
)  # fmt: skip
def test_a_call_in_the_pickle_is_refused_and_not_made(
    tmp_path: Path, foreign: dict[str, type], function: Any, place: str
) -> None:
    sentinel = tmp_path / "sentinel"
    args: tuple[Any, ...] = {
        open: (str(sentinel), "w"), exec: (f"open({str(sentinel)!r}, 'w')",),
        getattr: ("x", "upper"), subprocess.Popen: (["touch", str(sentinel)],),
        shutil.move: (str(tmp_path), str(sentinel)),
    }.get(function, (str(sentinel),))  # fmt: skip
    bomb = Bomb(function, *args)

    def change(content: dict[str, Any]) -> None:
        if place == "top":
            content["bomb"] = bomb
        elif place == "deep":
            content["datamodule_hyper_parameters"]["train_dataset"].tracks = [[{"a": bomb}]]
        else:
            content[place]["bomb"] = bomb

    rewrite(tmp_path / "bomb.ckpt", change, foreign)
    with pytest.raises(ArchiveError, match=r"nothing in it was run.*--skip"):
        read_checkpoint(tmp_path / "bomb.ckpt")
    assert not sentinel.exists()
    run = CliRunner().invoke(
        cli, ["import-checkpoint", str(tmp_path / "bomb.ckpt"), "-o", str(tmp_path / "model")]
    )
    assert run.exit_code == 1
    assert not (tmp_path / "model").exists()


def test_a_name_that_is_passed_over_is_not_called_either(
    tmp_path: Path, foreign: dict[str, type]
) -> None:
    sentinel = tmp_path / "sentinel"
    bomb = Bomb(os.mkdir, str(sentinel))
    rewrite(tmp_path / "bomb.ckpt", lambda c: c.update(bomb=bomb), foreign)
    archive = Archive(tmp_path / "bomb.ckpt", skip=[f"{os.mkdir.__module__}.mkdir"])
    assert isinstance(archive.content["bomb"], Placeholder)
    assert not sentinel.exists()


def test_a_library_name_is_never_looked_up(tmp_path: Path, foreign: dict[str, type]) -> None:
    """Names of libraries become placeholders, also those that would do harm."""
    sentinel = tmp_path / "sentinel.pt"
    bomb = Bomb(torch.save, 1, str(sentinel))
    rewrite(tmp_path / "bomb.ckpt", lambda c: c.update(bomb=bomb), foreign)
    read_checkpoint(tmp_path / "bomb.ckpt")
    assert not sentinel.exists()


def replace_entry(path: Path, name: str, data: bytes, compression: int = 0) -> None:
    """Writes the archive anew with one entry replaced."""
    with zipfile.ZipFile(path) as old:
        entries = {n: old.read(n) for n in old.namelist()}
    root = next(iter(entries)).split("/")[0]
    entries[f"{root}/{name}"] = data
    with zipfile.ZipFile(path, "w") as new:
        for entry, content in entries.items():
            kind = compression if entry.endswith(name) else zipfile.ZIP_STORED
            new.writestr(entry, content, compress_type=kind)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "pickle"),
        (b"\x80\x02}q\x00.junk", "no 'state_dict'"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", "memo index"),
        (b"\x80\x02\x82\x01.", "extension codes"),
        (b"\x80\x02(X\x05\x00\x00\x00otherQ.", "not a tensor"),
        (b"\x80\x02" + b"(" * 1000 + b"t.", "pickle"),
    ],
)
def test_pickles_that_lie(joint: Path, data: bytes, message: str) -> None:
    replace_entry(joint, "data.pkl", data)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(joint)


def test_archives_that_lie(joint: Path, tmp_path: Path) -> None:
    original = joint.read_bytes()
    replace_entry(joint, "data/0", b"\0" * 10)
    with pytest.raises(ArchiveError, match="does not fit its 10 bytes"):
        read_checkpoint(joint)
    joint.write_bytes(original)
    replace_entry(joint, "data/0", b"\0" * 10**6)
    with pytest.raises(ArchiveError, match="larger"):
        read_checkpoint(joint)
    joint.write_bytes(original)
    replace_entry(joint, "byteorder", b"big")
    with pytest.raises(ArchiveError, match="big-endian"):
        read_checkpoint(joint)
    joint.write_bytes(original)
    replace_entry(joint, "data.pkl", b"\0" * 10**6, zipfile.ZIP_DEFLATED)
    with pytest.raises(ArchiveError, match="compressed"):
        read_checkpoint(joint)
    joint.write_bytes(original[: len(original) // 2])
    with pytest.raises(ArchiveError, match="incomplete download"):
        read_checkpoint(joint)
    damaged = bytearray(original)
    damaged[len(original) // 2] ^= 255
    joint.write_bytes(damaged)
    with pytest.raises(ArchiveError, match="damaged"):
        read_checkpoint(joint)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("readme.txt", "hello")
    with pytest.raises(ArchiveError, match="zip archive, but not one"):
        read_checkpoint(tmp_path / "other.zip")
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "nothing.ckpt")
    (tmp_path / "text.ckpt").write_text(json.dumps({}))
    with pytest.raises(ArchiveError, match="not a checkpoint"):
        read_checkpoint(tmp_path / "text.ckpt")


def test_a_tensor_that_reaches_beyond_its_storage(joint: Path) -> None:
    record = next(iter(Archive(joint).content["state_dict"].values()))
    archive = Archive(joint)
    longer = type(record)(record.storage, 1, record.shape, record.stride)
    with pytest.raises(ArchiveError, match="does not fit"):
        archive.tensor(longer)


def test_a_tar_of_checkpoints_is_not_its_last_one(joint: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "msdm.tar", "w") as tar:
        tar.add(joint, "ckpts/one.ckpt")
    with pytest.raises(ArchiveError, match=r"msdm\.tar is a tar archive: unpack it and give"):
        read_checkpoint(tmp_path / "msdm.tar")
    (tmp_path / "more.ckpt").write_bytes(b"something" + joint.read_bytes())
    with pytest.raises(ArchiveError, match=r"more\.ckpt is not a checkpoint.*begin"):
        read_checkpoint(tmp_path / "more.ckpt")


def test_whatever_is_damaged_the_file_is_named(tmp_path: Path) -> None:
    """A byte of the directory: names that are no text, unknown features, places that are none."""
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": {"a": torch.ones(3)}}, path)
    original = path.read_bytes()
    begin, told = original.index(b"PK\x01\x02"), []
    for at in range(begin, len(original)):
        for value in (0xFF, original[at] ^ 8):
            path.write_bytes(original[:at] + bytes([value]) + original[at + 1 :])
            try:
                archive = Archive(path)
                archive.tensor(archive.content["state_dict"]["a"])
            except ArchiveError as error:
                told.append(str(error))
    assert len(told) > 100
    assert all(str(path) in message for message in told)
