"""Measures how often a classifier is right."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from de_plugin.errors import ArgumentError, DataError


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor, batch_size: int = 2000) -> float:
    """The share of inputs whose largest logit is the label's, in percent.

    The model is measured in eval mode without gradients; afterwards every module is in the mode in
    which it was, also after an exception.

    Args:
        model: maps (n, ...) to logits (n, classes).
        inputs: (n, ...); batches are moved to the device of the model's parameters.
        labels: integers (n,).
        batch_size: inputs a pass, at least 1; it bounds the memory and does not change the result.

    Returns:
        0 to 100.

    Raises:
        ArgumentError: ``batch_size`` is below 1.
        DataError: there are no inputs, or not one label for each.
    """
    if batch_size < 1:
        raise ArgumentError(f"batch_size is {batch_size}, expected at least 1")
    if len(inputs) == 0 or labels.shape != inputs.shape[:1]:
        raise DataError(
            f"inputs have the shape {tuple(inputs.shape)} and labels {tuple(labels.shape)}, "
            "expected at least one input and labels of the shape (inputs,)"
        )
    device = next((tensor.device for tensor in model.parameters()), inputs.device)
    modes = [(module, module.training) for module in model.modules()]
    right = 0
    try:
        model.eval()
        with torch.no_grad():
            for start in range(0, len(inputs), batch_size):
                part = slice(start, start + batch_size)
                predicted = model(inputs[part].to(device)).argmax(1)
                right += int((predicted == labels[part].to(device)).sum())
    finally:
        for module, training in modes:
            module.training = training
    return 100.0 * right / len(inputs)
