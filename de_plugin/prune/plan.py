"""What `prune` is to do with a problem, resolved and checked before anything changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from de_plugin.assess.problem import Problem
from de_plugin.criteria import Criterion, criterion
from de_plugin.errors import ArgumentError
from de_plugin.prune.directed_evolution import Evolving
from de_plugin.prune.recover import Recovery, recovery
from de_plugin.prune.target import Budget, Schedule, Scope, totals


@dataclass(frozen=True)
class Plan:
    """The criterion, the way to the target, what follows a cut, and what all of it may cost.

    Attributes:
        criterion: ranks the units.
        total: units that are zeroed in the end.
        quota: units of each layer that are zeroed in the end, ``(layers,)``; None where evolution finds it.
        schedule: the way to the target.
        recovery: after each cycle.
        finish: once more at the end.
        budget: what the search may cost.
    """

    criterion: Criterion
    total: int
    quota: Tensor | None
    schedule: Schedule
    recovery: Recovery
    finish: Recovery
    budget: Budget

    @classmethod
    def of(
        cls,
        problem: Problem,
        sparsity: float | Mapping[str, float] | None,
        criterion_: str | Criterion,
        *,
        scope: Scope,
        schedule: Schedule | int | None,
        recovery_: Any,
        finish: Any,
        budget: Budget | None,
    ) -> Plan:
        """Resolve names and numbers; see `prune` for what each may be.

        Raises:
            DEError: one of them cannot work.
        """
        rank = criterion(criterion_)
        if schedule is None:
            schedule = Schedule(10 if isinstance(rank, Evolving) else 1)
        elif isinstance(schedule, int) and not isinstance(schedule, bool):
            schedule = Schedule(schedule)
        elif not isinstance(schedule, Schedule):
            raise ArgumentError(f"schedule={schedule!r}: expected a Schedule or a number of cycles")
        limit = Budget() if budget is None else budget
        if not isinstance(limit, Budget):
            raise ArgumentError(f"budget={budget!r}: expected Budget(evaluations=..., seconds=...) or None")
        total, quota = totals(problem, sparsity, scope)
        return cls(rank, total, quota, schedule, recovery(recovery_), recovery(finish), limit)

    def prepare(self, problem: Problem) -> None:
        """Let the recoveries measure the teacher, and repair candidates as they will be repaired."""
        for stage in (self.recovery, self.finish):
            stage.prepare(problem)
        for stage in (self.recovery, self.finish):
            problem.repair = problem.repair or stage.in_assessment()
