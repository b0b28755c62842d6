"""The contract of recoveries: units stay revivable, and an interruption leaves no trace."""

from __future__ import annotations

import torch
from torch import nn

from de_plugin.assess.problem import Problem
from de_plugin.prune.recover import Recovery
from de_plugin.testing.problems import MakeProblem, random_mask, small_problem
from de_plugin.testing.state import Interrupt, check_state, same_bits, state
from de_plugin.types import PyTree

_STEPS = 3
"""Forward passes after which a recovery is interrupted: late enough that it has begun to work."""


def check_recovery(recovery: Recovery, make_problem: MakeProblem | None = None) -> None:
    """Check what `Recovery` promises.

    Zeroed units keep their dense values, so that they can be revived; ``problem.kept``, modes and flags
    stay; values stay finite; an exception leaves the model as it was; the part used in assessments is
    undone on exit; problems made alike end alike.

    Args:
        recovery: what is tested.
        make_problem: returns a new problem, the same at every call; default `small_problem`.

    Raises:
        AssertionError: a promise is broken; the message says which.
    """
    make = make_problem or small_problem
    assert isinstance(recovery, Recovery), f"{recovery!r}: expected name, prepare, __call__ and in_assessment"
    who = f"recovery {recovery.name!r}"
    ends = []
    for _ in range(2):
        problem = _cut(recovery, make(), who)
        _check_assessment(recovery, problem, who)
        _check_survivors(recovery, problem, who)
        ends.append(state(problem.model))
    same = all(same_bits(ends[0][n], ends[1][n]) for n in ends[0])
    assert same, f"{who}: two problems made alike ended with different values"
    _check_interrupted(recovery, _cut(recovery, make(), who), who)


def _cut(recovery: Recovery, problem: Problem, who: str) -> Problem:
    before = state(problem.model)
    recovery.prepare(problem)
    check_state(problem.model, before, who, "after prepare")
    problem.kept = random_mask(problem, 0.4, 2)
    return problem


def _check_assessment(recovery: Recovery, problem: Problem, who: str) -> None:
    repair = recovery.in_assessment()
    if repair is None:
        return
    batches = problem.pool.take(problem.search[:8])
    before = state(problem.model)
    with torch.no_grad(), problem.units.zeroed(problem.kept):
        with repair(problem, batches):
            pass
        try:
            with repair(problem, batches):
                raise Interrupt
        except Interrupt:
            pass
    check_state(problem.model, before, who, "after its part of an assessment")


def _check_survivors(recovery: Recovery, problem: Problem, who: str) -> None:
    kept, model = problem.kept.clone(), problem.model
    flags = [p.requires_grad for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    before = [v.clone() for v in problem.units.values()]
    recovery(problem)
    assert torch.equal(problem.kept, kept), f"{who}: problem.kept was changed"
    assert [p.requires_grad for p in model.parameters()] == flags, f"{who}: requires_grad was changed"
    assert [m.training for m in model.modules()] == modes, f"{who}: train or eval mode was changed"
    masks = problem.units.expand(kept)
    for layer, old, mask in zip(problem.units.layers, before, masks, strict=True):
        now, gone = layer.parameter.detach(), ~mask.to(old.device)
        assert same_bits(now[gone], old[gone]), (
            f"{who}: dense values of zeroed units of {layer.name} were changed; they must be revivable"
        )
    broken = [n for n, x in state(model).items() if not bool(torch.isfinite(x).all())]
    assert not broken, f"{who}: {', '.join(broken)} hold NaN or infinite values"


def _check_interrupted(recovery: Recovery, problem: Problem, who: str) -> None:
    before, forward, calls = state(problem.model), problem.forward, 0

    def interrupted(model: nn.Module, inputs: PyTree) -> PyTree:
        nonlocal calls
        calls += 1
        if calls == _STEPS:
            raise Interrupt
        return forward(model, inputs)

    problem.forward = interrupted
    try:
        recovery(problem)
    except Interrupt:
        check_state(problem.model, before, who, "after an exception")
    finally:
        problem.forward = forward
