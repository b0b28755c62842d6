"""The levels of one layer: alternatives at equal bytes, then their steps, thresholds and positions evolve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from de_plugin.assess.guard import check_counts
from de_plugin.encode.quantized import Quantized
from de_plugin.errors import ArgumentError
from de_plugin.evolve import Search
from de_plugin.evolve.search import Genome
from de_plugin.quantize.codebook import Codebook, codebook
from de_plugin.quantize.cost import estimated
from de_plugin.quantize.evolve import seed_of_turn
from de_plugin.quantize.student import Part, Student
from de_plugin.quantize.survivors import Floats, Survivors, two_bytes
from de_plugin.quantize.trial import Trial, best
from de_plugin.quantize.uniform import Uniform

Size = Callable[[Quantized], float]

_KEY = 23
_BITS = (8, 7, 6, 5, 4, 3, 2)
_STEP, _ZONE, _POSITION = 0.03, 0.1, 0.15
"""First deviations: octaves of the step and of the dead zone, and gaps between levels."""

_POSITIONS = 24
"""Layers of more levels have only their step and dead zone evolve."""


@dataclass(frozen=True)
class LevelSearch:
    """How long the levels of a layer evolve, and on what data.

    Attributes:
        generations: of genomes; 0 only tries the alternatives.
        population: genomes a generation, >= 4.
        samples: on which a generation is measured; fresh ones each time.
        codebooks: names or objects of the alternatives; names at the most bits that fit, for the whole
            layer and, where a step says all, for each of its output channels as well.

    Raises:
        ArgumentError: a count is out of range.
    """

    generations: int = 4
    population: int = 8
    samples: int = 1000
    codebooks: tuple[str | Codebook, ...] = ("uniform", "affine", "power", "kmeans")

    def __post_init__(self) -> None:
        """Refuse counts out of range; `check` refuses unknown codebooks, once all are registered."""
        check_counts("LevelSearch", samples=self.samples)
        if self.generations < 0 or self.population < 4:
            raise ArgumentError(f"{self}: expected generations >= 0 and population >= 4")

    def check(self) -> None:
        """Refuse unknown codebooks.

        Raises:
            ArgumentError: one is none.
        """
        for spec in self.codebooks:
            codebook(spec)


def refined(student: Student, trial: Trial, part: Part, rule: LevelSearch, size: Size = estimated) -> Trial:
    """Return the trial with better levels for one layer that take no more bytes, by estimate.

    Who replaces the trial's own levels has a lower divergence on data held back from the search.

    Args:
        student: whose layer it is.
        trial: levels of the whole network.
        part: the layer.
        rule: what is tried.
        size: estimates the bytes of the layer.
    """
    problem = student.problem
    room = size(trial.quantization[part.name])
    others = [_with(trial, part, q, name) for name, q in alternatives(student, part, rule, room, size)]
    index = problem.draw(rule.samples)
    first = best([t.measured(student, index) for t in (trial, *others)])
    finalists = [trial, first] if first.name != trial.name else [trial]
    whole = first if first.quantization[part.name].axis is None else trial  # levels of channels do not evolve
    finalists += _evolved(student, whole, part, rule, room, size)
    gated = [t.measured(student, problem.held_back, repair=False) for t in finalists]
    return best(gated)


def alternatives(
    student: Student, part: Part, rule: LevelSearch, room: float, size: Size = estimated
) -> list[tuple[str, Quantized]]:
    """Return what each codebook makes of a layer in at most `room` estimated bytes, and how it is called."""
    result = []
    for spec in rule.codebooks:
        books: list[list[Codebook]] = [[spec]] if not isinstance(spec, str) else []
        if isinstance(spec, str):
            axes = (None, 0) if isinstance(codebook(spec), Uniform) else (None,)
            books = [[codebook(spec, bits=n, axis=axis) for n in _BITS] for axis in axes]
        for each in books:
            for book in each:
                found = student.exact(part, book.fit(part.weight, part.kept, part.importance))
                if size(found) <= room:
                    result.append((f"{book.name}{_axis(book)}", found))
                    break
    return result


def _axis(book: Codebook) -> str:
    return "" if getattr(book, "axis", None) is None else " by channel"


def _with(trial: Trial, part: Part, quantized: Quantized, name: str) -> Trial:
    """Return the trial with other levels for one layer; its genome no longer tells all of them."""
    changed = {**trial.quantization, part.name: quantized}
    return replace(trial, name=f"{trial.name}, {part.name} {name}", quantization=changed)


def _evolved(
    student: Student, start: Trial, part: Part, rule: LevelSearch, room: float, size: Size
) -> list[Trial]:
    """Return the centre and the last winner of an evolution of a layer's levels, where there are any."""
    problem = student.problem
    quantized = start.quantization[part.name]
    if quantized.axis is not None or quantized.levels.shape[1] < 2 or rule.generations == 0:
        return []
    body = _Body.of(part.survivors, quantized)
    seed = seed_of_turn(problem, "levels", _KEY)
    search = Search(np.zeros(body.genes), body.deviation, rule.population, seed)
    winner: Trial | None = None

    def trial(genes: Genome) -> Trial | None:
        found = student.exact(part, body.quantized(genes))
        return None if size(found) > room else _with(start, part, found, "evolved")

    for _ in range(rule.generations):
        index = problem.draw(rule.samples)
        found = [trial(genes) for genes in search.ask()]
        values = [np.inf if t is None else t.measured(student, index).value for t in found]
        search.tell(np.array(values))
        if np.isfinite(min(values)):
            winner = found[int(np.argmin(values))]
    return [t for t in (winner, trial(search.centre)) if t is not None]


