"""Gradients at the student against plain autograd, and per-sample gradients against a loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from de_plugin.assess import KL, CalibratedKL, Detector, Head
from de_plugin.assess.gradients import mean_gradient, sample_gradients
from de_plugin.assess.problem import Problem
from de_plugin.errors import DataError, GradientError


def problem_of(labels: bool = False, **options: Any) -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)).eval()
    x = torch.randn(24, 2, 6)
    problem = Problem(model, (x, torch.arange(24) % 5) if labels else x, batch_size=7, **options)
    problem.kept = torch.rand(problem.units.count, generator=torch.Generator().manual_seed(1)) > 0.4
    return problem


@pytest.mark.parametrize("divergence", ["kl", "js", "mse", "cosine"])
def test_the_mean_gradient_is_autograds(divergence: str) -> None:
    problem = problem_of(divergence=divergence)
    problem.model.requires_grad_(False)
    found = mean_gradient(problem, problem.search)
    assert not any(p.requires_grad for p in problem.model.parameters())
    weights = [layer.parameter for layer in problem.units.layers]
    with problem.units.zeroed(problem.kept):
        for w in weights:
            w.requires_grad_(True)
        batch = problem.pool.take(problem.search, 100)
        expected = torch.autograd.grad(problem.measure(batch), weights)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert any(
        bool((g[~m] != 0).any()) for g, m in zip(found, problem.units.expand(problem.kept), strict=True)
    )


@pytest.mark.parametrize("vmap", [True, False])
@pytest.mark.parametrize("labels", [True, False])
def test_sample_gradients_are_a_loops(labels: bool, vmap: bool) -> None:
    problem = problem_of(labels)
    problem.store("vmap_gradients", vmap)
    chunks = list(sample_gradients(problem, problem.search, torch.Generator().manual_seed(5), labels=labels))
    found = [torch.cat(rows) for rows in zip(*chunks, strict=True)]
    generator = torch.Generator().manual_seed(5)
    measure: Any = problem.divergence
    weights = [layer.parameter for layer in problem.units.layers]
    at = 0
    with problem.units.zeroed(problem.kept):
        for batch in problem.pool.take(problem.search):
            outputs = problem.model(batch.inputs)
            targets = batch.labels if labels else measure.draw(outputs.detach(), generator)[0]
            for row in range(batch.size):
                loss = F.cross_entropy(problem.model(batch.inputs[row : row + 1]), targets[row : row + 1])
                for a, b in zip(found, torch.autograd.grad(loss, weights), strict=True):
                    torch.testing.assert_close(a[at], b, rtol=1e-4, atol=1e-6)
                at += 1
    assert at == len(found[0])


def test_what_has_no_gradient_is_refused() -> None:
    flat = problem_of(divergence=lambda a, b: float((a - b).detach().abs().mean()))
    with pytest.raises(GradientError, match="no gradient"):
        mean_gradient(flat, flat.search)
    with pytest.raises(DataError, match="labels"):
        next(sample_gradients(problem_of(), torch.arange(3), torch.Generator(), labels=True))


MEASURES = [
    KL(temperature=(1.0, 2.0, 4.0)),
    KL(name="kl of sigmoids", logits=F.logsigmoid),
    CalibratedKL(),
    Detector((Head(1, 2, objectness=2, first_class=3, centres=(0,), sides=(1,)),)),
]


@pytest.mark.parametrize("measure", MEASURES, ids=lambda x: x.name)
def test_samples_side_by_side_give_what_one_after_the_other_gives(measure: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 5), nn.Unflatten(1, (5, 1)) if measure.name == "detector" else nn.ReLU()
    )
    problem = Problem(model.eval(), torch.randn(24, 6), batch_size=7, divergence=measure)
    found = []
    for vmap in (True, False):
        problem.store("vmap_gradients", vmap)
        chunks = sample_gradients(problem, problem.search, torch.Generator().manual_seed(5))
        found.append(torch.cat([rows[0] for rows in chunks]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
    assert bool(found[0].any())
