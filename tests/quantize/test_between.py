"""Recovery with levels: they stay levels, what is measured gets better, and the model is left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from de_plugin import Problem
from de_plugin.encode import Quantized
from de_plugin.errors import ArgumentError, DataError, GradientError
from de_plugin.prune.recover import BatchNormMatching, BiasCorrection, Distillation, LeastSquares
from de_plugin.quantize import (
    EntropyConstrained,
    LevelTraining,
    StraightThrough,
    Uniform,
    quantize,
)
from de_plugin.quantize.between import Around, level_recoveries
from de_plugin.quantize.rates import Rates
from de_plugin.quantize.student import Student
from de_plugin.quantize.trial import Trial, applied
from tests.quantize.small import QUICK, problem, pruned, quick, same, state

TRAINING = Distillation(steps=60, lr=3e-3, validate_every=20)


def coarse(**options: Any) -> tuple[Student, Rates, Trial]:
    student = Student(problem(**options))
    rates = Rates.of(student)
    genome = torch.zeros(rates.genes).double().numpy()
    biases = student.quantized_biases()
    levels = rates.quantization(genome, 1.5, biases)
    trial = Trial("coarse", levels, 0, genome=genome, scale=1.5)
    return student, rates, trial.measured(student, student.problem.held_back)


@pytest.mark.parametrize(
    "step", [LevelTraining(TRAINING), StraightThrough(TRAINING), Around(BiasCorrection())]
)
def test_divergence_falls_and_the_model_is_left_alone(step: Any) -> None:
    student, rates, trial = coarse()
    before = state(student.problem.model)
    step.prepare(student)
    _, found = step(rates, trial)
    found = found.measured(student, student.problem.held_back)
    assert found.divergence < trial.divergence
    assert same(before, state(student.problem.model))
    assert found.name == f"coarse+{step.name}"
    for part in student.parts:
        now = found.quantization[part.name]
        assert not bool((now.symbols != 0)[~part.kept].any())
        short = [torch.equal(now.levels.to(d).float(), now.levels) for d in (torch.float16, torch.bfloat16)]
        assert any(short)


@pytest.mark.parametrize("cls", [LevelTraining, StraightThrough])
def test_patience_ends_the_training(cls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A learning rate that only makes things worse is given up after as many looks as were asked for."""
    looks = []
    measure = Distillation.validate

    def counted(self: Distillation, *given: Any) -> float:
        looks.append(measure(self, *given))
        return looks[-1]

    monkeypatch.setattr(Distillation, "validate", counted)
    _, rates, trial = coarse()
    _, found = cls(Distillation(steps=50, lr=1e3, validate_every=1, patience=2))(rates, trial)
    assert len(looks) == 3
    assert all(torch.equal(found.quantization[n].symbols, q.symbols) for n, q in trial.quantization.items())


def test_level_training_freezes_who_has_which_level() -> None:
    _, rates, trial = coarse()
    _, found = LevelTraining(TRAINING)(rates, trial)
    for part in rates.student.parts:
        old, new = trial.quantization[part.name], found.quantization[part.name]
        assert torch.equal(old.symbols, new.symbols)
        assert not torch.equal(old.levels, new.levels)


def test_level_training_with_a_group_a_channel() -> None:
    student, rates, _ = coarse()
    start = Trial("rows", applied(student, EntropyConstrained(bits=3, axis=0), {}), 0)
    start = start.measured(student, student.problem.held_back)
    _, found = LevelTraining(TRAINING)(rates, start)
    assert found.measured(student, student.problem.held_back).divergence < start.divergence


def test_a_gradient_of_a_level_is_the_sum_of_its_members() -> None:
    from de_plugin.quantize.retrain import Levels

    weight = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    kept = torch.ones_like(weight, dtype=torch.bool)
    for axis in (None, 0, 1):
        quantized = Uniform(bits=3, axis=axis).fit(weight, kept)
        gradient = torch.randn(3, 7, generator=torch.Generator().manual_seed(1))
        found = Levels(quantized).pull(gradient)
        table = quantized.levels.clone().requires_grad_(True)
        column = quantized.symbols.long() - quantized.lowest
        row = torch.zeros_like(column)
        if axis is not None:
            row = torch.arange(weight.shape[axis]).reshape([-1 if d == axis else 1 for d in range(2)])
            row = row.expand_as(column)
        (table[row, column] * gradient).sum().backward()
        assert table.grad is not None
        table.grad[:, -quantized.lowest] = 0
        assert torch.allclose(found, table.grad, atol=1e-6)


