"""Ask and tell for real-valued genomes: covariance matrix adaptation behind a small interface."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from de_plugin.errors import ArgumentError

if TYPE_CHECKING:
    from cmaes import CMA, SepCMA

Genome = NDArray[np.float64]

_FULL_DIMENSIONS = 64
"""Above it the covariance is kept diagonal (Ros and Hansen 2008): its learning then stays linear."""


@dataclass
class Search:
    """Evolution of genomes around a mean, each gene with a deviation of its own.

    Recombination and adaptation are those of CMA-ES (Hansen, arXiv:1604.00772). Only ranks of the
    values count. What was learnt is the `centre`: start the next search there when the question has changed.

    Args:
        mean: first genome, ``(genes,)``.
        deviation: initial standard deviation of each gene, ``(genes,)``, > 0.
        population: genomes a generation, >= 4.
        seed: of the mutations.
    """

    mean: Genome
    deviation: Genome
    population: int
    seed: int
    _cma: CMA | SepCMA = field(init=False, repr=False)
    _asked: list[Genome] = field(init=False, repr=False, default_factory=list)

    def __post_init__(self) -> None:
        """Check the arguments and start the first generation."""
        self.mean = np.asarray(self.mean, dtype=np.float64)
        self.deviation = np.asarray(self.deviation, dtype=np.float64)
        if self.mean.ndim != 1 or self.mean.shape != self.deviation.shape or len(self.mean) < 2:
            raise ArgumentError(
                f"mean {self.mean.shape}, deviation {self.deviation.shape}: expected two vectors of the "
                "same length >= 2"
            )
        if not bool((self.deviation > 0).all()):
            raise ArgumentError(f"deviation={self.deviation}: every entry must be > 0")
        if self.population < 4:
            raise ArgumentError(f"population={self.population}: expected at least 4 genomes")
        self._start()

    def _start(self) -> None:
        from cmaes import CMA, SepCMA  # loads scipy, which takes a second

        kind = CMA if len(self.mean) <= _FULL_DIMENSIONS else SepCMA
        self._cma = kind(
            mean=np.zeros(len(self.mean)),
            sigma=1.0,
            population_size=self.population,
            seed=self.seed,
        )
        self._asked = []

    def ask(self) -> Genome:
        """Return a generation, ``(population, genes)``; the first genome of the first one is the mean."""
        if not self._asked:
            self._asked = [self._cma.ask() for _ in range(self.population)]
            if self._cma.generation == 0:
                self._asked[0] = np.zeros(len(self.mean))
        return self.mean + self.deviation * np.stack(self._asked)

    def tell(self, values: NDArray[np.float64]) -> None:
        """Rank the generation last asked for, lower is better, and move on.

        Raises:
            ArgumentError: there is not one value a genome, or a value is NaN.
        """
        if len(values) != len(self._asked) or bool(np.isnan(values).any()):
            raise ArgumentError(
                f"values: got {len(values)} ({int(np.isnan(values).sum())} NaN), expected one number for "
                f"each of the {len(self._asked)} genomes asked for"
            )
        ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable").astype(float)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            self._cma.tell(list(zip(self._asked, ranks.tolist(), strict=True)))
        self._asked = []

    @property
    def centre(self) -> Genome:
        """The mean of the distribution as it stands, ``(genes,)``."""
        learnt: Genome = self._cma.mean
        return self.mean + self.deviation * learnt
