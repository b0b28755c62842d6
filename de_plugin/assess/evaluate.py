"""Measuring a population: the serial reference, and all candidates stacked in one pass."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from de_plugin.assess.divergence import Custom, Score
from de_plugin.errors import ArgumentError, DEError, DEWarning
from de_plugin.types import Masks, Values

if TYPE_CHECKING:
    from de_plugin.assess.problem import Problem


class Evaluator(Protocol):
    """Measures every candidate on the same samples."""

    def __call__(self, masks: Masks, index: Tensor, repair: bool) -> Values:
        """Return one divergence a candidate."""


class Serial:
    """One candidate after the other, zeroed in place: slow, and right by construction."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def __call__(self, masks: Masks, index: Tensor, repair: bool) -> Values:
        """Return one divergence a candidate."""
        problem = self.problem
        batches = problem.pool.take(index)
        values = torch.empty(len(masks), dtype=torch.float64)
        for row, kept in enumerate(masks):
            with torch.no_grad(), problem.units.zeroed(kept):
                if repair:
                    with problem.repaired(batches):
                        values[row] = float(problem.measure(batches))
                else:
                    values[row] = float(problem.measure(batches))
        return values


def places(model: nn.Module, parameter: nn.Parameter) -> list[str]:
    """Return a name for each module that holds `parameter`, one a module.

    `functional_call` restores a module that occurs under two names to what it swapped in, so that
    every place must be named once, and without `tie_weights`.
    """
    return [
        f"{prefix}.{own}" if prefix else own
        for prefix, module in model.named_modules()
        for own, value in module._parameters.items()
        if value is parameter
    ]


class Call(nn.Module):
    """Lets `functional_call` go through the user's forward."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.model = problem.model
        self._forward = problem.forward

    def forward(self, inputs: Any) -> Any:
        """Call the user's forward on the model."""
        return self._forward(self.model, inputs)


class Stacked:
    """Candidates side by side through `torch.vmap`: whole-network changes of linear layers.

    Args:
        problem: whose model is measured.
        chunk_bytes: stacked weights held at once; sized for a processor's cache.
    """

    def __init__(self, problem: Problem, chunk_bytes: int = 1 << 20) -> None:
        self.problem = problem
        self._call = Call(problem).eval()
        weights = sum(p.numel() * p.element_size() for p in problem.units.parameters().values())
        self.chunk = max(1, min(64, chunk_bytes // weights))

    def __call__(self, masks: Masks, index: Tensor, repair: bool) -> Values:
        """Return one divergence a candidate."""
        if repair:
            return Serial(self.problem)(masks, index, repair)
        batches = self.problem.pool.take(index)
        with torch.no_grad():
            return torch.cat([self._several(part, batches) for part in masks.split(self.chunk)])

    def _several(self, masks: Masks, batches: list[Any]) -> Values:
        divergence = self.problem.divergence
        live = self.problem.units.parameters()
        named = self.problem.units.masks(masks.to(self.problem.device))
        stacked = {}
        for name, mask in named.items():
            value = live[name].detach() * mask
            for place in places(self.problem.model, live[name]):
                stacked[f"model.{place}"] = value
        total = torch.zeros(len(masks), dtype=torch.float64)
        count = 0
        for batch in batches:

            def one(weights: dict[str, Tensor], batch: Any = batch) -> Tensor:
                outputs = functional_call(self._call, weights, (batch.inputs,), tie_weights=False)
                return divergence(outputs, batch.teacher, batch.labels)

            total += vmap(one)(stacked).double().cpu() * batch.size
            count += batch.size
        return total / count


def evaluator(problem: Problem, spec: str) -> Evaluator:
    """Return the evaluator asked for.

    The choice depends on the model alone, never on a clock, so that the same seed gives the same mask:
    "auto" stacks networks whose units are all in linear layers, where stacking turns into matrix
    products, and takes the serial loop otherwise.

    Raises:
        ArgumentError: `spec` is not "auto", "serial" or "stacked".
    """
    if spec not in ("auto", "serial", "stacked"):
        raise ArgumentError(f"evaluate={spec!r}: expected 'auto', 'serial' or 'stacked'")
    linear = all(isinstance(layer.module, nn.Linear) for layer in problem.units.layers)
    plain = not isinstance(problem.divergence, Custom | Score)
    if spec == "serial" or (spec == "auto" and not (linear and plain)):
        return Serial(problem)
    stacked = Stacked(problem)
    kept = problem.kept[None].expand(2, -1)
    try:
        stacked(kept, problem.search[:1], False)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        if isinstance(error, DEError):
            raise
        warnings.warn(
            f"evaluate={spec!r}: {type(problem.model).__name__} cannot be stacked "
            f"({str(error).splitlines()[0]}); candidates are measured one by one",
            DEWarning,
            stacklevel=4,
        )
        return Serial(problem)
    return stacked
