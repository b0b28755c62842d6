"""A population measured side by side equals the serial reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from de_plugin.assess.evaluate import Serial, Stacked, evaluator
from de_plugin.assess.problem import Problem
from de_plugin.errors import ArgumentError, DEWarning


def mlp(widths: list[int], bias: bool, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


@settings(max_examples=25, deadline=None)
@given(
    widths=st.lists(st.integers(2, 9), min_size=2, max_size=4),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
    divergence=st.sampled_from(["kl", "js", "mse", "cosine"]),
    granularity=st.sampled_from(["weight", "channel", "2x3"]),
    candidates=st.integers(1, 5),
)
def test_stacked_equals_serial(
    widths: list[int], bias: bool, seed: int, divergence: str, granularity: str, candidates: int
) -> None:
    model = mlp(widths, bias, seed)
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(23, widths[0], generator=draw)
    problem = Problem(
        model, x, divergence=divergence, granularity=granularity, batch_size=8, evaluate="serial"
    )
    before = [p.detach().clone() for p in model.parameters()]
    masks = torch.rand(candidates, problem.units.count, generator=draw) > 0.3
    serial = Serial(problem)(masks, problem.search, False)
    for chunk in (1, 1 << 20):
        stacked = Stacked(problem, chunk)(masks, problem.search, False)
        torch.testing.assert_close(stacked, serial, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_serial_equals_a_model_with_the_weights_really_gone() -> None:
    model = mlp([5, 6, 3], True, 0)
    x = torch.randn(20, 5)
    problem = Problem(model, x, divergence="mse", holdout=0)
    kept = torch.rand(problem.units.count) > 0.5
    value = problem(kept)
    teacher = model(x).detach()
    with torch.no_grad():
        for name, mask in problem.units.masks(kept).items():
            model.get_parameter(name).mul_(mask)
        expected = float((model(x) - teacher).square().mean())
    assert value == pytest.approx(expected, rel=1e-5)


def test_shared_weights_stack_as_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(self.first(x).relu())
            return y

    torch.manual_seed(0)
    problem = Problem(Tied().eval(), torch.randn(20, 4))
    masks = torch.rand(3, problem.units.count) > 0.4
    torch.testing.assert_close(
        Stacked(problem)(masks, problem.search, False),
        Serial(problem)(masks, problem.search, False),
        rtol=1e-5,
        atol=1e-6,
    )


def problem_of(model: nn.Module, x: Tensor, **options: Any) -> Problem:
    return Problem(model.eval(), x, **options)


def test_auto_stacks_linear_networks_only() -> None:
    linear = problem_of(mlp([3, 4, 2], True, 0), torch.randn(10, 3))
    assert isinstance(evaluator(linear, "auto"), Stacked)
    assert isinstance(evaluator(linear, "serial"), Serial)
    conv = problem_of(nn.Conv1d(2, 3, 2), torch.randn(10, 2, 5), divergence="mse")
    assert isinstance(evaluator(conv, "auto"), Serial)
    assert isinstance(evaluator(conv, "stacked"), Stacked)
    with pytest.raises(ArgumentError, match="evaluate='fast'"):
        evaluator(linear, "fast")


def test_models_that_cannot_be_stacked_fall_back_with_a_warning() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x)
            return y if float(y.sum()) > 0 else y * 2

    with pytest.warns(DEWarning, match="one by one"):
        problem = Problem(Branching().eval(), torch.randn(10, 3))
    assert isinstance(problem._evaluator, Serial)


def test_a_repair_is_in_force_for_every_candidate() -> None:
    model = mlp([3, 2], True, 0)
    problem = Problem(model, torch.randn(10, 3), divergence="mse")
    entered = []

    @contextmanager
    def repair(problem: Problem, batches: list[Any]) -> Iterator[None]:
        entered.append(sum(b.size for b in batches))
        yield

    problem.repair = repair
    masks = torch.ones(3, problem.units.count, dtype=torch.bool)
    problem.assess(masks, problem.search[:4])
    assert entered == [4, 4, 4]
    problem.assess(masks, problem.search[:4], repair=False)
    assert len(entered) == 3
    assert problem.evaluations == 6
    assert problem.sample_evaluations == 24
