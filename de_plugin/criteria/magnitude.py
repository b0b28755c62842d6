"""Magnitude: the smallest weights go first, the baseline that costs nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from de_plugin.assess.problem import Problem
from de_plugin.criteria.base import register
from de_plugin.criteria.scoring import finish, weights
from de_plugin.errors import ArgumentError
from de_plugin.types import Mask, Scores


@register("magnitude")
@dataclass(frozen=True)
class Magnitude:
    """The p-norm of a unit's weights; |w| for single weights (Han et al., arXiv:1506.02626).

    Args:
        p: exponent of the norm; finite, > 0.

    Raises:
        ArgumentError: `p` is out of range.
    """

    p: float = 2

    def __post_init__(self) -> None:
        """Refuse exponents that are not positive and finite."""
        if not (self.p > 0 and math.isfinite(self.p)):
            raise ArgumentError(f"Magnitude(p={self.p}): expected a finite number > 0")

    @property
    def name(self) -> str:
        """Return "magnitude"."""
        return "magnitude"

    @property
    def needs_gradient(self) -> bool:
        """Return False."""
        return False

    def __call__(self, problem: Problem, eligible: Mask, count: int) -> Scores:
        """Return ``(sum |w|^p)^(1/p)`` a unit, ``(units,)``."""
        values = [w.abs().double() for w in weights(problem)]
        # Powers of the largest weight must not overflow; the norm is homogeneous.
        largest = torch.stack([w.max() for w in values]).max()
        scale = largest.clamp_min(torch.finfo(torch.float32).tiny)
        powers = problem.units.reduce([(w / scale).pow(self.p) for w in values])
        return finish(problem, eligible, powers.pow(1 / self.p) * scale, self.name)
