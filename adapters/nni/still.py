"""How the host's own pruners are fed and looked at without changing anything but masks."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

with warnings.catch_warnings():  # NNI is older than the torch it runs on
    warnings.simplefilter("ignore")
    import nni
    from nni.compression.utils import TorchEvaluator

BATCH = 32
"""Samples in a step of `still_evaluator`."""

Masks = Mapping[str, Mapping[str, Tensor]]
"""By module and target."""


def still_evaluator(
    model: nn.Module, inputs: Tensor, labels: Tensor, loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
) -> Any:
    """Return what goes through labelled samples in order, with gradients, and changes nothing.

    Args:
        model: that the pruner is given.
        inputs: ``(samples, ...)``.
        labels: ``(samples, ...)``.
        loss: ``fn(student, inputs, labels) -> 0-dim``.
    """

    def train(
        student: nn.Module,
        optimizer: Any,
        step: Any,
        _scheduler: Any = None,
        max_steps: int | None = None,
        _max_epochs: int | None = None,
    ) -> None:
        student.eval()
        parts = list(zip(inputs.split(BATCH), labels.split(BATCH), strict=True))
        for number in range(max_steps or len(parts)):
            optimizer.zero_grad()
            step(parts[number % len(parts)], student).backward()
            optimizer.step()

    return TorchEvaluator(
        train,
        nni.trace(torch.optim.SGD)(model.parameters(), lr=0.0),
        lambda batch, student: loss(student, *batch),
    )


def given(found: Mapping[str, Mapping[str, Tensor | None]]) -> Masks:
    """Return the host's masks without those that are none."""
    return {n: {t: m for t, m in targets.items() if m is not None} for n, targets in found.items()}


def masked(model: nn.Module, masks: Masks) -> nn.Module:
    """Return a copy as the host's wrappers make it compute."""
    result = copy.deepcopy(model)
    for name, targets in masks.items():
        for target, mask in targets.items():
            result.get_submodule(name).get_parameter(target).data.mul_(mask)
    return result
