"""Bias correction: mean outputs become the teacher's, zeroed channels' biases stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from de_plugin.assess.problem import Problem
from de_plugin.errors import ArgumentError
from de_plugin.prune.recover import BiasCorrection


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 3, 2, stride=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(3 * 64, 5),
        nn.ReLU(),
        nn.Linear(5, 5, bias=False),
    ).eval()


def means(model: nn.Sequential, x: Tensor) -> list[Tensor]:
    result = []
    with torch.no_grad():
        for module in model:
            x = module(x)
            if getattr(module, "bias", None) is not None:
                result.append(x.movedim(1, 0).flatten(1).mean(1))
    return result


def prepared(granularity: str) -> tuple[Problem, BiasCorrection, Tensor, list[Tensor]]:
    model = network()
    x = torch.randn(200, 1, 6, 6, generator=torch.Generator().manual_seed(1)) + 0.5
    problem = Problem(model, x, divergence="mse", granularity=granularity, batch_size=64)
    recover = BiasCorrection(samples=10_000)
    recover.prepare(problem)
    data = x[problem.search]
    teacher = means(model, data)
    scores = torch.rand(problem.units.count, generator=torch.Generator().manual_seed(2))
    problem.kept = problem.select(scores, problem.eligible, problem.units.count // 2)
    return problem, recover, data, teacher


def test_mean_outputs_are_the_teachers() -> None:
    problem, recover, data, teacher = prepared("weight")
    before = problem(problem.kept)
    weights = [v.clone() for v in problem.units.values()]
    recover(problem)
    assert isinstance(problem.model, nn.Sequential)
    with problem.units.zeroed(problem.kept):
        student = means(problem.model, data)
    for ours, theirs in zip(student, teacher, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert problem(problem.kept) < before
    assert all(torch.equal(a, b) for a, b in zip(weights, problem.units.values(), strict=True))


def test_biases_of_zeroed_channels_stay() -> None:
    problem, recover, data, teacher = prepared("channel")
    old = {
        layer.name: layer.bias.detach().clone() for layer in problem.units.layers if layer.bias is not None
    }
    recover(problem)
    assert isinstance(problem.model, nn.Sequential)
    with problem.units.zeroed(problem.kept):
        student = means(problem.model, data)
    number = 0
    for layer in problem.units.layers:
        if layer.bias is None:
            continue
        kept = problem.kept[layer.start : layer.stop]
        assert torch.equal(layer.bias[~kept], old[layer.name][~kept])
        torch.testing.assert_close(student[number][kept], teacher[number][kept], rtol=1e-4, atol=1e-5)
        number += 1
    assert number == 3


def test_an_untouched_student_keeps_its_biases() -> None:
    model = network()
    problem = Problem(model, torch.randn(100, 1, 6, 6), divergence="mse")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    BiasCorrection()(problem)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-5, atol=1e-6)


def test_it_is_no_part_of_an_assessment_and_refuses_no_samples() -> None:
    recover = BiasCorrection()
    assert hasattr(recover, "in_assessment")
    with pytest.raises(ArgumentError, match="samples"):
        BiasCorrection(samples=0)
