"""A student run for many candidates at once: its changed weights are replaced where they are used.

The run happens inside `torch.vmap` over the candidates, so that whatever the model does between its
prunable layers is done right for each of them: what none of them changes is computed once, what follows
a change is computed as one batch. What lies before the first change is not computed at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from de_plugin.assess.changes import Change, Channels, Product
from de_plugin.assess.design import CONVOLUTIONS
from de_plugin.assess.record import Record, copied, flexible, is_getter, tensors

_LINEAR = ("input", "weight", "bias")
_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


class _Layer(torch.autograd.Function):
    """A changed layer's outputs, one row a candidate; exists for its rule under `vmap` alone."""

    @staticmethod
    def forward(*_: Any) -> Tensor:
        """Never runs: the marker is always batched."""
        raise AssertionError("the marker is not batched")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep nothing: no gradient is taken."""

    @staticmethod
    def vmap(
        _info: Any,
        in_dims: tuple[Any, ...],
        x: Tensor,
        _marker: Tensor,
        change: Change,
        product: Product,
        parent: Any,
    ) -> tuple[Tensor, int]:
        """Compute all candidates' outputs from one input or from one each."""
        if in_dims[0] is None:
            return change.from_one(product, x, parent), 0
        return change.from_many(product, x.movedim(in_dims[0], 0)), 0


class _Weight(torch.autograd.Function):
    """A changed weight (or bias) itself, for functions that aren't a plain product."""

    @staticmethod
    def forward(*_: Any) -> Tensor:
        """Never runs: the marker is always batched."""
        raise AssertionError("the marker is not batched")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep nothing: no gradient is taken."""

    @staticmethod
    def vmap(
        _info: Any, _in_dims: tuple[Any, ...], _marker: Tensor, make: Callable[[], Tensor]
    ) -> tuple[Tensor, int]:
        """Return every candidate's own."""
        return make(), 0


class _Each(torch.autograd.Function):
    """A tensor that every candidate has for itself, to write into."""

    @staticmethod
    def forward(*_: Any) -> Tensor:
        """Never runs: the marker is always batched."""
        raise AssertionError("the marker is not batched")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep nothing: no gradient is taken."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, _marker: Tensor) -> tuple[Tensor, int]:
        """Return copies where the candidates share `x`."""
        if in_dims[0] is None:
            return x.expand(info.batch_size, *x.shape).clone(), 0
        return x, in_dims[0]


class Substitution(TorchFunctionMode):
    """Gives candidates their own weights, and what lies before the first change from the record.

    Args:
        record: the student's own run on the same inputs.
        layers: the layer of each prunable parameter, by ``id``.
        changes: the layers that differ.
        weights: by ``id`` of a weight or a bias that differs, what makes one for each candidate.
        start: the number of the first step that may differ.
        marker: one number a candidate, as seen inside `vmap`.
        copy: hand out copies of the record: the model works in place.
    """

    def __init__(
        self,
        record: Record,
        layers: Mapping[int, int],
        changes: Mapping[int, Change],
        weights: Mapping[int, Callable[[], Tensor]],
        start: int,
        marker: Tensor,
        copy: bool,
    ) -> None:
        super().__init__()
        self._record = record
        self._layers = layers
        self._changes = changes
        self._weights = weights
        self._start = start
        self._marker = marker
        self._copy = copy
        self._number = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if is_getter(func):
            return func(*args, **kwargs)
        used = [self._layers[id(x)] for x in tensors(args, kwargs) if id(x) in self._layers]
        number = self._number
        self._number += 1
        if number < self._start and self._record.steps[number].result is not None:
            result = self._record.steps[number].result
            return self._writable(number, copied(result) if self._copy else result)
        return self._writable(number, self._computed(number, used, func, args, kwargs))

    def _computed(
        self, number: int, used: list[int], func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not any(layer in self._changes for layer in used) and not self._touches(args, kwargs):
            return flexible(func, args, kwargs)(*args, **kwargs)
        given = _given(func, args, kwargs)
        change = self._plain(given)
        if given is not None and change is not None:
            options = {k: v for k, v in given.items() if k not in _LINEAR}
            product = Product(func, given.get("bias"), options)
            parent = self._record.steps[number].result
            return _Layer.apply(self._own(given["input"]), self._marker, change, product, parent)  # type: ignore[no-untyped-call]
        swapped = tree_map(self._own, (args, kwargs))
        return flexible(func, args, kwargs)(*swapped[0], **swapped[1])

    def _writable(self, number: int, result: Any) -> Any:
        """Give each candidate a copy of what something that may differ will be written into."""
        if self._record.steps[number].filled < self._start:
            return result
        return tree_map(lambda x: _Each.apply(x, self._marker) if isinstance(x, Tensor) else x, result)  # type: ignore[no-untyped-call]

    def _plain(self, given: Mapping[str, Any] | None) -> Change | None:
        """Return how a product's weight differs, where the product is the one that its layer makes."""
        change = None if given is None else self._changes.get(self._layers.get(id(given["weight"]), -1))
        if given is None or change is None or not change.layer.outputs_first:
            return None
        own = not isinstance(change, Channels) or given.get("bias") is change.layer.bias
        return change if own else None

    def _touches(self, args: Any, kwargs: Any) -> bool:
        return any(id(x) in self._weights for x in tensors(args, kwargs))

    def _own(self, x: Any) -> Any:
        make = self._weights.get(id(x)) if isinstance(x, Tensor) else None
        return x if make is None else _Weight.apply(self._marker, make)  # type: ignore[no-untyped-call]


def _given(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the arguments of a linear layer or a convolution by name, None for anything else."""
    name = getattr(func, "__name__", "")
    if name == "linear":
        return {**dict(zip(_LINEAR, args, strict=False)), **kwargs}
    if name in CONVOLUTIONS:
        return {**dict(zip(_CONVOLUTION, args, strict=False)), **kwargs}
    return None
