"""Random: any unit may go first, the control that every criterion must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from de_plugin.assess.problem import Problem
from de_plugin.criteria.base import register
from de_plugin.criteria.scoring import finish
from de_plugin.errors import ArgumentError
from de_plugin.types import Mask, Scores

_KEY = 3


@register("random")
@dataclass(frozen=True)
class Random:
    """Uniform scores, the same at each call.

    Args:
        seed: of the scores, >= 0; None takes the problem's.

    Raises:
        ArgumentError: `seed` is negative.
    """

    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse negative seeds."""
        if self.seed is not None and self.seed < 0:
            raise ArgumentError(f"Random(seed={self.seed!r}): expected a number >= 0, or None")

    @property
    def name(self) -> str:
        """Return "random"."""
        return "random"

    @property
    def needs_gradient(self) -> bool:
        """Return False."""
        return False

    def __call__(self, problem: Problem, eligible: Mask, count: int) -> Scores:
        """Return uniform numbers in [0, 1), ``(units,)``."""
        generator = (
            problem.generator(2, _KEY) if self.seed is None else torch.Generator().manual_seed(self.seed)
        )
        scores = torch.rand(problem.units.count, generator=generator, dtype=torch.float64)
        return finish(problem, eligible, scores, self.name)
