"""Directed Evolution as a method of `torch.nn.utils.prune`: torch's own conventions hold."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.utils.prune as torch_prune
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import de_plugin
from de_plugin.adapters.torch_prune import DEUnstructured, de_unstructured, global_unstructured
from de_plugin.errors import ArgumentError, ModeError, SelectionError, TargetError

DATA = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4)).eval()


def pairs(model: Any) -> list[tuple[nn.Module, str]]:
    return [(model[0], "weight"), (model[2], "weight")]


def gone(model: nn.Module) -> int:
    return sum(int((x == 0).sum()) for n, x in model.named_buffers() if n.endswith("_mask"))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in model.state_dict().items()}


def same(before: dict[str, Tensor], model: nn.Module) -> bool:
    after = model.state_dict()
    return list(before) == list(after) and all(torch.equal(x, after[n]) for n, x in before.items())


def test_it_leaves_what_torch_leaves() -> None:
    model = network()
    dense = copy.deepcopy(model)
    report = global_unstructured(pairs(model), model, DATA, 0.5, criterion="magnitude")
    names = {"0.weight_orig", "0.weight_mask", "0.bias", "2.weight_orig", "2.weight_mask", "2.bias"}
    assert set(model.state_dict()) == names
    assert gone(model) == 50
    assert report.sparsity == 0.5
    assert torch.equal(model[0].weight_orig, dense[0].weight)
    assert torch.equal(model[0].weight, dense[0].weight * model[0].weight_mask)
    assert all(torch.equal(report.masks[f"{n}.weight"], model[n].weight_mask.bool()) for n in (0, 2))
    outputs = model(DATA)
    for module, name in pairs(model):
        torch_prune.remove(module, name)
    assert torch.equal(outputs, model(DATA))
    assert set(model.state_dict()) == set(dense.state_dict())


def test_it_chooses_what_prune_chooses() -> None:
    masked, pruned = network(), network()
    report = global_unstructured(pairs(masked), masked, DATA, 0.6, schedule=2, seed=3)
    expected = de_plugin.prune(pruned, DATA, 0.6, schedule=2, seed=3)
    assert all(torch.equal(report.masks[name], mask) for name, mask in expected.masks.items())


@settings(max_examples=12, deadline=None)
@given(first=st.integers(0, 80), second=st.floats(0, 0.9), third=st.integers(0, 4))
def test_amounts_are_of_what_is_left_and_what_went_stays_away(first: int, second: float, third: int) -> None:
    model = network()
    torch_prune.global_unstructured(pairs(model), torch_prune.RandomUnstructured, amount=first)
    earlier = {n: x == 0 for n, x in model.named_buffers()}
    global_unstructured(pairs(model), model, DATA, second, criterion="magnitude")
    left = 100 - first
    assert gone(model) == first + round(second * left)
    global_unstructured(pairs(model), model, DATA, third, criterion="magnitude")
    assert gone(model) == first + round(second * left) + third
    assert all(bool((x == 0)[earlier[n]].all()) for n, x in model.named_buffers())


def test_evolution_revives_nothing_that_went_earlier() -> None:
    model = network()
    torch_prune.random_unstructured(model[0], "weight", amount=30)
    earlier = model[0].weight_mask == 0
    report = global_unstructured(pairs(model), model, DATA, 0.5)
    assert gone(model) == 30 + 35
    assert bool((model[0].weight_mask == 0)[earlier].all())
    assert isinstance(next(iter(model[0]._forward_pre_hooks.values())), torch_prune.PruningContainer)
    assert 0.649 < report.sparsity < 0.651


def test_one_parameter_alone() -> None:
    model = network()
    report = de_unstructured(model[2], "weight", model, DATA, 7, criterion="magnitude")
    assert gone(model) == 7
    assert list(report.masks) == ["2.weight"]
    assert torch_prune.is_pruned(model[2])
    assert not torch_prune.is_pruned(model[0])


def test_apply_finds_a_mask_or_takes_one_and_returns_the_hook() -> None:
    model = network()
    hook = DEUnstructured.apply(model[0], "weight", model, DATA, amount=0.5, criterion="magnitude")
    assert isinstance(hook, DEUnstructured)
    mask = torch.ones(4, 10)
    mask[0] = 0
    DEUnstructured.apply(model[2], "weight", mask=mask)
    assert gone(model) == 30 + 10
    hook = DEUnstructured.apply(model[0], "weight", mask=torch.zeros(10, 6))
    assert isinstance(hook, torch_prune.PruningContainer)
    assert int(model[0].weight_mask.sum()) == 0


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_while_searching_leaves_the_model_as_it_was(
    earlier: bool, error: type[BaseException]
) -> None:
    model = network()
    if earlier:
        torch_prune.random_unstructured(model[0], "weight", amount=5)
    before, hooks = state(model), dict(model[0]._forward_pre_hooks)
    calls = 0

    def forward(student: nn.Module, inputs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise error("enough")
        return student(inputs)

    with pytest.raises(error, match="enough"):
        global_unstructured(pairs(model), model, DATA, 0.5, forward=forward)
    assert same(before, model)
    assert dict(model[0]._forward_pre_hooks) == hooks


@pytest.mark.parametrize("earlier", [0, 1, 2])
def test_an_exception_while_masking_undoes_all_of_it(earlier: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    for _ in range(earlier):
        torch_prune.random_unstructured(model[0], "weight", amount=5)
    before, hooks = state(model), dict(model[0]._forward_pre_hooks)
    methods = [getattr(h, "_pruning_methods", None) for h in hooks.values()]
    outputs = model(DATA)
    known = DEUnstructured.compute_mask

    def failing(self: DEUnstructured, t: Tensor, default_mask: Tensor) -> Tensor:
        if t.shape[0] == 4:
            raise KeyboardInterrupt
        return known(self, t, default_mask)

    monkeypatch.setattr(DEUnstructured, "compute_mask", failing)
    with pytest.raises(KeyboardInterrupt):
        global_unstructured(pairs(model), model, DATA, 0.5, criterion="magnitude")
    assert same(before, model)
    assert dict(model[0]._forward_pre_hooks) == hooks
    assert [getattr(h, "_pruning_methods", None) for h in hooks.values()] == methods
    assert torch.equal(outputs, model(DATA))
    monkeypatch.undo()
    global_unstructured(pairs(model), model, DATA, 0.5, criterion="magnitude")


def test_what_cannot_work_is_named() -> None:
    model = network()
    everything = pairs(model)
    wrong: Any = [model[0]]
    with pytest.raises(ArgumentError, match=r"parameters=\[\]"):
        global_unstructured([], model, DATA, 0.5)
    with pytest.raises(ArgumentError, match="expected pairs"):
        global_unstructured(wrong, model, DATA, 0.5)
    with pytest.raises(ArgumentError, match="twice"):
        global_unstructured([everything[0], everything[0]], model, DATA, 0.5)
    with pytest.raises(SelectionError, match="no parameter of Sequential"):
        global_unstructured([(nn.Linear(2, 2), "weight")], model, DATA, 0.5)
    with pytest.raises(SelectionError, match="no parameter of Sequential"):
        global_unstructured([(model[0], "wait")], model, DATA, 0.5)
    with pytest.raises(SelectionError):
        global_unstructured([(model[0], "bias")], model, DATA, 0.5)
    with pytest.raises(ArgumentError, match="amount=1.5"):
        global_unstructured(everything, model, DATA, 1.5)
    with pytest.raises(ArgumentError, match="amount=-1"):
        global_unstructured(everything, model, DATA, -1)
    with pytest.raises(TargetError, match="amount=101"):
        global_unstructured(everything, model, DATA, 101)
    with pytest.raises(ArgumentError, match="criterion="):
        DEUnstructured.apply(model[0], "weight", model, DATA, 0.5, importance_scores=torch.ones(10, 6))
    with pytest.raises(ModeError):
        global_unstructured(everything, model.train(), DATA, 0.5)
    assert not torch_prune.is_pruned(model)


def test_a_weight_that_modules_share_is_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)).eval()
    model[2].weight = model[0].weight
    with pytest.raises(SelectionError, match=r"0.weight is shared with 2.weight"):
        global_unstructured([(model[0], "weight")], model, DATA, 0.5)
