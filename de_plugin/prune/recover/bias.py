"""Bias correction: every layer's mean output a channel becomes its teacher's again.

The closed form of Nagel et al., arXiv:1906.04721, sec. 4.2, measured instead of derived.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from de_plugin.assess.guard import untouched_on_error
from de_plugin.assess.layers import is_conv1d_of_transformers
from de_plugin.assess.problem import Problem
from de_plugin.prune.recover.matching import MomentMatching
from de_plugin.prune.recover.moments import Moments, calibration, joined

_CHANNEL: dict[type[nn.Module], int] = {
    nn.Linear: -1,
    nn.Conv1d: -2,
    nn.Conv2d: -3,
    nn.Conv3d: -4,
    nn.ConvTranspose1d: -2,
    nn.ConvTranspose2d: -3,
    nn.ConvTranspose3d: -4,
}


def _biased(model: nn.Module) -> dict[str, tuple[nn.Module, int]]:
    """Return the layers with a bias and the dimension of their output channels, by name."""
    result = {}
    for name, module in model.named_modules():
        kinds = [axis for kind, axis in _CHANNEL.items() if isinstance(module, kind)]
        kinds += [-1] if is_conv1d_of_transformers(module) else []
        if kinds and isinstance(module._parameters.get("bias"), Tensor):
            result[name] = (module, kinds[0])
    return result


@dataclass(frozen=True)
class BiasCorrection(MomentMatching):
    """Shift the biases of linear and convolution layers by the mean output that the cut has cost.

    In the order of execution, in one forward pass; a layer that is used more than once in a pass is
    left alone, and so is the bias of a channel that is zeroed.

    Args:
        samples: how many search samples the means are measured on.

    Raises:
        ArgumentError: `samples` is not positive.
    """

    @property
    def name(self) -> str:
        """Return "bias"."""
        return "bias"

    def __call__(self, problem: Problem) -> None:
        """Shift the biases for good."""
        teacher = self._teacher(problem)
        kept = {
            id(layer.bias): problem.kept[layer.start : layer.stop]
            for layer in problem.units.layers
            if layer.bias is not None
        }
        layers = {n: found for n, found in _biased(problem.model).items() if n in teacher}
        shifts: dict[str, Tensor] = {}
        seen: dict[str, Moments] = {}

        def correct(name: str, axis: int) -> Any:
            def hook(module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor:
                moments = seen.setdefault(name, Moments()).add(output, axis)
                shift = (teacher[name].mean - moments.mean).to(output)
                mask = kept.get(id(module.bias))
                if mask is not None:
                    shift = shift * mask.to(shift.device)
                shifts[name] = shift
                return output + shift.reshape(-1, *(1,) * (-1 - axis))

            return hook

        batches = joined(problem.pool.take(calibration(problem, self.samples), self.samples))
        with untouched_on_error(problem.model), torch.no_grad():
            with ExitStack() as stack, problem.units.zeroed(problem.kept):
                for name, (module, axis) in layers.items():
                    stack.callback(module.register_forward_hook(correct(name, axis)).remove)
                for batch in batches:
                    problem.forward(problem.model, batch.inputs)
            for name, shift in shifts.items():
                bias = layers[name][0]._parameters["bias"]
                if bias is not None:
                    bias.data.add_(shift)

    def in_assessment(self) -> None:
        """Return None: biases are corrected after a cut only."""
        return

    def _watched(self, model: nn.Module) -> dict[str, tuple[nn.Module, int]]:
        return _biased(model)
