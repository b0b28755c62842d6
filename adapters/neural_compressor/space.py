"""What can be chosen for each layer, what it costs, and how much it hurts when it is chosen alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from de_plugin.adapters.neural_compressor.config import DEQuantConfig
from de_plugin.adapters.neural_compressor.fitting import Bench, Levels
from de_plugin.adapters.neural_compressor.layers import Info
from de_plugin.adapters.neural_compressor.parts import squared_error
from de_plugin.adapters.neural_compressor.resolving import listed
from de_plugin.adapters.neural_compressor.settings import BEST, ENTROPY, Choice
from de_plugin.errors import ArgumentError
from de_plugin.quantize.cost import Estimate
from de_plugin.quantize.student import Part

Genome = tuple[int, ...]
"""The number of an option for each group of layers."""

_BOOKS = ("uniform", "affine", "kmeans")
_PRICES = (1.0, 3.0)
_LOW_PRICES = (1 / 64, 1 / 16, 1 / 4)  # what is zeroed is made good
_THROUGHOUT = (
    "a search gives a layer levels or leaves it alone throughout; give set_local(name, "
    "DEQuantConfig(dtype='fp32')) in every config, or in none"
)
_KEPT = 1 << 27  # weights whose levels are kept in memory, over all options


@dataclass(frozen=True)
class Option:
    """One way to give a group of layers its levels.

    Attributes:
        choice: what each of them gets.
        cost: what is to be small, of these layers: bytes by estimate, or bits.
        error: squared error relative to the squared weights.
        divergence: of the model when these layers alone have levels; NaN without data.
    """

    choice: Choice
    cost: float
    error: float
    divergence: float


@dataclass(frozen=True)
class Group:
    """Layers that get the same levels since they share a weight; mostly a single one.

    Attributes:
        layers: their names.
        parts: their weights.
        options: from the cheapest to the dearest, none worse and dearer than another.
    """

    layers: tuple[str, ...]
    parts: tuple[Part, ...]
    options: tuple[Option, ...]

    @property
    def weights(self) -> int:
        """How many there are."""
        return sum(part.weight.numel() for part in self.parts)


class Space:
    """All that can be chosen for a model's layers.

    Args:
        bench: the model and its data.
        asked: what users allow each layer.
        cheapest: "bytes" of the file, or "bits".
    """

    def __init__(self, bench: Bench, asked: Mapping[str, Sequence[Choice]], cheapest: str) -> None:
        self.bench = bench
        self._cheapest = cheapest
        groups = _joined(bench)
        total = sum(p.weight.numel() for p in bench.parts) * max(map(len, asked.values()))
        self._kept = total <= _KEPT
        allowed = [_common(layers, [asked[n] for n in layers]) for layers, _ in groups]
        both = list(zip(groups, allowed, strict=True))
        bench.expect({part.name: choices for (_, parts), choices in both for part in parts})
        self.groups = tuple(
            Group(layers, parts, self._options(parts, choices)) for (layers, parts), choices in both
        )

    def _options(self, parts: tuple[Part, ...], choices: Sequence[Choice]) -> tuple[Option, ...]:
        found = [self._option(parts, choice) for choice in choices]
        hurts = [damage(option) for option in found]
        order = sorted(range(len(found)), key=lambda n: (found[n].cost, hurts[n], n))
        result: list[Option] = []
        least = math.inf
        for n in order:
            if hurts[n] < least:
                result.append(found[n])
                least = hurts[n]
        return tuple(result)

    def _option(self, parts: tuple[Part, ...], choice: Choice) -> Option:
        levels = self.bench.alone(parts, choice)
        sizes = sum(part.weight.numel() for part in parts)
        energy = sum(float(part.weight.double().square().sum()) for part in parts)
        error = sum(squared_error(part, levels[part.name]) for part in parts) / max(energy, 1e-300)
        option = Option(
            choice,
            sum(Estimate.of(levels[part.name]).total for part in parts)
            if self._cheapest == "bytes"
            else choice.bits * sizes,
            error,
            self.bench.divergence(levels),
        )
        if not self._kept:
            for part in parts:
                self.bench.fits.pop((part.name, choice), None)
        return option

    # -- genomes ---------------------------------------------------------------------------------

    def choices(self, genome: Genome) -> dict[str, Choice]:
        """Return what each layer gets."""
        return {
            name: group.options[n].choice
            for group, n in zip(self.groups, genome, strict=True)
            for name in group.layers
        }

    def cost(self, genome: Genome) -> float:
        """Return what a genome costs, without the parts that are the same for all."""
        return sum(group.options[n].cost for group, n in zip(self.groups, genome, strict=True))

    def levels(self, genome: Genome) -> Levels:
        """Return the levels of all weights."""
        return self.bench.chosen(self.choices(genome))

    def mean_bits(self, choices: Mapping[str, Choice]) -> float:
        """Return the bits of a weight, on average."""
        total = sum(choices[group.layers[0]].bits * group.weights for group in self.groups)
        return total / sum(group.weights for group in self.groups)

    def path(self, weights: Sequence[float]) -> list[Genome]:
        """Return genomes from the finest to the cheapest, each the least harmful of its cost.

        Steps are taken in the order of harm a cost that they save: the lower convex hull of every group
        (Shoham and Gersho 1988).

        Args:
            weights: by which each group's damage counts.
        """
        now = [len(group.options) - 1 for group in self.groups]
        steps = []
        for number, group in enumerate(self.groups):
            hull = _hull([(o.cost, weights[number] * damage(o)) for o in group.options])
            for order, (fine, coarse) in enumerate(itertools.pairwise(reversed(hull))):
                a, b = group.options[fine], group.options[coarse]
                harm = weights[number] * (damage(b) - damage(a)) / max(a.cost - b.cost, 1e-300)
                steps.append((harm, number, order, coarse))
        result = [tuple(now)]
        for _, number, _, coarse in sorted(steps):
            now[number] = coarse
            result.append(tuple(now))
        return result


def asked_of(
    configs: Sequence[DEQuantConfig], info: Info, cheapest: str, compensated: bool
) -> dict[str, list[Choice]]:
    """Return what configs allow each layer, lists and codebooks written out.

    Raises:
        SelectionError: a config means no layer.
        ArgumentError: values cannot work.
    """
    found: dict[str, dict[Choice, None]] = {}
    alone: set[str] = set()
    for config in configs:
        for one in (config, *config.local_config.values()):
            if {"int", "fp32"} <= set(listed(one.dtype)):
                raise ArgumentError(f"dtype={one.dtype!r}: {_THROUGHOUT}")
        for single in config.spread():
            for (name, _), own in single.resolved(info).items():
                if own.dtype == "fp32":
                    alone.add(name)
                    continue
                found.setdefault(name, {}).update(
                    dict.fromkeys(_written_out(own.choice, cheapest, compensated))
                )
    if both := sorted(alone & set(found)):
        raise ArgumentError(f"dtype: {both[0]} may be 'int' and 'fp32'; {_THROUGHOUT}")
    return {name: list(choices) for name, choices in found.items()}


def _written_out(choice: Choice, cheapest: str, compensated: bool) -> list[Choice]:
    """Return a choice for each codebook that "best" stands for; "entropy" saves bytes, not bits."""
    if choice.codebook != BEST:
        return [choice]
    books, prices = (_BOOKS, _PRICES) if not compensated else (("uniform",), _LOW_PRICES)
    plain = [replace(choice, codebook=book) for book in books]
    priced = [replace(choice, codebook=ENTROPY, price=price) for price in prices]
    return plain + (priced if cheapest == "bytes" else [])


def _joined(bench: Bench) -> list[tuple[tuple[str, ...], tuple[Part, ...]]]:
    """Return layers that share weights together, in the model's order."""
    groups: list[tuple[list[str], list[Part]]] = []
    for part in bench.parts:
        names = list(bench.layers[part.name])
        mine = [group for group in groups if set(group[0]) & set(names)]
        joined = ([n for g in mine for n in g[0]], [p for g in mine for p in g[1]])
        joined = (list(dict.fromkeys([*joined[0], *names])), [*joined[1], part])
        groups = [group for group in groups if not any(group is x for x in mine)] + [joined]
    return [(tuple(names), tuple(parts)) for names, parts in groups]


def _common(names: Sequence[str], asked: list[Sequence[Choice]]) -> list[Choice]:
    """Return what all of some layers allow.

    Raises:
        ArgumentError: there is nothing.
    """
    both = [choice for choice in asked[0] if all(choice in other for other in asked[1:])]
    if not both:
        told = ", ".join(f"{n}: {' or '.join(map(str, mine))}" for n, mine in zip(names, asked, strict=True))
        raise ArgumentError(
            f"{' and '.join(names)} share one weight and allow nothing in common ({told}); allow the same"
        )
    return both


def damage(option: Option) -> float:
    """Return how much an option hurts when its layers alone have levels."""
    return option.error if math.isnan(option.divergence) else option.divergence


def _hull(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the lower convex hull of points of rising cost and falling damage, by number."""
    result: list[int] = []
    for n, (x, y) in enumerate(points):
        while len(result) > 1:
            (ax, ay), (bx, by) = points[result[-2]], points[result[-1]]
            if (by - ay) * (x - ax) < (y - ay) * (bx - ax):
                break
            result.pop()
        result.append(n)
    return result
