"""Every key of a config list counts, as it does in the host."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from tests.adapters.nni.training import GROUPED as SUM
from tests.adapters.nni.training import SMALL, WEIGHT, images, simple
from tests.adapters.torch_pruning.architectures import CASES

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nni.compression.pruning import L1NormPruner, LevelPruner

    from de_plugin.adapters.nni import DEPruner, as_criterion

from de_plugin.errors import ArgumentError, DEWarning, SelectionError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:nni", "ignore::UserWarning:nni")
GROUPED = [*SUM, {"op_names": ["conv1"], "sparse_ratio": 0.25}]


def compress(wanted: list[dict[str, Any]], **options: Any) -> tuple[Any, dict[str, dict[str, Any]]]:
    pruner = DEPruner(simple(), wanted, **{"batches": images(), "criterion": SMALL, **options})
    return pruner, pruner.compress()[1]


def zeros(masks: dict[str, dict[str, Any]]) -> dict[tuple[str, str], int]:
    return {
        (m, t): int((x == 0).sum())
        for m, targets in masks.items()
        for t, x in targets.items()
        if x is not None
    }


@pytest.mark.parametrize(
    "wanted",
    [
        [{"op_types": ["Conv2d"], "sparse_ratio": 0.3}],
        [{"op_names_re": ["conv.*"], "exclude_op_names": ["conv3"], "sparse_ratio": 0.5}],
        [{"op_types": ["Conv2d", "Linear"], "exclude_op_types": ["Linear"], "sparse_ratio": 0.5}],
        [{"op_types": ["Conv2d"], "exclude_op_names_re": [".*[13]"], "sparse_ratio": 0.5}],
        [{"op_types": ["Linear"], "sparse_ratio": 0.9, "max_sparse_ratio": 0.4}],
        [{"op_types": ["Linear"], "sparse_ratio": 0.1, "min_sparse_ratio": 0.4}],
        [{"op_names": ["conv1"], "sparse_ratio": 0.0}, {"op_names": ["fc1"], "sparse_ratio": 0.5}],
        [{"op_names": ["conv1"], "sparse_ratio": 1.0}],
        [{"op_names": ["conv1", "fc1"], "sparse_ratio": 0.5, "granularity": "out_channel"}],
        [{**WEIGHT, "op_names": ["conv3", "fc1"], "sparse_ratio": 0.5, "granularity": "in_channel"}],
        [{"op_names": ["conv3", "fc1"], "sparse_ratio": 0.5, "granularity": [1]}],
        [{**WEIGHT, "op_names": ["fc1"], "sparse_ratio": 0.5, "granularity": [4, 2]}],
        [{"op_names": ["conv3"], "sparse_ratio": 0.5, "granularity": [[2], "back"]}],
        [{"op_names": ["conv3"], "sparse_ratio": 0.5, "granularity": [[2, 4], "back", -1]}],
        [{"op_types": ["BatchNorm2d"], "sparse_ratio": 0.5}],
        [{"op_names": ["conv1"], "target_settings": {"weight": {"sparse_ratio": 0.75}}}],
        [{"op_names": ["fc1"], "target_names": ["bias"], "target_settings": {"bias": {"sparse_ratio": 0.5}}}],
        [
            {"op_names": ["fc1"], "target_names": ["weight"], "sparse_ratio": 0.25},
            {
                "op_names": ["fc1"],
                "target_names": ["bias"],
                "target_settings": {"bias": {"sparse_ratio": 0.5}},
            },
        ],
        [{"op_names": ["conv1"], "sparse_ratio": 0.5, "apply_method": "bypass"}],
        [{"op_names": ["conv1"], "sparse_ratio": 0.5, "apply_method": "add"}],
        GROUPED,
        [{"op_names": ["conv1"], "sparsity": 0.5}, {"op_names": ["fc1"], "sparsity": 0.25}],
    ],
)
def test_as_many_go_as_in_the_hosts_own(wanted: list[dict[str, Any]]) -> None:
    pruner, masks = compress(wanted)
    theirs = L1NormPruner(simple(), wanted).compress()[1]
    assert zeros(masks) == zeros(theirs)
    assert all(
        masks[n][t].shape == x.shape for n, ts in theirs.items() for t, x in ts.items() if x is not None
    )
    assert set(pruner.report()[0].removed)


def test_parts_of_a_dependency_group_lose_equally_many_and_the_same() -> None:
    _, masks = compress(GROUPED)
    gone = [masks[n]["weight"].sum([1, 2, 3]) == 0 for n in ("conv2", "conv3")]
    assert torch.equal(*gone)
    assert gone[0].reshape(4, 2).sum(1).tolist() == [1, 1, 1, 1]


def test_fine_stands_for_single_weights() -> None:
    wanted = [{"op_types": ["Conv2d", "Linear"], "sparse_ratio": 0.7}]
    _, masks = compress(wanted, fine=True)
    theirs = LevelPruner(simple(), wanted).compress()[1]
    for name, targets in theirs.items():
        assert int(masks[name]["weight"].sum()) == int(targets["weight"].sum())
        assert masks[name]["weight"].flatten(1).any(1).float().tolist() == masks[name]["bias"].tolist()


def test_a_global_group_finds_the_allocation_and_keeps_to_caps() -> None:
    wanted = [{"op_types": ["Conv2d", "Linear"], "sparse_ratio": 0.5, "global_group_id": 0}]
    pruner, masks = compress(wanted)
    total = sum(masks[n]["weight"].numel() for n in masks)
    gone = sum(int((masks[n]["weight"] == 0).sum()) for n in masks)
    grain = max(masks[n]["weight"][0].numel() for n in masks)
    assert total // 2 - 2 * grain <= gone <= total // 2
    capped = [{**wanted[0], "max_sparse_ratio": 0.6, "min_sparse_ratio": 0.3}]
    pruner, masks = compress(capped)
    shares = [1 - float(masks[n]["weight"].mean()) for n in masks]
    assert max(shares) <= 0.6
    assert min(shares) >= 0.2
    assert pruner.report()[0].after > 0


def test_a_global_group_of_one_size_takes_exactly_its_share() -> None:
    wanted = [
        {"op_names": ["conv1", "fc1"], "sparse_ratio": 0.4, "global_group_id": "g", "granularity": [1]},
        {"op_names": ["fc2"], "sparse_ratio": 0.4, "global_group_id": "h", "granularity": [1]},
    ]
    _, masks = compress(wanted)
    found = {n: int((masks[n]["weight"] == 0).sum()) for n in masks}
    total = masks["conv1"]["weight"].numel() + masks["fc1"]["weight"].numel()
    assert found["conv1"] + found["fc1"] == int(total * 0.4)
    assert found["fc2"] == int(200 * 0.4)
    theirs = zeros(L1NormPruner(simple(), wanted).compress()[1])
    assert theirs["conv1", "weight"] + theirs["fc1", "weight"] == int(total * 0.4)


@pytest.mark.parametrize(("ratio", "low", "high", "wanted"), [(0.1, 0.25, 1.0, 0.25), (0.9, 0.0, 0.5, 0.5)])
def test_a_global_group_out_of_bounds_takes_them(
    ratio: float, low: float, high: float, wanted: float
) -> None:
    config = {"op_names": ["conv1", "conv2"], "sparse_ratio": ratio, "global_group_id": 0}
    _, masks = compress([{**config, "min_sparse_ratio": low, "max_sparse_ratio": high}])
    assert [1 - float(masks[n]["weight"].mean()) for n in masks] == [wanted, wanted]


def test_a_threshold_is_a_divergence_that_is_almost_reached() -> None:
    wanted = [{"op_types": ["Conv2d", "Linear"], "exclude_op_names": ["fc2"], "sparse_threshold": 0.02}]
    pruner, masks = compress(wanted, holdout=0.0)
    report = pruner.report()[0]
    gone = sum(now for _, now, _ in report.removed.values())
    assert 0.004 < report.after < 0.02
    assert gone == sum(int((masks[n]["bias"] == 0).sum()) for n in masks) > 5
    wider, _ = compress([{**wanted[0], "sparse_threshold": 0.1}], holdout=0.0)
    assert sum(now for _, now, _ in wider.report()[0].removed.values()) > gone
    with pytest.warns(
        DEWarning, match=r"nothing is pruned of conv1.weight.*sparse_threshold=1e-12: any unit"
    ):
        none, _ = compress([{**wanted[0], "sparse_threshold": 1e-12}])
    assert {now for _, now, _ in none.report()[0].removed.values()} == {0}


def test_thresholds_keep_to_their_bounds_and_come_after_ratios() -> None:
    wanted = [
        {"op_names": ["conv1"], "sparse_ratio": 0.5},
        {"op_names": ["conv2"], "sparse_threshold": 9.0, "max_sparse_ratio": 0.5},
        {"op_names": ["conv3"], "sparse_threshold": 1e-12, "min_sparse_ratio": 0.25},
        {"op_names": ["fc1"], "sparse_threshold": 0.05},
    ]
    pruner, masks = compress(wanted)
    assert zeros(masks)["conv1", "bias"] == 8
    assert zeros(masks)["conv2", "bias"] == 4
    assert zeros(masks)["conv3", "bias"] == 2
    assert pruner.report()[0].removed["fc1.weight"][1] == zeros(masks)["fc1", "bias"]


def test_batch_norms_can_be_aligned_by_the_config_list() -> None:
    follow = {"align": {"module_name": "conv1", "target_name": "weight", "dims": [0]}}
    wanted: list[dict[str, Any]] = [
        {"op_names": ["conv1"], "sparse_ratio": 0.5},
        {"op_names": ["bn1"], "target_settings": {"weight": follow, "bias": follow}},
    ]
    _, masks = compress(wanted)
    assert torch.equal(masks["bn1"]["weight"], masks["conv1"]["bias"])
    assert torch.equal(masks["bn1"]["bias"], masks["conv1"]["bias"])


def test_a_transposed_convolution_loses_outputs_along_its_second_dimension() -> None:
    model, x = CASES["transposed"].build(), CASES["transposed"].inputs(16)
    name = next(n for n, m in model.named_modules() if isinstance(m, nn.ConvTranspose2d))
    follow = {"align": {"module_name": None, "target_name": "weight", "dims": [1]}}
    wanted = {"op_names": [name], "sparse_ratio": 0.5, "granularity": "in_channel"}
    with pytest.raises(ArgumentError, match=r"outputs of a transposed convolution are dimension 1"):
        DEPruner(model, [wanted], batches=x)
    pruner = DEPruner(
        model, [{**wanted, "target_settings": {"bias": follow}}], batches=x, criterion="magnitude"
    )
    masks = pruner.compress()[1]
    assert masks[name]["weight"].sum([0, 2, 3]).bool().float().tolist() == masks[name]["bias"].tolist()
    assert 0 < float(masks[name]["bias"].sum()) < masks[name]["bias"].numel()


def test_a_shared_module_is_pruned_by_one_of_its_names() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
            self.two, self.last = self.one, nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.last(self.norm(self.two(self.one(x).relu())))
            return logits

    wanted = {"op_types": ["Linear"], "sparse_ratio": 0.5}
    with pytest.raises(SelectionError, match="one module by two names, 'one' and 'two'"):
        DEPruner(Twice(), [wanted], batches=torch.randn(16, 6))
    once = [{**wanted, "exclude_op_names": ["two", "last"]}]
    _, masks = DEPruner(Twice(), once, batches=torch.randn(16, 6), criterion="magnitude").compress()
    assert zeros(masks) == {("one", "weight"): 18, ("one", "bias"): 3}


def test_the_hosts_criterion_ranks_groups_as_the_host_does() -> None:
    _, ours = compress(GROUPED, criterion=as_criterion(L1NormPruner))
    theirs = L1NormPruner(simple(), GROUPED).compress()[1]
    for name, targets in theirs.items():
        assert torch.equal(ours[name]["weight"], targets["weight"]), name


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            [{"op_names": ["conv1"], "sparse_ratio": 0.01}],
            r"conv1.weight \(16 units\) by sparse_ratio=0.01: one",
        ),
        (
            [{"op_names": ["conv1"], "sparse_ratio": 0.5, "max_sparse_ratio": 0.05}],
            r"conv1.weight \(16 units\) by sparse_ratio=0.5, max_sparse_ratio=0.05: one unit",
        ),
        (
            [{"op_names": ["conv2", "conv3"], "sparse_ratio": 0.1, "dependency_group_id": 1}],
            r"conv2.weight \+ conv3.weight \(8 units\) by sparse_ratio=0.1",
        ),
        (
            [{"op_names": ["conv2", "conv3"], "sparse_ratio": 0.01, "global_group_id": 1}],
            r"conv2.weight \(8 units\), conv3.weight \(8 units\) by sparse_ratio=0.01",
        ),
    ],
)
def test_a_setting_that_removes_nothing_is_told(wanted: list[dict[str, Any]], message: str) -> None:
    both = [*wanted, {"op_names": ["fc1"], "sparse_ratio": 0.5}]
    with pytest.warns(
        DEWarning, match=f"^config_list: nothing is pruned of {message}[^;]*; ask for more"
    ) as told:
        _, masks = compress(both, criterion="magnitude")
    assert [w.filename for w in told] == [__file__]
    assert zeros(masks)["fc1", "bias"] == 10
