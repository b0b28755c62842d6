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
    samples: int | None,
    batch_size: int,
    holdout: float,
    seed: int,
) -> None:
    """Refuse what would fail only when it is measured.

    Args:
        who: whose arguments they are.
        divergence: a name, a divergence or a callable.
        samples: a positive number, or None for all.
        batch_size: a positive number.
        holdout: a fraction in [0, 1).
        seed: in [0, 2**31).

    Raises:
        ArgumentError: a value cannot work.
    """
    if samples is not None:
        check_counts(who, samples=samples)
    check_counts(who, batch_size=batch_size)
    resolved(divergence)
    if not _is(holdout, Real) or not 0 <= holdout < 1:
        raise ArgumentError(f"{who}(holdout={holdout!r}): expected a fraction in [0, 1)")
    if not _is(seed, Integral) or not 0 <= seed < 1 << 31:
        raise ArgumentError(f"{who}(seed={seed!r}): expected a whole number in [0, 2**31)")


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
