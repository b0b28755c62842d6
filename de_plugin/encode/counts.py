"""How often a bit was one in each of many contexts, and the log odds that follow."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from de_plugin.encode.fixed import COUNT, ONE, Floats, Indices, log_odds, log_odds_of_two

Bits = npt.NDArray[np.int32]


class Counts:
    """Zeros and ones of each context, `COUNT` units a bit.

    Args:
        contexts: how many there are.
        prior: how many bits the prior weighs.
    """

    def __init__(self, contexts: int, prior: float) -> None:
        self._flat = np.zeros(2 * contexts)
        self.zeros, self.ones = self._flat[:contexts], self._flat[contexts:]
        self._prior = prior * COUNT

    def odds(self, contexts: Indices, probability: float) -> Floats:
        """Return the log odds in each of the given contexts.

        Args:
            contexts: flat.
            probability: of a one where nothing is known, from 0 to 1.
        """
        one = self._prior * probability
        zero = self._prior - one
        if len(contexts) < len(self.ones):
            return log_odds(self.ones[contexts] + one, self.zeros[contexts] + zero)
        return log_odds(self.ones + one, self.zeros + zero)[contexts]

    def refine(self, contexts: Indices, probability: Floats) -> Floats:
        """Return the mean of each given probability and what happened in its context.

        Secondary symbol estimation as in PAQ: the given probability is the prior of its context.
        """
        ones, zeros = self.ones[contexts], self.zeros[contexts]
        seen = (ones * ONE + probability * self._prior) / (ones + zeros + self._prior)
        result: Floats = np.minimum(np.maximum(np.floor((probability + seen) * 0.5), 4), ONE - 4)
        return result

    def learn(self, contexts: Indices, bits: Bits, found: Indices) -> None:
        """Count one bit in each context given.

        Args:
            contexts: of all bits.
            bits: these.
            found: which of them are ones.
        """
        count = len(self.ones)
        if 8 * len(contexts) < count:
            np.add.at(self._flat, bits * count + contexts, float(COUNT))
            return
        seen = np.bincount(contexts, minlength=count)
        ones = np.bincount(contexts[found], minlength=count)
        self.ones += ones * COUNT
        self.zeros += (seen - ones) * COUNT


class Tally:
    """Zeros and ones of a whole layer, with half a bit of each to begin with."""

    def __init__(self) -> None:
        self.zeros = COUNT / 2
        self.ones = COUNT / 2

    @property
    def probability(self) -> float:
        """Of a one."""
        return self.ones / (self.zeros + self.ones)

    def odds(self) -> float:
        """Return the log odds of a one."""
        return log_odds_of_two(self.ones, self.zeros)

    def learn(self, bits: int, ones: int) -> None:
        """Count so many bits of which so many are ones; what lies far back is halved."""
        self.ones += COUNT * ones
        self.zeros += COUNT * (bits - ones)
        if self.ones + self.zeros > 1 << 17:
            self.ones /= 2
            self.zeros /= 2
