"""Several predictions of the same bits joined into one, with weights that are learnt on the way.

Logistic mixing as in PAQ (Mahoney, "Adaptive weighing of context models for lossless data compression",
2005), but learnt with second-order steps, an online Newton method: a layer of a few thousand symbols has
too few bits for gradient descent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from de_plugin.encode.counts import Bits
from de_plugin.encode.fixed import CURVATURE, LIMIT, NAT, ONE, PROBABILITY, Floats, Indices

_WEIGHT = 65536
_LARGEST = 16.0
_SAMPLE = 2048
_ALL = 1 << 17
"""Bits that all count for the curvature; of later ones a sample does."""

_EXACT = 8192
"""Bits whose curvature is summed exactly: each adds at most (12 x 256)^2 x 81920 to a sum below 2**53."""


def solve(matrix: Floats, right: Floats) -> Floats:
    """Return x of ``matrix @ x = right`` by elementwise operations only, so the same on every machine.

    Args:
        matrix: symmetric and positive definite, ``(n, n)``.
        right: ``(n,)``.
    """
    count = len(right)
    rows = np.concatenate([matrix, right[:, None]], axis=1)
    for pivot in range(count):
        line = rows[pivot] / rows[pivot, pivot]
        factors = rows[:, pivot].copy()
        rows -= factors[:, None] * line
        rows[pivot] = line
    return rows[:, count]


class Mixer:
    """A logistic regression over log odds.

    Args:
        weights: the first weight of each input.
        prior: how firmly the first weights are held, in nat squared.
        every: bits between two steps of the weights; bits seen before count for more of them.
    """

    def __init__(self, weights: Sequence[float], prior: float, every: int = 16) -> None:
        self._weights = np.array(weights, dtype=np.float64)
        self._whole = np.rint(self._weights * _WEIGHT)
        self._matrix = np.eye(len(weights)) * prior
        self._gradient = np.zeros(len(weights))
        self._every = every
        self._seen = 0
        self._waiting = 0
        self._inputs: Floats = np.zeros((len(weights), 0))
        self.index: Indices = np.zeros(0, dtype=np.intp)
        """Where the tables have the last predictions; what lies outside is read at their ends."""
        self.probability: Floats = np.zeros(0)

    def predict(self, inputs: Floats) -> Floats:
        """Return the probability of a one for each of n bits, in units of 1/``ONE``.

        Args:
            inputs: whole log odds, ``(inputs, n)``; kept until `learn`.
        """
        odds = self._whole.dot(inputs)
        odds *= 1 / _WEIGHT
        self._inputs = inputs
        self.index = odds.astype(np.intp)
        self.index += LIMIT
        self.probability = PROBABILITY.take(self.index, mode="clip")
        return self.probability

    def learn(self, bits: Bits) -> None:
        """Take a step towards weights that would have predicted the bits better.

        The curvature is the mean of the expected and the observed Fisher information: where the
        predictions are too sure, the expected one alone is far too small and the step far too long. At
        first all bits count for it: a sample would miss rare inputs, which the gradient holds, and the
        weights would run away.
        """
        inputs = self._inputs
        error = bits * ONE - self.probability
        self._gradient += inputs.dot(error)
        index, stride = self.index, 1
        if len(bits) > _SAMPLE and self._seen > _ALL:
            stride = -(-len(bits) // _SAMPLE)
            inputs, error, index = inputs[:, ::stride], error[::stride], index[::stride]
        curvature = error * (1 / 16384)
        np.floor(curvature, out=curvature)
        curvature *= curvature
        curvature += CURVATURE.take(index, mode="clip")
        for start in range(0, len(curvature), _EXACT):
            some = slice(start, start + _EXACT)
            added = (inputs[:, some] * curvature[some]).dot(inputs[:, some].T)
            added *= stride / (2.0 * 65536 * NAT * NAT)
            self._matrix += added
        self._seen += len(bits)
        self._waiting += len(bits)
        if self._waiting >= max(self._every, self._seen >> 6):
            step = solve(self._matrix, self._gradient * (1 / (ONE * NAT)))
            if np.isfinite(step).all():
                self._weights = np.minimum(np.maximum(self._weights + step, -_LARGEST), _LARGEST)
                self._whole = np.rint(self._weights * _WEIGHT)
            self._gradient[:] = 0
            self._waiting = 0
