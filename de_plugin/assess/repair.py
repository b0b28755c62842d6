"""A cheap correction of a zeroed student that each candidate gets, undone afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

from de_plugin.assess.batches import Batch

if TYPE_CHECKING:
    from de_plugin.assess.problem import Problem

Repair = Callable[["Problem", list[Batch]], AbstractContextManager[None]]
"""Corrects the student as it stands, on the samples it is about to be measured on."""

Statistics = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From a batch norm's inputs ``(samples, channels, ...)``: the running mean and variance it is to use."""


@runtime_checkable
class SideBySide(Protocol):
    """A repair that can be made for many candidates at once: all it changes is running statistics."""

    def __call__(self, problem: Problem, batches: list[Batch]) -> AbstractContextManager[None]:
        """Correct one student."""

    def statistics(self, problem: Problem) -> Mapping[int, Statistics] | None:
        """Return what gives each batch norm its statistics, by ``id`` of its running mean.

        None where that cannot be said. It is called inside `torch.vmap` over the candidates.
        """
