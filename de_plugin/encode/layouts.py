"""Which columns of a matrix belong together, guessed from its symbols: only the encoder asks.

The inputs of a linear layer may be an image, or the flattened channels of a convolution. Its shape does not
tell, but weights of pixels one above the other have like signs, and channels differ in density.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from de_plugin.encode.wavefront import Layout, Symbols

Signs = npt.NDArray[np.int8]

_LARGEST = 1 << 19
_ENOUGH = 1 << 17
_FARTHEST = 256
_CLEAR = 5.0


def likely_layouts(symbols: Symbols, natural: Layout) -> list[Layout]:
    """Return other layouts that are worth a try, at most two.

    Args:
        symbols: flat, as many as the layout has cells; others are left as they are.
        natural: the layout that the shape suggests.
    """
    size = natural.rows * natural.columns
    if natural.group > 1 or len(symbols) != size or size > _LARGEST or natural.rows < 2:
        return []
    matrix = np.sign(symbols).astype(np.int8).reshape(natural.rows, natural.columns)
    matrix = matrix[:: -(-size // _ENOUGH)]
    found = []
    line = _line(matrix)
    if line:
        found.append(dataclasses.replace(natural, line=line))
    group = _group(matrix)
    if group:
        inner = _line(matrix, group)
        found.append(dataclasses.replace(natural, group=group, line=inner))
    return found


def _line(matrix: Signs, group: int = 0) -> int:
    """Return the distance from 2 up at which signs agree most, 0 if nowhere clearly."""
    farthest = min(group or _FARTHEST, matrix.shape[1] - 1)
    best, where = _CLEAR, 0
    for distance in range(2, farthest):
        if group and group % distance:
            continue
        products = matrix[:, distance:] * matrix[:, :-distance]
        pairs = int(np.count_nonzero(products))
        score = float(products.sum(dtype=np.int64)) / max(pairs, 1) ** 0.5
        if score > best:
            best, where = score, distance
    return where


def _group(matrix: Signs) -> int:
    """Return the size from 4 up of the groups of columns whose densities differ most, 0 if not clearly."""
    rows, columns = matrix.shape
    counts = np.count_nonzero(matrix, axis=0).astype(np.float64)
    if columns < 16 or not counts.any():
        return 0
    centred = counts - counts.mean()
    noise = max(float(counts.mean() * (1 - counts.mean() / rows)), 1e-9)
    best, where = _CLEAR, 0
    for group in range(4, min(_FARTHEST, columns // 4) + 1):
        if columns % group:
            continue
        groups = columns // group
        spread = float((centred.reshape(groups, group).sum(1) ** 2).mean()) / (group * noise)
        score = (spread - 1) * groups**0.5
        if score > best:
            best, where = score, group
    return where
