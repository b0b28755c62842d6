"""Pruners of Torch-Pruning that evolve what goes of all groups of a step together."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from de_plugin.adapters.torch_pruning.asking import Asking, device_of, evaluating, teacher_of
from de_plugin.adapters.torch_pruning.checks import OWN, check_options
from de_plugin.adapters.torch_pruning.copies import Copies
from de_plugin.adapters.torch_pruning.criterion import GROUPS, Ranked
from de_plugin.adapters.torch_pruning.entries import Entry, counts, entries, key_of
from de_plugin.adapters.torch_pruning.importance import DEImportance
from de_plugin.assess.problem import Problem
from de_plugin.criteria import criterion as resolved
from de_plugin.errors import DEWarning
from de_plugin.prune import DirectedEvolution
from de_plugin.prune.recover import BatchNormMatching
from de_plugin.types import Mask


@dataclass(frozen=True)
class StepReport:
    """What one step has done.

    Attributes:
        step: its number, from 1.
        removed: channels (of the root) before and after, by the name of each group's root layer.
        before: divergence from the teacher before the step, on the data held back from the search.
        after: the same with the chosen channels zeroed, or removed where that is not the same.
        exact: whether candidates were measured on really pruned copies.
        evaluations: candidates that were measured.
        events: what the search has told.
    """

    step: int
    removed: dict[str, tuple[int, int]]
    before: float
    after: float
    exact: bool
    evaluations: int
    events: list[dict[str, Any]] = field(repr=False, default_factory=list)


if TYPE_CHECKING:
    _Host = Any  # one of the host's pruners, which come without types
else:
    _Host = object


class Evolving(_Host):
    """Mixed into a pruner of the host: it hands the engine the count and all groups of a step at once."""

    def __init__(self, model: nn.Module, example_inputs: Any, batches: Any = None, **options: Any) -> None:
        own = {name: options.pop(name) for name in OWN if name in options}
        importance = options.pop("importance", None)
        if isinstance(batches, DEImportance) and importance is None:
            importance, batches = batches, None
        check_options(model, type(self).__name__, options, own, batches, importance)
        for name in ("in_channel_groups", "out_channel_groups", "num_heads", "channel_groups"):
            options[name] = dict(options.get(name) or {})  # the host's own default is one dict for all
        criterion = own.pop("criterion", None)
        match = own.pop("match_batchnorm", True)
        if isinstance(importance, DEImportance):
            self._asking, self.criterion = importance.asking, importance.criterion
        else:
            self._asking = Asking(teacher_of(model), batches, **own)
            self.criterion = DirectedEvolution.brief() if criterion is None else resolved(criterion)
        self._match = BatchNormMatching() if match else None
        self._chosen: dict[Any, Tensor] = {}
        self._reports: list[StepReport] = []
        super().__init__(model, example_inputs, importance or _CHEAP, **options)

    # -- the host's seams ------------------------------------------------------------------------

    def estimate_importance(self, group: Any) -> Tensor:
        """Return scores that make the host choose what has been evolved.

        Outside a step they are magnitudes: pruners that regularize ask on every batch.
        """
        chosen: Tensor | None = self._chosen.get(key_of(group))
        found: Tensor = _CHEAP(group) if chosen is None else chosen
        return found

    def _prune(self) -> Iterator[Any]:
        found: list[Entry] = []
        self._chosen = {}
        report = None
        if self.current_step <= self.iterative_steps:
            with evaluating(self.model):
                found = list(entries(self))
                report = self._evolve(found) if found else None
        if report is not None:
            self._reports.append(report)
        yielded = False
        try:
            for group in super()._prune():
                name, before = self.DG._module2name[group[0].dep.target.module], _channels(self, group)
                if report is not None:
                    report.removed[name] = (before, before - len(group[0].idxs))
                yielded = True
                yield group
        finally:
            self._chosen = {}
        if not yielded:
            warnings.warn(
                f"step {self.current_step} of {self.iterative_steps} has removed nothing: raise "
                "pruning_ratio, lower round_to, ignore fewer layers, or see whether every group has reached "
                "max_pruning_ratio",
                DEWarning,
                stacklevel=2,
            )

    # -- the search ------------------------------------------------------------------------------

    def _evolve(self, found: list[Entry]) -> StepReport | None:
        wanted = counts(self, found)
        if not any(wanted.values()):
            return None
        exact = not all(entry.exact for entry in found)
        problem = self._problem(found, exact)
        problem.store(GROUPS, [Ranked(entry.group, entry.parts, entry.heads) for entry in found])
        spans = _spans(found)
        problem.protected = _protected(problem, found, spans)
        matching = None if exact else self._match
        if matching is not None:
            matching.prepare(problem)
            problem.repair = matching.in_assessment()
        before = float(problem.gate(problem.kept[None], repair=False)[0])
        kept, scores = self._search(problem, found, spans, wanted)
        problem.kept = kept
        if matching is not None:
            matching(problem)
        after = float(problem.gate(kept[None], repair=False)[0])
        for entry, span in zip(found, spans, strict=True):
            self._chosen[entry.key] = entry.scores(_ranked(kept[span], scores[span])).to(
                device_of(self.model)
            )
        evaluations = problem.evaluations
        return StepReport(self.current_step, {}, before, after, exact, evaluations, problem.events)

    def _problem(self, found: list[Entry], exact: bool) -> Problem:
        couplings = [entry.coupling for entry in found]
        if not exact:
            problem: Problem = self._asking.problem(self.model, couplings)
            return problem
        try:
            problem = self._asking.problem(self.model, couplings, lambda p: Copies(p, found))
            problem.assess(problem.kept[None] & _some(found), problem.search[:2])
            return problem
        except (RuntimeError, ValueError, AssertionError, AttributeError) as error:
            warnings.warn(
                f"model: {type(self.model).__name__} does not run once channels are removed "
                f"({str(error).splitlines()[0]}); they are zeroed instead, which is only near to removal "
                "for norms over channels and for attention",
                DEWarning,
                stacklevel=2,
            )
            zeroing: Problem = self._asking.problem(self.model, couplings)
            return zeroing

    def _search(
        self, problem: Problem, found: list[Entry], spans: list[slice], wanted: dict[str, int]
    ) -> tuple[Mask, Tensor]:
        """Return what is kept after all scopes, and a ranking of the units."""
        scores = torch.zeros(problem.units.count, dtype=torch.float64)
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
                mine[spans[n]] = True
            if members is alone:
                problem.quota = torch.zeros(len(problem.units.layers), dtype=torch.long)
                for n in members:
                    problem.quota[n] = wanted[found[n].scope]
            eligible = problem.eligible & mine
            ranking = self.criterion(problem, eligible, total)
            scores[mine] = torch.nan_to_num(ranking[mine], posinf=float(torch.finfo(torch.float32).max))
            problem.kept = problem.select(ranking, eligible, total)
            problem.quota = None
        return problem.kept, scores

    def report(self) -> list[StepReport]:
        """Return what each step has removed and what that has cost, in order."""
        return list(self._reports)


_CHEAP = tp.importance.GroupMagnitudeImportance()


def _alone(entry: Entry, found: list[Entry]) -> bool:
    return sum(other.scope == entry.scope for other in found) == 1


def _spans(found: list[Entry]) -> list[slice]:
    result, start = [], 0
    for entry in found:
        result.append(slice(start, start + entry.coupling.count))
        start += entry.coupling.count
    return result


def _protected(problem: Problem, found: list[Entry], spans: list[slice]) -> Mask:
    """Return the largest units of each group, as many as must stay."""
    magnitude = resolved("magnitude")(problem, problem.eligible, 1)
    result = torch.zeros(problem.units.count, dtype=torch.bool)
    for entry, span in zip(found, spans, strict=True):
        best = magnitude[span].argsort(descending=True, stable=True)[: entry.least]
        result[span.start + best] = True
    return result


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


def _channels(pruner: Any, group: Any) -> int:
    dep = group[0].dep
    outputs = pruner.DG.is_out_channel_pruning_fn(dep.handler)
    found = (pruner.DG.get_out_channels if outputs else pruner.DG.get_in_channels)(dep.target.module)
    return int(found)


class DEPruner(Evolving, tp.pruner.BasePruner):
    """`torch_pruning.pruner.BasePruner` that evolves what goes of all groups of a step together.

    Args:
        model: the network; a copy of it is the teacher.
        example_inputs: traces the network, as the host's.
        batches: calibration data, see `de_plugin.prune`; or a `DEImportance`, whose settings count.
        options: ``criterion``, ``divergence``, ``forward``, ``samples``, ``batch_size``, ``holdout``,
            ``seed`` and ``match_batchnorm`` (running statistics follow each cut; default True) as well as
            all of the host's.

    Raises:
        ArgumentError: an option is unknown, or together with others would make the host do nothing.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    >>> x = torch.randn(64, 8)
    >>> pruner = DEPruner(model, x[:1], x, pruning_ratio=0.5, ignored_layers=[model[2]])
    >>> pruner.step()
    >>> model[0].out_features, pruner.report()[0].removed
    (8, {'0': (16, 8)})
    """


class DEBNScalePruner(Evolving, tp.pruner.BNScalePruner):
    """`torch_pruning.pruner.BNScalePruner` that evolves what goes; see `DEPruner`."""


class DEGroupNormPruner(Evolving, tp.pruner.GroupNormPruner):
    """`torch_pruning.pruner.GroupNormPruner` that evolves what goes; see `DEPruner`."""


class DEGrowingRegPruner(Evolving, tp.pruner.GrowingRegPruner):
    """`torch_pruning.pruner.GrowingRegPruner` that evolves what goes; see `DEPruner`."""
