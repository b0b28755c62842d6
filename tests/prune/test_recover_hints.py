"""Hints: the middle of a student comes closer to its teacher's, and nothing else stays behind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import de_plugin
from de_plugin.assess.problem import Problem
from de_plugin.errors import ArgumentError, OutputError
from de_plugin.prune.recover import Distillation, Hints
from de_plugin.prune.recover.hints import watched
from de_plugin.quantize import LevelTraining

HIDDEN = ("0", "2")


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(inplace=True), nn.Linear(24, 3)
    ).eval()


def data(count: int = 300) -> Tensor:
    return torch.randn(count, 10, generator=torch.Generator().manual_seed(1))


def pruned(recovery: Distillation, model: nn.Module | None = None, fraction: float = 0.6) -> Problem:
    problem = Problem(model or network(), data())
    recovery.prepare(problem)
    scores = problem.units.reduce([v.abs() for v in problem.units.values()])
    problem.kept = problem.select(scores, problem.eligible, int(fraction * problem.units.count))
    return problem


def apart(problem: Problem, names: tuple[str, ...] = HIDDEN) -> float:
    """Return how far the student's middle is from an intact network's."""
    with torch.no_grad(), watched(problem.model, names) as ours, problem.units.zeroed(problem.kept):
        problem.model(data())
    intact = network()
    with torch.no_grad(), watched(intact, names) as theirs:
        intact(data())
    return sum(float((a[0] - b[0]).square().mean() / b[0].var()) for a, b in zip(ours, theirs, strict=True))


def trained(**options: Any) -> Problem:
    recovery = Distillation(steps=60, lr=5e-3, batch_size=64, **options)
    problem = pruned(recovery)
    recovery(problem)
    return problem


def test_the_middle_comes_closer_than_outputs_alone_take_it() -> None:
    cut = pruned(Distillation())
    plain, hinted = trained(), trained(hints=Hints(HIDDEN, 5.0))
    assert apart(hinted) < 0.7 * apart(plain)
    assert float(hinted.gate(hinted.kept[None])) < float(cut.gate(cut.kept[None]))


def test_a_weight_of_nothing_trains_as_no_hints_do() -> None:
    plain, hinted = trained(), trained(hints=Hints(("*",), 0.0))
    pairs = zip(plain.model.parameters(), hinted.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_same_seed_same_result_and_no_hook_stays() -> None:
    first, second = (trained(hints=Hints(("[02]",))) for _ in range(2))
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not any(module._forward_hooks for module in first.model.modules())


def test_zeroed_values_stay_and_the_teacher_is_a_copy() -> None:
    recovery = Distillation(steps=20, hints=Hints(HIDDEN))
    problem = pruned(recovery)
    masks = problem.units.masks(problem.kept)
    dense = {k: p.detach().clone() for k, p in problem.units.parameters().items()}
    recovery(problem)
    for name, parameter in problem.units.parameters().items():
        assert torch.equal(parameter[~masks[name]], dense[name][~masks[name]])
        assert not torch.equal(parameter, dense[name])
    assert recovery.hints is not None
    copied = recovery.hints.teacher(problem).model
    assert all(torch.equal(a, b) for a, b in zip(copied.parameters(), network().parameters(), strict=True))


def test_a_module_that_is_called_twice_tells_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.last = nn.Linear(10, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.last(self.again(self.again(self.first(x)).relu()).relu())
            return found

    torch.manual_seed(0)
    recovery = Distillation(steps=30, lr=5e-3, hints=Hints(("again",), 5.0))
    problem = pruned(recovery, Twice().eval())
    with watched(problem.model, ("again",)) as found:
        problem.model(data(4))
    assert [len(calls) for calls in found] == [2]
    before = float(problem.gate(problem.kept[None]))
    recovery(problem)
    assert float(problem.gate(problem.kept[None])) < before


def test_a_teacher_that_is_not_there_any_more_is_missed() -> None:
    problem = pruned(Distillation())
    with pytest.raises(ArgumentError, match="the teacher was not measured; call recovery.prepare"):
        Distillation(steps=1, hints=Hints(HIDDEN))(problem)


@pytest.mark.parametrize("patterns", [("nothing",), ("layers.*", "block?")])
def test_patterns_without_a_module_are_refused(patterns: tuple[str, ...]) -> None:
    with pytest.raises(
        ArgumentError, match="no module matches; expected modules of both networks, such as 0, 1"
    ):
        Distillation(hints=Hints(patterns)).prepare(Problem(network(), data()))


@pytest.mark.parametrize("modules", ["0", (), ("",), (3,)])
def test_patterns_are_a_tuple_of_texts(modules: Any) -> None:
    with pytest.raises(ArgumentError, match="expected a tuple of name patterns"):
        Hints(modules)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_the_weight_is_finite_and_not_negative(weight: float) -> None:
    with pytest.raises(ArgumentError, match="expected a finite number >= 0"):
        Hints(("0",), weight)


def test_what_is_no_hints_is_refused() -> None:
    wrong: Any = ("0",)
    with pytest.raises(ArgumentError, match="expected Hints"):
        Distillation(hints=wrong)


def test_modules_that_give_other_shapes_are_told_and_the_model_comes_back() -> None:
    teacher = nn.Sequential(
        nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3)
    ).eval()
    problem = Problem(network(), data(), teacher=teacher)
    before = [p.detach().clone() for p in problem.model.parameters()]
    with pytest.raises(OutputError, match="2 gives .*24.* in the student and .*16.* in the teacher"):
        Distillation(steps=3, hints=Hints(HIDDEN))(problem)
    assert all(torch.equal(a, b) for a, b in zip(before, problem.model.parameters(), strict=True))
    assert not any(module._forward_hooks for module in problem.model.modules())


def test_what_does_not_vary_is_left_out_and_what_is_not_finite_is_told() -> None:
    class Odd(nn.Module):
        def __init__(self, fill: float) -> None:
            super().__init__()
            self.fill = fill

        def forward(self, x: Tensor) -> Tensor:
            return torch.full_like(x, self.fill)

    class Net(nn.Module):
        def __init__(self, fill: float) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.odd, self.last = nn.Linear(10, 8), Odd(fill), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            self.odd(hidden)
            found: Tensor = self.last(hidden.relu())
            return found

    def run(fill: float, *names: str) -> list[Tensor]:
        recovery = Distillation(steps=20, lr=5e-3, hints=Hints(names))
        problem = pruned(recovery, Net(fill).eval())
        recovery(problem)
        return [p.detach() for p in problem.model.parameters()]

    both, alone = run(2.0, "first", "odd"), run(2.0, "first")
    assert all(torch.equal(a, b) for a, b in zip(both, alone, strict=True))
    assert not torch.equal(both[0], Net(2.0).first.weight)
    with pytest.raises(OutputError, match="nothing that odd give in the teacher varies"):
        run(2.0, "odd")
    with pytest.raises(OutputError, match="odd gives numbers in the teacher that are not finite"):
        run(float("inf"), "first", "odd")


def test_levels_are_trained_by_hints_as_well_and_the_teacher_stays() -> None:
    problem = pruned(Distillation())
    model, teacher = problem.model, network()
    for name, mask in problem.units.masks(problem.kept).items():
        model.get_parameter(name).data.mul_(mask)
    found = []
    for hints in (None, Hints(HIDDEN, 5.0)):
        student = copy.deepcopy(model)
        training = LevelTraining(Distillation(steps=40, lr=5e-3, validate_every=40, hints=hints))
        de_plugin.quantize(student, data(), bits=3, teacher=teacher, recovery=training)
        found.append(apart(Problem(student, data())))
    assert found[1] < found[0]
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), network().parameters(), strict=True))
    assert all(p.requires_grad for p in teacher.parameters())


def test_several_hints_share_one_copy_of_the_teacher() -> None:
    problem = Problem(network(), data())
    first, second = (Hints((name,)).teacher(problem) for name in "02")
    assert first.model is second.model
    assert first.model is not problem.model
