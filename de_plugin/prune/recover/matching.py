"""What recoveries that match the teacher's moments share: measuring them, once, before any cut."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from de_plugin.assess.problem import Problem
from de_plugin.assess.repair import Repair
from de_plugin.errors import ArgumentError
from de_plugin.prune.recover.base import prepared
from de_plugin.prune.recover.moments import Moments, calibration


@dataclass(frozen=True)
class MomentMatching(ABC):
    """A recovery that brings outputs back to the moments they have at the teacher.

    Args:
        samples: how many search samples the moments are measured on.

    Raises:
        ArgumentError: `samples` is not positive.
    """

    samples: int = 512

    def __post_init__(self) -> None:
        """Refuse empty calibration."""
        if self.samples < 1:
            raise ArgumentError(f"samples={self.samples}: expected a positive number")

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name, as written on the command line."""

    def prepare(self, problem: Problem) -> None:
        """Measure the teacher's moments."""
        self._teacher(problem)

    @abstractmethod
    def __call__(self, problem: Problem) -> None:
        """Match the teacher for good."""

    @abstractmethod
    def in_assessment(self) -> Repair | None:
        """Return the part that is cheap enough for every candidate, undone on exit; or None."""

    @abstractmethod
    def _watched(self, model: nn.Module) -> Mapping[str, tuple[nn.Module, int]]:
        """Return the modules that are matched and the dimension of their output channels, by name."""

    def _teacher(self, problem: Problem) -> dict[str, Moments]:
        """Return the teacher's output moments, measured at the first call."""
        return prepared(problem, self, lambda: _measured(problem, self._watched(problem.model), self.samples))


def _measured(
    problem: Problem, modules: Mapping[str, tuple[nn.Module, int]], samples: int
) -> dict[str, Moments]:
    """Return the output moments of every module that is used once in a pass."""
    if not modules:
        return {}
    batches = problem.pool.take(calibration(problem, samples))
    found: dict[str, Moments] = {}
    calls: dict[str, int] = {}

    def watch(name: str, channel: int) -> Any:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
            found.setdefault(name, Moments()).add(output, channel)
            calls[name] = calls.get(name, 0) + 1

        return hook

    with ExitStack() as stack, torch.no_grad():
        for name, (module, channel) in modules.items():
            stack.callback(module.register_forward_hook(watch(name, channel)).remove)
        for batch in batches:
            problem.forward(problem.model, batch.inputs)
    return {name: moments for name, moments in found.items() if calls[name] <= len(batches)}
