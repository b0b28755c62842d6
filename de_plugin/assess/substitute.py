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
from torch.utils._pytree import tree_map

from de_plugin.assess.changes import Change, Channels, Product
from de_plugin.assess.design import CONVOLUTIONS
from de_plugin.assess.record import Record, Watching, copied, flexible, tensors
from de_plugin.assess.recorder import overwriting
from de_plugin.assess.repair import Statistics

_LINEAR = ("input", "weight", "bias")
_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


class _Batched(torch.autograd.Function):
    """Exists for its rule under `vmap` alone, which its batched marker always calls for."""

    @staticmethod
    def forward(*_: Any) -> Tensor:
        """Refuse a marker that is not batched."""
        raise RuntimeError("candidates are substituted inside torch.vmap only")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep nothing: no gradient is taken."""


class _Layer(_Batched):
    """A changed layer's outputs, one row a candidate."""

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


class _Weight(_Batched):
    """A changed weight (or bias) itself, for functions that aren't a plain product."""

    @staticmethod
    def vmap(
        _info: Any, _in_dims: tuple[Any, ...], _marker: Tensor, make: Callable[[], Tensor]
    ) -> tuple[Tensor, int]:
        """Return every candidate's own."""
        return make(), 0


class _Each(_Batched):
    """A tensor that every candidate has for itself, to write into."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, _marker: Tensor) -> tuple[Tensor, int]:
        """Return copies where the candidates share `x`."""
        if in_dims[0] is None:
            return x.expand(info.batch_size, *x.shape).clone(), 0
        return x, in_dims[0]


# `apply` has no annotations in torch.
_layer: Callable[..., Tensor] = _Layer.apply
_weight: Callable[..., Tensor] = _Weight.apply
_each: Callable[..., Tensor] = _Each.apply


class Substitution(Watching):
    """Gives candidates their own weights, and what lies before the first change from the record.

    Args:
        record: the student's own run on the same inputs.
        layers: the layer of each prunable parameter, by ``id``.
        changes: the layers that differ.
        weights: by ``id`` of a weight or a bias that differs, what makes one for each candidate.
        start: the number of the first step that may differ.
        marker: one number a candidate, as seen inside `vmap`.
        copy: hand out copies of the record: the model works in place.
        statistics: what gives batch norms their statistics, by ``id`` of the running mean.
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
        statistics: Mapping[int, Statistics] | None = None,
    ) -> None:
        super().__init__(layers, statistics)
        self._record = record
        self._changes = changes
        self._weights = weights
        self._start = start
        self._marker = marker
        self._copy = copy
        self._number = 0

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the recorded result before the first change, every candidate's own after it."""
        number = self._number
        self._number += 1
        if number < self._start and self._record.steps[number].result is not None:
            result = self._record.steps[number].result
            return self._writable(number, copied(result) if self._copy else result)
        return self._writable(number, self._computed(number, func, args, kwargs))

    def _computed(self, number: int, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not any(id(x) in self._weights for x in tensors(args, kwargs)):
            if self._record.steps[number].spends >= self._start:
                func, args, kwargs = overwriting(func, args, kwargs)
            return flexible(func, args, kwargs)(*args, **kwargs)
        given = _given(func, args, kwargs)
        change = self._plain(given)
        if given is not None and change is not None:
            options = {k: v for k, v in given.items() if k not in _LINEAR}
            product = Product(func, given.get("bias"), options)
            parent = self._record.steps[number].result
            return _layer(self._own(given["input"]), self._marker, change, product, parent)
        swapped = tree_map(self._own, (args, kwargs))
        return flexible(func, args, kwargs)(*swapped[0], **swapped[1])

    def _writable(self, number: int, result: Any) -> Any:
        """Give each candidate a copy of what something that may differ will be written into."""
        if self._record.steps[number].filled < self._start:
            return result
        return tree_map(lambda x: _each(x, self._marker) if isinstance(x, Tensor) else x, result)

    def _plain(self, given: Mapping[str, Any] | None) -> Change | None:
        """Return how a product's weight differs, where the product is the one that its layer makes."""
        change = None if given is None else self._changes.get(self._layers.get(id(given["weight"]), -1))
        if given is None or change is None or not change.layer.outputs_first:
            return None
        own = not isinstance(change, Channels) or given.get("bias") is change.layer.bias
        return change if own else None

    def _own(self, x: Any) -> Any:
        make = self._weights.get(id(x)) if isinstance(x, Tensor) else None
        return x if make is None else _weight(self._marker, make)


def _given(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the arguments of a linear layer or a convolution by name, None for anything else."""
    name = getattr(func, "__name__", "")
    if name == "linear":
        return {**dict(zip(_LINEAR, args, strict=False)), **kwargs}
    if name in CONVOLUTIONS:
        return {**dict(zip(_CONVOLUTION, args, strict=False)), **kwargs}
    return None
