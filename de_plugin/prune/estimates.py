"""Predicting what a swap will change: a joint quadratic model, and the layers' Gram costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from de_plugin.assess.capture import grams
from de_plugin.assess.factors import Factors, linear_factors
from de_plugin.assess.gradients import mean_gradient, sample_gradients
from de_plugin.assess.granularity import NM, Weight
from de_plugin.assess.problem import Problem
from de_plugin.assess.select import kth_lowest
from de_plugin.types import Mask

_FLOAT = 4
_HELD_BYTES = 1 << 30
"""The effects of all samples are held where they take no more than this."""


@dataclass(frozen=True)
class Swap:
    """A proposal: which kept units to zero, which zeroed ones to revive, and what that should change."""

    source: str
    remove: Tensor
    revive: Tensor
    predicted: float

    @property
    def size(self) -> int:
        """Number of exchanges."""
        return len(self.remove)


def cells(problem: Problem) -> Tensor:
    """Return a number for each unit: exchanges happen between units of the same number.

    One number for all under a global target, one a layer where the allocation is fixed, one a group
    for N:M patterns.
    """
    units = problem.units
    if isinstance(units.granularity, NM):
        return torch.arange(units.count) // units.granularity.m
    one = torch.zeros(1, dtype=torch.long).expand(units.count)  # takes no memory
    return one if problem.quota is None else units.layer_of


def joint(problem: Problem, free: Mask, size: int, *, samples: int, window: int, key: int) -> list[Swap]:
    """Exchange units greedily on a quadratic model of the divergence, correlations included.

    The model is ``b.z + z'Kz/2`` with ``b`` the first-order change of each unit and ``K`` the Fisher
    information of the window: per-sample gradients times the change, so units that do the same work
    are seen to (a diagonal cannot). Every prefix of the greedy path is a proposal.

    Args:
        problem: whose student is asked.
        free: the units that may change.
        size: longest path, in exchanges.
        samples: samples for the gradients.
        window: units of each side in the model.
        key: part of the seed.
    """
    units = problem.units
    values = units.values()
    first = _signed(problem, mean_gradient(problem, problem.draw(4 * samples)), values)
    index = problem.draw(samples)
    effects = _effects(problem, index, problem.generator(2, key))
    curvature = effects.curvature
    kept = problem.kept
    alone = torch.where(kept, -first, first) + 0.5 * curvature
    where = cells(problem)
    remove = _lowest(alone, kept & free, window)
    same = torch.zeros(int(where.max()) + 1, dtype=torch.bool)
    same[where[remove]] = True
    revive = _lowest(alone, ~kept & free & same[where], window)
    if len(remove) == 0 or len(revive) == 0:
        return []
    chosen = torch.cat([remove, revive])
    sign = torch.cat([-torch.ones(len(remove)), torch.ones(len(revive))])
    part = effects.columns(chosen) * sign
    matrix = (part.T @ part / len(part)).double().numpy()
    path, costs = _greedy(
        (first[chosen] * sign).double().numpy(), matrix, len(remove), where[chosen].numpy(), size
    )
    return [
        Swap(
            "joint",
            chosen[[a for a, _ in path[: n + 1]]],
            chosen[[d for _, d in path[: n + 1]]],
            costs[n],
        )
        for n in range(len(path))
    ]


class _Effects(Protocol):
    """What zeroing each unit changes in each sample's loss, to first order: gradient times weight."""

    @property
    def curvature(self) -> Tensor:
        """Return the mean square over samples, ``(units,)``."""

    def columns(self, chosen: Tensor) -> Tensor:
        """Return the effects of some units, ``(samples, chosen)``."""


