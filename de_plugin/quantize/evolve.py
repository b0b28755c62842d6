"""Evolution of rates at equal bytes: every genome is scaled to the same file size, and measured there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from de_plugin.assess.guard import check_counts
from de_plugin.assess.problem import Problem
from de_plugin.errors import ArgumentError
from de_plugin.evolve import Search
from de_plugin.quantize.rates import Rates
from de_plugin.quantize.student import Quantization
from de_plugin.quantize.trial import Trial

_KEY = 22
_RECOUNT = 4  # generations between two counts of what bytes a place takes


@dataclass(frozen=True)
class RateSearch:
    """How long rates evolve, and on what data.

    Attributes:
        generations: of genomes; 0 keeps the first guess.
        population: genomes a generation, >= 4.
        samples: on which a generation is measured; fresh ones each time.
        rounds: of evolution and of a new look at what the goal allows, for goals that bound the loss.

    Raises:
        ArgumentError: a count is out of range.
    """

    generations: int = 10
    population: int = 12
    samples: int = 1000
    rounds: int = 2

    def __post_init__(self) -> None:
        """Refuse counts out of range."""
        check_counts("RateSearch", samples=self.samples, rounds=self.rounds)
        if self.generations < 0 or self.population < 4:
            raise ArgumentError(f"{self}: expected generations >= 0 and population >= 4")


def seed_of_turn(problem: Problem, who: str, key: int) -> int:
    """Return the seed of the next search of a kind: another one each time, the same in every run."""
    state = problem.state_of(who)
    turn = state["turn"] = state.get("turn", 0) + 1
    return int(np.random.SeedSequence([problem.seed % 2**63, key, turn]).generate_state(1)[0] >> 1)


def evolved(
    rates: Rates,
    start: Trial,
    target: float,
    biases: Quantization,
    rule: RateSearch,
    out_of_budget: Callable[[], bool],
    tell: Callable[[Trial], None] = lambda _: None,
) -> list[Trial]:
    """Return what evolution proposes at no more than `target` bytes, the start among it.

    Args:
        rates: from genomes to levels.
        start: a trial with a genome.
        target: bytes of the file, by count.
        biases: quantized already.
        rule: how long.
        out_of_budget: asked between generations.
        tell: called with the best of each.

    Returns:
        The start, the best of the last generation and the centre; not yet comparable, for each was
        measured on its generation's samples.
    """
    student = rates.student
    problem = student.problem
    genome = np.zeros(rates.genes) if start.genome is None else start.genome
    size = student.scale(start.quantization)
    scale = start.scale
    search = Search(genome, rates.deviation, rule.population, seed_of_turn(problem, "rates", _KEY))
    winners: list[Trial] = []

    def trial(name: str, genes: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Trial | None:
        found = rates.at_bytes(genes, target, size, biases, scale)
        if found is None:
            return None
        return Trial(name, found[0], size(found[0]), genome=genes, scale=found[1])

    for number in range(rule.generations):
        if out_of_budget():
            break
        index = problem.draw(rule.samples)
        generation = []
        for genes in search.ask():
            one = trial(f"generation {number + 1}", genes)
            generation.append(None if one is None else one.measured(student, index))
        values = np.array([np.inf if t is None else t.divergence for t in generation])
        search.tell(values)
        first = generation[int(np.argmin(values))]
        if first is not None and np.isfinite(values.min()):
            winners.append(first)
            tell(first)
            scale = first.scale
            if number % _RECOUNT == _RECOUNT - 1:
                size = student.scale(first.quantization)
    centre = trial("evolved", search.centre) if winners else None
    return [start, *winners[-1:], *([centre] if centre is not None else [])]
