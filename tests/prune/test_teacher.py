"""Pruning against a teacher of its own: a network that was pruned before is measured from its original."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import de_plugin
from de_plugin.errors import ArgumentError, CheckpointError, DEError, ModeError
from de_plugin.prune.recover import Distillation, Hints
from tests.prune.small import QUICK, data, network, same, state


def kl(teacher: nn.Module, student: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        p, q = (m(x).log_softmax(-1) for m in (teacher, student))
    return float((p.exp() * (p - q)).sum(-1).mean())


def pair() -> tuple[nn.Sequential, nn.Sequential]:
    """Return a network and what was pruned of it."""
    original, student = network(), network()
    de_plugin.prune(student, data(), 0.4, "magnitude")
    return original, student


@pytest.mark.parametrize("criterion", ["magnitude", QUICK])
def test_the_divergence_is_that_from_the_teacher(criterion: Any) -> None:
    original, student = pair()
    before = state(original)
    held = torch.zeros(80, dtype=torch.bool)
    held[60:] = True
    report = de_plugin.prune(student, data(), 0.6, criterion, teacher=original, holdout=held)
    assert report.divergence == pytest.approx(kl(original, student, data()[60:]), rel=1e-4)
    assert same(state(original), before)
    assert report.sparsity == pytest.approx(0.6, abs=0.01)


def test_what_was_zeroed_before_is_zeroed_again() -> None:
    original, student = pair()
    gone = {n: p == 0 for n, p in student.named_parameters() if p.dim() > 1}
    de_plugin.prune(student, data(), 0.6, "magnitude", teacher=original)
    assert all(bool((student.get_parameter(n) == 0)[zero].all()) for n, zero in gone.items())


def test_a_teacher_that_equals_the_model_changes_nothing() -> None:
    first, second = network(), network()
    recovery = Distillation(20, batch_size=16, hints=Hints(("1",)))
    one = de_plugin.prune(first, data(), 0.5, QUICK, schedule=2, recovery=recovery)
    other = de_plugin.prune(
        second, data(), 0.5, QUICK, schedule=2, recovery=recovery, teacher=copy.deepcopy(network())
    )
    assert same(state(first), state(second))
    assert one.divergence == other.divergence


def test_distillation_learns_from_the_teacher() -> None:
    original, student = pair()
    alone = copy.deepcopy(student)
    training = Distillation(150, lr=1e-2, batch_size=32)
    for model, teacher in ((student, original), (alone, None)):
        de_plugin.prune(model, data(), 0.5, "magnitude", finish=training, teacher=teacher)
    assert kl(original, student, data()) < 0.5 * kl(original, alone, data())


def test_a_search_with_another_teacher_is_another_search(tmp_path: Path) -> None:
    original, student = pair()
    others = [copy.deepcopy(student) for _ in range(3)]
    first, again, wrong = others
    de_plugin.prune(first, data(), 0.6, QUICK, schedule=2, teacher=original, checkpoint=tmp_path)
    de_plugin.prune(again, data(), 0.6, QUICK, schedule=2, teacher=network(), checkpoint=tmp_path)
    assert same(state(first), state(again))
    for teacher in (None, student):
        with pytest.raises(CheckpointError, match="teacher"):
            de_plugin.prune(wrong, data(), 0.6, QUICK, schedule=2, teacher=teacher, checkpoint=tmp_path)
    assert same(state(wrong), state(student))


def test_teachers_that_tell_nothing_are_refused() -> None:
    _, student = pair()
    before = state(student)
    with pytest.raises(ModeError, match=r"teacher: .* train mode .* call teacher\.eval"):
        de_plugin.prune(student, data(), 0.6, "magnitude", teacher=network().train())
    other = nn.Sequential(nn.Linear(8, 3)).eval()
    with pytest.raises(DEError, match="outputs|shape|size"):
        de_plugin.prune(student, data(), 0.6, "magnitude", teacher=other)
    text: Any = "x"
    with pytest.raises(ArgumentError, match="teacher='x': expected a module"):
        de_plugin.prune(student, data(), 0.6, "magnitude", teacher=text)
    shared = nn.Sequential(*student).eval()
    training = Distillation(5, hints=Hints(("1",)))
    with pytest.raises(ArgumentError, match=r"teacher: shares 9 tensor\(s\).*'0\.weight'.*deepcopy"):
        de_plugin.prune(student, data(), 0.6, "magnitude", teacher=shared, finish=training)
    assert same(state(student), before)


def test_cycles_begin_where_the_model_is() -> None:
    original, student = pair()
    gone = {n: p == 0 for n, p in student.named_parameters() if p.dim() > 1}
    seen = []

    def told(progress: de_plugin.Progress) -> None:
        seen.append(progress.sparsity)
        zeros = [(student.get_parameter(n) == 0)[zero] for n, zero in gone.items()]
        assert all(bool(x.all()) for x in zeros)  # none came back to life

    training = Distillation(30, batch_size=32)
    de_plugin.prune(
        student,
        data(),
        0.8,
        "magnitude",
        schedule=3,
        recovery=training,
        teacher=original,
        progress=told,
        apply="bake",
    )
    assert min(seen) > 0.4
    assert seen[-1] == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(
    ("sparsity", "options", "expected"),
    [
        (0.5, {}, 0.5),
        ({"3.weight": 0.5}, {}, 0.5 * 48 / 144),
        (None, {"granularity": "2:4"}, 0.5),
        (0.7, {"scope": "layer"}, 0.7),
        (0.3, {"granularity": "channel"}, 0.3),
    ],
)
def test_a_model_with_more_zeros_than_are_asked_for(sparsity: Any, options: Any, expected: float) -> None:
    original, student = network(), network()
    with torch.no_grad():
        for name in ("0.weight", "3.weight"):
            weight = student.get_parameter(name)
            weight[weight.abs() < weight.abs().flatten().kthvalue(int(0.8 * weight.numel())).values] = 0
    report = de_plugin.prune(student, data(), sparsity, "magnitude", teacher=original, schedule=4, **options)
    assert report.sparsity == pytest.approx(expected, abs=0.05)
    assert [h.sparsity for h in report.history] == sorted(h.sparsity for h in report.history)
