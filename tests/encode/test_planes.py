"""Unquantized tensors come back bit for bit, and damaged bytes are refused."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from de_plugin.encode.planes import decode_floats, encode_floats
from de_plugin.errors import FileError

TYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
]


def bits(x: torch.Tensor) -> bytes:
    return x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b""


@pytest.mark.parametrize("dtype", TYPES)
@given(shape=st.lists(st.integers(0, 7), max_size=4), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=25)
def test_any_bits_come_back(dtype: torch.dtype, shape: list[int], seed: int) -> None:
    size = torch.Size(shape).numel() * dtype.itemsize
    raw = bytearray(random.Random(seed).randbytes(size))
    if dtype == torch.bool:
        raw = bytearray(b & 1 for b in raw)
    x = torch.frombuffer(raw, dtype=dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)
    found = decode_floats(encode_floats(x), dtype, tuple(shape))
    assert found.dtype == dtype
    assert found.shape == x.shape
    assert bits(found) == bits(x)


@pytest.mark.parametrize(
    ("dtype", "share"), [(torch.float32, 0.87), (torch.bfloat16, 0.75), (torch.int64, 0.27)]
)
def test_weights_become_smaller(dtype: torch.dtype, share: float) -> None:
    x = 0.05 * torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
    x = (1000 * x).to(dtype) if dtype == torch.int64 else x.to(dtype)
    assert len(encode_floats(x)) < share * x.numel() * dtype.itemsize


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2)])
def test_the_tensor_stays_as_it_is(shape: tuple[int, ...]) -> None:
    x = -torch.rand(shape) - 1
    before = x.clone()
    encode_floats(x)
    assert torch.equal(x, before)


def test_views_and_other_layouts_come_back() -> None:
    x = torch.randn(6, 8).T[::2]
    assert torch.equal(decode_floats(encode_floats(x), x.dtype, tuple(x.shape)), x)


@pytest.mark.parametrize("change", ["cut", "longer", "flip"])
def test_damaged_bytes_are_refused_or_other_numbers(change: str) -> None:
    x = 0.05 * torch.randn(500, generator=torch.Generator().manual_seed(0))
    whole = encode_floats(x)
    chance = random.Random(1)
    for _ in range(200):
        if change == "cut":
            with pytest.raises(FileError):
                decode_floats(whole[: chance.randrange(len(whole))], x.dtype, (500,))
        elif change == "longer":
            with pytest.raises(FileError):
                decode_floats(whole + b"x", x.dtype, (500,))
        else:
            place = chance.randrange(len(whole))
            other = whole[:place] + bytes([whole[place] ^ (1 << chance.randrange(8))]) + whole[place + 1 :]
            try:
                assert decode_floats(other, x.dtype, (500,)).shape == (500,)
            except FileError:
                continue