def test_rates_know_the_weights_that_were_trained() -> None:
    _, rates, trial = coarse()
    moved, found = StraightThrough(TRAINING)(rates, trial)
    assert any((a.values != b.values).any() for a, b in zip(rates.survivors, moved.survivors, strict=True))
    assert trial.genome is not None
    again = moved.quantization(trial.genome, trial.scale, {})
    assert list(again) == [part.name for part in rates.student.parts]
    assert found.rest == {}


def test_norms_are_trained_as_well() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)).eval()
    before = state(model)
    x = torch.randn(400, 8)
    report = quantize(
        model,
        x,
        bits=2,
        search=QUICK,
        levels=None,
        codebooks=["uniform"],
        holdout=0.2,
        recovery=["batchnorm", "levels"],
    )
    plain = state(model)
    assert [p.name for p in report.curve if p.name.endswith("+batchnorm+levels")]
    if report.winner.endswith("levels"):
        assert not torch.equal(before["1.weight"], plain["1.weight"])
    for name, value in report.state.items():
        stored: torch.Tensor = value.dequantize() if isinstance(value, Quantized) else value
        assert torch.equal(plain[name], stored)


def test_batch_norms_match_what_the_layers_gave_before() -> None:
    torch.manual_seed(0)
    layers = [
        nn.Linear(8, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
    ]
    model = nn.Sequential(*layers, nn.Linear(32, 4))
    x = torch.randn(400, 8)
    y = (x @ torch.randn(8, 4)).argmax(1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    student = Student(Problem(model.eval(), x, holdout=0.2))
    rates = Rates.of(student)
    coarse = Trial("coarse", rates.quantization(np.zeros(rates.genes), 3.0, {}), 0)
    step = Around(BatchNormMatching())
    step.prepare(student)
    _, found = step(rates, coarse)
    assert set(found.rest) >= {"1.running_mean", "1.running_var", "4.running_mean", "4.running_var"}
    before, after = (t.measured(student, student.problem.held_back).divergence for t in (coarse, found))
    assert after < 0.8 * before


@pytest.mark.parametrize("labels", [0.0, 0.5])
def test_recovery_takes_part_and_the_gate_decides(labels: float) -> None:
    training = Distillation(steps=40, lr=3e-3, labels=labels, validate_every=20)
    report = quick(pruned(), bits=2, recovery=training, levels=None)
    names = [p.name for p in report.curve]
    assert any(n.endswith("+straight-through+levels") for n in names)
    if labels == 0:
        assert report.divergence <= min(p.divergence for p in report.curve if p.bytes <= report.bytes)


def test_with_a_goal_in_divergence_recovery_makes_it_smaller() -> None:
    plain = quick(pruned(), max_divergence=0.2)
    recovered = quick(
        pruned(), max_divergence=0.2, recovery=Distillation(steps=60, lr=3e-3, validate_every=20)
    )
    assert recovered.bytes < plain.bytes
    assert recovered.divergence <= 0.2


def test_what_cannot_work() -> None:
    for spec in (LeastSquares(), "obs", LevelTraining, 3):
        with pytest.raises(ArgumentError, match="recovery="):
            level_recoveries(spec)
    assert level_recoveries(None) == ()
    assert [s.name for s in level_recoveries(["bias", "distill"])] == ["bias", "straight-through", "levels"]
    from tests.quantize.small import data, teacher

    with pytest.raises(DataError, match="labels"):
        quantize(pruned(), data()[0], teacher=teacher(), bits=3, recovery=Distillation(labels=0.5))
    with pytest.raises(GradientError):
        quick(pruned(), bits=3, divergence=lambda a, b: 0.0, weighting="none", recovery="levels")
