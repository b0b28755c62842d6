"""The contract of criteria: which scores, how many units, and a problem left as it was."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from de_plugin.assess.problem import Problem
from de_plugin.criteria import Criterion
from de_plugin.testing.problems import MakeProblem, random_mask, small_problem
from de_plugin.testing.state import untouched


def check_criterion(criterion: Criterion, make_problem: MakeProblem | None = None) -> None:
    """Check what `de_plugin.Criterion` promises.

    Scores are finite for the eligible units and +inf for the rest; exactly as many units as asked for
    are chosen, all eligible; the model, ``problem.kept`` and ``.grad`` stay as they are; problems made
    alike give the same scores, whatever the state of torch's global generator.

    Args:
        criterion: what is tested.
        make_problem: returns a new problem, the same at every call; default `small_problem`.

    Raises:
        AssertionError: a promise is broken; the message says which.
    """
    make = make_problem or small_problem
    assert isinstance(criterion, Criterion), (
        f"{criterion!r}: expected name, needs_gradient and __call__(problem, eligible, count)"
    )
    assert isinstance(criterion.name, str), f"{criterion!r}: its name is no string"
    assert criterion.name, f"{criterion!r}: its name is empty"
    who = f"criterion {criterion.name!r}"
    assert isinstance(criterion.needs_gradient, bool), f"{who}: needs_gradient is no bool"
    for zeroed in (0.0, 0.2):
        runs = []
        with torch.random.fork_rng(devices=[]):
            for seed in (1, 2):
                torch.manual_seed(seed)
                runs.append(_scored(criterion, make(), zeroed, who))
        assert torch.equal(*runs), f"{who}: two problems made alike gave different scores"


def _scored(criterion: Criterion, problem: Problem, zeroed: float, who: str) -> Tensor:
    problem.kept = random_mask(problem, zeroed, 1)
    problem.protected = torch.arange(problem.units.count) % 7 == 3
    eligible = problem.eligible
    count = max(1, int(eligible.sum()) // 4)
    with untouched(problem, who):
        scores = criterion(problem, eligible, count)
    wanted = (problem.units.count,)
    assert isinstance(scores, Tensor), f"{who}: returned {type(scores).__name__}, expected a tensor"
    assert scores.shape == wanted, f"{who}: returned {tuple(scores.shape)}, expected {wanted}"
    assert scores.is_floating_point(), f"{who}: returned {scores.dtype}, expected floats"
    assert scores.device.type == "cpu", f"{who}: scores are on {scores.device}, expected the CPU"
    broken = int((~torch.isfinite(scores[eligible])).sum())
    assert not broken, f"{who}: {broken} scores of eligible units are not finite"
    finite = int((scores[~eligible] != math.inf).sum())
    assert not finite, f"{who}: {finite} scores of units that may not go are not +inf"
    kept = problem.select(scores, eligible, count)
    gone = problem.kept & ~kept
    assert int(gone.sum()) == count, f"{who}: {int(gone.sum())} units chosen, expected {count}"
    assert not bool((gone & ~eligible).any()), f"{who}: chose units that may not go"
    return scores
