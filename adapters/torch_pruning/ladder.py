"""The order in which units of a step's groups go as the ratio rises."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from de_plugin.adapters.torch_pruning.entries import Entry, counts, rounded
from de_plugin.types import Mask


@dataclass(frozen=True)
class Ladder:
    """The order in which a step's units go as the ratio rises, and how many may.

    Attributes:
        order: units, those that go first in front.
        low: so many go at any ratio: heads, and layers with ratios of their own.
        high: so many may go.
        found: the groups.
        round_to: channels that are left of a group are a multiple of this.
    """

    order: Tensor
    low: int
    high: int
    found: list[Entry]
    round_to: int

    @staticmethod
    def of(pruner: Any, found: list[Entry], must_stay: Mask, scores: Tensor) -> Ladder:
        """Return the order by scores within scopes, and by the host's ratio between them.

        The host takes the j-th of a scope's units once the ratio is above ``1 - (now - j + 1) / first``.

        Args:
            pruner: asks for `found`.
            found: the groups.
            must_stay: units that never go.
            scores: of all units; the lowest go first.
        """
        ratios = torch.full((len(scores),), math.inf, dtype=torch.float64)
        places = spans(found)
        for scope, fixed in counts(pruner, found).items():
            mine = torch.cat([_range(s) for e, s in zip(found, places, strict=True) if e.scope == scope])
            free = mine[~must_stay[mine]]
            free = free[scores[free].argsort(stable=True)]
            if _has_ratio(scope, found):
                ratios[free[:fixed]] = -1
                ratios[free[fixed:]] = 2
            else:
                first = pruner._scope_initial_channels.setdefault(scope, len(mine))
                ratios[free] = 1 - (len(mine) - torch.arange(len(free), dtype=torch.float64)) / first
        order = scores.argsort(stable=True)
        order = order[ratios[order].argsort(stable=True)][: int(ratios.isfinite().sum())]
        low, high = int((ratios == -1).sum()), int((ratios < 2).sum())
        return Ladder(order, low, high, found, pruner.round_to or 1)

    def kept(self, count: int) -> Mask:
        """Return what is left when the first `count` go, and with them what rounding takes."""
        places = spans(self.found)
        mask = torch.ones(places[-1].stop if places else 0, dtype=torch.bool)
        mask[self.order[:count]] = False
        if self.round_to == 1:
            return mask
        for entry, span in zip(self.found, places, strict=True):
            left = rounded(entry, int(mask[span].sum()), self.round_to)
            mine = self.order[(self.order >= span.start) & (self.order < span.stop)]
            mask[span] = True
            mask[mine[: entry.coupling.count - left]] = False
        return mask


def rounded_choice(found: list[Entry], kept: Mask, scores: Tensor, must_stay: Mask, round_to: int) -> Mask:
    """Return a choice with what rounding takes, or gives back, of each group: the lowest scores go.

    Groups that are ranked alone have a rounded count from the outset.
    """
    mask, scopes = kept.clone(), [entry.scope for entry in found]
    for entry, span in zip(found, spans(found), strict=True):
        if scopes.count(entry.scope) == 1:
            continue
        left = rounded(entry, int(kept[span].sum()), round_to)
        order = scores[span].argsort(stable=True)
        order = order[(kept[span].long() + 2 * must_stay[span].long())[order].argsort(stable=True)]
        mask[span] = True
        mask[span.start + order[: entry.coupling.count - left]] = False
    return mask


def begins(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Return the first number from `low` to `high` at which a condition begins to hold, or ``high + 1``."""
    while low <= high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle - 1
        else:
            low = middle + 1
    return low


def gone_of(found: list[Entry], kept: Mask) -> dict[str, int]:
    """Return how many units of each scope are not kept."""
    result = dict.fromkeys((entry.scope for entry in found), 0)
    for entry, span in zip(found, spans(found), strict=True):
        result[entry.scope] += int((~kept[span]).sum())
    return result


def kept_of(found: list[Entry], taken: dict[Any, list[int]]) -> Mask:
    """Return which units are left when some channels of the groups' roots go, by the groups' keys."""
    result = torch.ones(sum(entry.coupling.count for entry in found), dtype=torch.bool)
    for entry, span in zip(found, spans(found), strict=True):
        place = {int(channel): n for n, channel in enumerate(entry.group[0].idxs)}
        gone = torch.tensor(
            [place[int(n)] for n in taken.get(entry.key, ()) if int(n) in place], dtype=torch.long
        )
        width = len(place) // entry.heads if entry.heads else 0
        result[span.start + (gone // width if entry.heads else gone % entry.coupling.count)] = False
    return result


def ratio_of(pruner: Any, found: list[Entry], kept: Mask) -> float:
    """Return which share of their first channels the scopes without ratios of their own have lost then."""
    free = {scope: n for scope, n in gone_of(found, kept).items() if not _has_ratio(scope, found)}
    total = {s: sum(e.coupling.count for e in found if e.scope == s) for s in free}
    firsts = sum(pruner._scope_initial_channels[scope] for scope in free)
    return 1 - sum(total[scope] - n for scope, n in free.items()) / firsts if firsts else 0.0


def spans(found: list[Entry]) -> list[slice]:
    """Return the place of each group's units among all."""
    result, start = [], 0
    for entry in found:
        result.append(slice(start, start + entry.coupling.count))
        start += entry.coupling.count
    return result


def _range(span: slice) -> Tensor:
    return torch.arange(span.start, span.stop)


def _has_ratio(scope: str, found: list[Entry]) -> bool:
    """Tell whether a scope's ratio is given: the host's name of such a scope, or heads."""
    return scope.startswith("_User_Defined_Scope_") or any(e.heads for e in found if e.scope == scope)
