"""Calibration data: every accepted form, every refusal, and samples kept in a mapped file."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from de_plugin.assess.batches import Batch, Pool, Spill, read
from de_plugin.assess.problem import Problem
from de_plugin.errors import ArgumentError, DataError

X = torch.arange(24.0).reshape(12, 2)
Y = torch.arange(12) % 3
CPU = torch.device("cpu")


def call(batches: Any, samples: int | None = None, memory: int = 1 << 20) -> list[tuple[Any, Any, int]]:
    return read(batches, samples=samples, memory=memory, device=CPU)


FORMS: dict[str, tuple[Any, bool]] = {
    "tensor": (X, False),
    "tuple": ((X,), False),
    "labelled": ((X, Y), True),
    "dict": ({"x": X}, False),
    "labelled dict": ({"x": X, "labels": Y}, True),
    "list of tensors": (list(X.split(5)), False),
    "list of pairs": (list(zip(X.split(5), Y.split(5), strict=True)), True),
    "list of lists": ([[a, b] for a, b in zip(X.split(5), Y.split(5), strict=True)], True),
    "tuple of tensors": (tuple(X.split(4)), False),
    "tuple of two tensors": (tuple(X.split(6)), False),
    "list of dicts": ([{"x": x, "label": y} for x, y in zip(X.split(5), Y.split(5), strict=True)], True),
    "loader": (DataLoader(TensorDataset(X, Y), batch_size=5), True),
    "several inputs": (((X, X), Y), True),
    "generator": (None, False),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_samples(name: str) -> None:
    batches, labelled = FORMS[name]
    found = call((x for x in X.split(5)) if name == "generator" else batches)
    assert sum(size for *_, size in found) == 12
    firsts = [next(iter(i.values())) if isinstance(i, dict) else i for i, *_ in found]
    firsts = [i[0] if isinstance(i, tuple | list) else i for i in firsts]
    assert torch.equal(torch.cat(firsts), X)
    if labelled:
        assert torch.equal(torch.cat([labels for _, labels, _ in found]), Y)
    else:
        assert all(labels is None for _, labels, _ in found)


def test_an_infinite_generator_is_read_up_to_samples_and_no_further() -> None:
    drawn = []

    def endless() -> Any:
        for number in itertools.count():
            drawn.append(number)
            yield X, Y

    found = call(endless(), samples=30)
    assert [size for *_, size in found] == [12, 12, 6]
    assert torch.equal(found[-1][0], X[:6])
    assert torch.equal(found[-1][1], Y[:6])
    assert drawn == [0, 1, 2]


def test_samples_cut_a_single_batch() -> None:
    ((inputs, labels, size),) = call((X, Y), samples=5)
    assert torch.equal(inputs, X[:5])
    assert torch.equal(labels, Y[:5])
    assert size == 5


@pytest.mark.parametrize(
    ("batches", "match"),
    [
        ([], "nothing to read"),
        (iter(()), "nothing to read"),
        (torch.zeros(0, 3), "empty"),
        ([X, X[:0]], "batch 1 is empty"),
        (3, "got int"),
        ([(X, Y, Y)], "3 items"),
        (["text"], "no tensor"),
        (torch.full((2, 2), float("nan")), "NaN"),
        ([X, torch.full((2, 2), float("inf"))], "batch 1"),
    ],
)
def test_what_cannot_be_read_is_refused(batches: Any, match: str) -> None:
    with pytest.raises(DataError, match=match):
        call(batches)


def test_limits_are_refused() -> None:
    with pytest.raises(ArgumentError, match="samples=0"):
        call(X, samples=0)
    with pytest.raises(DataError, match="raise memory"):
        call((X for _ in itertools.count()), memory=1000)


def pool(spill: Spill, stackable: bool = True) -> Pool:
    parts = list(X.split(5)) if stackable else [X, torch.ones(3, 4)]
    kept = [Batch(x, None, (spill.keep(x * 2), x.sum(1)), len(x)) for x in parts]
    return Pool(kept, 4, spill)


def test_samples_are_drawn_in_the_order_of_the_index() -> None:
    index = torch.tensor([7, 0, 11, 3, 3])
    found = pool(Spill(1 << 20)).take(index)
    assert [b.size for b in found] == [4, 1]
    assert torch.equal(torch.cat([b.inputs for b in found]), X[index])
    assert torch.equal(torch.cat([b.teacher[0] for b in found]), 2 * X[index])
    assert [b.size for b in pool(Spill(1 << 20)).take(index, 5)] == [5]


def test_batches_that_do_not_stack_are_drawn_whole() -> None:
    uneven = pool(Spill(1 << 20), stackable=False)
    assert (uneven.count, uneven.samples) == (2, 15)
    assert uneven.take(torch.tensor([1]))[0].inputs.shape == (3, 4)
    assert not uneven.has_labels


def test_a_mapped_file_holds_the_same_as_memory() -> None:
    spill = Spill(50)
    index = torch.tensor([11, 2, 5])
    one, other = pool(spill).take(index)[0], pool(Spill(1 << 20)).take(index)[0]
    assert spill._folder is not None
    for a, b in zip(one.teacher, other.teacher, strict=True):
        assert torch.equal(a, b)


def test_a_problem_in_a_mapped_file_asks_the_same() -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 300).eval()
    data = torch.randn(40, 2)
    values: list[Tensor] = []
    for memory in (2000, 1 << 30):
        problem = Problem(model, data, memory=memory, batch_size=16)
        kept = torch.arange(problem.units.count) % 2 == 0
        values.append(problem.assess(kept[None], problem.search))
    assert torch.equal(values[0], values[1])
