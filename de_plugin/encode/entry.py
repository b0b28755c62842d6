"""One tensor of a compressed file: its name, type and shape, and which of them the format can hold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from de_plugin.errors import ArgumentError

# The order of types is part of the format: only ever append. Types that this torch lacks are skipped.
TYPES = (
    "float32",
    "int64",
    "float16",
    "bfloat16",
    "float64",
    "bool",
    "uint8",
    "int8",
    "int32",
    "int16",
    "complex64",
    "complex128",
    "float8_e4m3fn",
    "float8_e5m2",
    "uint16",
    "uint32",
    "uint64",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
)
CODES = {dtype: code for code, name in enumerate(TYPES) if (dtype := getattr(torch, name, None))}
QUANTIZABLE = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""The types in which a quantized tensor may come back."""

DIMENSIONS = 64
_ELEMENTS = 2**56  # with empty dimensions counted as one: what torch can lay out


@dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    Attributes:
        name: its key in the state dict.
        dtype: its type when it is read.
        shape: its shape.
        length: the bytes of its stream; 0 where it is tied.
        table: the number of its level table; None: it is not quantized.
        axis: the dimension whose slices have a group of levels each, if any.
        same: the number of an earlier entry that it shares its memory with, if any.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    length: int = 0
    table: int | None = None
    axis: int | None = None
    same: int | None = None

    @property
    def elements(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    @property
    def dense_bytes(self) -> int:
        """Bytes in memory."""
        return self.elements * self.dtype.itemsize


def check(entry: Entry) -> None:
    """Refuse what the format cannot hold.

    Raises:
        ArgumentError: a name with a zero byte or half a surrogate pair, an unknown type, or a shape of
            more than 64 dimensions or 2**56 values.
    """
    if "\0" in entry.name or not _encodable(entry.name):
        raise ArgumentError(f"name {entry.name!r}: expected text without zero bytes that UTF-8 can hold")
    if entry.dtype not in CODES:
        raise ArgumentError(f"{entry.name} has the type {entry.dtype}: expected one of {', '.join(TYPES)}")
    if not possible(entry.shape):
        raise ArgumentError(f"{entry.name} has the shape {entry.shape}: too many dimensions or values")


def possible(shape: tuple[int, ...]) -> bool:
    """Whether a tensor may have this shape."""
    return len(shape) <= DIMENSIONS and math.prod(max(size, 1) for size in shape) <= _ELEMENTS


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
