"""Taylor: the first-order change of the loss when a unit goes, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from de_plugin.assess.gradients import sample_gradients
from de_plugin.assess.problem import Problem
from de_plugin.criteria.base import register
from de_plugin.criteria.scoring import finish, noise, positive, require_gradient, weights
from de_plugin.types import Mask, Scores

_KEY = 1


@register("taylor")
@dataclass(frozen=True)
class Taylor:
    """Mean over samples of |sum of gradient x weight| (arXiv:1611.06440, arXiv:1906.10771).

    Without labels the targets are drawn from the student's own outputs, since the divergence itself
    has no first order at the teacher.

    Args:
        samples: calibration samples drawn at each call.
        labels: use the batches' labels and their cross-entropy.

    Raises:
        ArgumentError: `samples` is not positive.
    """

    samples: int = 1000
    labels: bool = False

    def __post_init__(self) -> None:
        """Refuse sample counts that are not positive."""
        positive("Taylor", samples=self.samples)

    @property
    def name(self) -> str:
        """Return "taylor"."""
        return "taylor"

    @property
    def needs_gradient(self) -> bool:
        """Return True."""
        return True

    def __call__(self, problem: Problem, eligible: Mask, count: int) -> Scores:
        """Return ``mean |sum g w|`` a unit, ``(units,)``.

        Raises:
            GradientError: the divergence has no gradient.
            DataError: labels are asked for and there are none.
        """
        require_gradient(problem, self.name)
        ours = weights(problem)
        total = torch.zeros(problem.units.count, dtype=torch.float64)
        rows = 0
        index = problem.draw(self.samples)
        for found in sample_gradients(problem, index, noise(problem, _KEY), labels=self.labels):
            changes = problem.units.reduce([g * w for g, w in zip(found, ours, strict=True)])
            total += changes.abs().sum(0).cpu().double()
            rows += len(changes)
        return finish(problem, eligible, total / rows, self.name)
