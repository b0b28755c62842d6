"""The checksum of tensors: the same for the same bits, another one for any other bits."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from de_plugin.assess.fingerprint import fingerprint

sizes = st.sampled_from([1, 7, 100, 5983, 5984, 5985, 6000, 20_011])
"""Below, at and above the size from which sums stand for the words."""


def tensor(size: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


@settings(deadline=None)
@given(size=sizes, seed=st.integers(0, 9), dtype=st.sampled_from([torch.float32, torch.float16]))
def test_equal_values_have_equal_sums_whatever_holds_them(size: int, seed: int, dtype: torch.dtype) -> None:
    x = tensor(size, seed, dtype)
    padded = torch.cat([x[:1], x])
    assert fingerprint([x]) == fingerprint([x.clone()]) == fingerprint([padded[1:]])
    assert fingerprint([torch.stack([x, x], 1)[:, 0]]) == fingerprint([x])


@settings(deadline=None)
@given(size=sizes, seed=st.integers(0, 9), data=st.data())
def test_any_change_of_one_value_is_seen(size: int, seed: int, data: st.DataObject) -> None:
    x = tensor(size, seed)
    y = x.clone()
    place = data.draw(st.integers(0, size - 1))
    y[place] = data.draw(st.sampled_from([0.0, 1.5, float("nan")]))
    assert fingerprint([x]) != fingerprint([y])


@settings(deadline=None)
@given(seed=st.integers(0, 9), data=st.data())
def test_exchanged_values_and_rectangles_of_changes_are_seen(seed: int, data: st.DataObject) -> None:
    x = tensor(200_000, seed)
    first, second = data.draw(st.lists(st.integers(0, 99_999), min_size=2, max_size=2, unique=True))
    y = x.clone()
    y[[2 * first, 2 * second]] = x[[2 * second, 2 * first]]
    assert fingerprint([x]) != fingerprint([y])
    mask = torch.zeros(200_000, dtype=torch.bool)
    flipped = mask.clone()
    corners = [8 * (256 * a + b) for a in (1, 3) for b in (5, 9)]
    flipped[corners] = torch.tensor([True, False, False, True])
    other = mask.clone()
    other[corners] = torch.tensor([False, True, True, False])
    assert fingerprint([flipped]) != fingerprint([other])


@settings(deadline=None)
@given(size=st.integers(1, 50))
def test_order_and_number_of_tensors_count(size: int) -> None:
    x, y = tensor(size, 0), tensor(size, 1)
    assert fingerprint([x, y]) != fingerprint([y, x])
    assert fingerprint([x]) != fingerprint([x, torch.empty(0)])
