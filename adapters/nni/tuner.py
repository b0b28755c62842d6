"""An NNI tuner that evolves recipes: covariance matrix adaptation over any of NNI's search spaces."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from cmaes import CMA, SepCMA

from de_plugin.adapters.nni.space import Genome, Parameters, Space
from de_plugin.errors import ArgumentError, MissingDependencyError

try:
    from nni import NoMoreTrialError
    from nni.tuner import Tuner
except ImportError as missing:
    raise MissingDependencyError(f"the tuner needs {missing.name}: pip install 'de_plugin[nni]'") from missing

_log = logging.getLogger(__name__)

_FULL_DIMENSIONS = 64
"""Above it the covariance is kept diagonal, as in :class:`de_plugin.evolve.Search`."""

_TRIES = 8
"""Populations drawn in search of parameters that no trial has had, before the search begins anew."""

_MUTATION = 0.05
"""How often the genes of a discrete parameter are drawn afresh: alone, they would settle too soon."""

_REACH = 3.0
"""Genes learnt from elsewhere are held within this many deviations of the first generation's."""


@dataclass
class _Running:
    parameters: Parameters
    genome: Genome | None  # None: outside the search space that has been set since


class DETuner(Tuner):
    """Evolves pruning recipes, or whatever else the search space describes, trial by trial.

    All of NNI's types are searched: choice (nested ones too), randint, uniform, normal and their log and
    quantized relatives; see :class:`de_plugin.adapters.nni.space.Space`. The strategy is CMA-ES
    (Hansen, arXiv:1604.00772) without a barrier between generations: it adapts as soon as any
    ``population_size`` results are in, so concurrent trials never wait. No parameters are tried twice; a
    failed trial ranks last.
    The same seed and the same order of results give the same trials.

    Args:
        optimize_mode: "maximize" or "minimize" the final result, a number or a dict with "default".
        seed: of all draws, >= 0.
        population_size: results a generation, >= 4; default: 4 + 3 ln(genes) (Hansen, eq. 48).

    Raises:
        ArgumentError: an argument is out of its range.
    """

    def __init__(
        self, optimize_mode: str = "maximize", seed: int = 0, population_size: int | None = None
    ) -> None:
        super().__init__()
        if optimize_mode not in ("maximize", "minimize"):
            raise ArgumentError(f"optimize_mode={optimize_mode!r}: expected 'maximize' or 'minimize'")
        if not _is_integer(seed) or seed < 0:
            raise ArgumentError(f"seed={seed!r}: expected an integer >= 0")
        if population_size is not None and (not _is_integer(population_size) or population_size < 4):
            raise ArgumentError(f"population_size={population_size!r}: expected an integer >= 4")
        self.optimize_mode = optimize_mode
        self.seed = seed
        self.population_size = population_size
        self._space: Space | None = None
        self._running: dict[int, _Running] = {}
        self._history: list[tuple[Parameters, float]] = []
        self._known: dict[str, float | None] = {}  # loss by parameters; None: under way

    def update_search_space(self, search_space: Mapping[str, Any]) -> None:
        """Set or change the search space; results that lie in the new one are learnt again.

        Raises:
            ArgumentError: a parameter's type or values are wrong; the space set before stays.
        """
        self._space = Space(search_space)
        self._random = np.random.default_rng(self.seed)
        self._starts = 0
        self._start()
        for running in self._running.values():
            running.genome = self._genome(running.parameters)
        for parameters, loss in self._history:
            genome = self._genome(parameters)
            if genome is not None:
                self._tell(genome, loss)

    def generate_parameters(self, parameter_id: int, **kwargs: Any) -> Parameters:
        """Return parameters that no trial has had.

        Raises:
            ArgumentError: no search space is set.
            nni.NoMoreTrialError: every point of the search space has been tried.
        """
        genome, parameters = self._draw()
        self._running[parameter_id] = _Running(parameters, genome)
        self._known[_key(parameters)] = None
        return parameters

    def receive_trial_result(
        self, parameter_id: int, parameters: Parameters, value: Any, **kwargs: Any
    ) -> None:
        """Learn from a final result; one that is not finite ranks last.

        Raises:
            ArgumentError: the result is neither a number nor a dict with one under "default".
        """
        loss = self._loss(value)
        running = self._running.pop(parameter_id, None)
        if running is None:  # a trial of the user's own
            running = _Running(parameters, self._genome(parameters))
        self._learn(running, loss)

    def trial_end(self, parameter_id: int, success: bool, **kwargs: Any) -> None:
        """Rank a trial that ended without a result last."""
        running = self._running.pop(parameter_id, None)
        if running is not None:
            _log.warning("trial %s ended without a final result (success: %s)", parameter_id, success)
            self._learn(running, math.inf)

    def import_data(self, data: Any) -> None:
        """Learn from trials of other experiments.

        Args:
            data: ``[{"parameter": {...}, "value": ...}]``, or its JSON. What lies outside the search space,
                or has no finite result, is skipped with a warning in the log.
        """
        records = json.loads(data) if isinstance(data, str) else data
        for entry in records:
            record = json.loads(entry) if isinstance(entry, str) else entry
            try:
                parameters, loss = record["parameter"], self._loss(record["value"])
                if self._space is not None:
                    self._space.encode(parameters)
            except (ArgumentError, KeyError, TypeError) as error:
                _log.warning("record %s is not imported: %s", record, error)
                continue
            if math.isfinite(loss):
                self._learn(_Running(parameters, self._genome(parameters)), loss)
            else:
                _log.warning("record %s is not imported: its value is not finite", record)

    def _loss(self, value: Any) -> float:
        number = value.get("default") if isinstance(value, Mapping) else value
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise ArgumentError(
                f"final result {value!r}: expected a number or a dict with a number under 'default'; "
                "see nni.report_final_result"
            )
        if not math.isfinite(number):
            return math.inf
        return -float(number) if self.optimize_mode == "maximize" else float(number)

    def _learn(self, trial: _Running, loss: float) -> None:
        self._history.append((trial.parameters, loss))
        self._known[_key(trial.parameters)] = loss
        if trial.genome is not None:
            self._tell(trial.genome, loss)

    def _genome(self, parameters: Parameters) -> Genome | None:
        """Return the genes of parameters from elsewhere; None outside the search space."""
        if self._space is None:
            return None
        try:
            genome = self._space.encode(parameters)
        except ArgumentError:
            return None
        return np.pad(np.clip(genome, -_REACH, _REACH), (0, self._genes - len(genome)))

    def _spaced(self) -> Space:
        if self._space is None:
            raise ArgumentError("search space: none is set; call update_search_space first")
        return self._space

    def _start(self) -> None:
        """Begin the search anew, from the distribution that the search space describes."""
        space = self._spaced()
        self._genes = max(2, space.genes)
        self._discrete = space.discrete
        self._population = self.population_size or 4 + int(3 * math.log(self._genes))
        kind = CMA if self._genes <= _FULL_DIMENSIONS else SepCMA
        self._search: CMA | SepCMA = kind(
            mean=np.zeros(self._genes),
            sigma=1.0,
            population_size=self._population,
            seed=(self.seed + self._starts) % 2**32,
        )
        self._results: list[tuple[Genome, float]] = []
        self._first = self._starts == 0
        self._starts += 1

    def _ask(self) -> Genome:
        if self._first:  # what the middle of the search space is worth
            self._first = False
            return np.zeros(self._genes)
        genome: Genome = self._search.ask()
        for genes in self._discrete:
            if self._random.random() < _MUTATION:
                genome[genes] = self._random.standard_normal(genes.stop - genes.start)
        return genome

    def _draw(self) -> tuple[Genome, Parameters]:
        space = self._spaced()
        if self._search.should_stop():
            self._start()
        for _ in range(_TRIES * self._population):
            genome = self._ask()
            parameters = space.decode(genome)
            known = self._known.get(_key(parameters), math.nan)
            if known is None:
                continue
            if math.isnan(known):
                return genome, parameters
            self._tell(genome, known)
        self._start()  # it has converged to what is known
        return self._untried(space)

    def _untried(self, space: Space) -> tuple[Genome, Parameters]:
        for _ in range(_TRIES * self._population):
            genome = self._random.standard_normal(self._genes)
            parameters = space.decode(genome)
            if _key(parameters) not in self._known:
                return genome, parameters
        for parameters in space.every():
            known = self._genome(parameters)
            if known is not None and _key(parameters) not in self._known:
                return known, parameters
        raise NoMoreTrialError("every point of the search space has been tried")

    def _tell(self, genome: Genome, loss: float) -> None:
        self._results.append((genome, loss))
        if len(self._results) < self._population:
            return
        results, self._results = self._results, []
        losses = np.array([value for _, value in results])
        if not bool(np.isfinite(losses).any()):
            return  # failures alone tell no direction
        ranks = np.argsort(np.argsort(losses, kind="stable"), kind="stable").astype(float)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            self._search.tell([(g, rank) for (g, _), rank in zip(results, ranks.tolist(), strict=True)])


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _key(parameters: Parameters) -> str:
    return json.dumps(parameters, sort_keys=True, default=repr)
