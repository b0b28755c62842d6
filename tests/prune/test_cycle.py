"""`prune`: reaches its target by every criterion, applies the masks, keeps budgets, uses recoveries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.utils.prune as torch_prune
from torch import nn

import de_plugin
from de_plugin import Budget, Problem, Progress, Schedule
from de_plugin.prune.cycle import Cycles
from de_plugin.prune.plan import Plan
from tests.prune.small import QUICK, data, network, same, state

# -- targets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["magnitude", "activation", "taylor", "fisher", "obs", "random"])
def test_every_criterion_reaches_the_target_by_name(criterion: str) -> None:
    model = network()
    report = de_plugin.prune(model, data(), 0.75, criterion, schedule=2)
    assert report.sparsity == report.target == 0.75
    assert report.criterion == criterion
    assert report.outcome == "complete"
    for name, mask in report.masks.items():
        assert bool((dict(model.named_parameters())[name][~mask] == 0).all())


def test_directed_evolution_is_the_default() -> None:
    model = nn.Linear(6, 4).eval()
    report = de_plugin.prune(model, torch.randn(40, 6), 0.5)
    assert report.criterion == "de"
    assert len(report.history) == 10
    assert report.sparsity == 0.5


def test_magnitude_is_what_torch_does() -> None:
    model, twin = network(), network()
    de_plugin.prune(model, data(), 0.6, "magnitude")
    torch_prune.global_unstructured(
        [(twin[0], "weight"), (twin[3], "weight")], torch_prune.L1Unstructured, amount=0.6
    )
    de_plugin.remove(twin)
    for name in ("0.weight", "3.weight"):
        assert torch.equal(model.state_dict()[name], twin.state_dict()[name])


def test_nothing_happens_at_sparsity_zero() -> None:
    model = network()
    before = state(model)
    report = de_plugin.prune(model, data(), 0.0, QUICK, schedule=2)
    assert report.sparsity == 0
    assert same(before, state(model))


@pytest.mark.parametrize("criterion", ["magnitude", QUICK])
def test_dicts_of_layers(criterion: Any) -> None:
    report = de_plugin.prune(network(), data(), {"0": 0.75}, criterion, schedule=Schedule(3, "cubic"))
    assert [x.zeroed for x in report.layers] == [72, 0]


@pytest.mark.parametrize("criterion", ["magnitude", QUICK])
def test_an_nm_pattern_needs_no_sparsity(criterion: Any) -> None:
    report = de_plugin.prune(network(), data(), None, criterion, granularity="2:4", schedule=2)
    assert report.sparsity == 0.5
    assert all(bool((m.reshape(-1, 4).sum(-1) == 2).all()) for m in report.masks.values())


def test_cycles_follow_the_schedule_and_are_told() -> None:
    told: list[Progress] = []
    report = de_plugin.prune(
        network(), data(), 0.75, QUICK, schedule=Schedule(3, "linear"), progress=told.append
    )
    assert [p.sparsity for p in told] == pytest.approx([0.25, 0.5, 0.75], abs=0.01)
    assert [p.cycle for p in told] == [1, 2, 3]
    assert {p.cycles for p in told} == {3}
    assert told[-1].divergence == report.history[-1].divergence


# -- applying ------------------------------------------------------------------------------------


def test_buffers_equal_the_baked_model_and_torch_removes_them() -> None:
    baked, masked = network(), network()
    first = de_plugin.prune(baked, data(), 0.7, "activation")
    second = de_plugin.prune(masked, data(), 0.7, "activation", apply="buffers")
    assert all(torch.equal(first.masks[n], second.masks[n]) for n in first.masks)
    assert torch.equal(baked(data()), masked(data()))
    for module in (masked[0], masked[3]):
        torch_prune.remove(module, "weight")
    assert all(torch.equal(x, baked.state_dict()[n]) for n, x in masked.state_dict().items())


@pytest.mark.parametrize("recovery", [None, "leastsquares"])
def test_apply_none_only_reports(recovery: Any) -> None:
    model = network()
    before = state(model)
    report = de_plugin.prune(model, data(), 0.7, QUICK, schedule=2, recovery=recovery, apply="none")
    assert report.sparsity == pytest.approx(0.7, abs=0.01)
    assert same(before, state(model))
    assert not torch_prune.is_pruned(model)


# -- budgets, recoveries -------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [Budget(evaluations=1), Budget(evaluations=60), Budget(seconds=1e-9)])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_budget_ends_the_search_and_the_target_is_reached(budget: Budget, scope: Any) -> None:
    full = de_plugin.prune(network(), data(), 0.75, QUICK, schedule=4, scope=scope)
    report = de_plugin.prune(network(), data(), 0.75, QUICK, schedule=4, scope=scope, budget=budget)
    assert report.sparsity == 0.75
    assert report.outcome == "budget"
    assert "budget" in report.advice
    assert report.evaluations < full.evaluations


def test_a_budget_that_is_large_enough_changes_nothing() -> None:
    first = de_plugin.prune(network(), data(), 0.75, QUICK, schedule=2)
    second = de_plugin.prune(network(), data(), 0.75, QUICK, schedule=2, budget=Budget(evaluations=10**9))
    assert second.outcome == "complete"
    assert all(torch.equal(first.masks[n], second.masks[n]) for n in first.masks)


@pytest.mark.parametrize("recovery", ["distill", "leastsquares", ["bias", "leastsquares"]])
def test_recoveries_come_closer_to_the_teacher(recovery: Any) -> None:
    model, twin = network(), network()
    plain = de_plugin.prune(twin, data(800), 0.6, "magnitude", divergence="mse")
    report = de_plugin.prune(model, data(800), 0.6, "magnitude", divergence="mse", recovery=recovery)
    assert all(torch.equal(plain.masks[n], report.masks[n]) for n in plain.masks)
    assert report.divergence < plain.divergence
    for name, mask in report.masks.items():
        assert bool((dict(model.named_parameters())[name][~mask] == 0).all())


def test_recoveries_between_cycles_and_at_the_end() -> None:
    model = network()
    report = de_plugin.prune(
        model, data(), 0.7, QUICK, schedule=3, recovery="batchnorm", finish=["leastsquares", "distill"]
    )
    assert report.sparsity == pytest.approx(0.7, abs=0.01)
    assert report.divergence < report.history[-1].divergence_cut
    values = dict(model.named_parameters())
    assert all(bool((values[n][~m] == 0).all()) for n, m in report.masks.items())


def test_cycles_begin_where_earlier_pruning_has_ended() -> None:
    """What is gone already takes no cycles: each of them goes part of the way that is left."""
    torch.manual_seed(0)
    problem = Problem(nn.Sequential(nn.Linear(10, 10)).eval(), torch.randn(64, 10))
    problem.kept = torch.arange(100) >= 60
    problem.protected = ~problem.kept
    plan = Plan.of(
        problem, 0.9, "magnitude", scope="global", schedule=3, recovery_=None, finish=None, budget=None
    )
    plan.prepare(problem)
    found = Cycles(problem, plan, 0.0).run()
    sparsities = [record.sparsity for record in found.history]
    assert sparsities[0] > 0.7
    assert sparsities == sorted(set(sparsities))
    assert sparsities[-1] == pytest.approx(0.9)
