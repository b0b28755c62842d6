"""The tuner in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from de_plugin.adapters.neural_compressor.config import DEQuantConfig
from de_plugin.adapters.neural_compressor.results import Tuned
from de_plugin.adapters.neural_compressor.tuner import DETuner, Evaluate, Tuning

if TYPE_CHECKING:
    from typing_extensions import Unpack


def tune(
    model: nn.Module,
    eval_fn: Evaluate,
    configs: DEQuantConfig | Sequence[DEQuantConfig] | None = None,
    tolerable_loss: float = 0.01,
    max_trials: int = 30,
    **options: Unpack[Tuning],
) -> Tuned:
    """Return the cheapest levels of a model whose score is within tolerance.

    Args:
        model: any module; it is not changed.
        eval_fn: ``fn(model) -> score``, such as accuracy, or `agreement(model, batches)`.
        configs: what is allowed, with lists of values; None: 2 to 8 bits for all layers.
        tolerable_loss: how much worse the score may get, relative to the original's.
        max_trials: at most so many.
        options: those of `DETuner`: ``batches``, ``higher_is_better``, ``checkpoint`` and so on.

    Raises:
        DEError: an argument cannot work; the message says what to do.
    """
    tuner = DETuner(model, configs, tolerable_loss=tolerable_loss, max_trials=max_trials, **options)
    return tuner.run(eval_fn)
