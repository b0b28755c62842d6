"""What pruning did: masks, sparsity a layer, divergence and evaluations over time, and advice."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from de_plugin.assess.problem import Problem
from de_plugin.prune.plan import Plan

Outcome = Literal["complete", "budget"]


@dataclass(frozen=True)
class LayerReport:
    """One layer's share: units and weights zeroed."""

    name: str
    units: int
    zeroed: int
    weights: int
    zero_weights: int

    @property
    def sparsity(self) -> float:
        """Fraction of the layer's units that are zeroed."""
        return self.zeroed / self.units


@dataclass(frozen=True)
class CycleReport:
    """One cycle: what was reached and what it cost so far.

    Divergences are measured on the data held back from the search.
    """

    cycle: int
    sparsity: float
    divergence_cut: float
    divergence: float
    evaluations: int
    seconds: float


@dataclass(frozen=True)
class Report:
    """The result of `prune`.

    Attributes:
        masks: bool masks by parameter name, True = kept, in each parameter's shape.
        layers: one entry a layer.
        criterion: name of what ranked the units.
        target: fraction of units that was to be zeroed.
        sparsity: fraction of units that is zeroed.
        weight_sparsity: fraction of the prunable weights that is zeroed.
        divergence: of the result, on held-back calibration data.
        history: one entry a cycle.
        events: generations, swaps (predicted and measured), gates, recoveries, in order.
        evaluations: candidate sets measured.
        sample_evaluations: forward passes of single samples for that.
        seconds: wall-clock time.
        outcome: "complete", or "budget" when the search was cut short (the target is reached all the same).
        advice: what to try next, in words.
    """

    masks: dict[str, Tensor]
    layers: tuple[LayerReport, ...]
    criterion: str
    target: float
    sparsity: float
    weight_sparsity: float
    divergence: float
    history: tuple[CycleReport, ...]
    events: tuple[dict[str, Any], ...]
    evaluations: int
    sample_evaluations: int
    seconds: float
    outcome: Outcome
    advice: str

    @property
    def overruled(self) -> int:
        """How often the gate preferred a pure criterion to evolution's winner."""
        return sum(1 for e in self.events if e.get("kind") == "gate" and e["overruled"])

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the masks as plain data for JSON; None stands for infinite values."""
        plain = {k: v for k, v in self.__dict__.items() if k not in ("masks", "layers", "history")}
        result: dict[str, Any] = _plain(
            {
                **plain,
                "events": list(self.events),
                "layers": [{**asdict(x), "sparsity": x.sparsity} for x in self.layers],
                "history": [asdict(x) for x in self.history],
                "overruled": self.overruled,
            }
        )
        return result

    def __str__(self) -> str:
        """Return a table of the layers and a line of totals."""
        width = max(len(x.name) for x in self.layers)
        rows = [
            f"{x.name:<{width}}  {x.units:>10,} units  {x.zeroed:>10,} zeroed  {x.sparsity:7.2%}"
            for x in self.layers
        ]
        total = (
            f"{self.criterion}: {self.sparsity:.2%} of units zeroed, divergence {self.divergence:.4g}, "
            f"{self.evaluations:,} evaluations in {self.seconds:.1f} s ({self.outcome})"
        )
        return "\n".join([*rows, total, *([self.advice] if self.advice else [])])


def report(problem: Problem, plan: Plan, history: list[CycleReport], spent: bool, seconds: float) -> Report:
    """Put together what a run has done.

    Args:
        problem: with the final choice in ``problem.kept``.
        plan: what was to be done.
        history: one entry a cycle.
        spent: whether the budget ended the search early.
        seconds: of the whole run.
    """
    units, kept = problem.units, problem.kept
    masks = {n: m.clone() for n, m in units.masks(kept.to(units.device)).items()}
    layers = tuple(
        LayerReport(
            x.name,
            x.count,
            int((~kept[x.start : x.stop]).sum()),
            x.parameter.numel(),
            int((~masks[x.name]).sum()),
        )
        for x in units.layers
    )
    divergence = float(problem.gate(kept[None], repair=False)[0])
    return Report(
        masks=masks,
        layers=layers,
        criterion=plan.criterion.name,
        target=plan.total / units.count,
        sparsity=1 - int(kept.sum()) / units.count,
        weight_sparsity=units.weight_sparsity(kept),
        divergence=divergence,
        history=tuple(history),
        events=tuple(problem.events),
        evaluations=problem.evaluations,
        sample_evaluations=problem.sample_evaluations,
        seconds=seconds,
        outcome="budget" if spent else "complete",
        advice=_advice(layers, spent, divergence),
    )


def _advice(layers: tuple[LayerReport, ...], spent: bool, divergence: float) -> str:
    empty = [x.name for x in layers if x.zeroed == x.units]
    if empty:
        return (
            f"{', '.join(empty)}: nothing is left in these layers; lower the sparsity, or protect them "
            "with exclude= or a dict of targets"
        )
    if not divergence < torch.finfo(torch.float64).max:
        return "the result's outputs are not finite; lower the sparsity or add a recovery"
    if spent:
        return "the budget ended the search early; a larger one would find a better set"
    return ""


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
