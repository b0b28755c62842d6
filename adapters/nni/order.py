"""The order of removal: how many units of each target go as NNI counts them, and which, by a criterion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from de_plugin.adapters.nni.targets import Group
from de_plugin.assess.problem import Problem
from de_plugin.criteria import Criterion
from de_plugin.types import Mask

_LENGTHS = 12
"""Lengths of an order at which the divergence is measured, for a threshold."""
_ROUNDS = 3
"""Orders that are tried for a threshold: each is made for the count that the last one has reached."""
_MANY = 4096
"""So many units that have gone can come back: more than a search exchanges one by one."""


@dataclass(frozen=True)
class Removal:
    """What goes of a group.

    Attributes:
        gone: ``(units,)`` bool.
        metric: float32 ``(units,)``: what the host ranks by, lower for all that goes than for the rest.
    """

    gone: Tensor
    metric: Tensor


class Order:
    """Fixes counts where the host fixes them, lets the criterion find them where it does not.

    Ratios and dependency groups say how many go. In a global group a first search finds how many of each
    target; thresholds are divergences: as much goes as keeps the model's below them, smaller ones first.

    Args:
        problem: whose units are those of `groups`, in their order.
        groups: what is pruned.
        criterion: ranks units.
    """

    def __init__(self, problem: Problem, groups: Sequence[Group], criterion: Criterion) -> None:
        self.problem, self.groups, self.criterion = problem, groups, criterion
        starts = torch.tensor([0, *(g.count for g in groups)]).cumsum(0).tolist()
        self._at = [slice(a, b) for a, b in pairwise(starts)]
        self._cells = torch.tensor([0, *(g.parts for g in groups)]).cumsum(0).tolist()
        self._scores = torch.zeros(problem.units.count, dtype=torch.float64)
        self._free: Mask = torch.ones(problem.units.count, dtype=torch.bool)
        for at, group in zip(self._at, groups, strict=True):
            problem.kept[at] = ~group.removed

    def __call__(self) -> list[Removal]:
        """Return what goes of each group; `problem.kept` holds the same when done."""
        counts = [self._fixed(g) for g in self.groups]
        for number, count in enumerate(counts):
            if count is not None:
                self._revive([number], int(self.groups[number].removed.sum()) > count)
        spread = False
        for members in self._global():
            spread = self._allocate(members, counts) or spread
        done = spread and all(g.kind == "global" for g in self.groups) and len(self._global()) == 1
        if not done:
            self._choose(counts)
        for threshold in sorted({g.setting.sparse_threshold for g in self._of("threshold")}):
            self._below(float(threshold))
        return [self._removal(n) for n in range(len(self.groups))]

    def _of(self, kind: str) -> list[Group]:
        return [g for g in self.groups if g.kind == kind]

    def _global(self) -> list[list[int]]:
        found: dict[object, list[int]] = {}
        for number, group in enumerate(self.groups):
            if group.kind == "global":
                found.setdefault(group.setting.global_group_id, []).append(number)
        return list(found.values())

    # -- counts as the host has them -------------------------------------------------------------

    @staticmethod
    def _fixed(group: Group) -> int | None:
        ratio = group.setting.sparse_ratio
        if group.kind == "ratio":
            low, high = _bounds(group)
            return int(group.count * min(high, max(low, ratio)))
        if group.kind == "dependency":
            return group.parts * int(group.count // group.parts * ratio)
        return None

    def _revive(self, numbers: Sequence[int], too_many: bool) -> None:
        """Where more has gone than is to go, let the criterion choose among that."""
        for number in numbers:
            if too_many:
                at = self._at[number]
                self.problem.kept[at] = True
                self._free[at] = self.groups[number].removed

    def _allocate(self, members: list[int], counts: list[int | None]) -> bool:
        """Find how many units of each target of a global group go; tell whether those chosen can stay so."""
        problem, groups = self.problem, [self.groups[n] for n in members]
        ratio = next(g.setting.sparse_ratio for g in groups if g.setting.sparse_ratio is not None)
        budget = int(sum(g.count * g.grain for g in groups) * ratio)
        bounds = [_counts(g) for g in groups]
        least = sum(int(g.count * g.grain * _bounds(g)[0]) for g in groups)
        most = sum(int(g.count * g.grain * _bounds(g)[1]) for g in groups)
        if budget <= least or budget >= most:
            for n, group, (low, high) in zip(members, groups, bounds, strict=True):
                # Without a max_sparse_ratio the host takes none rather than all.
                count = low if budget <= least else high if group.setting.max_sparse_ratio else 0
                counts[n] = count
                self._revive([n], int(group.removed.sum()) > count)
            return False
        self._revive(members, sum(int(g.removed.sum()) * g.grain for g in groups) > budget)
        free = torch.zeros_like(self._free)
        for n in members:
            free[self._at[n]] = (self._free & problem.kept)[self._at[n]]
        gone = ~problem.kept
        held = sum(int(gone[self._at[n]].sum()) * self.groups[n].grain for n in members)
        average = sum(g.count * g.grain for g in groups) / sum(g.count for g in groups)
        count = min(int(free.sum()), int((budget - held) / average + 1e-9))
        order = self._order(free, count)
        taken = self._fill(order, members, bounds, budget)
        for n in members:
            counts[n] = int((taken | gone)[self._at[n]].sum())
        same = len({g.grain for g in groups}) == 1 and bool(taken[order[:count]].all())
        if same and int(taken.sum()) == count:
            problem.kept = problem.kept & ~taken
            return True
        return False

    def _fill(self, order: Tensor, members: list[int], bounds: list[tuple[int, int]], budget: int) -> Mask:
        """Take units in order while the budget lasts, but no fewer and no more of a target than allowed."""
        owner = torch.full((self.problem.units.count,), -1)
        for place, n in enumerate(members):
            owner[self._at[n]] = place
        have = [int((~self.problem.kept)[self._at[n]].sum()) for n in members]
        grains = [self.groups[n].grain for n in members]
        used = sum(h * g for h, g in zip(have, grains, strict=True))
        taken = torch.zeros_like(self._free)
        places = owner[order].tolist()
        for least in (True, False):
            for unit, place in zip(order.tolist(), places, strict=True):
                if taken[unit] or have[place] >= bounds[place][0 if least else 1]:
                    continue
                if not least and used + grains[place] > budget:
                    break
                taken[unit] = True
                have[place] += 1
                used += grains[place]
        return taken

    # -- choosing --------------------------------------------------------------------------------

    def _order(self, free: Mask, count: int) -> Tensor:
        """Return the free units, those that go first in front."""
        units = free.nonzero()[:, 0]
        if len(units) == 0:
            return units
        scores = self._asked(free, max(1, count))
        return units[scores[units].argsort(stable=True)]

    def _asked(self, free: Mask, count: int) -> Tensor:
        scores = self.criterion(self.problem, free, count).cpu().double()
        self._scores[free] = scores[free]
        return scores

    def _choose(self, counts: list[int | None]) -> None:
        """Choose jointly in all groups whose counts are known."""
        problem = self.problem
        quota = torch.zeros(len(problem.units.layers), dtype=torch.long)
        free = torch.zeros_like(self._free)
        for n, group in enumerate(self.groups):
            at, count = self._at[n], counts[n]
            if count is None:
                quota[self._cells[n]] = int((~problem.kept[at]).sum())
                continue
            quota[self._cells[n] : self._cells[n + 1]] = count // group.parts
            free[at] = self._free[at] & problem.kept[at]
            if count == 0:
                free[at] = False
        more = int(quota.sum()) - int((~problem.kept).sum())
        if more <= 0 or not bool(free.any()):
            return
        problem.quota = quota
        try:
            self._take(free, more, self._back(counts))
        finally:
            problem.quota = None

    def _back(self, counts: list[int | None]) -> Mask:
        """Return which units may come back, where counts are known: their weights are still there."""
        back = torch.zeros_like(self._free)
        for at, count in zip(self._at, counts, strict=True):
            if count:
                back[at] = self._free[at] & ~self.problem.kept[at]
        return back

    def _take(self, free: Mask, more: int, back: Mask) -> None:
        """Let `more` go. Where much has gone before, choose all of it anew as well; what is better stays.

        That is a choice as if all went at once: what a search has learnt of a small step may hold it there.
        """
        problem = self.problem
        before, many = problem.kept, int(back.sum())
        problem.kept = problem.select(self._asked(free, more), free, more)
        if many < _MANY:
            return
        grown, scores = problem.kept, self._scores.clone()
        problem.kept = before | back
        with problem.afresh():
            anew = problem.select(self._asked(free | back, more + many), free | back, more + many)
        problem.kept = anew
        was, now = problem.gate(torch.stack([grown, anew])).tolist()
        if not now < was:
            problem.kept, self._scores = grown, scores

    def _below(self, threshold: float) -> None:
        """Zero as much as keeps the divergence below a threshold, of the groups that have it."""
        problem = self.problem
        members = [
            n
            for n, g in enumerate(self.groups)
            if g.kind == "threshold" and g.setting.sparse_threshold == threshold
        ]
        bounds = [_counts(self.groups[n]) for n in members]
        free = torch.zeros_like(self._free)
        for n in members:
            free[self._at[n]] = problem.kept[self._at[n]]
        best, found, count = torch.zeros_like(free), -1, int(free.sum()) // 2
        for _ in range(_ROUNDS):
            order, least = self._within(self._order(free, count), members, bounds)
            length = self._longest(order, threshold, least)
            if length > found:
                best, found = torch.zeros_like(free), length
                best[order[:length]] = True
            if abs(length - count) <= max(1, count // 50):
                break
            count = max(1, length)
        problem.kept = problem.kept & ~best

    def _within(self, order: Tensor, members: list[int], bounds: list[tuple[int, int]]) -> tuple[Tensor, int]:
        """Return an order with what has to go in front and without what may not, and how much has to."""
        least = self._fill(order, members, [(lo, lo) for lo, _ in bounds], 1 << 62)
        most = self._fill(order, members, bounds, 1 << 62)
        first = least[order]
        return torch.cat([order[first], order[~first & most[order]]]), int(first.sum())

    def _longest(self, order: Tensor, threshold: float, low: int) -> int:
        """Return how much of an order can go, at least `low`, measured ever more finely."""
        problem, high = self.problem, len(order)
        while high > low:
            lengths = torch.linspace(low + 1, high, min(_LENGTHS, high - low)).round().long().unique()
            masks = problem.kept.repeat(len(lengths), 1)
            for mask, length in zip(masks, lengths.tolist(), strict=True):
                mask[order[:length]] = False
            fine = problem.assess(masks, problem.search) < threshold
            passed = int(fine.long().cumprod(0).sum())
            if passed == len(lengths):
                return high
            high = int(lengths[passed]) - 1
            low = int(lengths[passed - 1]) if passed else low
        return low

    # -- metrics ---------------------------------------------------------------------------------

    def _removal(self, number: int) -> Removal:
        group, at = self.groups[number], self._at[number]
        gone = ~self.problem.kept[at]
        before = gone & group.removed
        scores = self._scores[at].clone()
        scores[before] = float("-inf")
        metric = torch.empty(group.count)
        count = int(gone.sum())
        if count:
            metric[gone] = scores[gone].argsort(stable=True).argsort(stable=True).float() - count
        metric[~gone] = scores[~gone].argsort(stable=True).argsort(stable=True).float() + 1
        if group.kind == "global":
            metric[~gone] = 1.0  # the host's threshold then lies at what is kept, wherever it stops counting
        if group.kind == "threshold":
            metric += float(group.setting.sparse_threshold)
        return Removal(gone, metric)


def _bounds(group: Group) -> tuple[float, float]:
    """Return the smallest and largest share of a target that may go, as the host reads them."""
    return group.setting.min_sparse_ratio or 0.0, group.setting.max_sparse_ratio or 1.0


def _counts(group: Group) -> tuple[int, int]:
    """Return the same as numbers of units."""
    low, high = _bounds(group)
    return int(group.count * low), int(group.count * high)
