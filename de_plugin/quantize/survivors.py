"""The survivors of a weight as plain vectors, and the way back to a tensor of symbols."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from de_plugin.encode.quantized import Quantized
from de_plugin.errors import ArgumentError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_FLOOR = 1e-6
"""Smallest importance, as a fraction of the mean: an error that costs nothing has no best level."""

_HALF = (2.0**-14, 65504.0)
"""The normal numbers of float16."""


@dataclass(frozen=True)
class Survivors:
    """What is left of a weight, in the order of the flattened tensor.

    Attributes:
        values: (n,), never zero.
        importance: (n,), > 0, of mean one.
        group: (n,), the group of each.
        groups: how many there are.
        places: (n,), positions in the flattened tensor.
        shape: of the tensor.
        axis: as in `Quantized`.
    """

    values: Floats
    importance: Floats
    group: Ints
    groups: int
    places: Ints
    shape: torch.Size
    axis: int | None

    @classmethod
    def of(cls, weight: Tensor, kept: Tensor, importance: Tensor | None, axis: int | None) -> Survivors:
        """Check the arguments of `Codebook.fit` and take the survivors out.

        Raises:
            ArgumentError: shapes differ, values are not finite, or there is no such axis.
        """
        if not weight.is_floating_point():
            raise ArgumentError(f"weight: got {weight.dtype}, expected floats")
        if kept.dtype != torch.bool or kept.shape != weight.shape:
            raise ArgumentError(
                f"kept: got {kept.dtype} {tuple(kept.shape)}, expected torch.bool {tuple(weight.shape)}"
            )
        if axis is not None and not 0 <= axis < weight.dim():
            raise ArgumentError(
                f"axis={axis}: the weight has {weight.dim()} dimensions; use None for one group, 0 for "
                "one a channel"
            )
        flat = weight.detach().cpu().double().reshape(-1)
        alive = kept.detach().cpu().reshape(-1) & (flat != 0)
        places = alive.nonzero()[:, 0]
        values = flat[places]
        if not bool(torch.isfinite(values).all()):
            raise ArgumentError("weight: holds NaN or infinite values; only finite ones have levels")
        group = torch.zeros(len(places), dtype=torch.long)
        if axis is not None:
            behind = int(np.prod(weight.shape[axis + 1 :]))
            group = places // max(1, behind) % weight.shape[axis]
        return cls(
            values.numpy(),
            _importance(importance, weight.shape, places),
            group.numpy(),
            1 if axis is None else weight.shape[axis],
            places.numpy(),
            weight.shape,
            axis,
        )

    @property
    def total(self) -> int:
        """Number of weights, pruned ones included."""
        return self.shape.numel()

    def assembled(self, symbols: Ints, tables: list[Floats], lowest: list[int]) -> Quantized:
        """Return the tensor of symbols.

        Args:
            symbols: (n,).
            tables: a group's levels in ascending symbols, zero for symbol 0.
            lowest: the symbol of the first level of each group's table.
        """
        low = min(lowest, default=0)
        high = max((at + len(t) - 1 for at, t in zip(lowest, tables, strict=True)), default=0)
        levels = torch.zeros(self.groups, high - low + 1)
        for row, at, table in zip(levels, lowest, tables, strict=True):
            row[at - low : at - low + len(table)] = torch.from_numpy(table).float()
        return Quantized(self._spread(symbols), levels, low, self.axis)

    def stepped(self, symbols: Ints, steps: Floats) -> Quantized:
        """Return the tensor of symbols whose levels are multiples of a step.

        Args:
            symbols: (n,).
            steps: (groups,); multiplied in float32.
        """
        low = int(symbols.min(initial=0))
        multiples = torch.arange(low, int(symbols.max(initial=0)) + 1).float()
        levels = torch.from_numpy(steps).float()[:, None] * multiples
        return Quantized(self._spread(symbols), levels + 0.0, low, self.axis)

    def _spread(self, symbols: Ints) -> Tensor:
        flat = torch.zeros(self.total, dtype=torch.int32)
        flat[torch.from_numpy(self.places)] = torch.from_numpy(symbols).int()
        return flat.reshape(self.shape)


def _importance(importance: Tensor | None, shape: torch.Size, places: Tensor) -> Floats:
    if importance is None:
        return np.ones(len(places))
    if importance.shape != shape:
        raise ArgumentError(f"importance: got {tuple(importance.shape)}, expected {tuple(shape)}")
    found: Floats = importance.detach().cpu().double().reshape(-1)[places].numpy()
    if not bool(np.isfinite(found).all()) or bool((found < 0).any()):
        raise ArgumentError("importance: expected finite numbers >= 0")
    mean = float(found.mean()) if len(found) else 0.0
    if mean <= 0:
        return np.ones(len(places))
    floored: Floats = np.maximum(found / mean, _FLOOR)
    return floored / float(floored.mean())


def rounded(levels: Floats) -> Floats:
    """Return levels that fit in two bytes, ascending and distinct, without zero.

    They are float16-exact where all of them are normal numbers there, else bfloat16-exact.
    """
    limit = float(torch.finfo(torch.float32).max)
    found: Floats = two_bytes(torch.from_numpy(np.clip(levels, -limit, limit)).float()).double().numpy()
    distinct: Floats = np.unique(found[found != 0])
    return distinct


def two_bytes(levels: Tensor) -> Tensor:
    """Return float32 levels rounded to float16 where all are normal numbers there, else to bfloat16."""
    size = levels[levels != 0].abs()
    half = size.numel() == 0 or bool((size >= _HALF[0]).all() and (size <= _HALF[1]).all())
    limit = torch.finfo(torch.bfloat16).max
    return levels.clamp(-limit, limit).to(torch.float16 if half else torch.bfloat16).float()


def condensed(values: Floats, importance: Floats, points: int) -> tuple[Floats, Floats]:
    """Return at most `points` weighted points that stand for many: ascending, empty bins left out.

    Values are gathered in bins, each at its weighted mean: sums of squares between points are exact, those
    within a bin are lost. Half of the borders are at equal distances, half have as many values between
    them, so that neither outliers nor a crowd share a wide bin.
    """
    if len(values) <= points:
        order = np.argsort(values, kind="stable")
        return values[order], importance[order]
    half = points // 2
    ranks = np.linspace(0, len(values) - 1, half + 1).astype(np.int64)[1:-1]
    crowded = np.sort(values)[ranks]
    borders = np.union1d(np.linspace(values.min(), values.max(), half + 1)[1:-1], crowded)
    bins = np.searchsorted(borders, values, side="right")
    mass = np.bincount(bins, importance, points)
    moment = np.bincount(bins, importance * values, points)
    full = mass > 0
    centres: Floats = moment[full] / mass[full]
    return centres, mass[full].astype(np.float64)
