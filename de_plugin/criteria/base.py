"""What a criterion is, and the registry that finds one by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

from de_plugin.assess.problem import Problem
from de_plugin.errors import ArgumentError
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


Factory = Callable[..., Criterion]
_F = TypeVar("_F", bound=Factory)
_REGISTRY: dict[str, Factory] = {}


def register(name: str) -> Callable[[_F], _F]:
    """Make a criterion's class or factory known under a name; use it as a decorator.

    Args:
        name: what users write; several names may stand for the same class.

    Raises:
        ArgumentError: the name is empty or taken.
    """

    def add(factory: _F) -> _F:
        if not name:
            raise ArgumentError(f"register({name!r}): expected a name as in register('magnitude')")
        if name in _REGISTRY:
            raise ArgumentError(
                f"register({name!r}): the name is taken by {_REGISTRY[name]!r}; choose another"
            )
        _REGISTRY[name] = factory
        return factory

    return add


def names() -> tuple[str, ...]:
    """Return the registered names, sorted."""
    return tuple(sorted(_REGISTRY))


def describe() -> dict[str, str]:
    """Return the first line of each registered criterion's docstring, by name."""
    return {name: (inspect.getdoc(_REGISTRY[name]) or "").partition("\n")[0] for name in names()}


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
    if isinstance(spec, str):
        if spec not in _REGISTRY:
            raise ArgumentError(f"criterion={spec!r}: expected one of {', '.join(names())}")
        factory = _REGISTRY[spec]
        try:
            inspect.signature(factory).bind(**options)
        except TypeError as error:
            known = ", ".join(inspect.signature(factory).parameters) or "none"
            raise ArgumentError(
                f"criterion={spec!r}: got options {', '.join(options) or 'none'} ({error}); "
                f"its options are: {known}"
            ) from None
        return factory(**options)
    if isinstance(spec, type) or not isinstance(spec, Criterion):
        raise ArgumentError(
            f"criterion={spec!r}: expected one of {', '.join(names())}, or an object such as Magnitude()"
        )
    if options:
        raise ArgumentError(
            f"criterion={spec.name!r}: options {', '.join(options)} are for names; set them on the "
            "object itself"
        )
    return spec
