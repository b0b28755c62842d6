"""NNI's search spaces as vectors of genes: every parameter is a function of standard normal numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from de_plugin.adapters.nni.validation import check
from de_plugin.errors import ArgumentError

Genome = NDArray[np.float64]
Parameters = dict[str, Any]

_NORMAL = NormalDist()
_FAR = 6.0
"""Where a gene is put that stands for the end of a range."""

_MANY = 100_000
"""Spaces of more parameters than these are not listed."""


@dataclass(frozen=True)
class Space:
    """The parameters of a search space, nested choices included, and the genes that stand for them.

    Standard normal genes give parameters distributed as the search space says: numbers pass the normal
    distribution function (or its moments), a choice among ordered numbers does too, and one among other
    things takes the option with the largest gene.

    Args:
        entries: ``{name: {"_type": ..., "_value": [...]}}``, NNI's format.
    """

    entries: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Check the entries.

        Raises:
            ArgumentError: naming the parameter, what is wrong with it and what is expected.
        """
        if not isinstance(self.entries, Mapping) or not self.entries:
            raise ArgumentError(f"search space {self.entries!r}: expected a non-empty object of parameters")
        check(self.entries)

    @property
    def genes(self) -> int:
        """Length of a genome."""
        return _genes(self.entries)

    @property
    def discrete(self) -> list[slice]:
        """Where the genes of each choice and each randint lie in a genome."""
        found, at = [], 0
        for spec in _walk(self.entries):
            if spec["_type"] in ("choice", "randint"):
                found.append(slice(at, at + _width(spec)))
            at += _width(spec)
        return found

    def decode(self, genome: Genome) -> Parameters:
        """Return the parameters that a genome, ``(genes,)``, stands for."""
        return _decode(self.entries, iter(np.asarray(genome, dtype=np.float64).tolist()))

    def encode(self, parameters: Mapping[str, Any], base: Genome | None = None) -> Genome:
        """Return a genome, ``(genes,)``, that stands for the parameters.

        Args:
            parameters: as :meth:`decode` gives them.
            base: supplies the genes that are not determined: those of nested options not chosen.

        Raises:
            ArgumentError: a parameter is missing or lies outside the search space.
        """
        genes = np.zeros(self.genes) if base is None else np.asarray(base, dtype=np.float64).copy()
        _encode(self.entries, parameters, genes, 0)
        return genes

    def every(self) -> Iterator[Parameters]:
        """Yield all parameters of a space that has no continuous one and is small; nothing of another."""
        if _count(self.entries) <= _MANY:
            yield from _every(self.entries)


