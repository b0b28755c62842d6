"""One use of a prunable weight, and its inputs as design matrices.

A linear layer multiplies its weight with rows of inputs; a convolution is the same product with patches of
its input for rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
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

    def design(self, layer: Layer, positions: int | Tensor | None = None) -> Tensor | None:
        """Return the inputs as ``(groups, positions, in per group x kernel)``.

        Args:
            layer: the layer that was called.
            positions: keep at most this many, evenly spaced; or those of these numbers, int64, where
                samples come first and their places follow in row-major order.

        Returns:
            The design matrices in canonical order of columns, or None for an embedding, whose design is
            one-hot.
        """
        if self._one_hot(layer):
            return None
        if self.kind == "linear":
            flat = self.inputs.reshape(1, -1, self.inputs.shape[-1])
            chosen = _chosen(flat.shape[1], positions)
            return flat if chosen is None else flat[:, chosen.to(flat.device)]
        return _unfolded(self, layer, positions)

    def positions(self, layer: Layer) -> int:
        """Return how many positions the design has, samples times places; 0 for an embedding."""
        if self._one_hot(layer):
            return 0
        if self.kind == "linear":
            return self.inputs.shape[:-1].numel()
        return math.prod(_windows(self, layer)[1])

    def uses(self, layer: Layer, positions: int | Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield canonical outputs that share inputs, and these ``(positions, in per group x kernel)``.

        Args:
            layer: the layer that was called.
            positions: as of `design`.
        """
        design = self.design(layer, positions)
        if design is None:
            return
        start, stop, _ = self.rows.indices(layer.shape[0])
        width = (stop - start) // len(design)
        for group, inputs in enumerate(design):
            yield slice(start + group * width, start + (group + 1) * width), inputs

    def _one_hot(self, layer: Layer) -> bool:
        return self.kind == "embedding" or (self.kind == "linear" and isinstance(layer.module, EMBEDDING))


def _chosen(count: int, positions: int | Tensor | None) -> Tensor | None:
    """Return which of the positions stay, int64; None: all."""
    if isinstance(positions, Tensor):
        return positions
    if positions is None or count <= positions:
        return None
    return torch.linspace(0, count - 1, positions).round().long()


def _unfolded(call: Call, layer: Layer, positions: int | Tensor | None) -> Tensor:
    """Cut convolution inputs into patches."""
    windows, places = _windows(call, layer)
    chosen = _chosen(math.prod(places), positions)
    if chosen is None:
        rows = windows.reshape(-1, *windows.shape[len(places) :])
    else:
        rows = windows[torch.unravel_index(chosen.to(windows.device), places)]
    if call.kind in TRANSPOSED:
        rows = rows.flip(tuple(range(2, rows.dim())))
    return rows.reshape(len(rows), layer.groups, -1).transpose(0, 1)


def _windows(call: Call, layer: Layer) -> tuple[Tensor, tuple[int, ...]]:
    """Return a view of the patches, and the samples and places that come first in its shape.

    A transposed convolution is a plain one of the spread-out input, its kernel turned round.
    """
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
    taps = (slice(None),) * (2 + dims)
    for axis in range(dims):
        x = x.unfold(2 + axis, dilation[axis] * (kernel[axis] - 1) + 1, stride[axis])
        x = x[(*taps, *(slice(None),) * axis, slice(None, None, dilation[axis]))]
    return x.movedim(1, 1 + dims), (len(x), *x.shape[2 : 2 + dims])


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
