"""A target in MACs or parameters is met by as little as that takes; a divergence is never exceeded."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

import de_plugin
from de_plugin.adapters.torch_pruning import DEGroupNormPruner, DEImportance, DEPruner
from de_plugin.adapters.torch_pruning.copies import plan
from de_plugin.adapters.torch_pruning.entries import entries
from de_plugin.adapters.torch_pruning.ladder import spans
from de_plugin.errors import DEWarning, TargetError
from tests.adapters.torch_pruning.architectures import CASES, Case, last_layer
from tests.adapters.torch_pruning.pruners import MODES, QUICK, fix_heads

HEADS: dict[str, Any] = {"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": 0.5}


def aimed(case: Case, model: nn.Module, **options: Any) -> Any:
    x = case.inputs()
    options = {"ignored_layers": [last_layer(model)], **case.options(model), **options}
    return DEPruner(model, x[:1], x, criterion=QUICK, **options)


def pruned(case: Case, model: nn.Module, **options: Any) -> Any:
    pruner = aimed(case, model, **options)
    for _ in range(pruner.iterative_steps):
        pruner.step()
        fix_heads(model, pruner)
    assert bool(torch.isfinite(model(case.inputs(3))).all())
    return pruner


def counted(case: Case, model: nn.Module) -> dict[str, float]:
    macs, params = tp.utils.count_ops_and_params(model, case.inputs(1))
    return {"target_macs": macs, "target_params": params}


def of_one_channel(case: Case, name: str) -> float:
    """Return what the largest channel of a network costs."""
    model = case.build()
    pruner = aimed(case, model, max_divergence=1.0)
    pruner.current_step = 1
    found = list(entries(pruner))
    all_units = spans(found)[-1].stop
    size = pruner._size(model, plan(model, found), all_units)
    without = ~torch.eye(all_units, dtype=torch.bool)[[span.start for span in spans(found)]]
    largest: float = size(name) - min(size(name, kept) for kept in without)
    return largest


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[k], v) for k, v in before.items())


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("mode", ["local", "global", "isomorphic"])
@pytest.mark.parametrize(
    ("name", "what"), [("residual", "target_macs"), ("grouped", "target_params"), ("vit", "target_macs")]
)
def test_a_size_is_met_and_not_undershot_by_more_than_a_channel(
    name: str, what: str, mode: str, steps: int
) -> None:
    case = CASES[name]
    model = case.build()
    first = counted(case, model)[what]
    pruner = pruned(case, model, iterative_steps=steps, **{what: 0.6}, **MODES[mode])
    reports = pruner.report()
    sizes = [(r.macs if what == "target_macs" else r.params)[1] for r in reports]
    last = counted(case, model)
    assert last[what] <= 0.6 * first
    assert last[what] > 0.6 * first - of_one_channel(case, what) - 1
    assert (reports[-1].macs[1], reports[-1].params[1]) == (last["target_macs"], last["target_params"])
    assert reports[0].macs[0] > reports[0].macs[1]
    for report, size in zip(reports, sizes, strict=True):
        assert size <= first * (1 - 0.4 * report.step / steps) + 1e-6
    assert 0 < pruner.per_step_pruning_ratio[-1] < 1


@pytest.mark.parametrize("mode", ["local", "global"])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", ["normed", "vit"])
def test_the_divergence_stays_within_its_limit(name: str, mode: str, steps: int) -> None:
    case, limit = CASES[name], {"normed": 5e-4, "vit": 1e-2}[name]
    model, teacher = case.build(), case.build()
    settings = {"holdout": 0, "match_batchnorm": steps == 2, "iterative_steps": steps}
    pruner = aimed(case, model, max_divergence=limit, **settings, **MODES[mode])
    for _ in range(steps):
        pruner.step()
    with torch.no_grad():
        left = float(de_plugin.KL()(model(case.inputs()), teacher(case.inputs()), None))
    assert left <= limit * (1 + 1e-3)
    assert left == pytest.approx(pruner.report()[-1].after, rel=1e-3)
    assert counted(case, model)["target_params"] < 0.9 * counted(case, teacher)["target_params"]


def test_a_larger_limit_lets_more_go_down_to_the_last_channel() -> None:
    case = CASES["plain"]
    model, removed = case.build(), []
    for limit in (2e-4, 1e-3, 10.0):
        model = case.build()
        removed.append(pruned(case, model, max_divergence=limit).report()[0].params[1])
    assert removed[0] > removed[1] > removed[2]
    assert (model[0].out_channels, model[2].out_channels) == (1, 1)


@pytest.mark.parametrize("mode", ["local", "global"])
@pytest.mark.parametrize("name", ["residual", "group_norm"])
def test_rounded_channels(name: str, mode: str) -> None:
    case = CASES[name]
    model = case.build()
    first = counted(case, model)["target_macs"]
    pruned(case, model, target_macs=0.6, round_to=4, **MODES[mode])
    assert counted(case, model)["target_macs"] <= 0.6 * first
    outputs = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(n > 0 and n % 4 == 0 for n in outputs)


def test_given_ratios_stay_and_the_rest_is_sought() -> None:
    case = CASES["plain"]
    model = case.build()
    first = counted(case, model)["target_macs"]
    pruned(case, model, target_macs=0.6, pruning_ratio_dict={model[0]: 0.25})
    assert model[0].out_channels == 6
    assert counted(case, model)["target_macs"] <= 0.6 * first


@pytest.mark.parametrize("mode", ["local", "global"])
def test_whole_heads_go_beside(mode: str) -> None:
    case = CASES["vit"]
    model = case.build()
    first = counted(case, model)["target_params"]
    pruner = pruned(case, model, target_params=0.6, **HEADS, **MODES[mode])
    assert pruner.num_heads[model.attention.qkv] == 2
    last = counted(case, model)["target_params"]
    assert 0.55 * first < last <= 0.6 * first
    assert pruner.report()[0].params[1] == last


def test_the_lowest_number_that_is_named_can_be_reached() -> None:
    case = CASES["normed"]
    model = case.build()
    before = state(model)
    with pytest.raises(TargetError, match="max_pruning_ratio") as error:
        aimed(case, model, target_params=0.05, max_pruning_ratio=0.5)
    assert same(model, before)
    found = re.search(r"lowest is (\d+)", str(error.value))
    assert found is not None
    lowest = int(found[1])
    pruned(case, model, target_params=lowest, max_pruning_ratio=0.5)
    assert counted(case, model)["target_params"] == lowest
    assert (model[0].out_channels, model[3].out_channels) == (4, 6)


def test_a_limit_that_nothing_meets_leaves_the_model() -> None:
    case = CASES["normed"]
    model = case.build()
    before = state(model)
    pruner = aimed(case, model, max_divergence=1e-9)
    with pytest.warns(DEWarning, match="max_divergence=1e-09 lets nothing more go"):
        pruner.step()
    assert same(model, before)
    assert pruner.report() == []
    pruner = aimed(case, model, max_divergence=1e-9, pruning_ratio_dict={model[0]: 0.5})
    with pytest.raises(TargetError, match="ratios of their own alone lead to"):
        pruner.step()
    assert same(model, before)


class Strict(nn.Module):
    """A network that runs at one width only, as attention that is told its width does."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.width = nn.Linear(6, 24), nn.Linear(24, 12), 24
        self.norm, self.three = nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.one(x).relu()
        assert hidden.shape[1] == self.width
        logits: Tensor = self.three(self.norm(self.two(hidden)).relu())
        return logits


def test_macs_of_a_network_that_does_not_run_are_told_from_its_layers() -> None:
    case = Case(Strict, (6,))
    model = case.build()
    first = counted(case, model)["target_macs"]
    pruner = aimed(case, model, target_macs=0.5)
    with pytest.warns(DEWarning) as caught:
        pruner.step()
    assert any("that each layer is left with" in str(w.message) for w in caught)
    model.width = model.one.out_features
    assert 0.42 * first < counted(case, model)["target_macs"] <= 0.5 * first


def test_other_pruners_and_a_pruner_from_an_importance() -> None:
    case = CASES["mlp"]
    x = case.inputs()
    for cls, data in ((DEGroupNormPruner, None), (DEPruner, DEImportance)):
        model = case.build()
        source = x if data is None else data(model, x, QUICK)
        own = {"criterion": QUICK} if data is None else {}
        first = counted(case, model)["target_params"]
        pruner: Any = cls(model, x[:1], source, target_params=0.5, ignored_layers=[last_layer(model)], **own)
        pruner.step()
        assert 0.4 * first < counted(case, model)["target_params"] <= 0.5 * first
