"""Which symbols are not zero: the larger part of a pruned network's file."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from de_plugin.encode.counts import Bits, Counts, Tally
from de_plugin.encode.fixed import COUNT, NAT, Floats, Indices, log_odds
from de_plugin.encode.mixing import Mixer
from de_plugin.encode.ranges import BitCoder
from de_plugin.encode.wavefront import Front, Sheet

_PRIOR = 2.0
_WEIGHING = 16.0
_RECENT = 1 / 16
_LARGEST = 15


class Significance:
    """Predicts the nonzeros of a step from their rows, columns, kernels and neighbours.

    The inputs of the mixture: how dense the row and the column are, over all and lately; how much
    magnitude they hold; the neighbours' magnitudes, as a table and as a sum; in kernels, the position
    in the kernel with the nonzeros it already has, and the density of the input channel.
    """

    def __init__(self, sheet: Sheet) -> None:
        layout = sheet.layout
        self._sheet = sheet
        self._distances = layout.distances
        self._group = layout.group
        height, width, down, across = sheet.height, sheet.width, sheet.down, sheet.across
        self._rows = np.zeros((2, down, 1, height))
        self._columns = np.zeros((2, 1, across, width))
        self._recent_rows = np.zeros((2, down, 1, height))
        self._recent_columns = np.zeros((2, 1, across, width))
        self._row_mass = np.zeros((down, 1, height))
        self._column_mass = np.zeros((1, across, width))
        self._tally = Tally()
        self._mass, self._nonzeros = 2.0 * COUNT, 1.0 * COUNT
        self._near = Counts(256, _PRIOR)
        self._far = Counts(64, _PRIOR)
        self._refined = Counts(24 * 16, 32)
        weights = [0.35, 0.35, 0.2, 0.15, 0.0, 0.0, 0.1, 0.1]
        if self._group > 1:
            positions = np.arange(width)
            self._phase = positions % self._group
            self._channel = positions // self._group
            self._channels = int(self._channel[-1]) + 1 if width else 0
            self._inside = np.zeros((down, across, height), dtype=np.intp)
            self._kernels = Counts(self._group * 16, _PRIOR)
            self._inputs = np.zeros((2, self._channels))
            weights += [0.15, 0.15]
        if self._distances:
            weights += [0.1]
        weights += [-0.3, 0.0]
        self._inputs_count = len(weights)
        self._mixer = Mixer(weights, 4.0)
        self._buffer = np.empty(len(weights) * min(height, width) * down * across)

    def code(self, coder: BitCoder, step: int, front: Front, known: Bits | None) -> Bits:
        """Return which cells of the step are not zero, flat."""
        rows, columns = front.rows, front.columns
        shape = (self._sheet.down, self._sheet.across, front.last - front.first)
        size = shape[0] * shape[1] * shape[2]
        count = self._inputs_count
        flat = self._buffer[: count * size].reshape(count, size)
        inputs = flat.reshape(count, *shape)
        tally = self._tally
        probability = tally.probability
        one = _PRIOR * COUNT * probability
        zero = _PRIOR * COUNT - one
        inputs[0] = log_odds_of(self._columns[..., columns], zero, one)
        inputs[1] = log_odds_of(self._rows[..., rows], zero, one)
        inputs[2] = log_odds_of(self._recent_rows[..., rows], zero, one)
        inputs[3] = log_odds_of(self._recent_columns[..., columns], zero, one)
        mass = _WEIGHING * COUNT
        mean = mass * probability * self._mass / self._nonzeros
        inputs[4] = log_odds(
            self._column_mass[..., columns] + mean, self._columns[..., columns].sum(0) + mass
        )
        inputs[5] = log_odds(self._row_mass[..., rows] + mean, self._rows[..., rows].sum(0) + mass)
        sizes = self._sheet.sizes
        left, up = sizes(step, front, 1), sizes(step, front, 1, 1)
        corner, second = sizes(step, front, 2, 1), sizes(step, front, 2)
        near = (((left * 4 + up) * 4 + corner) * 4 + second).reshape(-1).astype(np.intp)
        inputs[6] = self._near.odds(near, probability).reshape(shape)
        sums = left + up + corner + second
        inputs[7] = (sums - 1) * 64
        place = 8
        kernels: Indices | None = None
        context = np.minimum(sums, 7).reshape(-1).astype(np.intp)
        if self._group > 1:
            phase, channel = self._phase[columns], self._channel[columns]
            inside = self._inside[..., rows]
            inside[..., phase == 0] = 0
            kernels = (phase * 16 + np.minimum(inside, 15)).reshape(-1)
            inputs[8] = self._kernels.odds(kernels, probability).reshape(shape)
            inputs[9] = log_odds_of(self._inputs, zero, one)[channel]
            context += 8 * (inside.reshape(-1) > 1)
            place = 10
        far: Indices | None = None
        if self._distances:
            mixed = left
            for distance in self._distances:
                mixed = mixed * 4 + sizes(step, front, distance)
            far = (mixed.reshape(-1) & 63).astype(np.intp)
            inputs[place] = self._far.odds(far, probability).reshape(shape)
            place += 1
        inputs[place] = tally.odds()
        inputs[place + 1] = NAT
        predicted = self._mixer.predict(flat)
        context += 16 * np.minimum(np.maximum(self._mixer.index, 0) // NAT, 23)
        bits = coder.code(self._refined.refine(context, predicted), known)
        found = np.flatnonzero(bits)
        self._mixer.learn(bits)
        self._refined.learn(context, bits, found)
        self._near.learn(near, bits, found)
        if far is not None:
            self._far.learn(far, bits, found)
        if kernels is not None:
            self._kernels.learn(kernels, bits, found)
        self._count(front, bits.reshape(shape))
        return bits

    def _count(self, front: Front, bits: Bits) -> None:
        rows, columns = front.rows, front.columns
        down, across = self._sheet.down, self._sheet.across
        by_column = bits.sum(0, keepdims=True) * float(COUNT)
        by_row = bits.sum(1, keepdims=True) * float(COUNT)
        self._columns[0, ..., columns] += COUNT * down - by_column
        self._columns[1, ..., columns] += by_column
        self._rows[0, ..., rows] += COUNT * across - by_row
        self._rows[1, ..., rows] += by_row
        recent_columns, recent_rows = self._recent_columns[..., columns], self._recent_rows[..., rows]
        recent_columns *= 1 - _RECENT
        recent_columns[0] += COUNT * down - by_column
        recent_columns[1] += by_column
        recent_rows *= 1 - _RECENT
        recent_rows[0] += COUNT * across - by_row
        recent_rows[1] += by_row
        self._tally.learn(bits.size, int(bits.sum()))
        if self._group > 1:
            channel = self._channel[columns]
            ones = np.bincount(channel, weights=bits.sum((0, 1)), minlength=self._channels)
            seen = np.bincount(channel, minlength=self._channels) * (down * across)
            self._inputs[0] += (seen - ones) * COUNT
            self._inputs[1] += ones * COUNT
            self._inside[..., rows] += bits

    def weigh(self, rows: Indices, columns: Indices, sizes: npt.NDArray[np.int64]) -> None:
        """Take note of the magnitudes found.

        Args:
            rows: of the nonzeros, in the flat order of (tile down, row).
            columns: the same for (tile across, column).
            sizes: their magnitudes.
        """
        mass = np.minimum(sizes, _LARGEST) * COUNT
        np.add.at(self._row_mass.reshape(-1), rows, mass)
        np.add.at(self._column_mass.reshape(-1), columns, mass)
        self._mass += float(mass.sum())
        self._nonzeros += COUNT * len(sizes)


def log_odds_of(counts: Floats, zero: float, one: float) -> Floats:
    """Return the log odds of ``(zeros, ones)`` after a prior."""
    return log_odds(counts[1] + one, counts[0] + zero)
