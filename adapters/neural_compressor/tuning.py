"""The tuner in one call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from de_plugin.adapters.neural_compressor.config import DEQuantConfig
from de_plugin.adapters.neural_compressor.results import Tuned
from de_plugin.adapters.neural_compressor.tuner import DETuner, Evaluate


def tune(
    model: nn.Module,
    eval_fn: Evaluate,
    configs: DEQuantConfig | Sequence[DEQuantConfig] | None = None,
    *,
    tolerable_loss: float = 0.01,
    max_trials: int = 30,
    batches: Any = None,
    higher_is_better: bool = True,
    cheapest: str = "bytes",
    checkpoint: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Tuned:
    """Return the cheapest levels of a model whose score is within tolerance; see `DETuner`.

    Args:
        model: any module; it is not changed.
        eval_fn: ``fn(model) -> score``, such as accuracy, or `agreement(model, batches)`.
        configs: what is allowed, with lists of values; None: 2 to 8 bits for all layers.
        tolerable_loss: how much worse the score may get, relative to the original's, see `Tolerance`.
        max_trials: at most so many, resumed ones included.
        batches: calibration data; with them far fewer trials are needed.
        higher_is_better: False for losses and errors.
        cheapest: "bytes" of the file, or mean "bits" of the weights.
        checkpoint: a JSON file; what it holds is not evaluated again.
        seed: of every draw.

    Raises:
        DEError: an argument cannot work; the message says what to do.
    """
    tuner = DETuner(
        model,
        configs,
        tolerable_loss=tolerable_loss,
        max_trials=max_trials,
        batches=batches,
        higher_is_better=higher_is_better,
        cheapest=cheapest,
        checkpoint=checkpoint,
        seed=seed,
    )
    return tuner.run(eval_fn)
