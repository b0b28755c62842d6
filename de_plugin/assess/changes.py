"""How one layer differs from candidate to candidate, and what the layer gives for all of them at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from de_plugin.assess.bits import zeroed
from de_plugin.assess.design import CONVOLUTIONS, pad_list, paddings, several
from de_plugin.assess.layers import Layer

SCATTERED = 12
"""A multiplication by a scattered weight costs about so many in a dense product."""
TOUCHED = 64
"""Writing a number takes about as long as so many multiplications."""


def scattered_work(flips: int, weights: int, outputs: int) -> int:
    """Return what a product with scattered weights costs a position, in multiplications of a dense one.

    Its inputs are laid out anew for it.

    Args:
        flips: weights that differ, over all candidates.
        weights: of the layer.
        outputs: of the layer.
    """
    return SCATTERED * flips + TOUCHED * weights // outputs


@dataclass(frozen=True)
class Product:
    """One call of a layer: ``func(input, weight, bias, **options)``.

    Attributes:
        func: `torch.nn.functional.linear` or a convolution.
        bias: the student's.
        options: stride, padding and the like.
    """

    func: Callable[..., Tensor]
    bias: Tensor | None
    options: dict[str, Any]

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute it for one input and one weight."""
        return self.func(x, weight, bias, **self.options)

    def biased(self, y: Tensor) -> Tensor:
        """Add the student's bias to outputs ``(candidates, *output)``."""
        if self.bias is None:
            return y
        return y + self.bias.reshape(-1, *([1] * self.dims))

    @property
    def dims(self) -> int:
        """Spatial dimensions: 0 for a linear layer."""
        return CONVOLUTIONS.get(getattr(self.func, "__name__", ""), 0)

    @property
    def groups(self) -> int:
        """Groups of a convolution."""
        return int(self.options.get("groups", 1))


class Change(Protocol):
    """What a layer computes for each candidate."""

    @property
    def layer(self) -> Layer:
        """Return which one."""

    def from_one(self, product: Product, x: Tensor, parent: Tensor | None) -> Tensor:
        """Return ``(candidates, *output)`` for an input that all share.

        Args:
            product: the call.
            x: its input.
            parent: what the student gives for it, where that is known.
        """

    def from_many(self, product: Product, x: Tensor) -> Tensor:
        """Return ``(candidates, *output)`` for inputs ``(candidates, *input)``."""

    def weights(self) -> Tensor:
        """Return ``(candidates, *parameter.shape)``."""


