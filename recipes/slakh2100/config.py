"""Settings in YAML files: a name that is unknown or missing is an error."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import yaml

Kind = TypeVar("Kind")


def load(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ValueError: if the file is not YAML or holds no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold names and values, got {type(content).__name__}")
    return content


def fill(kind: type[Kind], values: dict[str, Any], path: Path) -> Kind:
    """A dataclass from values by name; lists become tuples.

    Raises:
        ValueError: if a name is unknown or missing, or a value is of the wrong kind.
    """
    # There is no public type for "a dataclass".
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := set(values) - set(fields):
        raise ValueError(
            f"{path}: unknown settings {', '.join(sorted(unknown))}; there are {', '.join(fields)}"
        )
    try:
        return kind(**{key: tuples(value) for key, value in values.items()})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def tuples(value: Any) -> Any:
    """A value with its lists as tuples, as settings of samplers are."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value
