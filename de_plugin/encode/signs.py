"""The signs of the nonzeros: they follow those of neighbouring pixels and of smooth kernels."""

from __future__ import annotations

import numpy as np

from de_plugin.encode.counts import Bits, Counts, Tally
from de_plugin.encode.fixed import COUNT, NAT, log_odds
from de_plugin.encode.mixing import Mixer
from de_plugin.encode.nonzeros import Nonzeros
from de_plugin.encode.ranges import BitCoder
from de_plugin.encode.wavefront import Sheet

_PRIOR = 2.0
_REACH = 2


class Signs:
    """Predicts signs by the row's, the column's and the neighbours'."""

    def __init__(self, sheet: Sheet) -> None:
        self._rows = np.zeros((2, sheet.height * sheet.down))
        self._columns = np.zeros((2, sheet.width * sheet.across))
        self._tally = Tally()
        self._near = Counts(27, 1.0)
        neighbours = 3 + len(sheet.layout.distances)
        self._mixer = Mixer([0.3, 0.3, *[0.3] * neighbours, 0.0, 0.3], 4.0)

    def code(self, coder: BitCoder, found: Nonzeros, known: Bits | None) -> Bits:
        """Return 1 for each positive symbol, 0 for each negative one."""
        inputs = np.empty((len(found.near) + 4, len(found)))
        one = _PRIOR * COUNT * self._tally.probability
        zero = _PRIOR * COUNT - one
        for place, (counts, index) in enumerate(((self._columns, found.columns), (self._rows, found.rows))):
            inputs[place] = log_odds(counts[1, index] + one, counts[0, index] + zero)
        context = np.zeros(len(found), dtype=np.intp)
        for place, symbols in enumerate(found.near):
            near = np.minimum(np.maximum(symbols, -_REACH), _REACH)
            inputs[2 + place] = near * (NAT // 2)
            if place < 2 or place == len(found.near) - 1:
                context = context * 3 + np.sign(near) + 1
        inputs[-2] = NAT
        inputs[-1] = self._near.odds(context, 0.5)
        bits = coder.code(self._mixer.predict(inputs), known)
        self._mixer.learn(bits)
        self._near.learn(context, bits, np.flatnonzero(bits))
        for counts, index in ((self._columns, found.columns), (self._rows, found.rows)):
            np.add.at(counts.reshape(-1), bits * counts.shape[1] + index, float(COUNT))
        self._tally.learn(len(bits), int(bits.sum()))
        return bits