def _walk(entries: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for name, spec in entries.items():
        if name == "_name":
            continue
        yield spec
        for option in spec["_value"] if _nested(spec) else ():
            yield from _walk(option)


def _genes(entries: Mapping[str, Any]) -> int:
    return sum(_width(spec) for spec in _walk(entries))


def _nested(spec: Mapping[str, Any]) -> bool:
    return spec["_type"] == "choice" and any(isinstance(v, Mapping) for v in spec["_value"])


def _ordered(spec: Mapping[str, Any]) -> bool:
    values = spec["_value"]
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    return numbers and (values == sorted(values) or values == sorted(values, reverse=True))


def _width(spec: Mapping[str, Any]) -> int:
    return len(spec["_value"]) if spec["_type"] == "choice" and not _ordered(spec) else 1


def _decode(entries: Mapping[str, Any], genes: Iterator[float]) -> Parameters:
    result: Parameters = {}
    for name, spec in entries.items():
        if name == "_name":
            result[name] = spec
            continue
        values = spec["_value"]
        drawn = [next(genes) for _ in range(_width(spec))]
        if spec["_type"] != "choice":
            result[name] = _number(spec["_type"], values, drawn[0])
            continue
        index = (
            _slot(drawn[0], len(values)) if _ordered(spec) else max(range(len(drawn)), key=drawn.__getitem__)
        )
        if _nested(spec):  # the genes of all options follow, whichever is chosen
            result[name] = [_decode(option, genes) for option in values][index]
        else:
            result[name] = deepcopy(values[index])
    return result


def _slot(gene: float, count: int) -> int:
    return min(count - 1, int(_NORMAL.cdf(gene) * count))


def _number(kind: str, values: list[Any], gene: float) -> float | int:
    a, b = float(values[0]), float(values[1])
    if kind == "randint":
        low, high = math.ceil(a), math.ceil(b)
        return low + _slot(gene, high - low)
    if "normal" in kind:
        x = a + b * gene
        x = math.exp(min(x, 700.0)) if "log" in kind else x
        return round(x / values[2]) * float(values[2]) if kind.startswith("q") else x
    share = _NORMAL.cdf(gene)
    x = math.exp(math.log(a) + share * (math.log(b) - math.log(a))) if "log" in kind else a + share * (b - a)
    if kind.startswith("q"):
        steps = _steps(values)
        x = min(max(round(x / values[2]), steps.start), steps.stop - 1) * float(values[2])
    return min(max(x, a), b)


def _steps(values: list[Any]) -> range:
    """Return the multiples of the step that some number between the limits is rounded to."""
    first, last = values[0] / values[2], values[1] / values[2]
    return range(math.floor(first + 0.5), max(math.floor(first + 0.5), math.ceil(last - 0.5)) + 1)


def _encode(entries: Mapping[str, Any], parameters: Mapping[str, Any], genes: Genome, at: int) -> int:
    for name, spec in entries.items():
        if name == "_name":
            continue
        if not isinstance(parameters, Mapping) or name not in parameters:
            raise ArgumentError(f"parameters {parameters!r}: {name!r} is missing")
        value, values, width = parameters[name], spec["_value"], _width(spec)
        if spec["_type"] != "choice":
            genes[at] = _gene(name, spec["_type"], values, value)
            at += 1
            continue
        index = _index(name, spec, value)
        if _ordered(spec):
            genes[at] = _inverse((index + 0.5) / len(values))
        else:
            rest = np.delete(genes[at : at + width], index)
            genes[at + index] = max(genes[at + index], float(rest.max(initial=-1.0)) + 0.5)
        at += width
        for i, option in enumerate(values if _nested(spec) else ()):
            at = _encode(option, value, genes, at) if i == index else at + _genes(option)
    return at


def _index(name: str, spec: Mapping[str, Any], value: Any) -> int:
    values = spec["_value"]
    for i, option in enumerate(values):
        if _nested(spec):
            if isinstance(value, Mapping) and value.get("_name") == option["_name"]:
                return i
        elif option == value and isinstance(option, bool) == isinstance(value, bool):
            return i
    raise ArgumentError(f"{name}={value!r}: expected one of {values}")


def _gene(name: str, kind: str, values: list[Any], value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ArgumentError(f"{name}={value!r}: expected a number ({kind} {values})")
    a, b = float(values[0]), float(values[1])
    if kind == "randint":
        low, high = math.ceil(a), math.ceil(b)
        if value != int(value) or not low <= value < high:
            raise ArgumentError(f"{name}={value!r}: expected an integer in [{low}, {high})")
        return _inverse((value - low + 0.5) / (high - low))
    if "normal" in kind:
        step = float(values[2]) if kind.startswith("q") else 0.0
        x = max(float(value), step / 4 or 1e-300) if "log" in kind else float(value)
        return ((math.log(x) if "log" in kind else x) - a) / b
    if not a <= value <= b:
        raise ArgumentError(f"{name}={value!r}: expected a number in [{a}, {b}]")
    share = math.log(value / a) / math.log(b / a) if "log" in kind else (value - a) / (b - a)
    return _inverse(share)


def _inverse(share: float) -> float:
    if not 0.0 < share < 1.0:
        return -_FAR if share <= 0.0 else _FAR
    return _NORMAL.inv_cdf(share)


def _count(entries: Mapping[str, Any]) -> float:
    total = 1.0
    for name, spec in entries.items():
        if name == "_name":
            continue
        if _nested(spec):
            total *= sum(_count(option) for option in spec["_value"])
        else:
            slots = _slots(spec)
            total *= math.inf if slots is None else len(slots)
    return total


def _slots(spec: Mapping[str, Any]) -> range | None:
    """Return what numbers the values of a discrete range; None of a continuous or an endless one."""
    kind, values = spec["_type"], spec["_value"]
    if kind == "choice":
        return range(len(values))
    if kind == "randint":
        return range(math.ceil(float(values[0])), math.ceil(float(values[1])))
    if kind in ("quniform", "qloguniform"):
        return _steps(values)
    return None


def _every(entries: Mapping[str, Any]) -> Iterator[Parameters]:
    names, columns = list(entries), []
    for name in names:
        spec = entries[name]
        if name == "_name":
            columns.append([spec])
        elif _nested(spec):
            columns.append([p for option in spec["_value"] for p in _every(option)])
        else:
            columns.append([_at(spec, slot) for slot in _slots(spec) or ()])
    for row in product(*columns):
        yield dict(zip(names, row, strict=True))


def _at(spec: Mapping[str, Any], slot: int) -> Any:
    values = spec["_value"]
    if spec["_type"] == "choice":
        return deepcopy(values[slot])
    if spec["_type"] == "randint":
        return slot
    return min(max(slot * float(values[2]), float(values[0])), float(values[1]))
