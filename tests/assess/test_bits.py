"""Zeroing by bits: what `torch.where` gives, for every number and layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from de_plugin.assess.bits import zero_, zeroed

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SPECIAL = [float("nan"), float("inf"), float("-inf"), -0.0, 1e-40]


def numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=draw).to(dtype)
    place = torch.randint(x.numel(), (len(SPECIAL),), generator=draw)
    x.view(-1)[place] = torch.tensor(SPECIAL).to(dtype)
    return x


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert not bool((torch.signbit(found) & (found == 0) & (expected == 0) & ~torch.signbit(expected)).any())


@settings(deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    candidates=st.integers(1, 3),
    rows=st.integers(1, 5),
    seed=st.integers(0, 99),
    transposed=st.booleans(),
)
def test_what_is_not_kept_is_zero_and_the_rest_untouched(
    dtype: torch.dtype, candidates: int, rows: int, seed: int, transposed: bool
) -> None:
    x = numbers((rows, 4), dtype, seed)
    kept = torch.rand((candidates, rows, 4), generator=torch.Generator().manual_seed(seed)) > 0.5
    if transposed:
        x, kept = x.T, kept.mT
    before = x.clone()
    same(zeroed(x, kept), torch.where(kept, x, torch.zeros((), dtype=dtype)))
    same(x, before)
    zero_(x, kept[0])
    same(x, torch.where(kept[0], before, torch.zeros((), dtype=dtype)))


@pytest.mark.parametrize("candidates", [1, 2])
def test_large_tensors_are_zeroed_in_blocks(candidates: int) -> None:
    x = numbers((1100, 1000), torch.float32, 0)
    kept = torch.rand((candidates, *x.shape), generator=torch.Generator().manual_seed(1)) > 0.5
    same(zeroed(x, kept), torch.where(kept, x, torch.zeros(())))
    expected = torch.where(kept[0], x, torch.zeros(()))
    zero_(x, kept[0])
    same(x, expected)
