"""Targets, schedules and budgets: what they come to, and what is refused."""

from __future__ import annotations

import itertools
import time
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from de_plugin import Problem
from de_plugin.errors import ArgumentError, SelectionError, TargetError
from de_plugin.prune.target import Budget, Schedule, check_sparsity, totals

shapes = st.sampled_from(["geometric", "cubic", "linear"])
fraction = st.floats(0, 0.999)


def problem(**options: Any) -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 4)).eval()
    return Problem(model, torch.randn(32, 8), **options)


def test_any_real_number_is_a_sparsity() -> None:
    assert check_sparsity(np.float32(0.5)) == check_sparsity(Fraction(1, 2)) == 0.5


@given(st.integers(1, 30), shapes, fraction, fraction, fraction)
def test_schedules_rise_to_the_target(
    cycles: int, shape: Any, start: float, target: float, now: float
) -> None:
    found = Schedule(cycles, shape, start).fractions(target, min(now, target))
    assert len(found) == cycles
    assert found[-1] == target
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(found))
    assert min(found) >= min(now, target) - 1e-12
    assert max(found) <= target + 1e-12


def test_shapes_of_schedules() -> None:
    assert Schedule(3).fractions(0.875) == pytest.approx([0.5, 0.75, 0.875])
    assert Schedule(4, "linear").fractions(0.8) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert Schedule(2, "cubic").fractions(0.8) == pytest.approx([0.7, 0.8])
    assert Schedule(2, start=0.5).fractions(0.875) == pytest.approx([0.75, 0.875])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"cycles": 0}, "cycles=0"), ({"shape": "sudden"}, "shape='sudden'"), ({"start": 1.0}, "start=1.0")],
)
def test_schedules_that_are_none(options: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Schedule(**options)


@pytest.mark.parametrize("value", [-0.1, 1, 1.0, 95, float("nan"), float("inf"), True, "0.5", None])
def test_a_sparsity_is_a_fraction(value: Any) -> None:
    with pytest.raises(ArgumentError, match="sparsity="):
        check_sparsity(value)


def test_a_percentage_is_explained() -> None:
    with pytest.raises(ArgumentError, match="write 0.95"):
        check_sparsity(95)


def test_a_global_target_counts_all_units() -> None:
    assert totals(problem(), 0.5, "global") == (60, None)
    assert totals(problem(), 0.0, "global") == (0, None)


def test_the_layer_scope_gives_all_layers_the_same() -> None:
    total, quota = totals(problem(), 0.75, "layer")
    assert quota is not None
    assert quota.tolist() == [60, 30]
    assert total == 90


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"0": 0.5}, [40, 0]),
        ({"0.weight": 0.5, "2*": 0.25}, [40, 10]),
        ({"*": 0.5, "2": 0.0}, [40, 0]),
        ({"[02]": 0.1}, [8, 4]),
    ],
)
def test_dicts_of_patterns(wanted: dict[str, float], expected: list[int]) -> None:
    total, quota = totals(problem(), wanted, "global")
    assert quota is not None
    assert quota.tolist() == expected
    assert total == sum(expected)


def test_patterns_see_the_other_names_of_shared_weights() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    asked = Problem(nn.Sequential(first, second).eval(), torch.randn(20, 4))
    assert totals(asked, {"1": 0.5}, "global")[0] == 8


def test_an_nm_pattern_has_a_target_of_its_own() -> None:
    asked = problem(granularity="2:4", include=["0"])
    assert totals(asked, None, "global") == (40, None)
    assert totals(asked, None, "layer")[0] == 40


@pytest.mark.parametrize(
    ("sparsity", "scope", "error", "message"),
    [
        (None, "global", ArgumentError, "sparsity=None"),
        (1.5, "global", ArgumentError, "sparsity=1.5"),
        (1.5, "layer", ArgumentError, "sparsity=1.5"),
        (0.5, "local", ArgumentError, "scope='local'"),
        ({"0": 2.0}, "global", ArgumentError, r"sparsity\['0'\]=2.0"),
        ({}, "global", ArgumentError, r"sparsity=\{\}"),
        ({"encoder": 0.5}, "global", SelectionError, "'encoder' names no prunable layer"),
    ],
)
def test_targets_that_cannot_be_meant(
    sparsity: Any, scope: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        totals(problem(), sparsity, scope)


def test_targets_that_cannot_be_met() -> None:
    tight = problem(granularity="2:4", include=["0"])
    with pytest.raises(TargetError, match="the model"):
        totals(tight, 0.6, "global")
    with pytest.raises(TargetError, match="0.weight"):
        totals(tight, {"0": 0.6}, "global")
    guarded = problem()
    guarded.protected[100:] = True
    with pytest.raises(TargetError, match="2.weight"):
        totals(guarded, 0.75, "layer")
    with pytest.raises(TargetError, match="only 100"):
        totals(guarded, 0.9, "global")


@pytest.mark.parametrize("options", [{"evaluations": 0}, {"seconds": -1.0}, {"seconds": float("nan")}])
def test_empty_budgets(options: Any) -> None:
    with pytest.raises(ArgumentError, match="Budget"):
        Budget(**options)


def test_budgets_are_spent_in_shares() -> None:
    now = time.monotonic()
    assert not Budget().spent(10**9, now)
    assert not Budget(evaluations=100).spent(99, now)
    assert Budget(evaluations=100).spent(100, now)
    assert Budget(evaluations=100).spent(50, now, 0.5)
    assert Budget(seconds=1.0).spent(0, now - 2)
    assert not Budget(seconds=1000.0).spent(0, now)