class _Multiplied:
    """Effects a sample and unit: any model, any granularity.

    They are held where they take little memory, else worked out once more for the units that are chosen.
    """

    def __init__(self, problem: Problem, index: Tensor, generator: torch.Generator) -> None:
        self._problem = problem
        self._index = index
        self._state = generator.get_state()
        self._stored: list[list[Tensor]] = []
        units = problem.units
        hold = _FLOAT * units.count * len(index) <= _HELD_BYTES
        self.curvature = torch.zeros(units.count)
        count = 0
        for effects in self._chunks(generator):
            for layer, effect in zip(units.layers, effects, strict=True):
                self.curvature[layer.start : layer.stop] += torch.einsum("nu,nu->u", effect, effect)
            count += len(effects[0])
            if hold:
                self._stored.append(effects)
        self.curvature /= count

    def _chunks(self, generator: torch.Generator) -> Iterator[list[Tensor]]:
        """Yield effects ``(samples, units)`` of each layer."""
        units = self._problem.units
        for chunk in sample_gradients(self._problem, self._index, generator):
            products = (
                g.mul_(v) if g.is_contiguous() else g * v for g, v in zip(chunk, units.values(), strict=True)
            )
            yield [effect.cpu() for effect in units.parts(products)]

    def columns(self, chosen: Tensor) -> Tensor:
        """Return the effects of some units, ``(samples, chosen)``."""
        again = torch.Generator()
        again.set_state(self._state)
        layers = self._problem.units.layers
        parts = []
        for effects in self._stored or self._chunks(again):
            part = torch.empty(len(effects[0]), len(chosen))
            for layer, effect in zip(layers, effects, strict=True):
                here = ((chosen >= layer.start) & (chosen < layer.stop)).nonzero()[:, 0]
                part[:, here] = effect[:, chosen[here] - layer.start].float()
            parts.append(part)
        return torch.cat(parts)


class _Factored:
    """Effects of single weights in linear layers, multiplied out for the chosen units alone."""

    def __init__(self, problem: Problem, factors: Factors) -> None:
        self._units = units = problem.units
        self._factors = factors
        squares = [
            (d.square().T @ x.square()) * v.square() / len(x)
            for (x, d), v in zip(factors, units.values(), strict=True)
        ]
        self.curvature = units.reduce(squares).cpu().float()

    def columns(self, chosen: Tensor) -> Tensor:
        """Return the effects of some units, ``(samples, chosen)``."""
        result = torch.empty(len(self._factors[0][0]), len(chosen))
        for layer, (x, d), v in zip(self._units.layers, self._factors, self._units.values(), strict=True):
            here = ((chosen >= layer.start) & (chosen < layer.stop)).nonzero()[:, 0]
            unit = (chosen[here] - layer.start).to(x.device)
            row, column = unit // x.shape[1], unit % x.shape[1]
            result[:, here] = (d[:, row] * x[:, column] * v[row, column]).float().cpu()
        return result


def _effects(problem: Problem, index: Tensor, generator: torch.Generator) -> _Effects:
    if isinstance(problem.units.granularity, Weight | NM):
        factors = linear_factors(problem, index, generator)
        if factors is not None:
            return _Factored(problem, factors)
    return _Multiplied(problem, index, generator)


def _signed(problem: Problem, gradient: list[Tensor], values: list[Tensor]) -> Tensor:
    return problem.units.reduce([g * v for g, v in zip(gradient, values, strict=True)]).cpu().float()


def _lowest(values: Tensor, allowed: Mask, count: int) -> Tensor:
    """Return the `count` allowed places with the lowest values, in order, ties by place."""
    count = min(count, int(allowed.sum()))
    if count == 0:
        return torch.empty(0, dtype=torch.long)
    limit = kth_lowest(values.masked_fill(~allowed, float("inf")), count)
    places = ((values <= limit) & allowed).nonzero()[:, 0]
    return places[values[places].argsort(stable=True)[:count]]


def _greedy(
    linear: np.ndarray, matrix: np.ndarray, removable: int, cell: np.ndarray, size: int
) -> tuple[list[tuple[int, int]], list[float]]:
    """Add the best pair (one removal, one revival of the same cell) while the model falls."""
    cell = np.unique(cell, return_inverse=True)[1]
    cost = linear + 0.5 * matrix.diagonal()
    path: list[tuple[int, int]] = []
    costs: list[float] = []
    total = 0.0
    for _ in range(size):
        best = np.full(int(cell.max()) + 1, np.inf)
        np.minimum.at(best, cell[removable:], cost[removable:])
        out = int(np.argmin(cost[:removable] + best[cell[:removable]]))
        then = cost[removable:] + matrix[out, removable:]
        then = np.where(cell[removable:] == cell[out], then, np.inf)
        into = removable + int(np.argmin(then))
        change = cost[out] + then[into - removable]
        if not change < 0:
            break
        total += float(change)
        cost = cost + matrix[out] + matrix[into]
        cost[out] = cost[into] = np.inf
        path.append((out, into))
        costs.append(total)
    return path, costs


