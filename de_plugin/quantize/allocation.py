"""The search for a network's levels: at a size the least divergence, under a bound the smallest file."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from de_plugin.encode.quantized import Quantized
from de_plugin.errors import TargetError
from de_plugin.evolve.search import Genome
from de_plugin.prune.recover import Distillation
from de_plugin.prune.target import Budget
from de_plugin.quantize.between import Around, LevelRecovery
from de_plugin.quantize.codebook import Codebook
from de_plugin.quantize.cost import Scale
from de_plugin.quantize.evolve import RateSearch, evolved
from de_plugin.quantize.goal import Goal
from de_plugin.quantize.journal import answered
from de_plugin.quantize.layerwise import CompensatedRates
from de_plugin.quantize.levels import LevelSearch, refined
from de_plugin.quantize.rates import Rates
from de_plugin.quantize.rounding import Compensated
from de_plugin.quantize.student import Quantization, Student
from de_plugin.quantize.trial import Trial, applied, best
from de_plugin.quantize.uniform import Uniform

_SMALLER = 0.88  # the next file size that is tried after a recovery
_A_LITTLE = 0.97  # the same after levels were refined
_OCTAVES = 6  # the common step is looked for this far from the first guess
_CLOSE = 0.04  # octaves
_SLACK = 12  # bytes by which a size may be off before the file is packed
_DOUBT = 0.15  # how far an estimate may be above what is counted
_SHRINKING = 5  # counts on the way to a size
_FULL = 5  # times what `Rates.close` leaves of the bytes allowed, more tries gain little


@dataclass
class Allocation:
    """The search for levels of a whole network, and what it has met.

    Args:
        student: whose weights get levels.
        goal: what is to be reached.
        books: uniform bits for every layer.
        recoveries: what follows the choice of levels.
        rule: of the search for rates.
        levels: of the search for each layer's levels; None leaves it out.
        rounding: how levels make good each other's errors; None: each weight gets its own.
        budget: of the search.
        started: when, a `time.monotonic` reading.
        whole: the metric of the teacher, where there is one.
        tell: called with each of `met`, and with the best of each generation.
        met: all trials that met the held-back data, in order.
        guess: of a trial's bytes.
    """

    student: Student
    goal: Goal
    books: list[Codebook]
    recoveries: tuple[LevelRecovery, ...]
    rule: RateSearch
    levels: LevelSearch | None
    rounding: Compensated | None
    budget: Budget
    started: float
    whole: float | None
    tell: Callable[[Trial], None] = lambda _: None
    met: list[Trial] = field(default_factory=list)
    guess: Scale = field(default_factory=lambda: Scale(0.0, {}))

    def run(self) -> Trial:
        """Return the best that keeps to the goal.

        Raises:
            TargetError: nothing does.
        """
        problem = self.student.problem
        repair = problem.repair
        try:
            for step in self.recoveries:
                step.prepare(self.student)
                if isinstance(step, Around):
                    problem.repair = problem.repair or step.in_assessment()
            biases = self.student.quantized_biases()
            rates = Rates.of(self.student)
            if self.rounding is not None:
                rates = CompensatedRates.around(rates, self.rounding)
            if self.goal.sized:
                return self._least_divergence(rates, biases)
            return self._smallest(rates, biases)
        finally:
            problem.repair = repair

    # -- a size is given -------------------------------------------------------------------------

    def _least_divergence(self, rates: Rates, biases: Quantization) -> Trial:
        uniform = self._references(biases)
        target = float(self.goal.target_bytes or 0)
        if self.goal.bits is not None:
            book = Uniform(bits=self.goal.bits)
            target = Trial("", applied(self.student, book, biases), 0).packed(self.student).bytes
        near = self._near(uniform, target)
        fits = [t for t in near if t.bytes <= target + _SLACK]
        beside = min(near or uniform, key=lambda t: abs(t.bytes - target))
        # where levels depend on each other, a count costs less than to look for a scale
        size = self.student.scale(beside.quantization) if rates.alone else None
        first = self._fitting(rates, np.zeros(rates.genes), 0.0, target, biases, "equal slope", size)
        found: list[Trial] = []
        if first is not None:
            found = self._at_size(rates, first, target, biases)
        for trial in sorted([*fits, *found], key=lambda t: t.value):
            exact = trial.packed(self.student)
            if exact.bytes <= target:
                return exact
        smallest = min(uniform, key=lambda t: t.bytes).packed(self.student)
        raise TargetError(
            f"{self.goal}: the file of the fewest uniform bits has {smallest.bytes:.0f} bytes "
            f"({smallest.name}); prune more, give biases fewer bits, or allow more bytes"
        )

    def _near(self, trials: list[Trial], target: float) -> list[Trial]:
        """Return those whose estimate is not far above `target`, the best of each kind counted."""
        result = []
        for kind in dict.fromkeys(t.name.split()[0] for t in trials):
            mine = [t for t in trials if t.name.split()[0] == kind and t.bytes <= (1 + _DOUBT) * target]
            for trial in sorted(mine, key=lambda t: t.value):
                now = trial.sized(self.student)
                result.append(now)
                if now.bytes <= target:
                    break
        return result

    def _at_size(self, rates: Rates, start: Trial, target: float, biases: Quantization) -> list[Trial]:
        """Return gated trials of at most `target` bytes: evolved, refined and recovered."""
        rates = rates.at_costs(self.student.scale(start.quantization))
        proposals = evolved(rates, start, target, biases, self.rule, self.spent, self.tell)
        exact = [start, *(self._shrunk(rates, t, target, biases) for t in proposals[1:])]
        final = self._gate([t for t in exact if t is not None])
        if self.levels is not None and rates.alone:
            final += self._gate(self._refined(best(final), target))
        return final + self._recovered(rates, best(final), target)

    def _refined(self, trial: Trial, target: float) -> list[Trial]:
        """Return the trial with the levels of each layer refined, if its file still fits."""
        rule = self.levels
        if rule is None:
            return []
        size = self.student.scale(trial.quantization)
        for part in self.student.parts:
            if self.spent():
                break
            now = refined(self.student, trial, part, rule, partial(size.tensor, part.name))
            now = now.sized(self.student)
            trial = now if now.bytes <= target else trial
        return [trial]

    def _recovered(self, rates: Rates, trial: Trial, target: float) -> list[Trial]:
        """Return gated trials after each recovery that still fit the bytes."""
        result = []
        for step in self.recoveries:
            rates, now = step(rates, trial)
            now = now.sized(self.student)
            if now.bytes > target and now.genome is not None:
                biases = _biases_of(self.student, now)
                smaller = self._fitting(rates, now.genome, now.scale, target, biases, now.name)
                now = now if smaller is None else replace(smaller, rest=now.rest)
            trial = self._gate([now])[0]
            if now.bytes <= target:
                result.append(trial)
        return result

    # -- a loss is given -------------------------------------------------------------------------

    def _smallest(self, rates: Rates, biases: Quantization) -> Trial:
        uniform = sorted(self._references(biases), key=lambda t: t.bytes)
        accepted = [t for t in uniform if self._accepts(t)]
        near = [t.sized(self.student) for t in accepted if t.bytes <= (1 + _DOUBT) * accepted[0].bytes]
        found = min(near, key=lambda t: t.bytes, default=None)
        genome, scale = np.zeros(rates.genes), 0.0
        for _ in range(self.rule.rounds):
            now = self._largest_step(rates, genome, scale, biases)
            if now is None or now.genome is None:
                break
            found = now if found is None or now.bytes <= found.bytes else found
            if self.spent():
                break
            proposals = evolved(rates, now, now.bytes, biases, self.rule, self.spent, self.tell)
            top = best(self._gate(proposals))
            genome, scale = (now.genome, now.scale) if top.genome is None else (top.genome, top.scale)
        last = self._largest_step(rates, genome, scale, biases)
        candidates = [t for t in (found, last) if t is not None]
        if self.recoveries:
            candidates += self._recovered_smaller(rates, last, biases)
        elif last is not None and rates.alone:
            candidates += self._refined_smaller(rates, last, biases)
        if not candidates:
            finest = min(self.met, key=lambda t: t.divergence)
            raise TargetError(
                f"{self.goal}: not even the finest levels keep to it (divergence {finest.divergence:.4g}, "
                f"{finest.bytes:.0f} bytes: {finest.name}); allow more, or recover the network before"
            )
        return min((t.packed(self.student) for t in candidates), key=lambda t: t.bytes)

    def _largest_step(self, rates: Rates, genome: Genome, start: float, biases: Quantization) -> Trial | None:
        """Return the smallest accepted file of a genome: its largest common step."""
        good: Trial | None = None
        low, high = start - _OCTAVES, start + _OCTAVES
        scale, width = start, 0.25
        while high - low > _CLOSE:
            levels = rates.quantization(genome, scale, biases)
            name = "evolved" if genome.any() else "equal slope"
            now = self._gate([Trial(name, levels, self.guess(levels), genome=genome, scale=scale)])[0]
            if self._accepts(now):
                good, low = now, scale
            else:
                high = scale
            bracketed = low > start - _OCTAVES and high < start + _OCTAVES
            scale = (low + high) / 2 if bracketed else scale + (width if low == scale else -width)
            width *= 2
            if not low < scale < high:
                scale = (low + high) / 2
        return None if good is None else good.sized(self.student)

    def _recovered_smaller(self, rates: Rates, start: Trial | None, biases: Quantization) -> list[Trial]:
        """Return accepted trials of ever smaller files, each recovered, up to the first that fails."""
        result: list[Trial] = []
        target = start.bytes if start is not None else max(t.bytes for t in self.met)
        genome = np.zeros(rates.genes) if start is None or start.genome is None else start.genome
        scale = 0.0 if start is None else start.scale
        while True:
            first = self._fitting(rates, genome, scale, target, biases, "recovery")
            done = [] if first is None else self._recovered(rates, first, target)
            fine = [t for t in done if self._accepts(t)]
            if not fine:
                return result
            result.append(min(fine, key=lambda t: t.bytes))
            target, scale = _SMALLER * result[-1].bytes, result[-1].scale

    def _refined_smaller(self, rates: Rates, start: Trial, biases: Quantization) -> list[Trial]:
        """Return accepted trials of ever smaller files, all levels refined, up to the first that fails."""
        result: list[Trial] = []
        trial: Trial | None = start
        while self.levels is not None and trial is not None and trial.genome is not None and not self.spent():
            fine = [t for t in self._gate(self._refined(trial, trial.bytes)) if self._accepts(t)]
            if not fine:
                break
            result += fine
            smaller = _A_LITTLE * trial.bytes
            trial = self._fitting(rates, trial.genome, trial.scale, smaller, biases, "refined")
        return result

    def _accepts(self, trial: Trial) -> bool:
        if self.goal.max_divergence is not None:
            return trial.divergence <= self.goal.max_divergence
        return self.loss(trial) - (self.whole or 0.0) <= (self.goal.max_loss or 0.0)

    def loss(self, trial: Trial) -> float:
        """Return the user's metric of the network with these levels."""
        metric = self.goal.metric
        if metric is None:
            return math.nan

        def measure() -> float:
            with self.student.holding(trial.quantization, trial.rest):
                return float(metric(self.student.problem.model))

        return answered(self.student.journal, ["loss", trial.quantization, trial.rest], measure)

    # -- what both need --------------------------------------------------------------------------

    def _references(self, biases: Quantization) -> list[Trial]:
        """Return uniform bits for every layer, gated."""
        trials: list[Trial] = []
        for book in self.books:
            name = f"{book.name} {getattr(book, 'bits', None) or ''}".strip()
            levels = applied(self.student, book, biases)
            if not trials:
                self.guess = self.student.scale(levels)
            trials.append(Trial(name, levels, self.guess(levels)))
        return self._gate(trials)

    def _fitting(
        self,
        rates: Rates,
        genome: Genome,
        scale: float,
        target: float,
        biases: Quantization,
        name: str,
        size: Scale | None = None,
    ) -> Trial | None:
        """Return a genome's levels at the smallest scale whose file, counted, fits; None where none does.

        With `size` the first count is of a scale that it lets expect to fit.
        """
        expected = None if size is None else rates.at_bytes(genome, target, size, biases, scale)
        if expected is not None:
            scale = expected[1]
        first = rates.quantization(genome, scale, biases) if expected is None else expected[0]
        return self._shrunk(rates, Trial(name, first, 0, genome=genome, scale=scale), target, biases)

    def _shrunk(self, rates: Rates, trial: Trial, target: float, biases: Quantization) -> Trial | None:
        """Return the trial at the scale where its file, counted, comes closest to `target` from below."""
        target -= min(_SLACK, 0.01 * target)
        trial, aim = trial.sized(self.student), target
        good = trial if trial.bytes <= target else None
        for _ in range(_SHRINKING):
            if trial.genome is None or (
                good is not None and good.bytes >= (1 - _FULL * rates.close) * target
            ):
                break
            size = self.student.scale(trial.quantization)
            found = rates.at_bytes(trial.genome, aim, size, biases, trial.scale)
            if found is None:
                break
            trial = replace(trial, quantization=found[0], scale=found[1]).sized(self.student)
            if trial.bytes > target:
                aim -= 1.5 * (trial.bytes - target)
            elif good is None or trial.bytes > good.bytes:
                good = trial
        return good

    def _gate(self, trials: list[Trial]) -> list[Trial]:
        """Measure on the held-back data, as the network would really be."""
        index = self.student.problem.held_back
        found = [t.measured(self.student, index, repair=False) for t in trials]
        labels = max((step.labels for step in self.recoveries), default=0.0)
        if labels > 0:
            found = [replace(t, value=(1 - labels) * t.divergence + labels * self._entropy(t)) for t in found]
        self.met += found
        for trial in found:
            self.tell(trial)
        return found

    def _entropy(self, trial: Trial) -> float:
        """Return the cross-entropy of the labels on the held-back data."""
        problem = self.student.problem
        rule = Distillation(labels=1.0)

        def measure() -> float:
            with self.student.holding(trial.quantization, trial.rest):
                return rule.validate(problem, problem.pool.take(problem.held_back))

        return answered(self.student.journal, ["labels", trial.quantization, trial.rest], measure)

    @property
    def seconds(self) -> float:
        """What the search has taken, before it was cut off among it."""
        journal = self.student.journal
        return time.monotonic() - self.started if journal is None else journal.seconds

    def spent(self) -> bool:
        """Tell whether the budget is used up."""
        started = time.monotonic() - self.seconds
        spent = self.budget.spent(self.student.problem.evaluations, started)
        return spent if self.budget.seconds is None else self.student.problem.ranks.agreed(spent)


def _biases_of(student: Student, trial: Trial) -> dict[str, Quantized]:
    weights = {part.name for part in student.parts}
    return {name: q for name, q in trial.quantization.items() if name not in weights}
