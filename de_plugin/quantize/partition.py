"""Exact weighted k-means on a line: dynamic programming over sorted points."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from de_plugin.quantize.survivors import Floats, Ints

_Cost = Callable[[Ints, Ints], Floats]


def partition(points: Floats, mass: Floats, clusters: int) -> Floats:
    """Return the cluster means of least weighted squared error, ascending.

    Wang and Song (R Journal 3/2, 2011) with the divide and conquer of Grønlund et al. (arXiv:1701.07204,
    sec. 2.2): O(clusters x n log n). The depths of the recursion are steps, all of a depth at once. The
    packaged solvers (kmeans1d, ckmeans) know no weights; the tests compare with the first where all are one.

    Args:
        points: (n,), ascending.
        mass: (n,), > 0.
        clusters: at least 1; with fewer points each has its own.
    """
    count = len(points)
    if clusters >= count or clusters < 1:
        return points[: max(0, clusters)].astype(np.float64)
    # Deviations from the mean lose less to cancellation than the points themselves.
    centre = float(np.average(points, weights=mass))
    shifted = points - centre
    m = np.concatenate([[0.0], np.cumsum(mass)])
    s = np.concatenate([[0.0], np.cumsum(mass * shifted)])
    q = np.concatenate([[0.0], np.cumsum(mass * shifted**2)])

    def cost(start: Ints, stop: Ints) -> Floats:
        """Return the squared error of one cluster of the points from `start` up to `stop`."""
        total: Floats = q[stop] - q[start] - (s[stop] - s[start]) ** 2 / (m[stop] - m[start])
        return np.maximum(total, 0.0)

    ends = np.arange(1, count + 1)
    best = np.concatenate([[0.0], cost(np.zeros(count, dtype=np.int64), ends)])
    starts = [np.zeros(count + 1, dtype=np.int64)]
    for used in range(1, clusters):
        best, first = _layer(best, cost, used, count)
        starts.append(first)
    bounds = [count]
    for first in reversed(starts):
        bounds.append(int(first[bounds[-1]]))
    edges = np.array(bounds[::-1])
    found: Floats = (s[edges[1:]] - s[edges[:-1]]) / (m[edges[1:]] - m[edges[:-1]]) + centre
    return found


def _layer(before: Floats, cost: _Cost, used: int, count: int) -> tuple[Floats, Ints]:
    """Return the best cost of the first points in one more cluster, and where that cluster starts.

    The best start never falls as the end grows, so an end's start lies between its neighbours'.
    """
    best = np.full(count + 1, np.inf)
    first = np.zeros(count + 1, dtype=np.int64)
    ranges = np.array([[used + 1, count, used, count - 1]])  # ends from, to; starts from, to
    while len(ranges):
        middle = (ranges[:, 0] + ranges[:, 1]) // 2
        low = ranges[:, 2]
        high = np.minimum(ranges[:, 3], middle - 1)
        width = high - low + 1
        offsets = np.cumsum(width) - width
        owner = np.repeat(np.arange(len(ranges)), width)
        start = np.arange(int(width.sum())) - offsets[owner] + low[owner]
        values = before[start] + cost(start, middle[owner])
        least = np.minimum.reduceat(values, offsets)
        hits = np.flatnonzero(values == least[owner])
        chosen = start[hits[np.unique(owner[hits], return_index=True)[1]]]
        best[middle], first[middle] = least, chosen
        left = np.stack([ranges[:, 0], middle - 1, low, chosen], 1)
        right = np.stack([middle + 1, ranges[:, 1], chosen, ranges[:, 3]], 1)
        ranges = np.concatenate([left, right])
        ranges = ranges[ranges[:, 0] <= ranges[:, 1]]
    return best, first
