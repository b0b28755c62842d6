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
from de_plugin.assess.problem import Problem
from de_plugin.errors import ArgumentError
from de_plugin.prune.recover.base import prepared
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
        if kinds and isinstance(module._parameters.get("bias"), Tensor):
            result[name] = (module, kinds[0])
    return result


@dataclass(frozen=True)
class BiasCorrection:
    """Shift the biases of linear and convolution layers by the mean output that the cut has cost.

    In the order of execution, in one forward pass; a layer that is used more than once in a pass is
    left alone, and so is the bias of a channel that is zeroed.

    Args:
        samples: how many search samples the means are measured on.

    Raises:
        ArgumentError: `samples` is not positive.
    """

    samples: int = 512

    def __post_init__(self) -> None:
        """Refuse empty calibration."""
        if self.samples < 1:
            raise ArgumentError(f"samples={self.samples}: expected a positive number")

    @property
    def name(self) -> str:
        """Return "bias"."""
        return "bias"

    def prepare(self, problem: Problem) -> None:
        """Measure the teacher's mean outputs."""
        self._teacher(problem)

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
                shift = (teacher[name] - moments.mean).to(output)
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

    def _teacher(self, problem: Problem) -> dict[str, Tensor]:
        return prepared(problem, self, lambda: _measure(problem, self.samples))


def _measure(problem: Problem, samples: int) -> dict[str, Tensor]:
    """Return the mean output ``(channels,)`` of every layer that is used once in a pass."""
    found: dict[str, Moments] = {}
    calls: dict[str, int] = {}
    batches = problem.pool.take(calibration(problem, samples))

    def watch(name: str, axis: int) -> Any:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
            found.setdefault(name, Moments()).add(output, axis)
            calls[name] = calls.get(name, 0) + 1

        return hook

    with ExitStack() as stack, torch.no_grad():
        for name, (module, axis) in _biased(problem.model).items():
            stack.callback(module.register_forward_hook(watch(name, axis)).remove)
        for batch in batches:
            problem.forward(problem.model, batch.inputs)
    return {name: m.mean for name, m in found.items() if calls[name] <= len(batches)}
