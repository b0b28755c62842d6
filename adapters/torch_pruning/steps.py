"""One step's question: what of all groups goes together, asked of the engine."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from de_plugin.adapters.torch_pruning.asking import Asking
from de_plugin.adapters.torch_pruning.copies import (
    Copies,
    Plan,
    cut,
    gone_by_module,
    removed,
    units_of,
    whole_heads,
)
from de_plugin.adapters.torch_pruning.criterion import GROUPS, Ranked
from de_plugin.adapters.torch_pruning.entries import Entry
from de_plugin.adapters.torch_pruning.ladder import spans
from de_plugin.assess.problem import Problem
from de_plugin.criteria import Criterion
from de_plugin.criteria import criterion as resolved
from de_plugin.errors import DEWarning
from de_plugin.prune.recover import BatchNormMatching
from de_plugin.prune.recover.batchnorm import Tentative
from de_plugin.prune.recover.moments import calibration
from de_plugin.types import Mask


@dataclass(frozen=True)
class StepReport:
    """What one step has done.

    Attributes:
        step: its number, from 1.
        removed: channels (of the root) before and after, by the name of each group's root layer.
        before: divergence from the teacher before the step, on the data held back from the search.
        after: the same with the chosen channels zeroed, or removed where that is not the same or where
            only part of them has been pruned; nan if the network does not run then.
        exact: whether candidates were measured on really pruned copies.
        evaluations: candidates that were measured.
        params: parameters of the network before and after.
        macs: its MACs on the example inputs before and after; None where the host cannot count them.
        events: what the search has told.
    """

    step: int
    removed: dict[str, tuple[int, int]]
    before: float
    after: float
    exact: bool
    evaluations: int
    params: tuple[int, int] = (0, 0)
    macs: tuple[float | None, float | None] = (None, None)
    events: list[dict[str, Any]] = field(repr=False, default_factory=list)

    def sized(self, macs: float | None, params: int) -> StepReport:
        """Return the report with the size after the step."""
        return replace(self, params=(self.params[0], params), macs=(self.macs[0], macs))


class Step:
    """The groups of one step, a search over their units, and a choice that can be taken back.

    Args:
        asking: what is measured, on what.
        model: in eval mode.
        found: the groups.
        plan: how to remove their units, see `copies.plan`.
        criterion: searches.
        matching: follows each cut, where zeroing channels is what removing them is.

    Attributes:
        problem: of all groups together.
        before: divergence on the data held back.
        copied: whether candidates are measured on really pruned copies.
    """

    def __init__(
        self,
        asking: Asking,
        model: nn.Module,
        found: list[Entry],
        plan: Plan,
        criterion: Criterion,
        matching: BatchNormMatching | None,
    ) -> None:
        self.found, self.spans = found, spans(found)
        self._criterion = criterion
        exact = all(entry.exact for entry in found)
        problem, self.copied = _problem(asking, model, found, plan, exact)
        self.problem = problem
        problem.store(GROUPS, [Ranked(entry.group, entry.parts, entry.heads) for entry in found])
        problem.protected = self._protected()
        self._everything = problem.kept
        self._buffers = [(b, b.clone()) for b in model.buffers()]
        self._plan = plan
        self._heads = whole_heads(found)
        self._before = _snapshot(removed(model, self._plan, self._everything))
        self._units = units_of(model, self._before, found)
        self._matching = matching if exact else None
        if self._matching is not None:
            self._matching.prepare(problem)
            problem.repair = self._matching.in_assessment()
        self.before = float(problem.gate(problem.kept[None], repair=False)[0])

    def magnitudes(self) -> Tensor:
        """Return a ranking of the units that needs no search."""
        return resolved("magnitude")(self.problem, self._everything, 1)

    def search(self, wanted: dict[str, int], known: Tensor | None = None) -> tuple[Mask, Tensor]:
        """Return what is kept and a ranking of the units when so many of each scope go.

        Scopes of a single group are searched together, then one scope after the other.

        Args:
            wanted: units that go, by scope.
            known: a ranking, which stays where none go.
        """
        problem, found = self.problem, self.found
        scores = torch.zeros(problem.units.count, dtype=torch.float64) if known is None else known.clone()
        problem.kept = self._everything
        alone = [n for n, entry in enumerate(found) if _alone(entry, found)]
        rounds: list[list[int]] = [alone] if alone else []
        rounds += [
            [n for n, entry in enumerate(found) if entry.scope == scope]
            for scope in wanted
            if not any(found[n].scope == scope for n in alone)
        ]
        for members in rounds:
            total = sum(wanted[scope] for scope in {found[n].scope for n in members})
            if total == 0:
                continue
            mine = torch.zeros(problem.units.count, dtype=torch.bool)
            for n in members:
                mine[self.spans[n]] = True
            if members is alone:
                problem.quota = torch.zeros(len(problem.units.layers), dtype=torch.long)
                for n in members:
                    problem.quota[n] = wanted[found[n].scope]
            eligible = problem.eligible & mine
            ranking = self._criterion(problem, eligible, total)
            scores[mine] = torch.nan_to_num(ranking[mine], posinf=float(torch.finfo(torch.float32).max))
            problem.kept = problem.select(ranking, eligible, total)
            problem.quota = None
        kept, problem.kept = problem.kept, self._everything
        return kept, scores

    def settle(self, kept: Mask) -> float:
        """Make a choice for good, running statistics too, and return its divergence on the data held back."""
        self.restore()
        self.problem.kept = kept
        if self._matching is not None:
            self._matching(self.problem)
        return float(self.problem.gate(kept[None], repair=False)[0])

    def restore(self) -> None:
        """Take a choice back, of which nothing has been removed yet."""
        self.problem.kept = self._everything
        with torch.no_grad():
            for buffer, value in self._buffers:
                if buffer.shape == value.shape:
                    buffer.copy_(value)

    def resettle(self, kept: Mask) -> float:
        """Give the model, pruned meanwhile, the statistics of what has really gone of it.

        Returns:
            The divergence on the data held back, of a copy that is pruned alike; nan if that does not run.
        """
        try:
            return self._resettled(kept)
        except (RuntimeError, ValueError, AssertionError, AttributeError):
            return math.nan

    def _resettled(self, kept: Mask) -> float:
        problem = self.problem
        with cut(self._before, self._units, self._plan, self._heads, kept) as (model, left):
            if self._matching is not None:
                gone, samples = gone_by_module(self._plan, left), self._matching.samples
                batches = problem.pool.take(calibration(problem, samples), samples)
                with Tentative(self._matching).on_copy(problem, model, gone), torch.no_grad():
                    for batch in batches:
                        problem.forward(model, batch.inputs)
            settled = dict(model.named_buffers())
            with torch.no_grad():
                for name, buffer in problem.model.named_buffers():
                    if name in settled and settled[name].shape == buffer.shape:
                        buffer.copy_(settled[name])
                return float(problem.measure(problem.pool.take(problem.held_back), model))

    def _protected(self) -> Mask:
        """Return the largest units of each group, as many as must stay."""
        problem = self.problem
        magnitude = resolved("magnitude")(problem, problem.eligible, 1)
        result = torch.zeros(problem.units.count, dtype=torch.bool)
        for entry, span in zip(self.found, self.spans, strict=True):
            best = magnitude[span].argsort(descending=True, stable=True)[: entry.least]
            result[span.start + best] = True
        return result

    def scores(self, kept: Mask, ranking: Tensor) -> dict[Any, Tensor]:
        """Return scores of the groups' channels by key: below a half for those that go."""
        return {
            entry.key: entry.scores(_ranked(kept[span], ranking[span])).to(self.problem.device)
            for entry, span in zip(self.found, self.spans, strict=True)
        }


