"""What codebooks of scalar levels share: how many levels, groups, and the nearest of a table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Integral

import numpy as np
from torch import Tensor

from de_plugin.encode.quantized import Quantized
from de_plugin.errors import ArgumentError
from de_plugin.quantize.survivors import Floats, Ints, Survivors, rounded

_BITS = 4


@dataclass(frozen=True)
class Scalar(ABC):
    """A codebook with a bounded number of levels, zero among them.

    Args:
        bits: at most ``2**bits`` levels, 2 to 8; default 4.
        levels: the number itself, 3 to 256, in place of `bits`.
        axis: the dimension whose slices have levels of their own, 0 for channels; None: all share them.

    Raises:
        ArgumentError: a number is out of range, or both are given.
    """

    bits: int | None = None
    levels: int | None = None
    axis: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        who = type(self).__name__
        if self.bits is not None and self.levels is not None:
            raise ArgumentError(f"{who}(bits={self.bits}, levels={self.levels}): give one of them")
        for name, low, high in (("bits", 2, 8), ("levels", 3, 256)):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
                raise ArgumentError(f"{who}({name}={value!r}): expected a whole number from {low} to {high}")
        if self.axis is not None and (not isinstance(self.axis, Integral) or self.axis < 0):
            raise ArgumentError(f"{who}(axis={self.axis!r}): expected a dimension from 0 on, or None")

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name for tables."""

    @property
    def zeroes(self) -> bool:
        """Whether a survivor may become zero."""
        return False

    @property
    def count(self) -> int:
        """Number of levels, zero among them."""
        return self.levels if self.levels is not None else 2 ** (_BITS if self.bits is None else self.bits)

    @abstractmethod
    def fit(self, weight: Tensor, kept: Tensor, importance: Tensor | None = None) -> Quantized:
        """Quantize one tensor, see `Codebook.fit`."""


@dataclass(frozen=True)
class Table(Scalar):
    """A codebook whose levels are any numbers of two bytes; a survivor gets the nearest one."""

    @abstractmethod
    def _levels(self, values: Floats, importance: Floats) -> Floats:
        """Return the levels for one group of survivors, zero left out."""

    def fit(self, weight: Tensor, kept: Tensor, importance: Tensor | None = None) -> Quantized:
        """Quantize one tensor, see `Codebook.fit`."""
        survivors = Survivors.of(weight, kept, importance, self.axis)
        symbols = np.zeros(len(survivors.values), dtype=np.int64)
        tables, lowest = [], []
        for group in range(survivors.groups):
            mine = survivors.group == group
            values = survivors.values[mine]
            levels = np.zeros(0)
            if len(values):
                levels = rounded(self._levels(values, survivors.importance[mine]))
                symbols[mine], levels = nearest(values, levels)
            below = int((levels < 0).sum())
            tables.append(np.insert(levels, below, 0.0))
            lowest.append(-below)
        return survivors.assembled(symbols, tables, lowest)


def nearest(values: Floats, levels: Floats) -> tuple[Ints, Floats]:
    """Return the symbol of the nearest level for each value, and the levels that are used.

    Args:
        values: (n,).
        levels: ascending, without zero; symbols number them away from zero: -1 is the largest negative one.
    """
    chosen = np.searchsorted((levels[:-1] + levels[1:]) / 2, values, side="left")
    used, rank = np.unique(chosen, return_inverse=True)
    kept = levels[used]
    below = int((kept < 0).sum())
    numbers = np.arange(len(kept)) - below
    numbers[below:] += 1
    return numbers[rank], kept
