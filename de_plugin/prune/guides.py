"""What else guides a search where plain KL is a poor guide: it likes students that say nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from de_plugin.assess.divergence import KL, CalibratedKL, Custom
from de_plugin.assess.problem import Problem
from de_plugin.prune.recover.moments import joined
from de_plugin.types import Masks

_MUCH = 0.1
"""Part of the divergence of a student that says nothing, from where on others guide as well."""

_LITTLE = 0.01
"""Part of it within which choices count as equally far from the teacher."""


def guides(measure: KL) -> tuple[KL, ...]:
    """Return what guides a search each besides `measure`, of the same outputs read in the same way."""
    kinds = KL(temperature=(1.0, 2.0, 4.0)), CalibratedKL()
    return tuple(replace(kind, dim=measure.dim, logits=measure.logits) for kind in kinds)


def costly(problem: Problem, measure: KL, divergence: float) -> bool:
    """Tell whether a choice costs so much of what the teacher tells that others shall guide as well."""
    return divergence >= _MUCH * _nothing(problem, measure)


def choice(problem: Problem, measure: KL, masks: Masks, values: list[float]) -> tuple[int, dict[str, Any]]:
    """Return which choice is the best, and what there is to tell of it.

    The least divergence on data held back decides, and between choices that are as good as equal in it, how
    often the student's likeliest class is another one than the teacher's.

    Args:
        problem: whose student is asked.
        measure: in which the values are.
        masks: what is kept, ``(choices, units)``.
        values: divergence of each on the data held back.
    """
    with problem.guided(Custom(measure.disagreement, "disagreement")):
        wrong = problem.gate(masks).tolist()
    nothing = _nothing(problem, measure)
    close = min(values) + (_LITTLE * nothing if math.isfinite(nothing) else 0.0)
    chosen = min(range(len(values)), key=lambda n: (values[n] > close, wrong[n], values[n]))
    return chosen, {"divergence": values, "disagreement": wrong, "chosen": chosen}


def _nothing(problem: Problem, measure: KL) -> float:
    """Return the divergence of a student that gives the mean answer only; infinity where it is unknown."""
    answers = joined(problem.pool.take(problem.held_back))
    if len(answers) > 1 or answers[0].size < 2:
        return math.inf
    return float(measure.uninformed(answers[0].teacher))
