"""What built-in criteria share: the student's weights, checked arguments and finished scores."""

from __future__ import annotations

import torch
from torch import Tensor

from de_plugin.assess.problem import Problem
from de_plugin.errors import ArgumentError, GradientError, OutputError
from de_plugin.types import Mask, Scores


def live(problem: Problem, units: Mask) -> list[Tensor]:
    """Spread a mask over weights where they are: one bool tensor ``(*parameter.shape)`` a layer."""
    masks = problem.units.expand(units)
    return [mask.to(layer.parameter.device) for layer, mask in zip(problem.units.layers, masks, strict=True)]


def weights(problem: Problem) -> list[Tensor]:
    """Return the student's weights, float32 or float64, zero where ``problem.kept`` says so.

    One tensor of the parameter's shape a layer.
    """
    return [
        widened(value).masked_fill(~mask, 0)
        for value, mask in zip(problem.units.values(), live(problem, problem.kept), strict=True)
    ]


def widened(value: Tensor) -> Tensor:
    """Return `value` in float32 where it is narrower: squares of half precision overflow."""
    return value if value.dtype == torch.float64 else value.float()


def finish(problem: Problem, eligible: Mask, scores: Tensor, who: str) -> Scores:
    """Return `scores` ``(units,)`` as float64 on the CPU, +inf for what is not eligible.

    Raises:
        ArgumentError: `eligible` is not a bool vector with one entry a unit.
        OutputError: an eligible unit's score is NaN or infinite.
    """
    if eligible.dtype != torch.bool or eligible.shape != (problem.units.count,):
        raise ArgumentError(
            f"eligible: got {eligible.dtype} {tuple(eligible.shape)}, expected torch.bool "
            f"({problem.units.count},)"
        )
    eligible = eligible.cpu()
    result = scores.detach().cpu().double()
    broken = int((~torch.isfinite(result[eligible])).sum())
    if broken:
        raise OutputError(
            f"criterion {who}: {broken} of {int(eligible.sum())} scores are NaN or infinite; check "
            "the weights and the student's outputs, or run the model in float32"
        )
    return result.masked_fill(~eligible, float("inf"))


def require_gradient(problem: Problem, who: str) -> None:
    """Refuse problems whose divergence cannot be differentiated.

    Raises:
        GradientError: it has no gradient.
    """
    if not problem.has_gradient:
        raise GradientError(
            f"criterion {who}: needs a gradient and divergence={problem.divergence.name!r} gives "
            "none; use magnitude, activation or random, or a differentiable divergence such as 'kl'"
        )


def noise(problem: Problem, key: int) -> torch.Generator:
    """Return a generator for drawn targets that depends on the seed and on the calls before it.

    Args:
        problem: whose seed counts.
        key: tells the criteria apart.
    """
    state = problem.state_of(f"noise {key}")
    calls: int = state.get("calls", 0)
    state["calls"] = calls + 1
    return problem.generator(2, key, calls)