def _problem(
    asking: Asking, model: nn.Module, found: list[Entry], plan: Plan, exact: bool
) -> tuple[Problem, bool]:
    """Return the step's question, and whether it is asked of really pruned copies.

    These are exact, and the fewer channels are left, the faster.
    """
    couplings = [entry.coupling for entry in found]
    try:
        problem: Problem = asking.problem(model, couplings, lambda p: Copies(p, plan, whole_heads(found)))
        problem.assess(problem.kept[None] & _some(found), problem.search[:2])
        return problem, True
    except (RuntimeError, ValueError, AssertionError, AttributeError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
    if not exact:
        warnings.warn(
            f"model: {type(model).__name__} does not run once channels are removed "
            f"({why}); they are zeroed instead, which is only near to removal "
            "for norms over channels and for attention",
            DEWarning,
            stacklevel=2,
        )
    zeroing: Problem = asking.problem(model, couplings)
    zeroing.events.append({"kind": "zeroed instead of removed", "why": why})
    return zeroing, False


def _snapshot(model: nn.Module) -> nn.Module:
    """Give a copy that shares its tensors buffers of its own."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.clone()
    return model


def _alone(entry: Entry, found: list[Entry]) -> bool:
    return sum(other.scope == entry.scope for other in found) == 1


def _some(found: list[Entry]) -> Mask:
    """Return a mask without the first unit of each group."""
    parts = [torch.ones(entry.coupling.count, dtype=torch.bool) for entry in found]
    for part in parts:
        part[0] = False
    return torch.cat(parts)


def _ranked(kept: Mask, scores: Tensor) -> Tensor:
    """Return scores in (0, 1], no two alike: below a half for what goes, lowest first."""
    order = scores.argsort(stable=True)
    order = torch.cat((order[~kept[order]], order[kept[order]]))
    gone, count = int((~kept).sum()), len(kept)
    result = torch.empty(count)
    low = torch.arange(1, gone + 1) / (2.0 * (gone + 1))
    high = 0.5 + torch.arange(1, count - gone + 1) / (2.0 * (count - gone))
    result[order] = torch.cat((low, high))
    return result
