"""The host's criteria in the engine get what their papers ask for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import nn

import de_plugin
from de_plugin import Problem, blend, nest
from de_plugin.adapters.torch_pruning import (
    DEPruner,
    as_criterion,
)
from tests.adapters.torch_pruning.architectures import CASES, last_layer
from tests.adapters.torch_pruning.pruners import QUICK

HOSTS = [
    tp.importance.GroupMagnitudeImportance(),
    tp.importance.LAMPImportance(),
    tp.importance.FPGMImportance(),
    tp.importance.GroupTaylorImportance(),
    tp.importance.GroupHessianImportance(),
]


@pytest.mark.parametrize("importance", HOSTS, ids=lambda i: type(i).__name__)
def test_host_criteria_nest_and_blend(importance: Any) -> None:
    case = CASES["normed"]
    model, x = case.build(), case.inputs()
    host = as_criterion(importance, samples=16)
    model[0].weight.grad = mine = torch.ones_like(model[0].weight)
    pruner = DEPruner(
        model, x[:1], x, criterion=nest(QUICK, host), pruning_ratio=0.5, ignored_layers=[last_layer(model)]
    )
    problem = Problem(model, x, granularity="channel", holdout=0)
    scores = host(problem, problem.eligible, 3)
    assert scores.shape == (problem.units.count,)
    assert model[0].weight.grad is mine
    graph = tp.DependencyGraph().build_dependency(model, x[:1])
    if not host.needs_gradient:
        group = graph.get_pruning_group(model[0], tp.prune_conv_out_channels, list(range(8)))
        expected = importance(group).detach().double()
        torch.testing.assert_close(scores[:8], expected)
    report = de_plugin.prune(
        copy.deepcopy(model), x, 0.5, blend({"magnitude": 1.0, host: 1.0}), granularity="channel"
    )
    assert report.sparsity > 0.3
    pruner.step()
    assert model[0].out_channels == 4


def test_hessian_and_taylor_get_what_their_papers_ask_for() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).eval()
    x, labels = torch.randn(20, 6), torch.randint(5, (20,))
    problem = Problem(model, (x, labels), granularity="channel", holdout=0, include=["0"])
    importance = tp.importance.GroupHessianImportance(group_reduction="first", normalizer=None)
    scores = as_criterion(importance)(problem, problem.eligible, 2)
    squares = torch.zeros(8, 6)
    for one, label in zip(x, labels, strict=True):
        model.zero_grad()
        nn.functional.cross_entropy(model(one[None]), label[None]).backward()
        squares += model[0].weight.grad.square() / 20
    expected = (model[0].weight.detach().square() * squares).sum(1)
    torch.testing.assert_close(scores.float(), expected, rtol=1e-4, atol=1e-7)
