"""The levels of one layer: alternatives at equal bytes, and what evolves from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from de_plugin.errors import ArgumentError
from de_plugin.quantize import LevelSearch, Uniform
from de_plugin.quantize.cost import estimated
from de_plugin.quantize.levels import alternatives, refined
from de_plugin.quantize.student import Student
from de_plugin.quantize.trial import Trial, applied
from tests.quantize.small import problem, same, state

RULE = LevelSearch(generations=3, population=6, samples=300)


@pytest.mark.parametrize("number", [0, 2])
def test_no_more_bytes_and_no_more_divergence(number: int) -> None:
    asked = problem()
    student = Student(asked)
    before = state(asked.model)
    start = Trial("start", applied(student, Uniform(bits=3), {}), 0)
    start = start.measured(student, asked.held_back)
    part = student.parts[number]
    found = refined(student, start, part, RULE)
    assert found.divergence <= start.divergence
    assert estimated(found.quantization[part.name]) <= estimated(start.quantization[part.name])
    for name, quantized in found.quantization.items():
        if name != part.name:
            assert quantized is start.quantization[name]
    assert not bool((found.quantization[part.name].symbols != 0)[~part.kept].any())
    assert same(before, state(asked.model))


def test_alternatives_fit_and_have_as_many_bits_as_fit() -> None:
    student = Student(problem())
    part = student.parts[1]
    room = estimated(Uniform(bits=5).fit(part.weight, part.kept, part.importance))
    found = dict(alternatives(student, part, LevelSearch(), room))
    single = ["uniform", "affine", "power", "kmeans"]
    assert [name for name in found if not name.endswith(" by channel")] == single
    assert [name for name, q in found.items() if q.axis == 0] == ["uniform by channel", "affine by channel"]
    assert all(estimated(q) <= room for q in found.values())
    assert estimated(found["uniform"]) == room
    assert alternatives(student, part, LevelSearch(), 1.0) == []


def test_same_seed_same_levels() -> None:
    results = []
    for _ in range(2):
        student = Student(problem(seed=2))
        start = Trial("start", applied(student, Uniform(bits=3), {}), 0)
        results.append(refined(student, start, student.parts[0], RULE).quantization["0.weight"])
    assert torch.equal(results[0].symbols, results[1].symbols)
    assert torch.equal(results[0].levels, results[1].levels)


def test_settings_that_cannot_work() -> None:
    wrong: list[dict[str, Any]] = [{"generations": -1}, {"population": 3}, {"samples": 0}]
    for options in wrong:
        with pytest.raises(ArgumentError, match=next(iter(options))):
            LevelSearch(**options)
    with pytest.raises(ArgumentError, match="codebook='means'"):
        LevelSearch(codebooks=("means",)).check()
