"""Directed mutation at fixed sparsity: exchanges, accepted when the measured divergence falls."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from de_plugin.assess.candidates import Flipped
from de_plugin.assess.problem import Problem
from de_plugin.errors import ArgumentError
from de_plugin.evolve import Halving, halve
from de_plugin.prune.estimates import Swap, by_scores, gram, joint
from de_plugin.types import Mask


@dataclass(frozen=True)
class Swaps:
    """How many exchanges are tried, and on what data.

    Attributes:
        rounds: rounds a cycle; 0 turns swaps off.
        candidates: sets measured a round, over all sources and sizes.
        share: largest set, as a fraction of the kept units.
        largest: largest set, in exchanges.
        samples: samples on which sets are measured.
        gradient_samples: samples for per-sample gradients and Gram matrices.
        window: units of each side that the quadratic model sees.
        patience: end after so many rounds in a row without an accepted set.
        halving: how the sets of a round are thinned out.
    """

    rounds: int = 10
    candidates: int = 24
    share: float = 0.02
    largest: int = 256
    samples: int = 2000
    gradient_samples: int = 2000
    window: int = 128
    patience: int = 3
    halving: Halving = field(default_factory=Halving)

    def __post_init__(self) -> None:
        """Refuse settings that swap nothing by accident."""
        if self.rounds < 0 or min(self.candidates, self.largest, self.samples, self.window) < 1:
            raise ArgumentError(f"{self}: rounds must be >= 0, all other counts >= 1")
        if self.gradient_samples < 1 or self.patience < 1 or not 0 < self.share <= 1:
            raise ArgumentError(f"{self}: expected gradient_samples >= 1, patience >= 1, share in (0, 1]")


def swap(problem: Problem, start: Mask, free: Mask, scores: Tensor, rule: Swaps) -> Mask:
    """Improve a mask at fixed sparsity.

    Sources of proposals compete: each gets a part of the next round's candidates in proportion to what
    its sets have gained so far, and per source the sizes around the last winner are tried more finely.
    Predicted and measured change of the best set of every source go into ``problem.events``.

    Args:
        problem: what is asked.
        start: the mask to begin with.
        free: units that may change.
        scores: a ranking of the units for the source that needs no estimate, ``(units,)``.
        rule: how much is tried.

    Returns:
        The mask after the last accepted set, with as many kept units as `start`.
    """
    before = problem.kept
    gains: dict[str, float] = problem.state_of("swap").setdefault("gains", {})
    sizes: dict[str, int] = problem.state_of("swap").setdefault("sizes", {})
    fails = 0
    try:
        problem.kept = start
        for _ in range(rule.rounds):
            if fails >= rule.patience or problem.out_of_budget():
                break
            fails = 0 if _round(problem, free, scores, rule, gains, sizes) else fails + 1
        return problem.kept
    finally:
        problem.kept = before


def _round(
    problem: Problem,
    free: Mask,
    scores: Tensor,
    rule: Swaps,
    gains: dict[str, float],
    sizes: dict[str, int],
) -> bool:
    state = problem.state_of("swap")
    turn = state["turn"] = state.get("turn", 0) + 1
    size = max(1, min(rule.largest, round(rule.share * int(problem.kept.sum()))))
    proposals = _proposals(problem, free, scores, rule, size, turn, gains, sizes)
    if not proposals:
        return False
    nothing = torch.empty(0, dtype=torch.long)
    flips = [torch.cat([p.remove, p.revive]).sort().values for p in proposals]
    sets = Flipped(problem.kept, (nothing, *flips))
    index = problem.draw(rule.samples)
    order = torch.randperm(len(index), generator=problem.generator(6, turn))
    changes, best, base = _changes(problem, sets, index[order], rule)
    accepted = bool(changes[best] < 0)
    for source in sorted({p.source for p in proposals}):
        mine = [n for n, p in enumerate(proposals) if p.source == source]
        top = min(mine, key=lambda n: (float(changes[n]), n))
        gain = max(0.0, -float(changes[top])) / max(base, 1e-12)
        gains[source] = 0.7 * gains.get(source, 0.0) + 0.3 * gain
        if changes[top] < 0:
            sizes[source] = proposals[top].size
        problem.events.append(
            {
                "kind": "swap",
                "source": source,
                "size": proposals[top].size,
                "predicted": proposals[top].predicted,
                "measured": float(changes[top]),
                "accepted": accepted and top == best,
            }
        )
    if accepted:
        problem.kept = sets.mask(1 + best)
    return accepted


def _changes(problem: Problem, sets: Flipped, index: Tensor, rule: Swaps) -> tuple[Tensor, int, float]:
    """Measure in stages what each set (number 1 on) changes against set 0, on the same samples.

    Returns:
        The change of each set on the most samples it has seen, the winner, and set 0's divergence.
    """
    changes = torch.full((len(sets) - 1,), float("inf"), dtype=torch.float64)
    base = float("inf")

    def measure(some: Tensor, part: Tensor) -> Tensor:
        nonlocal base
        values = problem.assess(sets.pick([0, *(1 + some).tolist()]), part)
        base = float(values[0])
        changes[some] = torch.nan_to_num(values[1:] - values[0], nan=float("inf"), posinf=float("inf"))
        return changes[some]

    _, best = halve(measure, len(changes), index, rule.halving)
    return changes, best, base


def _proposals(
    problem: Problem,
    free: Mask,
    scores: Tensor,
    rule: Swaps,
    size: int,
    turn: int,
    gains: dict[str, float],
    sizes: dict[str, int],
) -> list[Swap]:
    paths: dict[str, list[Swap]] = {}
    if problem.has_curvature:
        paths["joint"] = joint(
            problem, free, size, samples=rule.gradient_samples, window=rule.window, key=turn
        )
    best = max(gains.values(), default=0.0)
    if turn % 4 == 1 or gains.get("gram", 0.0) > 0.2 * best:
        paths["gram"] = gram(problem, free, size, samples=rule.gradient_samples)
    total = sum(gains.get(s, 0.0) for s in (*paths, "scores"))
    shares = {
        s: 0.1 + 0.9 * (gains.get(s, 0.0) / total if total > 0 else 1 / (len(paths) + 1))
        for s in (*paths, "scores")
    }
    whole = sum(shares.values())
    result: list[Swap] = []
    for source, path in paths.items():
        wanted = max(2, round(rule.candidates * shares[source] / whole))
        result += _spread(path, wanted, sizes.get(source))
    wanted = max(1, round(rule.candidates * shares["scores"] / whole))
    result += by_scores(problem, scores, free, size, count=wanted, window=rule.window, key=turn)
    return result


def _spread(path: list[Swap], wanted: int, around: int | None) -> list[Swap]:
    """Take `wanted` prefixes of a path: half evenly, half near the size that last won."""
    if len(path) <= wanted:
        return path
    steps = torch.linspace(1, len(path), wanted if around is None else wanted - wanted // 2)
    chosen = {round(float(s)) for s in steps}
    for n in range(wanted // 2 if around is not None else 0):
        chosen.add(min(len(path), max(1, round((around or 1) * 2 ** ((n - wanted / 4) / 4)))))
    return [path[n - 1] for n in sorted(chosen)]
