"""Activation: weights weighed by the energy of the inputs they meet (Wanda)."""

from __future__ import annotations

from dataclasses import dataclass

from de_plugin.assess.capture import input_energy
from de_plugin.assess.guard import check_counts
from de_plugin.assess.problem import Problem
from de_plugin.criteria.base import register
from de_plugin.criteria.scoring import finish, weights, widened
from de_plugin.types import Mask, Scores


@register("activation")
@register("wanda")
@dataclass(frozen=True)
class Activation:
    """Root of the summed w² x input energy; |w|·‖x‖ for single weights (Wanda, arXiv:2306.11695).

    Args:
        samples: calibration samples drawn at each call.

    Raises:
        ArgumentError: `samples` is not positive.
    """

    samples: int = 2000

    def __post_init__(self) -> None:
        """Refuse sample counts that are not positive."""
        check_counts("Activation", samples=self.samples)

    @property
    def name(self) -> str:
        """Return "activation"."""
        return "activation"

    @property
    def needs_gradient(self) -> bool:
        """Return False."""
        return False

    def __call__(self, problem: Problem, eligible: Mask, count: int) -> Scores:
        """Return ``sqrt(sum w² E[x²])`` a unit, ``(units,)``; inputs are those of the student."""
        energy = input_energy(problem, problem.draw(self.samples))
        products = [w.square() * widened(e) for w, e in zip(weights(problem), energy, strict=True)]
        return finish(problem, eligible, problem.units.reduce(products).sqrt(), self.name)
