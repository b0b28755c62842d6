"""Distillation: it helps, never harms on held-back data, and leaves nothing else changed."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from de_plugin.assess.divergence import Score
from de_plugin.assess.problem import Problem
from de_plugin.errors import ArgumentError, DataError, GradientError, OutputError
from de_plugin.prune.recover import Distillation


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(10, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(), nn.Linear(24, 5)
    ).eval()


def pruned(labels: bool = False, fraction: float = 0.7, **options: Any) -> Problem:
    model = network()
    x = torch.randn(400, 10, generator=torch.Generator().manual_seed(1))
    target = x[:, :5].argmax(1)
    problem = Problem(model, (x, target) if labels else x, **options)
    scores = problem.units.reduce([v.abs() for v in problem.units.values()])
    problem.kept = problem.select(scores, problem.eligible, int(fraction * problem.units.count))
    return problem


@pytest.mark.parametrize("granularity", ["weight", "channel", "2:4"])
def test_divergence_falls_and_zeroed_values_stay(granularity: str) -> None:
    problem = pruned(granularity=granularity, fraction=0.3, exclude=["0"] if granularity == "2:4" else ())
    before = float(problem.gate(problem.kept[None]))
    masks = problem.units.masks(problem.kept)
    dense = {k: p.detach().clone() for k, p in problem.units.parameters().items()}
    buffers = [b.clone() for b in problem.model.buffers()]
    Distillation(steps=80, lr=1e-2)(problem)
    assert float(problem.gate(problem.kept[None])) < 0.8 * before
    for name, parameter in problem.units.parameters().items():
        assert torch.equal(parameter[~masks[name]], dense[name][~masks[name]])
    assert all(torch.equal(a, b) for a, b in zip(buffers, problem.model.buffers(), strict=True))
    assert not any(m.training for m in problem.model.modules())


def test_gradients_and_flags_come_back() -> None:
    problem = pruned()
    first, *rest = problem.model.parameters()
    first.grad = torch.ones_like(first)
    rest[-1].requires_grad_(False)
    held, bias = first.grad, rest[-1].detach().clone()
    Distillation(steps=20)(problem)
    assert first.grad is held
    assert torch.equal(held, torch.ones_like(first))
    assert all(p.grad is None for p in rest)
    assert not rest[-1].requires_grad
    assert torch.equal(rest[-1], bias)


def test_a_frozen_model_is_trained_and_stays_frozen() -> None:
    problem = pruned()
    problem.model.requires_grad_(False)
    before = float(problem.gate(problem.kept[None]))
    Distillation(steps=50, lr=1e-2)(problem)
    assert float(problem.gate(problem.kept[None])) < before
    assert not any(p.requires_grad for p in problem.model.parameters())


def test_same_seed_same_result_and_calls_draw_fresh_batches() -> None:
    recover = Distillation(steps=15, lr=1e-2, batch_size=32)
    results = []
    for _ in range(2):
        problem = pruned(seed=3)
        recover(problem)
        recover(problem)
        results.append([p.detach().clone() for p in problem.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    problem = pruned(seed=3)
    first = next(recover._batches(problem, 0))[0].inputs
    second = next(recover._batches(problem, 1))[0].inputs
    assert not torch.equal(first, second)


@pytest.mark.parametrize("lr", [10.0, 1e6])
def test_it_never_ends_worse_than_it_began(lr: float) -> None:
    problem = pruned(fraction=0.1)
    before = float(problem.gate(problem.kept[None]))
    values = [p.detach().clone() for p in problem.model.parameters()]
    Distillation(steps=30, lr=lr, schedule="constant", validate_every=10)(problem)
    after = float(problem.gate(problem.kept[None]))
    assert after <= before
    if after == before:
        live = problem.model.parameters()
        assert all(torch.equal(a, b) for a, b in zip(values, live, strict=True))


def test_patience_stops_early() -> None:
    calls = 0

    def forward(model: nn.Module, x: Tensor) -> Any:
        nonlocal calls
        calls += 1
        return model(x)

    problem = pruned(fraction=0.1, forward=forward)
    assert problem.has_gradient
    used = []
    for patience in (1, None):
        calls = 0
        Distillation(steps=60, lr=100.0, schedule="constant", validate_every=5, patience=patience)(problem)
        used.append(calls)
    assert used[0] < used[1] / 2


def test_labels_pull_towards_the_labels() -> None:
    problem = pruned(labels=True)
    batch = problem.pool.take(problem.held_back, 1000)[0]

    def cross_entropy() -> float:
        with problem.units.zeroed(problem.kept), torch.no_grad():
            return float(F.cross_entropy(problem.model(batch.inputs), batch.labels))

    before = cross_entropy()
    Distillation(steps=60, lr=1e-2, labels=1.0)(problem)
    assert cross_entropy() < before


def test_it_says_what_it_needs() -> None:
    with pytest.raises(DataError, match="labels"):
        Distillation(labels=0.5)(pruned())
    rank = Score(lambda y, t: (y.argmax(1) == t.argmax(1)).float().mean(), against="teacher")
    with pytest.raises(GradientError, match="gradient"):
        Distillation().prepare(pruned(divergence=rank))


def test_an_exception_restores_everything() -> None:
    left = 10**9

    def forward(model: nn.Module, x: Tensor) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return model(x)

    problem = pruned(forward=forward)
    assert problem.has_gradient
    before = {k: v.clone() for k, v in problem.model.state_dict().items()}
    left = 20
    with pytest.raises(KeyboardInterrupt):
        Distillation(steps=100, lr=1e-2, validate_every=5)(problem)
    assert all(torch.equal(v, problem.model.state_dict()[k]) for k, v in before.items())
    assert all(p.grad is None and p.requires_grad for p in problem.model.parameters())


def test_batches_as_the_user_gave_them() -> None:
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2)).eval()
    x = [torch.rand(8, 1, 5 + n % 3, 5) for n in range(12)]
    problem = Problem(model, x, divergence="mse")
    scores = torch.rand(problem.units.count, generator=torch.Generator().manual_seed(0))
    problem.kept = problem.select(scores, problem.eligible, 27)
    before = float(problem.gate(problem.kept[None]))
    Distillation(steps=40, lr=1e-2, batch_size=16)(problem)
    assert float(problem.gate(problem.kept[None])) < before


def test_no_steps_no_change() -> None:
    problem = pruned()
    before = [p.detach().clone() for p in problem.model.parameters()]
    Distillation(steps=0)(problem)
    assert all(torch.equal(a, b) for a, b in zip(before, problem.model.parameters(), strict=True))


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": -1},
        {"lr": 0.0},
        {"labels": 1.5},
        {"schedule": "step"},
        {"weight_decay": -1.0},
        {"validate_every": 0},
        {"patience": 0},
        {"batch_size": 0},
    ],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        Distillation(**wrong)


@pytest.mark.parametrize("channels", [1, 3])
def test_convolutions_learn_from_their_own_gradients_whatever_the_images_layout(channels: int) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(channels, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten()]
    teacher = nn.Sequential(*layers, nn.Linear(6 * 4 * 4, 5)).eval()
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.3 * p.std() * torch.randn(p.shape))
    images = torch.randn(80, channels, 8, 8).to(memory_format=torch.channels_last)
    plain = copy.deepcopy(student)
    problem = Problem(student, images, teacher=teacher, holdout=0.25)
    rule = Distillation(steps=4, lr=1e-3, schedule="constant", validate_every=4, batch_size=60)
    rule(problem)

    seen = images[problem.search].contiguous()
    optimizer = torch.optim.Adam(plain.parameters(), 1e-3, foreach=False, fused=False)
    answers = teacher(seen).detach().log_softmax(1)
    for _ in range(4):
        optimizer.zero_grad()
        loss = nn.functional.kl_div(
            plain(seen).log_softmax(1), answers, reduction="batchmean", log_target=True
        )
        loss.backward()
        optimizer.step()
    assert not torch.equal(plain.get_parameter("0.weight"), teacher.get_parameter("0.weight"))
    for ours, theirs in zip(student.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


class Shifted:
    """Adds numbers that are drawn anew, and remembers what it gave."""

    def __init__(self) -> None:
        self.given: list[Tensor] = []

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        self.given.append(inputs + torch.randn(inputs.shape, generator=generator))
        return self.given[-1]


def test_the_teacher_answers_inputs_that_were_not_there_before() -> None:
    augment = Shifted()
    recovery = Distillation(steps=120, lr=1e-2, batch_size=32, augment=augment)
    problem = pruned_by(recovery)
    original = network()
    far = torch.randn(2000, 10, generator=torch.Generator().manual_seed(9)) * 2

    def apart() -> float:
        with torch.no_grad(), problem.units.zeroed(problem.kept):
            ours, theirs = (F.log_softmax(m(far), 1) for m in (problem.model, original))
        return float(F.kl_div(ours, theirs, log_target=True, reduction="batchmean"))

    before = apart()
    recovery(problem)
    assert len(augment.given) == 120
    assert all(x.shape == (32, 10) for x in augment.given)
    assert not any(torch.equal(a, b) for a, b in zip(augment.given, augment.given[1:], strict=False))
    fresh = apart()
    assert fresh < 0.7 * before
    problem = pruned_by(recovery)
    Distillation(steps=120, lr=1e-2, batch_size=32)(problem)
    assert fresh < apart()  # data of another spread are not what it has learnt by heart


def pruned_by(recovery: Distillation, model: nn.Module | None = None, **options: Any) -> Problem:
    data = torch.randn(64, 10, generator=torch.Generator().manual_seed(1))
    problem = Problem(model or network(), data, **options)
    recovery.prepare(problem)
    scores = problem.units.reduce([v.abs() for v in problem.units.values()])
    problem.kept = problem.select(scores, problem.eligible, int(0.6 * problem.units.count))
    return problem


def test_what_is_made_anew_is_the_same_with_the_same_seed() -> None:
    states, calls = [], []
    for _ in range(2):
        augment = Shifted()
        recovery = Distillation(steps=12, lr=1e-2, batch_size=32, augment=augment)
        problem = pruned_by(recovery)
        recovery(problem)
        recovery(problem)
        states.append([p.detach().clone() for p in problem.model.parameters()])
        calls.append(augment.given)
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(*calls, strict=True))
    assert not torch.equal(calls[0][0], calls[0][12])


def test_inputs_as_they_are_train_as_without() -> None:
    states = []
    for augment in (None, lambda inputs, _: inputs.clone()):
        recovery = Distillation(steps=12, lr=1e-2, batch_size=32, augment=augment)
        problem = pruned_by(recovery)
        recovery(problem)
        states.append([p.detach().clone() for p in problem.model.parameters()])
    torch.testing.assert_close(states[0], states[1], rtol=1e-4, atol=1e-6)


def test_an_error_in_what_makes_inputs_leaves_the_model_as_it_was() -> None:
    def fails(inputs: Tensor, generator: torch.Generator) -> Tensor:
        raise ValueError("no more")

    problem = pruned_by(recovery := Distillation(steps=3, augment=fails))
    before = copy.deepcopy(problem.model.state_dict())
    with pytest.raises(ValueError, match="no more"):
        recovery(problem)
    assert all(torch.equal(x, problem.model.state_dict()[n]) for n, x in before.items())
    wrong: Any = 3
    with pytest.raises(ArgumentError, match="augment=3: expected fn"):
        Distillation(augment=wrong)
    problem = pruned_by(Distillation())
    with pytest.raises(ArgumentError, match="recovery='distill': .* the teacher was not measured"):
        Distillation(steps=1, augment=fails)(problem)


def turned(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs.flip(1) + torch.rand(len(inputs), 1, generator=generator)


def test_a_forward_that_calls_another_model_than_it_is_given_is_refused() -> None:
    model = network()
    recovery = Distillation(steps=3, augment=turned)
    problem = pruned_by(recovery, model, forward=lambda _, x: model(x))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ArgumentError, match="call the model that the function is given"):
        recovery(problem)
    assert all(torch.equal(x, model.state_dict()[n]) for n, x in before.items())


@pytest.mark.parametrize("fraction", [0.0, 0.05])
def test_a_student_that_says_what_its_teacher_says_may_be_trained(fraction: float) -> None:
    model = network()
    with torch.no_grad():  # what goes first is zero already
        next(model.parameters())[:12] = 0
    problem = Problem(model, torch.randn(64, 10, generator=torch.Generator().manual_seed(1)))
    recovery = Distillation(steps=2, augment=turned)
    recovery.prepare(problem)
    scores = problem.units.reduce([v.abs() for v in problem.units.values()])
    problem.kept = problem.select(scores, problem.eligible, int(fraction * problem.units.count))
    recovery(problem)
    assert float(problem.gate(problem.kept[None])) == pytest.approx(0, abs=1e-4)


def test_answers_that_are_not_finite_are_told() -> None:
    calls = itertools.count()

    def spoilt(inputs: Tensor, _: torch.Generator) -> Tensor:
        return inputs * (float("nan") if next(calls) == 2 else 1.0)

    recovery = Distillation(steps=8, validate_every=4, augment=spoilt)
    problem = pruned_by(recovery)
    before = copy.deepcopy(problem.model.state_dict())
    with pytest.raises(OutputError, match="augment: the teacher's outputs"):
        recovery(problem)
    assert next(calls) == 4
    assert all(torch.equal(x, problem.model.state_dict()[n]) for n, x in before.items())


@pytest.mark.parametrize("made", [lambda x, _: x[:3], lambda x, _: None, lambda x, _: (x[:3], x)])
def test_other_numbers_of_samples_are_refused(made: Any) -> None:
    problem = pruned_by(recovery := Distillation(steps=3, batch_size=32, augment=made))
    with pytest.raises(ArgumentError, match="expected as many samples"):
        recovery(problem)


def test_data_that_cannot_be_stacked_stay_as_they_are() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)).eval()
    sizes = [torch.rand(4, 1, 6 + n, 6, generator=torch.Generator().manual_seed(n)) for n in range(6)]
    recovery = Distillation(steps=4, batch_size=4, augment=lambda x, _: x.add_(1))
    problem = Problem(model, sizes)
    recovery.prepare(problem)
    before = problem.pool.digest
    recovery(problem)
    assert problem.pool.digest == before


def test_labels_alone_need_no_teacher() -> None:
    calls = []

    def counted(model: nn.Module, x: Tensor) -> Any:
        calls.append(len(x))
        return model(x)

    problem = pruned(labels=True, forward=counted)
    calls.clear()
    Distillation(steps=6, labels=1.0, batch_size=32, augment=turned, validate_every=100)(problem)
    assert calls.count(32) == 6
