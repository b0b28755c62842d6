"""The surgeon's update lowers what a cut costs, and keeps its hands off everything else."""

from __future__ import annotations

import torch
from torch import nn

import de_plugin
from de_plugin.prune.recover import SurgeonUpdate, recovery


def problem() -> de_plugin.Problem:
    torch.manual_seed(0)
    mix = torch.randn(6, 6)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    return de_plugin.Problem(model, torch.randn(400, 6) @ mix, divergence="mse")


def test_it_lowers_the_divergence_and_leaves_zeroed_values() -> None:
    asked = problem()
    dense = [v.clone() for v in asked.units.values()]
    step = SurgeonUpdate()
    step.prepare(asked)
    asked.kept = asked.select(de_plugin.Magnitude()(asked, asked.eligible, 24), asked.eligible, 24)
    before = float(asked.gate(asked.kept[None])[0])
    step(asked)
    after = float(asked.gate(asked.kept[None])[0])
    assert after < before
    for value, old, mask in zip(asked.units.values(), dense, asked.units.expand(asked.kept), strict=True):
        assert torch.equal(value[~mask], old[~mask])
    assert asked.events[-1]["accepted"]


def test_without_a_cut_nothing_changes() -> None:
    asked = problem()
    dense = [v.clone() for v in asked.units.values()]
    step = recovery("obs")
    step.prepare(asked)
    step(asked)
    assert all(torch.equal(a, b) for a, b in zip(asked.units.values(), dense, strict=True))


def test_prune_takes_it_by_name() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    data = torch.randn(200, 6)
    plain = de_plugin.prune(model, data, 0.5, "magnitude", schedule=3, apply="none")
    updated = de_plugin.prune(model, data, 0.5, "magnitude", schedule=3, recovery="obs", apply="none")
    assert updated.divergence < plain.divergence
