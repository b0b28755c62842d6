"""Entropy-constrained levels: a uniform step, a dead zone, centroids, and a price on every bit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from de_plugin.encode.quantized import Quantized
from de_plugin.errors import ArgumentError
from de_plugin.quantize.codebook import register
from de_plugin.quantize.scalar import Scalar
from de_plugin.quantize.survivors import Floats, Ints, Survivors, rounded
from de_plugin.quantize.uniform import Uniform

HIGH_RATE = math.log(2) / 6
"""The price at which error and bits balance: D = step²/12, R = h - log2(step), -dD/dR = step² ln 2 / 6."""

_LARGEST = 1 << 15  # symbols of a step that is far too small


@register("entropy")
@dataclass(frozen=True)
class EntropyConstrained(Scalar):
    """Minimises weighted squared error + price x bits (ECSQ, Chou et al., IEEE Trans. ASSP 37, 1989).

    Each survivor gets, of its nearest multiple of the step, the next one towards zero, and zero, the one
    of least cost (the RDOQ of DeepCABAC, arXiv:1907.11900, sec. III-B). Bits are those of the empirical
    distribution over the whole tensor, pruned weights included, so that what joins them saves its place as
    well as its value. Then each level moves to the mean of its members, and all is repeated.

    Args:
        bits: at most ``2**bits`` levels; None with a `step`: as many as the step needs.
        levels: the number itself.
        axis: the dimension whose slices have levels of their own.
        step: distance of the levels before they move; None: the one that `Uniform` chooses.
        price: of a bit, in step² x mean importance; >= 0. The default is the optimum at high rates.
        zeroing: weight of the bits that a place costs, >= 0; larger zeroes more survivors.
        centroids: whether levels move; where not, they remain multiples of the step.
        rounds: of assignment and moving, >= 1.

    Raises:
        ArgumentError: a number is out of range.
    """

    step: float | None = None
    price: float = HIGH_RATE
    zeroing: float = 1.0
    centroids: bool = True
    rounds: int = 6

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        super().__post_init__()
        if self.step is not None and not 0 < self.step < math.inf:
            raise ArgumentError(f"step={self.step}: expected a finite number > 0, or None")
        for name in ("price", "zeroing"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ArgumentError(f"{name}={getattr(self, name)}: expected a finite number >= 0")
        if self.rounds < 1:
            raise ArgumentError(f"rounds={self.rounds}: expected a positive number")

    @property
    def name(self) -> str:
        """Return "entropy"."""
        return "entropy"

    @property
    def zeroes(self) -> bool:
        """Return True."""
        return True

    def fit(self, weight: Tensor, kept: Tensor, importance: Tensor | None = None) -> Quantized:
        """Quantize one tensor, see `Codebook.fit`."""
        return self.of(Survivors.of(weight, kept, importance, self.axis))

    def of(self, survivors: Survivors) -> Quantized:
        """Quantize survivors that were taken out already, with ``survivors.axis`` for an axis."""
        steps, limit = self._steps(survivors)
        span = int(np.max(np.abs(survivors.values) / steps[survivors.group], initial=0.0) + 0.5)
        limit = min(limit, span)
        table = np.arange(-limit, limit + 1) * steps[:, None]
        symbols = self._assigned(survivors, steps, limit, table)
        if not self.centroids:
            return survivors.stepped(symbols, steps.astype(np.float32).astype(np.float64))
        return self._listed(survivors, symbols, table, limit)

    def _steps(self, survivors: Survivors) -> tuple[Floats, int]:
        """Return each group's step and the largest symbol."""
        unlimited = self.step is not None and self.bits is None and self.levels is None
        limit = _LARGEST if unlimited else (self.count - 1) // 2
        if self.step is not None:
            return np.full(survivors.groups, self.step), limit
        return Uniform(levels=2 * limit + 1).steps(survivors), limit

    def _assigned(self, survivors: Survivors, steps: Floats, limit: int, table: Floats) -> Ints:
        """Return each survivor's symbol; `table` (groups, 2 limit + 1) gets the levels."""
        values, group = survivors.values, survivors.group
        near = np.clip(np.rint(values / steps[group]), -limit, limit).astype(np.int64)
        towards = near - np.sign(near)
        at = group * table.shape[1] + limit
        price = self.price * float(np.mean(steps[group] ** 2)) if len(values) else 0.0
        importance, flat = survivors.importance, table.reshape(-1)
        to_zero = importance * values**2
        symbols = near
        for _ in range(self.rounds):
            bits = price * self._bits(symbols, limit, survivors.total)
            before, symbols = symbols, near
            least = importance * (values - flat[at + near]) ** 2 + bits[limit + near]
            cost = importance * (values - flat[at + towards]) ** 2 + bits[limit + towards]
            better = cost < least
            symbols = np.where(better, towards, symbols)
            zeroed = to_zero + bits[limit] < np.where(better, cost, least)
            symbols = np.where(zeroed, 0, symbols)
            if self.centroids:
                _move(table, survivors, at + symbols)
                table[:, limit] = 0.0
            if bool((symbols == before).all()):
                break
        return symbols

    def _bits(self, symbols: Ints, limit: int, total: int) -> Floats:
        """Return the bits of each symbol from ``-limit`` on: of its place, and of its value."""
        counts = np.bincount(symbols + limit, minlength=2 * limit + 1).astype(float)
        alive = len(symbols) - counts[limit]
        counts[limit] = 0.0
        value = np.log2(alive + 1.0) - np.log2(counts + 0.5)
        here = np.log2(total + 1.0) - math.log2(alive + 0.5)
        bits = value + self.zeroing * here
        bits[limit] = self.zeroing * (math.log2(total + 1.0) - math.log2(total - alive + 0.5))
        found: Floats = bits
        return found

    @staticmethod
    def _listed(survivors: Survivors, symbols: Ints, table: Floats, limit: int) -> Quantized:
        """Round the levels in use and number them anew, group by group."""
        result = np.zeros_like(symbols)
        tables, lowest = [], []
        for group in range(survivors.groups):
            mine = (survivors.group == group) & (symbols != 0)
            used, rank = np.unique(symbols[mine], return_inverse=True)
            levels = rounded(table[group, used + limit])
            if len(levels) != len(used):  # two became equal, or one zero
                rank = np.argmin(np.abs(levels - table[group, used + limit][:, None]), 1)[rank]
            below = int((levels < 0).sum())
            result[mine] = rank - below + (rank >= below)
            tables.append(np.insert(levels, below, 0.0))
            lowest.append(-below)
        return survivors.assembled(result, tables, lowest)


def _move(table: Floats, survivors: Survivors, at: Ints) -> None:
    """Move each level of the flat positions `at` to the weighted mean of its members."""
    flat = table.reshape(-1)
    mass = np.bincount(at, survivors.importance, len(flat))
    moment = np.bincount(at, survivors.importance * survivors.values, len(flat))
    np.divide(moment, mass, out=flat, where=mass > 0)
