"""What the criteria from per-sample gradients share: how many samples, which ones, drawn targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from de_plugin.assess.guard import check_counts
from de_plugin.assess.problem import Problem
from de_plugin.criteria.scoring import noise, require_gradient


@dataclass(frozen=True)
class GradientCriterion(ABC):
    """A criterion that averages over the gradients at calibration samples.

    Args:
        samples: calibration samples drawn at each call.

    Raises:
        ArgumentError: `samples` is not positive.
    """

    samples: int = 1000

    def __post_init__(self) -> None:
        """Refuse sample counts that are not positive."""
        check_counts(type(self).__name__, samples=self.samples)

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name for tables."""

    @property
    def needs_gradient(self) -> bool:
        """Return True."""
        return True

    def _drawn(self, problem: Problem, key: int) -> tuple[Tensor, torch.Generator]:
        """Return this call's samples and the generator of their targets.

        Args:
            problem: whose samples are drawn.
            key: tells the criteria apart.

        Raises:
            GradientError: the divergence has no gradient.
        """
        require_gradient(problem, self.name)
        return problem.draw(self.samples), noise(problem, key)
