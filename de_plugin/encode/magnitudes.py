"""The magnitudes of the nonzeros, as answers to "is it larger still?".

The first answers tell single magnitudes, later ones half octaves, within which the rest is told bit by bit
(compare the truncated unary and Exp-Golomb bins of DeepCABAC, arXiv:1907.11900).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from de_plugin.encode.counts import Counts
from de_plugin.encode.fixed import COUNT, NAT, ONE, Floats, Indices, log_odds, log_odds_of_two
from de_plugin.encode.mixing import Mixer
from de_plugin.encode.nonzeros import Nonzeros
from de_plugin.encode.ranges import BitCoder
from de_plugin.encode.wavefront import Sheet
from de_plugin.errors import FileError

Integers = npt.NDArray[np.int64]

_SINGLE = 8
_LEVELS = 64
_MODELLED = 2
_STEP = 96


def level_of(excess: Integers) -> Integers:
    """Return the level of each magnitude less one: 0 to 7 themselves, then two levels an octave."""
    octave = np.frexp(np.maximum(excess, 1).astype(np.float64))[1].astype(np.int64) - 1
    half = (excess >> np.maximum(octave - 1, 0)) & 1
    return np.where(excess < _SINGLE, excess, _SINGLE + 2 * (octave - 3) + half)


def start_of(level: Integers) -> tuple[Integers, Integers]:
    """Return the least magnitude less one of each level, and how many bits it leaves open."""
    octave = np.maximum(level - _SINGLE, 0) // 2 + 3
    half = (level - _SINGLE) & 1
    start = (1 << octave) + (half << (octave - 1))
    return np.where(level < _SINGLE, level, start), np.where(level < _SINGLE, 0, octave - 1)


class Magnitudes:
    """Predicts magnitudes by the row's, the column's and the neighbours'.

    Args:
        sheet: what is coded.
        largest: magnitude that occurs, at least 1.
    """

    def __init__(self, sheet: Sheet, largest: int) -> None:
        self._largest = largest
        self._top = int(level_of(np.array([largest - 1]))[0])
        self._rows = np.zeros((2, sheet.height * sheet.down))
        self._columns = np.zeros((2, sheet.width * sheet.across))
        self._ones, self._zeros = [COUNT / 4] * _LEVELS, [COUNT / 4] * _LEVELS
        self._near = Counts(_LEVELS * 16, 2.0)
        self._scaled = Counts(_LEVELS * 32, 2.0)
        self._rest = Counts(_LEVELS * (1 << _MODELLED), 1.0)
        self._mixer = Mixer([0.3, 0.3, 0.3, 0.3, 0.3, -0.4], 4.0)

    def code(self, coder: BitCoder, found: Nonzeros, known: Integers | None) -> Integers:
        """Return the magnitude of each nonzero.

        Raises:
            FileError: one is larger than the largest.
        """
        excess = None if known is None else known - 1
        target = None if excess is None else level_of(excess)
        near = np.zeros(len(found), dtype=np.intp)
        for symbols in found.near:
            near += np.minimum(np.abs(symbols.astype(np.int64)), 8)
        near = np.minimum(near, 15)
        by_row, by_column = self._context(self._rows, found.rows), self._context(self._columns, found.columns)
        scale = np.minimum(np.maximum((by_row + by_column) // _STEP + 16, 0), 31).astype(np.intp)
        level = np.zeros(len(found), dtype=np.int64)
        active = np.arange(len(found))
        for current in range(self._top):
            inputs = np.empty((6, len(active)))
            ones, zeros = self._ones[current], self._zeros[current]
            probability = ones / (ones + zeros)
            contexts = current * 16 + near[active]
            scales = current * 32 + scale[active]
            inputs[0], inputs[1] = by_row[active], by_column[active]
            inputs[2] = self._near.odds(contexts, probability)
            inputs[3] = self._scaled.odds(scales, probability)
            inputs[4] = log_odds_of_two(ones, zeros)
            inputs[5] = NAT
            bits = coder.code(
                self._mixer.predict(inputs),
                None if target is None else (target[active] > current).astype(np.int32),
            )
            self._mixer.learn(bits)
            more_of = np.flatnonzero(bits)
            self._near.learn(contexts, bits, more_of)
            self._scaled.learn(scales, bits, more_of)
            more = len(more_of)
            self._ones[current] += COUNT * more
            self._zeros[current] += COUNT * (len(bits) - more)
            active = active[more_of]
            level[active] += 1
            if not len(active):
                break
        for counts, index in ((self._rows, found.rows), (self._columns, found.columns)):
            np.add.at(counts[1], index, level * float(COUNT))
            np.add.at(counts[0], index, float(COUNT))
        return self._finish(coder, level, excess)

    def _context(self, counts: Floats, index: Indices) -> Floats:
        """Return the log odds of "larger still" in a row or a column, over all levels."""
        ones, zeros = sum(self._ones), sum(self._zeros)
        one = 3.0 * COUNT * (ones / (ones + zeros))
        zero = 3.0 * COUNT - one
        return log_odds(counts[1, index] + one, counts[0, index] + zero)

    def _finish(self, coder: BitCoder, level: Integers, excess: Integers | None) -> Integers:
        """Return the magnitudes, with the bits that the levels leave open."""
        result, widths = start_of(level)
        for place in range(int(widths.max(initial=0))):
            open_ = np.flatnonzero(widths > place)
            shift = widths[open_] - 1 - place
            bits = None if excess is None else (excess[open_] >> shift & 1).astype(np.int32)
            if place < _MODELLED:
                sofar = 0 if not place else (result[open_] >> (shift + 1)) & 1
                contexts = (level[open_] << _MODELLED) + (place << 1) + sofar
                ones, zeros = self._rest.ones[contexts] + COUNT / 2, self._rest.zeros[contexts] + COUNT / 2
                probability = np.minimum(np.maximum(np.floor(ones * ONE / (ones + zeros)), 4), ONE - 4)
                read = coder.code(probability, bits)
                self._rest.learn(contexts, read, np.flatnonzero(read))
            else:
                read = coder.code(np.full(len(open_), ONE / 2), bits)
            result[open_] |= read.astype(np.int64) << shift
        if int(result.max(initial=0)) >= self._largest:
            raise FileError(
                f"symbols are damaged: a magnitude of {int(result.max()) + 1}, expected at most "
                f"{self._largest}"
            )
        return result + 1
