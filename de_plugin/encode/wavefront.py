"""The order in which a matrix is coded: anti-diagonals, so that what is left and above is always known.

All of one anti-diagonal is predicted at once. A row has then been seen up to here and so has a column, which
is what the contexts live on; line by line, one of the two would be unknown. A large matrix is cut into
tiles that advance together and share what they learn, so that there are few, long steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from de_plugin.encode.fixed import Indices

Symbols = npt.NDArray[np.int32]
Magnitudes = npt.NDArray[np.int16]

_WORK = 1 << 27
_FEWEST, _MOST, _LONGEST = 192, 512, 24576
_FEWEST_HURRIED = 128
_ROOM, _SPARE = 16, 1 << 20
_FOLDED, _NARROW, _LONG = 4096, 8, 4096
FARTHEST = 1024
"""The largest group or line: columns farther apart are not looked at."""


@dataclass(frozen=True)
class Layout:
    """How a tensor lies in a matrix, and what is near what in it.

    Attributes:
        rows: output channels.
        columns: what is left of the shape, flattened.
        group: columns that belong together: the positions of a kernel; 1 if there are none.
        line: the distance of columns that lie below each other in a kernel or an image; 0: none do.
        hurried: whether there are fewer steps, a quarter where there are many: what is learnt of so many
            nonzeros is learnt soon enough.
    """

    rows: int
    columns: int
    group: int = 1
    line: int = 0
    hurried: bool = False

    @property
    def distances(self) -> tuple[int, ...]:
        """How far to the left the related columns are, apart from the next one."""
        return tuple(sorted({d for d in (self.line, self.group) if d > 1}))

    def tiles(self, steps: int = 0) -> tuple[int, int]:
        """Return into how many parts rows and columns are cut.

        As few as make the steps few enough and the sheared sheet small; where wide kernels allow no small
        one, those of the smallest.

        Args:
            steps: the most that coding may take; 0: as many as the size is worth.
        """
        size = self.rows * self.columns
        margin = max(2, *self.distances, 2)
        most = steps or max(min(_WORK // max(size, 1), _MOST), _FEWEST, size // _LONGEST)
        if self.hurried and not steps:
            most = max(most // 4, min(most, _FEWEST_HURRIED))
        down = across = 1
        best, least = (1, 1), math.inf
        while True:
            height, width = -(-self.rows // down), -(-self.columns // across)
            sheet = (height + width + margin) * (height + 1) * down * across
            enough = height + width <= most
            if enough and sheet < least:
                best, least = (down, across), sheet
            if (enough and sheet <= _ROOM * size + _SPARE) or max(height, width) < 2:
                return best
            if height > width:
                down *= 2
            else:
                across *= 2


def natural_layout(shape: tuple[int, ...]) -> Layout:
    """Return the layout that a tensor's shape suggests.

    A vector has no rows; it is folded into a square, as what is far apart in it is hardly related. So is a
    long narrow matrix: cut into tiles it would be coded in a few steps, before anything is learnt.
    """
    size = math.prod(shape)
    columns = size // shape[0] if len(shape) > 1 and shape[0] else 0
    short, long = sorted((shape[0] if shape else 1, columns))
    if len(shape) < 2 or shape[0] == size or (size > _FOLDED and (short < _NARROW or long > _LONG * short)):
        width = math.isqrt(max(size, 1) - 1) + 1 if size else 0
        return Layout(-(-size // width) if width else 0, width)
    kernel = math.prod(shape[2:])
    if len(shape) == 2 or not 2 <= kernel <= FARTHEST:
        return Layout(shape[0], columns)
    return Layout(shape[0], columns, kernel, shape[-1] if 1 < shape[-1] < kernel else 0)


class Front:
    """The cells of one step: ``(tiles down, tiles across, rows of a tile)``."""

    def __init__(self, step: int, height: int, width: int) -> None:
        self.first = max(0, step - width + 1)
        self.last = min(height, step + 1)
        self.column = step - self.first
        low = step - self.last
        self.rows = slice(self.first, self.last)
        self.columns = slice(self.column, low if low >= 0 else None, -1)


class Sheet:
    """A matrix sheared so that every anti-diagonal of its tiles is contiguous.

    Args:
        layout: of the matrix.
        symbols: of the tensor, flat; None where they are to be decoded.
        steps: see `Layout.tiles`.
    """

    def __init__(self, layout: Layout, symbols: Symbols | None, steps: int = 0) -> None:
        self.layout = layout
        self.down, self.across = layout.tiles(steps)
        self.height = -(-layout.rows // self.down)
        self.width = -(-layout.columns // self.across)
        self.cells = self.down * self.across
        self.steps = self.height + self.width - 1
        self._margin = max(2, *layout.distances, 2)
        shape = (self.steps + self._margin, self.down, self.across, self.height + 1)
        self._values = np.zeros(shape, dtype=np.int32)
        self._sizes = np.zeros(shape, dtype=np.int16)
        if symbols is not None:
            self._shear(symbols)
        self._flat = self._values.reshape(shape[0], -1)
        self._flat_sizes = self._sizes.reshape(shape[0], -1)

    def front(self, step: int) -> Front:
        """Return the cells of a step."""
        return Front(step, self.height, self.width)

    def values(self, step: int, front: Front) -> Symbols:
        """Return the symbols of a step, a view."""
        return self._values[step + self._margin, :, :, front.first + 1 : front.last + 1]

    def sizes(self, step: int, front: Front, back: int, up: int = 0) -> Magnitudes:
        """Return the magnitudes, at most 3, of the cells `back - up` to the left and `up` above."""
        return self._sizes[step + self._margin - back, :, :, front.first + 1 - up : front.last + 1 - up]

    def neighbours(self, step: int, places: Indices, back: int, up: int = 0) -> Symbols:
        """Return the symbols of the same cells as `sizes`, only for some of the front.

        Args:
            step: the one that is coded.
            places: flat: tile times (height + 1), plus the row in the tile, plus one.
            back: steps back.
            up: rows up, 0 or 1.
        """
        near: Symbols = self._flat[step + self._margin - back][places - up]
        return near

    def store(self, step: int, places: Indices, values: npt.NDArray[np.int64]) -> None:
        """Enter the nonzero symbols of a step, at the places as in `neighbours`."""
        self._flat[step + self._margin][places] = values
        self._flat_sizes[step + self._margin][places] = np.minimum(np.abs(values), 3)

    def _shear(self, symbols: Symbols) -> None:
        tiles = self._padded(symbols)
        for row in range(self.height):
            start = self._margin + row
            self._values[start : start + self.width, :, :, row + 1] = tiles[:, row].transpose(2, 0, 1)

    def _padded(self, symbols: Symbols) -> Symbols:
        layout = self.layout
        matrix = np.zeros((self.down * self.height, self.across * self.width), dtype=np.int32)
        full = np.zeros(layout.rows * layout.columns, dtype=np.int32)
        full[: len(symbols)] = symbols
        matrix[: layout.rows, : layout.columns] = full.reshape(layout.rows, layout.columns)
        return matrix.reshape(self.down, self.height, self.across, self.width)

    def symbols(self) -> Symbols:
        """Return the matrix, flat."""
        tiles = np.empty((self.down, self.height, self.across, self.width), dtype=np.int32)
        for row in range(self.height):
            start = self._margin + row
            tiles[:, row] = self._values[start : start + self.width, :, :, row + 1].transpose(1, 2, 0)
        matrix = tiles.reshape(self.down * self.height, self.across * self.width)
        return np.ascontiguousarray(matrix[: self.layout.rows, : self.layout.columns]).reshape(-1)
