"""What a step settles is what goes: counts, statistics and reports, whoever prunes and whenever."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

from de_plugin.adapters.torch_pruning import DEPruner, as_criterion
from de_plugin.adapters.torch_pruning import steps as steps_of
from de_plugin.assess.problem import Problem
from de_plugin.errors import ArgumentError, DEWarning, TargetError
from tests.adapters.torch_pruning.architectures import CASES, last_layer
from tests.adapters.torch_pruning.pruners import MODES, QUICK, fix_heads, pruner_of


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model: nn.Module, before: Mapping[str, Tensor]) -> bool:
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[k], v) for k, v in before.items())


def statistics(model: nn.Module) -> list[Tensor]:
    return [b.clone() for name, b in model.named_buffers() if "running" in name]


@pytest.mark.parametrize("mode", ["local", "global"])
def test_the_cap_holds_and_what_is_settled_goes(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settled: list[Tensor] = []
    settle = steps_of.Step.settle

    def noted(step: Any, kept: Tensor) -> float:
        settled.append(kept.clone())
        return settle(step, kept)

    monkeypatch.setattr(steps_of.Step, "settle", noted)
    model = CASES["normed"].build()
    pruner = pruner_of(CASES["normed"], model, pruning_ratio=0.7, max_pruning_ratio=0.5, **MODES[mode])
    pruner.step()
    assert (model[0].out_channels, model[3].out_channels) == (4, 6)
    assert int((~settled[-1]).sum()) == 4 + 6
    assert pruner.report()[0].removed == {"0": (8, 4), "3": (12, 6)}


def test_a_step_that_removes_nothing_leaves_the_statistics() -> None:
    model = CASES["normed"].build()
    before = state(model)
    pruner = pruner_of(CASES["normed"], model, global_pruning=True, round_to=32)
    with pytest.warns(DEWarning, match="has removed nothing"):
        pruner.step()
    assert same(model, before)
    assert pruner.report() == []


@pytest.mark.parametrize("name", ["normed", "residual", "grouped"])
def test_rounded_channels_of_groups_that_are_ranked_together(name: str) -> None:
    case = CASES[name]
    model = case.build()
    pruner = pruner_of(case, model, global_pruning=True, round_to=4)
    pruner.step()
    convolutions = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(n % 4 == 0 for n in convolutions)
    for before, after in pruner.report()[0].removed.values():
        assert 0 < after < before
    assert model(case.inputs(3)).shape == (3, 5)


def test_groups_that_nobody_prunes_leave_no_trace() -> None:
    model = CASES["normed"].build()
    before = state(model)
    pruner = pruner_of(CASES["normed"], model)
    for _ in pruner.step(interactive=True):
        pass
    assert same(model, before)
    assert pruner.report() == []


@pytest.mark.parametrize("way", ["break", "raise", "skip"])
def test_statistics_and_report_are_of_the_groups_that_were_pruned(way: str) -> None:
    case = CASES["normed"]
    model, other = case.build(), case.build()
    pruner = pruner_of(case, model)
    try:
        for group in pruner.step(interactive=True):
            if group[0].dep.target.module is not model[0]:
                continue
            group.prune()
            if way == "break":
                break
            if way == "raise":
                raise KeyError(way)
    except KeyError:
        pass
    [report] = pruner.report()
    assert list(report.removed) == ["0"]
    assert (model[0].out_channels, model[3].out_channels) == (4, 12)
    assert report.params[1] == sum(p.numel() for p in model.parameters())
    left = [n for n in range(8) if any(torch.equal(other[0].weight[n], w) for w in model[0].weight)]
    now = statistics(model)
    assert not torch.allclose(now[2], statistics(other)[2])
    with torch.no_grad():
        x = case.inputs()
        zeroed = case.build()
        gone = [n for n in range(8) if n not in left]
        zeroed[3].weight[:, gone] = 0
        zeroed[4].running_mean.copy_(now[2])
        zeroed[4].running_var.copy_(now[3])
        zeroed[1].running_mean[left], zeroed[1].running_var[left] = now[0], now[1]
        torch.testing.assert_close(model(x), zeroed(x), rtol=1e-4, atol=1e-5)


def test_groups_that_are_pruned_once_the_step_is_over_are_followed() -> None:
    case = CASES["normed"]
    model, at_once = case.build(), case.build()
    pruner = pruner_of(case, model)
    groups = list(pruner.step(interactive=True))
    assert pruner.report() == []
    groups[0].prune()
    assert list(pruner.report()[0].removed) == ["3"]
    groups[1].prune()
    [report] = pruner.report()
    assert report.removed == {"0": (8, 4), "3": (12, 6)}
    pruner_of(case, at_once).step()
    for late, early in zip(statistics(model), statistics(at_once), strict=True):
        torch.testing.assert_close(late, early, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", ["local", "global"])
def test_a_group_keeps_a_head_whatever_the_ratio(mode: str) -> None:
    case = CASES["vit"]
    model = case.build()
    heads = {"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": 0.95}
    pruner = pruner_of(case, model, pruning_ratio=0.25, **heads, **MODES[mode])
    pruner.step()
    assert pruner.num_heads[model.attention.qkv] == 1
    assert model.attention.qkv.out_features == 12
    fix_heads(model, pruner)
    assert model(case.inputs(3)).shape == (3, 5)


def test_reports_name_groups_that_lost_something() -> None:
    case = CASES["plain"]
    model = case.build()
    with torch.no_grad():
        model[2].weight *= 100
    pruner = pruner_of(case, model, global_pruning=True, pruning_ratio=0.05)
    pruner.step()
    assert all(after < before for before, after in pruner.report()[0].removed.values())


def test_a_constructor_that_fails_leaves_the_modes() -> None:
    case = CASES["normed"]
    model = case.build().train()
    model[4].eval()
    before = [m.training for m in model.modules()]
    with pytest.raises(TargetError):
        pruner_of_target(case, model, target_params=0.01, max_pruning_ratio=0.5)
    assert [m.training for m in model.modules()] == before


def pruner_of_target(case: Any, model: nn.Module, **options: Any) -> DEPruner:
    x = case.inputs()
    return DEPruner(model, x[:1], x, criterion=QUICK, ignored_layers=[last_layer(model)], **options)


@pytest.mark.parametrize("interactive", [False, True])
def test_a_step_that_fails_can_be_taken_again(interactive: bool) -> None:
    case = CASES["normed"]
    model = case.build()
    before = state(model)
    options = {"pruning_ratio_dict": {model[0]: 0.5}, "iterative_steps": 2}
    pruner = pruner_of_target(case, model, max_divergence=1e-9, **options)
    ratios = pruner.per_step_pruning_ratio
    with pytest.raises(TargetError):
        list(pruner.step(interactive=interactive) or [])
    assert pruner.current_step == 0
    assert pruner.per_step_pruning_ratio is ratios
    assert same(model, before)


def test_unwrapped_parameters_as_a_mapping_and_the_users_list_stays() -> None:
    case = CASES["vit"]
    for kind in (dict, list):
        model = case.build()
        given: Any = kind([(model.place, 2)])
        pruner = pruner_of(case, model, unwrapped_parameters=given)
        pruner.step()
        fix_heads(model, pruner)
        assert model.place.shape == (1, 4, 8)
        assert len(given) == 1


def test_random_importances_draw_from_the_problems_seed() -> None:
    case = CASES["mlp"]
    model = case.build()
    first, second = (Problem(model, case.inputs(), granularity="channel", holdout=0, seed=3) for _ in "ab")
    random = as_criterion(tp.importance.RandomImportance())
    torch.manual_seed(1)
    one, again = random(first, first.eligible, 3), random(first, first.eligible, 3)
    after = torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), after)
    torch.manual_seed(2)
    assert torch.equal(random(second, second.eligible, 3), one)
    assert not torch.equal(one, again)


class Narrow(nn.Module):
    """Runs at one width only."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)
        self.width = 8

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.one(x)
        assert hidden.shape[1] == self.width
        logits: Tensor = self.two(self.norm(hidden).relu())
        return logits


