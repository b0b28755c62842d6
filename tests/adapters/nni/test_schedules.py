"""DE inside the host's schedules, after and beside its other compressors."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from tests.adapters.nni.training import SMALL, Simple, config, evaluator, images, simple

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nni.compression.distillation import Adaptive1dLayerwiseDistiller, DynamicLayerwiseDistiller
    from nni.compression.pruning import AGPPruner, L1NormPruner, LinearPruner, TaylorPruner
    from nni.compression.quantization import LsqQuantizer, QATQuantizer

    from de_plugin.adapters.nni import DEPruner, as_criterion, speedup

from de_plugin.assess import Problem
from de_plugin.errors import DataError, DEWarning

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:nni", "ignore::UserWarning:nni", "ignore::UserWarning:torch"
)
GROUPED = [
    {"op_names": ["conv1"], "sparse_ratio": 0.75, "dependency_group_id": "c", "internal_metric_block": 4},
    {"op_names": ["conv2"], "sparse_ratio": 0.5, "dependency_group_id": "s", "internal_metric_block": 4},
    {"op_names": ["conv3"], "sparse_ratio": 0.5, "dependency_group_id": "s"},
    {"op_names": ["fc1"], "sparse_ratio": 0.75},
]
QUANTIZED = [
    {
        "op_names": ["conv1", "fc1"],
        "target_names": ["_input_", "weight", "_output_"],
        "quant_dtype": "int8",
        "quant_scheme": "affine",
        "granularity": "default",
    }
]


def check_masks(masks: dict[str, dict[str, Any]]) -> None:
    for name, share in (("conv1", 0.75), ("conv2", 0.5), ("conv3", 0.5), ("fc1", 0.75)):
        weight = masks[name]["weight"]
        assert 1 - float(weight.mean()) == share
        assert torch.equal(weight.flatten(1).sum(1).bool().float(), masks[name]["bias"])
    assert torch.equal(*(masks[n]["weight"].sum([1, 2, 3]).bool() for n in ("conv2", "conv3")))


def test_what_the_hosts_own_tests_ask_of_its_norm_pruners() -> None:
    model = simple()
    pruner = DEPruner(model, GROUPED, batches=images(), criterion=SMALL)
    pruner.compress()
    pruner.unwrap_model()
    masks = pruner.get_masks()
    check_masks(masks)
    small: Any = speedup(model, masks, images(8))
    assert small.conv1.weight.shape[0] == 4
    assert small.conv3.weight.shape[0] == 4
    assert small.fc1.weight.shape[0] == 5
    assert small(images(8)).shape == (8, 10)


@pytest.mark.parametrize("schedule", [AGPPruner, LinearPruner])
@pytest.mark.parametrize("own", [False, True], ids=["captured", "given"])
def test_what_the_hosts_own_tests_ask_of_its_schedules(schedule: Any, own: bool) -> None:
    model, seen = simple(), list[float]()
    trainer = evaluator(model, seen)
    if own:
        inner = DEPruner(model, GROUPED, trainer, batches=images(32), criterion=SMALL)
        pruner = schedule(inner, interval_steps=4, total_times=5)
    else:
        inner = DEPruner(model, GROUPED, criterion=SMALL, samples=48)
        pruner = schedule(inner, interval_steps=4, total_times=5, evaluator=trainer)
    pruner.compress(20, None)
    pruner.unwrap_model()
    check_masks(pruner.get_masks())
    assert len(seen) == 20  # captured from the training itself, no run of its own
    reports = inner.report()
    assert len(reports) == 5
    gone = [r.removed["conv1.weight"][1] for r in reports]
    assert gone == sorted(gone)
    assert gone[-1] == 12
    assert [r.removed["conv1.weight"][0] for r in reports] == [0, *gone[:-1]]
    assert inner._read is not None
    assert sum(len(b[0]) for b in inner._read) == (32 if own else 48)
    assert not model._forward_hooks


class LightningModule(Simple):
    """Holds what trains it, as the class of this name does; nobody can copy that in the middle of a run."""

    def __init__(self) -> None:
        super().__init__()
        self._trainer: Any = (n for n in range(3))


def test_a_module_of_lightning_is_measured_without_its_trainer() -> None:
    model = LightningModule()
    runner = model._trainer
    inner = DEPruner(model, GROUPED, criterion=SMALL, samples=16)
    AGPPruner(inner, 2, 2, evaluator(model)).compress(4, None)
    check_masks(inner.get_masks())
    assert model._trainer is runner


def test_thresholds_and_global_groups_follow_a_schedule() -> None:
    model = simple()
    wanted = [
        {"op_names": ["conv1", "fc1"], "sparse_ratio": 0.5, "global_group_id": 1, "max_sparse_ratio": 0.75},
        {"op_names": ["conv3"], "sparse_threshold": 0.5},
    ]
    inner = DEPruner(model, wanted, batches=images(32), criterion=SMALL)
    AGPPruner(inner, 2, 3, evaluator(model)).compress(6, None)
    for name in ("conv1.weight", "conv3.weight", "fc1.weight"):
        gone = [r.removed[name][1] for r in inner.report()]
        assert gone == sorted(gone)
    last = {name: counts[1] for name, counts in inner.report()[-1].removed.items()}
    assert last["conv3.weight"] > 0
    # Half of the global group's 144 + 2,560 weights, by whole units of 9 and 128 and to the last that fits.
    assert 1352 - 128 < 9 * last["conv1.weight"] + 128 * last["fc1.weight"] <= 1352
    assert last["conv1.weight"] <= 12
    assert last["fc1.weight"] <= 15


def recorded(pruner: Any) -> list[dict[str, Any]]:
    """Return what will hold the masks of the weights, bool, after each step."""
    masks: list[dict[str, Any]] = []
    update = pruner.update_masks

    def look(found: Any) -> None:
        masks.append({name: targets["weight"].bool() for name, targets in found.items()})
        update(found)

    pruner.update_masks = look
    return masks


def test_pruned_units_stay_pruned_while_training_goes_on() -> None:
    model = simple()
    inner = DEPruner(model, GROUPED, batches=images(32), criterion=SMALL)
    masks = recorded(inner)
    LinearPruner(inner, 3, 4, evaluator(model, lr=0.1)).compress(12, None)
    assert len(masks) == 4
    for before, after in pairwise(found["conv1"].flatten(1).any(1) for found in masks):
        assert not bool((after & ~before).any())


def agp(many: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[Any]]:
    """Return the masks of single weights after each of two steps, and the reports."""
    monkeypatch.setattr("de_plugin.adapters.nni.order._MANY", many)
    model = simple()
    inner = DEPruner(model, config(0.5), batches=images(), criterion=SMALL, fine=True, holdout=0)
    masks = recorded(inner)
    AGPPruner(inner, 2, 2, evaluator(model, lr=0.0)).compress(4, None)
    return masks, inner.report()


def test_many_single_weights_are_chosen_anew_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    (grown, told), (anew, better) = agp(1 << 40, monkeypatch), agp(1, monkeypatch)
    came_back = 0
    for name, mask in anew[0].items():
        assert torch.equal(mask, grown[0][name])
        assert not bool((grown[1][name] & ~grown[0][name]).any())
        assert int(anew[1][name].sum()) == int(grown[1][name].sum()) == mask.numel() // 2
        came_back += int((anew[1][name] & ~mask).sum())
    assert came_back > 0
    assert better[1].after < told[1].after


def test_what_is_chosen_anew_begins_with_nothing_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("de_plugin.adapters.nni.order._MANY", 1)
    asked: list[tuple[int, bool]] = []

    class Watched:
        name, needs_gradient = "watched", False

        def __call__(self, problem: Problem, eligible: Any, count: int) -> Any:
            asked.append((count, bool(set(problem.state) - {"evaluator"})))
            return SMALL(problem, eligible, count)

    model = simple()
    inner = DEPruner(model, config(0.5), batches=images(), criterion=Watched(), fine=True, holdout=0)
    AGPPruner(inner, 2, 2, evaluator(model, lr=0.0)).compress(4, None)
    assert [learnt for _, learnt in asked] == [False] * 3
    first, more, all_of_it = (count for count, _ in asked)
    assert first + more == all_of_it


@pytest.mark.parametrize("worse", ["more", "infinite"])
def test_what_is_chosen_anew_and_no_better_is_dropped(worse: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grown, told = agp(1 << 40, monkeypatch)
    gate = Problem.gate

    def refuses(problem: Problem, population: Any, *, repair: bool = True) -> Any:
        values = gate(problem, population, repair=repair)
        if len(population) == 2:  # what has grown and what was chosen anew
            values = torch.tensor([1.0, 2.0] if worse == "more" else [float("inf")] * 2)
        return values

    monkeypatch.setattr(Problem, "gate", refuses)
    kept, left = agp(1, monkeypatch)
    for name, mask in grown[1].items():
        assert torch.equal(kept[1][name], mask)
    assert left[1].after == told[1].after


@pytest.mark.parametrize(("before", "back"), [(0, True), (1, False)])
def test_few_units_that_have_gone_stay_so(before: int, back: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = agp(1 << 40, monkeypatch)
    gone = sum(int((~mask).sum()) for mask in first[0].values())
    masks, _ = agp(gone + before, monkeypatch)
    assert any(bool((masks[1][n] & ~masks[0][n]).any()) for n in masks[0]) is back


def test_it_takes_over_from_another_pruner_with_its_masks_in_force() -> None:
    model = simple()
    first = L1NormPruner(model, [{"op_names": ["conv1"], "sparse_ratio": 0.75}])
    masks = first.compress()[1]
    second = DEPruner.from_compressor(
        first, GROUPED[1:], batches=images(), criterion=SMALL, divergence="mse", seed=3
    )
    assert second.asking.divergence == "mse"
    assert second.asking.seed == 3
    second.update_masks(second.generate_masks())
    found = second.get_masks()
    assert torch.equal(found["conv1"]["weight"], masks["conv1"]["weight"])
    check_masks(found)
    assert second.report()[0].before > 1e-4  # the teacher is the network without any masks


def test_another_compressor_takes_over_from_it() -> None:
    model = simple()
    trainer = evaluator(model)
    first = DEPruner(model, GROUPED[:1], trainer, batches=images(32), criterion=SMALL)
    second = TaylorPruner.from_compressor(first, GROUPED[3:], training_steps=4)
    second.compress(8, None)
    masks = second.get_masks()
    assert float(masks["conv1"]["weight"].mean()) == 0.25
    assert float(masks["fc1"]["weight"].mean()) == 0.25


@pytest.mark.parametrize("distiller", [DynamicLayerwiseDistiller, Adaptive1dLayerwiseDistiller])
def test_it_prunes_once_while_a_distiller_trains(distiller: Any) -> None:
    model, teacher = simple(), simple()
    trainer = evaluator(model, step=lambda batch, labels: nn.functional.nll_loss(batch, labels))
    wanted = [{"op_names": ["conv1", "fc1"], "lambda": 0.1, "apply_method": "mse"}]
    # The batch that a training step gets here are the student's logits.
    first = distiller(model, wanted, trainer, teacher, lambda batch, net: net(images(len(batch))))
    if distiller is Adaptive1dLayerwiseDistiller:
        first.track_forward(images(2))
    pruner = DEPruner.from_compressor(first, GROUPED, criterion=SMALL, samples=40)
    pruner.compress(8, None)
    check_masks(pruner.get_masks())
    assert len(pruner.report()) == 1
    assert pruner._read is not None
    assert sum(len(b[0]) for b in pruner._read) == 40


@pytest.mark.parametrize("quantizer", [QATQuantizer, LsqQuantizer])
def test_it_prunes_while_a_quantizer_trains(quantizer: Any) -> None:
    model = simple()
    pruner = DEPruner(model, GROUPED, evaluator(model), criterion=SMALL, samples=1000)
    options = {"quant_start_step": 2} if quantizer is QATQuantizer else {}
    second = quantizer.from_compressor(pruner, QUANTIZED, **options)
    second.compress(8, None)
    check_masks(pruner.get_masks())
    assert len(pruner.report()) == 1  # there were fewer samples than wished for: when the training ended


def test_a_batch_norm_that_a_quantizer_has_folded_is_there_in_the_copy() -> None:
    model = simple()
    folded = [{**QUANTIZED[0], "op_names": ["conv1"], "fuse_names": [("conv1", "bn1")]}]
    first = QATQuantizer(model, folded, evaluator(model, lr=1e-9), quant_start_step=1)
    pruner = DEPruner.from_compressor(first, GROUPED, criterion=SMALL, batches=images(32))
    pruner.compress(3, None)
    check_masks(pruner.get_masks())
    assert pruner.report()[0].before < 1e-2  # one step of training has moved the batch norms


def test_all_three_together_as_in_the_hosts_own_test() -> None:
    model, teacher = simple(), simple()
    trainer = evaluator(model)
    wanted = [{"op_names": ["fc1"], "lambda": 0.1, "apply_method": "mse"}]
    first = DynamicLayerwiseDistiller(
        model, wanted, trainer, teacher, lambda batch, net: net(images(len(batch)))
    )
    pruner = DEPruner.from_compressor(first, GROUPED, criterion=SMALL, batches=images(32))
    pruner.interval_steps, pruner.total_times = 3, 2
    last = LsqQuantizer.from_compressor(pruner, QUANTIZED)
    last.compress(9, None)
    check_masks(pruner.get_masks())
    assert len(pruner.report()) == 2


def test_a_schedule_without_any_call_of_the_model_says_so() -> None:
    model = simple()
    trainer = evaluator(model)
    trainer.training_func = lambda net, optimizer, *_: [optimizer.step() for _ in range(4)]
    pruner = AGPPruner(DEPruner(model, config(), criterion=SMALL), 2, 2, trainer)
    with pytest.raises(DataError, match="no evaluator's training has called the model"):
        pruner.compress(4, None)


def test_only_the_end_of_a_schedule_tells_what_nothing_is_pruned_of() -> None:
    wanted = [{"op_names": ["conv1"], "sparse_ratio": 0.0625}, {"op_names": ["fc1"], "sparse_ratio": 0.5}]
    for part, told in ((wanted, []), ([{**wanted[0], "sparse_ratio": 0.06}, wanted[1]], ["conv1.weight"])):
        model = simple()
        inner = DEPruner(model, part, batches=images(32), criterion="magnitude")
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always", DEWarning)
            LinearPruner(inner, 1, 3, evaluator(model)).compress(3, None)
        assert [r.removed["conv1.weight"][1] for r in inner.report()[:2]] == [0, 0]
        messages = [str(w.message) for w in found if w.category is DEWarning]
        assert len(messages) == len(told)
        assert all(name in message for name, message in zip(told, messages, strict=True))


def test_host_criteria_run_while_training_goes_on() -> None:
    model = simple()
    inner = DEPruner(model, GROUPED, batches=images(32), criterion=as_criterion(TaylorPruner))
    AGPPruner(inner, 2, 2, evaluator(model)).compress(4, None)
    check_masks(inner.get_masks())
