"""DE takes the place of NNI's norm pruners: as many units, masks of the same form, less divergence."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tests.adapters.nni.training import SMALL, config, images, simple
from tests.adapters.torch_pruning.architectures import CASES
from tests.hashing import printed_whatever_the_hashes

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nni.compression.pruning import L1NormPruner, LevelPruner

    from de_plugin.adapters.nni import DEPruner, as_criterion
    from de_plugin.adapters.nni.alignment import aligned

from de_plugin.errors import ArgumentError, DataError, DEError
from de_plugin.prune import DirectedEvolution

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:nni", "ignore::UserWarning:nni")
NAMES = [
    "mlp",
    "plain",
    "normed",
    "flattened",
    "residual",
    "concat",
    "split",
    "depthwise",
    "grouped",
    "transposed",
    "shared",
    "group_norm",
    "vit",
    "gqa",
    "lstm",
]
WITH_L1 = DirectedEvolution(
    criteria=(as_criterion(L1NormPruner), "magnitude", "activation"),
    population=8,
    generations=2,
    samples=64,
    swaps=SMALL.swaps,
)


def case_config(model: Any, ratio: float = 0.5, **more: Any) -> list[dict[str, Any]]:
    last = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    return [{"op_types": ["Conv2d", "Linear"], "sparse_ratio": ratio, "exclude_op_names": [last], **more}]


def kl(student: Any, teacher: Any, x: Any) -> float:
    with torch.no_grad():
        logits, wanted = (F.log_softmax(m.eval()(x), -1) for m in (student, teacher))
    return float(F.kl_div(logits, wanted, reduction="batchmean", log_target=True))


def zeros(masks: dict[str, dict[str, Any]]) -> dict[tuple[str, str], int]:
    return {
        (m, t): int((mask == 0).sum())
        for m, targets in masks.items()
        for t, mask in targets.items()
        if mask is not None
    }


@pytest.mark.parametrize("name", NAMES)
def test_as_many_go_as_in_the_hosts_own_and_less_is_lost(name: str) -> None:
    case = CASES[name]
    x, teacher = case.inputs(48), case.build()
    theirs = L1NormPruner(case.build(), case_config(teacher)).compress()[1]
    pruner = DEPruner(case.build(), case_config(teacher), batches=x, criterion=WITH_L1, holdout=0.0)
    ours = pruner.compress()[1]
    assert zeros(ours) == zeros(theirs)
    assert all(
        m.dtype == theirs[n][t].dtype for n, ts in ours.items() for t, m in ts.items() if m is not None
    )
    report = pruner.report()[0]
    other = DEPruner(case.build(), case_config(teacher), batches=x, criterion=as_criterion(L1NormPruner))
    assert report.before == pytest.approx(0, abs=1e-6)
    assert zeros(other.compress()[1]) == zeros(theirs)
    assert report.after <= other.report()[0].after + 1e-9
    assert report.after > 0


@pytest.mark.parametrize("name", NAMES)
def test_as_many_single_weights_go_as_in_the_hosts_own_and_no_more_is_lost(name: str) -> None:
    case = CASES[name]
    x, teacher = case.inputs(48), case.build()
    theirs = LevelPruner(case.build(), case_config(teacher)).compress()[1]
    level = as_criterion(LevelPruner)

    def pruned(criterion: Any) -> DEPruner:
        model = case.build()
        pruner = DEPruner(model, case_config(model), batches=x, criterion=criterion, holdout=0.0, fine=True)
        assert zeros(pruner.compress()[1]) == zeros(theirs)
        return pruner

    ours = pruned(dataclasses.replace(SMALL, criteria=(level, "magnitude"))).report()[0]
    assert 0 < ours.after <= pruned(level).report()[0].after + 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_layers_of_a_global_group_lose_their_share_together(name: str) -> None:
    case = CASES[name]
    model = case.build()
    pruner = DEPruner(
        model, case_config(model, global_group_id="all"), batches=case.inputs(48), criterion=SMALL
    )
    weights = [ts["weight"] for ts in pruner.compress()[1].values() if ts.get("weight") is not None]
    total, gone = sum(m.numel() for m in weights), sum(int((m == 0).sum()) for m in weights)
    units = [max(m[0].numel(), m[:, 0].numel()) for m in weights]
    assert 0.5 * total - sum(units) < gone <= 0.5 * total


@pytest.mark.parametrize("name", ["mlp", "plain", "normed", "residual", "concat", "grouped"])
def test_the_report_measures_what_the_speed_up_will_make(name: str) -> None:
    case = CASES[name]
    x, model = case.inputs(48), case.build()
    pruner = DEPruner(model, case_config(model), batches=x, criterion="magnitude")
    masks = pruner.compress()[1]
    pruner.unwrap_model()
    found = kl(aligned(model, masks, x), case.build(), x)
    assert pruner.report()[0].after == pytest.approx(found, rel=1e-3, abs=1e-6)


def test_the_hosts_criterion_inside_chooses_what_the_host_chooses() -> None:
    ours = DEPruner(simple(), config(), batches=images(), criterion=as_criterion(L1NormPruner)).compress()[1]
    theirs = L1NormPruner(simple(), config()).compress()[1]
    for name, targets in theirs.items():
        for target, mask in targets.items():
            assert torch.equal(ours[name][target], mask), (name, target)


def test_without_alignment_the_masked_model_is_measured_as_it_is() -> None:
    x, model = images(), simple()
    pruner = DEPruner(model, config(0.5), batches=x, criterion="magnitude", align=False)
    pruner.compress()
    assert pruner.report()[0].after == pytest.approx(kl(model, simple(), x), rel=1e-3)


def test_it_leaves_the_model_alone_but_for_the_hosts_wrappers() -> None:
    model = simple().train()
    model.bn2.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pruner = DEPruner(model, config(), batches=images(), criterion=SMALL)
    state = torch.random.get_rng_state()
    pruner.compress()
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.training
    assert model.conv1.training
    assert not model.bn2.training
    pruner.unwrap_model()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    assert all(p.grad is None for p in model.parameters())


class Boom:
    name, needs_gradient = "boom", False

    def __call__(self, problem: Any, eligible: Any, count: int) -> Any:
        with torch.no_grad():
            problem.model.conv1.weight.zero_()
        raise RuntimeError("boom")


def test_a_failing_search_leaves_masks_and_values_as_they_were() -> None:
    model = simple().train()
    pruner = DEPruner(model, config(), batches=images(), criterion=Boom())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="boom"):
        pruner.compress()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert pruner.report() == []
    pruner.criterion = SMALL
    pruner.compress()
    assert len(pruner.report()) == 1


def test_pruning_once_more_goes_on_from_there_and_back() -> None:
    pruner = DEPruner(simple(), config(0.25), batches=images(), criterion=SMALL)
    spaces = [s for ts in pruner._target_spaces.values() for s in ts.values() if s.sparse_ratio is not None]
    first = pruner.compress()[1]
    again = pruner.compress()[1]
    for ratio in (0.75, 0.5):
        for space in spaces:
            space.sparse_ratio = ratio
        pruner.compress()
    more, less = (report.removed for report in pruner.report()[-2:])
    for name in ("conv1", "conv2", "fc1"):
        assert torch.equal(first[name]["weight"], again[name]["weight"])
        was, now, count = more[f"{name}.weight"]
        assert (was, now) == (count // 4, 3 * count // 4)
        was, now, count = less[f"{name}.weight"]
        assert (was, now) == (3 * count // 4, count // 2)
    assert pruner.report()[1].before == pytest.approx(pruner.report()[0].after)
    assert pruner.report()[3].after < pruner.report()[3].before


@pytest.mark.filterwarnings("ignore:config_list. nothing is pruned")
@given(ratio=st.floats(0, 1), name=st.sampled_from(["conv1", "conv2", "fc1"]))
@settings(deadline=None, max_examples=15)
def test_any_ratio_takes_as_many_as_the_host_would(ratio: float, name: str) -> None:
    wanted = [{"op_names": [name], "sparse_ratio": ratio}]
    ours = DEPruner(simple(), wanted, batches=images(8), criterion="magnitude", holdout=0.0).compress()[1]
    assert zeros(ours) == zeros(L1NormPruner(simple(), wanted).compress()[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_and_an_outer_no_grad(dtype: torch.dtype) -> None:
    with torch.no_grad():
        pruner = DEPruner(simple().to(dtype), config(0.5), batches=images(32).to(dtype), criterion=SMALL)
        masks = pruner.compress()[1]
    assert masks["conv1"]["weight"].dtype == dtype
    assert zeros(masks) == zeros(L1NormPruner(simple(), config(0.5)).compress()[1])


_SCRIPT = """
import warnings; warnings.simplefilter("ignore")
from tests.adapters.nni.test_pruner import *
from tests.adapters.nni.test_config import GROUPED
masks = DEPruner(simple(), GROUPED, batches=images(), criterion=SMALL, seed=5).compress()[1]
wanted = [{"op_types": ["Conv2d", "Linear"], "sparse_ratio": 0.5, "global_group_id": 1}]
more = DEPruner(simple(), wanted, batches=images(), criterion=SMALL, seed=5).compress()[1]
found = [(n, t, m) for x in (masks, more) for n, ts in x.items() for t, m in ts.items()]
print([(n, t, m.flatten().int().tolist()) for n, t, m in found])
"""


def test_it_does_not_depend_on_the_seed_of_hashes() -> None:
    assert "conv2" in printed_whatever_the_hashes(_SCRIPT)


def test_missing_data_and_wrong_options_are_told() -> None:
    wrong: Any = "net"
    misspelt: dict[str, Any] = {"sample": 4}
    pruner = DEPruner(simple(), config(), criterion="magnitude")
    with pytest.raises(DataError, match=r"batches: none are given.*TorchEvaluator"):
        pruner.compress()
    with pytest.raises(ArgumentError, match="samples=0"):
        DEPruner(simple(), config(), batches=images(), samples=0)
    with pytest.raises(ArgumentError, match="magnitud"):
        DEPruner(simple(), config(), batches=images(), criterion="magnitud")
    with pytest.raises(ArgumentError, match="model='net'"):
        DEPruner(wrong, config(), batches=images())
    with pytest.raises(TypeError, match="sample"):
        DEPruner(simple(), config(), batches=images(), **misspelt)
    pruner = DEPruner(simple(), config(), batches=torch.randn(4, 3, 8, 8))
    with pytest.raises(DEError, match="cannot take the inputs"):
        pruner.compress()
