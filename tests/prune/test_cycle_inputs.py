"""`prune` on models and data of every kind: pytrees, loaders, shared and frozen parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import de_plugin
from tests.prune.small import QUICK, data, network


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(8, 6), nn.Linear(3, 6)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Any]:
        return {"sum": self.left(a) + self.right(b), "parts": (self.left(a), [self.right(b)])}


def test_dict_batches_and_pytree_outputs() -> None:
    model = TwoInputs().eval()
    batch = {"a": data(), "b": torch.randn(80, 3), "labels": torch.zeros(80, dtype=torch.long)}
    report = de_plugin.prune(model, batch, 0.5, QUICK, schedule=2, divergence="mse")
    assert report.sparsity == 0.5
    assert report.divergence > 0


def test_tuples_of_inputs() -> None:
    report = de_plugin.prune(
        TwoInputs().eval(), ((data(), torch.randn(80, 3)), torch.zeros(80)), 0.5, "taylor"
    )
    assert report.sparsity == 0.5


def test_all_forms_of_batches_give_the_same_masks() -> None:
    labels = torch.zeros(80, dtype=torch.long)
    generator = (part for part in data().split(16))
    forms: list[Any] = [
        data(),
        (data(), labels),
        list(data().split(30)),
        generator,
        DataLoader(TensorDataset(data(), labels), batch_size=16),
    ]
    found = [de_plugin.prune(network(), form, 0.6, "activation").masks for form in forms]
    for other in found[1:]:
        assert all(torch.equal(found[0][n], other[n]) for n in other)


def test_a_forward_hook() -> None:
    model = TwoInputs().eval()
    report = de_plugin.prune(
        model, data(), 0.5, QUICK, schedule=2, forward=lambda m, x: m(x, x[:, :3])["sum"]
    )
    assert report.sparsity == 0.5


def test_frozen_models_are_pruned_and_stay_frozen() -> None:
    frozen, free = network().requires_grad_(False), network()
    first = de_plugin.prune(frozen, data(), 0.6, QUICK, schedule=2)
    second = de_plugin.prune(free, data(), 0.6, QUICK, schedule=2)
    assert all(torch.equal(first.masks[n], second.masks[n]) for n in first.masks)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in free.parameters())


@pytest.mark.parametrize("apply", ["bake", "buffers"])
def test_shared_parameters_count_once(apply: Any) -> None:
    torch.manual_seed(0)
    shared = nn.Linear(8, 8)
    tied = nn.Linear(8, 8)
    tied.weight = shared.weight
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), tied).eval()
    report = de_plugin.prune(model, data(), 0.5, QUICK, schedule=2, apply=apply)
    assert [x.units for x in report.layers] == [64]
    assert bool((tied.weight[~report.masks["0.weight"]] == 0).all())
    outputs = model(data())
    de_plugin.remove(model)
    assert torch.equal(model(data()), outputs)
    assert isinstance(shared.weight, nn.Parameter)
    assert tied.weight is shared.weight


def test_gradients_of_the_user_stay() -> None:
    model = network()
    model(data()).sum().backward()
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    de_plugin.prune(model, data(), 0.5, QUICK, schedule=2)
    after = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(before) == len(after)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_teacher_outputs_beyond_memory_go_to_a_file() -> None:
    first = de_plugin.prune(network(), data(), 0.6, "fisher")
    second = de_plugin.prune(network(), data().split(20), 0.6, "fisher", memory=4 * 8 * 80)
    assert all(torch.equal(first.masks[n], second.masks[n]) for n in first.masks)
