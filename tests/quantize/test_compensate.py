"""Compensated rounding of one layer: cheaper than rounding alone, near the best, and a price that prunes."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from de_plugin.quantize.compensate import Quadratic, best_step, compensated


def form(rows: int, inputs: int, seed: int, ridge: float = 1e-6) -> tuple[Quadratic, Tensor]:
    """Return the cost of changing a weight whose inputs are strongly correlated, and the weight."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=draw).double()
    x = torch.randn(400, inputs, generator=draw).double() @ mixing
    weight = torch.randn(rows, inputs, generator=draw)
    gram = x.T @ x / len(x)
    importance = torch.rand(rows, generator=draw) + 0.1
    return Quadratic.of(gram, weight.double() @ gram, importance, weight, ridge), weight


def cost(quadratic: Quadratic, values: Tensor) -> float:
    """Return the weighted error of some values, zero for the best ones."""
    away = values.double() - quadratic.solution.double()
    return float((quadratic.importance.double() * ((away @ quadratic.gram.double()) * away).sum(1)).sum())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), step=st.sampled_from([0.1, 0.4, 1.0]))
def test_errors_are_made_good(seed: int, step: float) -> None:
    quadratic, weight = form(6, 12, seed)
    kept = torch.rand(6, 12, generator=torch.Generator().manual_seed(seed)) < 0.7
    symbols = compensated(quadratic, kept, step, 0.0)
    assert symbols.dtype == torch.int32
    assert not bool(symbols[~kept].any())
    alone = torch.round(weight / step) * kept
    assert cost(quadratic, symbols * step) <= cost(quadratic, alone * step) + 1e-6


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_near_the_best_of_all_choices(seed: int) -> None:
    quadratic, _ = form(1, 4, seed)
    everything = torch.ones(1, 4, dtype=torch.bool)
    choices = torch.tensor(list(itertools.product(range(-3, 4), repeat=4))).double()
    errors = [cost(quadratic, c[None] * 0.8) for c in choices]
    limit = torch.tensor(errors).sort().values
    found = cost(quadratic, compensated(quadratic, everything, 0.8, 0.0) * 0.8)
    assert found <= float(limit[len(limit) // 50]) + 1e-6


def test_unrelated_inputs_are_rounded_alone() -> None:
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    eye = torch.eye(7, dtype=torch.float64)
    quadratic = Quadratic.of(eye, weight.double(), torch.ones(5), weight, 1e-9)
    symbols = compensated(quadratic, torch.ones(5, 7, dtype=torch.bool), 0.3, 0.0)
    assert torch.equal(symbols, torch.round(weight / 0.3).int())


def test_a_price_prunes_and_coarsens() -> None:
    quadratic, _ = form(20, 40, 3, 1e-3)
    everything = torch.ones(20, 40, dtype=torch.bool)
    left, errors = [], []
    for price in (0.0, 0.01, 0.1, 1.0, 1e6):
        symbols = compensated(quadratic, everything, 0.3, price)
        left.append(int((symbols != 0).sum()))
        errors.append(cost(quadratic, symbols * 0.3))
    assert left == sorted(left, reverse=True)
    assert left[0] > left[2] > left[-1] == 0
    assert errors == sorted(errors)


@pytest.mark.parametrize("seed", range(8))
def test_sweeps_never_make_it_worse(seed: int) -> None:
    quadratic, _ = form(12, 40, seed, 1e-3)
    everything = torch.ones(12, 40, dtype=torch.bool)
    errors = [cost(quadratic, compensated(quadratic, everything, 0.5, 0.0, sweeps=n) * 0.5) for n in range(5)]
    assert all(b <= a * (1 + 1e-4) for a, b in itertools.pairwise(errors))
    assert errors[-1] < errors[0]


def test_an_input_that_never_changes() -> None:
    """What is constant goes to the bias, and rounding noise is left of it."""
    for seed in range(60):
        noise = 1e-4 * torch.randn(5, 5, generator=torch.Generator().manual_seed(seed)).double()
        gram = torch.eye(5).double() * 1e-12 + noise @ noise.T * 1e-9
        quadratic = Quadratic.of(gram, torch.zeros(3, 5), torch.ones(3), torch.ones(3, 5), 0.03)
        assert bool(torch.isfinite(quadratic.factor).all())


def test_inputs_that_are_always_zero() -> None:
    weight = torch.ones(2, 3)
    zero = torch.zeros(3, 3, dtype=torch.float64)
    quadratic = Quadratic.of(zero, torch.zeros(2, 3), torch.ones(2), weight, 0.1)
    symbols = compensated(quadratic, torch.ones(2, 3, dtype=torch.bool), 0.5, 0.0)
    assert torch.equal(symbols, torch.full((2, 3), 2, dtype=torch.int32))


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("inputs", [1, 33, 70])
def test_blocks_of_any_size(rows: int, inputs: int) -> None:
    quadratic, weight = form(rows, inputs, 1, 1e-3)
    symbols = compensated(quadratic, torch.ones(rows, inputs, dtype=torch.bool), 0.05, 0.0)
    assert symbols.shape == (rows, inputs)
    assert cost(quadratic, symbols * 0.05) <= cost(quadratic, torch.round(weight / 0.05) * 0.05) + 1e-6


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), limit=st.sampled_from([1, 3, 7]), price=st.sampled_from([0.0, 0.1]))
def test_symbols_are_limited_and_what_is_clipped_is_made_good(seed: int, limit: int, price: float) -> None:
    quadratic, weight = form(6, 12, seed, 1e-3)
    everything = torch.ones(6, 12, dtype=torch.bool)
    start = float(weight.abs().max()) / limit
    step = best_step([(quadratic, everything)], start, limit)
    symbols = compensated(quadratic, everything, step, price, limit=limit)
    assert int(symbols.abs().max()) <= limit
    if price == 0:
        alone = torch.round(weight / start).clamp(-limit, limit)
        assert quadratic.error(symbols * step) <= quadratic.error(alone * start) + 1e-6
        assert quadratic.error(symbols * step) == pytest.approx(float(cost(quadratic, symbols * step)))
