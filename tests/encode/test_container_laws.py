"""Any state comes back exactly: types, shapes, values, quantized or not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from de_plugin.encode import Quantized, dumps, loads
from de_plugin.encode.entry import CODES
from tests.encode.networks import dense, same

DTYPES = sorted(CODES, key=str)

shapes = st.lists(st.integers(0, 5), max_size=5).map(tuple)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Any bits of any type, or all zero, or all equal; as they lie in memory, or as a view."""
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(shapes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size = torch.Size(shape).numel() * dtype.itemsize
    fill = draw(st.sampled_from(["bits", "zero", "equal"]))
    raw = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
    if fill == "zero":
        raw.zero_()
    if dtype == torch.bool:
        raw &= 1
    if fill == "equal" and size:
        raw = raw[: dtype.itemsize].repeat(size // dtype.itemsize)
    tensor = raw.view(dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)
    if draw(st.booleans()) and tensor.dim() > 1:
        tensor = tensor.transpose(0, 1)
    if draw(st.booleans()) and tensor.is_complex():
        tensor = tensor.conj()
    return tensor


@st.composite
def quantized(draw: st.DrawFn) -> Quantized:
    """Any symbols, with levels for the whole tensor or for the slices of a dimension."""
    shape = draw(shapes)
    below, above = draw(st.integers(0, 20)), draw(st.integers(0, 20))
    axis = draw(st.none() | st.integers(0, len(shape) - 1)) if shape else None
    groups = 1 if axis is None else shape[axis]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    symbols = torch.randint(-below, above + 1, shape, dtype=torch.int32, generator=generator)
    symbols = symbols * (torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.1, 1.0])))
    levels = torch.randn(groups, below + above + 1, generator=generator)
    kind = draw(st.sampled_from(["any", "half", "step"]))
    if kind == "half":
        levels = levels.half().float()
    if kind == "step":
        levels = levels[:, :1] * torch.arange(-below, above + 1)
    levels[:, below] = 0
    return Quantized(symbols.int(), levels, -below, axis)


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.text(max_size=8).filter(lambda name: "\0" not in name), tensors() | quantized()))
def test_any_state_comes_back_exactly(state: dict[str, Tensor | Quantized]) -> None:
    loaded = loads(dumps(state))
    assert list(loaded) == list(state)
    for name, value in state.items():
        if isinstance(value, Quantized):
            assert torch.equal(loaded[name], value.dequantize())
        else:
            assert same(loaded[name], value.resolve_conj())


@settings(deadline=None, max_examples=30)
@given(st.dictionaries(st.text(max_size=20), st.text(max_size=20)))
def test_any_metadata_come_back(metadata: dict[str, str]) -> None:
    from de_plugin.encode.container import Container
    from de_plugin.encode.frame import MemorySource

    assert Container(MemorySource(dumps({}, metadata))).metadata == metadata


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_is_written_and_read(dtype: torch.dtype) -> None:
    raw = torch.arange(64, dtype=torch.uint8) % (2 if dtype == torch.bool else 200)
    for shape in ((-1,), (1, -1), (2, 2, -1)):
        tensor = raw.view(dtype).reshape(shape)
        assert same(loads(dumps({"t": tensor}))["t"], tensor)
    scalar = raw.view(dtype)[0]
    assert same(loads(dumps({"t": scalar}))["t"], scalar)


def test_signed_zeros_and_every_nan_are_exact() -> None:
    bits = torch.tensor([-(2**31), 0, 0x7FC00001, 0x7F800001, -0x7F800000 + 1, 1], dtype=torch.int32)
    tensor = bits.view(torch.float32)
    assert same(loads(dumps({"t": tensor}))["t"], tensor)


def test_a_large_layer_of_zeros_is_small_and_comes_back() -> None:
    zeros = Quantized(torch.zeros(2000, 2000, dtype=torch.int32), torch.zeros(1, 1), 0)
    data = dumps({"t": zeros})
    assert same(loads(data)["t"], dense(zeros))
