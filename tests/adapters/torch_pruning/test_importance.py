"""An importance of ours in the host's pruners: groups are understood, scores can be compared."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

import de_plugin
from de_plugin.adapters.torch_pruning import DEImportance, DEPruner
from de_plugin.adapters.torch_pruning.copies import plan as plan_of
from de_plugin.adapters.torch_pruning.copies import removed
from de_plugin.adapters.torch_pruning.entries import entries
from de_plugin.adapters.torch_pruning.ties import coupling
from de_plugin.assess.coupled import CoupledUnits
from tests.adapters.torch_pruning.architectures import CASES
from tests.adapters.torch_pruning.pruners import MODES, QUICK, fix_heads, pruner_of

EXACT = [name for name in CASES if name not in ("group_norm", "vit", "gqa")]


@pytest.mark.parametrize("name", EXACT)
def test_zeroing_a_groups_channels_is_removing_them(name: str) -> None:
    case = CASES[name]
    model = case.build()
    found = list(entries(pruner_of(case, model)))
    units, x = CoupledUnits(model, [entry.coupling for entry in found]), case.inputs(5)
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        kept = torch.rand(units.count, generator=draw) > 0.4
        start = 0
        for entry in found:
            kept[start] = True
            start += entry.coupling.count
        with units.zeroed(kept), torch.no_grad():
            zeroed = model(x)
        small = removed(model, plan_of(model, found), kept)
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
        torch.testing.assert_close(zeroed, small(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["local", "global", "isomorphic"])
@pytest.mark.parametrize("name", CASES)
def test_the_importance_works_in_the_hosts_own_pruner(name: str, mode: str) -> None:
    case = CASES[name]
    model = case.build()
    before = sum(p.numel() for p in model.parameters())
    heads: dict[str, Any] = {} if name in ("vit", "gqa") else {"num_heads": {}}
    pruner = pruner_of(case, model, tp.pruner.BasePruner, **MODES[mode], **heads)
    pruner.step()
    fix_heads(model, pruner)
    assert sum(p.numel() for p in model.parameters()) < before
    assert model(case.inputs(3)).shape == (3, 5)


@pytest.mark.parametrize("name", CASES)
def test_scores_are_finite_positive_ordered_and_leave_no_trace(name: str) -> None:
    case = CASES[name]
    model = case.build().train()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pruner = pruner_of(case, model, tp.pruner.BasePruner)
    importance = pruner.importance
    model.train()
    for group in pruner.DG.get_all_groups(ignored_layers=pruner.ignored_layers):
        scores = importance(group)
        assert scores.shape == (len(group[0].idxs),)
        assert scores.dtype == torch.float32
        assert bool(torch.isfinite(scores).all())
        assert bool((scores > 0).all())
        parts = pruner._get_channel_groups(group) if name in ("grouped", "group_norm") else 1
        assert len(scores.unique()) == len(scores) // parts
        assert torch.equal(importance(group), scores)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(m.training for m in model.modules())
    assert all(p.grad is not None and bool((p.grad == 1).all()) for p in model.parameters())


@pytest.mark.parametrize(
    "cls", [tp.pruner.BNScalePruner, tp.pruner.GroupNormPruner, tp.pruner.GrowingRegPruner]
)
def test_the_importance_in_regularizing_pruners_of_the_host(cls: Any) -> None:
    case = CASES["normed"]
    model = case.build()
    pruner = pruner_of(case, model, cls, num_heads={})
    pruner.update_regularizer()
    model(case.inputs()).square().sum().backward()
    pruner.regularize(model)
    asked = len(pruner.importance._known)
    if cls is tp.pruner.GrowingRegPruner:
        grown = {group: reg.clone() for group, reg in pruner.group_reg.items()}
        assert len(grown) > 1
        pruner.update_reg()
        for group, before in grown.items():
            scores, after = pruner.importance(group), pruner.group_reg[group]
            assert float(after.max()) == pytest.approx(float(before.max()) + pruner.delta_reg, rel=1e-3)
            assert int(after.argmax()) == int(scores.argmin())
            assert float(after[scores.argmax()]) == float(before[scores.argmax()])
    pruner.regularize(model)
    assert len(pruner.importance._known) == asked
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
    pruner.step()
    assert model[0].out_channels == 4


def test_scores_of_groups_are_what_their_channels_cost() -> None:
    case = CASES["plain"]
    model, x = case.build(), case.inputs()
    importance = DEImportance(model, x, QUICK)
    pruner = tp.pruner.BasePruner(model, x[:1], importance, ignored_layers=case.ignored(model))
    groups = list(pruner.DG.get_all_groups(ignored_layers=pruner.ignored_layers))
    assert len(groups) > 1
    names = {module: name for name, module in model.named_modules()}
    found: list[tuple[float, float]] = []
    with torch.no_grad():
        for group in groups:
            scores = importance(group)
            asked = importance.asking.problem(model, [coupling(group, "group")])
            seen = x[asked.search]
            student = copy.deepcopy(model)
            layer: Any = student.get_submodule(names[group[0].dep.target.module])
            layer.weight.zero_()
            layer.bias.zero_()
            found.append((float(scores.sum()), float(de_plugin.KL()(student(seen), model(seen), None))))
    for told, measured in found:  # costs never fall along the order, so that they may add up to more
        assert told >= measured * (1 - 1e-5)
    assert sorted(found) == sorted(found, key=lambda pair: pair[1])


@pytest.mark.parametrize("idle", [0, 1])
def test_the_group_that_matters_less_loses_the_channels(idle: int) -> None:
    case = CASES["mlp"]
    model = case.build()
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert len(layers) == 3
    with torch.no_grad():  # what the group's channels carry hardly reaches the outputs
        layers[idle + 1].weight.mul_(1e-3)
        layers[idle + 1].bias.fill_(0.5)
    widths = [layer.out_features for layer in layers]
    pruner = pruner_of(
        case, model, tp.pruner.BasePruner, global_pruning=True, pruning_ratio=0.2, max_pruning_ratio=0.9
    )
    pruner.step()
    lost = [width - layer.out_features for layer, width in zip(layers, widths, strict=True)]
    assert lost[idle] > 0
    assert lost[1 - idle] <= 1


def kept_by(model: nn.Module, **options: Any) -> Any:
    """Return the host's own pruner with an importance of ours after one step."""
    case = CASES["normed"]
    pruner = pruner_of(case, model, tp.pruner.BasePruner, num_heads={}, **options)
    pruner.step()
    return pruner


