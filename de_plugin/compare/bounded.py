"""A criterion inside a host that has no budget of its own: it keeps to one, and tells what it did."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from de_plugin.assess.problem import Problem
from de_plugin.criteria import Criterion
from de_plugin.prune import Budget, Evolving
from de_plugin.types import Mask, Scores


class Bounded:
    """A criterion that keeps to a budget in all, and remembers what its search has cost.

    Use `bounded` to make one: whether it may choose whole sets depends on what it wraps.

    Args:
        criterion: ranks the units.
        budget: of all its calls.

    Attributes:
        evaluations: candidate sets measured so far.
        curve: the best divergence after so many evaluations, at what was to go by then.
    """

    def __init__(self, criterion: Criterion, budget: Budget) -> None:
        self.criterion, self.budget = criterion, budget
        self.evaluations = 0
        self.curve: list[tuple[int, float]] = []
        self._started: float | None = None

    @property
    def name(self) -> str:
        """Return the criterion's."""
        return self.criterion.name

    @property
    def needs_gradient(self) -> bool:
        """Whether the criterion needs one."""
        return self.criterion.needs_gradient

    def __call__(self, problem: Problem, eligible: Mask, count: int) -> Scores:
        """Score every unit as the criterion does."""
        with self._watched(problem):
            return self.criterion(problem, eligible, count)

    @contextmanager
    def _watched(self, problem: Problem) -> Iterator[None]:
        """Count what is measured, and let the problem's own budget or this one end the search."""
        self._started = time.monotonic() if self._started is None else self._started
        before, spent, started = problem.evaluations, self.evaluations, self._started
        events, asked = problem.events, problem.out_of_budget
        heard = _Heard(events, problem)

        def out() -> bool:
            mine = spent + problem.evaluations - before
            return asked() or problem.ranks.agreed(self.budget.spent(mine, started))

        problem.events, problem.out_of_budget = heard, out
        try:
            yield
        finally:
            events.extend(heard[len(events) :])
            problem.events, problem.out_of_budget = events, asked
            self.evaluations = spent + problem.evaluations - before
            self.curve += [(spent + n - before, value) for n, value in heard.curve]


class _Evolving(Bounded):
    """The same of a criterion that chooses whole sets."""

    def __init__(self, criterion: Criterion, budget: Budget, evolving: Evolving) -> None:
        super().__init__(criterion, budget)
        self._evolving = evolving

    def evolve(self, problem: Problem, eligible: Mask, count: int, free: Mask) -> Mask:
        """Return what is kept when `count` more units are zeroed, as the criterion does."""
        with self._watched(problem):
            return self._evolving.evolve(problem, eligible, count, free)


class _Heard(list[dict[str, Any]]):
    """The problem's events, and how good the search's best was after how many evaluations."""

    def __init__(self, events: list[dict[str, Any]], problem: Problem) -> None:
        super().__init__(events)
        self.problem = problem
        self.curve: list[tuple[int, float]] = []

    def append(self, event: dict[str, Any]) -> None:
        """Keep the event, and what it says of the best divergence."""
        super().append(event)
        best = None
        if event.get("kind") == "generation":
            best = event["best"]
        elif event.get("kind") == "swap" and event["accepted"] and self.curve:
            best = max(0.0, self.curve[-1][1] + event["measured"])
        if best is not None and best < 1e30:
            self.curve.append((self.problem.evaluations, float(best)))


def bounded(criterion: Criterion, budget: Budget) -> Bounded:
    """Return the criterion, bound to a budget."""
    if isinstance(criterion, Evolving):
        return _Evolving(criterion, budget, criterion)
    return Bounded(criterion, budget)
