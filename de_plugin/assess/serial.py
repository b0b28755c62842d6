"""The serial reference: one candidate after the other."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from de_plugin.assess.candidates import Candidates
from de_plugin.assess.repair import Repair
from de_plugin.types import Values

if TYPE_CHECKING:
    from de_plugin.assess.problem import Problem


class Serial:
    """One candidate after the other, zeroed in place: slow, and right by construction.

    Args:
        problem: whose student is asked.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    @property
    def samples(self) -> int:
        """The samples of a batch."""
        return self.problem.pool.batch_size

    def __call__(self, population: Candidates, index: Tensor, repair: Repair | None = None) -> Values:
        """Return one divergence a candidate, each corrected by `repair` first."""
        problem = self.problem
        batches = problem.pool.take(index)
        values = torch.zeros(len(population), dtype=torch.float64)
        for row, owner in enumerate(problem.ranks.shares([1.0] * len(population))):
            if owner != problem.ranks.rank:
                continue
            kept = population.mask(row)
            corrected = nullcontext() if repair is None else repair(problem, batches)
            with torch.no_grad(), problem.units.zeroed(kept), corrected:
                values[row] = float(problem.measure(batches))
        return problem.ranks.total(values)
