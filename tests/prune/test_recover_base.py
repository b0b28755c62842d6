"""Names, objects and lists of recoveries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from de_plugin.assess.problem import Problem
from de_plugin.errors import ArgumentError
from de_plugin.prune.recover import (
    BatchNormMatching,
    BiasCorrection,
    Distillation,
    LeastSquares,
    Reconstruction,
    Recovery,
    Sequence,
    recovery,
)

NAMES = {
    "batchnorm": BatchNormMatching,
    "bias": BiasCorrection,
    "leastsquares": LeastSquares,
    "reconstruct": Reconstruction,
    "distill": Distillation,
    "none": Sequence,
}


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_a_recovery_of_that_name(name: str) -> None:
    found = recovery(name)
    assert isinstance(found, NAMES[name])
    assert isinstance(found, Recovery)
    assert found.name == name


def test_objects_pass_through_and_none_is_nothing() -> None:
    own = Distillation(steps=3)
    assert recovery(own) is own
    assert recovery(None).name == "none"
    assert recovery([]).name == "none"
    assert recovery([own, "bias"]).name == "distill+bias"


def test_a_sequence_repairs_candidates_with_its_batch_norm_part() -> None:
    assert recovery(["bias", "batchnorm", "distill"]).in_assessment() is not None
    assert recovery(["bias", "distill"]).in_assessment() is None


def test_a_sequence_prepares_and_applies_its_steps_in_order() -> None:
    log: list[str] = []

    class Step:
        def __init__(self, name: str) -> None:
            self.name = name

        def prepare(self, problem: Problem) -> None:
            log.append(f"prepare {self.name}")

        def __call__(self, problem: Problem) -> None:
            log.append(self.name)

        def in_assessment(self) -> None:
            return None

    problem = Problem(nn.Linear(3, 2).eval(), torch.randn(20, 3))
    both = recovery([Step("a"), Step("b")])
    both.prepare(problem)
    both(problem)
    assert log == ["prepare a", "prepare b", "a", "b"]


def test_a_sequence_lowers_the_divergence() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)).eval()
    problem = Problem(model, torch.randn(300, 8))
    both = recovery(["batchnorm", Distillation(steps=60, lr=1e-2)])
    both.prepare(problem)
    scores = problem.units.reduce([v.abs() for v in problem.units.values()])
    problem.kept = problem.select(scores, problem.eligible, problem.units.count // 2)
    before = problem.gate(problem.kept[None])
    both(problem)
    assert problem.gate(problem.kept[None]) < before


@pytest.mark.parametrize("wrong", ["batch-norm", 3, Distillation, [4]])
def test_anything_else_is_refused_with_the_names(wrong: Any) -> None:
    with pytest.raises(ArgumentError, match="leastsquares"):
        recovery(wrong)
