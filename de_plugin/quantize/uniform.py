"""Uniform codebooks: multiples of one step, as many on both sides or as each side needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from de_plugin.encode.quantized import Quantized
from de_plugin.quantize.codebook import register
from de_plugin.quantize.scalar import Scalar
from de_plugin.quantize.survivors import Floats, Ints, Survivors, condensed

_POINTS = 4096
_FINE = 8  # steps tried an octave
_CLIPPED = 12  # tried below the step that clips nothing


@register("uniform")
@dataclass(frozen=True)
class Uniform(Scalar):
    """Multiples ``-n .. n`` of the step of least weighted squared error; the largest may be clipped."""

    @property
    def name(self) -> str:
        """Return "uniform"."""
        return "uniform"

    def fit(self, weight: Tensor, kept: Tensor, importance: Tensor | None = None) -> Quantized:
        """Quantize one tensor, see `Codebook.fit`."""
        survivors = Survivors.of(weight, kept, importance, self.axis)
        steps = self.steps(survivors)
        symbols = np.zeros(len(survivors.values), dtype=np.int64)
        for group in range(survivors.groups):
            mine = survivors.group == group
            if bool(mine.any()):
                symbols[mine] = self._symbols(survivors.values[mine], steps[group])
        return survivors.stepped(symbols, steps)

    def steps(self, survivors: Survivors) -> Floats:
        """Return the steps of least weighted squared error, (groups,), as float32; 1 for an empty group."""
        found = np.ones(survivors.groups)
        for group in range(survivors.groups):
            mine = survivors.group == group
            if bool(mine.any()):
                points = condensed(survivors.values[mine], survivors.importance[mine], _POINTS)
                found[group] = self._step(*points)
        return found

    def _step(self, values: Floats, importance: Floats) -> float:
        """Return the best of a grid of steps and of the steps refitted to the symbols that each gives."""
        largest = float(np.abs(values).max())
        tries = _CLIPPED + math.ceil(_FINE * math.log2(max(2, self.count - 1)))
        steps = largest * 2.0 ** (-np.arange(tries + 1.0) / _FINE)
        symbols = self._symbols(values, steps[:, None])
        refitted = (symbols * values) @ importance / (symbols**2 @ importance)
        steps = np.concatenate([steps, np.where(refitted > 0, refitted, steps)])
        symbols = np.concatenate([symbols, self._symbols(values, steps[len(symbols) :, None])])
        errors = ((values - steps[:, None] * symbols) / largest) ** 2 @ importance
        best = float(steps[int(np.argmin(errors))])
        return float(np.float32(max(best, float(np.finfo(np.float32).tiny))))

    def _symbols(self, values: Floats, step: Floats | float) -> Ints:
        """Return the nearest multiple of each value (n,), never zero; for steps (steps, 1) a row each."""
        low, high = self._range(values, np.asarray(step))
        nearest = np.clip(np.rint(values / step), low, high)
        return np.where(nearest == 0, np.sign(values), nearest).astype(np.int64)

    def _range(self, values: Floats, step: Floats) -> tuple[Floats, Floats]:
        """Return the lowest and the highest multiple that may be used, each of the shape of `step`."""
        most = np.full(step.shape, float((self.count - 1) // 2))
        return -most, most


@register("affine")
@dataclass(frozen=True)
class Affine(Uniform):
    """Multiples of a step from a lowest to a highest one, zero among them: each side gets what it needs."""

    @property
    def name(self) -> str:
        """Return "affine"."""
        return "affine"

    def _range(self, values: Floats, step: Floats) -> tuple[Floats, Floats]:
        """Share the levels in proportion to the extent of both sides."""
        low = max(0.0, -float(values.min())) / step
        high = max(0.0, float(values.max())) / step
        room = float(self.count - 1)
        below = np.rint(room * low / (low + high))
        if bool((low > 0).any()) and bool((high > 0).any()):
            below = np.clip(below, 1.0, room - 1)
        return -below, room - below
