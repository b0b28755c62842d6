"""Powers of two: levels that a shift can multiply with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from de_plugin.quantize.codebook import register
from de_plugin.quantize.scalar import Table
from de_plugin.quantize.survivors import Floats, condensed

_POINTS = 4096
_LOWER = 24  # octaves below the largest value at which the largest level may lie, for outliers' sake
_EXPONENTS = (-120, 120)


@register("power")
@dataclass(frozen=True)
class PowerOfTwo(Table):
    """Levels ``±2**e`` for consecutive e, the largest chosen for the least weighted squared error."""

    @property
    def name(self) -> str:
        """Return "power"."""
        return "power"

    def _levels(self, values: Floats, importance: Floats) -> Floats:
        points, mass = condensed(values, importance, _POINTS)
        top = math.ceil(math.log2(float(np.abs(points).max())))
        best, least = np.zeros(0), math.inf
        lowest = max(math.floor(math.log2(float(np.abs(points).min()))), top - _LOWER)
        for largest in range(top, lowest - 1, -1):
            exponents = np.arange(largest, largest - (self.count - 1) // 2, -1)
            positive = np.unique(2.0 ** np.clip(exponents, *_EXPONENTS))
            levels = np.concatenate([-positive[::-1], positive])
            chosen = np.searchsorted((levels[:-1] + levels[1:]) / 2, points)
            error = float(np.sum(mass * (points - levels[chosen]) ** 2))
            if error < least:
                best, least = levels, error
        return best
