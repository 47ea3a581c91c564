"""What is installed, shipped and promised in the README is there."""

from __future__ import annotations

import ast
import configparser
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mgdm_audio

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci" / "run"]


def tracked() -> list[Path]:
    """The files of the repository, or a skip where this is not one."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.split("\0") if name]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_every_package_is_installed() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    there = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "mgdm_audio").rglob("__init__.py")
    }
    assert there | {"mgdm_audio.pretrained"} == listed


def test_everything_imported_is_required() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    required = set(re.findall(r"^[a-z_]+", config["options"]["install_requires"], flags=re.M))
    imported = set()
    for path in (ROOT / "mgdm_audio").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    # Of the extras `app`, `catalogue` and `ray`, whose absence their commands say in a line.
    required |= {"gradio", "starlette", "fsspec", "pyarrow", "ray"}
    assert imported - set(sys.stdlib_module_names) - {"mgdm_audio"} <= required


def test_versions_agree() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {mgdm_audio.__version__}\n" in changes


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_scripts_parse(path: Path) -> None:
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    assert path.stat().st_mode & 0o111
    assert "set -euo pipefail" in path.read_text()
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_readme_commands_exist() -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    scripts = [line.split()[1] for line in lines if line.startswith("bash ")]
    assert scripts[:2] == ["scripts/example.sh", "scripts/test.sh"]
    assert all((ROOT / script).is_file() for script in scripts)
    assert "bash scripts/test.sh" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("code", blocks("python"))
def test_readme_python_parses_and_names_what_there_is(code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module == "mgdm_audio":
            assert {alias.name for alias in node.names} <= set(mgdm_audio.__all__)


def test_readme_links_to_files_that_exist() -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", README):
        file, _, anchor = target.partition("#")
        assert (ROOT / file).exists(), target
        if anchor:
            text = (ROOT / file).read_text(encoding="utf-8")
            titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles]


def test_no_path_of_a_developer_and_no_huge_file() -> None:
    places = re.compile(r"(?<![\w.])/(?:work|home|Users)/\w+")
    for path in tracked():
        if not path.is_file():
            continue
        assert path.stat().st_size < 95e6, path
        if path.suffix in (".py", ".sh", ".md", ".cfg", ".toml", ".json", ".yaml"):
            assert not places.search(path.read_text(encoding="utf-8")), path


def test_importing_the_package_is_cheap() -> None:
    code = (
        "import sys, mgdm_audio; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'librosa')))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


PROBE = {
    "format": 1,
    "name": "probe",
    "summary": "a model that is only listed",
    "network": {"class": "None", "args": {}},
    "sample_rate": 22050,
    "stems": ["bass"],
    "level": 0.1,
    "sigma_min": 0.001,
    "sigma_max": 1.0,
    "weights": {"file": "model.safetensors", "sha256": "0" * 64, "dtype": "float16"},
    "licence": "CC0-1.0",
    "score": {},
    "parameters": 0,
}


@pytest.mark.slow
def test_wheel_holds_models_and_finds_them(tmp_path: Path) -> None:
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True)
    # Any folder of pretrained/ is packed, without being listed anywhere.
    probe = source / "pretrained" / "probe"
    probe.mkdir()
    (probe / "config.json").write_text(json.dumps(PROBE))
    (probe / "model.safetensors").write_bytes(b"weights")
    (probe / "README.md").write_text("card")
    models = [path.parent.name for path in sorted((source / "pretrained").glob("*/config.json"))]
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "mgdm_audio/py.typed" in names
    for model in models:
        for file in ("config.json", "model.safetensors", "README.md"):
            assert f"mgdm_audio/pretrained/{model}/{file}" in names
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "-q", "--no-deps", "-t", str(site), str(wheel)], check=True)
    code = "from mgdm_audio import hub; print(hub.__file__, *(m.name for m in hub.models()))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == [str(site / "mgdm_audio" / "hub.py"), *models]
