"""What statistics are measured on: samples set apart for them, and moments a channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from de_plugin.assess.batches import Batch
from de_plugin.assess.layout import cat
from de_plugin.assess.problem import Problem


class Moments:
    """Mean and variance of every channel over all that was added (Chan et al. 1983, eq. 2.1)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self._squares = torch.zeros(())

    def add(self, values: Tensor, channel: int) -> Moments:
        """Add values whose dimension `channel` holds the channels; returns itself."""
        flat = values.detach().movedim(channel, 0).flatten(1).double()
        count = flat.shape[1]
        var, mean = torch.var_mean(flat, 1, correction=0)
        if self.count == 0:
            self.count, self.mean, self._squares = count, mean, var * count
            return self
        total = self.count + count
        shift = mean - self.mean
        self._squares = self._squares + var * count + shift.square() * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total
        return self

    def without(self, channels: Tensor) -> Moments:
        """Return the moments of all channels but some, int64."""
        result = Moments()
        kept = torch.ones(len(self.mean), dtype=torch.bool)
        kept[channels] = False
        result.count = self.count
        result.mean, result._squares = self.mean[kept], self._squares[kept]
        return result

    @property
    def var(self) -> Tensor:
        """Variance over all that was added, ``(channels,)``."""
        return self._squares / max(1, self.count)


def calibration(problem: Problem, samples: int) -> Tensor:
    """Return about `samples` samples of the search, the same ones at every call."""
    items = max(1, -(-samples * problem.pool.count // problem.pool.samples))
    order = torch.randperm(len(problem.search), generator=problem.generator(2))
    return problem.search[order[:items].sort().values]


def joined(batches: Sequence[Batch]) -> list[Batch]:
    """Return one batch where all can be joined along their samples, else the batches as they are.

    Statistics that depend on the statistics of earlier layers are exact in one joint pass only.
    """
    if len(batches) == 1:
        return list(batches)
    flat = [tree_flatten((b.inputs, b.labels, b.teacher)) for b in batches]
    first = flat[0][0]
    columns: list[Tensor | None] = []
    for column in zip(*(leaves for leaves, _ in flat), strict=False):
        if all(x is None for x in column):
            columns.append(None)
            continue
        fits = isinstance(column[0], Tensor) and all(
            isinstance(x, Tensor)
            and x.dim() > 0
            and x.shape[0] == b.size
            and x.shape[1:] == column[0].shape[1:]
            for x, b in zip(column, batches, strict=True)
        )
        if not fits:
            return list(batches)
        columns.append(cat([x for x in column if x is not None]))
    if len(columns) != len(first) or any(spec != flat[0][1] for _, spec in flat):
        return list(batches)
    inputs, labels, teacher = tree_unflatten(columns, flat[0][1])
    return [Batch(inputs, labels, teacher, sum(b.size for b in batches))]
