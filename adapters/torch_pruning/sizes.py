"""MACs and parameters of what a step of a Torch-Pruning pruner leaves."""

from __future__ import annotations

from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from de_plugin.adapters.torch_pruning.copies import Plan, removed
from de_plugin.errors import ArgumentError
from de_plugin.types import Mask


class Size:
    """MACs and parameters of what a step leaves, as the host counts them.

    Args:
        model: as it is; what happens to it later does not count.
        plan: how to remove the units of its groups, see `copies.plan`.
        units: how many there are.
        inputs: example inputs.
        forward: ``fn(model, inputs)`` where the model is not simply called.
    """

    def __init__(self, model: nn.Module, plan: Plan, units: int, *, inputs: Any, forward: Any = None) -> None:
        self._plan = plan
        self._all = torch.ones(units, dtype=torch.bool)
        self._model = removed(model, self._plan, self._all)
        self._inputs, self._forward = inputs, forward
        self._macs: tuple[float, dict[str, tuple[float, int]]] | None = None
        self.estimated = False
        """Whether MACs had to be told from the sizes of layers, as a pruned network did not run."""

    def __call__(self, name: str, kept: Mask | None = None) -> float:
        """Return the MACs (``target_macs``) or parameters of the network when some units are left.

        Raises:
            ArgumentError: MACs cannot be counted.
        """
        model = removed(self._model, self._plan, self._all if kept is None else kept)
        if name == "target_params":
            return float(sum(p.numel() for p in model.parameters()))
        try:
            return self._counted(model)[0]
        except _BROKEN:
            self.estimated = True
            return self._by_layers(model)

    def both(self, kept: Mask | None = None) -> tuple[float | None, int]:
        """Return MACs, None where they cannot be counted, and parameters."""
        try:
            macs: float | None = self("target_macs", kept)
        except ArgumentError:
            macs = None
        return macs, int(self("target_params", kept))

    def _counted(self, model: nn.Module) -> tuple[float, dict[nn.Module, float | None]]:
        inputs = self._inputs
        asked = model if self._forward is None else _Called(model, self._forward)
        given = inputs if self._forward is None else (inputs,)
        total, _, layers, _ = tp.utils.count_ops_and_params(asked, given, layer_wise=True)
        return float(total), layers

    def _by_layers(self, model: nn.Module) -> float:
        """Return the MACs of a network that does not run: those of each layer fall with its parameters."""
        if self._macs is None:
            try:
                total, layers = self._counted(self._model)
            except _BROKEN as error:
                why = (str(error).splitlines() or [type(error).__name__])[0]
                raise ArgumentError(
                    f"target_macs: the host cannot count the MACs of {type(model).__name__} on "
                    f"example_inputs ({why}); give target_params instead"
                ) from error
            leaves = {n: m for n, m in self._model.named_modules() if not list(m.children())}
            self._macs = total, {n: (float(layers.get(m) or 0), _own(m)) for n, m in leaves.items()}
        total, known = self._macs
        for name, (macs, count) in known.items():
            if count:
                total -= macs * (1 - _own(model.get_submodule(name)) / count)
        return total


_BROKEN = (RuntimeError, ValueError, AssertionError, AttributeError, TypeError, IndexError)


class _Called(nn.Module):
    def __init__(self, model: nn.Module, function: Any) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, inputs: Any) -> Any:
        return self.function(self.model, inputs)


def _own(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters(recurse=False))
