"""What `de-plugin compare` measures of Torch-Pruning: its importances, and Directed Evolution inside it.

Each layer loses the same share of its channels, in one step, and no method changes weights or statistics.
"taylor" and "hessian" run as the host's examples feed them: gradients of the first 512, squared gradients of
the first 128 labelled samples. In version 1.6 the one leaves batch norms out and the other keeps the last
sample only, so that both also run corrected: the engine's Taylor over all parameters of a group, and the
host's Hessian with the mean over its samples. They read labels; Directed Evolution does not.
"obdc" sets its hooks for attention alone in 1.6 and raises elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from de_plugin.adapters.torch_pruning import DEImportance, DEPruner, as_criterion
from de_plugin.adapters.torch_pruning.feeding import (
    SQUARED_SAMPLES,
    accumulate_squares,
    leave_gradient,
    plain_importances,
    see_activations,
)
from de_plugin.compare import Case, Host, Method, Pruned
from de_plugin.compare.bounded import Bounded, bounded
from de_plugin.criteria import Criterion, Taylor
from de_plugin.prune import DirectedEvolution

NAME = "torch-pruning"
_KRONECKER_SAMPLES = 256

_NOTES = (
    "torch-pruning: removes channels only; GroupNorm-, GrowingReg- and BNScalePruner train, and are left out",
    "torch-pruning: its taylor and hessian have faults in 1.6 and also run corrected",
    "torch-pruning: its obdc fails in 1.6 where a network has no attention, or biases",
)

Feed = Callable[[Case, nn.Module, Any, Any], None]
"""Lets an importance see data: ``fn(case, model, importance, pruner)``."""


def host() -> Host:
    """Return all methods of the host, Directed Evolution first."""
    found = tp.importance
    fed: dict[str, tuple[Callable[[], Any], Feed]] = {
        "taylor": (found.GroupTaylorImportance, _gradient),
        "hessian": (found.GroupHessianImportance, _squares),
        "activation": (found.ActivationImportance, _activations),
        "obdc": (found.OBDCImportance, _kronecker),
    }
    corrected: dict[str, Callable[[], Criterion]] = {
        "taylor (corrected)": partial(Taylor, labels=True),
        "hessian (corrected)": lambda: as_criterion(found.GroupHessianImportance(), samples=SQUARED_SAMPLES),
    }
    runs: dict[str, tuple[Callable[[Case], Pruned], str]] = {
        "de": (partial(_evolved, DirectedEvolution.brief, False), "all groups evolve together"),
        "de importance": (_importance, "each group evolves by itself"),
        **{n: (partial(_built_in, make, None), "built in") for n, make in plain_importances().items()},
        **{n: (partial(_built_in, make, feed), "built in") for n, (make, feed) in fed.items()},
        **{n: (partial(_evolved, make, True), "built in, corrected") for n, make in corrected.items()},
    }
    return Host(
        NAME,
        {NAME: metadata.version(NAME)},  # the module's own is behind
        tuple(Method("channels", NAME, n, run, about) for n, (run, about) in runs.items()),
        _NOTES,
    )


def _options(case: Case, model: nn.Module) -> dict[str, Any]:
    return {
        "pruning_ratio": case.sparsity,
        "ignored_layers": [model.get_submodule(name) for name in case.keep],
        "num_heads": _heads(model),
    }


def _heads(model: nn.Module) -> dict[nn.Module, int]:
    """Return the heads of attention modules that make queries, keys and values by one linear layer."""
    found: dict[nn.Module, int] = {}
    for module in model.modules():
        heads, layer = getattr(module, "num_heads", None), getattr(module, "qkv", None)
        if isinstance(heads, int) and isinstance(layer, nn.Linear):
            found[layer] = heads
    return found


def _evolved(make: Callable[[], Criterion], labels: bool, case: Case) -> Pruned:
    """Prune by a criterion of the engine, all groups of the step together."""
    model, search = case.copy(), bounded(make(), case.budget)
    batches: Any = (case.inputs, case.labels) if labels else case.inputs
    options = {**case.asked(), **_options(case, model)}
    pruner = DEPruner(model, _example(case), batches, criterion=search, match_batchnorm=False, **options)
    pruner.step()
    return _result(model, search)


def _importance(case: Case) -> Pruned:
    model, search = case.copy(), bounded(DirectedEvolution.brief(), case.budget)
    importance = DEImportance(model, case.inputs, criterion=search, **case.asked())
    tp.pruner.BasePruner(model, _example(case), importance, **_options(case, model)).step()
    return _result(model, search)


def _result(model: nn.Module, search: Bounded) -> Pruned:
    return Pruned(model, evaluations=search.evaluations, curve=tuple(search.curve))


def _built_in(make: Callable[[], Any], feed: Feed | None, case: Case) -> Pruned:
    model, importance = case.copy(), make()
    pruner = tp.pruner.BasePruner(model, _example(case), importance, **_options(case, model))
    if feed is not None:
        feed(case, model, importance, pruner)
    pruner.step()
    model.zero_grad()
    return Pruned(model, evaluations=0)


def _example(case: Case) -> Any:
    """Return the inputs of one sample as the host takes them."""
    return case.inputs[:1]


# -- what the host's examples do before a step -----------------------------------------------------


def _losses(case: Case, model: nn.Module, samples: slice) -> Tensor:
    return case.loss(case.forward(model, case.inputs[samples]), case.labels[samples])


def _gradient(case: Case, model: nn.Module, _importance: Any, _pruner: Any) -> None:
    leave_gradient(model, partial(_losses, case, model))


def _squares(case: Case, model: nn.Module, importance: Any, _pruner: Any) -> None:
    accumulate_squares(model, importance, partial(_losses, case, model))


def _activations(case: Case, model: nn.Module, importance: Any, _pruner: Any) -> None:
    see_activations(model, importance, lambda samples: case.forward(model, case.inputs[samples]))


def _kronecker(case: Case, model: nn.Module, importance: Any, pruner: Any) -> None:
    """Let hooks of the host's see gradients of labels that are drawn from the model's own outputs."""
    importance._prepare_model(model, pruner)
    for inputs in case.inputs[:_KRONECKER_SAMPLES].split(64):
        outputs = case.forward(model, inputs)
        importance.num_classes = outputs.shape[1]
        drawn = torch.multinomial(outputs.softmax(1).detach(), 1)[:, 0]
        model.zero_grad()
        nn.functional.cross_entropy(outputs, drawn).backward()
        importance.step()
    importance._rm_hooks(model)
