"""Rows of all seeds taken together: means, deviations, and which is best of those that are small enough."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from de_plugin.compare.comparison import Comparison
from de_plugin.compare.row import Row

TOLERANCE = 0.05
"""Models compete where they are at most by this share larger than the median of what was asked for alike."""


@dataclass(frozen=True)
class Figure:
    """A mean over seeds and its standard deviation, 0 for one seed."""

    mean: float
    deviation: float

    def text(self, digits: str) -> str:
        """Return "mean ± deviation" in a format such as ".2f"; of a "g" the deviation has two digits."""
        shown, spread = format(self.mean, digits), ".2g" if digits.endswith("g") else digits
        return f"{shown} ± {format(self.deviation, spread)}" if self.deviation else shown


@dataclass(frozen=True)
class Cell:
    """One method at one amount, over all seeds.

    Attributes:
        task: "weights", "channels" or "bits".
        host: whose method it is.
        method: its name.
        sparsity: what was asked for.
        rows: that have measurements.
        failed: rows that have none.
        competes: whether it is no larger than the others.
        best: which of "score" and "divergence" it is best in, of those that compete.
    """

    task: str
    host: str
    method: str
    sparsity: float
    rows: tuple[Row, ...]
    failed: tuple[Row, ...]
    competes: bool = False
    best: tuple[str, ...] = ()

    def value(self, name: str) -> Figure | None:
        """Return a measurement over the seeds; None where it is not known of all of them."""
        return _figure([getattr(row, name) for row in self.rows])


def _figure(values: Sequence[float | None]) -> Figure | None:
    known = [float(v) for v in values if v is not None]
    if not known or len(known) < len(values):
        return None
    return Figure(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else 0.0)


def cells(comparison: Comparison, task: str) -> list[Cell]:
    """Return the cells of a task: methods in the order of the rows, what was asked for ascending."""
    groups: dict[tuple[str, str, float], list[Row]] = {}
    for row in comparison.rows:
        if row.task == task:
            groups.setdefault((row.host, row.method, row.sparsity), []).append(row)
    methods = list(dict.fromkeys(key[:2] for key in groups))
    found = []
    for host, method, amount in sorted(groups, key=lambda k: (methods.index(k[:2]), k[2])):
        rows = groups[host, method, amount]
        good, bad = [r for r in rows if not r.failed], [r for r in rows if r.failed]
        found.append(Cell(task, host, method, amount, tuple(good), tuple(bad)))
    return _judged(found)


def _judged(found: list[Cell]) -> list[Cell]:
    """Tell which cells compete, and which are best."""
    result = dict(enumerate(found))
    for amount in sorted({c.sparsity for c in found}):
        numbers = [n for n, c in enumerate(found) if c.sparsity == amount and c.rows and not c.failed]
        sizes = {n: _size(found[n]) for n in numbers}
        known = [s for s in sizes.values() if s is not None]
        middle = statistics.median_low(known) if known else None
        competing = [n for n in numbers if middle is None or _fits(sizes[n], middle)]
        for n in competing:
            result[n] = _with(found[n], tuple(k for k in _MEASURES if _is_best(found, competing, n, k)))
    return [result[n] for n in range(len(found))]


_MEASURES = {"score": True, "divergence": False}
"""What cells are judged by, and whether more is better."""


def _with(cell: Cell, best: tuple[str, ...]) -> Cell:
    return Cell(cell.task, cell.host, cell.method, cell.sparsity, cell.rows, cell.failed, True, best)


def _size(cell: Cell) -> float | None:
    name = {"weights": "density", "channels": "macs", "bits": "bits"}[cell.task]
    value = cell.value(name)
    return None if value is None else value.mean


def _fits(size: float | None, middle: float) -> bool:
    return size is not None and size <= middle * (1 + TOLERANCE) + 1e-12


def _is_best(found: Sequence[Cell], competing: Sequence[int], number: int, name: str) -> bool:
    values = {n: found[n].value(name) for n in competing}
    known = [v.mean for v in values.values() if v is not None]
    own = values[number]
    if own is None or len(known) < 2:
        return False
    return own.mean == (max(known) if _MEASURES[name] else min(known))


def wins(comparison: Comparison, task: str, name: str) -> tuple[int, int]:
    """Return in how many amounts Directed Evolution or a hybrid of it is best, and of how many."""
    best = [c for c in cells(comparison, task) if name in c.best]
    amounts = sorted({c.sparsity for c in best})
    won = [a for a in amounts if all(is_ours(c.method) for c in best if c.sparsity == a)]
    return len(won), len(amounts)


def is_ours(method: str) -> bool:
    """Tell whether a method is Directed Evolution, alone or together with a criterion."""
    return re.search(r"\bde\b", method) is not None
