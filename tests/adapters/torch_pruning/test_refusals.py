"""What the host does silently wrong is refused, and nothing is left changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

from de_plugin.adapters.torch_pruning import (
    DEBNScalePruner,
    DEGroupNormPruner,
    DEGrowingRegPruner,
    DEImportance,
    DEPruner,
    register,
    unregister,
)
from de_plugin.errors import ArgumentError, DEWarning, SelectionError
from tests.adapters.torch_pruning.architectures import CASES, last_layer
from tests.adapters.torch_pruning.pruners import QUICK, pruner_of, shapes


@pytest.mark.parametrize("cls", [DEPruner, tp.pruner.BasePruner])
def test_a_split_whose_sizes_the_host_has_not_kept_up_with_is_refused(cls: Any) -> None:
    case = CASES["split"]
    model = case.build()
    pruner = pruner_of(case, model, cls, iterative_steps=2)
    pruner.step()
    before = shapes(model)
    with pytest.raises(SelectionError, match="make a new pruner for each step"):
        pruner.step()
    assert shapes(model) == before
    again = pruner_of(case, model, cls, pruning_ratio=0.25)
    again.step()
    assert model(case.inputs(3)).shape == (3, 5)


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
            {
                "pruning_ratio": 0.0,
                "prune_num_heads": True,
                "prune_head_dims": False,
                "num_heads": {nn.Linear(2, 6): 2},
                "head_pruning_ratio": 0.5,
            },
            "along with channels only",
        ),
    ],
)
def test_what_the_host_ignores_silently_is_refused(options: dict[str, Any], match: str) -> None:
    case = CASES["plain"]
    model = case.build()
    with pytest.raises(ArgumentError, match=match):
        pruner_of(case, model, **options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"target_macs": 0.5, "pruning_ratio": 0.5}, "target_macs=0.5 and pruning_ratio=0.5: .* only one"),
        ({"target_macs": 0.5, "max_divergence": 0.1}, "target_macs=0.5 and max_divergence=0.1"),
        ({"target_macs": 1}, "target_macs=1: expected a fraction"),
        ({"target_macs": -0.5}, r"in \(0, 1\)"),
        ({"target_params": "half"}, "target_params='half'"),
        ({"target_params": True}, "target_params=True"),
        ({"max_divergence": float("nan")}, "max_divergence=nan: expected a finite number above 0"),
        ({"target_params": 1e9}, "has 1165 already, so that nothing would be pruned"),
    ],
)
def test_targets_that_cannot_be_meant_are_refused(options: dict[str, Any], match: str) -> None:
    model, x = CASES["plain"].build(), CASES["plain"].inputs()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ArgumentError, match=match):
        DEPruner(model, x[:1], x, criterion=QUICK, ignored_layers=[last_layer(model)], **options)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_more_silence_that_is_broken() -> None:
    model = CASES["grouped"].build()
    with pytest.raises(ArgumentError, match="equals the groups of '2'"):
        pruner_of(CASES["grouped"], model, round_to=2)
    with pytest.raises(ArgumentError, match="give criterion=as_criterion"):
        pruner_of(CASES["mlp"], CASES["mlp"].build(), importance=tp.importance.LAMPImportance())
    x, other = CASES["mlp"].inputs(), CASES["mlp"].build()
    with pytest.raises(ArgumentError, match="a DEImportance, whose settings count, and seed beside"):
        DEPruner(other, x[:1], DEImportance(other, x, QUICK), seed=3)
    with pytest.raises(ArgumentError, match="needs calibration data"):
        DEPruner(model, CASES["grouped"].inputs(1))
    pruner = pruner_of(CASES["mlp"], CASES["mlp"].build(), pruning_ratio=0.0)
    with pytest.warns(DEWarning, match="has removed nothing"):
        pruner.step()
    one = pruner_of(CASES["mlp"], CASES["mlp"].build())
    assert one.in_channel_groups is not pruner.in_channel_groups


def test_registering_is_idempotent_and_reversible() -> None:
    assert not hasattr(tp.importance, "DEImportance")
    register()
    register()
    try:
        assert tp.importance.DEImportance is DEImportance
        for cls in (DEPruner, DEBNScalePruner, DEGroupNormPruner, DEGrowingRegPruner):
            assert getattr(tp.pruner, cls.__name__) is cls
    finally:
        unregister()
        unregister()
    assert not hasattr(tp.importance, "DEImportance")
    assert not [name for name in dir(tp.pruner) if name.startswith("DE")]
    tp.pruner.DEPruner = object
    try:
        with pytest.raises(ArgumentError, match="remove that first"):
            register()
        assert not hasattr(tp.importance, "DEImportance")
        unregister()
        assert tp.pruner.DEPruner is object
    finally:
        del tp.pruner.DEPruner


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"seed": -1}, r"\(seed=-1\): expected a whole number in \[0, 2\*\*31\)"),
        ({"seed": "a"}, r"\(seed='a'\)"),
        ({"samples": 0}, r"\(samples=0\): expected a positive whole number"),
        ({"batch_size": 0}, r"\(batch_size=0\)"),
        ({"divergence": "nope"}, "divergence='nope'"),
    ],
)
@pytest.mark.parametrize("cls", [DEImportance, DEPruner])
def test_settings_are_refused_before_a_step_is_lost(cls: Any, options: dict[str, Any], told: str) -> None:
    model: Any = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    x = torch.randn(8, 6)
    first = (model, x[:1], x) if cls is DEPruner else (model, x)
    with pytest.raises(ArgumentError, match=told):
        cls(*first, **options)
    if cls is DEPruner:
        for holdout in ("a", 2.0):
            with pytest.raises(ArgumentError, match=rf"\(holdout={holdout!r}\): expected a fraction"):
                cls(*first, holdout=holdout)
    assert model.training


def test_ratios_of_another_models_layers_are_refused() -> None:
    model, other = (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)) for _ in range(2))
    x = torch.randn(8, 6)
    for key in (other[0], (model[0], other[0])):
        with pytest.raises(ArgumentError, match="pruning_ratio_dict: a Linear among its keys is no layer"):
            DEPruner(model, x[:1], x, pruning_ratio_dict={key: 0.5}, ignored_layers=[model[2]])


def test_a_model_in_training_stays_so() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, 5)).train()
    x = torch.randn(8, 6)
    pruner = DEPruner(model, x[:1], x, criterion=QUICK, ignored_layers=[model[2]])
    assert all(m.training for m in model.modules())
    pruner.step()
    assert all(m.training for m in model.modules())
    assert model[0].out_features == 4
