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
from de_plugin.adapters.torch_pruning import DEImportance, DEPruner, as_criterion
from de_plugin.errors import ArgumentError
from tests.adapters.torch_pruning.architectures import CASES, last_layer
from tests.adapters.torch_pruning.pruners import QUICK

HOSTS = [
    tp.importance.GroupMagnitudeImportance(),
    tp.importance.LAMPImportance(),
    tp.importance.FPGMImportance(),
    tp.importance.GroupTaylorImportance(),
    tp.importance.GroupHessianImportance(),
    tp.importance.OBDCImportance(),
    tp.importance.ActivationImportance(),
    tp.importance.BNScaleImportance(),
    tp.importance.RandomImportance(),
]
BEHIND = (tp.importance.ActivationImportance, tp.importance.BNScaleImportance)
"""What reads what is behind channels, and gives nothing where nothing is."""
OWN_EYES = (tp.importance.ActivationImportance, tp.importance.RandomImportance)
"""What gives other scores by itself than fed, or another time."""


@pytest.mark.parametrize("importance", HOSTS, ids=lambda i: type(i).__name__)
def test_host_criteria_nest_and_blend(importance: Any) -> None:
    case = CASES["normed"]
    model, x = case.build(), case.inputs()
    host = as_criterion(importance, samples=16)
    model[0].weight.grad = mine = torch.ones_like(model[0].weight)
    pruner = DEPruner(
        model, x[:1], x, criterion=nest(QUICK, host), pruning_ratio=0.5, ignored_layers=[last_layer(model)]
    )
    last = next(name for name, m in model.named_modules() if m is last_layer(model))
    if isinstance(importance, BEHIND):
        everywhere = Problem(model, x, granularity="channel", holdout=0)
        with pytest.raises(
            ArgumentError, match=rf"gave None for a group of 5 channels of {last}.*Leave layers out"
        ):
            _ = host(everywhere, everywhere.eligible, 3)
    problem = Problem(model, x, granularity="channel", holdout=0, exclude=[last])
    scores = host(problem, problem.eligible, 3)
    assert scores.shape == (problem.units.count,)
    assert model[0].weight.grad is mine
    graph = tp.DependencyGraph().build_dependency(model, x[:1])
    if not host.needs_gradient and not isinstance(importance, OWN_EYES):
        group = graph.get_pruning_group(model[0], tp.prune_conv_out_channels, list(range(8)))
        expected = importance(group).detach().double()
        torch.testing.assert_close(scores[:8], expected)
    report = de_plugin.prune(
        copy.deepcopy(model),
        x,
        0.5,
        blend({"magnitude": 1.0, host: 1.0}),
        granularity="channel",
        exclude=[last],
    )
    assert report.sparsity > 0.3
    pruner.step()
    assert model[0].out_channels == 4
    assert not any(
        m._forward_hooks or m._backward_hooks or hasattr(m, "_importance") for m in model.modules()
    )
    assert not getattr(importance, "Fisher", None)


def test_activation_gets_the_inputs_of_every_layer() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).eval()
    x = torch.randn(20, 6)
    model[2]._importance = mine = torch.zeros(1)
    problem = Problem(model, x, granularity="channel", holdout=0, include=["0"])
    importance = tp.importance.ActivationImportance(normalizer=None)
    scores = as_criterion(importance)(problem, problem.eligible, 2)
    with torch.no_grad():
        expected = model[:2](x).abs().sum(0)
    torch.testing.assert_close(scores.float(), expected, rtol=1e-4, atol=1e-6)
    assert model[2]._importance is mine


def test_hooks_and_marks_go_when_a_forward_fails() -> None:
    model: Any = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).eval()
    problem = Problem(model, torch.randn(20, 6), granularity="channel", holdout=0, include=["0"])
    host = as_criterion(tp.importance.ActivationImportance())
    _ = host(problem, problem.eligible, 2)  # the groups are known

    def fails(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), model[2].register_forward_pre_hook(fails):
        _ = host(problem, problem.eligible, 2)
    assert not any(m._forward_hooks or hasattr(m, "_importance") for m in model.modules())


@pytest.mark.parametrize("name", ["plain", "mlp", "grouped", "transposed"])
def test_obdc_weighs_squares_of_weights_by_those_of_gradients(name: str) -> None:
    case = CASES[name]
    model, x = case.build(), case.inputs()
    importance = tp.importance.OBDCImportance(normalizer=None, group_reduction="first")
    hessian = tp.importance.GroupHessianImportance(normalizer=None, group_reduction="first")
    problem = Problem(model, x, granularity="channel", holdout=0)
    obdc, squares = (as_criterion(i)(problem, problem.eligible, 2) for i in (importance, hessian))
    first = slice(0, problem.units.layers[0].count)
    torch.testing.assert_close(obdc[first], squares[first], rtol=1e-4, atol=1e-8)


def test_evolution_nests_in_a_list_of_importances_of_the_host() -> None:
    case = CASES["normed"]
    model, x = case.build(), case.inputs()

    class Sum(tp.importance.Importance):
        def __init__(self, *parts: Any) -> None:
            self.parts = parts

        def __call__(self, group: Any) -> torch.Tensor:
            scores = [part(group) for part in self.parts]
            return torch.stack([s / s.mean() for s in scores]).mean(0)

    both = Sum(DEImportance(model, x, QUICK), tp.importance.LAMPImportance())
    tp.pruner.BasePruner(model, x[:1], both, pruning_ratio=0.5, ignored_layers=[last_layer(model)]).step()
    assert model[0].out_channels == 4


def test_samples_must_be_a_number() -> None:
    with pytest.raises(ArgumentError, match=r"as_criterion\(samples=0\)"):
        as_criterion(tp.importance.LAMPImportance(), samples=0)


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
