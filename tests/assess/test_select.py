"""Laws of the selection: exactly as many as asked, only eligible ones, within quotas and N:M limits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from de_plugin.assess.select import lowest
from de_plugin.assess.units import ParameterUnits
from de_plugin.errors import ArgumentError, TargetError

MODEL = nn.Sequential(nn.Linear(8, 5), nn.Linear(4, 6))
UNITS = ParameterUnits(MODEL)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000), count=st.integers(0, 64), levels=st.integers(1, 6), rows=st.integers(1, 3)
)
def test_exactly_count_eligible_lowest_with_ties_by_index(
    seed: int, count: int, levels: int, rows: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (rows, UNITS.count), generator=draw).float()
    kept = torch.rand(UNITS.count, generator=draw) > 0.2
    eligible = torch.rand(UNITS.count, generator=draw) > 0.3
    may = (eligible & kept).nonzero().flatten()
    if count > len(may):
        with pytest.raises(TargetError, match="lower"):
            lowest(UNITS, scores, eligible, count, kept)
        return
    result = lowest(UNITS, scores, eligible, count, kept)
    for row in range(rows):
        order = may[scores[row, may].argsort(stable=True)][:count]
        expected = kept.clone()
        expected[order] = False
        assert torch.equal(result[row], expected)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), first=st.integers(0, 40), second=st.integers(0, 24))
def test_quotas_hold_for_every_layer(seed: int, first: int, second: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = torch.rand(UNITS.count, generator=draw)
    kept = torch.rand(UNITS.count, generator=draw) > 0.3
    quota = torch.tensor([first, second])
    result = lowest(UNITS, scores, torch.ones_like(kept), 0, kept, quota)
    assert not bool((result & ~kept).any())
    for number, layer in enumerate(UNITS.layers):
        part = slice(layer.start, layer.stop)
        gone = int((~kept[part]).sum())
        assert int((~result[part]).sum()) == max(gone, int(quota[number]))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1), zeros=st.integers(1, 3))
def test_n_to_m_limits_hold(seed: int, share: float, zeros: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = torch.rand(2, UNITS.count, generator=draw)
    kept = torch.ones(UNITS.count, dtype=torch.bool)
    everything = torch.ones_like(kept)
    half = int(share * zeros * UNITS.count / 4 / 2)
    kept = lowest(UNITS, scores[0], everything, half, kept, None, (zeros, 4))
    count = int(share * zeros * UNITS.count / 4) - half
    result = lowest(UNITS, scores, everything, count, kept, None, (zeros, 4))
    assert bool(((~result).reshape(2, -1, 4).sum(-1) <= zeros).all())
    assert (~result).sum(-1).tolist() == [half + count] * 2
    with pytest.raises(TargetError):
        lowest(UNITS, scores, everything, zeros * UNITS.count // 4 + 1, kept, None, (zeros, 4))


def test_infinite_scores_are_never_chosen() -> None:
    scores = torch.full((UNITS.count,), float("inf"))
    scores[:3] = 1
    kept = torch.ones(UNITS.count, dtype=torch.bool)
    assert (~lowest(UNITS, scores, kept, 3, kept)).nonzero().flatten().tolist() == [0, 1, 2]
    with pytest.raises(TargetError, match="only 3"):
        lowest(UNITS, scores, kept, 4, kept)


def test_wrong_scores_are_refused() -> None:
    kept = torch.ones(UNITS.count, dtype=torch.bool)
    with pytest.raises(ArgumentError, match="expected"):
        lowest(UNITS, torch.zeros(3), kept, 1, kept)
    with pytest.raises(ArgumentError, match="NaN"):
        lowest(UNITS, torch.full((UNITS.count,), float("nan")), kept, 1, kept)
