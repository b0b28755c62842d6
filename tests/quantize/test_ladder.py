"""Equal steps with a few levels beyond: never worse than steps alone, and single huge weights stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from de_plugin.quantize import Uniform
from de_plugin.quantize.compensate import Quadratic, best_step, compensated
from de_plugin.quantize.ladder import Ladder, Spread, ladder
from de_plugin.quantize.survivors import Floats, Survivors


def values(count: int, seed: int, outliers: int) -> Floats:
    rng = np.random.default_rng(seed)
    found: Floats = rng.normal(size=count).astype(np.float32).astype(np.float64)
    found[:outliers] *= rng.uniform(20, 200, outliers).astype(np.float32)
    return found


def nearest(found: Ladder, weight: torch.Tensor) -> torch.Tensor:
    """Return each weight's own level."""
    table, _ = found.table()
    return table[(weight[..., None] - table).abs().argmin(-1)]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bits=st.integers(2, 6),
    outliers=st.integers(0, 4),
    count=st.sampled_from([1, 40, 2000]),
)
def test_no_worse_than_clipped_steps(seed: int, bits: int, outliers: int, count: int) -> None:
    points = values(count, seed, min(outliers, count))
    weight = torch.from_numpy(points).float()
    limit = (2**bits - 1) // 2
    start = float(Uniform(levels=2 * limit + 1).steps(Survivors.of(weight, weight != 0, None, None))[0])
    found = ladder(Spread.of(points), start, 2**bits)
    table, lowest = found.table()
    assert len(table) <= 2**bits
    assert bool((table.diff() > 0).all())
    assert float(table[-lowest]) == 0.0
    clipped = torch.round(weight / start).clamp(-limit, limit) * start
    error = (nearest(found, weight) - weight).square().sum()
    assert float(error) <= float((clipped - weight).square().sum()) * (1 + 1e-5) + 1e-9


@pytest.mark.parametrize(
    ("outliers", "level"), [([20.0, -31.0], -31.0), ([30.0, -45.0, 20.0], -45.0), ([30.0], 30.0)]
)
def test_one_level_beyond_is_where_the_farthest_are(outliers: list[float], level: float) -> None:
    points = values(4000, 2, 0)
    points[: len(outliers)] = outliers
    assert ladder(Spread.of(points), 1.2, 4).apart == (level,)


def test_nothing_that_is_left_has_levels_all_the_same() -> None:
    nothing = Spread.of(np.zeros(0))
    assert ladder(nothing, 1.0, 8) == Ladder(1.0, 3)
    assert Ladder(1.0, 3, (9.0,)).moved(nothing, 2.0) == Ladder(2.0, 3)


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_a_huge_weight_keeps_its_value_and_others_their_steps(bits: int) -> None:
    points = values(5000, 0, 0)
    points[7] = 180.0
    found = ladder(Spread.of(points), 8.0 / 2**bits, 2**bits)
    assert 180.0 in found.apart
    assert 4.0 / 2**bits < found.step < 16.0 / 2**bits


def test_many_values_are_thinned_but_the_ends_stay() -> None:
    points = values(400_000, 3, 3)
    found = Spread.of(points)
    thin = found.points
    assert found.mass.sum() == pytest.approx(len(points))
    assert len(thin) < 60_000
    ordered = np.sort(points)
    assert np.array_equal(thin[:1000], ordered[:1000])
    assert np.array_equal(thin[-1000:], ordered[-1000:])
    assert np.array_equal(Spread.of(points[:100]).points, np.sort(points[:100]))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.integers(2, 5))
def test_symbols_are_places_in_the_table(seed: int, bits: int) -> None:
    weight = torch.from_numpy(values(300, seed, 3)).float()
    found = ladder(Spread.of(weight.double().numpy()), 0.4, 2**bits)
    beyond = found.beyond(weight)
    multiples = (weight / found.step).round().clamp(-found.limit, found.limit).int() * (beyond == 0)
    symbols = found.symbols(multiples, beyond)
    table, lowest = found.table()
    again = table[symbols.long() - lowest]
    assert torch.equal(again[beyond != 0], beyond[beyond != 0])
    # each level is the nearest of its side: of two equally near ones either will do
    assert torch.allclose((again - weight).abs(), (nearest(found, weight) - weight).abs(), atol=1e-6)


def test_levels_move_with_the_step() -> None:
    points = values(2000, 5, 2)
    first = ladder(Spread.of(points), 0.2, 32)
    assert first.apart
    wider = first.moved(Spread.of(points), 2 * first.step)
    assert wider.step == 2 * first.step
    assert wider.limit == first.limit
    assert len(wider.apart) <= len(first.apart)
    assert Ladder(1.0, 3).moved(Spread.of(points), 2.0) == Ladder(2.0, 3)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), price=st.sampled_from([0.0, 0.05]))
def test_given_values_stay_and_others_make_good_their_errors(seed: int, price: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(200, 12, generator=draw).double() @ torch.randn(12, 12, generator=draw).double()
    weight, gram = torch.randn(6, 12, generator=draw), x.T @ x / 200
    weight[2, 5] = 60.0
    form = Quadratic.of(gram, weight.double() @ gram, torch.ones(6), weight, 1e-3)
    known = torch.zeros(6, 12)
    known[2, 5] = 59.0
    everything = torch.ones(6, 12, dtype=torch.bool)
    symbols = compensated(form, everything, 0.3, price, limit=15, given=known)
    assert int(symbols[2, 5]) == 0
    assert int(symbols.abs().max()) <= 15
    if price == 0:
        alone = torch.round(weight / 0.3).clamp(-15, 15) * (known == 0) * 0.3 + known
        assert form.error(symbols * 0.3 + known) < form.error(alone)


def test_the_step_is_that_of_the_others() -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(30, 20, generator=draw)
    eye, everything = torch.eye(20, dtype=torch.float64), torch.ones(30, 20, dtype=torch.bool)
    usual = Quadratic.of(eye, weight.double(), torch.ones(30), weight, 1e-9)
    alone = best_step([(usual, everything)], 1.0, 7)
    weight[3, 4] = 500.0
    huge = Quadratic.of(eye, weight.double(), torch.ones(30), weight, 1e-9)
    known = torch.zeros(30, 20)
    known[3, 4] = 500.0
    assert best_step([(huge, everything)], 1.0, 7, lambda _: [known]) == alone
