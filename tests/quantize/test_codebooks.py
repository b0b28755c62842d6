"""Every codebook keeps the contract; what it adds is checked against brute force and libraries."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import kmeans1d
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from de_plugin.errors import ArgumentError
from de_plugin.quantize import (
    Codebook,
    EntropyConstrained,
    KMeans,
    Quantized,
    Uniform,
    codebook,
    codebooks,
    register,
)
from de_plugin.quantize.partition import partition
from de_plugin.testing import check_codebook

NAMES = ("affine", "entropy", "kmeans", "power", "uniform")
BITS = range(2, 9)


def sample(count: int = 400, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(count, generator=rng).reshape(4, -1) * 0.1
    return weight, torch.rand(weight.shape, generator=rng) < 0.5, torch.rand(weight.shape, generator=rng)


def error(weight: Tensor, kept: Tensor, importance: Tensor, found: Quantized) -> float:
    return float((importance * (found.dequantize() - weight).square())[kept].double().sum())


def test_names() -> None:
    assert codebooks() == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_contract(name: str, axis: int | None, bits: int) -> None:
    check_codebook(codebook(name, bits=bits, axis=axis), levels=2**bits)


@pytest.mark.parametrize(
    "book",
    [
        EntropyConstrained(step=0.05),
        EntropyConstrained(step=0.02, axis=1),
        EntropyConstrained(step=0.05, price=0.0),
        EntropyConstrained(levels=5, centroids=False),
        KMeans(levels=6),
    ],
)
def test_contract_of_options(book: Codebook) -> None:
    check_codebook(book)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("axis", [None, 0])
def test_more_bits_less_error(name: str, axis: int | None) -> None:
    weight, kept, importance = sample()
    errors = [
        error(weight, kept, importance, codebook(name, bits=n, axis=axis).fit(weight, kept, importance))
        for n in BITS
    ]
    assert all(later <= 1.02 * earlier + 1e-12 for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < (0.9 if name == "power" else 0.01) * errors[0]


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from(["uniform", "affine", "power"]), st.sampled_from(BITS))
def test_kmeans_is_never_worse(seed: int, name: str, bits: int) -> None:
    weight, kept, importance = sample(120, seed)
    ours = error(weight, kept, importance, KMeans(bits=bits).fit(weight, kept, importance))
    theirs = error(weight, kept, importance, codebook(name, bits=bits).fit(weight, kept, importance))
    rounding = float((importance * (weight * 2**-11).square())[kept].sum())  # levels of two bytes
    assert ours <= theirs + rounding + 2 * (theirs * rounding) ** 0.5


@pytest.mark.parametrize("outlier", [3.0, 20.0, 100.0])
def test_a_power_of_two_is_never_much_worse_than_a_step_for_an_outliers_sake(outlier: float) -> None:
    weight, kept, importance = sample(400)
    weight.view(-1)[int(kept.view(-1).nonzero()[0])] = outlier * float(weight.std())
    found = [
        error(weight, kept, importance, codebook(name, bits=2).fit(weight, kept, importance))
        for name in ("power", "uniform")
    ]
    assert found[0] < 2 * found[1]


@pytest.mark.parametrize(("outlier", "bits"), [(20.0, 8), (100.0, 8), (100.0, 4)])
def test_kmeans_of_many_survivors_is_close_to_the_optimum(outlier: float, bits: int) -> None:
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).double()
    values[0] = outlier
    found = KMeans(bits=bits)._levels(values.numpy(), np.ones(len(values)))
    exact = np.array(kmeans1d.cluster(values.tolist(), 2**bits - 1).centroids)
    points = np.sort(values.numpy())
    assert _cost(points, np.ones(len(points)), found) < 1.03 * _cost(points, np.ones(len(points)), exact)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=40), st.integers(1, 12))
def test_partition_equals_kmeans1d(points: list[float], clusters: int) -> None:
    values = np.sort(np.array(points))
    ours = _cost(values, np.ones(len(values)), partition(values, np.ones(len(values)), clusters))
    theirs = _cost(values, np.ones(len(values)), np.array(kmeans1d.cluster(points, clusters).centroids))
    assert ours == pytest.approx(theirs, abs=1e-9, rel=1e-9)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.floats(-10, 10), st.floats(0.01, 10)), min_size=1, max_size=9), st.integers(1, 4)
)
def test_weighted_partition_equals_brute_force(points: list[tuple[float, float]], clusters: int) -> None:
    values, mass = np.array(sorted(points)).T
    ours = _cost(values, mass, partition(values, mass, clusters))
    cuts = itertools.combinations(range(1, len(values)), min(clusters, len(values)) - 1)
    least = min(
        sum(
            float(mass[a:b] @ (values[a:b] - np.average(values[a:b], weights=mass[a:b])) ** 2)
            for a, b in itertools.pairwise((0, *cut, len(values)))
        )
        for cut in cuts
    )
    assert ours <= least + 1e-9 * (1 + least)


def _cost(values: np.ndarray, mass: np.ndarray, centres: np.ndarray) -> float:
    return float(mass @ ((values[:, None] - centres[None]) ** 2).min(1))


def test_few_distinct_values_are_kept_to_two_bytes() -> None:
    weight = torch.tensor([[0.5, -0.25, 0.125, 0.5], [-0.25, 0.0, 0.125, 3.0]])
    for book in (KMeans(levels=5), EntropyConstrained(step=0.01, price=0.0)):
        assert torch.equal(book.fit(weight, torch.ones_like(weight, dtype=torch.bool)).dequantize(), weight)


def test_uniform_levels_are_multiples_of_a_float32_step() -> None:
    weight, kept, _ = sample()
    found = Uniform(bits=4).fit(weight, kept)
    step = found.levels[0, 1 - found.lowest]
    multiples = torch.arange(found.lowest, found.lowest + found.levels.shape[1]).float()
    assert torch.equal(found.levels[0], step * multiples)


def test_a_higher_price_zeroes_more_and_takes_fewer_bits() -> None:
    weight, kept, _ = sample(4000)
    alive = [
        int((EntropyConstrained(step=0.05, price=p).fit(weight, kept).symbols != 0).sum())
        for p in (0.0, 0.1, 0.5, 2.0)
    ]
    assert alive == sorted(alive, reverse=True)
    assert alive[-1] < alive[0]


def test_importance_moves_levels_to_where_it_is() -> None:
    weight, kept, _ = sample()
    importance = torch.where(weight > 0, 1.0, 1e-3)
    found = KMeans(levels=9).fit(weight, kept, importance)
    assert int((found.levels > 0).sum()) > int((found.levels < 0).sum())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"bits": 1}, "bits=1: expected|bits=1"),
        ({"bits": 9}, "from 2 to 8"),
        ({"levels": 2}, "from 3 to 256"),
        ({"bits": 4, "levels": 9}, "give one of them"),
        ({"bits": True}, "whole number"),
        ({"axis": -1}, "axis=-1"),
        ({"bit": 4}, "its options are"),
    ],
)
def test_options_that_cannot_work(options: dict[str, int], match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        codebook("kmeans", **options)


def test_entropy_options_that_cannot_work() -> None:
    for options in ({"step": 0.0}, {"step": float("nan")}, {"price": -1.0}, {"zeroing": -1.0}, {"rounds": 0}):
        with pytest.raises(ArgumentError, match=next(iter(options))):
            codebook("entropy", **options)


def test_registry() -> None:
    a_class: Any = KMeans
    with pytest.raises(ArgumentError, match="expected one of affine"):
        codebook("kmean")
    with pytest.raises(ArgumentError, match="such as KMeans"):
        codebook(a_class)
    with pytest.raises(ArgumentError, match="set them on the object"):
        codebook(KMeans(), bits=3)
    with pytest.raises(ArgumentError, match="taken"):
        register("kmeans")(KMeans)
    with pytest.raises(ArgumentError, match="expected a name"):
        register("")(KMeans)
    book = KMeans(bits=5)
    assert codebook(book) is book


def test_the_contract_finds_faults() -> None:
    @dataclasses.dataclass(frozen=True)
    class Zeroing(EntropyConstrained):
        @property
        def zeroes(self) -> bool:
            return False

    with pytest.raises(AssertionError, match="zeroes is False"):
        check_codebook(Zeroing(bits=2))
    with pytest.raises(AssertionError, match="expected at most 4"):
        check_codebook(Uniform(bits=5), levels=4)


def test_axis_must_exist() -> None:
    weight, kept, _ = sample()
    with pytest.raises(ArgumentError, match="axis=2: the weight has 2"):
        KMeans(axis=2).fit(weight, kept)
