"""Taylor: the first-order change of the loss when a unit goes, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from de_plugin.assess.gradients import mean_over_samples
from de_plugin.assess.problem import Problem
from de_plugin.criteria.base import register
from de_plugin.criteria.gradient import GradientCriterion
from de_plugin.criteria.scoring import finish, weights
from de_plugin.types import Mask, Scores

_KEY = 1


@register("taylor")
@dataclass(frozen=True)
class Taylor(GradientCriterion):
    """Mean over samples of |sum of gradient x weight| (arXiv:1611.06440, arXiv:1906.10771).

    Without labels the targets are drawn from the student's own outputs, since the divergence itself
    has no first order at the teacher.

    Args:
        samples: calibration samples drawn at each call.
        labels: use the batches' labels and their cross-entropy.

    Raises:
        ArgumentError: `samples` is not positive.
    """

    labels: bool = False

    @property
    def name(self) -> str:
        """Return "taylor"."""
        return "taylor"

    def __call__(self, problem: Problem, eligible: Mask, count: int) -> Scores:
        """Return ``mean |sum g w|`` a unit, ``(units,)``.

        Raises:
            GradientError: the divergence has no gradient.
            DataError: labels are asked for and there are none.
        """
        index, targets = self._drawn(problem, _KEY)
        ours = weights(problem)

        def sizes(found: list[Tensor]) -> list[Tensor]:
            changes = problem.units.reduce([g * w for g, w in zip(found, ours, strict=True)])
            return [changes.abs().sum(0).cpu().double()]

        [mean] = mean_over_samples(problem, index, targets, sizes, labels=self.labels)
        return finish(problem, eligible, mean, self.name)
