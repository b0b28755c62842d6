"""A comparison's options as a TOML file, which makes the same run again."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from de_plugin.errors import ArgumentError, FileError, MissingDependencyError

if sys.version_info >= (3, 11):
    import tomllib
else:
    try:
        import tomli as tomllib
    except ImportError as error:
        raise MissingDependencyError("--config needs tomli: pip install 'de_plugin[cli]'") from error


def read(path: Path, known: Sequence[str]) -> dict[str, Any]:
    """Return the options in a file.

    Args:
        path: the file.
        known: names of the options that there are.

    Raises:
        FileError: it cannot be read, or is no TOML.
        ArgumentError: it holds an option that is not known.
    """
    try:
        found: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"--config {path}: cannot be read ({error})") from error
    options = {name.replace("-", "_"): value for name, value in found.items()}
    for name in options:
        if name not in known:
            raise ArgumentError(
                f"--config {path}: {name!r} is no option; there are {', '.join(sorted(known))}"
            )
    return options


def written(options: Mapping[str, Any]) -> str:
    """Return options as TOML; those that are None are left out.

    >>> print(written({"model": "lenet5", "sparsity": [0.5, 0.9], "checkpoint": None}))
    model = "lenet5"
    sparsity = [0.5, 0.9]
    """
    return "\n".join(f"{name} = {_value(value)}" for name, value in options.items() if value is not None)


def _value(value: Any) -> str:
    """Return a value as TOML: strings, numbers and lists are written as in JSON, but for one character."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Path):
        value = str(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
