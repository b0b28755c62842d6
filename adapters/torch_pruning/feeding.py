"""The host's importances that read weights alone, and what its examples do to feed the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

GRADIENT_SAMPLES = 512
"""Labelled samples whose mean gradient Taylor gets."""

SQUARED_SAMPLES = 128
"""Labelled samples whose squared gradients Hessian gets."""


def plain_importances() -> dict[str, Callable[[], Any]]:
    """Return the makers of importances that need no more than the network, by name."""
    found = tp.importance
    return {
        "magnitude l1": partial(found.GroupMagnitudeImportance, p=1),
        "magnitude l2": partial(found.GroupMagnitudeImportance, p=2),
        "bn scale": found.BNScaleImportance,
        "lamp": found.LAMPImportance,
        "fpgm": found.FPGMImportance,
        "random": found.RandomImportance,
    }


def leave_gradient(model: nn.Module, losses: Callable[[slice], Tensor]) -> None:
    """Leave the gradient of the mean loss in `.grad`, as the host's examples do for Taylor.

    Args:
        model: that is pruned.
        losses: ``fn(samples) -> (count,)``, of a slice of the samples.
    """
    model.zero_grad()
    losses(slice(0, GRADIENT_SAMPLES)).mean().backward()


def see_activations(model: nn.Module, importance: Any, forward: Callable[[slice], Any]) -> None:
    """Let hooks of an ActivationImportance see the inputs of every layer.

    Args:
        model: that is pruned.
        importance: of the host, with `compute_importance`.
        forward: ``fn(samples)`` calls the model on a slice of the samples.
    """
    with importance.compute_importance(model), torch.no_grad():
        forward(slice(0, GRADIENT_SAMPLES))


def accumulate_squares(model: nn.Module, importance: Any, losses: Callable[[slice], Tensor]) -> None:
    """Accumulate squared gradients sample by sample, as the host's examples do for Hessian.

    Each has a pass of its own: the examples go back through the whole batch for each of its samples, which
    gives the same, and takes as many times as long as there are samples.

    Args:
        model: that is pruned.
        importance: of the host, with `accumulate_grad`.
        losses: ``fn(samples) -> (count,)``, of a slice of the samples.
    """
    importance.zero_grad()
    for n in range(SQUARED_SAMPLES):
        loss = losses(slice(n, n + 1))
        if len(loss) == 0:
            break
        model.zero_grad()
        loss.sum().backward()
        importance.accumulate_grad(model)
