"""Equal steps for most weights of a layer, and levels of their own for the few that lie far beyond them.

Transformers have single weights of a hundred times the usual size (arXiv:2208.07339, arXiv:2211.10438 tell of
the outputs that they make). Steps that reach them are too long for all others, and clipped they are the
largest error of the network.
"""

from __future__ import annotations

from collections.abc import Iterator
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

_WORTH = 0.5
"""Share of the error below which levels beyond are worth their bits."""

_SINGLE = 0.25
"""Share of the error that no single value should make."""

_FARTHEST = 256
"""Values that tell the levels beyond: these are for few."""


@dataclass(frozen=True, eq=False)
class Spread:
    """Values in ascending order, few for very many; the largest on both sides are all among them.

    Attributes:
        points: ``(n,)``.
        mass: how many values each stands for.
    """

    points: Floats
    mass: Floats

    @classmethod
    def of(cls, values: Floats) -> Spread:
        """Thin out the middle of very many values."""
        points = np.sort(values)
        if len(points) <= _POINTS:
            return cls(points, np.ones(len(points)))
        ends, stride = _POINTS // 8, -(-len(points) // _POINTS)
        thin = np.concatenate([points[:ends], points[ends:-ends:stride], points[-ends:]])
        mass = np.ones(len(thin))
        mass[ends:-ends] = (len(points) - 2 * ends) / (len(thin) - 2 * ends)
        return cls(thin, mass)


@dataclass(frozen=True)
class Ladder:
    """Levels ``-limit * step .. limit * step``, and others beyond.

    Attributes:
        step: > 0.
        limit: the largest multiple, >= 1.
        apart: levels beyond, ascending, each beyond the last step of its side.
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

    def moved(self, spread: Spread, step: float) -> Ladder:
        """Return the best levels of some values with another step, at most as many beyond."""
        return _best(spread, step, self.limit, len(self.apart))[0]

    def symbols(self, multiples: Tensor, beyond: Tensor) -> Tensor:
        """Return the symbols of multiples of the step and, where that is not zero, of a level beyond."""
        found = multiples.clone()
        low = sum(x < 0 for x in self.apart)
        for n, level in enumerate(self.apart):
            symbol = n - low - self.limit if level < 0 else n - low + 1 + self.limit
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

    def errors(self, points: Floats) -> Floats:
        """Return the squared error of each value at its nearest level."""
        edge = self.limit * self.step
        clipped = np.clip(np.rint(points / self.step), -self.limit, self.limit) * self.step
        errors: Floats = np.square(points - clipped)
        far = np.abs(points) > edge
        if self.apart and bool(far.any()):
            away = np.abs(points[far, None] - np.asarray(self.apart)).min(1)
            errors[far] = np.minimum(errors[far], np.square(away))
        return errors


def ladder(spread: Spread, start: float, count: int) -> Ladder:
    """Return equal steps, or others with levels beyond where these are worth their bits.

    They are where they halve the squared error, each value at its nearest level, or where one value alone
    makes a quarter of it and they lower it.

    Args:
        spread: the values.
        start: the step of least error where there is nothing beyond.
        count: of all levels, >= 3.
    """
    usual = Ladder(start, max(1, (count - 1) // 2))
    limits = [(limit, more) for more in _APART if (limit := (count - 1 - more) // 2) >= 1]
    steps = (start * 2.0 ** np.arange(-_FAR, _FAR + _STRIDE, _STRIDE)).astype(np.float32)
    tried = [_best(spread, float(step), limit, more) for limit, more in limits for step in steps]
    errors = usual.errors(spread.points)
    least = float(spread.mass @ errors)
    least *= _WORTH if float(errors.max(initial=0.0)) < _SINGLE * least else 1.0
    best, error = min(tried, key=lambda both: both[1], default=(usual, np.inf))
    return best if error < least else usual


def _best(spread: Spread, step: float, limit: int, count: int) -> tuple[Ladder, float]:
    """Return steps with the best of at most `count` levels beyond, and the squared error."""
    tried = (Ladder(step, limit, apart) for apart in _beyond(spread.points, limit * step, count))
    return min(((x, float(spread.mass @ x.errors(spread.points))) for x in tried), key=lambda both: both[1])


def _beyond(points: Floats, edge: float, count: int) -> Iterator[tuple[float, ...]]:
    """Yield no levels, and those of the few, more and many values farthest beyond an edge."""
    yield ()
    far = points[np.abs(points) > edge]
    far = far[np.argsort(-np.abs(far), kind="stable")[:_FARTHEST]]
    for number in dict.fromkeys(min(n, len(far)) for n in (count, 4 * count, _FARTHEST)):
        if number == 0 or count == 0:
            continue
        sides = [np.sort(side) for side in (far[:number][far[:number] < 0], far[:number][far[:number] > 0])]
        weights = [float(np.square(np.abs(side) - edge).sum()) for side in sides]
        first = round(count * weights[0] / max(sum(weights), 1e-300))
        if count > 1:  # none goes without
            first = min(max(first, int(len(sides[0]) > 0)), count - int(len(sides[1]) > 0))
        both = ((sides[0], first), (sides[1], count - first))
        levels = [partition(side, np.ones(len(side)), n) for side, n in both if n and len(side)]
        yield tuple(float(np.float32(x)) for x in np.concatenate(levels)) if levels else ()