@dataclass(frozen=True)
class _Body:
    """A layer's levels and the thresholds between them, as they were found.

    Attributes:
        survivors: of the layer.
        levels: (count,), ascending, zero among them.
        thresholds: (count - 1,): between each level and the next.
        lowest: the symbol of the first level.
    """

    survivors: Survivors
    levels: Floats
    thresholds: Floats
    lowest: int

    @classmethod
    def of(cls, survivors: Survivors, quantized: Quantized) -> _Body:
        """Read thresholds off the assignment: halfway between the members on both sides."""
        levels = quantized.levels[0].double().numpy()
        at = quantized.symbols.reshape(-1)[torch.from_numpy(survivors.places)].numpy() - quantized.lowest
        low, high = levels.copy(), levels.copy()
        np.minimum.at(low, at, survivors.values)
        np.maximum.at(high, at, survivors.values)
        return cls(survivors, levels, np.sort((high[:-1] + low[1:]) / 2), quantized.lowest)

    @property
    def genes(self) -> int:
        """Length of a genome: step, dead zone, and the position of each level but zero."""
        return 2 + (len(self.levels) - 1 if len(self.levels) <= _POSITIONS else 0)

    @property
    def deviation(self) -> Genome:
        """The first mutations' standard deviation."""
        return np.array([_STEP, _ZONE, *[_POSITION] * (self.genes - 2)])

    def quantized(self, genes: Genome) -> Quantized:
        """Return the layer's levels under a genome, (genes,)."""
        scale = 2.0 ** float(genes[0])
        levels, thresholds = self.levels * scale, self.thresholds * scale
        zero = -self.lowest
        beside = [n for n in (zero - 1, zero) if 0 <= n < len(thresholds)]
        thresholds[beside] *= 2.0 ** float(genes[1])
        if len(genes) > 2:
            gaps = np.diff(levels)
            room = np.minimum(np.append(gaps, gaps[-1]), np.insert(gaps, 0, gaps[0]))
            room = np.delete(room, zero)
            moved = np.delete(levels, zero) + np.clip(genes[2:], -0.45, 0.45) * room
            levels = np.insert(moved, zero, 0.0)
        symbols = np.searchsorted(np.sort(thresholds), self.survivors.values) + self.lowest
        table = two_bytes(torch.from_numpy(levels).float()).double().numpy()
        return self.survivors.assembled(symbols, [table], [self.lowest])
