"""What the pruners evolve is really removed, as much of it as the host asks for."""

from __future__ import annotations

import copy
import warnings
from itertools import combinations, product
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import nn

import de_plugin
from de_plugin import DirectedEvolution
from de_plugin.adapters.torch_pruning import (
    DEBNScalePruner,
    DEGroupNormPruner,
    DEGrowingRegPruner,
    DEImportance,
    DEPruner,
)
from de_plugin.errors import DEWarning, SelectionError
from tests.adapters.torch_pruning.architectures import CASES, last_layer
from tests.adapters.torch_pruning.pruners import MODES, QUICK, fix_heads, pruner_of, shapes
from tests.hashing import printed_whatever_the_hashes

REFUSED = [("split", "iterative"), ("gqa", "iterative")]
"""Where the host itself loses count of channels in a second step."""


@pytest.mark.parametrize(("name", "mode"), [x for x in product(CASES, MODES) if x not in REFUSED])
def test_the_pruner_takes_what_it_has_chosen_and_as_much_as_the_host(name: str, mode: str) -> None:
    case = CASES[name]
    model, host = case.build(), case.build()
    pruner = pruner_of(case, model, **MODES[mode])
    options = {**case.options(host), **MODES[mode], "ignored_layers": case.ignored(host)}
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
    if name == "split":  # how many channels of each part go is a choice
        assert model.stem.out_channels == host.stem.out_channels or mode in ("global", "isomorphic")
    elif (
        not MODES[mode].get("global_pruning") and name != "gqa"
    ):  # where the host removes nothing of attention
        assert shapes(model) == shapes(host)
    out = model(case.inputs(3))
    assert out.shape == (3, 5)
    assert bool(torch.isfinite(out).all())
    assert len(pruner.report()) == pruner.iterative_steps
    assert pruner.report()[-1].removed


class Own(DEGroupNormPruner):
    """A user's class of another name."""


def test_a_class_of_the_users_takes_what_its_base_takes() -> None:
    case = CASES["normed"]
    assert pruner_of(case, case.build(), Own, reg=1e-3).reg == 1e-3


@pytest.mark.parametrize("cls", [DEPruner, tp.pruner.BasePruner])
def test_steps_go_on_where_outputs_of_the_network_are_removed(cls: Any) -> None:
    case = CASES["normed"]
    model = case.build()
    pruner = pruner_of(case, model, cls, ignored_layers=[], iterative_steps=2)
    pruner.step()
    with pytest.warns(DEWarning, match="add the layers that make its outputs to ignored_layers"):
        pruner.step()
    assert model(case.inputs(3)).shape == (3, 2)


@pytest.mark.parametrize("cls", [DEPruner, tp.pruner.BasePruner])
def test_data_that_can_be_read_once_do_for_all_steps(cls: Any) -> None:
    case = CASES["normed"]
    model, once = case.build(), (case.inputs(16) for _ in range(2))
    options: dict[str, Any] = {"ignored_layers": [last_layer(model)], "iterative_steps": 2}
    if cls is DEPruner:
        pruner = cls(model, case.inputs(1), once, criterion=QUICK, **options)
    else:
        pruner = cls(model, case.inputs(1), DEImportance(model, once, QUICK), **options)
    pruner.step()
    pruner.step()
    assert model(case.inputs(3)).shape == (3, 5)


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


