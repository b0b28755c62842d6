"""The adaptive model of a quantized layer: nonzeros, signs, magnitudes, one step after the other."""

from __future__ import annotations

import numpy as np

from de_plugin.encode.magnitudes import Magnitudes
from de_plugin.encode.nonzeros import Nonzeros
from de_plugin.encode.ranges import BitCoder, BitReader, BitWriter
from de_plugin.encode.significance import Significance
from de_plugin.encode.signs import Signs
from de_plugin.encode.wavefront import Layout, Sheet, Symbols


def write(symbols: Symbols, layout: Layout, largest: int, steps: int = 0) -> bytes:
    """Return the bytes of a layer's symbols.

    Args:
        symbols: flat; as many as the layout's matrix has cells, or less than a row fewer.
        layout: of the matrix.
        largest: the largest magnitude, at least 1.
        steps: see `Layout.tiles`; `read` expects 0, others give a quick estimate of the size.
    """
    writer = BitWriter()
    _walk(Sheet(layout, symbols, steps), writer, largest, known=True)
    return writer.finish()


def read(data: bytes, layout: Layout, largest: int) -> Symbols:
    """Return the symbols of the layout's matrix, flat.

    Raises:
        FileError: the bytes are damaged.
    """
    sheet = Sheet(layout, None)
    _walk(sheet, BitReader(data), largest, known=False)
    return sheet.symbols()


def _walk(sheet: Sheet, coder: BitCoder, largest: int, known: bool) -> None:
    significance, signs = Significance(sheet), Signs(sheet)
    magnitudes = Magnitudes(sheet, largest)
    for step in range(sheet.steps):
        front = sheet.front(step)
        symbols = sheet.values(step, front).reshape(-1) if known else None
        bits = significance.code(
            coder, step, front, None if symbols is None else (symbols != 0).astype(np.int32)
        )
        cells = np.flatnonzero(bits)
        if not len(cells):
            continue
        found = Nonzeros(sheet, step, front, cells)
        values = None if symbols is None else symbols[cells].astype(np.int64)
        positive = signs.code(coder, found, None if values is None else (values > 0).astype(np.int32))
        sizes = magnitudes.code(coder, found, None if values is None else np.abs(values))
        significance.weigh(found.rows, found.columns, sizes)
        sheet.store(step, found.places, np.where(positive != 0, sizes, -sizes))
