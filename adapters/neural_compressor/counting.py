"""The bits that a weight takes: after an algorithm of the host with scales, after ours with level tables."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from de_plugin.adapters.neural_compressor.builtin import BUILT_IN, group_of
from de_plugin.adapters.neural_compressor.parts import layer_of
from de_plugin.adapters.neural_compressor.saving import levels_of
from de_plugin.compare.case import mean_bits

_FLOAT = 32


class Stored(NamedTuple):
    """What some weights take.

    Attributes:
        weights: how many there are.
        nominal: bits of all of them, without scales and zero points.
        total: bits with these.
    """

    weights: int
    nominal: int
    total: int

    @property
    def mean(self) -> float:
        """Bits a weight."""
        return self.total / self.weights


def coded(model: nn.Module) -> float:
    """Return the bits that a weight takes in the file of Directed Evolution, level tables included.

    Raises:
        ArgumentError: the model has no levels, or its weights have changed since.
    """
    return mean_bits(q for name, q in levels_of(model).items() if model.get_parameter(name).dim() > 1)


def stored(
    name: str,
    model: nn.Module,
    bits: int,
    found: nn.Module,
    weights: Sequence[str],
    *,
    layers: Sequence[str] | None = None,
) -> Stored:
    """Return what weights take after an algorithm of the host.

    Args:
        name: of the algorithm.
        model: as it was before.
        bits: that were asked for.
        found: what `quantized` returned, unchanged.
        weights: names of the parameters that count.
        layers: as `quantized` was given them.
    """
    entry, group = BUILT_IN[name], group_of(name, model, bits, layers)
    count = nominal = beside = 0
    for parameter in weights:
        weight, taken = model.get_parameter(parameter), _is_taken(model, found, layer_of(parameter))
        count += weight.numel()
        nominal += weight.numel() * (bits if taken else _FLOAT)
        groups = weight.numel() // group if entry.divides else len(weight) * -(-weight[0].numel() // group)
        beside += groups * entry.beside if taken else 0
    return Stored(count, nominal, nominal + beside)


def _is_taken(model: nn.Module, found: nn.Module, layer: str) -> bool:
    """Tell whether the host has put a layer of its own into a linear layer's place."""
    before = model.get_submodule(layer)
    return isinstance(before, nn.Linear) and type(found.get_submodule(layer)) is not type(before)


def with_plain_layers(model: nn.Module, found: nn.Module) -> nn.Module:
    """Return what an algorithm of the host has made, with linear layers of torch in place of the host's.

    These compute the same; other than the host's they have a weight that can be looked at.

    Args:
        model: as it was before.
        found: what `quantized` returned; its layers are replaced.
    """
    for name in [n for n, _ in model.named_modules() if _is_taken(model, found, n)]:
        plain = _plain(model.get_submodule(name), found.get_submodule(name))
        if not name:
            return plain
        owner, _, own = name.rpartition(".")
        setattr(found.get_submodule(owner), own, plain)
    return found


@torch.no_grad()
def _plain(before: Any, layer: nn.Module) -> nn.Linear:
    """Ask a layer what it does to each of its inputs alone; all kinds of the host's answer that alike."""
    result: nn.Linear = copy.deepcopy(before)
    asked = torch.eye(before.in_features).to(before.weight)
    offset = layer(torch.zeros_like(asked[:1]))
    result.weight.copy_((layer(asked) - offset).T)
    if result.bias is not None:
        result.bias.copy_(offset[0])
    return result
