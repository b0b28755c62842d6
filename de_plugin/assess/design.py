"""One use of a prunable weight, and its inputs as design matrices.

A linear layer multiplies its weight with rows of inputs; a convolution is the same product with patches of
its input for rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from de_plugin.assess.layers import EMBEDDING, Layer

CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}
TRANSPOSED = {"conv_transpose1d": 1, "conv_transpose2d": 2, "conv_transpose3d": 3}


@dataclass(frozen=True)
class Call:
    """One use of a prunable weight.

    Attributes:
        layer: position in ``problem.units.layers``.
        rows: which canonical outputs this call computes (attention projects in parts).
        linear: ``linear(input, weight)`` repeats the product without bias, for any input and any weight
            of the used rows in the parameter's own layout.
        inputs: what the weight is applied to.
    """

    layer: int
    rows: slice
    linear: Callable[[Tensor, Tensor], Tensor]
    inputs: Tensor
    kind: str
    options: dict[str, Any]

    def design(self, layer: Layer, positions: int | None = None) -> Tensor | None:
        """Return the inputs as ``(groups, positions, in per group x kernel)``.

        Args:
            layer: the layer that was called.
            positions: keep at most this many, evenly spaced.

        Returns:
            The design matrices in canonical order of columns, or None for an embedding, whose design is
            one-hot.
        """
        if self.kind == "embedding" or (self.kind == "linear" and isinstance(layer.module, EMBEDDING)):
            return None
        if self.kind == "linear":
            flat = self.inputs.reshape(1, -1, self.inputs.shape[-1])
            return flat[:, _spaced(flat.shape[1], positions)]
        return _unfolded(self, layer, positions)


def _spaced(count: int, positions: int | None) -> Tensor | slice:
    if positions is None or count <= positions:
        return slice(None)
    return torch.linspace(0, count - 1, positions).round().long()


def _unfolded(call: Call, layer: Layer, positions: int | None) -> Tensor:
    """Cut convolution inputs into patches; a transposed one is a plain one of the spread-out input."""
    kernel = tuple(layer.shape[2:])
    dims = len(kernel)
    x = call.inputs if call.inputs.dim() == dims + 2 else call.inputs[None]
    stride, padding, dilation = (call.options[k] for k in ("stride", "padding", "dilation"))
    if call.kind in TRANSPOSED:
        spread = x.new_zeros(
            *x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True))
        )
        steps: tuple[slice, ...] = tuple(slice(None, None, s) for s in stride)
        spread[(slice(None), slice(None), *steps)] = x
        extra = call.options["output_padding"]
        pads = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
        x = F.pad(spread, pad_list([(p, p + e) for p, e in zip(pads, extra, strict=True)]))
        stride = (1,) * dims
    else:
        x = F.pad(x, pad_list(padding))
    for axis in range(dims):
        size = x.shape[2 + 2 * axis] - dilation[axis] * (kernel[axis] - 1)
        at = torch.arange(0, size, stride[axis])[:, None] + torch.arange(kernel[axis]) * dilation[axis]
        if call.kind in TRANSPOSED:
            at = at.flip(1)
        x = x.index_select(2 + 2 * axis, at.flatten().to(x.device)).unflatten(2 + 2 * axis, at.shape)
    order = [2 + 2 * a for a in range(dims)]
    taps = [3 + 2 * a for a in range(dims)]
    grouped = x.permute([1, 0, *order, *taps])
    channels = grouped.shape[0]
    flat = grouped.reshape(layer.groups, channels // layer.groups, -1, math.prod(kernel))
    flat = flat[:, :, _spaced(flat.shape[2], positions)]
    return flat.transpose(1, 2).reshape(layer.groups, flat.shape[2], -1)


def several(value: Any, dims: int) -> tuple[int, ...]:
    """Return a stride, padding or dilation as one number for each of `dims` dimensions."""
    if isinstance(value, int):
        return (int(value),) * dims
    return tuple(int(v) for v in value) * (dims if len(value) == 1 else 1)


def paddings(value: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[tuple[int, int]]:
    """Return what a convolution's `padding` (numbers or a word) adds to both ends of each dimension."""
    if isinstance(value, str):
        total = [0 if value == "valid" else d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [(t // 2, t - t // 2) for t in total]
    return [(p, p) for p in several(value, len(kernel))]


def pad_list(padding: Iterable[tuple[int, int]]) -> list[int]:
    """Return the pairs in the order of `torch.nn.functional.pad`: the last dimension first."""
    return [n for pair in reversed(list(padding)) for n in pair]
