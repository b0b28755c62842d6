"""Directed Evolution as a criterion: genomes over criteria evolve by the divergence they cause."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from de_plugin.assess.candidates import Made
from de_plugin.assess.divergence import KL
from de_plugin.assess.guard import check_counts
from de_plugin.assess.problem import Problem
from de_plugin.criteria import Activation, Criterion, Fisher, Taylor, criterion, register
from de_plugin.errors import ArgumentError
from de_plugin.evolve import Halving, Search, halve
from de_plugin.prune.guides import choice, costly, guides
from de_plugin.prune.swap import Swaps, swap
from de_plugin.types import Mask, Masks, Scores

_MASK_BYTES = 64 << 20
"""The masks of a generation are kept from one stage to the next where they take no more than this."""


@runtime_checkable
class Evolving(Protocol):
    """A criterion that chooses a whole set, and may revive units that went earlier."""

    def evolve(self, problem: Problem, eligible: Mask, count: int, free: Mask) -> Mask:
        """Return what is kept when `count` more units are zeroed."""


@dataclass(frozen=True)
class DirectedEvolution:
    """The lowest measured divergence that evolution finds (arXiv:2206.05859).

    A genome holds an exponent for each criterion (a product of powers ranks the units), an offset for
    each layer (the allocation of sparsity) and a mutation temperature. Its candidate set is assessed by
    zeroing it; the pure criteria are always candidates too.

    Args:
        criteria: what the genomes combine, names or criteria; those that need a gradient are left out
            where there is none.
        population: genomes a generation.
        generations: generations a cycle.
        samples: samples on which a generation's best are compared.
        exponent: standard deviation of the exponents' mutation.
        offset: standard deviation of the layer offsets' mutation.
        temperature: standard deviation, and twice the size, of the noise on a ranking.
        halving: how a generation is thinned out.
        swaps: directed mutation after the genomes.
        guides: whether others than plain KL guide where a choice costs much of what the teacher tells, for
            KL likes students that say nothing. Then softened and calibrated KL guide a search each, and
            the least KL on data held back decides, and where choices are as good as equal in it, how often
            their likeliest class is the teacher's.
    """

    criteria: tuple[Criterion | str, ...] = ("magnitude", "activation", "fisher")
    population: int = 24
    generations: int = 4
    samples: int = 2000
    exponent: float = 0.2
    offset: float = 0.4
    temperature: float = 0.1
    halving: Halving = field(default_factory=Halving)
    swaps: Swaps = field(default_factory=Swaps)
    guides: bool = False

    @classmethod
    def brief(cls, samples: int = 1024, rounds: int = 6) -> DirectedEvolution:
        """Return a search of some hundred evaluations, for hundreds of units: what adapters make by default.

        Args:
            samples: measure a candidate on at most so many, 2 or more. The samples of the criteria and of the
                swaps' gradients grow in proportion, as does the time. Only samples that the search is given
                count: of those that a pruner reads, a tenth is held back.
            rounds: of exchanges after the genomes, 1 or more; they end when a fifth of them in a row, at
                least 3, finds nothing. Where a cut destroys much, more of them may find better sets; the
                time grows nearly in proportion, and three times where others guide as well.

        Raises:
            ArgumentError: `samples` or `rounds` is no whole number, or too small.

        >>> DirectedEvolution.brief().population
        16
        >>> DirectedEvolution.brief(samples=5120).swaps.gradient_samples
        2560
        """
        check_counts(samples=samples, rounds=rounds)
        if samples < 2:
            raise ArgumentError(f"samples={samples}: expected 2 or more")
        seen = [
            replace(c, samples=max(1, round(c.samples * samples / 1024)))
            for c in (Activation(), Fisher(), Taylor())
        ]
        return cls(
            criteria=("magnitude", *seen),
            population=16,
            generations=3,
            samples=samples,
            halving=Halving(2),
            swaps=Swaps(
                rounds=rounds,
                candidates=16,
                samples=samples,
                gradient_samples=samples // 2,
                patience=max(3, rounds // 5),
                share=0.1,
            ),
            guides=True,
        )

    def __post_init__(self) -> None:
        """Resolve the criteria and check the numbers."""
        if not self.criteria or isinstance(self.criteria, str):
            raise ArgumentError(f"criteria={self.criteria!r}: expected a non-empty tuple")
        object.__setattr__(self, "criteria", tuple(criterion(c) for c in self.criteria))
        if self.population < 4 or self.generations < 0 or self.samples < 1:
            raise ArgumentError(
                f"population={self.population}, generations={self.generations}, samples={self.samples}: "
                "expected at least 4, 0 and 1"
            )
        if not all(x > 0 for x in (self.exponent, self.offset, self.temperature)):
            raise ArgumentError(
                f"exponent={self.exponent}, offset={self.offset}, temperature={self.temperature}: "
                "expected deviations > 0"
            )
        if not isinstance(self.swaps, Swaps):
            raise ArgumentError(f"swaps={self.swaps!r}: expected Swaps(...); Swaps(rounds=0) for none")

    @property
    def name(self) -> str:
        """Return "de"."""
        return "de"

    @property
    def needs_gradient(self) -> bool:
        """False: without a gradient the criteria that need one are left out."""
        return False

    def __call__(self, problem: Problem, eligible: Mask, count: int) -> Scores:
        """Rank the units: the evolved set first, then the rest, by the best genome's ranking."""
        kept, scores = self._search(problem, eligible, count, eligible)
        order = scores.masked_fill(~eligible, float("inf")).double()
        order[problem.kept & ~kept] -= float(order[eligible].max() - order[eligible].min()) + 1
        return order

    def evolve(self, problem: Problem, eligible: Mask, count: int, free: Mask) -> Mask:
        """Return what is kept when `count` more units are zeroed, exchanges among `free` allowed."""
        return self._search(problem, eligible, count, free)[0]

    # -- the cycle -------------------------------------------------------------------------------

    def _search(self, problem: Problem, eligible: Mask, count: int, free: Mask) -> tuple[Mask, Tensor]:
        state = problem.state_of(self)
        learnt = dict(state.get("centres", {}))
        kept, scores = self._searched(problem, eligible, count, free)
        if not (self.guides and type(problem.divergence) is KL):
            return kept, scores
        values = [float(problem.gate(kept[None])[0])]
        if not costly(problem, problem.divergence, values[0]):
            return kept, scores
        found, centres = [(kept, scores)], [state["centres"]]
        for guide in guides(problem.divergence):
            if problem.out_of_budget():
                break
            state["centres"] = dict(learnt)
            with problem.guided(guide):
                found.append(self._searched(problem, eligible, count, free))
            centres.append(state["centres"])
            values.append(float(problem.gate(found[-1][0][None])[0]))
        chosen, told = choice(problem, problem.divergence, torch.stack([mask for mask, _ in found]), values)
        state["centres"] = centres[chosen]
        problem.events.append({"kind": "guides", **told})
        return found[chosen]

    def _searched(self, problem: Problem, eligible: Mask, count: int, free: Mask) -> tuple[Mask, Tensor]:
        usable = [
            c
            for c in self.criteria
            if not isinstance(c, str) and (problem.has_gradient or not c.needs_gradient)
        ]
        if not usable:
            raise ArgumentError(
                "criteria: all of them need a gradient and the divergence has none; add 'magnitude'"
            )
        masks, features = [], torch.empty(len(usable), problem.units.count)
        for feature, c in zip(features, usable, strict=True):
            scores = c(problem, eligible, count)
            masks.append(problem.select(scores, eligible, count))
            feature.copy_(_standard(scores, eligible))
            del scores
        pure = torch.stack(masks)
        names = [c.name for c in usable]
        winner, scores = self._genomes(problem, eligible, count, features, pure, names)
        del features
        swapped = winner
        if self.swaps.rounds and not problem.out_of_budget():
            swapped = swap(problem, winner, free, scores, self.swaps)
        return self._gate(problem, torch.stack([swapped, winner, *pure]), names), scores

    def _genomes(
        self,
        problem: Problem,
        eligible: Mask,
        count: int,
        features: Tensor,
        pure: Masks,
        names: list[str],
    ) -> tuple[Mask, Tensor]:
        state = problem.state_of(self)
        turn = state["turn"] = state.get("turn", 0) + 1
        first = problem.assess(pure, problem.draw(self.samples))
        size = str(self._genes(problem, len(features)))  # more where the allocation is free
        centres: dict[str, list[float]] = state.setdefault("centres", {})
        search = self._search_from(problem, centres.get(size), turn, int(first.argmin()), len(features))
        elite, ranking = pure[int(first.argmin())], features[int(first.argmin())]
        for generation in range(self.generations):
            if problem.out_of_budget():
                break
            genomes = torch.from_numpy(search.ask()).float()
            ranking_of = partial(self._ranking, problem, genomes, features, (turn, generation))
            mask_of: Callable[[int], Mask] = partial(
                _mask, problem, ranking_of, eligible, count, self.population, [*pure, elite]
            )
            if self.population * problem.units.count <= _MASK_BYTES:
                mask_of = cache(mask_of)
            masks = Made(mask_of, tuple(range(self.population + len(pure) + 1)), problem.units.count)
            index = problem.draw(self.samples)
            order = torch.randperm(len(index), generator=problem.generator(4, turn, generation))
            values, best = halve(partial(_assess, problem, masks), len(masks), index[order], self.halving)
            search.tell(values[: len(genomes)].numpy().astype(np.float64))
            if best < len(genomes):
                ranking = ranking_of(best)
            elif best < len(masks) - 1:
                ranking = features[best - len(genomes)]
            elite = masks.mask(best)
            problem.events.append(
                {
                    "kind": "generation",
                    "generation": generation,
                    "best": float(values[best]),
                    "pure": {
                        n: float(v) for n, v in zip(names, values[len(genomes) : -1], strict=True) if v < 1e30
                    },
                    "winner": "genome" if best < len(genomes) else "elite or pure criterion",
                }
            )
        centres[size] = search.centre.tolist()
        return elite, ranking

    @staticmethod
    def _genes(problem: Problem, criteria: int) -> int:
        """Return how long a genome is: exponents, an offset a layer where none is fixed, a temperature."""
        return criteria + (0 if problem.quota is not None else len(problem.units.layers)) + 1

    def _search_from(
        self, problem: Problem, centre: list[float] | None, turn: int, best: int, criteria: int
    ) -> Search:
        """Start around what the last cycle has learnt, at first around the best pure criterion."""
        genes = self._genes(problem, criteria)
        mean = np.zeros(genes) if centre is None else np.array(centre)
        if centre is None:
            mean[best] = 1.0
        deviation = [self.exponent] * criteria + [self.offset] * (genes - criteria - 1) + [self.temperature]
        return Search(mean, np.array(deviation), self.population, problem.seed + turn - 1)

    def _ranking(
        self, problem: Problem, genomes: Tensor, features: Tensor, key: tuple[int, ...], number: int
    ) -> Tensor:
        genome, criteria = genomes[number], len(features)
        scores = torch.einsum("c,cu->u", genome[:criteria], features)
        if problem.quota is None:
            scores += problem.units.per_layer(genome[criteria:-1])
        warmth = float(genome[-1].abs())
        noise = torch.randn(problem.units.count, generator=problem.generator(5, *key, number))
        return scores.add_(noise.mul_(0.5 * warmth))

    def _gate(self, problem: Problem, masks: Masks, names: list[str]) -> Mask:
        """Let winner and pure criteria meet once more, on data held back from the search."""
        values = problem.gate(masks)
        best = int(values.argmin())
        labels = ["swapped", "evolved", *names]
        problem.events.append(
            {
                "kind": "gate",
                "divergence": dict(zip(labels, values.tolist(), strict=True)),
                "chosen": labels[best],
                "overruled": best > 1,
            }
        )
        return masks[best]