def test_zeroing_in_place_of_removal_is_told() -> None:
    model = Narrow().eval()
    x = torch.randn(32, 6)
    pruner = DEPruner(model, x[:1], x, criterion=QUICK, ignored_layers=[model.two])
    pruner.step()
    [report] = pruner.report()
    assert not report.exact
    assert any(event.get("kind") == "zeroed instead of removed" for event in report.events)


QKV = {nn.Linear(2, 6): 2}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"pruning_ratio": 1.0, "max_pruning_ratio": 0.5}, r"pruning_ratio=1.0: .* give a ratio below 1"),
        ({"pruning_ratio_dict": {nn.Linear(2, 2): 1.0}}, r"pruning_ratio_dict=\{Linear: 1.0\}"),
        ({"pruning_ratio_dict": {(nn.Linear(2, 2),): -0.1}}, r"pruning_ratio_dict=\{tuple: -0.1\}"),
        ({"ch_sparsity": 1.5}, "ch_sparsity=1.5: expected a fraction"),
        ({"ch_sparsity_dict": {nn.Linear(2, 2): 2}}, r"ch_sparsity_dict=\{Linear: 2\}"),
        ({"head_pruning_ratio": 1.0, "prune_num_heads": True}, "head_pruning_ratio=1.0: .* below 1"),
        ({"head_pruning_ratio": 0.5}, "without prune_num_heads=True no head goes"),
        ({"head_pruning_ratio_dict": {nn.Linear(2, 2): 0.5}}, "without prune_num_heads=True no head goes"),
        (
            {"prune_num_heads": True, "head_pruning_ratio": 0.5, "num_heads": QKV},
            "prune_head_dims=True: .* second pruner",
        ),
        (
            {"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": 0.5},
            "num_heads=None: no layer",
        ),
        (
            {"prune_num_heads": True, "prune_head_dims": False, "num_heads": QKV},
            "head_pruning_ratio=None: no head would go",
        ),
    ],
)
def test_ratios_and_heads_that_would_do_nothing_are_refused(options: dict[str, Any], match: str) -> None:
    case = CASES["plain"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ArgumentError, match=match):
            pruner_of(case, case.build(), **options)


def test_whole_heads_leave_the_hosts_ratios() -> None:
    heads = {"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": 0.5}
    model = CASES["vit"].build()
    pruner = pruner_of(CASES["vit"], model, global_pruning=True, **heads)
    before = pruner.per_step_head_pruning_ratio, dict(pruner.head_pruning_ratio_dict)
    pruner.step()
    assert pruner.num_heads[model.attention.qkv] == 2
    assert (pruner.per_step_head_pruning_ratio, pruner.head_pruning_ratio_dict) == before


def test_heads_are_counted_when_they_go() -> None:
    case = CASES["vit"]
    model = case.build()
    heads = {"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": 0.5}
    pruner = pruner_of(case, model, **heads)
    groups = list(pruner.step(interactive=True))
    assert pruner.num_heads[model.attention.qkv] == 4
    for group in groups:
        group.prune()
    assert pruner.num_heads[model.attention.qkv] == pruner.out_channel_groups[model.attention.qkv] == 2
    assert pruner.report()[0].removed["attention.proj"] == (16, 8)
    fix_heads(model, pruner)
    assert model(case.inputs(3)).shape == (3, 5)
