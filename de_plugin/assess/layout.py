"""How images lie in memory: with their channels last, processors convolve and pool them in half the time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from de_plugin.errors import DataError
from de_plugin.types import PyTree

_TRIED = 2
"""Samples that tell whether a model takes them."""


def channels_last(images: Tensor) -> Tensor:
    """Return images ``(samples, channels, height, width)`` with their channels last in memory.

    Where there is one channel both layouts hold the same bytes, and only the strides tell them apart.
    """
    if images.shape[1] > 1:
        return images.contiguous(memory_format=torch.channels_last)
    samples, _, height, width = images.shape
    return images.contiguous().as_strided((samples, 1, height, width), (height * width, 1, width, 1))


def is_channels_last(x: Any) -> bool:
    """Tell whether something holds images that `channels_last` has laid out."""
    return isinstance(x, Tensor) and x.dim() == 4 and x.stride(1) == 1 and x.stride(3) == x.shape[1]


def prefers_channels_last(forward: Callable[..., Any], model: nn.Module, inputs: PyTree) -> bool:
    """Tell whether a model is faster with its images' channels last, and answers the same.

    It isn't where it holds no convolution of images or does not run on a processor; one that cuts its
    features by ``view`` doesn't take them.

    Args:
        forward: calls the model without a gradient; raises `DataError` where the inputs don't suit it.
        model: in eval mode.
        inputs: of one forward pass.
    """
    if not isinstance(inputs, Tensor) or inputs.dim() != 4 or inputs.device.type != "cpu":
        return False
    if not any(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in model.modules()):
        return False
    try:
        plain = forward(model, inputs[:_TRIED])
        laid = forward(model, channels_last(inputs[:_TRIED]))
    except DataError:
        return False
    pairs = list(zip(tree_flatten(plain)[0], tree_flatten(laid)[0], strict=True))
    return all(_close(x, y) for x, y in pairs if isinstance(x, Tensor))


def _close(x: Tensor, y: Tensor) -> bool:
    if x.shape != y.shape or not x.is_floating_point():
        return x.shape == y.shape and torch.equal(x, y)
    scale = float(x.abs().max()) if x.numel() else 0.0
    return torch.allclose(x, y, rtol=1e-4, atol=1e-5 * scale)
