"""Config lists that cannot work, or would do nothing, are refused before anything is changed."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from tests.adapters.nni.training import GROUPED, WEIGHT, images, simple

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nni.compression.pruning import L1NormPruner

    from de_plugin.adapters.nni import DEPruner

from de_plugin.errors import ArgumentError, DEError, SelectionError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:nni", "ignore::UserWarning:nni")


@pytest.mark.parametrize(
    ("wanted", "kind", "message"),
    [
        ([], ArgumentError, r"config_list=\[\]: expected a list"),
        ([{"op_names": ["conv9"], "sparse_ratio": 0.5}], SelectionError, "'conv9'.*did you mean.*conv"),
        (
            [{"op_types": ["Conv2d"], "exclude_op_names": ["fc"], "sparse_ratio": 0.5}],
            SelectionError,
            "exclude_op_names has 'fc'",
        ),
        (
            [{"op_types": ["Conv4d"], "sparse_ratio": 0.5}],
            SelectionError,
            "selects no module.*Conv2d, Linear",
        ),
        ([{"op_names_re": ["x.*"], "sparse_ratio": 0.5}], SelectionError, "selects no module"),
        ([{"op_types": ["Conv2d"], "sparse_ratio": 1}], ArgumentError, "sparse_ratio.*float"),
        ([{"op_types": ["Conv2d"], "sparse_ratio": 1.5}], ArgumentError, r"sparse_ratio=1.5.*\[0, 1\]"),
        ([{"op_types": ["Conv2d"], "sparse_ration": 0.5}], ArgumentError, "sparse_ration"),
        ([{"op_types": ["Conv2d"]}], ArgumentError, "prunes nothing.*sparse_ratio"),
        (
            [{**WEIGHT, "sparse_ratio": 0.5, "target_settings": {"weight": {"sparse_threshold": 0.1}}}],
            ArgumentError,
            "multiple keys present.*an entry for each",
        ),
        (
            [{"op_types": ["Conv2d"], "sparse_ratio": 0.5, "min_sparse_ratio": 0.6, "max_sparse_ratio": 0.5}],
            ArgumentError,
            "min_sparse_ratio=0.6 is above",
        ),
        ([{**WEIGHT, "sparse_ratio": 0.5, "granularity": [5]}], ArgumentError, r"granularity=\[5\].*divide"),
        (
            [{**WEIGHT, "target_names": ["weights"], "sparse_ratio": 0.5}],
            SelectionError,
            "'weights', which is no target of Conv2d",
        ),
        (
            [{**WEIGHT, "target_names": ["_input_"], "target_settings": {"_input_": {"sparse_ratio": 0.5}}}],
            ArgumentError,
            "inputs and outputs hold no values",
        ),
        (
            [{**WEIGHT, "target_names": ["bias"], "sparse_ratio": 0.5}],
            ArgumentError,
            "prunes nothing",
        ),
        (
            [
                {"op_names": ["conv1"], "target_names": ["bias"]},
                {"op_names": ["fc1"], "sparse_ratio": 0.5},
            ],
            ArgumentError,
            "conv1.weight is not pruned",
        ),
        (
            [{"op_names": ["conv1", "conv2"], "sparse_ratio": 0.5, "dependency_group_id": 1}],
            ArgumentError,
            r"\(8, 1, 1, 1\), \(16, 1, 1, 1\) units, expected the same",
        ),
        (
            [
                {"op_names": ["conv2"], "sparse_ratio": 0.5, "dependency_group_id": 1},
                {"op_names": ["conv3"], "sparse_ratio": 0.25, "dependency_group_id": 1},
            ],
            ArgumentError,
            r"expected one sparse_ratio for all of it, got \[0.25, 0.5\]",
        ),
        ([{**GROUPED[0], "internal_metric_block": 3}], ArgumentError, "does not divide 8"),
        (
            [{"op_types": ["Conv2d"], "sparse_ratio": 1.0, "global_group_id": 1}],
            ArgumentError,
            "global_group_id=1.*sparse_ratio=1.0.*give them one, or a smaller sparse_ratio",
        ),
        (
            [
                {"op_names": ["conv1"], "sparse_ratio": 0.999, "global_group_id": 1, "max_sparse_ratio": 0.5},
                {"op_names": ["conv3"], "sparse_ratio": 0.999, "global_group_id": 1},
            ],
            ArgumentError,
            "sparse_ratio=0.999 is all that may go",
        ),
        ([{**WEIGHT, "sparse_threshold": -0.1}], ArgumentError, "sparse_threshold=-0.1, expected.*> 0"),
        ([{**WEIGHT, "sparse_threshold": 0.0}], ArgumentError, "sparse_threshold=0.0.*give sparse_ratio"),
        ([{**GROUPED[0], "max_sparse_ratio": 0.25}], ArgumentError, "ratio=0.5 and max_sparse_ratio=0.25"),
        ([{**GROUPED[0], "min_sparse_ratio": 0.75}], ArgumentError, "ratio=0.5 and min_sparse_ratio=0.75"),
        (
            [{**GROUPED[0], "global_group_id": "g"}],
            ArgumentError,
            "conv2.weight: has dependency_group_id='sum' and global_group_id='g'.*give one",
        ),
        (
            [{**WEIGHT, "sparse_ratio": 0.5, "internal_metric_block": 4}],
            ArgumentError,
            "internal_metric_block=4 counts in a dependency group only",
        ),
    ],
)
def test_what_cannot_work_is_refused_and_the_model_left_as_it_was(
    wanted: list[Any], kind: type[DEError], message: str
) -> None:
    model = simple()
    before = dict(model.named_parameters())
    with pytest.raises(kind, match=message):
        DEPruner(model, wanted, batches=images())
    after = dict(model.named_parameters())
    assert list(before) == list(after)
    assert all(before[n] is after[n] for n in before)
    assert not any("forward" in vars(m) for m in model.modules())


def test_modules_that_the_host_does_not_know_are_told() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    with pytest.raises(SelectionError, match=r"no settings for LayerNorm \('1'\).*PruningSetting.register"):
        DEPruner(model, [{"op_types": ["LayerNorm"], "sparse_ratio": 0.5}], batches=torch.randn(4, 4))


def test_a_wrapped_model_is_told_what_to_do() -> None:
    model = simple()
    first = L1NormPruner(model, [{"op_names": ["conv1"], "sparse_ratio": 0.5}])
    with pytest.raises(ArgumentError, match="conv1 is wrapped.*from_compressor"):
        DEPruner(model, GROUPED[:2], batches=images())
    with pytest.raises(ArgumentError, match="earlier compressor"):
        DEPruner.from_compressor(first, [{"op_names": ["conv1"], "sparse_ratio": 0.5}], batches=images())
    assert first._is_wrapped
    assert hasattr(model.conv1, "_nni_wrapper")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "nope"}, "divergence='nope': expected one of kl"),
        ({"divergence": 3}, "divergence=3"),
        ({"holdout": 2.0}, r"holdout=2.0.*\[0, 1\)"),
        ({"holdout": float("nan")}, "holdout=nan"),
        ({"holdout": "a"}, "holdout='a'"),
        ({"seed": "a"}, "seed='a'.*whole number"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**32}, "seed=4294967296"),
        ({"samples": 0}, "samples=0"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"evaluator": images(4)}, "a Tensor, expected an evaluator of NNI.*batches=data"),
    ],
)
def test_other_arguments_are_refused_before_the_model_is_wrapped(options: Any, message: str) -> None:
    model = simple()
    with pytest.raises(ArgumentError, match=message):
        DEPruner(model, [{**WEIGHT, "sparse_ratio": 0.5}], **options)
    assert not any("_nni_wrapper" in m._modules or "forward" in vars(m) for m in model.modules())
