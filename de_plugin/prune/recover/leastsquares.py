"""Least squares: the survivors of each layer that repeat its teacher's outputs best, solved.

Sequential: a layer sees the inputs that the recovered layers before it give, so that errors are
made good instead of adding up (He et al., arXiv:1707.06168, sec. 3.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from de_plugin.assess.batches import Batch
from de_plugin.assess.capture import Call, observe
from de_plugin.assess.guard import untouched_on_error
from de_plugin.assess.problem import Problem
from de_plugin.assess.units import Layer
from de_plugin.errors import ArgumentError
from de_plugin.prune.recover.base import prepared
from de_plugin.prune.recover.moments import calibration
from de_plugin.prune.recover.ridge import solve_rows


@dataclass(frozen=True)
class LeastSquares:
    """Solve ``min |X w - y|^2 + ridge mean(X^2) |w - w_old|^2`` for every output's own survivors.

    ``X`` are the layer's inputs at the student, ``y`` its outputs at the teacher, on the same
    samples. At high sparsity the closed form can harm (noisy inputs shrink the outputs), so a
    layer's solution is taken only when the divergence on the held-back data does not rise;
    `problem.events` says which.

    Args:
        samples: how many search samples the inputs are measured on.
        ridge: pull towards the present values, relative to the inputs' mean square; >= 0.
        positions: use at most so many positions of each batch.
        bias: solve for the biases too.

    Raises:
        ArgumentError: a number is out of range.
    """

    samples: int = 1000
    ridge: float = 0.01
    positions: int = 4096
    bias: bool = True

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        if self.samples < 1 or self.positions < 1:
            raise ArgumentError(f"samples={self.samples}, positions={self.positions}: both must be positive")
        if not 0 <= self.ridge < float("inf"):
            raise ArgumentError(f"ridge={self.ridge}: expected a finite number >= 0")

    @property
    def name(self) -> str:
        """Return "leastsquares"."""
        return "leastsquares"

    def prepare(self, problem: Problem) -> None:
        """Keep a copy of the teacher."""
        self._teacher(problem)

    def in_assessment(self) -> None:
        """Return None: a pass a layer is not cheap."""
        return

    def __call__(self, problem: Problem) -> None:
        """Solve layer by layer, in the order of execution."""
        teacher = self._teacher(problem)
        batches = problem.pool.take(calibration(problem, self.samples))
        with untouched_on_error(problem.model), torch.no_grad():
            current = float(problem.gate(problem.kept[None])[0])
            for number in _order(problem, batches[:1]):
                layer = problem.units.layers[number]
                bias = bias_of(layer) if self.bias else None
                saved = [(p, p.detach().clone()) for p in (layer.parameter, bias) if p is not None]
                self._solve(problem, number, bias, teacher, batches)
                after = float(problem.gate(problem.kept[None])[0])
                accepted = after <= current
                problem.events.append(
                    {
                        "kind": self.name,
                        "layer": layer.name,
                        "before": current,
                        "after": after,
                        "accepted": accepted,
                    }
                )
                if accepted:
                    current = after
                else:
                    for parameter, value in saved:
                        parameter.data.copy_(value)

    def _teacher(self, problem: Problem) -> list[Tensor]:
        return prepared(problem, self, lambda: [x.detach().clone() for x in _tensors(problem.model)])

    def _solve(
        self,
        problem: Problem,
        number: int,
        bias: nn.Parameter | None,
        teacher: list[Tensor],
        batches: list[Batch],
    ) -> None:
        layer = problem.units.layers[number]
        aims: list[Tensor] = []

        def listen(call: Call) -> None:
            if call.layer == number:
                design = call.design(layer, self.positions)
                if design is not None:
                    aims.append(product(design, layer, call.rows))

        with _swapped(problem.model, teacher):
            offset = None if bias is None else bias.detach().double().clone()
            observe(problem, batches, listen)
        sums: dict[tuple[int, int], _Sums] = {}
        queue = iter(aims)

        def gather(call: Call) -> None:
            if call.layer == number:
                uses = list(call.uses(layer, self.positions))
                for (rows, x), y in zip(uses, next(queue) if uses else (), strict=True):
                    sums.setdefault((rows.start, rows.stop), _Sums()).add(x.double(), y)

        with problem.units.zeroed(problem.kept):
            observe(problem, batches, gather)
        self._update(problem, layer, bias, offset, sums)

    def _update(
        self,
        problem: Problem,
        layer: Layer,
        bias: nn.Parameter | None,
        offset: Tensor | None,
        sums: dict[tuple[int, int], _Sums],
    ) -> None:
        units = problem.kept[layer.start : layer.stop]
        support = layer.canonical(problem.units.expand_layer(layer, units)).flatten(1)
        support = support.to(layer.parameter.device)
        old = layer.canonical(layer.parameter.detach()).flatten(1)
        new = old.clone()
        for (start, stop), s in sums.items():
            gram, cross = s.centred() if bias is not None else s.plain()
            rows = slice(start, stop)
            solution = solve_rows(gram, cross.T, support[rows], old[rows].double(), self.ridge)
            new[rows] = torch.where(support[rows], solution.to(old.dtype), old[rows])
            if bias is not None and offset is not None:
                means = s.mean_y - (new[rows].double() * support[rows]) @ s.mean_x
                alive = torch.ones_like(means, dtype=torch.bool)
                if layer.bias is not None:
                    alive = units[rows].to(alive.device)
                shifted = (offset[rows] + means).to(bias.dtype)
                bias.data[rows] = torch.where(alive, shifted, bias.data[rows])
        layer.parameter.data.copy_(layer.native(new.reshape(layer.shape)))


@dataclass
class _Sums:
    """Sums of inputs and aims over positions, from which every moment follows."""

    count: int = 0
    xx: Tensor = field(default_factory=lambda: torch.zeros(()))
    xy: Tensor = field(default_factory=lambda: torch.zeros(()))
    x: Tensor = field(default_factory=lambda: torch.zeros(()))
    y: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, x: Tensor, y: Tensor) -> None:
        if self.count == 0:
            self.xx, self.xy, self.x, self.y = x.T @ x, x.T @ y, x.sum(0), y.sum(0)
        else:
            self.xx += x.T @ x
            self.xy += x.T @ y
            self.x += x.sum(0)
            self.y += y.sum(0)
        self.count += len(x)

    @property
    def mean_x(self) -> Tensor:
        return self.x / self.count

    @property
    def mean_y(self) -> Tensor:
        return self.y / self.count

    def plain(self) -> tuple[Tensor, Tensor]:
        return self.xx / self.count, self.xy / self.count

    def centred(self) -> tuple[Tensor, Tensor]:
        gram, cross = self.plain()
        return (
            gram - torch.outer(self.mean_x, self.mean_x),
            cross - torch.outer(self.mean_x, self.mean_y),
        )


def product(design: Tensor, layer: Layer, rows: slice) -> Tensor:
    """Return the layer's product with `design`: ``(groups, positions, out per group)``."""
    weight = layer.canonical(layer.parameter.detach())[rows].flatten(1).double()
    return design.double() @ weight.reshape(len(design), -1, weight.shape[1]).transpose(1, 2)


def bias_of(layer: Layer) -> nn.Parameter | None:
    """Return the bias that is added to the layer's product, where it is sure which one that is."""
    own = layer.name.rpartition(".")[2]
    name = {"weight": "bias", "in_proj_weight": "in_proj_bias"}.get(own)
    if name is None or layer.aliases:
        return None
    return layer.module._parameters.get(name)


def _order(problem: Problem, batches: list[Batch]) -> list[int]:
    """Return the layers with a design matrix in the order of their first call."""
    order: dict[int, None] = {}

    def visit(call: Call) -> None:
        if call.design(problem.units.layers[call.layer], 1) is not None:
            order.setdefault(call.layer)

    observe(problem, batches, visit)
    return list(order)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


@contextmanager
def _swapped(model: nn.Module, values: list[Tensor]) -> Iterator[None]:
    """Let the model hold `values` inside the block."""
    saved = [(x, x.detach().clone()) for x in _tensors(model)]
    try:
        for (live, _), value in zip(saved, values, strict=True):
            live.data.copy_(value)
        yield
    finally:
        for live, value in saved:
            live.data.copy_(value)
