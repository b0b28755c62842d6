"""Measuring candidates on really pruned copies: exact for norms and attention, and the less to compute."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from de_plugin.adapters.torch_pruning.entries import Entry
from de_plugin.adapters.torch_pruning.ties import owners
from de_plugin.assess.batches import Batch
from de_plugin.assess.candidates import Candidates
from de_plugin.assess.coupled import CoupledUnits
from de_plugin.assess.problem import Problem
from de_plugin.assess.repair import Repair
from de_plugin.assess.units import ParameterUnits
from de_plugin.errors import ArgumentError
from de_plugin.prune.recover.batchnorm import Tentative
from de_plugin.prune.recover.moments import joined
from de_plugin.types import Values


class Copies:
    """Measures each candidate on a copy of the model from which its channels are removed.

    Whole heads are zeroed there instead, which for them is removal: a model keeps count of its heads
    itself, and a copy would cut what is left into as many as before.

    Args:
        problem: whose student is asked.
        plan: how to remove its units, see `plan`.
        heads: the units that are whole heads.
    """

    def __init__(self, problem: Problem, plan: Plan, heads: Tensor) -> None:
        self.problem = problem
        self._plan = plan
        self._heads = heads

    @property
    def samples(self) -> int:
        """The samples of a batch."""
        return self.problem.pool.batch_size

    def __call__(self, population: Candidates, index: Tensor, repair: Repair | None = None) -> Values:
        """Return one divergence a candidate; the repair can be batch-norm matching only."""
        if repair is not None and not isinstance(repair, Tentative):
            raise ArgumentError(f"repair={repair!r}: copies can have their batch norms matched, and no more")
        problem, ranks = self.problem, self.problem.ranks
        mine = [n for n, rank in enumerate(ranks.shares([1.0] * len(population))) if rank == ranks.rank]

        def work() -> Tensor:
            values = torch.zeros(len(population), dtype=torch.float64)
            batches = problem.pool.take(index) if mine else []
            if repair is not None and mine:
                batches = joined(batches)
            for row in mine:
                values[row] = self._measured(population.mask(row), batches, repair)
            return values

        return ranks.run_shared(len(population), work)

    def _measured(self, kept: Tensor, batches: list[Batch], repair: Tentative | None) -> float:
        units = self.problem.units
        with torch.no_grad(), cut(self.problem.model, units, self._plan, self._heads, kept) as (model, left):
            if repair is not None:
                gone = gone_by_module(self._plan, left)
                with repair.on_copy(self.problem, model, gone):
                    values = self.problem.measure(batches, model)
                if len(batches) == 1:
                    return float(values)
            return float(self.problem.measure(batches, model))


Plan = list[tuple[str, Any, Tensor, Tensor]]
"""Full name of a module or parameter, pruning function, channels, and the unit that each belongs to."""


def plan(model: nn.Module, found: list[Entry]) -> Plan:
    """Return how to remove the units of some groups from a copy of their model."""
    modules = {id(m): name for name, m in model.named_modules()}
    parameters = {id(p): name for name, p in model.named_parameters()}
    merged: dict[tuple[str, str], tuple[Any, list[Tensor], list[Tensor]]] = {}
    start = 0
    for entry in found:
        for dep, channels, units in owners(entry.group, entry.parts):
            target = dep.target.module
            name = modules.get(id(target)) or parameters.get(id(target))
            if name is None:
                continue
            if entry.heads:
                width = len(entry.group[0].idxs) // entry.heads
                units = torch.where(units < 0, -1, units // width)
            known = merged.setdefault((name, dep.handler.__name__), (dep, [], []))
            known[1].append(channels)
            known[2].append(torch.where(units < 0, -1, units + start))
        start += entry.coupling.count
    return [(name, dep, torch.cat(c), torch.cat(u)) for (name, _), (dep, c, u) in merged.items()]


def whole_heads(found: list[Entry]) -> Tensor:
    """Return a mask of the units that are whole heads."""
    return torch.cat([torch.full((entry.coupling.count,), entry.heads > 0) for entry in found])


def units_of(model: nn.Module, copied: nn.Module, found: list[Entry]) -> CoupledUnits:
    """Return the units of some groups of a model in a copy of it, of whose parameters none is cut yet."""
    same = {id(p): q for p, q in zip(model.parameters(), copied.parameters(), strict=True)}
    couplings = [
        replace(c, ties=tuple(replace(tie, parameter=same[id(tie.parameter)]) for tie in c.ties))
        for c in (entry.coupling for entry in found)
    ]
    return CoupledUnits(copied, couplings)


@contextmanager
def cut(
    model: nn.Module, units: ParameterUnits, plan: Plan, heads: Tensor, kept: Tensor
) -> Iterator[tuple[nn.Module, Tensor]]:
    """Yield a copy of a model without what is not kept, whole heads zeroed, and what is not removed of it.

    Args:
        model: of which the copy shares what it does not lose.
        units: of the model.
        plan: how to remove them, see `plan`.
        heads: the units that are whole heads.
        kept: a mask of the units.
    """
    kept = kept.cpu()
    with units.zeroed(kept | ~heads):
        left = kept | heads
        yield removed(model, plan, left), left


def gone_by_module(plan: Plan, kept: Tensor) -> dict[str, Tensor]:
    """Return the channels that each module loses, by its name."""
    gone: dict[str, list[Tensor]] = {}
    for name, _, channels, units in plan:
        gone.setdefault(name, []).append(channels[(units >= 0) & ~kept[units.clamp_min(0)]])
    return {name: torch.cat(parts).unique() for name, parts in gone.items()}


def removed(model: nn.Module, plan: Plan, kept: Tensor) -> nn.Module:
    """Return a copy of a model without the channels whose units are not kept."""
    with torch.no_grad():
        # Pruning functions make what they cut anew: values need no copy, only objects of their own.
        shared: dict[int, Any] = {id(x): x.detach() for x in model.buffers()}
        shared |= {id(x): nn.Parameter(x.detach(), x.requires_grad) for x in model.parameters()}
        result = copy.deepcopy(model, shared)
        for name, dep, channels, units in plan:
            gone = channels[(units >= 0) & ~kept[units.clamp_min(0)]].unique().tolist()
            if not gone:
                continue
            owner = copy.copy(dep.handler.__self__)
            owner.pruning_dim = dep.target.pruning_dim
            path, _, own = name.rpartition(".")
            if isinstance(dep.target.module, nn.Parameter):
                parent = result.get_submodule(path)
                setattr(parent, own, getattr(owner, dep.handler.__name__)(getattr(parent, own), gone))
            else:
                getattr(owner, dep.handler.__name__)(result.get_submodule(name), gone)
    return result
