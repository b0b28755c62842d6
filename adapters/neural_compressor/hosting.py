"""The tuner inside the host's own `autotune`: a sampler that asks, and an eval function that tells."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from neural_compressor.common.base_tuning import ConfigSet, Sampler
from neural_compressor.torch.quantization import TuningConfig
from torch import nn

from de_plugin.adapters.neural_compressor.config import DEQuantConfig
from de_plugin.adapters.neural_compressor.saving import levels_of, state_of
from de_plugin.adapters.neural_compressor.trials import Trial, scored
from de_plugin.encode import dumps
from de_plugin.quantize.cost import stream

if TYPE_CHECKING:
    from de_plugin.adapters.neural_compressor.tuner import DETuner

_NEVER = -1e9  # a tolerable loss that no trial reaches: the host would stop at the first that does


class HostLoop:
    """What `autotune` needs to be led by a tuner.

    The host keeps the trial of the highest number, so that passing ones get 1 and what they save of the
    original's bytes, and failing ones less than 1.

    Args:
        tuner: asks and is told.
    """

    def __init__(self, tuner: DETuner) -> None:
        self._tuner = tuner
        self.config = TuningConfig(
            [DEQuantConfig()], sampler=self._sampler, tolerable_loss=_NEVER, max_trials=tuner.max_trials
        )
        self._clock = time.monotonic()
        self._mine: list[Trial] = []

    def _sampler(self, config_set: ConfigSet) -> Sampler:
        loop = self

        class Asking(Sampler):
            """Yields the number of the config that is pending, as long as there is one.

            Then that of the winner, where it comes from a checkpoint and the host has not seen it.
            """

            def __iter__(self) -> Iterator[int]:
                tuner = loop._tuner
                loop._mine = []
                loop.config.max_trials = tuner.max_trials + 1
                config_set.config_list.clear()
                while tuner.pending is not None:
                    config_set.config_list.append(tuner.host_config(tuner.space.choices(tuner.pending)))
                    loop._clock = time.monotonic()
                    yield len(config_set) - 1
                config_set.config_list.append(tuner.host_config(tuner.leading.choices))
                loop.config.max_trials = len(config_set)
                yield len(config_set) - 1

        return Asking(config_set)

    def telling(self, eval_fn: Callable[..., Any]) -> Callable[..., float]:
        """Return an `eval_fn` for `autotune` that tells the tuner; it meets the original first."""
        begun = False

        def evaluate(model: nn.Module, *args: Any) -> float:
            nonlocal begun
            if not begun:
                begun = True
                self._tuner.start(scored(lambda m: eval_fn(m, *args), model))
                return 1.0
            return self._told(model, lambda m: eval_fn(m, *args))

        return evaluate

    def _told(self, model: nn.Module, eval_fn: Callable[[nn.Module], Any]) -> float:
        tuner = self._tuner
        if tuner.pending is None:
            return self._rated(tuner.leading)
        choices = tuner.space.choices(tuner.pending)
        state, types = state_of(model, levels_of(model))
        size = len(dumps(state, dtypes=types, stream=stream))
        score, error = float("nan"), None
        try:
            score = scored(eval_fn, model)
        except Exception as reason:  # a user's function may raise anything, and the search goes on
            error = f"{type(reason).__name__}: {reason}"
        trial = tuner.judged(choices, score, size, time.monotonic() - self._clock, error)
        self._mine.append(trial)
        tuner.tell(trial)
        if tuner.pending is None and any(x is tuner.leading for x in self._mine):
            self.config.max_trials = len(self._mine)
        return self._rated(trial)

    def _rated(self, trial: Trial) -> float:
        """Return what the host compares: the more the better."""
        if not trial.ok:
            if trial.error is not None or not math.isfinite(trial.loss):
                return 0.0
            return 0.45 * (1 - trial.loss / (1 + abs(trial.loss)))  # falls with the loss, whatever its sign
        saved = trial.bytes if self._tuner.cheapest == "bytes" else trial.mean_bits
        return 1.0 + 1.0 / (1.0 + saved)
