"""Masks on a model: baked in or attached as torch's own, and always removable."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.utils.prune as torch_prune
from torch import Tensor, nn

import de_plugin
from de_plugin.errors import ArgumentError


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4)).eval()


def halves(model: nn.Module) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return {n: torch.rand(p.shape, generator=rng) < 0.5 for n, p in model.named_parameters()}


def test_attached_masks_equal_baked_ones_and_torch_can_remove_them() -> None:
    model, inputs = network(), torch.randn(16, 8)
    masks = halves(model)
    baked = copy.deepcopy(model)
    de_plugin.bake(baked, masks)
    for name, parameter in baked.named_parameters():
        assert bool((parameter[~masks[name]] == 0).all())
    dense = model.state_dict()["0.weight"].clone()
    de_plugin.apply(model, masks)
    assert torch_prune.is_pruned(model)
    assert torch.equal(model(inputs), baked(inputs))
    assert torch.equal(model.state_dict()["0.weight_orig"], dense)
    for module in (model[0], model[2]):
        for own in ("weight", "bias"):
            torch_prune.remove(module, own)
    assert set(model.state_dict()) == set(baked.state_dict())
    assert all(torch.equal(x, baked.state_dict()[n]) for n, x in model.state_dict().items())


def test_remove_makes_masks_permanent() -> None:
    model = network()
    masks = halves(model)
    baked = copy.deepcopy(model)
    de_plugin.bake(baked, masks)
    de_plugin.apply(model, masks)
    de_plugin.remove(model)
    assert not torch_prune.is_pruned(model)
    assert all(torch.equal(x, baked.state_dict()[n]) for n, x in model.state_dict().items())
    de_plugin.remove(model)


def test_remove_leaves_the_users_own_names_alone() -> None:
    model = network()
    model.register_parameter("scale_orig", nn.Parameter(torch.ones(1)))
    de_plugin.remove(model)
    assert "scale_orig" in dict(model.named_parameters())


def test_shared_weights_are_masked_wherever_they_are_used() -> None:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    model = nn.Sequential(first, nn.ReLU(), second).eval()
    baked, inputs = copy.deepcopy(model), torch.randn(10, 6)
    mask = {"0.weight": torch.rand(6, 6) < 0.5}
    de_plugin.bake(baked, mask)
    de_plugin.apply(model, mask)
    assert torch.equal(model(inputs), baked(inputs))
    de_plugin.remove(model)
    assert model[2].weight is model[0].weight
    assert torch.equal(model(inputs), baked(inputs))


def test_attached_masks_hold_during_training() -> None:
    model = network()
    masks = {"0.weight": halves(model)["0.weight"]}
    de_plugin.apply(model, masks)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 8)).square().mean().backward()
        optimizer.step()
    de_plugin.remove(model)
    assert bool((model.get_parameter("0.weight")[~masks["0.weight"]] == 0).all())


@pytest.mark.parametrize(
    "masks",
    [
        {"0.weight": torch.ones(12, 8)},
        {"0.weight": torch.ones(8, 12, dtype=torch.bool)},
        {"0.wight": torch.ones(12, 8, dtype=torch.bool)},
        {"encoder.weight": torch.ones(12, 8, dtype=torch.bool)},
        {"1.weight": torch.ones(12, 8, dtype=torch.bool)},
    ],
)
@pytest.mark.parametrize("use", [de_plugin.bake, de_plugin.apply])
def test_masks_that_fit_nothing_change_nothing(use: Any, masks: dict[str, Tensor]) -> None:
    model = network()
    before = {n: x.clone() for n, x in model.state_dict().items()}
    good = {"2.weight": torch.zeros(4, 12, dtype=torch.bool)}
    with pytest.raises(ArgumentError, match="masks.*'"):
        use(model, {**good, **masks})
    assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items())
