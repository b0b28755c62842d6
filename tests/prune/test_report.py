"""The report: plain data for JSON, totals that add up, and advice."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import nn

import de_plugin
from de_plugin import DirectedEvolution, Report, Swaps

QUICK = DirectedEvolution(population=4, generations=1, swaps=Swaps(rounds=1, gradient_samples=16))


def pruned(criterion: Any = QUICK, sparsity: Any = 0.5, **options: Any) -> Report:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    return de_plugin.prune(model, torch.randn(40, 6), sparsity, criterion, **options)


def test_it_is_serialisable_as_strict_json() -> None:
    report = pruned(schedule=2)
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert "masks" not in plain
    assert plain["sparsity"] == 0.5
    assert plain["criterion"] == "de"
    assert [x["name"] for x in plain["layers"]] == ["0.weight", "2.weight"]
    assert len(plain["history"]) == 2
    assert {e["kind"] for e in plain["events"]} >= {"generation", "swap", "gate"}
    assert plain["overruled"] == report.overruled


def test_infinite_divergences_are_serialisable_too() -> None:
    def fragile(student: torch.Tensor, teacher: torch.Tensor) -> float:
        return 0.0 if torch.equal(student, teacher) else float("inf")

    report = pruned(divergence=fragile)
    assert "not finite" in report.advice
    lost = dataclasses.replace(report, divergence=float("inf"))
    plain = json.loads(json.dumps(lost.to_dict(), allow_nan=False))
    assert plain["divergence"] is None


def test_totals_add_up() -> None:
    report = pruned("magnitude", 0.75, granularity="channel", schedule=3)
    assert sum(x.zeroed for x in report.layers) == round(
        report.sparsity * sum(x.units for x in report.layers)
    )
    zeros = sum(int((~report.masks[x.name]).sum()) for x in report.layers)
    assert zeros == sum(x.zero_weights for x in report.layers)
    assert report.weight_sparsity == pytest.approx(zeros / sum(x.weights for x in report.layers))
    assert report.target == report.sparsity == 0.75
    evaluations = [x.evaluations for x in report.history]
    assert evaluations == sorted(evaluations)
    assert evaluations[-1] <= report.evaluations <= report.sample_evaluations
    assert [x.cycle for x in report.history] == [1, 2, 3]


def test_empty_layers_are_pointed_out() -> None:
    report = pruned("magnitude", {"0": 0.99})
    assert "0.weight" in report.advice
    assert "exclude=" in report.advice
    assert not pruned("magnitude").advice


def test_its_text_names_layers_and_totals() -> None:
    text = str(pruned())
    assert "0.weight" in text
    assert "50.00% of units" in text
    assert "complete" in text
