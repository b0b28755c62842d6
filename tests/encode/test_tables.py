"""Level tables: exact, and as short as their levels allow."""

from __future__ import annotations

import contextlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from de_plugin.encode import tables
from de_plugin.encode.varints import Reader, varint
from de_plugin.errors import FileError


def unpack(data: bytes, limit: int = 2**20) -> tables.Table:
    reader = Reader(data, "table")
    table = tables.unpack(reader, limit)
    reader.finish()
    return table


def values(table: tables.Table, lowest: int, count: int) -> Tensor:
    symbols = torch.arange(lowest, lowest + count, dtype=torch.int32).repeat(len(table.numbers), 1)
    return table.values(symbols, 0 if table.grouped else None)


def step(value: float, lowest: int, highest: int) -> Tensor:
    return value * torch.arange(lowest, highest + 1).float()[None]


@pytest.mark.parametrize(
    ("levels", "lowest", "size"),
    [
        (step(0.5, -4, 4), -4, 3),
        (step(0.1, -4, 4), -4, 5),
        (step(0.1, -40, 400), -40, 5),
        (step(0.1, 0, 1), 0, 5),
        (step(0.1, -1, 0), -1, 5),
        (torch.tensor([[0.0]]), 0, 2),
        (torch.tensor([[-0.75, -0.25, 0.0, 0.25, 0.75]]), -2, 6),
        (torch.tensor([[-3.0, 0.0, 1.0, 70.0, 111.0]]), -1, 9),
        (torch.tensor([[-0.1, 0.0, 0.25]]), -1, 11),
    ],
)
def test_tables_take_no_more_bytes_than_their_levels_need(levels: Tensor, lowest: int, size: int) -> None:
    data = tables.pack(levels, lowest, grouped=False)
    assert len(data) <= size
    assert torch.equal(values(unpack(data), lowest, levels.shape[1]), levels)


def test_levels_on_a_grid_take_a_byte_each() -> None:
    levels = torch.tensor([[-127, -61, -20, 0, 9, 33, 70, 126.0]]) * torch.tensor(0.00123).bfloat16().float()
    assert len(tables.pack(levels, -3, grouped=False)) == 1 + 2 + 2 + 7


def test_steps_of_many_groups_are_packed() -> None:
    levels = step(0.01, -7, 7).repeat(512, 1)
    data = tables.pack(levels, -7, grouped=True)
    assert len(data) < 4 * 512
    assert torch.equal(values(unpack(data), -7, 15), levels)


def test_zeros_come_back_positive() -> None:
    levels = torch.tensor([[-0.5, -0.0, 0.3], [-0.0, -0.0, -0.0]])
    back = values(unpack(tables.pack(levels, -1, grouped=True)), -1, 3)
    assert torch.equal(back, levels)
    assert not torch.signbit(back[back == 0]).any()
    steps = values(unpack(tables.pack(step(0.3, -2, 2), -2, grouped=False)), -2, 5)
    assert not torch.signbit(steps[steps == 0]).any()


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 5),
    st.integers(0, 9),
    st.integers(0, 9),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    st.sampled_from(["any", "steps", "mirrored", "grid", "zero"]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_any_levels_come_back_exactly(
    groups: int, below: int, above: int, dtype: torch.dtype, kind: str, grouped: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    groups = groups if grouped else 1
    symbols = torch.arange(-below, above + 1)
    drawn = torch.randn(groups, len(symbols), generator=generator)
    levels = {
        "any": drawn,
        "steps": drawn[:, :1] * symbols,
        "mirrored": symbols.sign() * torch.rand(10, generator=generator)[symbols.abs()] * symbols.abs(),
        "grid": (drawn * 50).round().clamp(-127, 127) * 2.0**-9,
        "zero": torch.zeros(groups, len(symbols)),
    }[kind].expand(groups, -1)
    levels = levels.to(dtype).float() * (symbols != 0)
    data = tables.pack(levels, -below, grouped)
    table = unpack(data)
    assert table.grouped == grouped
    assert torch.equal(values(table, -below, len(symbols)), levels)


def test_extremes_come_back_exactly() -> None:
    info = torch.finfo(torch.float32)
    levels = torch.tensor([[-info.max, 0.0, info.smallest_normal, 2.0**-149, info.max]])
    assert torch.equal(values(unpack(tables.pack(levels, -1, grouped=False)), -1, 5), levels)


def test_a_symbol_without_a_level_is_refused() -> None:
    table = unpack(tables.pack(torch.tensor([[-0.3, 0.0, 0.5]]), -1, grouped=False))
    with pytest.raises(FileError, match="symbols 0 to 2, expected -1 to 1"):
        table.values(torch.tensor([0, 2], dtype=torch.int32), None)


@pytest.mark.parametrize("place", range(16))
def test_damage_is_told_or_makes_another_table(place: int) -> None:
    data = tables.pack(torch.tensor([[-0.1, 0.0, 0.25, 7.0]]), -1, grouped=False)
    for bit in range(8):
        damaged = bytearray(data)
        damaged[place % len(data)] ^= 1 << bit
        try:
            table = unpack(bytes(damaged))
        except FileError:
            continue
        assert torch.isfinite(table.numbers).all()


def test_a_table_larger_than_memory_is_refused_before_it_is_made() -> None:
    bomb = bytes([64 + 2 * 16]) + b"\xff\xff\xff\xff\xff\xff\xff\x7f" + b"\xff\xff\xff\xff\x0f" + b"\x00"
    with pytest.raises(FileError, match="larger than"):
        unpack(bomb, 2**30)


@pytest.mark.parametrize("extent", [(0, 2**62, 2**62), (1, 2**62, 2**62), (0, 2**63 - 1, 0)])
def test_a_table_that_promises_too_much_is_refused(extent: tuple[int, int, int]) -> None:
    """No group, or more levels than memory has room for: told before anything is made."""
    groups, below, above = extent
    for first in range(256):
        data = bytes([first]) + varint(groups) + varint(below) + varint(above) + bytes(64)
        with contextlib.suppress(FileError):
            assert tables.unpack(Reader(data, "a table"), 1 << 20).numbers.numel() < 1 << 18
