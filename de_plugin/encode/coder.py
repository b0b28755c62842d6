"""Symbols of a quantized tensor to bytes and back, without loss.

The bytes begin with the largest magnitude and, where it is not the natural one, the layout; then come the
range coder's. A tensor of zeros has no bytes at all.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from de_plugin.encode import model
from de_plugin.encode.layouts import likely_layouts
from de_plugin.encode.varints import Reader, varint
from de_plugin.encode.wavefront import FARTHEST, Layout, natural_layout
from de_plugin.errors import ArgumentError, FileError

_TRIAL = 200
_ENOUGH, _ENOUGH_NONZEROS = 1 << 16, 1 << 14
_SPECIAL = 4
_MANY = 10_000
"""Nonzeros times their density from which on there are fewer steps: some .1 % more bytes in half the time.

Not where columns belong together in another way than the shape suggests: they are torn apart too often.
"""

_HURRIED_LINE = 2 * FARTHEST  # added to the line in the head


def encode_symbols(symbols: Tensor | npt.NDArray[np.int32]) -> bytes:
    """Return the bytes of a tensor of symbols; its shape is not among them.

    Args:
        symbols: int32 of any shape, 0 where the weight is zero; dimension 0 is the output channel.

    Raises:
        ArgumentError: the symbols are not int32.
    """
    array = symbols.detach().cpu().numpy() if isinstance(symbols, Tensor) else np.asarray(symbols)
    if array.dtype != np.int32:
        raise ArgumentError(f"symbols are {array.dtype}, expected int32")
    flat = np.ascontiguousarray(array).reshape(-1)
    largest = max(int(flat.max(initial=0)), -int(flat.min(initial=0)))
    if not largest:
        return b""
    natural = layout = natural_layout(array.shape)
    others = likely_layouts(flat, layout)
    if others:
        some = _first_rows(flat, layout)
        sizes = [_tried(some, tried, largest) for tried in (layout, *others)]
        best = min(range(len(sizes)), key=sizes.__getitem__)
        if best and sizes[best] + _SPECIAL < sizes[0]:
            layout = others[best - 1]
    if layout is natural and int(np.count_nonzero(flat)) ** 2 >= _MANY * len(flat):
        layout = dataclasses.replace(natural, hurried=True)
    return _head(largest, layout, natural) + model.write(flat, layout, largest)


def _head(largest: int, layout: Layout, natural: Layout) -> bytes:
    if layout == natural:
        return varint(largest << 1)
    return (
        varint(largest << 1 | 1) + varint(layout.group) + varint(layout.line + _HURRIED_LINE * layout.hurried)
    )


def _first_rows(symbols: npt.NDArray[np.int32], layout: Layout) -> npt.NDArray[np.int32]:
    """Return the rows that are enough to choose a layout by."""
    share = _ENOUGH_NONZEROS / max(int(np.count_nonzero(symbols)), 1)
    enough = max(_ENOUGH, math.ceil(share * len(symbols)))
    return symbols[: -(-enough // layout.columns) * layout.columns]


def _tried(symbols: npt.NDArray[np.int32], layout: Layout, largest: int) -> int:
    """Return about how many bytes some rows of a matrix take in a layout."""
    rows = len(symbols) // layout.columns
    return len(model.write(symbols, dataclasses.replace(layout, rows=rows), largest, _TRIAL))


def decode_symbols(data: bytes, shape: tuple[int, ...]) -> Tensor:
    """Return the int32 tensor of the given shape that `encode_symbols` wrote.

    Raises:
        FileError: the bytes are damaged or belong to another shape.
    """
    if not data:
        return torch.zeros(shape, dtype=torch.int32)
    count = math.prod(shape)
    reader = Reader(data, "a tensor of symbols")
    largest, special = divmod(reader.varint(), 2)
    layout = natural_layout(shape)
    if not 0 < largest <= 1 << 31 or not count:
        raise FileError(f"a tensor of symbols is damaged: largest magnitude {largest} in {count} symbols")
    if special:
        group, (hurried, line) = reader.varint(), divmod(reader.varint(), _HURRIED_LINE)
        layout = Layout(layout.rows, layout.columns, group, line, bool(hurried))
        if (
            not 1 <= layout.group <= layout.columns
            or layout.line >= layout.columns
            or hurried > 1
            or max(layout.group, layout.line) > FARTHEST
        ):
            raise FileError(
                f"a tensor of symbols is damaged: groups of {layout.group} and lines of {layout.line} in "
                f"{layout.columns} columns, coded in way {hurried}"
            )
    flat = model.read(data[reader.position :], layout, largest)[:count]
    return torch.from_numpy(flat.reshape(shape))