def gram(problem: Problem, free: Mask, size: int, *, samples: int) -> list[Swap]:
    """Exchange weights inside each output so that the layer's own output error falls, exactly.

    For an output with dense weights ``w`` and removed part ``e`` the error is ``e'He``, H the Gram
    matrix of the layer's inputs (SparseSwaps; OBS). The best exchange of every output is proposed,
    the outputs with the largest relative gain first. Needs no gradient. Single weights only.
    """
    if not isinstance(problem.units.granularity, Weight):
        return []
    found: list[tuple[float, int, int]] = []
    size_limit = 4096
    small = [n for n, x in enumerate(problem.units.layers) if x.shape[1:].numel() <= size_limit]
    for number, parts in grams(problem, problem.draw(samples), small).items():
        layer = problem.units.layers[number]
        dense = layer.canonical(layer.parameter.detach()).reshape(layer.shape[0], -1).cpu()
        dense = dense.to(parts[0][1].dtype)
        shape = dense.shape
        span = slice(layer.start, layer.stop)
        kept = problem.kept[span].reshape(shape)
        may = free[span].reshape(shape)
        for rows, matrix in parts:
            found += _best_in_rows(
                dense[rows],
                kept[rows],
                may[rows],
                matrix.cpu(),
                layer.start + rows.start * shape[1],
            )
    found.sort()
    return [
        Swap(
            "gram",
            torch.tensor([a for _, a, _ in found[: n + 1]]),
            torch.tensor([d for _, _, d in found[: n + 1]]),
            sum(c for c, _, _ in found[: n + 1]),
        )
        for n in range(min(size, len(found)))
    ]


def _best_in_rows(
    dense: Tensor, kept: Tensor, may: Tensor, matrix: Tensor, start: int
) -> list[tuple[float, int, int]]:
    width = dense.shape[1]
    removed = torch.where(kept, torch.zeros_like(dense), dense)
    pull = removed @ matrix
    square = dense.square() * matrix.diagonal()
    error = (removed * pull).sum(1)
    scale = ((dense @ matrix) * dense).sum(1).clamp_min(1e-12)
    out_cost = (2 * dense * pull + square).masked_fill(~(kept & may), float("inf"))
    in_cost = (square - 2 * dense * pull).masked_fill(~(~kept & may), float("inf"))
    found = []
    for row in range(len(dense)):
        into = int(in_cost[row].argmin())
        both = out_cost[row] + in_cost[row, into] - 2 * dense[row] * dense[row, into] * matrix[into]
        out = int(both.argmin())
        change = float(both[out])
        if change < 0 and float(error[row]) > 0:
            at = start + row * width
            found.append((change / float(scale[row]), at + out, at + into))
    return found


def by_scores(
    problem: Problem, scores: Tensor, free: Mask, size: int, *, count: int, window: int, key: int
) -> list[Swap]:
    """Draw exchanges at random near the boundary of a ranking; works where no gradient exists."""
    rng = problem.generator(3, key)
    kept = problem.kept
    where = cells(problem)
    out = _lowest(scores, kept & free & torch.isfinite(scores), window)
    into = _lowest(-scores, ~kept & free & torch.isfinite(scores), window)
    proposals = []
    for n in range(count):
        wanted = max(1, round(size * (0.05 + 0.95 * n / count)))
        first = out[torch.randperm(len(out), generator=rng)]
        second = into[torch.randperm(len(into), generator=rng)]
        if int(where.max()) > 0:
            first, second = _matched(first, second, where)
        wanted = min(wanted, len(first), len(second))
        if wanted:
            predicted = float(scores[first[:wanted]].sum() - scores[second[:wanted]].sum())
            proposals.append(Swap("scores", first[:wanted], second[:wanted], predicted))
    return proposals


def _matched(first: Tensor, second: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """Pair up units of the same cell, in the order given."""
    waiting: dict[int, list[int]] = {}
    for unit in second.tolist():
        waiting.setdefault(int(where[unit]), []).append(unit)
    pairs = [
        (unit, waiting[int(where[unit])].pop()) for unit in first.tolist() if waiting.get(int(where[unit]))
    ]
    both = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
    return both[:, 0], both[:, 1]
