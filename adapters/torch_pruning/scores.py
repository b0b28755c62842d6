"""From an order of removal to scores on one scale: what each channel adds to the measured divergence."""

from __future__ import annotations

import torch
from torch import Tensor

from de_plugin.assess.problem import Problem
from de_plugin.types import Mask

_POINTS = 12
"""Lengths of the order at which the divergence is measured."""
_STEP = 1e-4
"""Neighbours in the order differ by at least this share of the mean."""


def costs(problem: Problem, order: Tensor, index: Tensor) -> Tensor:
    """Return what each unit of `order` adds when all before it are gone, ``(len(order),)`` float64.

    The divergence is measured at a few lengths of the order; between them every unit adds the same.
    The costs never fall along the order, are positive, and no two of them are alike.

    Args:
        problem: whose student is asked.
        order: units, those that go first in front.
        index: samples.
    """
    count = len(order)
    lengths = torch.linspace(0, count, min(_POINTS, count) + 1).round().long().unique()
    masks = problem.kept.repeat(len(lengths), 1)
    for mask, length in zip(masks, lengths.tolist(), strict=True):
        mask[order[:length]] = False
    values = problem.assess(masks, index)
    finite = torch.isfinite(values)
    ceiling = float(values[finite].max()) if bool(finite.any()) else 1.0
    values = torch.where(finite, values, 2 * abs(ceiling) + 1)
    slopes = values.diff() / lengths.diff()
    slopes = slopes.clamp_min(0).cummax(0).values
    each = torch.repeat_interleave(slopes, lengths.diff())
    scale = float(each.mean()) or 1.0
    return each + scale * _STEP * torch.arange(1, count + 1, dtype=torch.float64)


def order_of(scores: Tensor, free: Mask) -> Tensor:
    """Return the free units, lowest scores first, ties by number."""
    units = free.nonzero()[:, 0]
    return units[scores[units].argsort(stable=True)]
