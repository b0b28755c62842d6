"""Directed Evolution inside Torch-Pruning: groups are understood, what it chooses is really removed."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

import de_plugin
from de_plugin import DirectedEvolution, Problem, Swaps, blend, nest
from de_plugin.adapters.torch_pruning import (
    DEBNScalePruner,
    DEGroupNormPruner,
    DEGrowingRegPruner,
    DEImportance,
    DEPruner,
    as_criterion,
    register,
    unregister,
)
from de_plugin.adapters.torch_pruning.copies import plan as plan_of
from de_plugin.adapters.torch_pruning.copies import removed
from de_plugin.adapters.torch_pruning.entries import entries
from de_plugin.adapters.torch_pruning.ties import coupling
from de_plugin.assess.coupled import CoupledUnits
from de_plugin.errors import ArgumentError, DEWarning
from tests.adapters.torch_pruning.architectures import CASES, Case, last_layer

QUICK = DirectedEvolution(("magnitude",), population=4, generations=1, samples=32, swaps=Swaps(rounds=1))
MODES: dict[str, dict[str, Any]] = {
    "local": {},
    "global": {"global_pruning": True},
    "isomorphic": {"global_pruning": True, "isomorphic": True},
    "iterative": {"iterative_steps": 2},
    "rounded": {"round_to": 4},
}


def pruner_of(case: Case, model: nn.Module, cls: Any = DEPruner, **options: Any) -> Any:
    x = case.inputs()
    options = {"ignored_layers": [last_layer(model)], "pruning_ratio": 0.5, **case.options(model), **options}
    if issubclass(cls, DEPruner | DEBNScalePruner | DEGroupNormPruner | DEGrowingRegPruner):
        return cls(model, x[:1], x, criterion=QUICK, **options)
    return cls(model, x[:1], DEImportance(model, x, QUICK), **options)


def fix_heads(model: nn.Module, pruner: Any) -> None:
    """Tell attention what the pruner has left of it, as users of the host do."""
    for module in model.modules():
        if type(module).__name__ == "Attention":
            qkv: Any = module.qkv
            module.heads = pruner.num_heads[qkv]
            module.head_dim = qkv.out_features // (3 * pruner.num_heads[qkv])


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


EXACT = [name for name in CASES if name not in ("group_norm", "vit")]


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


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_the_pruner_takes_what_it_has_chosen_and_as_much_as_the_host(name: str, mode: str) -> None:
    if (name, mode) == ("split", "iterative"):
        pytest.skip("the host keeps the sizes that a split had before the first step")
    case = CASES[name]
    model, host = case.build(), case.build()
    pruner = pruner_of(case, model, **MODES[mode])
    options = {**case.options(host), **MODES[mode], "ignored_layers": [last_layer(host)]}
    for key in ("num_heads", "in_channel_groups", "out_channel_groups"):
        options.setdefault(key, {})
    magnitude = tp.importance.GroupMagnitudeImportance()
    other = tp.pruner.BasePruner(host, case.inputs(1), magnitude, pruning_ratio=0.5, **options)
    for _ in range(pruner.iterative_steps):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DEWarning)
            pruner.step()
        other.step()
        fix_heads(model, pruner)
        fix_heads(host, other)
    if not MODES[mode].get("global_pruning"):
        assert shapes(model) == shapes(host)
    out = model(case.inputs(3))
    assert out.shape == (3, 5)
    assert bool(torch.isfinite(out).all())
    assert len(pruner.report()) == pruner.iterative_steps
    assert pruner.report()[-1].removed


@pytest.mark.parametrize("mode", ["local", "global", "isomorphic"])
@pytest.mark.parametrize("name", CASES)
def test_the_importance_works_in_the_hosts_own_pruner(name: str, mode: str) -> None:
    case = CASES[name]
    model = case.build()
    before = sum(p.numel() for p in model.parameters())
    pruner = (
        pruner_of(case, model, tp.pruner.BasePruner, **MODES[mode], num_heads={})
        if name != "vit"
        else (pruner_of(case, model, tp.pruner.BasePruner, **MODES[mode]))
    )
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


@pytest.mark.parametrize("cls", [DEBNScalePruner, DEGroupNormPruner, DEGrowingRegPruner])
def test_regularizing_pruners(cls: Any) -> None:
    case = CASES["normed"]
    model = case.build()
    pruner = pruner_of(case, model, cls)
    pruner.update_regularizer()
    model.train()
    model(case.inputs()).square().sum().backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    pruner.regularize(model)
    if hasattr(pruner, "update_reg"):
        pruner.update_reg()
    after = [p.grad for p in model.parameters() if p.grad is not None]
    assert any(not torch.equal(a, b) for a, b in zip(grads, after, strict=True))
    assert all(bool(torch.isfinite(g).all()) for g in after)
    pruner.step()
    assert model[0].out_channels == 4


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
    pruner.regularize(model)
    assert len(pruner.importance._known) == asked
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
    pruner.step()
    assert model[0].out_channels == 4


def test_whole_heads() -> None:
    case = CASES["vit"]
    model = case.build()
    pruner = pruner_of(
        case, model, pruning_ratio=0.25, prune_num_heads=True, prune_head_dims=False, head_pruning_ratio=0.5
    )
    pruner.step()
    assert pruner.num_heads[model.attention.qkv] == 2
    fix_heads(model, pruner)
    assert model(case.inputs(3)).shape == (3, 5)
    assert shapes(model)["attention.qkv.weight"] == (24, 12)
    assert pruner.report()[0].removed["attention.proj"] == (16, 8)


def test_interactive_and_ratios_of_single_layers() -> None:
    case = CASES["plain"]
    model = case.build()
    pruner = pruner_of(case, model, pruning_ratio_dict={model[0]: 0.25})
    groups = list(pruner.step(interactive=True))
    assert len(groups) == 2
    for group in groups:
        group.prune()
    assert pruner.report()[0].removed == {"0": (8, 6), "2": (12, 6)}
    assert (model[0].out_channels, model[2].out_channels) == (6, 6)


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain[:, None, None]


class ScalePruner(tp.BasePruningFunc):  # type: ignore[misc]
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


HOSTS = [
    tp.importance.GroupMagnitudeImportance(),
    tp.importance.LAMPImportance(),
    tp.importance.FPGMImportance(),
    tp.importance.GroupTaylorImportance(),
    tp.importance.GroupHessianImportance(),
]


@pytest.mark.parametrize("importance", HOSTS, ids=lambda i: type(i).__name__)
def test_host_criteria_nest_and_blend(importance: Any) -> None:
    case = CASES["normed"]
    model, x = case.build(), case.inputs()
    host = as_criterion(importance, samples=16)
    model[0].weight.grad = mine = torch.ones_like(model[0].weight)
    pruner = DEPruner(
        model, x[:1], x, criterion=nest(QUICK, host), pruning_ratio=0.5, ignored_layers=[last_layer(model)]
    )
    problem = Problem(model, x, granularity="channel", holdout=0)
    scores = host(problem, problem.eligible, 3)
    assert scores.shape == (problem.units.count,)
    assert model[0].weight.grad is mine
    graph = tp.DependencyGraph().build_dependency(model, x[:1])
    if not host.needs_gradient:
        group = graph.get_pruning_group(model[0], tp.prune_conv_out_channels, list(range(8)))
        expected = importance(group).detach().double()
        torch.testing.assert_close(scores[:8], expected)
    report = de_plugin.prune(
        copy.deepcopy(model), x, 0.5, blend({"magnitude": 1.0, host: 1.0}), granularity="channel"
    )
    assert report.sparsity > 0.3
    pruner.step()
    assert model[0].out_channels == 4


def test_hessian_and_taylor_get_what_their_papers_ask_for() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).eval()
    x, labels = torch.randn(20, 6), torch.randint(5, (20,))
    problem = Problem(model, (x, labels), granularity="channel", holdout=0, include=["0"])
    importance = tp.importance.GroupHessianImportance(group_reduction="first", normalizer=None)
    scores = as_criterion(importance)(problem, problem.eligible, 2)
    squares = torch.zeros(8, 6)
    for one, label in zip(x, labels, strict=True):
        model.zero_grad()
        nn.functional.cross_entropy(model(one[None]), label[None]).backward()
        squares += model[0].weight.grad.square() / 20
    expected = (model[0].weight.detach().square() * squares).sum(1)
    torch.testing.assert_close(scores.float(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["residual", "normed", "concat"])
def test_it_keeps_more_than_magnitude_does(name: str) -> None:
    case = CASES[name]
    x = case.inputs(128)
    teacher = case.build()
    results = []
    for kind in ("de", "magnitude"):
        model = case.build()
        options: dict[str, Any] = {"pruning_ratio": 0.5, "ignored_layers": [last_layer(model)]}
        pruner: Any
        if kind == "de":
            pruner = DEPruner(model, x[:1], x, match_batchnorm=False, **options)
        else:
            pruner = tp.pruner.BasePruner(model, x[:1], tp.importance.GroupMagnitudeImportance(), **options)
        pruner.step()
        with torch.no_grad():
            results.append(float(de_plugin.KL()(model(x), teacher(x), None)))
    assert results[0] < results[1]


def test_same_seed_same_network() -> None:
    case = CASES["residual"]
    first, second = case.build(), case.build()
    for model in (first, second):
        pruner_of(case, model, global_pruning=True).step()
    assert shapes(first) == shapes(second)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_search_that_fails_leaves_the_model() -> None:
    case = CASES["normed"]
    model = case.build().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def broken(_student: Any, _teacher: Any) -> Tensor:
        raise ValueError("no such measure")

    x = case.inputs()
    pruner = DEPruner(model, x[:1], x, criterion=QUICK, divergence=broken, ignored_layers=[last_layer(model)])
    model.train()
    with pytest.raises(Exception, match="no such measure"):
        pruner.step()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"isomorphic": True}, "global_pruning=True"),
        ({"pruning_ratio": 1.0}, "below 1"),
        ({"pruning_ratio": 1.5}, r"\[0, 1\]"),
        ({"pruning_ration": 0.5}, "pruning_ration=...\\): unknown"),
        ({"unwrapped_parameters": [3]}, "list of"),
        (
            {"pruning_ratio": 0.0, "prune_num_heads": True, "head_pruning_ratio": 0.5},
            "along with channels only",
        ),
    ],
)
def test_what_the_host_ignores_silently_is_refused(options: dict[str, Any], match: str) -> None:
    case = CASES["plain"]
    model = case.build()
    with pytest.raises(ArgumentError, match=match):
        pruner_of(case, model, **options)


def test_more_silence_that_is_broken() -> None:
    model = CASES["grouped"].build()
    with pytest.raises(ArgumentError, match="equals the groups of '2'"):
        pruner_of(CASES["grouped"], model, round_to=2)
    with pytest.raises(ArgumentError, match="needs calibration data"):
        DEPruner(model, CASES["grouped"].inputs(1))
    pruner = pruner_of(CASES["mlp"], CASES["mlp"].build(), pruning_ratio=0.0)
    with pytest.warns(DEWarning, match="has removed nothing"):
        pruner.step()
    one = pruner_of(CASES["mlp"], CASES["mlp"].build())
    assert one.in_channel_groups is not pruner.in_channel_groups


def test_a_group_never_loses_more_than_the_highest_ratio() -> None:
    case = CASES["plain"]
    model = case.build()
    pruner_of(case, model, global_pruning=True, pruning_ratio=0.6, max_pruning_ratio=0.75).step()
    assert model[0].out_channels >= 2
    assert model[2].out_channels >= 3


def test_registering_is_idempotent_and_reversible() -> None:
    assert not hasattr(tp.importance, "DEImportance")
    register()
    register()
    try:
        assert tp.importance.DEImportance is DEImportance
        assert tp.pruner.DEPruner is DEPruner
    finally:
        unregister()
        unregister()
    assert not hasattr(tp.importance, "DEImportance")
    assert not hasattr(tp.pruner, "DEPruner")
    tp.pruner.DEPruner = object
    try:
        with pytest.raises(ArgumentError, match="remove that first"):
            register()
        assert not hasattr(tp.importance, "DEImportance")
        unregister()
        assert tp.pruner.DEPruner is object
    finally:
        del tp.pruner.DEPruner