@pytest.mark.parametrize("seed", range(3))
def test_whole_heads_are_measured_as_they_are_removed(seed: int) -> None:
    case = CASES["vit"]
    model, teacher = case.build(), case.build()
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) if "attention" in name else p)
    teacher.load_state_dict(model.state_dict())
    inputs = case.inputs()
    others = [model.embed, model.up, model.down, model.attention.proj]
    pruner = DEPruner(
        model,
        inputs[:1],
        inputs,
        criterion=DirectedEvolution(population=8, generations=3),
        holdout=0,
        pruning_ratio=0.25,
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=0.5,
        ignored_layers=[*case.ignored(model), *others],
        **case.options(model),
    )
    pruner.step()
    fix_heads(model, pruner)

    def left(student: nn.Module) -> float:
        with torch.no_grad():
            return float(de_plugin.KL()(student(inputs), teacher(inputs), None))

    [report] = pruner.report()
    assert report.exact
    assert report.after == pytest.approx(left(model), rel=1e-4)
    heads, width = teacher.attention.heads, teacher.attention.head_dim
    costs = []
    for pair in combinations(range(heads), 2):
        other = copy.deepcopy(teacher)
        rows = torch.cat([torch.arange(width) + width * h for h in pair])
        with torch.no_grad():
            other.attention.proj.weight[:, rows] = 0  # what these heads give is not read
        costs.append(left(other))
    assert left(model) <= sorted(costs)[1] * (1 + 1e-4)


@pytest.mark.parametrize("mode", ["local", "global", "isomorphic"])
def test_channels_of_heads_go_where_queries_share_keys_and_values(mode: str) -> None:
    case = CASES["gqa"]
    model = case.build()
    pruner_of(case, model, **MODES[mode]).step()
    widths = [shapes(model)[f"{name}.weight"][0] for name in "qkv"]
    assert widths[0] == 2 * widths[1] == 2 * widths[2] < 16
    assert model(case.inputs(3)).shape == (3, 5)


def test_heads_that_the_host_leaves_alone_are_told() -> None:
    case = CASES["gqa"]
    model = case.build()
    heads = {"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": 0.5}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pruner_of(case, model, **heads).step()
    assert any("removes no heads in front of proj" in str(w.message) for w in told)
    assert [shapes(model)[f"{name}.weight"][0] for name in "qkv"] == [16, 8, 8]


def test_a_second_step_in_which_the_host_loses_count_is_refused_and_changes_nothing() -> None:
    case = CASES["gqa"]
    model = case.build()
    pruner = pruner_of(case, model, iterative_steps=2)
    pruner.step()
    before = shapes(model)
    with pytest.raises(SelectionError, match="in one step"):
        pruner.step()
    assert shapes(model) == before
    assert model(case.inputs(3)).shape == (3, 5)


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


_SCRIPT = """
from tests.adapters.torch_pruning.pruners import *
from tests.adapters.torch_pruning.architectures import CASES
import hashlib, torch_pruning as tp
for cls in (DEPruner, tp.pruner.BasePruner):
    for name, mode in (("residual", "global"), ("vit", "local"), ("concat", "iterative")):
        case, options = CASES[name], MODES[mode]
        model = case.build()
        pruner = pruner_of(case, model, cls, **options)
        for _ in range(pruner.iterative_steps):
            pruner.step()
        for n, p in model.named_parameters():
            digest = hashlib.sha256(p.detach().numpy().tobytes()).hexdigest()
            print(cls.__name__, name, n, tuple(p.shape), digest)
"""


def test_it_does_not_depend_on_the_seed_of_hashes() -> None:
    found = printed_whatever_the_hashes(_SCRIPT)
    for told in ("DEPruner vit attention.qkv.weight", "BasePruner residual stem.weight"):
        assert told in found


@pytest.mark.parametrize("matched", [True, False])
@pytest.mark.parametrize("name", ["group_norm", "gqa", "vit", "normed"])
def test_the_report_tells_what_the_pruned_network_really_loses(name: str, matched: bool) -> None:
    case = CASES[name]
    model, teacher, x = case.build(), case.build(), case.inputs()
    pruner = pruner_of(case, model, holdout=0, match_batchnorm=matched)
    pruner.step()
    [report] = pruner.report()
    with torch.no_grad():
        left = float(de_plugin.KL()(model(x), teacher(x), None))  # attention still scales as before
    assert left > 0
    assert report.after == pytest.approx(left, rel=1e-4)


def test_a_group_never_loses_more_than_the_highest_ratio() -> None:
    case = CASES["plain"]
    model = case.build()
    pruner_of(case, model, global_pruning=True, pruning_ratio=0.6, max_pruning_ratio=0.75).step()
    assert model[0].out_channels >= 2
    assert model[2].out_channels >= 3
