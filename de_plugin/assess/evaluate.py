"""Measuring a population: the serial reference, and the choice of what measures."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from de_plugin.assess.candidates import Candidates, Flipped
from de_plugin.assess.teacher import Autocast
from de_plugin.assess.vectorised import BatchingError, reason
from de_plugin.errors import ArgumentError, DEWarning
from de_plugin.types import Values

if TYPE_CHECKING:
    from de_plugin.assess.population import Population
    from de_plugin.assess.problem import Problem

_TRIED = 16
"""Layers that the trial of a model looks at."""


class Evaluator(Protocol):
    """Measures every candidate on the same samples."""

    @property
    def samples(self) -> int:
        """Samples of one candidate that a pass holds with ease."""

    def __call__(self, population: Candidates, index: Tensor) -> Values:
        """Return one divergence a candidate."""


class Serial:
    """One candidate after the other, zeroed in place: slow, and right by construction.

    Args:
        problem: whose student is asked.
        repair: correct each zeroed student as ``problem.repair`` does.
    """

    def __init__(self, problem: Problem, repair: bool = False) -> None:
        self.problem = problem
        self.repair = repair

    @property
    def samples(self) -> int:
        """The samples of a batch."""
        return self.problem.pool.batch_size

    def __call__(self, population: Candidates, index: Tensor) -> Values:
        """Return one divergence a candidate."""
        problem = self.problem
        batches = problem.pool.take(index)
        values = torch.zeros(len(population), dtype=torch.float64)
        for row in range(len(population)):
            if not problem.ranks.mine(row):
                continue
            kept = population.mask(row)
            with torch.no_grad(), problem.units.zeroed(kept):
                if self.repair:
                    with problem.repaired(batches):
                        values[row] = float(problem.measure(batches))
                else:
                    values[row] = float(problem.measure(batches))
        return problem.ranks.total(values)


class Guarded:
    """The fast evaluator while it works, the serial one from its first failure on.

    Args:
        problem: whose student is asked.
        fast: what is tried first.
    """

    def __init__(self, problem: Problem, fast: Evaluator) -> None:
        self.problem = problem
        self._evaluator = fast

    @property
    def samples(self) -> int:
        """What the evaluator in use says."""
        return self._evaluator.samples

    def __call__(self, population: Candidates, index: Tensor) -> Values:
        """Return one divergence a candidate."""
        if not isinstance(self._evaluator, Serial):
            try:
                return self._evaluator(population, index)
            except BatchingError as error:
                values = Serial(self.problem)(population, index)  # what is wrong anyway is raised here
                self._raise_if_gone(error, population, index)
                _warn(self.problem, reason(self.problem.model, error.cause))
                self._evaluator = Serial(self.problem)
                return values
        return self._evaluator(population, index)

    def _raise_if_gone(self, error: BatchingError, population: Candidates, index: Tensor) -> None:
        """Raise what does not come up a second time: it was the user's own, not the batching's."""
        try:
            self._evaluator(population, index)
        except BatchingError:
            return
        raise error.cause


def evaluator(problem: Problem, spec: str) -> Evaluator:
    """Return the evaluator asked for.

    "auto" measures candidates side by side (`de_plugin.assess.population.Population`) wherever that
    gives what the serial loop gives: each layer is tried once, on a few samples. Ways of computing a layer
    are chosen by counted work, never by a clock, so that the same seed gives the same mask.

    Raises:
        ArgumentError: `spec` is not "auto" or "serial".
    """
    from de_plugin.assess.population import Population

    if spec not in ("auto", "serial"):
        raise ArgumentError(f"evaluate={spec!r}: expected 'auto' or 'serial'")
    if spec == "serial":
        return Serial(problem)
    try:
        fast = Population(problem)
        obstacle = _trial(problem, fast)
        if not obstacle:
            return Guarded(problem, fast)
    except BatchingError as error:
        obstacle = reason(problem.model, error.cause)
    _warn(problem, obstacle)
    return Serial(problem)


def _trial(problem: Problem, fast: Population) -> str:
    """Compare with the serial loop; return what differs, or nothing.

    Tried are a twentieth of each layer, which is measured as a sparse difference, and half of all units.
    """
    layers = problem.units.layers
    if len(layers) > _TRIED:
        spaced = [int(n) for n in torch.linspace(0, len(layers) - 1, _TRIED)]
        layers = [layers[n] for n in sorted({*spaced, *fast.unseen})]
    changes = []
    for layer in layers:
        count = max(1, layer.count // 20)
        drawn = torch.randperm(layer.count, generator=problem.generator(8, layer.start))[:count]
        changes.append(layer.start + drawn.sort().values)
    half = torch.rand(problem.units.count, generator=problem.generator(9)) < 0.5
    population = Flipped(problem.kept, (*changes, half.nonzero()[:, 0]))
    index = problem.search[:2] if problem.pool.stacked is not None else problem.search[:1]
    expected, found = Serial(problem)(population, index), fast(population, index)
    precision = max(torch.finfo(layer.parameter.dtype).eps for layer in problem.units.layers)
    if isinstance(problem.forward, Autocast):
        precision = torch.finfo(problem.forward.dtype).eps
    finite = expected[torch.isfinite(expected)].abs()
    scale = float(finite.max()) if len(finite) else 1.0
    rtol, atol = max(1e-3, 64 * precision), max(min(1e-5, 1e-2 * scale), precision * min(1.0, scale))
    close = torch.isclose(found, expected, rtol=rtol, atol=atol, equal_nan=True)
    names = [*(layer.name for layer in layers), type(problem.model).__name__]
    wrong = [name for name, same in zip(names, close.tolist(), strict=True) if not same]
    return f"{wrong[0]} gives other results side by side" if wrong else ""


def _warn(problem: Problem, obstacle: str) -> None:
    warnings.warn(
        f"model {type(problem.model).__name__}: candidates are measured one by one, which is slow, because "
        f"they cannot be measured side by side ({obstacle})",
        DEWarning,
        stacklevel=5,
    )
