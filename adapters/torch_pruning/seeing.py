"""What importances of Torch-Pruning see of data inside a block, without a trace in the model afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from de_plugin.assess.problem import Problem
from de_plugin.errors import GradientError

_SEEN = ("Fisher", "modules", "steps", "num_classes")
"""What an OBDCImportance keeps of a backward pass."""
_MARK = "_importance"
"""Under this name the host leaves in a layer what an ActivationImportance reads."""


def loss_of(outputs: Any, labels: Any, teacher: Any) -> Tensor:
    """Return the mean cross-entropy with the labels, or with the teacher's decisions.

    Raises:
        GradientError: the outputs are no logits.
    """
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:
        raise GradientError(
            "importance: needs gradients of a loss, and the outputs are no logits (samples, classes); use an "
            "importance that needs none, or Fisher() of the engine"
        )
    targets = labels if isinstance(labels, Tensor) else teacher.argmax(1)
    return F.cross_entropy(outputs, targets)


@contextmanager
def activations_seen(problem: Problem, importance: Any, samples: int) -> Iterator[None]:
    """Let an ActivationImportance see the inputs of all layers inside the block."""
    modules = list(problem.model.modules())
    own = [(m, m.__dict__[_MARK]) for m in modules if _MARK in m.__dict__]
    index = problem.draw(samples)
    try:
        with ExitStack() as hooks, torch.no_grad():
            hooks.enter_context(_removing_hooks(modules))
            hooks.enter_context(importance.compute_importance(problem.model))
            for batch in problem.pool.take(index, len(index)):
                problem.forward(problem.model, batch.inputs)
        yield
    finally:
        for m in modules:
            m.__dict__.pop(_MARK, None)
        for m, value in own:
            m.__dict__[_MARK] = value


@contextmanager
def _removing_hooks(modules: list[nn.Module]) -> Iterator[None]:
    """Remove forward hooks that are new at the end, also after an error, where the host leaves its own."""
    before = [set(m._forward_hooks) for m in modules]
    try:
        yield
    finally:
        for m, known in zip(modules, before, strict=True):
            for key in [k for k in m._forward_hooks if k not in known]:
                del m._forward_hooks[key]


@contextmanager
def squares_seen(problem: Problem, importance: Any, squares: Mapping[int, Tensor]) -> Iterator[None]:
    """Let an OBDCImportance have the squared gradients of layers' weights inside the block.

    What the host's own hooks gather of them, in version 1.6.1 of Torch-Pruning, is one column too many where
    a layer has a bias, and nothing where a network has no attention.

    Args:
        problem: whose student is ranked.
        importance: the host's.
        squares: mean squared gradients over samples, by the identity of the parameter.
    """
    saved = {name: getattr(importance, name) for name in _SEEN}
    layers = [m for m in problem.model.modules() if isinstance(m, tuple(importance.target_types))]
    try:
        importance.modules, importance.steps = layers, 1
        importance.num_classes = -1  # the layer of the classes may have to go as well
        by_layer = {m: squares[id(m.weight)] for m in layers}
        importance.Fisher = {
            m: (x.transpose(0, 1) if getattr(m, "transposed", False) else x).flatten(1)
            for m, x in by_layer.items()
        }
        yield
    finally:
        for name, value in saved.items():
            setattr(importance, name, value)
