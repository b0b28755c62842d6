"""NNI's pruners as criteria: the host's own order, inside the engine and inside DEPruner."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from tests.adapters.nni.training import SMALL, config, evaluator, images, simple

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import nni
    from nni.compression.pruning import (
        AGPPruner,
        FPGMPruner,
        L1NormPruner,
        L2NormPruner,
        LevelPruner,
        MovementPruner,
        SlimPruner,
        TaylorPruner,
    )
    from nni.compression.utils import TorchEvaluator

    from de_plugin.adapters.nni import DEPruner, as_criterion

from de_plugin import blend, nest, prune
from de_plugin.assess.problem import Problem
from de_plugin.errors import ArgumentError, DEError, GradientError
from de_plugin.prune import DirectedEvolution
from de_plugin.testing import check_criterion
from de_plugin.testing.problems import small_problem

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:nni", "ignore::UserWarning:nni", "ignore:batches. .* too few to hold"
)
RANKING = [LevelPruner, L1NormPruner, L2NormPruner, FPGMPruner, TaylorPruner, SlimPruner]


def make(granularity: str) -> Any:
    return lambda: small_problem(granularity=granularity)


@pytest.mark.parametrize(
    ("pruner", "granularity"),
    [(p, g) for p in RANKING for g in ("weight", "channel") if (p, g) != (FPGMPruner, "weight")],
)
def test_they_keep_the_contract_of_criteria(pruner: Any, granularity: str) -> None:
    check_criterion(as_criterion(pruner), make(granularity))


@pytest.mark.parametrize(("pruner", "p"), [(L1NormPruner, 1), (L2NormPruner, 2)])
def test_norms_are_the_hosts(pruner: Any, p: int) -> None:
    problem = Problem(simple().eval(), images(8), granularity="channel", holdout=0.0)
    scores = as_criterion(pruner)(problem, problem.eligible, 4)
    for layer in problem.units.layers:
        wanted = layer.parameter.detach().flatten(1).norm(p=p, dim=1).double()
        torch.testing.assert_close(scores[layer.start : layer.stop], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pruner", [LevelPruner, L1NormPruner, L2NormPruner, FPGMPruner])
def test_inside_the_pruner_they_choose_what_the_host_chooses(pruner: Any) -> None:
    fine = pruner is LevelPruner
    ours = DEPruner(
        simple(), config(), batches=images(8), criterion=as_criterion(pruner), fine=fine, holdout=0.0
    )
    masks = ours.compress()[1]
    theirs = pruner(simple(), config()).compress()[1]
    for name, targets in theirs.items():
        assert torch.equal(masks[name]["weight"], targets["weight"]), name


@pytest.mark.parametrize("granularity", ["in_channel", [[2], "back"], [[2, 4], "back", -1], [1]])
def test_blocks_are_ranked_as_the_host_ranks_them(granularity: Any) -> None:
    wanted = [
        {"op_names": ["conv3"], "target_names": ["weight"], "sparse_ratio": 0.5, "granularity": granularity}
    ]
    ours = DEPruner(simple(), wanted, batches=images(8), criterion=as_criterion(L1NormPruner), holdout=0.0)
    theirs = L1NormPruner(simple(), wanted).compress()[1]
    assert torch.equal(ours.compress()[1]["conv3"]["weight"], theirs["conv3"]["weight"])


def test_taylor_is_the_hosts_on_the_same_batches() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    x, y = torch.randn(32, 6), torch.arange(32) % 4
    problem = Problem(model, (x, y), granularity="channel", holdout=0.0)
    scores = as_criterion(TaylorPruner, batch_size=32)(problem, problem.eligible, 4)
    loss = nn.functional.cross_entropy(model(x), y)
    for layer, gradient in zip(
        problem.units.layers,
        torch.autograd.grad(loss, [x.parameter for x in problem.units.layers]),
        strict=True,
    ):
        wanted = (layer.parameter.detach() * gradient).square().sum(1).double()
        torch.testing.assert_close(scores[layer.start : layer.stop], wanted, rtol=1e-4, atol=1e-9)


def test_they_nest_and_blend_with_the_search() -> None:
    de = DirectedEvolution(
        (as_criterion(L1NormPruner), "magnitude"), population=4, generations=1, samples=32, swaps=SMALL.swaps
    )
    for made in (nest(de, as_criterion(L1NormPruner)), blend({as_criterion(L2NormPruner): 1, "random": 0.1})):
        model = simple().eval()
        report = prune(model, images(32), 0.5, granularity="channel", criterion=made)
        assert report is not None
        pruner = DEPruner(simple(), config(0.5), batches=images(32), criterion=made)
        pruner.compress()
        assert pruner.report()[0].after > 0
    assert nest(DirectedEvolution(), as_criterion(L1NormPruner)).name == "nest(de, L1NormPruner)"
    check_criterion(nest("magnitude", as_criterion(L1NormPruner)), make("channel"))


def test_an_own_evaluator_is_made_for_the_copy() -> None:
    made: list[Any] = []

    def build(model: nn.Module) -> Any:
        made.append(model)
        return evaluator(model, lr=0.0)

    chosen = as_criterion(SlimPruner, evaluator=build, training_steps=3, regular_scale=0.1)
    assert not chosen.needs_gradient
    model = simple().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    problem = Problem(model, images(16), granularity="channel", divergence="mse")
    scores = chosen(problem, problem.eligible, 4)
    assert len(scores.unique()) > 10
    assert made[0] is not model
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    wrong = as_criterion(SlimPruner, evaluator=lambda _: 3)
    with pytest.raises(ArgumentError, match="gave 3, expected an Evaluator"):
        wrong(problem, problem.eligible, 4)


def test_what_has_no_slope_is_told() -> None:
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 1)
    ).eval()  # no logits: the divergence
    problem = Problem(model, torch.randn(16, 2, 8), granularity="channel", divergence="mse")
    with pytest.raises(GradientError, match=r"no slope there.*evaluator=fn"):
        as_criterion(TaylorPruner)(problem, problem.eligible, 1)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("L1NormPruner",), {}, "expected a pruner class of NNI"),
        ((nn.Linear,), {}, "expected a pruner class of NNI"),
        ((AGPPruner,), {}, "only schedules another pruner"),
        ((MovementPruner,), {}, "MovementPruner: learns its scores while .* give TaylorPruner"),
        ((DEPruner,), {}, "the engine's own criterion, DirectedEvolution"),
        ((L1NormPruner,), {"p": 2}, "p: is no option of L1NormPruner; it takes none"),
        ((SlimPruner,), {"scale": 2}, "takes training_steps, regular_scale"),
        ((TaylorPruner,), {"samples": 0}, "samples=0"),
        ((L1NormPruner,), {"evaluator": lambda m: None}, "L1NormPruner does not train"),
        ((TaylorPruner,), {"evaluator": 3}, "expected a function that makes one"),
    ],
)
def test_what_cannot_work_is_refused(arguments: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        as_criterion(*arguments, **options)


@pytest.mark.parametrize(
    ("pruner", "granularity", "message"),
    [
        (FPGMPruner, "weight", "FPGM metric do not support finegrained"),
        (L1NormPruner, "kernel", "granularity='kernel'.*use granularity='weight' or 'channel'"),
    ],
)
def test_granularities_that_the_host_has_not(pruner: Any, granularity: str, message: str) -> None:
    problem = Problem(simple().eval(), images(8), granularity=granularity, include=[nn.Conv2d])
    with pytest.raises(DEError, match=message):
        as_criterion(pruner)(problem, problem.eligible, 4)


def test_layers_that_the_host_does_not_know_are_told() -> None:
    class Own(nn.Linear):
        pass

    problem = Problem(nn.Sequential(Own(4, 3)).eval(), torch.randn(8, 4), granularity="channel")
    with pytest.raises(ArgumentError, match="Own is not registered.*exclude layers"):
        as_criterion(L1NormPruner)(problem, problem.eligible, 1)


def test_an_evaluator_instance_is_no_function() -> None:
    model = simple()
    sgd = nni.trace(torch.optim.SGD)(model.parameters(), lr=0.1)
    made = TorchEvaluator(lambda *_: None, sgd, lambda *_: None)
    with pytest.raises(ArgumentError, match="lambda model: TorchEvaluator"):
        as_criterion(TaylorPruner, evaluator=made)
