"""Fisher: the second-order cost of each weight alone, from squared per-sample gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from de_plugin.assess.factors import linear_factors
from de_plugin.assess.gradients import mean_over_samples
from de_plugin.assess.problem import Problem
from de_plugin.criteria.base import register
from de_plugin.criteria.gradient import GradientCriterion
from de_plugin.criteria.scoring import finish, weights, widened
from de_plugin.types import Mask, Scores

_KEY = 2


def diagonal(
    problem: Problem, index: Tensor, generator: torch.Generator, labels: bool = False
) -> list[Tensor]:
    """Return the diagonal of the Fisher information at the student: mean squared gradients.

    Args:
        problem: whose student is asked, with ``problem.kept`` in force.
        index: the samples; one may occur several times, each with its own drawn target.
        generator: draws the targets.
        labels: use the batches' labels and their cross-entropy instead (the empirical Fisher).

    Returns:
        One tensor of the parameter's shape a layer, for zeroed weights too.

    Raises:
        GradientError: the model has no usable gradient.
        DataError: labels are asked for and there are none.
    """
    factors = None if labels else linear_factors(problem, index, generator)
    if factors is not None:
        wide = [(widened(x), widened(d)) for x, d in factors]
        return [d.square().T @ x.square() / len(x) for x, d in wide]

    def squares(found: list[Tensor]) -> list[Tensor]:
        return [widened(g).square().sum(0) for g in found]

    return mean_over_samples(problem, index, generator, squares, labels=labels)


@register("fisher")
@dataclass(frozen=True)
class Fisher(GradientCriterion):
    """Half the summed Fisher x w²: the second-order cost of zeroing (OBD, LeCun et al. 1990).

    Args:
        samples: calibration samples drawn at each call.
        labels: use the batches' labels and their cross-entropy.

    Raises:
        ArgumentError: `samples` is not positive.
    """

    samples: int = 2000
    labels: bool = False

    @property
    def name(self) -> str:
        """Return "fisher"."""
        return "fisher"

    def __call__(self, problem: Problem, eligible: Mask, count: int) -> Scores:
        """Return ``½ sum F w²`` a unit, ``(units,)``.

        Raises:
            GradientError: the divergence has no gradient.
            DataError: labels are asked for and there are none.
        """
        information = diagonal(problem, *self._drawn(problem, _KEY), self.labels)
        costs = [0.5 * f * w.square() for f, w in zip(information, weights(problem), strict=True)]
        return finish(problem, eligible, problem.units.reduce(costs), self.name)
