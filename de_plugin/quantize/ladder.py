"""Equal steps for most weights of a layer, and levels of their own for the few that lie far beyond them.

Transformers have single weights of a hundred times the usual size (arXiv:2208.07339, arXiv:2211.10438 tell of
the outputs that they make). Steps that reach them are too long for all others, and clipped they are the
largest error of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from de_plugin.quantize.partition import partition
from de_plugin.quantize.survivors import Floats

_APART = (1, 3, 5)
"""How many levels may lie beyond the steps: what symmetric steps leave of a power of two."""

_STRIDE, _FAR = 0.25, 2.0
"""Octaves between two steps that are tried, and from the first at most."""

_POINTS = 1 << 15
"""Values that tell the steps: as many of equal distance in order, the largest among them."""

_FARTHEST = 256
"""Values that tell the levels beyond: these are for few."""


@dataclass(frozen=True)
class Ladder:
    """Levels ``-limit * step .. limit * step``, and others beyond.

    Attributes:
        step: > 0.
        limit: the largest multiple, >= 1.
        apart: levels beyond, ascending, no zero among them.
    """

    step: float
    limit: int
    apart: tuple[float, ...] = ()

    def beyond(self, weight: Tensor) -> Tensor:
        """Return the level beyond the steps of each weight that is nearer to one than to these, else 0."""
        if not self.apart:
            return torch.zeros_like(weight)
        levels = torch.tensor(self.apart, dtype=torch.float32, device=weight.device)
        near = levels[(weight[..., None] - levels).abs().argmin(-1)]
        edge = self.limit * self.step
        clipped = weight.clamp(-edge, edge)
        taken = (weight - near).abs() < (weight - clipped).abs()
        return torch.where(taken, near, torch.zeros_like(near))

    def moved(self, values: Sequence[float] | Floats, step: float) -> Ladder:
        """Return as many levels for another step.

        Args:
            values: of the whole layer, see `spread`.
            step: > 0.
        """
        return Ladder(step, self.limit, _clusters(np.asarray(values), self.limit * step, len(self.apart)))

    def symbols(self, multiples: Tensor, beyond: Tensor) -> Tensor:
        """Return the symbols of multiples of the step and, where that is not zero, of a level beyond."""
        found = multiples.clone()
        low = [x for x in self.apart if x < 0]
        for n, level in enumerate(self.apart):
            symbol = n - len(low) - self.limit if level < 0 else n - len(low) + 1 + self.limit
            found[beyond == torch.tensor(level, dtype=torch.float32)] = symbol
        return found

    def table(self) -> tuple[Tensor, int]:
        """Return all levels, float32 ascending, and the multiple that the first of them stands for.

        Levels beyond stand for multiples further than the limit, in their order.
        """
        steps = (
            torch.tensor(self.step, dtype=torch.float32) * torch.arange(-self.limit, self.limit + 1).float()
        )
        low = [x for x in self.apart if x < 0]
        high = [x for x in self.apart if x > 0]
        return torch.cat([torch.tensor(low), steps + 0.0, torch.tensor(high)]), -self.limit - len(low)


def spread(values: Floats) -> Floats:
    """Return values in ascending order, few of very many; the largest on both sides are all among them."""
    ordered = np.sort(values)
    if len(ordered) <= _POINTS:
        return ordered
    ends, stride = _POINTS // 8, -(-len(ordered) // _POINTS)
    found: Floats = np.concatenate([ordered[:ends], ordered[ends:-ends:stride], ordered[-ends:]])
    return found


def ladder(values: Floats, start: float, count: int) -> Ladder:
    """Return the levels of least squared error of some values, each rounded to the nearest.

    Args:
        values: not zero.
        start: step from which others are tried.
        count: of all levels, >= 3.
    """
    points = spread(values)
    mass = np.ones(len(points))
    if len(points) < len(values):
        ends = _POINTS // 8
        mass[ends:-ends] = (len(values) - 2 * ends) / (len(points) - 2 * ends)
    best, least = Ladder(start, max(1, (count - 1) // 2)), np.inf
    for more in _APART:
        limit = (count - 1 - more) // 2
        if limit < 1:
            continue
        for octaves in np.arange(-_FAR, _FAR + _STRIDE, _STRIDE):
            step = float(np.float32(start * 2.0**octaves))
            tried = Ladder(step, limit, _clusters(points, limit * step, more))
            if (error := float(mass @ _errors(points, tried))) < least:
                best, least = tried, error
    return best


def _errors(points: Floats, tried: Ladder) -> Floats:
    """Return the squared error of each value at its nearest level."""
    edge = tried.limit * tried.step
    clipped = np.clip(np.rint(points / tried.step), -tried.limit, tried.limit) * tried.step
    errors = np.square(points - clipped)
    far = np.abs(points) > edge
    if tried.apart and bool(far.any()):
        away = np.abs(points[far, None] - np.asarray(tried.apart)).min(1)
        errors[far] = np.minimum(errors[far], np.square(away))
    found: Floats = errors
    return found


def _clusters(points: Floats, edge: float, count: int) -> tuple[float, ...]:
    """Return the best levels of the values farthest beyond an edge, float32 numbers."""
    far = points[np.abs(points) > edge]
    if len(far) == 0:
        return ()
    if len(far) > _FARTHEST:
        far = far[np.argsort(np.abs(far), kind="stable")[-_FARTHEST:]]
    far = np.sort(far)
    found = partition(far, np.ones(len(far)), count)
    return tuple(float(np.float32(x)) for x in found if abs(x) > edge)  # a mean of both sides is of no use
