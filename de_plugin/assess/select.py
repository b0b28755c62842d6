"""From scores to masks: the lowest-scoring units, under quotas a layer and N:M limits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from de_plugin.assess.units import ParameterUnits
from de_plugin.errors import ArgumentError, TargetError
from de_plugin.types import Mask, Masks


def lowest(
    units: ParameterUnits,
    scores: Tensor,
    eligible: Mask,
    count: int,
    kept: Mask,
    quota: Tensor | None = None,
    limit: tuple[int, int] | None = None,
) -> Masks:
    """Return what is kept when the `count` lowest-scoring eligible units are zeroed besides `~kept`.

    Args:
        units: whose layers the quota speaks of.
        scores: ``(..., units)``; +inf is never chosen, NaN is refused.
        eligible: ``(units,)``, what may be zeroed.
        count: how many more units go.
        kept: ``(units,)``, what is left now.
        quota: ``(layers,)``, how many units of each layer are zeroed in the end; overrides `count`.
        limit: ``(zeros, group)``: at most so many zeros in each run of `group` units.

    Raises:
        ArgumentError: scores have a wrong shape or hold NaN.
        TargetError: too few units may be zeroed.
    """
    if scores.shape[-1] != units.count:
        raise ArgumentError(f"scores: got {tuple(scores.shape)}, expected (..., {units.count})")
    if bool(torch.isnan(scores).any()):
        raise ArgumentError("scores: hold NaN; a criterion must give finite scores, or +inf for never")
    rows = scores.reshape(-1, units.count).masked_fill(~(eligible & kept), float("inf"))
    if limit is not None:
        rows = _within_limit(rows, kept, *limit)
    result = kept.expand(len(rows), -1).clone()
    if quota is None:
        _zero_lowest(rows, count, result, "the model")
    else:
        for number, layer in enumerate(units.layers):
            part = slice(layer.start, layer.stop)
            more = int(quota[number]) - int((~kept[part]).sum())
            _zero_lowest(rows[:, part], more, result[:, part], layer.name)
    return result.reshape(scores.shape)


def kth_lowest(values: Tensor, count: int) -> float:
    """Return the value number `count`, from 1, of ``(n,)`` in ascending order."""
    plain = values.detach().cpu().numpy()
    return float(np.partition(plain, count - 1)[count - 1])  # torch's takes three times the memory


def _zero_lowest(rows: Tensor, count: int, result: Tensor, where: str) -> None:
    """Clear in `result` the `count` lowest finite entries of each row; ties go by index."""
    if count <= 0:
        return
    available = int(torch.isfinite(rows).sum(-1).min())
    if count > available:
        raise TargetError(
            f"target: {count} more unit(s) of {where} must be zeroed and only {available} may be; lower "
            "the sparsity, protect fewer units, or widen include"
        )
    for row, kept in zip(rows, result, strict=True):
        threshold = kth_lowest(row, count)
        below = row < threshold
        ties = (row == threshold).nonzero()[:, 0]
        kept &= ~below
        kept[ties[: count - int(below.sum())]] = False


def _within_limit(rows: Tensor, kept: Mask, zeros: int, group: int) -> Tensor:
    """Rule out units whose group would get more than `zeros` zeros, the costlier ones first."""
    grouped = rows.reshape(len(rows), -1, group)
    rank = grouped.argsort(dim=-1, stable=True).argsort(dim=-1, stable=True)
    left = zeros - (~kept).reshape(-1, group).sum(-1)
    return grouped.masked_fill(rank >= left[None, :, None], float("inf")).reshape(rows.shape)
