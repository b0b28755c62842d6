"""How much goes in a step when MACs, parameters or a divergence are asked for in place of a ratio."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from de_plugin.adapters.torch_pruning.copies import plan
from de_plugin.adapters.torch_pruning.entries import Entry, entries
from de_plugin.adapters.torch_pruning.ladder import Ladder, begins, gone_of, spans
from de_plugin.adapters.torch_pruning.sizes import Size
from de_plugin.errors import ArgumentError, DEWarning, TargetError
from de_plugin.types import Mask

SEARCHES = 3
"""A step searches at most this often: what goes decides how much has to."""
SAMPLES = 512
"""Search samples on which a divergence is looked for; the data held back decide."""
_OUT_OF_REACH = (
    "max_pruning_ratio, ignored_layers, round_to and ratios of single layers leave no more to remove"
)


@dataclass(frozen=True)
class Target:
    """What is asked for.

    Attributes:
        name: ``target_macs``, ``target_params`` or ``max_divergence``.
        value: a fraction of what the network has at first, or a number; or a divergence.
    """

    name: str
    value: float

    @property
    def sized(self) -> bool:
        """Whether it is a size, which needs no data."""
        return self.name != "max_divergence"

    def resolved(self, pruner: Any) -> Target:
        """Return the target as a number that a pruner's last step can reach.

        Args:
            pruner: with its model in eval mode, as it is at first.

        Raises:
            ArgumentError: the network is as small already, or its MACs cannot be counted.
            TargetError: it cannot become as small.
        """
        if not self.sized:
            return self
        step, pruner.current_step = pruner.current_step, pruner.iterative_steps
        try:
            found = list(entries(pruner))
            units = sum(entry.coupling.count for entry in found)
            size = pruner._size(pruner.model, plan(pruner.model, found), units)
            return self._reached(pruner, found, size)
        finally:
            pruner.current_step = step

    def _reached(self, pruner: Any, found: list[Entry], size: Size) -> Target:
        now = size(self.name)
        goal = self.value * now if self.value < 1 else self.value
        if goal >= now:
            raise ArgumentError(
                f"{self.name}={self.value:g}: the network has {now:.0f} already, so that nothing would be "
                "pruned; give a smaller number, or a fraction below 1"
            )
        must_stay = torch.zeros(sum(entry.coupling.count for entry in found), dtype=torch.bool)
        for entry, span in zip(found, spans(found), strict=True):
            must_stay[span.start : span.start + entry.least] = True
        ladder = Ladder.of(pruner, found, must_stay, torch.zeros(len(must_stay)))
        lowest = size(self.name, ladder.kept(ladder.high))
        if lowest > goal:
            raise TargetError(
                f"{self.name}={self.value:g}: {goal:.0f} of {now:.0f} cannot be reached, the lowest is "
                f"{lowest:.0f} ({lowest / now:.4g} of the network), as {_OUT_OF_REACH}; raise the target or "
                "loosen one of them"
            )
        return replace(self, value=goal)


def share_of(pruner: Any) -> float:
    """Return which share of the way that is left the host's schedule goes in this step."""
    way = [float(x) for x in pruner.iterative_pruning_ratio_scheduler(1.0, pruner.iterative_steps)]
    now, last, end = way[pruner.current_step], way[pruner.current_step - 1], way[pruner.iterative_steps]
    return min(1.0, max(0.0, (now - last) / (end - last))) if end > last else 1.0


@dataclass
class Aim:
    """Brings one step to its target.

    Args:
        target: a number, see `Target.resolved`.
        share: of the way that is left.
        ladder: makes the order of units from scores.
        size: counts the network.
        search: ``fn(gone, scores) -> scores`` searches with so many units of each scope gone.
        estimate: divergence of what is kept, on search data.
        settled: the same on the data held back, with all that follows the cut done for good.
    """

    target: Target
    share: float
    ladder: Callable[[Tensor], Ladder]
    size: Size
    search: Callable[[dict[str, int], Tensor], Tensor]
    estimate: Callable[[Mask], float]
    settled: Callable[[Mask], float]

    def __call__(self, scores: Tensor) -> tuple[Mask, Tensor]:
        """Return what is kept, and the ranking of units, from a first ranking.

        Raises:
            TargetError: the divergence is too large already with what goes at any ratio.
        """
        ladder = self.ladder(scores)
        count = self._count(ladder)
        searched: dict[str, int] | None = None
        for _ in range(SEARCHES):
            gone = gone_of(ladder.found, ladder.kept(count))
            if not any(gone.values()) or (searched is not None and _near(gone, searched)):
                break
            scores, searched = self.search(gone, scores), gone
            ladder = self.ladder(scores)
            count = self._count(ladder)
        if not self.target.sized:
            count = self._within(ladder)
        elif self.target.name == "target_macs" and self.size.estimated:
            warnings.warn(
                "target_macs: the model does not run once channels are removed; MACs are told from the "
                "parameters that each layer is left with",
                DEWarning,
                stacklevel=2,
            )
        return ladder.kept(count), scores

    def _count(self, ladder: Ladder) -> int:
        """Return how many units of a ranking go, for a divergence as the search data tell."""
        if self.target.sized:
            return self._smallest(ladder)
        limit = self.target.value
        most = begins(lambda n: self.estimate(ladder.kept(n)) > limit, ladder.low, ladder.high) - 1
        return min(ladder.high, max(ladder.low + 1, self._part(ladder, most)))

    def _part(self, ladder: Ladder, most: int) -> int:
        return ladder.low + math.floor(self.share * (most - ladder.low) + 1e-9)

    def _smallest(self, ladder: Ladder) -> int:
        name, value = self.target.name, self.target.value
        now = self.size(name)
        goal = now + (value - now) * self.share
        count = begins(lambda n: self.size(name, ladder.kept(n)) <= goal, ladder.low, ladder.high)
        if count > ladder.high:
            warnings.warn(
                f"{name}: {goal:.0f} cannot be reached any more, this step goes as far as "
                f"{self.size(name, ladder.kept(ladder.high)):.0f}, as {_OUT_OF_REACH}",
                DEWarning,
                stacklevel=2,
            )
        return min(count, ladder.high)

    def _within(self, ladder: Ladder) -> int:
        """Return how many units go so that the divergence stays within the limit when all is done."""
        limit = self.target.value

        def beyond(count: int) -> bool:
            return self.settled(ladder.kept(count)) > limit

        most = begins(beyond, ladder.low, ladder.high) - 1
        count = self._part(ladder, max(ladder.low, most))
        if count != most and beyond(count):  # it need not rise along the order
            count = begins(beyond, ladder.low, count - 1) - 1
        if count < ladder.low and ladder.low > 0:
            raise TargetError(
                f"max_divergence={limit:g}: heads and layers with ratios of their own alone lead to "
                f"{self.settled(ladder.kept(ladder.low)):.4g}; raise the limit, or lower those ratios"
            )
        return max(0, count)


def _near(gone: dict[str, int], searched: dict[str, int]) -> bool:
    changed = sum(abs(n - searched[scope]) for scope, n in gone.items())
    return changed <= max(2.0, 0.05 * sum(gone.values()))
