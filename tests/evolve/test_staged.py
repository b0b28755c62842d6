"""Successive halving: the winner of the whole sample for less than its price."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from de_plugin.errors import ArgumentError
from de_plugin.evolve import Halving, halve

sizes = st.integers(1, 40)
rules = st.builds(Halving, st.integers(1, 9), st.floats(0.05, 0.95))


class Measure:
    """Noise-free values, with a record of what was measured."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.calls: list[tuple[list[int], list[int]]] = []

    def __call__(self, some: Tensor, part: Tensor) -> Tensor:
        self.calls.append((some.tolist(), part.tolist()))
        return self.values[some]

    @property
    def price(self) -> int:
        return sum(len(some) * len(part) for some, part in self.calls)


def shuffled(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(count)).double()


@given(sizes, sizes, rules)
def test_the_winner_is_that_of_the_unstaged_assessment(count: int, samples: int, rule: Halving) -> None:
    measure = Measure(shuffled(count))
    values, best = halve(measure, count, torch.arange(samples), rule)
    whole, same = halve(Measure(shuffled(count)), count, torch.arange(samples), Halving(1))
    assert best == same == int(whole.argmin())
    assert float(values[best]) == float(whole[best])
    assert int(values.argmin()) == best
    assert measure.price <= rule.stages * count * samples


@given(sizes, rules)
def test_whoever_got_further_ranks_better(count: int, rule: Halving) -> None:
    measure = Measure(shuffled(count))
    values, _ = halve(measure, count, torch.arange(64), rule)
    assert bool(torch.isfinite(values).all())
    assert bool((values >= 0).all())
    reached = torch.zeros(count)
    for some, _part in measure.calls:
        reached[some] += 1
    for stage in range(1, rule.stages + 1):
        further, here = values[reached > stage], values[reached == stage]
        if len(further) and len(here):
            assert float(further.max()) < float(here.min())
    assert values.argsort().tolist() == measure.values.argsort().tolist()


@given(sizes, rules)
def test_samples_are_nested_and_the_last_stage_sees_all(count: int, rule: Halving) -> None:
    measure = Measure(shuffled(count))
    index = torch.arange(100, 164)
    halve(measure, count, index, rule)
    assert len(measure.calls) == rule.stages
    for (some, part), (fewer, more) in zip(measure.calls, measure.calls[1:], strict=False):
        assert more[: len(part)] == part
        assert set(fewer) <= set(some)
    assert measure.calls[-1][1] == index.tolist()


def test_halving_costs_less() -> None:
    staged, whole = Measure(shuffled(32)), Measure(shuffled(32))
    halve(staged, 32, torch.arange(1000), Halving(3, 0.5))
    halve(whole, 32, torch.arange(1000), Halving(1))
    assert staged.price == 32 * 250 + 16 * 500 + 8 * 1000
    assert staged.price < whole.price


def test_ties_go_to_the_first() -> None:
    assert halve(Measure(torch.zeros(7).double()), 7, torch.arange(5), Halving(3))[1] == 0


@pytest.mark.parametrize(("stages", "keep"), [(0, 0.5), (3, 0.0), (3, 1.0), (3, float("nan"))])
def test_rules_that_cannot_work_are_refused(stages: int, keep: float) -> None:
    with pytest.raises(ArgumentError, match="stages="):
        Halving(stages, keep)
