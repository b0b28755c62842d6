"""Directed Evolution and the built-in criteria of Torch-Pruning on one network, for `dropin.py`.

Each layer loses the same share of its channels. No method changes weights or statistics. Not all see as many
calibration samples: Directed Evolution may read all of them, "taylor" gets the gradient of the first 512,
"activation" their activations, "hessian" the squared gradients of the first 128. These run as the host's
examples feed them; in version 1.6.1 "taylor" leaves batch norms out and "hessian" keeps the last sample only,
so they also run corrected: "taylor (corrected)" is the engine's, over all parameters of a group, "hessian
(corrected)" the host's with the mean over its samples, both with the cross-entropy of the true classes.
OBDCImportance fails in that version where layers have biases or no attention, so that it runs corrected only.
These use labels; Directed Evolution does not.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
import torch_pruning as tp
from dropin_networks import Case, size
from torch import Tensor, nn

from de_plugin import Taylor
from de_plugin.adapters.torch_pruning import DEImportance, DEPruner, as_criterion
from de_plugin.adapters.torch_pruning.feeding import (
    accumulate_squares,
    leave_gradient,
    plain_importances,
    see_activations,
)

CORRECTED: dict[str, Callable[[], Any]] = {
    "taylor (corrected)": lambda: Taylor(labels=True),
    "hessian (corrected)": lambda: as_criterion(tp.importance.GroupHessianImportance()),
    "obdc (corrected)": lambda: as_criterion(tp.importance.OBDCImportance()),
}
"""Criteria that a pruner of ours runs, with labels."""


METHODS = (
    "de",
    "de importance",
    *plain_importances(),
    "taylor",
    "taylor (corrected)",
    "hessian",
    "hessian (corrected)",
    "activation",
    "obdc (corrected)",
)
VERSIONS = {"torch-pruning": metadata.version("torch-pruning")}  # its own is behind


def row(case: Case, method: str, ratio: float, steps: int, seed: int) -> dict[str, Any]:
    """Prune a copy once and measure it as the host leaves it."""
    model = copy.deepcopy(case.model)
    started = time.monotonic()
    pruner, feed = _pruner(case, method, model, ratio, steps, seed)
    for _ in range(steps):
        feed()
        pruner.step()
    seconds = time.monotonic() - started
    model.zero_grad()
    return {**size(model, case.inputs), **case.measured(model), "seconds": seconds}


def _pruner(
    case: Case, method: str, model: nn.Module, ratio: float, steps: int, seed: int
) -> tuple[Any, Callable[[], None]]:
    """Return a method's pruner, and what feeds it before each step."""
    inputs, example = case.inputs, case.inputs[:1]
    options: dict[str, Any] = {
        "pruning_ratio": ratio,
        "iterative_steps": steps,
        "ignored_layers": [model.get_submodule(name) for name in case.ignored],
        "num_heads": {model.get_submodule(name): heads for name, heads in case.heads.items()},
    }
    asked: dict[str, Any] = {"seed": seed, "divergence": case.divergence}
    torch.manual_seed(seed)
    if method == "de" or method in CORRECTED:
        corrected = CORRECTED.get(method)
        batches: Any = inputs if corrected is None else (inputs, case.labels)
        criterion: Any = case.search if corrected is None else corrected()
        pruner = DEPruner(
            model, example, batches, criterion=criterion, match_batchnorm=False, **asked, **options
        )
        return pruner, lambda: None
    if method == "de importance":
        importance: Any = DEImportance(model, inputs, case.search, **asked)
    elif method == "taylor":
        importance = tp.importance.GroupTaylorImportance()
    elif method == "hessian":
        importance = tp.importance.GroupHessianImportance()
    elif method == "activation":
        importance = tp.importance.ActivationImportance()
    else:
        importance = plain_importances()[method]()

    def losses(samples: slice) -> Tensor:
        found: Tensor = case.losses(model(case.inputs[samples]), case.labels[samples])
        return found

    feeds: dict[str, Callable[[], None]] = {
        "activation": lambda: see_activations(model, importance, lambda x: model(case.inputs[x])),
        "taylor": lambda: leave_gradient(model, losses),
        "hessian": lambda: accumulate_squares(model, importance, losses),
    }
    return tp.pruner.BasePruner(model, example, importance, **options), feeds.get(method, lambda: None)
