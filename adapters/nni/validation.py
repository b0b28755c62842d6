"""What NNI's format of search spaces allows, and what is wrong with one that it does not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from de_plugin.errors import ArgumentError

_LENGTHS = {
    "randint": 2,
    "uniform": 2,
    "loguniform": 2,
    "normal": 2,
    "lognormal": 2,
    "quniform": 3,
    "qloguniform": 3,
    "qnormal": 3,
    "qlognormal": 3,
}


def check(entries: Mapping[str, Any], path: str = "") -> None:
    """Refuse entries of a search space that NNI's format does not allow.

    Args:
        entries: ``{name: {"_type": ..., "_value": [...]}}``.
        path: names of the choices that these are nested in, each with a slash behind it.

    Raises:
        ArgumentError: naming the parameter, what is wrong with it and what is expected.
    """
    for name, spec in entries.items():
        if path and name == "_name":
            continue
        where = f"search space {path + name!r}"
        if not isinstance(spec, Mapping) or "_type" not in spec or not isinstance(spec.get("_value"), list):
            raise ArgumentError(f'{where}: {spec!r}, expected {{"_type": ..., "_value": [...]}}')
        kind, values = spec["_type"], spec["_value"]
        if kind == "choice":
            _check_choice(where, f"{path}{name}/", values)
            continue
        if kind not in _LENGTHS:
            raise ArgumentError(f"{where}: type {kind!r}, expected choice or one of {', '.join(_LENGTHS)}")
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
        if len(values) != _LENGTHS[kind] or not numbers or not all(math.isfinite(v) for v in values):
            raise ArgumentError(f"{where}: {values}, expected {_LENGTHS[kind]} finite numbers for {kind}")
        _check_range(where, kind, values)


def _check_choice(where: str, path: str, values: list[Any]) -> None:
    if not values:
        raise ArgumentError(f"{where}: a choice among nothing, expected at least one option")
    if not any(isinstance(v, Mapping) for v in values):
        return
    for option in values:
        if not isinstance(option, Mapping) or "_name" not in option:
            raise ArgumentError(f'{where}: nested option {option!r}, expected an object with a "_name"')
        check(option, path)


def _check_range(where: str, kind: str, values: list[Any]) -> None:
    if "normal" in kind:
        if values[1] <= 0:
            raise ArgumentError(f"{where}: deviation {values[1]}, expected > 0")
    elif kind == "randint":
        if math.ceil(values[0]) >= math.ceil(values[1]):
            raise ArgumentError(f"{where}: [{values[0]}, {values[1]}) holds no integer, expected low < high")
    elif values[0] >= values[1]:
        raise ArgumentError(f"{where}: {values[0]} to {values[1]}, expected low < high")
    elif "log" in kind and values[0] <= 0:
        raise ArgumentError(f"{where}: low end {values[0]}, expected > 0 for {kind}")
    if kind.startswith("q") and values[2] <= 0:
        raise ArgumentError(f"{where}: step {values[2]}, expected > 0")
