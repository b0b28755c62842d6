"""Which positions of each layer's product matter to the outputs: samples, and places within them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from de_plugin.assess.attention import plain_attention
from de_plugin.assess.batches import Batch
from de_plugin.assess.capture import Call, Capture
from de_plugin.assess.divergence import MSE, Curved, wide

if TYPE_CHECKING:
    from de_plugin.assess.problem import Problem


def saliency(problem: Problem, batches: list[Batch], generator: torch.Generator) -> dict[int, Tensor]:
    """Return the squared gradient, summed over channels, at each position of each layer's product.

    The gradient is that of the loss whose squared gradient is the Fisher information, with targets drawn
    from the student's own answers: how much an error there would change what the network says.

    Args:
        problem: whose student is asked, as it stands.
        batches: samples come first in their inputs.
        generator: draws the targets.

    Returns:
        ``(positions,)`` a layer, samples first and their places in row-major order, on the CPU. Left out
        are layers that are used several times in a pass or not at all, embeddings, attention's own
        projections, layers whose inputs don't begin with the samples, and those that no gradient reaches.
    """
    curved = problem.divergence if isinstance(problem.divergence, Curved) else MSE()
    found: dict[int, list[Tensor]] = {}
    parameters = [layer.parameter for layer in problem.units.layers]
    flags = [p.requires_grad for p in parameters]
    try:
        for p in parameters:
            p.requires_grad_(True)
        for batch in batches:
            uses: dict[int, list[Tensor]] = {}

            def visit(number: int, out: Tensor, uses: dict[int, list[Tensor]] = uses) -> None:
                uses.setdefault(number, []).append(out)

            with torch.enable_grad(), plain_attention(), _Outputs(problem, visit):
                outputs = problem.forward(problem.model, batch.inputs)
            single = {n: outs[0] for n, outs in uses.items() if len(outs) == 1 and len(outs[0]) == batch.size}
            with torch.enable_grad():
                loss = curved.sampled_loss(outputs, curved.draw(outputs, generator))
            if not single or not loss.requires_grad:
                return {}
            gradients = torch.autograd.grad(loss, list(single.values()), allow_unused=True)
            for n, g in zip(single, gradients, strict=True):
                if g is not None:
                    channel = -1 if len(problem.units.layers[n].shape) == 2 else 1
                    found.setdefault(n, []).append(wide(g).square().sum(channel).flatten().float().cpu())
    finally:
        for p, flag in zip(parameters, flags, strict=True):
            p.requires_grad_(flag)
    return {n: torch.cat(parts) for n, parts in found.items() if len(parts) == len(batches)}


class _Outputs(Capture):
    """Reports which layer a product is of, and the product, every time that one is made."""

    def __init__(self, problem: Problem, report: Callable[[int, Tensor], None]) -> None:
        self._uses: list[Call] = []
        self._report = report
        super().__init__(problem, self._uses.append)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._uses.clear()
        out = super().__torch_function__(func, types, args, kwargs)
        if not isinstance(out, Tensor) or [x.kind == "embedding" for x in self._uses] != [False]:
            return out
        self._report(self._uses[0].layer, out)
        return out.clone()  # what follows may work in place
