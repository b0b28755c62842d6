"""The serial reference: one candidate after the other."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from de_plugin.assess.candidates import Candidates
from de_plugin.assess.repair import Repair
from de_plugin.types import Values

if TYPE_CHECKING:
    from de_plugin.assess.problem import Problem


class Pieces:
    """The measuring of candidates one by one, in pieces that ranks can share out: each on one batch.

    Where a repair corrects a candidate first a piece is all its batches, on which the correction is made.

    Attributes:
        sizes: the samples of each piece; those of a candidate lie side by side.
    """

    def __init__(
        self, problem: Problem, population: Candidates, index: Tensor, repair: Repair | None = None
    ) -> None:
        self._problem = problem
        self._population = population
        self._repair = repair
        self._index = index
        pool = problem.pool
        if pool.stacked is None:
            sizes = [pool.size(int(n)) for n in index]
        else:
            sizes = [len(part) for part in index.split(pool.batch_size)]
        self._samples = sizes if repair is None else [sum(sizes)]
        self.sizes = self._samples * len(population)

    def measure(self, own: Iterable[int]) -> Tensor:
        """Measure some of the pieces, each zeroed in place, and return all: those left out are nil."""
        problem, width = self._problem, len(self._samples)
        table = torch.zeros(len(self.sizes), dtype=torch.float64)
        own = list(own)
        batches = problem.pool.take(self._index) if own else []
        groups = [[x] for x in batches] if self._repair is None else [batches]
        for row, pieces in groupby(own, lambda n: n // width):
            with torch.no_grad(), problem.units.zeroed(self._population.mask(row)):
                for piece in pieces:
                    group = groups[piece % width]
                    corrected = nullcontext() if self._repair is None else self._repair(problem, group)
                    with corrected:
                        table[piece] = float(problem.measure(group))
        return table

    def values(self, table: Tensor) -> Values:
        """Return one divergence a candidate, from all pieces: the mean over samples."""
        samples = torch.tensor(self._samples, dtype=torch.float64)
        return (table.reshape(len(self._population), len(self._samples)) * samples).sum(1) / samples.sum()


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
        """Return one divergence a candidate, each corrected by `repair` first.

        Raises:
            RankError: another rank has raised what the model raised there.
        """
        if len(population) == 0:
            return torch.empty(0, dtype=torch.float64)
        pieces, ranks = Pieces(self.problem, population, index, repair), self.problem.ranks
        owners = ranks.shares(pieces.sizes)
        mine = [n for n, owner in enumerate(owners) if owner == ranks.rank]
        return pieces.values(ranks.run_shared(len(owners), lambda: pieces.measure(mine)))
