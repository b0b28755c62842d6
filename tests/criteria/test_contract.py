"""What every criterion keeps to, for every granularity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from de_plugin.assess import Problem, Score
from de_plugin.criteria import Criterion, blend, criterion, names, nest
from de_plugin.errors import ArgumentError, GradientError, OutputError

GRANULARITIES = ["weight", "2:4", "4x4", "kernel", "channel"]
BUILT_IN = ["activation", "fisher", "magnitude", "obs", "random", "taylor", "wanda"]
COMBINED: dict[str, Callable[[], Criterion]] = {
    "nest": lambda: nest("magnitude", "fisher"),
    "deep": lambda: nest("random", nest("magnitude", "taylor"), "activation", widen=3),
    "blend": lambda: blend({"magnitude": 1, "taylor": 0.5}),
}
EVERY = [*BUILT_IN, *COMBINED]


def made(name: str) -> Criterion:
    return COMBINED[name]() if name in COMBINED else criterion(name)


def some(problem: Problem) -> torch.Tensor:
    eligible = problem.eligible.clone()
    eligible[::5] = False
    return eligible


def test_all_names_are_under_contract() -> None:
    assert set(BUILT_IN) <= set(names())


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", EVERY)
def test_scores_and_side_effects(name: str, granularity: str, build: Any, thinned: Any) -> None:
    problem, twin = (thinned(build("mixed", samples=12, granularity=granularity)) for _ in "ab")
    model = problem.model
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    grad = torch.ones_like(model.head.weight)
    model.head.weight.grad = grad
    before = {k: v.clone() for k, v in model.state_dict().items()}
    kept = problem.kept.clone()
    eligible = some(problem)

    scores = made(name)(problem, eligible, 3)

    assert scores.shape == (problem.units.count,)
    assert scores.dtype in (torch.float32, torch.float64)
    assert scores.device.type == "cpu"
    assert bool(torch.isfinite(scores[eligible]).all())
    assert bool((scores[~eligible] == float("inf")).all())
    assert torch.equal(scores, made(name)(twin, some(twin), 3))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(problem.kept, kept)
    assert not any(p.requires_grad for p in model.parameters())
    assert model.head.weight.grad is grad
    assert bool((grad == 1).all())
    assert model.head.bias.grad is None


@pytest.mark.parametrize("name", EVERY)
def test_is_a_hashable_criterion_with_a_name(name: str) -> None:
    one = made(name)
    assert isinstance(one, Criterion)
    assert one == made(name)
    assert hash(one) == hash(made(name))
    assert one.name


@pytest.mark.parametrize("name", EVERY)
def test_needs_gradient_is_true_exactly_where_it_is_missed(name: str, build: Any) -> None:
    score = Score(lambda y, ref: float((y.argmax(-1) == ref.argmax(-1)).float().mean()), "teacher")
    problem = build(divergence=score)
    one = made(name)
    if one.needs_gradient:
        with pytest.raises(GradientError, match="use magnitude, activation or random"):
            one(problem, problem.eligible, 2)
    else:
        assert bool(torch.isfinite(one(problem, problem.eligible, 2)).all())


def test_a_callable_without_gradient_is_refused(build: Any) -> None:
    problem = build(divergence=lambda s, t: float((s - t).detach().square().mean()))
    with pytest.raises(GradientError, match="fisher"):
        criterion("fisher")(problem, problem.eligible, 1)


@pytest.mark.parametrize("name", ["magnitude", "activation", "fisher", "obs", "taylor"])
def test_zeroed_units_count_nothing(name: str, build: Any, thinned: Any) -> None:
    problem = thinned(build())
    everything = torch.ones_like(problem.kept)
    scores = criterion(name)(problem, everything, 1)
    assert bool((scores[~problem.kept] == 0).all())


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_malformed_mask_is_refused(name: str, build: Any) -> None:
    problem = build()
    with pytest.raises(ArgumentError, match="eligible"):
        criterion(name)(problem, torch.ones(3, dtype=torch.bool), 1)


def test_broken_weights_are_named(build: Any) -> None:
    problem = build()
    problem.model[0].weight.data[0, 0] = float("nan")
    with pytest.raises(OutputError, match="magnitude.*NaN"):
        criterion("magnitude")(problem, problem.eligible, 1)


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_exactly_as_many_go_as_can(name: str, data: st.DataObject, build: Any) -> None:
    problem = build(samples=8)
    flags = data.draw(st.lists(st.booleans(), min_size=42, max_size=42))
    count = data.draw(st.integers(1, 50))
    eligible = torch.tensor(flags)
    wanted = min(count, int(eligible.sum()))
    scores = made(name)(problem, eligible, count)
    gone = ~problem.select(scores, eligible, wanted)
    assert int(gone.sum()) == wanted
    assert not bool((gone & ~eligible).any())


@pytest.mark.parametrize("name", EVERY)
def test_half_precision_works(name: str, build: Any) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    problem = Problem(model.bfloat16().eval(), torch.randn(8, 4).bfloat16(), holdout=0.0)
    assert bool(torch.isfinite(made(name)(problem, problem.eligible, 2)).all())