def _mask(
    problem: Problem,
    ranking_of: Callable[[int], Tensor],
    eligible: Mask,
    count: int,
    genomes: int,
    given: list[Mask],
    number: int,
) -> Mask:
    """Return candidate `number` of a generation: a genome's choice, or after those one that is given."""
    if number >= genomes:
        return given[number - genomes]
    return problem.select(ranking_of(number), eligible, count)


def _assess(problem: Problem, sets: Made, some: Tensor, index: Tensor) -> Tensor:
    return problem.assess(sets.pick(some.tolist()), index)


def _standard(scores: Scores, eligible: Mask) -> Tensor:
    """Return log-scores with mean 0 and deviation 1 over the eligible units, 0 elsewhere."""
    chosen = eligible.numpy()  # torch's own indexing by bools takes four times the memory
    part = scores.double().numpy()[chosen]
    if (part < 0).any():
        part = part.argsort(kind="stable").argsort(kind="stable") + 1.0
    floor = part.min(where=part > 0, initial=np.inf)
    logs = torch.from_numpy(part).clamp_min_(float(floor) / 10 if np.isfinite(floor) else 1.0).log_()
    logs.sub_(logs.mean()).div_(logs.std(unbiased=False).clamp_min(1e-12))
    result = np.zeros(len(chosen), dtype=np.float32)
    result[chosen] = logs.numpy()
    return torch.from_numpy(result)


register("de")(DirectedEvolution)
