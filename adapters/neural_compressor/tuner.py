"""The tuner: the cheapest bits and codebook of each layer that keep the user's score within tolerance."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from types import FunctionType, MethodType
from typing import Any, TypedDict

from neural_compressor.torch.quantization import TuningConfig
from torch import nn

from de_plugin.adapters.neural_compressor.config import DEQuantConfig
from de_plugin.adapters.neural_compressor.fitting import Bench, Finished, measuring
from de_plugin.adapters.neural_compressor.hosting import HostLoop
from de_plugin.adapters.neural_compressor.layers import layer_info
from de_plugin.adapters.neural_compressor.proposing import Surrogate, cost_of, proposals
from de_plugin.adapters.neural_compressor.results import Tuned, advice, allowed_by, config_of
from de_plugin.adapters.neural_compressor.saving import attach, state_of
from de_plugin.adapters.neural_compressor.settings import Choice, merged
from de_plugin.adapters.neural_compressor.space import Genome, Space, asked_of
from de_plugin.adapters.neural_compressor.trials import Journal, Tolerance, Trial, scored
from de_plugin.assess.fingerprint import fingerprint
from de_plugin.assess.guard import Snapshot, check_counts
from de_plugin.encode import dumps
from de_plugin.errors import ArgumentError
from de_plugin.quantize.cost import Scale, counted, stream

Evaluate = Callable[[nn.Module], Any]

_COUNTED = 1 << 16  # weights up to which the file of every trial is really made
_EXPECTED = 1 << 22  # weights up to which the levels of every trial are really coded


class Tuning(TypedDict, total=False):
    """What `tune` takes by name, too."""

    batches: Any
    higher_is_better: bool
    cheapest: str
    checkpoint: str | os.PathLike[str] | None
    seed: int


class DETuner:
    """Evolves the bits and codebook of every layer to the cheapest within tolerance.

    With batches, the divergence from the original is measured for each layer at each number of bits, which
    needs no labels and not the user's function; proposals go along the front of cost and divergence, and
    evolve around the cheapest that passes. Without, what layers bear is learnt from the trials. Nothing is
    tried twice. The model itself is never changed.

    Args:
        model: any module.
        configs: what is allowed, a config or a list of them, with lists of values; None: 2 to 8 bits.
        tolerable_loss: how much worse the score may get, relative to the original's, see `Tolerance`.
        max_trials: at most so many, resumed ones included.
        batches: calibration data as for `de_plugin.prune`.
        higher_is_better: False for losses and errors.
        cheapest: "bytes" of the file, or mean "bits" of the weights.
        checkpoint: a JSON file; what it holds is not evaluated again.
        seed: of every draw.

    Raises:
        DEError: an argument cannot work; the message says what to do.
    """

    def __init__(
        self,
        model: nn.Module,
        configs: DEQuantConfig | Sequence[DEQuantConfig] | None = None,
        *,
        tolerable_loss: float = 0.01,
        max_trials: int = 30,
        batches: Any = None,
        higher_is_better: bool = True,
        cheapest: str = "bytes",
        checkpoint: str | os.PathLike[str] | None = None,
        seed: int = 0,
    ) -> None:
        check_counts("DETuner", max_trials=max_trials)
        if cheapest not in ("bytes", "bits"):
            raise ArgumentError(f"cheapest={cheapest!r}: expected 'bytes' or 'bits'")
        self.tolerance = Tolerance(tolerable_loss, higher_is_better)
        self.max_trials = max_trials
        self.cheapest = cheapest
        self._seed = seed
        allowed = allowed_by(configs)
        info = layer_info(model)
        given = [own.shared() for c in allowed for own in (c, *c.local_config.values())]
        self.settings = merged([*given, {"batches": batches, "seed": seed}])
        asked = asked_of(allowed, info, cheapest, self.settings.compensated is not None)
        self._original = model
        self._model = copy.deepcopy(model)
        self._bench = Bench(self._model, asked, self.settings)
        self._snapshot = Snapshot(self._model)
        self._asked = asked
        with measuring(self._model):
            self._journal = Journal(checkpoint, self._identity())
        self.trials: list[Trial] = []
        self._scorer: Evaluate | None = None
        self._winner: tuple[Trial, Finished | None] | None = None
        self._scale: Scale | None = None
        self._space: Space | None = None
        self._proposals: Generator[Genome, Trial, None] | None = None
        self.pending: Genome | None = None
        """What is to be tried next; None before the start and at the end."""

    # -- asking and telling ----------------------------------------------------------------------

    @property
    def baseline(self) -> float:
        """The original's score.

        Raises:
            ArgumentError: it is not known yet.
        """
        if self._journal.baseline is None:
            raise ArgumentError("DETuner: nothing was tried yet; call run(eval_fn) first")
        return self._journal.baseline

    @property
    def space(self) -> Space:
        """What can be chosen; measured when it is first asked for."""
        if self._space is None:
            with measuring(self._model):
                self._bench.prepare()
                self._space = Space(self._bench, self._asked, self.cheapest)
            self._snapshot.restore()
        return self._space

    def start(self, baseline: float) -> None:
        """Begin the search, or begin it anew, with the original's score."""
        self._journal.start(baseline)
        self.trials = []
        self._winner = None
        self._proposals = proposals(self.space, Surrogate(self.space), self.cheapest, self._seed)
        self.pending = self._next(None)

    def tell(self, trial: Trial, finished: Finished | None = None) -> None:
        """Keep the trial of what is pending, and go on to what is tried next."""
        self._journal.add(trial)
        self._take(trial, finished)
        self.pending = self._next(trial)

    def _next(self, trial: Trial | None) -> Genome | None:
        """Return the next proposal that was not tried before; those that were are taken as they are."""
        search = self._proposals
        if search is None:
            return None
        try:
            with measuring(self._model):
                genome = next(search) if trial is None else search.send(trial)
                while len(self.trials) < self.max_trials:
                    known = self._journal.get(self.space.choices(genome), self.tolerance)
                    if known is None:
                        return genome
                    self._take(known, None)
                    genome = search.send(known)
        except StopIteration:
            return None
        finally:
            self._snapshot.restore()
        return None

    def _take(self, trial: Trial, finished: Finished | None) -> None:
        self.trials.append(trial)
        if self._winner is None or self._rank(trial) < self._rank(self._winner[0]):
            self._winner = (trial, finished)

    def _rank(self, trial: Trial) -> tuple[Any, ...]:
        cost = cost_of(trial, self.cheapest)
        return (0, *cost) if trial.ok else (1, trial.error is not None, trial.loss, *cost)

    # -- in the host's loop ----------------------------------------------------------------------

    @cached_property
    def _loop(self) -> HostLoop:
        return HostLoop(self)

    @property
    def tuning_config(self) -> TuningConfig:
        """For the host: ``autotune(model, tuner.tuning_config, tuner.eval_fn(eval_fn))``."""
        return self._loop.config

    def eval_fn(self, eval_fn: Callable[..., Any]) -> Callable[..., float]:
        """Return the `eval_fn` that goes with `tuning_config`; the tuner keeps its trials."""
        return self._loop.telling(eval_fn)

    # -- trials ----------------------------------------------------------------------------------

    def run(self, eval_fn: Evaluate) -> Tuned:
        """Search, and return the cheapest that passes.

        A second run takes what the first one has tried as it is.

        Args:
            eval_fn: ``fn(model) -> score``; where it raises for a configuration, that trial has failed.

        Raises:
            ArgumentError: the original's score is no finite number, or is not that of a former run.
        """
        known = self._journal.baseline
        other = self._scorer is not None and self._scorer != eval_fn
        try:
            score = scored(eval_fn, self._model) if known is None or other else known
        finally:
            self._snapshot.restore()
        if known is not None and score != known:
            raise ArgumentError(
                f"eval_fn: gives the original {score}, the one that was run before gave {known}; scores of "
                "both cannot be compared: build a DETuner, and a checkpoint, for each"
            )
        self._scorer = eval_fn
        self.start(score)
        while self.pending is not None:
            self.tell(*self._tried(self.pending, eval_fn))
        return self.result()

    def _tried(self, genome: Genome, eval_fn: Evaluate) -> tuple[Trial, Finished | None]:
        started = time.monotonic()
        choices = self.space.choices(genome)
        finished, size = None, 0
        try:
            with measuring(self._model):
                finished = self._bench.finished(self.space.levels(genome))
            self._bench.write(finished)
            size = self._bytes(finished)
            score = scored(eval_fn, self._model)
        except Exception as error:  # a user's function may raise anything, and the search goes on
            told = f"{type(error).__name__}: {error}"
            return self.judged(choices, math.nan, size, time.monotonic() - started, told), None
        finally:
            self._snapshot.restore()
        return self.judged(choices, score, size, time.monotonic() - started), finished

    def judged(
        self, choices: dict[str, Choice], score: float, size: int, seconds: float, error: str | None = None
    ) -> Trial:
        """Return the trial of choices that got a score."""
        loss = math.inf if error is not None else self.tolerance.loss(score, self.baseline)
        ok = error is None and self.tolerance.accepts(loss)
        return Trial(choices, self.space.mean_bits(choices), size, score, loss, ok, seconds, error)

    def _bytes(self, finished: Finished) -> int:
        """Return the bytes of the file.

        Where recovery has changed nothing else: of large networks up to a few, their rest is coded once; of
        very large ones about, their levels too are coded once and expected in later trials.
        """
        levels, scale = finished.levels, self._scale
        weights = sum(part.weight.numel() for part in self._bench.parts)
        if weights > _COUNTED and not finished.rest and scale is not None:
            return round(
                scale.fixed + sum(map(counted, levels.values())) if weights <= _EXPECTED else scale(levels)
            )
        state, types = state_of(self._model, levels)
        size = len(dumps(state, dtypes=types, stream=stream))
        self._scale = Scale.of(size - sum(map(counted, levels.values())), levels)
        return size

    # -- results ---------------------------------------------------------------------------------

    @property
    def leading(self) -> Trial:
        """The cheapest of the trials so far that passes, or the one of least loss.

        Raises:
            ArgumentError: nothing was tried.
        """
        return self._won()[0]

    def _won(self) -> tuple[Trial, Finished | None]:
        if self._winner is None:
            raise ArgumentError("DETuner: nothing was tried yet; call run(eval_fn) first")
        return self._winner

    def host_config(self, choices: Mapping[str, Choice]) -> DEQuantConfig:
        """Return a config that gives the levels of some choices, those that are fitted already among them."""
        config = config_of(dict(choices), self.settings)
        config._fits = self._bench.fits
        return config

    def result(self) -> Tuned:
        """Return the cheapest of the trials that passes, or the one of least loss.

        Raises:
            ArgumentError: nothing was tried.
        """
        baseline = self.baseline
        trial, finished = self._won()
        if finished is None:
            with measuring(self._model):
                finished = self._bench.finished(self._bench.chosen(trial.choices))
            self._snapshot.restore()
        model = copy.deepcopy(self._original)
        self._bench.write(finished, model)
        state, types = state_of(model, finished.levels)
        exact = replace(trial, bytes=len(dumps(state, dtypes=types, stream=stream)))
        self.trials = [exact if t is trial else t for t in self.trials]
        trial, self._winner = exact, (exact, finished)
        config = config_of(trial.choices, self.settings)
        attach(model, finished.levels, config.resolved(layer_info(model)))
        model.__dict__["is_quantized"] = True
        told = advice(trial, self.trials, self.max_trials, self.settings.batches is not None)
        return Tuned(model, config, trial, tuple(self.trials), baseline, told)

    def _identity(self) -> dict[str, str]:
        """Return all that makes scores comparable, as texts."""
        data = self._bench.problem
        return {
            "model": f"{fingerprint((*self._model.parameters(), *self._model.buffers())):08x}",
            "batches": "none" if data is None else f"{data.pool.samples} samples {data.pool.digest:08x}",
            "teacher": _told(self.settings.teacher),
            "divergence": _told(self.settings.divergence),
            "forward": _told(self.settings.forward),
            "seed": str(self._seed),
            "samples": str(self.settings.samples),
            "recovery": repr(self.settings.recovery),
            "biases": str(self.settings.biases),
            "weighting": self.settings.weighting,
            "rounding": repr(self.settings.rounding),
        }


def _told(value: Any) -> str:
    """Return a text that is the same in every run: what a network holds, what a function is called."""
    if value is None or isinstance(value, str):
        return str(value)
    if isinstance(value, nn.Module):
        return f"{fingerprint((*value.parameters(), *value.buffers())):08x}"
    if isinstance(value, FunctionType | MethodType):
        return str(value.__qualname__)
    text = repr(value)
    return type(value).__qualname__ if " at 0x" in text else text