@dataclass(frozen=True)
class Weights:
    """Weights that differ: masks over the dense weight, or a few flips of the student's.

    Attributes:
        layer: which one.
        dense: the weight with nothing zeroed, in the parameter's own shape.
        masks: makes ``(candidates, *parameter.shape)`` bool.
        candidates: how many there are.
        size: how many weights differ, over all candidates.
        places: makes the candidate, the canonical position and the sign of each weight that differs, the
            candidates ascending and for each of them the positions; 1 where it comes back, -1 where it goes.
        keep: hold the masked weights from one pass to the next.
    """

    layer: Layer
    dense: Tensor
    masks: Callable[[], Tensor]
    candidates: int
    size: int
    places: Callable[[], tuple[Tensor, Tensor, Tensor]]
    keep: bool = False

    def weights(self) -> Tensor:
        """Return the masked weights of every candidate."""
        return self._kept_weights if self.keep else self._made()

    @cached_property
    def _kept_weights(self) -> Tensor:
        return self._made()

    def _made(self) -> Tensor:
        return zeroed(self.dense, self.masks())

    def from_one(self, product: Product, x: Tensor, parent: Tensor | None) -> Tensor:
        """Add scattered differences to the student's output, or multiply with all weights side by side."""
        dense = self.dense.numel() * self.candidates
        scattered = scattered_work(self.size, self.dense.numel(), self.layer.shape[0])
        if parent is not None and product.groups == 1 and scattered < dense and _columns_fit(product, x):
            return self._differences(product, x, parent)
        weights = self.weights()
        count = len(weights)
        if product.dims == 0:
            y: Tensor = F.linear(x, weights.flatten(0, 1)).unflatten(-1, (count, -1)).movedim(-2, 0)
            return y if product.bias is None else y + product.bias
        if product.groups == 1 and _columns_fit(product, x):
            y = product(x, weights.flatten(0, 1)).unflatten(1, (count, -1)).movedim(1, 0)
            return product.biased(y)
        return torch.stack([product(x, w, product.bias) for w in weights])

    def from_many(self, product: Product, x: Tensor) -> Tensor:
        """Multiply every candidate's input with its own weights."""
        weights = self.weights()
        if product.dims == 0:
            y = torch.bmm(x.reshape(len(x), -1, x.shape[-1]), weights.mT)
            y = y.reshape(*x.shape[:-1], -1)
            return y if product.bias is None else y + product.bias
        return torch.stack([product(part, w, product.bias) for part, w in zip(x, weights, strict=True)])

    def _differences(self, product: Product, x: Tensor, parent: Tensor) -> Tensor:
        """Add what the flipped weights contribute: a sparse product with the patches of the input."""
        outputs = self.layer.shape[0]
        width = self.dense.numel() // outputs
        owner, flips, signs = self.places()
        values = self.layer.canonical(self.dense).flatten()[flips.to(self.dense.device)]
        values = values * signs.to(values)
        place = owner * outputs + flips // width
        counts = torch.bincount(place, minlength=self.candidates * outputs)
        touched = counts.nonzero()[:, 0]
        few = 4 * len(touched) < len(counts)
        if not few and not product.dims:  # what follows a linear layer takes any layout
            rows = torch.cat((x.reshape(-1, width).T, parent.reshape(-1, outputs).T))
            itself = width + torch.arange(len(counts)) % outputs
            found = _sums(rows, *_before_each(place, counts, flips % width, itself, values))
            return found.reshape(-1, outputs, *x.shape[:-1]).movedim(1, parent.dim())
        columns, shape = _columns(product, self.layer, x)
        added = _sums(columns, flips % width, values, counts[touched] if few else counts)
        result = _repeated(parent, self.candidates)
        target = result.movedim(2 if product.dims else parent.dim(), 1)
        if few:
            touched = touched.to(x.device)
            target[touched // outputs, touched % outputs] += added.reshape(-1, *shape)
        else:
            target += added.reshape(-1, outputs, *shape)
        return result


def _sums(rows: Tensor, chosen: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """Return weighted sums of chosen rows, each of as many as `counts` says."""
    return F.embedding_bag(
        chosen.int().to(rows.device),
        rows,
        (counts.cumsum(0) - counts).int().to(rows.device),
        mode="sum",
        per_sample_weights=weights.to(rows),
    )


def _before_each(
    place: Tensor, counts: Tensor, chosen: Tensor, first: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what is chosen, the weights and the counts of sums that begin with `first`, with weight 1."""
    size = len(chosen) + len(counts)
    at = torch.arange(len(chosen)) + place + 1
    every = torch.empty(size, dtype=torch.int64)
    every[torch.arange(len(counts)) + counts.cumsum(0) - counts] = first
    every[at] = chosen
    return every, weights.new_ones(size).index_copy_(0, at.to(weights.device), weights), counts + 1


def _repeated(x: Tensor, count: int) -> Tensor:
    """Return `count` copies of `x`, each laid out in memory as `x` is."""
    steps = x.stride()
    order = sorted(range(x.dim()), key=lambda d: (-steps[d], d))
    back = [order.index(d) + 1 for d in range(x.dim())]
    straight = x.permute(order)
    return straight.expand(count, *straight.shape).clone().permute(0, *back)


def _columns_fit(product: Product, x: Tensor) -> bool:
    return product.dims == 0 or x.dim() == product.dims + 2


def _columns(product: Product, layer: Layer, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Return the inputs of each weight ``(in x kernel, positions)`` and the positions' shape."""
    if product.dims == 0:
        return x.reshape(-1, x.shape[-1]).T.contiguous(), tuple(x.shape[:-1])
    kernel = layer.shape[2:]
    options = product.options
    stride, dilation = (several(options.get(k, 1), product.dims) for k in ("stride", "dilation"))
    x = F.pad(x, pad_list(paddings(options.get("padding", 0), kernel, dilation)))
    sizes = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)
    ]
    step = x.stride()
    windows = x.as_strided(
        (x.shape[1], *kernel, x.shape[0], *sizes),
        (
            step[1],
            *(a * d for a, d in zip(step[2:], dilation, strict=True)),
            step[0],
            *(a * s for a, s in zip(step[2:], stride, strict=True)),
        ),
    )
    return windows.reshape(x.shape[1] * math.prod(kernel), -1), (x.shape[0], *sizes)


@dataclass(frozen=True)
class Channels:
    """Whole output channels that differ: no weight is touched, the dense layer's outputs are masked.

    Attributes:
        layer: which one.
        dense: the weight with nothing zeroed.
        bias: the bias with nothing zeroed, or None.
        kept: ``(candidates, outputs)``.
        student: what the student keeps, ``(outputs,)``.
    """

    layer: Layer
    dense: Tensor
    bias: Tensor | None
    kept: Tensor
    student: Tensor

    def weights(self) -> Tensor:
        """Return the masked weights of every candidate."""
        shape = (*self.kept.shape, *([1] * (len(self.layer.shape) - 1)))
        every = self.kept.reshape(shape).expand(len(self.kept), *self.layer.shape)
        return self.layer.native(every).to(self.dense.dtype) * self.dense

    def biases(self, bias: Tensor) -> Tensor:
        """Return a bias of ``(outputs,)`` as each candidate keeps it, ``(candidates, outputs)``."""
        return self.kept.to(bias.dtype) * bias

    def from_one(self, product: Product, x: Tensor, parent: Tensor | None) -> Tensor:
        """Mask the dense layer's output, which is the student's but for the channels that come back."""
        if parent is None or product.groups != 1 or not _columns_fit(product, x):
            return self._masked(product, product(x, self.dense, self.bias)[None])
        back = (self.kept.any(0) & ~self.student).nonzero()[:, 0]
        if len(back):
            bias = None if self.bias is None else self.bias[back]
            at = 1 if product.dims else parent.dim() - 1
            again = product(x, self.dense[back], bias).to(parent.dtype)
            parent = parent.clone().index_copy_(at, back, again)  # laid out in memory as it was
        return self._masked(product, parent[None])

    def from_many(self, product: Product, x: Tensor) -> Tensor:
        """Mask the dense layer's output for every candidate's input."""
        if product.dims and x.dim() == product.dims + 3:
            y: Tensor = product(x.flatten(0, 1), self.dense, self.bias).unflatten(0, x.shape[:2])
        elif product.dims == 0:
            y = product(x, self.dense, self.bias)
        else:
            y = torch.stack([product(part, self.dense, self.bias) for part in x])
        return self._masked(product, y)

    def _masked(self, product: Product, y: Tensor) -> Tensor:
        """Zero what a candidate does not keep in outputs ``(candidates or 1, *output)``."""
        dims = y.dim() - 1
        channel = dims - 1 - product.dims
        shape = [1] * dims
        shape[channel] = self.kept.shape[1]
        return zeroed(y, self.kept.reshape(len(self.kept), *shape))
