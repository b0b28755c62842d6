"""How images lie in memory: with their channels last, processors convolve and pool them in half the time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from de_plugin.types import PyTree

_TRIED = 2
"""Samples that tell whether a model takes them."""

_NARROW = 32
"""Channels below which strided pointwise convolutions keep the plain layout.

With channels last, the kernel for the gradient of their weights writes past its buffer where there
are fewer than it takes at once (oneDNN in torch 2.13; 8 with AVX2).
"""


def channels_last(images: Tensor) -> Tensor:
    """Return images ``(samples, channels, height, width)`` with their channels last in memory.

    Where there is one channel both layouts hold the same bytes, and only the strides tell them apart.
    """
    if images.shape[1] > 1:
        return images.contiguous(memory_format=torch.channels_last)
    samples, _, height, width = images.shape
    return images.contiguous().as_strided((samples, 1, height, width), (height * width, 1, width, 1))


def selected(images: Tensor, index: Tensor) -> Tensor:
    """Return some of the images that `channels_last` has laid out, laid out as well, by one copy."""
    return images.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)


def cat(parts: Sequence[Tensor]) -> Tensor:
    """Return all samples, laid out as those of the first part are."""
    whole = torch.cat(list(parts))
    return channels_last(whole) if is_channels_last(parts[0]) else whole


def is_channels_last(x: Any) -> bool:
    """Tell whether something holds images that `channels_last` has laid out."""
    return isinstance(x, Tensor) and x.dim() == 4 and x.stride(1) == 1 and x.stride(3) == x.shape[1]


def takes_channels_last(forward: Callable[..., Any], model: nn.Module, inputs: PyTree) -> bool:
    """Tell whether a model gets its images with their channels last.

    So it does where the inputs are one tensor of images on a processor, the model holds convolutions of
    images none of which is a narrow pointwise one with a stride, and it answers the same; one that cuts its
    features by ``view`` fails and gets them as they are.

    Args:
        forward: calls the model without a gradient.
        model: in eval mode.
        inputs: of one forward pass.
    """
    if not isinstance(inputs, Tensor) or inputs.dim() != 4 or inputs.device.type != "cpu":
        return False
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    if not layers or any(map(_harmful, layers)):
        return False
    try:
        plain = tree_flatten(forward(model, inputs[:_TRIED]))[0]
        laid = tree_flatten(forward(model, channels_last(inputs[:_TRIED])))[0]
    except Exception:  # a model may raise anything; what is wrong with it anyway is told when it is asked
        return False
    same = len(plain) == len(laid)
    return same and all(_close(x, y) for x, y in zip(plain, laid, strict=True) if isinstance(x, Tensor))


def _harmful(layer: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    """Tell whether the gradient of a layer's weights is not to be trusted with channels last."""
    pointwise = max(layer.kernel_size) == 1 and max(layer.stride) > 1
    return pointwise and min(layer.in_channels, layer.out_channels) < _NARROW * layer.groups


def _close(x: Tensor, y: Tensor) -> bool:
    if x.shape != y.shape or not x.is_floating_point():
        return x.shape == y.shape and torch.equal(x, y)
    scale = float(x.abs().max()) if x.numel() else 0.0
    return torch.allclose(x, y, rtol=1e-4, atol=1e-5 * scale)
