"""Level tables in few bytes: a step, a mirrored half, or a list; in halves, bytes on a grid, or floats.

A table is one byte for its kind, the form of its numbers and whether it has groups, the number of groups
if so, its extent, and the numbers:

- ``uniform``: symbol k stands for step * k; one step a group.
- ``mirrored``: k and -k stand for opposite values; those of 1 to n, a group after the other.
- ``listed``: the values from the lowest symbol to the highest, without symbol 0.

Numbers come in the shortest form that holds them exactly: float16, bfloat16 or float32, as they are or
packed as tensors are, or on a grid: one base number and a signed byte for each value, its multiple.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from de_plugin.encode.planes import decode_floats, encode_floats
from de_plugin.encode.varints import Reader, varint
from de_plugin.errors import FileError

_UNIFORM, _MIRRORED, _LISTED = range(3)
_TYPES = (torch.float16, torch.bfloat16, torch.float32)
_PLAIN, _PACKED, _GRID = 0, len(_TYPES), 2 * len(_TYPES)  # one form a type each
_FORMS, _GROUPED = 16, 64  # the first byte: form + 16 * kind + 64 with groups
_GRID_VALUES = 4096  # a longer list is packed as well


@dataclass(frozen=True)
class Table:
    """What symbols stand for.

    Attributes:
        numbers: float32 ``(groups, n)``: one step a group, or the values of the symbols from `lowest`
            to `lowest + n - 1`, exactly zero for symbol 0.
        lowest: the symbol of the first column; None: the numbers are steps.
        grouped: whether the slices of a dimension have a group each.
    """

    numbers: Tensor
    lowest: int | None
    grouped: bool

    def values(self, symbols: Tensor, axis: int | None) -> Tensor:
        """Return what int32 symbols of any shape stand for: float32, of their shape.

        Raises:
            FileError: a symbol has no level.
        """
        spread = [1] * symbols.dim()
        if axis is not None:
            spread[axis] = -1
        if self.lowest is None:
            return symbols.float().mul_(self.numbers.reshape(spread)).add_(0.0)  # never -0
        count = self.numbers.shape[1]
        if symbols.numel():
            low, high = int(symbols.min()), int(symbols.max())
            if low < self.lowest or high >= self.lowest + count:
                raise FileError(
                    f"symbols {low} to {high}, expected {self.lowest} to {self.lowest + count - 1}"
                )
        columns = symbols - self.lowest
        if axis is not None:
            columns = columns + (torch.arange(len(self.numbers)) * count).reshape(spread)
        return self.numbers.reshape(-1).index_select(0, columns.reshape(-1)).reshape(symbols.shape)


def pack(levels: Tensor, lowest: int, grouped: bool) -> bytes:
    """Return the bytes of a table.

    Args:
        levels: float32 ``(groups, count)``, finite; the value of symbol ``lowest + n`` in column n,
            zero for symbol 0. Zeros are written as +0.
        lowest: the symbol of the first column, from ``1 - count`` to 0.
        grouped: False only for one group that belongs to the whole tensor.
    """
    levels = levels + 0.0
    groups, count = levels.shape
    highest = lowest + count - 1
    head = varint(groups) if grouped else b""
    choices = []
    if count > 1 and (steps := _steps(levels, lowest)) is not None:
        choices.append((_UNIFORM, head, steps))
    if (half := _half(levels, lowest)) is not None:
        choices.append((_MIRRORED, head + varint(half.shape[1]), half.reshape(-1)))
    rest = torch.cat((levels[:, :-lowest], levels[:, 1 - lowest :]), dim=1) if lowest else levels[:, 1:]
    choices.append((_LISTED, head + varint(-lowest) + varint(highest), rest.reshape(-1)))
    packed = []
    for kind, extent, numbers in choices:
        form, data = _pack_numbers(numbers)
        packed.append(bytes([grouped * _GROUPED + kind * _FORMS + form]) + extent + data)
    return min(packed, key=len)


def unpack(reader: Reader, limit: int) -> Table:
    """Read one table.

    Args:
        reader: at the table's first byte.
        limit: the bytes that its numbers may need in memory.

    Raises:
        FileError: the table is damaged, or larger than `limit`.
    """
    first = reader.take(1)[0]
    grouped = has_groups(first)
    kind, form = divmod(first % _GROUPED, _FORMS)
    groups = reader.varint() if grouped else 1
    if kind == _UNIFORM:
        below, above, stored = 0, 0, 1
    elif kind == _MIRRORED:
        below = above = stored = reader.varint()
    elif kind == _LISTED:
        below, above = reader.varint(), reader.varint()
        stored = below + above
    else:
        raise FileError(f"a level table is damaged: kind {kind}")
    if 4 * max(groups, 1) * (below + above + 1) > limit:
        raise FileError(
            f"a level table of {groups} x {below + above + 1} levels is larger than {limit} bytes"
        )
    numbers = _unpack_numbers(reader, form, groups * stored).reshape(groups, stored)
    if not bool(torch.isfinite(numbers).all()):
        raise FileError("a level table is damaged: a level is not finite")
    if kind == _UNIFORM:
        return Table(numbers, None, grouped)
    zero = torch.zeros(groups, 1)
    columns = (
        (-numbers.flip(1), zero, numbers)
        if kind == _MIRRORED
        else (numbers[:, :below], zero, numbers[:, below:])
    )
    return Table(torch.cat(columns, dim=1) + 0.0, -below, grouped)


def has_groups(first: int) -> bool:
    """Whether the table with this first byte has groups that belong to slices of a dimension."""
    return first >= _GROUPED


def _steps(levels: Tensor, lowest: int) -> Tensor | None:
    """Return one step a group (groups,) whose multiples are the levels, bit for bit, or None."""
    symbols = torch.arange(lowest, lowest + levels.shape[1])
    widest = int(symbols.abs().argmax())
    nearest = 1 - lowest if symbols[-1] > 0 else -1 - lowest
    for column in (nearest, widest):
        steps = (levels[:, column].double() / symbols[column]).float()
        if torch.equal(steps[:, None] * symbols.float(), levels):
            return steps
    return None


def _half(levels: Tensor, lowest: int) -> Tensor | None:
    """Return the levels of the symbols from 1 to n (groups, n) where those of -n to -1 mirror them."""
    above, below = levels[:, 1 - lowest :], -levels[:, :-lowest].flip(1) if lowest else levels[:, :0]
    shared = min(above.shape[1], below.shape[1])
    if not torch.equal(above[:, :shared], below[:, :shared]):
        return None
    return max(above, below, key=lambda side: side.shape[1]) + 0.0


def _pack_numbers(numbers: Tensor) -> tuple[int, bytes]:
    """Return the shortest form and the bytes of float32 numbers (n,)."""
    forms = []
    for index, dtype in enumerate(_TYPES):
        small = numbers.contiguous().to(dtype)
        if torch.equal(small.float(), numbers):
            forms.append((_PLAIN + index, small.view(torch.uint8).numpy().tobytes()))
            packed = encode_floats(small)
            forms.append((_PACKED + index, varint(len(packed)) + packed))
    if 1 < len(numbers) <= _GRID_VALUES and (grid := _pack_grid(numbers)) is not None:
        forms.append(grid)
    return min(forms, key=lambda form: len(form[1]))


def _pack_grid(numbers: Tensor) -> tuple[int, bytes] | None:
    """Return the form and the bytes of numbers that are small multiples of one base, or None."""
    exact = [Fraction(number) for number in numbers.tolist()]
    below = max(number.denominator for number in exact)  # all are powers of two
    whole = [int(number * below) for number in exact]
    divisor = math.gcd(*whole)
    if not divisor or max(map(abs, whole)) > 127 * divisor:
        return None
    base = torch.tensor([divisor / below])
    for index, dtype in enumerate(_TYPES):
        small = base.to(dtype)
        if Fraction(float(small)) == Fraction(divisor, below):
            steps = bytes(number // divisor & 0xFF for number in whole)
            return _GRID + index, small.view(torch.uint8).numpy().tobytes() + steps
    return None


def _unpack_numbers(reader: Reader, form: int, count: int) -> Tensor:
    """Read float32 numbers (count,)."""
    way, index = divmod(form, len(_TYPES))
    if way * len(_TYPES) not in (_PLAIN, _PACKED, _GRID):
        raise FileError(f"a level table is damaged: form {form}")
    dtype = _TYPES[index]
    if way * len(_TYPES) == _PACKED:
        return decode_floats(reader.take(reader.varint()), dtype, (count,)).float()
    size = torch.empty((), dtype=dtype).element_size()
    if way * len(_TYPES) == _PLAIN:
        return _floats(reader.take(size * count), dtype)
    base = _floats(reader.take(size), dtype)
    return base * _floats(reader.take(count), torch.int8)


def _floats(data: bytes, dtype: torch.dtype) -> Tensor:
    """Return the numbers of that type in the bytes, as float32."""
    if not data:
        return torch.empty(0)
    return torch.frombuffer(bytearray(data), dtype=dtype).float()
