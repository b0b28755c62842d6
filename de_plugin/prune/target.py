"""How much must go and when: sparsity targets, their schedule over cycles, and the budget."""

from __future__ import annotations

import fnmatch
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Literal, SupportsFloat

import torch
from torch import Tensor

from de_plugin.assess.granularity import NM
from de_plugin.assess.problem import Problem
from de_plugin.errors import ArgumentError, SelectionError, TargetError

Scope = Literal["global", "layer"]


@dataclass(frozen=True)
class Budget:
    """What a search may cost; whatever runs out first ends it, with a whole result.

    Asked between generations, rounds and cycles, so what is under way is finished first.

    Attributes:
        evaluations: candidate sets measured, > 0, or None.
        seconds: wall-clock time, > 0, or None. A bound in seconds gives up reproducibility.
    """

    evaluations: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        """Refuse empty budgets."""
        for name in ("evaluations", "seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ArgumentError(f"Budget({name}={value}): expected a positive number or None")

    def spent(self, evaluations: int, started: float, share: float = 1.0) -> bool:
        """Tell whether the first `share` of it is used up; `started` is a `time.monotonic` reading."""
        return (self.evaluations is not None and evaluations >= share * self.evaluations) or (
            self.seconds is not None and time.monotonic() - started >= share * self.seconds
        )


def check_sparsity(value: SupportsFloat, argument: str = "sparsity") -> float:
    """Return `value`, a fraction in [0, 1).

    Raises:
        ArgumentError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < 1:
        hint = f"; for {value} % write {float(value) / 100}" if _percent(value) else ""
        raise ArgumentError(f"{argument}={value!r}: expected a fraction in [0, 1){hint}")
    return float(value)


def _percent(value: object) -> bool:
    return isinstance(value, Real) and 1 <= float(value) < 100


def totals(
    problem: Problem, sparsity: float | Mapping[str, float] | None, scope: Scope
) -> tuple[int, Tensor | None]:
    """Return how many units are zeroed in the end, and how many of each layer where that is fixed.

    Args:
        problem: whose units are counted.
        sparsity: a fraction of all units, a dict of name patterns to fractions (layers that no pattern
            names stay as they are), or None for the limit of an N:M pattern.
        scope: "global" lets the search find the allocation, "layer" gives every layer the same.

    Raises:
        ArgumentError: a fraction outside [0, 1) or an unknown scope.
        SelectionError: a pattern names no layer.
        TargetError: a layer or the model cannot lose so much.
    """
    units = problem.units
    nm = units.granularity if isinstance(units.granularity, NM) else None
    if scope not in ("global", "layer"):
        raise ArgumentError(f"scope={scope!r}: expected 'global' or 'layer'")
    if sparsity is None:
        if nm is None:
            raise ArgumentError("sparsity=None: only an N:M granularity has a sparsity of its own")
        sparsity = (nm.m - nm.n) / nm.m
    if isinstance(sparsity, Mapping):
        quota = _per_layer(problem, sparsity)
    elif scope == "layer":
        check_sparsity(sparsity)
        quota = torch.round(units.layer_counts * float(sparsity)).long()
    else:
        count = round(units.count * check_sparsity(sparsity))
        _check_room(problem, count, None)
        return count, None
    for number, layer in enumerate(units.layers):
        _check_room(problem, int(quota[number]), number, layer.name)
    return int(quota.sum()), quota


def _per_layer(problem: Problem, wanted: Mapping[str, float]) -> Tensor:
    if not wanted:
        raise ArgumentError("sparsity={}: expected at least one layer name pattern with a fraction")
    units = problem.units
    quota = (~problem.kept).new_zeros(len(units.layers), dtype=torch.long)
    for pattern, value in wanted.items():
        check_sparsity(value, f"sparsity[{pattern!r}]")
        hits = [
            n
            for n, layer in enumerate(units.layers)
            if any(
                fnmatch.fnmatchcase(name, pattern)
                for full in (layer.name, *layer.aliases)
                for name in (full, full.rpartition(".")[0])
            )
        ]
        if not hits:
            raise SelectionError(
                f"sparsity: {pattern!r} names no prunable layer; there are "
                f"{', '.join(layer.name for layer in units.layers)}"
            )
        for n in hits:
            quota[n] = round(float(value) * int(units.layer_counts[n]))
    return quota


def _check_room(problem: Problem, count: int, layer: int | None, name: str = "the model") -> None:
    free = ~problem.protected | ~problem.kept
    part = free if layer is None else free[problem.units.layer_of == layer]
    room = int(part.sum())
    nm = problem.units.granularity
    if isinstance(nm, NM):
        room = min(room, len(part) * (nm.m - nm.n) // nm.m)
    if count > room:
        raise TargetError(
            f"sparsity: {count} of {len(part)} units of {name} would have to go and only {room} may; "
            "lower the target, protect less, or choose another granularity"
        )


@dataclass(frozen=True)
class Schedule:
    """The way to the target.

    Attributes:
        cycles: DE cycles, >= 1.
        shape: "geometric" zeroes the same share of what is left each time, "cubic" goes fast first
            (Zhu and Gupta, arXiv:1710.01878), "linear" zeroes the same number each time.
        start: sparsity before which no intermediate stop is made, in [0, 1).
    """

    cycles: int = 10
    shape: Literal["geometric", "cubic", "linear"] = "geometric"
    start: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no schedule."""
        if self.cycles < 1:
            raise ArgumentError(f"cycles={self.cycles}: expected a positive number")
        if self.shape not in ("geometric", "cubic", "linear"):
            raise ArgumentError(f"shape={self.shape!r}: expected 'geometric', 'cubic' or 'linear'")
        check_sparsity(self.start, "start")

    def fractions(self, target: float, now: float = 0.0) -> list[float]:
        """Return the sparsity after each cycle; the last is `target`.

        >>> [round(x, 3) for x in Schedule(3).fractions(0.875)]
        [0.5, 0.75, 0.875]
        """
        begin = max(now, min(self.start, target))
        steps = range(1, self.cycles + 1)
        if self.shape == "geometric" and begin < 1:
            ratio = (1 - target) / (1 - begin)
            found = [1 - (1 - begin) * math.pow(ratio, i / self.cycles) for i in steps]
        elif self.shape == "cubic":
            found = [target + (begin - target) * (1 - i / self.cycles) ** 3 for i in steps]
        else:
            found = [begin + (target - begin) * i / self.cycles for i in steps]
        return [*found[:-1], target]
