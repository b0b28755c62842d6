"""Logarithms and probabilities as whole numbers, so that every machine computes the same model.

Log odds are in units of 1/256 nat, probabilities in units of 2**-22. Both are whole numbers held in float64
arrays: additions and products below 2**53 are then exact in any order, with or without fused
multiply-add, and a matrix product may be left to any BLAS. The tables are rounded logarithms and
exponentials; no entry lies so near to a half that another libm could round it to the other side (a test
shows it).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

NAT = 256
"""Units of log odds in a nat."""

LIMIT = 12 * NAT - 1
"""The largest log odds: a probability of 6e-6."""

ONE = 1 << 22
"""Units of probability in a certainty; constriction's coder resolves 2**-24."""

COUNT = 16
"""Units in one observed symbol, so that a prior may be a fraction of one."""

_DIGITS = 18
_COUNTS = 1 << _DIGITS

LOGARITHM = np.rint(np.log(np.maximum(np.arange(_COUNTS), 1)) * NAT)
"""Entry n is the natural logarithm of n; entry 0 is that of 1."""

_ODDS = 1 / (1 + np.exp(-np.arange(-LIMIT, LIMIT + 1) / NAT))

PROBABILITY = np.rint(_ODDS * ONE)
"""Entry n is the probability whose log odds are ``n - LIMIT``."""

CURVATURE = np.maximum(np.rint(_ODDS * (1 - _ODDS) * 65536), 1)
"""Entry n is p (1 - p) of that probability, in units of 2**-16."""


_LOGARITHMS: list[float] = LOGARITHM.tolist()


def log_odds(ones: Floats, zeros: Floats) -> Floats:
    """Return the log odds of two arrays of counts, in `COUNT` units; less than one unit is read as one.

    Both counts of a pair are halved until the tables hold them. Counts are finite and not negative.
    """
    try:
        above, below = LOGARITHM[ones.astype(np.intp)], LOGARITHM[zeros.astype(np.intp)]
    except IndexError:
        halvings = np.minimum(_DIGITS - np.frexp(np.maximum(ones, zeros))[1], 0)
        ones, zeros = np.ldexp(ones, halvings), np.ldexp(zeros, halvings)
        above = LOGARITHM.take(ones.astype(np.intp), mode="clip")
        below = LOGARITHM.take(zeros.astype(np.intp), mode="clip")
    result: Floats = above - below
    return result


def log_odds_of_two(one: float, zero: float) -> float:
    """Return the log odds of a single pair of counts, finite and not negative, as `log_odds` does."""
    while one >= _COUNTS or zero >= _COUNTS:
        one, zero = one / 2, zero / 2
    return _LOGARITHMS[int(one)] - _LOGARITHMS[int(zero)]
