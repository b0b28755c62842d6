"""What an error of each weight costs: nothing known, the Fisher information, or the energy of its inputs."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from de_plugin.assess.capture import input_energy
from de_plugin.assess.problem import Problem
from de_plugin.criteria.fisher import diagonal
from de_plugin.errors import ArgumentError, GradientError

Weighting = Literal["none", "fisher", "activations"]

_KEY = 21
_SHARE = 0.1
"""Part of the mean that is given to all alike: a few samples don't prove that an error is harmless."""


def check_weighting(weighting: str) -> None:
    """Refuse what is no weighting.

    Raises:
        ArgumentError: it is none.
    """
    if weighting not in get_args(Weighting):
        raise ArgumentError(f"weighting={weighting!r}: expected one of {', '.join(get_args(Weighting))}")


def importance(problem: Problem, weighting: Weighting, samples: int = 2000) -> list[Tensor] | None:
    """Return what a squared error of each weight costs, one tensor of the parameter's shape a layer.

    Args:
        problem: whose student is asked, with ``problem.kept`` in force.
        weighting: "fisher": half the diagonal Fisher information, in divergence a squared weight;
            "activations": the mean energy of the inputs that a weight meets; "none".
        samples: calibration samples.

    Returns:
        None for "none".

    Raises:
        ArgumentError: `weighting` is another one.
        GradientError: "fisher", and the divergence has no gradient.
    """
    check_weighting(weighting)
    if weighting == "none":
        return None
    index = problem.draw(samples)
    if weighting == "activations":
        found = input_energy(problem, index)
    else:
        if not problem.has_gradient:
            raise GradientError(
                f"weighting='fisher': divergence={problem.divergence.name!r} gives no gradient; use "
                "weighting='activations' or 'none'"
            )
        found = [0.5 * f for f in diagonal(problem, index, problem.generator(_KEY))]
    return [
        _smoothed(x.detach().cpu().double(), p) for x, p in zip(found, problem.units.values(), strict=True)
    ]


def _smoothed(values: Tensor, weight: Tensor) -> Tensor:
    """Mix the importance with its mean over the weights that are not zero."""
    alive = (weight != 0).cpu()
    mean = values[alive].mean() if bool(alive.any()) else torch.zeros((), dtype=values.dtype)
    return (1 - _SHARE) * values + _SHARE * mean
