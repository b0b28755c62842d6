"""Staged assessment: many candidates on few samples, the better part on more (successive halving)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from de_plugin.errors import ArgumentError


@dataclass(frozen=True)
class Halving:
    """How a population is thinned out.

    Attributes:
        stages: rounds of assessment; 1 measures everything on all samples.
        keep: fraction that goes on to the next stage, in (0, 1).
    """

    stages: int = 3
    keep: float = 0.5

    def __post_init__(self) -> None:
        """Refuse fractions that keep none or all."""
        if self.stages < 1 or not 0 < self.keep < 1:
            raise ArgumentError(
                f"Halving(stages={self.stages}, keep={self.keep}): expected stages >= 1, 0 < keep < 1"
            )


def halve(
    measure: Callable[[Tensor, Tensor], Tensor], candidates: int, index: Tensor, rule: Halving
) -> tuple[Tensor, int]:
    """Assess candidates in stages on nested parts of one sample (common random numbers).

    Args:
        measure: ``measure(candidate numbers, sample index) -> values``, lower is better.
        candidates: how many there are.
        index: all samples, in random order; a stage sees the first ones.
        rule: how the population is thinned out.

    Returns:
        A value for each candidate, such that whoever got further is lower, and the winner's number.
        Values of the last stage are divergences on all samples.
    """
    alive = torch.arange(candidates)
    values = torch.full((candidates,), float("inf"), dtype=torch.float64)
    for stage in range(rule.stages):
        share = rule.keep ** (rule.stages - 1 - stage)
        part = index[: max(1, round(len(index) * share))]
        found = measure(alive, part)
        order = found.argsort(stable=True)
        if stage == rule.stages - 1:
            values[alive] = found
            return values, int(alive[order[0]])
        keep = max(1, round(len(alive) * rule.keep))
        dropped = alive[order[keep:]]
        # Half of what the stage before gave: whoever got further is lower, for any number of stages.
        top = torch.finfo(torch.float64).max * 0.5 ** (stage + 1)
        values[dropped] = top * torch.linspace(0.75, 1, len(dropped), dtype=torch.float64)
        alive = alive[order[:keep]]
    raise AssertionError("unreachable: the last stage returns")
