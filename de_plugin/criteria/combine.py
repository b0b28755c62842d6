"""Criteria made of criteria: one narrows down what another has chosen, or several vote."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from de_plugin.assess.granularity import NM
from de_plugin.assess.problem import Problem
from de_plugin.criteria.base import Criterion, criterion
from de_plugin.criteria.scoring import finish
from de_plugin.errors import ArgumentError
from de_plugin.types import Mask, Scores


@dataclass(frozen=True)
class Nest:
    """`outer` picks more than is asked for, each of `inner` narrows that down.

    The sets shrink geometrically from ``widen x count`` to ``count``. Each holds a selection that
    keeps to quotas and N:M limits, so that the last one always can. Use `nest` to build one.

    Args:
        outer: picks the widest set.
        inner: each picks from the set before it; the last decides.
        widen: how many times `count` the widest set holds, where there are so many; >= 1.

    Raises:
        ArgumentError: `inner` is empty, a part is no criterion, or `widen` is out of range.
    """

    outer: Criterion
    inner: tuple[Criterion, ...]
    widen: float = 2.0

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        _check_widen(self.widen)
        if not self.inner:
            raise ArgumentError("Nest(inner=()): expected at least one; nest(a) returns a")
        for part in (self.outer, *self.inner):
            _check_part(part)

    @property
    def name(self) -> str:
        """Return "nest(outer, inner, ...)"."""
        return f"nest({', '.join(part.name for part in (self.outer, *self.inner))})"

    @property
    def needs_gradient(self) -> bool:
        """Whether any part does."""
        return any(part.needs_gradient for part in (self.outer, *self.inner))

    def __call__(self, problem: Problem, eligible: Mask, count: int) -> Scores:
        """Return ranks, ``(units,)``: the last set first, then the rest of each wider one.

        A `count` beyond what is eligible means all of it. Where ``problem.quota`` is set it takes
        the place of `count`, and every layer is widened by itself; while a part ranks it holds the
        wider totals that the part is to reach.

        Raises:
            TargetError: the quotas cannot be reached.
        """
        allowed = eligible.cpu() & problem.kept.cpu()
        room = _room(problem, allowed)
        goals = _goals(problem, allowed, min(count, room))
        steps = (self.outer, *self.inner)
        current, seen = allowed, [eligible.cpu()]
        orders: list[Tensor] = []
        for number, part in enumerate(steps):
            factor = self.widen ** ((len(self.inner) - number) / len(self.inner))
            wanted = [(at, goal, math.ceil(goal * factor - 1e-9)) for at, goal in goals]
            free = seen[-1] & problem.kept.cpu()
            asked = [min(size, _room(problem, free, at)) for at, _, size in wanted]
            with _quota_for(problem, asked):
                orders.append(part(problem, seen[-1], sum(asked)).cpu())
            current = _narrowed(problem, orders[-1], current, wanted)
            seen.append(current)
            if not bool(current.any()):
                break
        return finish(problem, eligible, _ranks(seen, orders), self.name)


def _room(problem: Problem, allowed: Mask, at: slice = slice(None)) -> int:
    """Return how many of the allowed units at `at` may go under the N:M limit."""
    kind = problem.units.granularity
    if not isinstance(kind, NM):
        return int(allowed[at].sum())
    left = (kind.m - kind.n) - (~problem.kept[at].cpu()).reshape(-1, kind.m).sum(-1)
    return int(torch.minimum(left.clamp_min(0), allowed[at].reshape(-1, kind.m).sum(-1)).sum())


def _goals(problem: Problem, allowed: Mask, count: int) -> list[tuple[slice, int]]:
    """Return how many units go in the end: in the model, or in each layer where quotas are set."""
    if problem.quota is None:
        return [(slice(0, len(allowed)), max(0, count))]
    goals = []
    for layer, quota in zip(problem.units.layers, problem.quota.tolist(), strict=True):
        at = slice(layer.start, layer.stop)
        goals.append((at, max(0, int(quota) - int((~problem.kept[at]).sum()))))
    return goals


@contextmanager
def _quota_for(problem: Problem, asked: list[int]) -> Iterator[None]:
    """Let ``problem.quota``, where it is set, zero `asked` more units of each layer in the block."""
    quota = problem.quota
    if quota is not None:
        gone = [int((~problem.kept[layer.start : layer.stop]).sum()) for layer in problem.units.layers]
        problem.quota = quota.new_tensor([a + b for a, b in zip(gone, asked, strict=True)])
    try:
        yield
    finally:
        problem.quota = quota


def _narrowed(problem: Problem, scores: Tensor, current: Mask, wanted: list[tuple[slice, int, int]]) -> Mask:
    """Return a valid selection of `current`, filled up with its next lowest to the sizes wanted."""
    valid = problem.select(scores, current, sum(goal for _, goal, _ in wanted))
    chosen = problem.kept.cpu() & ~valid.cpu()
    for at, goal, size in wanted:
        spare = torch.where(current[at] & ~chosen[at], scores[at], float("inf"))
        extra = min(size - goal, int(torch.isfinite(spare).sum()))
        chosen[at][spare.argsort(stable=True)[:extra]] = True
    return chosen


def _ranks(seen: list[Mask], orders: list[Tensor]) -> Tensor:
    """Rank units by the narrowest set they are in, then by the last criterion that saw them."""
    ranks = torch.full((len(seen[0]),), float("inf"), dtype=torch.float64)
    at = 0
    taken = torch.zeros_like(seen[0])
    for members, order in zip(reversed(seen), [orders[-1], *reversed(orders)], strict=True):
        index = (members & ~taken).nonzero()[:, 0]
        index = index[order[index].argsort(stable=True)]
        ranks[index] = torch.arange(at, at + len(index), dtype=torch.float64)
        at += len(index)
        taken = taken | members
    return ranks


@dataclass(frozen=True)
class Blend:
    """The weighted sum of standardised log-scores; of standardised ranks where scores are negative.

    Use `blend` to build one.

    Args:
        parts: ``(criterion, weight)`` pairs; weights are finite and not all zero.

    Raises:
        ArgumentError: there are no parts, one is no criterion, or the weights are out of range.
    """

    parts: tuple[tuple[Criterion, float], ...]

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for part, _ in self.parts:
            _check_part(part)
        given = {part.name: weight for part, weight in self.parts}
        if not all(math.isfinite(weight) for weight in given.values()):
            raise ArgumentError(f"blend weights {given}: expected finite numbers")
        if all(weight == 0 for _, weight in self.parts):
            raise ArgumentError(f"blend weights {given}: expected at least one that is not zero")

    @property
    def name(self) -> str:
        """Return "blend(weight*criterion + ...)"."""
        return f"blend({' + '.join(f'{weight:g}*{part.name}' for part, weight in self.parts)})"

    @property
    def needs_gradient(self) -> bool:
        """Whether any part does."""
        return any(part.needs_gradient for part, _ in self.parts)

    def __call__(self, problem: Problem, eligible: Mask, count: int) -> Scores:
        """Return the weighted sum, ``(units,)``; no part's scale matters."""
        eligible = eligible.cpu()
        total = torch.zeros(len(eligible), dtype=torch.float64)
        for part, weight in self.parts:
            scores = part(problem, eligible, count).cpu().double()
            total[eligible] += weight * _standardised(scores[eligible])
        return finish(problem, eligible, total, self.name)


