"""How large a pruned model is: the multiplications and parameters that are left of it.

A multiplication counts where a weight that is not zero meets an input that can be other than zero, so that
masked and really removed channels count alike. Which inputs can be is asked of a copy without signs: its
weights are 1 where they are not zero, so that nothing cancels out and no ReLU closes. What layers without
weights of their own multiply (attention) counts as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from de_plugin.assess.layers import TRANSPOSED
from de_plugin.assess.teacher import Forward

_COUNTED = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True)
class Size:
    """What is left of a model: multiplications a sample, and parameters."""

    macs: float
    params: float


@dataclass
class _Layer:
    """A layer as a forward pass has met it."""

    alive: Tensor | None
    positions: float


def size(model: nn.Module, inputs: Any, forward: Forward, prunable: Sequence[str] = ()) -> Size:
    """Measure a model, masked or with parts removed.

    Args:
        model: in eval mode; it is not changed.
        inputs: of one sample, with a first dimension of 1.
        forward: calls the model.
        prunable: names of parameters whose zeros don't count, beside those of linear layers and
            convolutions.
    """
    spared = gone = 0.0
    counted = set()
    for name, layer in _met(model, inputs, forward).items():
        module = model.get_submodule(name)
        weight = module.get_parameter("weight")
        counted.add(f"{name}.weight")
        used = weight.detach() != 0
        if layer.alive is not None:
            used = used & _readers(module, layer.alive)
        unused = float((~used).sum())
        gone += unused
        spared += unused * layer.positions
        if isinstance(module.bias, Tensor) and not isinstance(module, TRANSPOSED):
            gone += float((~used.flatten(1).any(1) & (module.bias.detach() == 0)).sum())
    parameters = dict(model.named_parameters())
    for name in prunable:
        if name in parameters and name not in counted:
            gone += float((parameters[name] == 0).sum())
    params = float(sum(p.numel() for p in parameters.values()))
    return Size(_flops(model, inputs, forward) / 2 - spared, params - gone)


def _flops(model: nn.Module, inputs: Any, forward: Forward) -> float:
    attention: Any = getattr(torch.nn, "attention", None)  # since torch 2.3
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if attention is None:
            forward(model, inputs)
        else:  # the counter knows no fused attention on CPUs
            with attention.sdpa_kernel(attention.SDPBackend.MATH):
                forward(model, inputs)
    return float(counter.get_total_flops())


def _met(model: nn.Module, inputs: Any, forward: Forward) -> dict[str, _Layer]:
    """Return the linear layers and convolutions that a forward pass calls, by name."""
    twin = _without_signs(model)
    found: dict[str, _Layer] = {}
    handles = [
        module.register_forward_hook(_hook(found, name))
        for name, module in twin.named_modules()
        if isinstance(module, _COUNTED)
    ]
    try:
        with torch.no_grad():
            forward(twin, tree_map(_one, inputs))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _hook(found: dict[str, _Layer], name: str) -> Callable[[Any, tuple[Any, ...], Any], None]:
    def hook(layer: Any, given: tuple[Any, ...], output: Any) -> None:
        if not given or not isinstance(given[0], Tensor) or not isinstance(output, Tensor):
            return
        if isinstance(layer, nn.Linear):
            alive, positions = (given[0] != 0).flatten(0, -2).any(0), output.numel() / output.shape[-1]
        elif isinstance(layer, TRANSPOSED):  # a weight meets every input position
            alive, positions = _channels(given[0]), given[0].numel() / given[0].shape[1]
        else:
            alive, positions = _channels(given[0]), output.numel() / output.shape[1]
        known = found.get(name)
        if known is not None and known.alive is not None:  # called several times
            alive, positions = alive | known.alive, positions + known.positions
        found[name] = _Layer(alive, positions)

    return hook


def _channels(x: Tensor) -> Tensor:
    return (x != 0).transpose(0, 1).flatten(1).any(1)


def _without_signs(model: nn.Module) -> nn.Module:
    """Return a copy in which a number is zero only where masks make it so."""
    twin = copy.deepcopy(model).eval()
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.is_floating_point():
                scale = 1.0 / max(1, parameter[0].numel()) if parameter.dim() > 1 else 1.0
                parameter.data = (parameter != 0).to(parameter) * scale
        for name, buffer in twin.named_buffers():
            if name.endswith("running_mean"):
                buffer.zero_()
            elif name.endswith("running_var"):
                buffer.fill_(1)
    return twin


def _one(x: Any) -> Any:
    return torch.ones_like(x) if isinstance(x, Tensor) and x.is_floating_point() else x


def _readers(layer: Any, alive: Tensor) -> Tensor:
    """Return which weights read an input that is alive, in a shape that broadcasts to theirs."""
    if isinstance(layer, nn.Linear):
        return alive[None]
    outputs, rest = layer.weight.shape[0], (1,) * (layer.weight.dim() - 2)
    if isinstance(layer, TRANSPOSED):
        return alive.view(-1, 1, *rest)
    return alive.view(layer.groups, -1).repeat_interleave(outputs // layer.groups, 0).view(outputs, -1, *rest)
