"""What candidates differ in from the student, held as little as it takes, and what that makes of a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from de_plugin.assess.candidates import Candidates
from de_plugin.assess.changes import Change, Channels, Weights
from de_plugin.assess.granularity import Channel, Weight
from de_plugin.assess.layers import Layer
from de_plugin.assess.ranks import Ranks
from de_plugin.assess.units import ParameterUnits
from de_plugin.types import Mask, Masks

_INDEX = 8
"""Bytes of a place."""
_SLAB_BYTES = 128 << 20
"""What the differences of candidates take at once."""


class Slab:
    """What a number of candidates differ in from the student.

    Args:
        units: what they differ in.
        count: how many candidates there are.
        differences: makes the units in which a candidate differs, ascending, or a bool for each unit.
        ranks: who finds out at first how many they are, a part of the candidates each.
    """

    def __init__(
        self, units: ParameterUnits, count: int, differences: Callable[[int], Tensor], ranks: Ranks
    ) -> None:
        self._make = differences
        self._held: dict[int, Tensor] = {}
        self._units = units
        self._edges = np.array([*(layer.start for layer in units.layers), units.count])
        self._known = np.zeros((count, len(units.layers)))

        def work() -> Tensor:
            for number, owner in enumerate(ranks.shares([1.0] * count)):
                if owner == ranks.rank:
                    self._differences(number)
            return torch.from_numpy(self._known).flatten()

        found = ranks.run_shared(self._known.size, work).long()
        self.counts: NDArray[np.int64] = found.reshape(self._known.shape).numpy()
        """How many units of each layer differ, ``(candidates, layers)``."""

    def __len__(self) -> int:
        """Return the number of candidates."""
        return len(self.counts)

    def pick(self, numbers: Sequence[int]) -> Slab:
        """Return some of the candidates, in that order."""
        some, make = copy(self), self._make
        some._make = lambda n: make(numbers[n])
        some._held = {n: self._held[k] for n, k in enumerate(numbers) if k in self._held}
        some._known, some.counts = self._known[numbers], self.counts[numbers]
        return some

    def _differences(self, number: int) -> Tensor:
        """Return a candidate's flips, or where these are many a bool for each unit: what is smaller."""
        if number not in self._held:
            found = self._make(number)
            layers, count = self._units.layers, self._units.count
            if found.dtype == torch.bool:
                self._known[number] = [int(found[x.start : x.stop].sum()) for x in layers]
                if _INDEX * self._known[number].sum() <= count:
                    found = found.nonzero()[:, 0]
            else:
                self._known[number] = np.diff(np.searchsorted(found.numpy(), self._edges))
                if _INDEX * len(found) > count:
                    found = torch.zeros(count, dtype=torch.bool).index_fill_(0, found, True)
            self._held[number] = found
        return self._held[number]

    def _flips(self, layer: int, number: int) -> Tensor:
        """Return a candidate's flips in a layer, numbered over all layers."""
        held, start = self._differences(number), self._units.layers[layer].start
        if held.dtype == torch.bool:
            return held[start : self._units.layers[layer].stop].nonzero()[:, 0] + start
        before = int(self.counts[number, :layer].sum())
        return held[before : before + self.counts[number, layer]]

    def flips(self, layer: int, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return whose the flips of a layer are, places in `numbers`, and the flips, both ascending."""
        sizes = torch.from_numpy(self.counts[list(numbers), layer])
        owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        flips = torch.cat([self._flips(layer, n) for n in numbers])
        return owner, flips - self._units.layers[layer].start

    def rows(self, layer: int, numbers: Sequence[int], kept: Mask) -> Masks:
        """Return what candidates keep of a layer, ``(candidates, units)``; the student keeps `kept`."""
        rows = kept.repeat(len(numbers), 1)
        where = self._units.layers[layer]
        for row, number in zip(rows, numbers, strict=True):
            held = self._differences(number)
            if held.dtype == torch.bool:
                row ^= held[where.start : where.stop]
            else:
                at = self._flips(layer, number) - where.start
                row.scatter_(0, at, ~kept[at])
        return rows


def differences(population: Candidates, kept: Mask, number: int) -> Tensor:
    """Return the units in which a candidate differs, or a bool for each where they may be many."""
    if _INDEX * population.size(number) < len(kept):
        return population.flips(number, kept)
    return population.mask(number) != kept


def slabs(population: Candidates) -> Iterator[list[int]]:
    """Yield the candidates in runs whose differences find room."""
    numbers: list[int] = []
    held = 0
    for number in range(len(population)):
        size = _INDEX * population.size(number)
        if numbers and held + size > _SLAB_BYTES:
            yield numbers
            numbers, held = [], 0
        numbers.append(number)
        held += size
    if numbers:
        yield numbers


def change(
    units: ParameterUnits,
    kept: Mask,
    number: int,
    numbers: Sequence[int],
    slab: Slab,
    dense: Mapping[int, Tensor],
    keep: bool,
) -> Change:
    """Return how layer `number` differs between candidates.

    Args:
        units: what they differ in.
        kept: what the student keeps, ``(units,)``.
        number: of the layer.
        numbers: of the candidates.
        slab: which they belong to.
        dense: parameters with nothing zeroed, by ``id``, of those that are zeroed now.
        keep: hold masked weights from one pass to the next.
    """
    layer = units.layers[number]
    weight = dense.get(id(layer.parameter), layer.parameter.detach())
    kept = kept[layer.start : layer.stop]
    rows = partial(slab.rows, number, numbers, kept)
    if isinstance(units.granularity, Channel) and len(layer.shape) == layer.parameter.dim():
        bias = None if layer.bias is None else dense.get(id(layer.bias), layer.bias.detach())
        return Channels(layer, weight, bias, rows().to(weight.device), kept.to(weight.device))
    count = len(numbers)
    size = int(slab.counts[list(numbers), number].sum()) * layer.parameter.numel() // layer.count
    return Weights(
        layer,
        weight,
        lambda: units.expand_layer(layer, rows().to(weight.device)),
        count,
        size,
        partial(_scattered, units, layer, kept, partial(slab.flips, number, numbers), count),
        keep,
    )


def _scattered(
    units: ParameterUnits, layer: Layer, kept: Mask, flips: Callable[[], tuple[Tensor, Tensor]], count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the candidate, the canonical position and the sign of every weight that differs, in order."""
    owner, flipped = flips()
    signs = 1 - 2 * kept[flipped].int()
    if isinstance(units.granularity, Weight):
        return owner, flipped, signs
    changed = torch.zeros(count, layer.count, dtype=torch.int8)
    changed[owner, flipped] = signs.to(torch.int8)
    spread = units.granularity.expand(changed, layer.shape).flatten(1)
    at = spread.nonzero(as_tuple=True)
    return at[0], at[1], spread[at].int()
