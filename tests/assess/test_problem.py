"""The problem: what it refuses, what it asks, and that its draws depend on the seed alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from de_plugin.assess import NM, Autocast, Problem, Score
from de_plugin.criteria import Magnitude
from de_plugin.errors import (
    ArgumentError,
    DataError,
    DEWarning,
    ModeError,
    OutputError,
    SelectionError,
    TargetError,
)

X = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def broken() -> nn.Module:
    net = nn.Linear(4, 3).eval()
    with torch.no_grad():
        net.weight[0, 0] = float("nan")
    return net


def words(net: nn.Module, x: Tensor) -> Any:
    return "text"


@pytest.mark.parametrize(
    ("net", "batches", "options", "error", "match"),
    [
        (model().train(), X, {}, ModeError, "eval"),
        (broken(), X, {}, OutputError, "NaN"),
        (model(), [], {}, DataError, "nothing to read"),
        (model(), X[:0], {}, DataError, "empty"),
        (nn.Sequential(nn.ReLU()), X, {}, SelectionError, "no prunable units"),
        (model(), X, {"divergence": lambda a, b: 1.0}, OutputError, "expected 0"),
        (model(), X, {"divergence": lambda a, b: float("nan")}, OutputError, "expected 0"),
        (model(), X, {"forward": words}, OutputError, "forward="),
        (model(), X, {"holdout": 1.0}, ArgumentError, "holdout"),
        (model(), X, {"batch_size": 0}, ArgumentError, "batch_size"),
        (model(), X, {"evaluate": "fast"}, ArgumentError, "evaluate"),
        (model(), X, {"divergence": Score(lambda a, b: 0)}, ArgumentError, "labels"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    net: nn.Module, batches: Any, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    if match == "no prunable units":
        net.eval()
    with pytest.raises(error, match=match):
        Problem(net, batches, **options)


def test_too_few_samples_are_not_held_back() -> None:
    with pytest.warns(DEWarning, match="too few"):
        problem = Problem(model(), X[:2])
    assert torch.equal(problem.search, problem.held_back)


def test_search_and_held_back_share_nothing() -> None:
    problem = Problem(model(), X, holdout=0.2)
    assert len(problem.held_back) == 10
    assert sorted([*problem.search.tolist(), *problem.held_back.tolist()]) == list(range(50))


@pytest.mark.parametrize("divergence", ["kl", "js", "mse", "cosine"])
def test_the_dense_student_is_the_teacher(divergence: str) -> None:
    problem = Problem(model(), X, divergence=divergence)
    assert problem(problem.kept) == pytest.approx(0, abs=1e-6)
    assert problem(~problem.kept) > 1e-3
    assert float(problem.gate(problem.kept[None])) == pytest.approx(0, abs=1e-6)


def test_outputs_of_a_candidate_that_are_not_finite_count_as_infinite() -> None:
    problem = Problem(model(), X, divergence=lambda a, b: (a - b).sum() / (0 if a.ne(b).any() else 1))
    assert problem(~problem.kept) == float("inf")


def test_inputs_are_given_as_the_model_wants_them() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            y: Tensor = self.layer(first - second)
            return y

    net = Several().eval()
    forms = [{"first": X, "second": X + 1}, [((X, X + 1), None)], ((X, X + 1), torch.zeros(50))]
    values = []
    for form in forms:
        problem = Problem(net, form, divergence="mse")
        values.append(problem(torch.arange(problem.units.count) > 5))
    assert values[0] > 0
    assert values[1:] == [values[0]] * 2


def test_the_batch_size_does_not_change_the_answer() -> None:
    values = []
    for size in (7, 256):
        problem = Problem(model(), X, batch_size=size)
        values.append(problem(torch.arange(problem.units.count) % 2 == 0))
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_same_seed_same_draws() -> None:
    first, second, other = (Problem(model(), X, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.search, second.search)
    assert not torch.equal(first.search, other.search)
    draws = [[p.draw(9) for _ in range(3)] for p in (first, second)]
    assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True))
    assert not torch.equal(draws[0][0], draws[0][1])
    assert len(draws[0][0].unique()) == 9
    assert torch.equal(first.draw(1000), first.search)
    numbers = {
        int(torch.randint(1 << 40, (), generator=first.generator(*k))) for k in [(), (1,), (2,), (1, 2)]
    }
    assert len(numbers) == 4


def test_selection_keeps_to_the_pattern_and_to_protection() -> None:
    problem = Problem(model(), X, granularity=NM(2, 4))
    problem.protected[:4] = True
    scores = torch.rand(problem.units.count, generator=torch.Generator().manual_seed(0))
    kept = problem.select(scores, problem.eligible, problem.units.count // 2 - 2)
    assert bool(kept[:4].all())
    assert bool((kept[4:].reshape(-1, 4).sum(1) == 2).all())
    with pytest.raises(TargetError):
        problem.select(scores, problem.eligible, problem.units.count // 2)


def test_gradients_are_offered_where_there_are_some() -> None:
    assert Problem(model(), X).has_gradient
    assert Problem(model(), X).has_curvature
    flat = Problem(model(), X, divergence=lambda a, b: float((a - b).detach().abs().mean()))
    assert not flat.has_gradient
    score = Score(lambda a, b: (a.argmax(1) == b.argmax(1)).float().mean(), against="teacher")
    assert not Problem(model(), X, divergence=score).has_gradient


def test_labels_are_asked_for_by_name() -> None:
    with pytest.raises(DataError, match="woodfisher"):
        Problem(model(), X).require_labels("woodfisher")
    Problem(model(), (X, torch.zeros(50).long())).require_labels("woodfisher")


def test_memory_is_made_once() -> None:
    problem = Problem(model(), X)
    assert problem.remember("key", lambda: 1) == problem.remember("key", lambda: 2) == 1
    problem.store("key", 3)
    assert problem.remember("key", lambda: 2) == 3


def test_state_is_kept_for_each_owner() -> None:
    problem = Problem(model(), X)
    one, two = Magnitude(), Magnitude()
    problem.state_of(one)["calls"] = 1
    assert problem.state_of(two) == {}
    assert problem.state_of(one) == {"calls": 1}
    assert problem.state_of("shared") is problem.state_of("shared")
    problem.state_of("evaluator")["plain"] = "fails"
    with problem.afresh():
        assert problem.state_of(one) == {}
        problem.state_of(one)["calls"] = 7
        assert problem.state_of("evaluator") == {"plain": "fails"}
        problem.state_of("evaluator")["working_set"] = 9
    assert problem.state.pop("evaluator") == {"plain": "fails", "working_set": 9}
    assert problem.state_of(one) == {"calls": 1}
    with pytest.raises(KeyError), problem.afresh():
        problem.state_of(one).pop("calls")
    assert problem.state.pop("evaluator") == {}
    assert problem.state_of(one) == {"calls": 1}
    assert sorted(problem.state) == ["Magnitude 0", "Magnitude 1", "shared"]


def test_inputs_that_the_model_cannot_take() -> None:
    with pytest.raises(DataError, match=r"batches: Sequential cannot take .*\(10, 3\).*forward="):
        Problem(model(), torch.randn(10, 3))


@pytest.mark.parametrize("samples", [2.5, 0, -1, True])
def test_sample_counts_are_whole(samples: Any) -> None:
    with pytest.raises(ArgumentError, match=f"samples={samples}"):
        Problem(model(), X, samples=samples)


def test_inference_mode_is_refused() -> None:
    with torch.inference_mode(), pytest.raises(ModeError, match="inference_mode"):
        Problem(model(), X)
    with torch.inference_mode():
        made = model()
    with pytest.raises(ModeError, match="outside of it"):
        Problem(made, X)


def test_autocast_computes_in_half_precision_and_returns_single() -> None:
    net = model()
    seen: list[torch.dtype] = []
    hook = net[0].register_forward_hook(lambda _m, _x, y: seen.append(y.dtype))
    problem = Problem(net, X, forward=Autocast(), divergence="mse", holdout=0)
    kept = torch.rand(problem.units.count, generator=torch.Generator().manual_seed(0)) > 0.3
    value = problem(kept)
    hook.remove()
    assert torch.bfloat16 in seen
    assert value == pytest.approx(Problem(net, X, divergence="mse", holdout=0)(kept), rel=0.05)
    with pytest.raises(ArgumentError, match=r"torch\.float32"):
        Autocast(torch.float32)


def test_samples_that_belong_together_are_held_back_together() -> None:
    held = torch.arange(len(X)) % 3 == 0
    problem = Problem(model(), X, holdout=held, batch_size=7)
    assert problem.held_back.tolist() == held.nonzero().flatten().tolist()
    assert problem.search.tolist() == (~held).nonzero().flatten().tolist()
    none = Problem(model(), X, holdout=torch.zeros(len(X), dtype=torch.bool))
    assert none.held_back.tolist() == none.search.tolist() == list(range(len(X)))


@pytest.mark.parametrize(
    "holdout",
    [torch.ones(len(X), dtype=torch.bool), torch.zeros(3, dtype=torch.bool), torch.zeros(len(X))],
)
def test_a_split_that_cannot_be_is_told(holdout: Tensor) -> None:
    with pytest.raises(ArgumentError, match="holdout: a torch.*expected bool .*one for each sample read"):
        Problem(model(), X, holdout=holdout)
