"""Per-sample gradients of linear layers as two factors, never multiplied out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from de_plugin.assess.divergence import Curved

if TYPE_CHECKING:
    from de_plugin.assess.problem import Problem

Factors = list[tuple[Tensor, Tensor]]
"""For each layer: inputs ``(samples, in)`` and loss gradients of the outputs ``(samples, out)``."""


def linear_factors(problem: Problem, index: Tensor, generator: torch.Generator) -> Factors | None:
    """Return the factors of the sampled loss's per-sample gradients, or None where they don't exist.

    They do where every prunable layer is an `nn.Linear` that is called once a pass, on one row a
    sample: the gradient of a sample is then the outer product of its two rows. The mean of the squared
    products is the Fisher information (see `sample_gradients`, which this replaces at a fraction of
    the cost).
    """
    layers = problem.units.layers
    divergence = problem.divergence
    plain = all(
        type(x.module) is nn.Linear and x.module.weight is x.parameter and not x.aliases for x in layers
    )
    if not plain or not isinstance(divergence, Curved) or problem.pool.stacked is None:
        return None
    seen: dict[int, list[tuple[Tensor, Tensor]]] = {n: [] for n in range(len(layers))}

    def watch(number: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            tracked = output if output.requires_grad else output.requires_grad_(True)
            seen[number].append((args[0].detach(), tracked))
            return tracked

        return hook

    batch = problem.pool.take(index, len(index))[0]
    handles = [x.module.register_forward_hook(watch(n)) for n, x in enumerate(layers)]
    try:
        with torch.enable_grad(), problem.units.zeroed(problem.kept):
            outputs = problem.forward(problem.model, batch.inputs)
            if any(
                len(calls) != 1 or calls[0][0].dim() != 2 or len(calls[0][0]) != batch.size
                for calls in seen.values()
            ):
                return None
            targets = divergence.draw(outputs, generator)
            loss = divergence.sampled_loss(outputs, targets)
            tracked = [calls[0][1] for calls in seen.values()]
            found = torch.autograd.grad(loss, tracked, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    return [
        (calls[0][0], torch.zeros_like(calls[0][1]) if g is None else g)
        for calls, g in zip(seen.values(), found, strict=True)
    ]
