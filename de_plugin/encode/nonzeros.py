"""Where the nonzeros of a step lie, and what their neighbours are."""

from __future__ import annotations

import numpy as np

from de_plugin.encode.fixed import Indices
from de_plugin.encode.wavefront import Front, Sheet, Symbols


class Nonzeros:
    """The nonzero cells of a step.

    Attributes:
        cells: their places in the front, flat.
        places: the same in a row of the sheet; see `Sheet.neighbours`.
        rows: the flat indices of their (tile down, row).
        columns: the flat indices of their (tile across, column).
        near: the symbols to the left, above, above to the left, and at the layout's distances.
    """

    def __init__(self, sheet: Sheet, step: int, front: Front, cells: Indices) -> None:
        tile, row = np.divmod(cells, front.last - front.first)
        above, aside = np.divmod(tile, sheet.across)
        row += front.first
        self.cells = cells
        self.places: Indices = tile * (sheet.height + 1) + row + 1
        self.rows: Indices = above * sheet.height + row
        self.columns: Indices = aside * sheet.width + (step - row)
        self.near: list[Symbols] = [
            sheet.neighbours(step, self.places, 1),
            sheet.neighbours(step, self.places, 1, 1),
            sheet.neighbours(step, self.places, 2, 1),
            *(sheet.neighbours(step, self.places, distance) for distance in sheet.layout.distances),
        ]

    def __len__(self) -> int:
        return len(self.cells)
