"""Candidates on really pruned copies: what zeroing measures where that is exact, and the student stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from de_plugin.adapters.torch_pruning.asking import Asking, evaluating, teacher_of
from de_plugin.adapters.torch_pruning.copies import Copies, plan, whole_heads
from de_plugin.adapters.torch_pruning.entries import entries
from de_plugin.assess.problem import Problem
from de_plugin.prune.recover import BatchNormMatching
from tests.adapters.torch_pruning.architectures import CASES
from tests.adapters.torch_pruning.pruners import pruner_of

ZEROED = ("plain", "normed", "residual", "concat", "depthwise", "grouped", "transposed", "shared")


def _masks(problem: Problem, least: list[tuple[int, int]]) -> torch.Tensor:
    """Return three masks that leave at least one unit of each group."""
    draw = torch.Generator().manual_seed(5)
    masks = torch.rand(3, problem.units.count, generator=draw) < 0.6
    for start, _ in least:
        masks[:, start] = True
    return masks


@pytest.mark.parametrize("matched", [False, True])
@pytest.mark.parametrize("name", [name for name in ZEROED if name in CASES])
def test_a_copy_measures_what_zeroing_does(name: str, matched: bool) -> None:
    case = CASES[name]
    model: nn.Module = case.build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pruner = pruner_of(case, model)
    pruner.current_step = 1
    asking = Asking(teacher_of(model), case.inputs())
    with evaluating(model):
        found = list(entries(pruner))
        couplings = [entry.coupling for entry in found]
        zeroing = asking.problem(model, couplings, "serial")
        copying = asking.problem(
            model, couplings, lambda p: Copies(p, plan(model, found), whole_heads(found))
        )
        spans = [(layer.start, layer.stop) for layer in zeroing.units.layers if layer.count]
        masks = _masks(zeroing, spans)
        for problem in (zeroing, copying):
            if matched:
                matching = BatchNormMatching()
                matching.prepare(problem)
                problem.repair = matching.in_assessment()
        expected = zeroing.assess(masks, zeroing.search)
        values = copying.assess(masks, copying.search)
    assert torch.allclose(values, expected, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(a is b for a, b in zip(model.parameters(), pruner.model.parameters(), strict=True))