def test_the_hosts_options_mean_with_the_importance_what_they_mean_without() -> None:
    case = CASES["normed"]
    rounded = case.build()
    kept_by(rounded, round_to=3)
    assert rounded[0].out_channels % 3 == 0
    one_layer = case.build()
    kept_by(one_layer, pruning_ratio=0.25, pruning_ratio_dict={one_layer[0]: 0.75})
    assert one_layer[0].out_channels == 2
    interactive = case.build()
    pruner = pruner_of(case, interactive, tp.pruner.BasePruner, num_heads={})
    groups = list(pruner.step(interactive=True))
    assert interactive[0].out_channels == 8
    for group in groups:
        group.prune()
    assert interactive[0].out_channels == 4
    assert interactive(case.inputs(3)).shape == (3, 5)


def test_whole_heads_go_by_the_importance_as_well() -> None:
    case = CASES["vit"]
    model = case.build()
    pruner = pruner_of(
        case,
        model,
        tp.pruner.BasePruner,
        pruning_ratio=0.25,
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=0.5,
    )
    pruner.step()
    assert pruner.num_heads[model.attention.qkv] == 2
    fix_heads(model, pruner)
    assert model(case.inputs(3)).shape == (3, 5)


@pytest.mark.parametrize("cls", [tp.pruner.BasePruner, DEPruner])
def test_layers_with_customized_pruners_are_pruned(cls: Any) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Conv2d(3, 8, 3), Scale(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    x = torch.randn(32, 3, 6, 6)
    options = {"customized_pruners": {Scale: ScalePruner()}, "ignored_layers": [model[3]]}
    if cls is DEPruner:
        pruner = cls(model, x[:1], x, criterion=QUICK, divergence="mse", **options)
    else:
        pruner = cls(model, x[:1], DEImportance(model, x, QUICK, divergence="mse"), **options)
    pruner.step()
    assert (model[0].out_channels, len(model[1].gain), model[3].in_channels) == (4, 4, 4)
    assert model(x).shape == (32, 4, 2, 2)


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain[:, None, None]


class ScalePruner(tp.BasePruningFunc):
    def prune_out_channels(self, layer: Any, idxs: list[int]) -> Any:
        keep = [n for n in range(len(layer.gain)) if n not in idxs]
        layer.gain = self._prune_parameter_and_grad(layer.gain, keep, 0)
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: Any) -> int:
        return len(layer.gain)

    get_in_channels = get_out_channels


@torch.no_grad()
def test_customized_pruners_are_followed() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Conv2d(3, 8, 3), Scale(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    x = torch.randn(4, 3, 6, 6)
    graph = tp.DependencyGraph()
    with torch.enable_grad():
        graph.build_dependency(model, x[:1], customized_pruners={Scale: ScalePruner()})
    group = graph.get_pruning_group(model[0], tp.prune_conv_out_channels, list(range(8)))
    units = CoupledUnits(model, [coupling(group, "conv")])
    kept = torch.tensor([True, False] * 4)
    with units.zeroed(kept):
        assert bool((model[1].gain[~kept] == 0).all())
        zeroed = model(x)
    group.prune([1, 3, 5, 7])
    torch.testing.assert_close(zeroed, model(x), rtol=1e-4, atol=1e-5)