def _standardised(scores: Tensor) -> Tensor:
    """Bring scores to logarithms (or ranks) of mean 0 and standard deviation 1; a constant to 0."""
    if len(scores) == 0:
        return scores
    values: Tensor
    if bool((scores < 0).any()):
        _, where, counts = scores.unique(return_inverse=True, return_counts=True)
        values = (counts.cumsum(0) - counts / 2)[where].double()
    else:
        positive = scores[scores > 0]
        if len(positive) == 0:
            return torch.zeros_like(scores)
        values = scores.clamp_min(max(float(positive.min()) / 10, 5e-324)).log()
    centred = values - values.mean()
    spread = centred.square().mean().sqrt()
    # A constant leaves rounding noise, which must not be blown up.
    if float(spread) <= 1e-12 * max(1.0, float(values.abs().max())):
        return torch.zeros_like(scores)
    return centred / spread


def _check_part(part: object) -> None:
    if isinstance(part, type) or not isinstance(part, Criterion):
        raise ArgumentError(f"got {part!r} as a part; expected a criterion, such as Magnitude()")


def _check_widen(widen: float) -> None:
    if not (widen >= 1 and math.isfinite(widen)):
        raise ArgumentError(f"widen={widen}: expected a finite number >= 1")


def nest(outer: str | Criterion, *inner: str | Criterion, widen: float = 2.0) -> Criterion:
    """Let a cheap criterion choose more than is asked for and finer ones narrow that down.

    Args:
        outer: picks ``widen x count`` units.
        inner: each narrows the set before it; the last decides. Without any, `outer` is returned.
        widen: how much wider the first set is; finite, >= 1.

    Raises:
        ArgumentError: a criterion is unknown or `widen` is out of range.

    >>> nest("magnitude", "fisher").name
    'nest(magnitude, fisher)'
    """
    _check_widen(widen)
    first = criterion(outer)
    return Nest(first, tuple(criterion(part) for part in inner), widen) if inner else first


def blend(weights: Mapping[str | Criterion, float]) -> Criterion:
    """Let several criteria vote.

    Args:
        weights: the weight of each criterion, by name or object; finite, not all zero.

    Raises:
        ArgumentError: a criterion is unknown, or the weights are out of range.

    >>> blend({"magnitude": 1, "random": 0.5}).name
    'blend(1*magnitude + 0.5*random)'
    """
    return Blend(tuple((criterion(part), float(weight)) for part, weight in weights.items()))
