"""What a criterion is, and the registry that finds one by name."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from de_plugin.assess.problem import Problem
from de_plugin.registry import Registry
from de_plugin.types import Mask, Scores


@runtime_checkable
class Criterion(Protocol):
    """Ranks units by what their loss would cost.

    A criterion leaves the model, ``problem.kept`` and every ``.grad`` as they were. On two problems
    made alike, with the same seed, it gives the same scores.
    """

    @property
    def name(self) -> str:
        """Short name for tables."""

    @property
    def needs_gradient(self) -> bool:
        """Whether the divergence must have a gradient."""

    def __call__(self, problem: Problem, eligible: Mask, count: int) -> Scores:
        """Score every unit.

        Args:
            problem: whose student is ranked, with ``problem.kept`` in force.
            eligible: ``(units,)`` bool, the units that may go.
            count: how many are about to go; most criteria don't care.

        Returns:
            ``(units,)``, on the CPU: finite for the eligible, lowest go first; +inf for the rest.
        """


_REGISTRY: Registry[Criterion] = Registry("criterion", Criterion, ("magnitude", "Magnitude()"))
register = _REGISTRY.register
names = _REGISTRY.names


def describe() -> dict[str, str]:
    """Return the first line of each registered criterion's docstring, by name."""
    return _REGISTRY.describe()


def criterion(spec: str | Criterion, **options: Any) -> Criterion:
    """Return the criterion that a name stands for.

    Args:
        spec: a registered name, or a criterion, which is returned as it is.
        options: passed to what is registered under the name.

    Raises:
        ArgumentError: the name or an option is unknown, an option is missing or has a value that
            cannot work, or options are given for a finished criterion.

    >>> criterion("magnitude", p=1)
    Magnitude(p=1)
    """
    return _REGISTRY.resolve(spec, **options)
