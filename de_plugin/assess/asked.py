"""Checks of what a plugin is asked to measure, before anything is wrapped or pruned."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from de_plugin.assess.divergence import Divergence
from de_plugin.assess.divergence import divergence as resolved
from de_plugin.assess.guard import check_counts
from de_plugin.errors import ArgumentError


def check_asked(
    who: str,
    divergence: str | Divergence | Callable[[Any, Any], Any],
    holdout: float,
    seed: int,
    **counts: int,
) -> None:
    """Refuse what would fail only when it is measured.

    Args:
        who: whose arguments they are.
        divergence: a name, a divergence or a callable.
        holdout: a fraction in [0, 1).
        seed: in [0, 2**31).
        counts: positive whole numbers, by their names.

    Raises:
        ArgumentError: a value cannot work.
    """
    check_counts(who, **counts)
    resolved(divergence)
    if not _is(holdout, Real) or not 0 <= holdout < 1:
        raise ArgumentError(f"{who}(holdout={holdout!r}): expected a fraction in [0, 1)")
    if not _is(seed, Integral) or not 0 <= seed < 1 << 31:
        raise ArgumentError(f"{who}(seed={seed!r}): expected a whole number in [0, 2**31)")


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
