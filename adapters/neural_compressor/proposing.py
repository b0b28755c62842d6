"""Which configuration is tried next: along the front first, then evolved around the cheapest that passes."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

import numpy as np

from de_plugin.adapters.neural_compressor.space import Genome, Space, damage
from de_plugin.adapters.neural_compressor.trials import Trial
from de_plugin.quantize.survivors import Floats

_CHILDREN, _DEAR_CHILDREN = 16, 6  # those whose levels depend on each other are fitted one by one
_FITTED = 16_000_000  # weights of the children that are fitted for a trial; one child is always allowed
_DRAWS = 400
_SAVING, _LEAST, _MOST = 0.05, 1e-3, 0.2
"""Share of the cost that a child is to save: at first, and its bounds."""
_GROWING, _SHRINKING = 1.5, 0.6


class Surrogate:
    """Tells genomes apart before the user's function is asked.

    With data it measures the divergence of the whole network. Without, it is a sum of the layers' errors,
    each weighted by what the trials so far tell of it.

    Args:
        space: what can be chosen.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self._measured = space.bench.settings.batches is not None
        self._known: dict[Genome, float] = {}
        self._met: list[tuple[list[float], float]] = []
        self.weights: Floats = np.ones(len(space.groups))

    def __call__(self, genome: Genome) -> float:
        """Return how much a genome is expected to hurt."""
        if not self._measured:
            return float(np.dot(self.weights, self._errors(genome)))
        if genome not in self._known:
            self._known[genome] = self._space.bench.divergence(self._space.levels(genome))
        return self._known[genome]

    def gentlest(self, genomes: Sequence[Genome]) -> Genome:
        """Return the genome that is expected to hurt least.

        Where the levels of a large network depend on each other, what its layers do alone tells which few
        genomes are fitted, and a single one is not: its trial fits it.
        """
        few = _fitted_children(self._space)
        if few < _DEAR_CHILDREN:
            genomes = sorted(genomes, key=self._alone)[:few]
        return genomes[0] if len(genomes) == 1 else min(genomes, key=self)

    def _alone(self, genome: Genome) -> float:
        """Return the damage of the layers one by one, added up."""
        return sum(damage(g.options[n]) for g, n in zip(self._space.groups, genome, strict=True))

    def learn(self, genome: Genome, trial: Trial) -> None:
        """Take a trial into account."""
        if not self._measured and math.isfinite(trial.loss):
            self._met.append((self._errors(genome), trial.loss))
            self.weights = _fitted(self._met)

    def _errors(self, genome: Genome) -> list[float]:
        return [g.options[n].error for g, n in zip(self._space.groups, genome, strict=True)]


def proposals(space: Space, surrogate: Surrogate, cheaper: str, seed: int) -> Generator[Genome, Trial, None]:
    """Propose genomes, each once, and be sent the trial of each.

    Args:
        space: what can be chosen.
        surrogate: what it would cost in quality.
        cheaper: "bytes" or "bits": by what passing trials are compared.
        seed: of the mutations.
    """
    seen: dict[Genome, Trial] = {}
    random = np.random.default_rng(seed)
    front = space.path(list(surrogate.weights))
    good, bad = -1, len(front)
    while bad - good > 1:
        middle = (good + bad) // 2
        trial = yield front[middle]
        seen[front[middle]] = trial
        surrogate.learn(front[middle], trial)
        good, bad = (middle, bad) if trial.ok else (good, middle)
    if good < 0:
        return
    best = front[good]
    saving = _SAVING
    while True:
        children = _children(space, best, saving, random, seen)
        if not children:
            saving *= _SHRINKING
            if saving < _LEAST:
                return
            continue
        child = surrogate.gentlest(children)
        trial = yield child
        surrogate.learn(child, trial)
        won = trial.ok and cost_of(trial, cheaper) < cost_of(seen[best], cheaper)
        seen[child] = trial
        best = child if won else best
        saving = min(_MOST, saving * _GROWING) if won else max(_LEAST, saving * _SHRINKING)


def cost_of(trial: Trial, cheaper: str) -> tuple[float, float, float]:
    """Return by what trials are compared: bytes or bits, then the other, then the loss."""
    both = (float(trial.bytes), trial.mean_bits)
    return (*(both if cheaper == "bytes" else both[::-1]), trial.loss)


def _children(
    space: Space, parent: Genome, saving: float, random: np.random.Generator, seen: dict[Genome, Trial]
) -> list[Genome]:
    """Return new genomes that save so much of their parent's cost: some layers finer, others coarser."""
    goal = (1 - saving) * space.cost(parent)
    most = _DEAR_CHILDREN if _fitted_children(space) == _DEAR_CHILDREN else _CHILDREN
    found: dict[Genome, None] = {}
    for _ in range(_DRAWS):
        genes = list(parent)
        for _ in range(int(random.integers(0, 3))):
            _step(space, genes, random, +1)
        for _ in range(4 + len(genes)):
            if space.cost(tuple(genes)) <= goal:
                break
            _step(space, genes, random, -1)
        child = tuple(genes)
        if child not in seen and space.cost(child) <= goal:
            found[child] = None
        if len(found) == most:
            break
    return list(found)


def _fitted_children(space: Space) -> int:
    """Return how many genomes may be fitted to find the next one to be tried."""
    if space.bench.settings.compensated is None:
        return _CHILDREN
    return min(_DEAR_CHILDREN, max(1, _FITTED // sum(group.weights for group in space.groups)))


def _step(space: Space, genes: list[int], random: np.random.Generator, way: int) -> None:
    number = int(random.integers(len(genes)))
    genes[number] = min(max(genes[number] + way, 0), len(space.groups[number].options) - 1)


def _fitted(met: Sequence[tuple[list[float], float]]) -> Floats:
    """Return non-negative weights of the errors that explain the losses, close to equal ones."""
    errors = np.array([e for e, _ in met])
    losses = np.array([max(0.0, loss) for _, loss in met])
    sums = errors.sum(1)
    common = float(sums @ losses / max(float(sums @ sums), 1e-300))
    if common <= 0:
        return np.ones(errors.shape[1])
    relative = errors / np.maximum(errors.mean(0), 1e-300)
    prior = common * errors.mean(0)
    ridge = 0.1 * float((relative**2).sum()) / errors.shape[1]
    matrix = relative.T @ relative + ridge * np.eye(errors.shape[1])
    right = relative.T @ losses + ridge * prior
    solved = prior.copy()
    rate = 1.0 / float(np.linalg.eigvalsh(matrix)[-1])
    for _ in range(200):
        solved = np.maximum(0.1 * prior, solved - rate * (matrix @ solved - right))
    weights: Floats = solved / np.maximum(errors.mean(0), 1e-300) / common
    return weights
