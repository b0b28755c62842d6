"""Levels for one layer that make good each other's errors, at a price on every bit.

The error of a linear layer is a quadratic form of what changes in each of its rows. Columns get their levels
one after the other; what a column's levels leave over moves the columns that are still to come to the best
place (the surgeon's update of Hassibi and Stork 1992 in the order of GPTQ, arXiv:2210.17323, sec. 3, here
with zero among the levels and a rate). Then single levels change wherever error plus price falls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_Floats = NDArray[np.float32]

_BLOCK = 32
_LARGEST = 1 << 12  # symbols of a step that is far too small
_CONFIDENCE = 2.0  # zeros' worth of doubt about the density of a row or column
_EDGE = 1e-4
_ROWS = 96  # of a layer, by which its step is looked for
_STRIDE, _FAR = 0.25, 2.0  # octaves between two steps that are tried, and from the first at most


@dataclass(frozen=True)
class Quadratic:
    """What changing the rows of a layer's weight costs: ``sum of importance_r (w_r H w_r' - 2 w_r c_r')``.

    Attributes:
        gram: H, mean outer product of the inputs ``(inputs, inputs)``, float32, positive definite.
        cross: c, mean product of the aims and the inputs ``(rows, inputs)``, float64.
        importance: what a squared error of each output costs ``(rows,)``, >= 0.
        solution: the best weights without levels ``(rows, inputs)``, float32.
        factor: upper Cholesky factor of the inverse of H, float32.
    """

    gram: Tensor
    cross: Tensor
    importance: Tensor
    solution: Tensor
    factor: Tensor

    @classmethod
    def of(cls, gram: Tensor, cross: Tensor, importance: Tensor, old: Tensor, ridge: float) -> Quadratic:
        """Return the form with a pull towards the present weights, which makes it definite.

        Args:
            gram: ``(inputs, inputs)``.
            cross: ``(rows, inputs)``.
            importance: ``(rows,)``.
            old: the present weights ``(rows, inputs)``.
            ridge: weight of the pull, relative to the mean square of the inputs.
        """
        scale = float(gram.diagonal().mean())
        pull = ridge * scale if scale > 0 else 1.0
        gram = gram.to(torch.float64, copy=True)
        gram.diagonal().add_(pull)
        cross = cross.double() + pull * old.double()
        factor = torch.linalg.cholesky(gram)
        solution = torch.cholesky_solve(cross.T, factor).T
        factor = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
        return cls(gram.float(), cross, importance.float(), solution.float(), factor.float())

    def error(self, values: Tensor) -> float:
        """Return by how much some weights ``(rows, inputs)`` cost more than the best ones."""
        away = values.double() - self.solution.double()
        weighted = self.importance.double()[:, None] * (away @ self.gram.double()) * away
        return float(weighted.sum())


def compensated(
    form: Quadratic,
    kept: Tensor,
    step: float,
    price: float,
    *,
    rounds: int = 1,
    sweeps: int = 6,
    limit: int | None = None,
    given: Tensor | None = None,
) -> Tensor:
    """Return symbols whose multiples of the step cost least, bits included.

    Args:
        form: the cost of errors.
        kept: bool ``(rows, inputs)``; False stays zero.
        step: distance of the levels, > 0.
        price: of a bit, in the unit of ``form``, >= 0.
        rounds: of the pass over all columns; each knows the bits of the one before.
        sweeps: at most so many times single symbols change afterwards.
        limit: the largest symbol, >= 1; None: as large as the step needs.
        given: ``(rows, inputs)``, values that some weights have and keep, whose errors others make good; 0
            where a symbol is looked for; None: for all.

    Returns:
        int32 ``(rows, inputs)``, on the CPU; 0 where a value is given.
    """
    largest = _LARGEST if limit is None else limit
    layer = _Layer.of(form, kept, step, given)
    symbols = np.clip(np.rint(layer.solution), -largest, largest) * layer.kept
    for _ in range(rounds):
        symbols = _passed(layer, _Bits.of(symbols, price, largest))
    return torch.from_numpy(_settled(layer, symbols, price, sweeps, largest).T.astype(np.int32))


def best_step(
    forms: Sequence[tuple[Quadratic, Tensor]],
    start: float,
    limit: int,
    given: Callable[[float], Sequence[Tensor]] | None = None,
) -> float:
    """Return the step of least error near another, for a layer whose symbols are limited.

    Rows are independent, and a step is one number: some rows of a large layer tell it.

    Args:
        forms: the cost of errors of the layer's rows, and which of their weights are not pruned.
        start: where the search begins, > 0.
        limit: the largest symbol.
        given: returns for a step what `compensated` calls so, one for each form; None: nothing is given.
    """
    chosen = [_chosen_rows(form) for form, _ in forms]
    some = [_some(form, kept, rows) for (form, kept), rows in zip(forms, chosen, strict=True)]

    def error(octaves: float) -> float:
        step, total = start * 2.0**octaves, 0.0
        values = [torch.zeros(1, 1)] * len(some) if given is None else given(step)
        for (form, kept), rows, all_ in zip(some, chosen, values, strict=True):
            known = None if given is None else all_[rows]
            symbols = compensated(form, kept, step, 0.0, sweeps=0, limit=limit, given=known)
            found = symbols.to(form.solution.device) * step
            total += form.error(found if known is None else found + known)
        return total

    best, least = 0.0, error(0.0)
    for way in (-_STRIDE, _STRIDE):
        begun = best
        while abs(best + way) <= _FAR and (now := error(best + way)) < least:
            best, least = best + way, now
        if best != begun:
            break
    return float(start * 2.0**best)


def _chosen_rows(form: Quadratic) -> Tensor:
    """Return at most `_ROWS` rows, at equal distances."""
    count = len(form.solution)
    rows = torch.arange(min(count, _ROWS), device=form.solution.device)
    return rows * count // len(rows)


def _some(form: Quadratic, kept: Tensor, rows: Tensor) -> tuple[Quadratic, Tensor]:
    """Return the form of some rows."""
    chosen = {name: getattr(form, name)[rows] for name in ("cross", "importance", "solution")}
    return replace(form, **chosen), kept[rows]


@dataclass(frozen=True)
class _Layer:
    """A layer in steps, a row of memory for each of its inputs, for one input is decided after the other.

    Attributes:
        solution: ``(inputs, rows)``.
        kept: 1 where a symbol may differ from zero ``(inputs, rows)``.
        given: what is known already, in steps ``(inputs, rows)``; 0 where nothing is; None: nowhere.
        importance: what a squared step costs ``(rows,)``.
        factor: see `Quadratic`.
        gram: H.
        cross: c ``(inputs, rows)``.
    """

    solution: _Floats
    kept: _Floats
    importance: _Floats
    factor: _Floats
    gram: _Floats
    cross: _Floats
    given: _Floats | None

    @classmethod
    def of(cls, form: Quadratic, kept: Tensor, step: float, given: Tensor | None) -> _Layer:
        known = None if given is None or not bool(given.any()) else _array(given.T / step)
        return cls(
            _array(form.solution.T / step),
            _array(kept.T) if known is None else _array(kept.T) * (known == 0),
            _array(step**2 * form.importance),
            _array(form.factor),
            _array(form.gram),
            _array(form.cross.T / step),
            known,
        )

    def filled(self, at: int, symbols: _Floats) -> _Floats:
        """Return symbols of an input with what is given put in."""
        return symbols if self.given is None else np.where(self.given[at] != 0, self.given[at], symbols)

    def bare(self, symbols: _Floats) -> _Floats:
        """Return symbols of all inputs without what is given."""
        return symbols if self.given is None else symbols * (self.given == 0)


def _array(values: Tensor) -> _Floats:
    found: _Floats = values.detach().cpu().float().contiguous().numpy()
    return found


@dataclass(frozen=True)
class _Bits:
    """Prices of symbols, from the densities of rows and columns and the histogram of values.

    Attributes:
        empty: price of a zero ``(inputs, rows)``.
        place: price of the place of another.
        value: price of the value of symbol n, places left out, in ``n + limit``.
        limit: the largest symbol.
    """

    empty: _Floats
    place: _Floats
    value: _Floats
    limit: int

    @classmethod
    def of(cls, symbols: _Floats, price: float, largest: int) -> _Bits:
        alive = symbols != 0
        mean = float(np.clip(alive.mean(), _EDGE, 1 - _EDGE))
        odds = _odds(alive, 1, mean)[:, None] + _odds(alive, 0, mean) - np.float32(np.log(mean / (1 - mean)))
        unit = price / np.log(2.0)
        limit = min(int(np.abs(symbols).max(initial=0)) + 1, largest)
        counts = np.bincount((symbols[alive] + limit).astype(np.int64), minlength=2 * limit + 1)
        value = -unit * np.log((counts + 0.5) / (counts.sum() + limit))
        value[limit] = 0.0
        empty, place = (unit * np.logaddexp(np.float32(0), x) for x in (odds, -odds))
        return cls(empty.astype(np.float32), place.astype(np.float32), value.astype(np.float32), limit)

    def chosen(
        self, at: int, wanted: _Floats, curvature: _Floats, kept: _Floats, now: _Floats | None = None
    ) -> _Floats:
        """Return the cheapest of an input's nearest symbols, those next towards zero, zero, and the present.

        Args:
            at: the input.
            wanted: in steps ``(rows,)``.
            curvature: cost of a squared step ``(rows,)``.
            kept: 0 where it must be zero ``(rows,)``.
            now: the present symbols ``(rows,)``, if there are any.
        """
        near = np.clip(np.rint(wanted), -self.limit, self.limit)
        less = near - np.sign(near)
        place = self.place[at]
        far = curvature * np.square(wanted - near) + self._of(near) + place
        close = curvature * np.square(wanted - less) + self._of(less) + place
        none = curvature * np.square(wanted) + self.empty[at]
        symbol, cost = np.where(close < far, less, near), np.minimum(close, far)
        symbol *= (cost < none) & (kept > 0)
        if now is None:
            return symbol
        stay = curvature * np.square(wanted - now) + self._of(now)
        stay += np.where(now == 0, self.empty[at], place)
        return np.where(stay <= np.minimum(cost, none), now, symbol)

    def _of(self, symbols: _Floats) -> _Floats:
        found: _Floats = self.value.take((symbols + self.limit).astype(np.intp))
        return found


def _odds(alive: NDArray[np.bool_], axis: int, mean: float) -> _Floats:
    """Return the log odds of the densities along an axis."""
    density = (alive.sum(axis) + _CONFIDENCE * mean) / (alive.shape[axis] + _CONFIDENCE)
    density = np.clip(density, _EDGE, 1 - _EDGE)
    found: _Floats = np.log(density / (1 - density)).astype(np.float32)
    return found


def _passed(layer: _Layer, bits: _Bits) -> _Floats:
    """Give symbols to all inputs in order, each error made good by the inputs behind it."""
    left, factor = layer.solution.copy(), layer.factor
    symbols = np.zeros_like(left)
    for start in range(0, len(left), _BLOCK):
        stop = min(start + _BLOCK, len(left))
        errors = np.zeros_like(left[start:stop])
        for at in range(start, stop):
            curvature = layer.importance / factor[at, at] ** 2
            symbols[at] = layer.filled(at, bits.chosen(at, left[at], curvature, layer.kept[at]))
            errors[at - start] = error = (left[at] - symbols[at]) / factor[at, at]
            left[at + 1 : stop] -= factor[at, at + 1 : stop, None] * error
        left[stop:] -= factor[start:stop, stop:].T @ errors
    return symbols


def _settled(layer: _Layer, symbols: _Floats, price: float, sweeps: int, largest: int) -> _Floats:
    """Change single symbols while the cost falls, input by input (coordinate descent)."""
    gram = layer.gram
    diagonal = gram.diagonal()
    slope = gram @ symbols - layer.cross  # half the gradient
    for _ in range(sweeps):
        bits = _Bits.of(layer.bare(symbols), price, largest)
        changed = False
        for start in range(0, len(symbols), _BLOCK):
            stop = min(start + _BLOCK, len(symbols))
            moves = np.zeros_like(symbols[start:stop])
            block = slope[start:stop].copy()
            for at in range(start, stop):
                wanted = symbols[at] - block[at - start] / diagonal[at]
                before = symbols[at].copy()
                known = before if layer.given is None else before * (layer.given[at] == 0)
                now = bits.chosen(at, wanted, layer.importance * diagonal[at], layer.kept[at], known)
                move = now - known
                if move.any():
                    moves[at - start] = move
                    symbols[at] = layer.filled(at, now)
                    block += gram[at, start:stop, None] * move
            if moves.any():
                changed = True
                slope += gram[start:stop].T @ moves
        if not changed:
            break
    return layer.bare(symbols)
