"""A small problem on which criteria and recoveries are tried, and random masks of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from de_plugin.assess.problem import Problem

MakeProblem = Callable[[], Problem]


def small_problem(**options: Any) -> Problem:
    """Return a new problem of 80 weights with batch norm and labels, the same at every call.

    Args:
        options: passed on to `Problem`, as in ``small_problem(divergence="mse")``.
    """
    rng = torch.Generator().manual_seed(7)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=rng).abs() + 0.1)
        for parameter in model.parameters():
            parameter.mul_(torch.randn(parameter.shape, generator=rng).sign())
    inputs = torch.randn(48, 6, generator=rng)
    labels = torch.randint(4, (48,), generator=rng)
    return Problem(model, (inputs, labels), **{"batch_size": 16, "holdout": 0.25, **options})


def random_mask(problem: Problem, fraction: float, key: int) -> Tensor:
    """Return a mask that is False for `fraction` of the units, N:M limits honoured."""
    scores = torch.rand(problem.units.count, generator=problem.generator(900, key))
    count = round(fraction * problem.units.count)
    return problem.select(scores, problem.eligible, count)
