"""Which candidates are measured in one pass, and on how many samples: what the working set holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from de_plugin.assess.changes import SCATTERED
from de_plugin.assess.layers import Layer
from de_plugin.assess.ranks import Ranks
from de_plugin.assess.record import Record
from de_plugin.assess.units import ParameterUnits
from de_plugin.types import Mask, Masks

_FLOAT, _INDEX = 4, 8
"""Bytes of a number and of a place."""
_MOST = 64
"""Candidates in one pass at most."""
_SAMPLES = 4096
"""Samples in one pass at most."""
_FEWEST = 16
"""Samples in one pass at least, where the student's own run on them finds room."""
_LAYERS = 2
"""The working sets that the candidates' weights in one layer may take."""
_RUNS = 8
"""The working sets that one run of the student may take."""


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
        self._edges = torch.tensor([*(layer.start for layer in units.layers), units.count])
        self._known = np.zeros((count, len(units.layers)))
        for number, owner in enumerate(ranks.shares([1.0] * count)):
            if owner == ranks.rank:
                self._differences(number)
        self.counts: NDArray[np.int64] = ranks.total(torch.from_numpy(self._known)).long().numpy()
        """How many units of each layer differ, ``(candidates, layers)``."""

    def __len__(self) -> int:
        """Return the number of candidates."""
        return len(self.counts)

    def pick(self, numbers: Sequence[int]) -> Slab:
        """Return some of the candidates, in that order."""
        some = copy(self)
        some._make = lambda n: self._make(numbers[n])
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
                self._known[number] = torch.searchsorted(found, self._edges).diff().numpy()
                if _INDEX * len(found) > count:
                    found = torch.zeros(count, dtype=torch.bool).index_fill_(0, found, True)
            self._held[number] = found
        return self._held[number]

    def _flips(self, layer: int, number: int) -> Tensor:
        held, start = self._differences(number), self._units.layers[layer].start
        if held.dtype == torch.bool:
            return held[start : self._units.layers[layer].stop].nonzero()[:, 0]
        before = int(self.counts[number, :layer].sum())
        return held[before : before + self.counts[number, layer]] - start

    def flips(self, layer: int, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return whose the flips of a layer are, places in `numbers`, and the flips, both ascending."""
        sizes = torch.from_numpy(self.counts[list(numbers), layer])
        owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        return owner, torch.cat([self._flips(layer, n) for n in numbers])

    def rows(self, layer: int, numbers: Sequence[int], kept: Mask) -> Masks:
        """Return what candidates keep of a layer, ``(candidates, units)``; the student keeps `kept`."""
        rows = kept.repeat(len(numbers), 1)
        where = self._units.layers[layer]
        for row, number in zip(rows, numbers, strict=True):
            held = self._differences(number)
            if held.dtype == torch.bool:
                row ^= held[where.start : where.stop]
            else:
                at = self._flips(layer, number)
                row.scatter_(0, at, ~kept[at])
        return rows


@dataclass(frozen=True)
class Chunk:
    """Candidates that are measured in one pass.

    Attributes:
        numbers: which ones.
        layers: the layers in which at least one of them differs from the student.
    """

    numbers: tuple[int, ...]
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Chunks:
    """Cuts populations into passes, from counted sizes alone.

    Attributes:
        units: what candidates differ in.
        structure: a run of the student on few samples.
        samples: how many those were.
        working_set: bytes of activations of a pass that are worth holding at once.
    """

    units: ParameterUnits
    structure: Record
    samples: int
    working_set: int

    @cached_property
    def _first(self) -> NDArray[np.int64]:
        """The step that uses each layer first, ``(layers,)``; behind the last one where none does."""
        steps = len(self.structure.steps)
        return np.array([self.structure.first.get(n, steps) for n in range(len(self.units.layers))])

    def start(self, layers: Sequence[int], record: Record) -> int:
        """Return the number of the step that uses one of the layers first."""
        return min([record.first[n] for n in layers if n in record.first], default=len(record.steps))

    def starts(self, slab: Slab) -> NDArray[np.int64]:
        """Return the step at which each candidate first differs; behind the last one for nowhere."""
        steps = len(self.structure.steps)
        starts: NDArray[np.int64] = np.where(slab.counts > 0, self._first, steps).min(1, initial=steps)
        return starts

    def alone(self, slab: Slab) -> NDArray[np.int64]:
        """Return the candidates that leave nothing of the student's run: nothing is gained side by side."""
        dense = SCATTERED * slab.counts.sum(1) > self.units.count
        return np.flatnonzero(dense & (self.starts(slab) == self._first.min()))

    def one_pass(self) -> int:
        """Return how many samples of one candidate the working set holds, all activations counted."""
        return max(1, min(_SAMPLES, self.working_set // self._all_bytes))

    def parts(self, index: Tensor, slab: Slab) -> Iterator[Tensor]:
        """Cut samples into passes of equal size, as many as the working set holds for all candidates.

        The student's own run, all activations counted, must find room as well.
        """
        start = int(self.starts(slab).min(initial=len(self.structure.steps)))
        held = max(1, self._bytes(start) * min(_MOST, len(slab)))
        most = min(max(self.working_set // held, _FEWEST), _SAMPLES)
        most = max(1, min(most, _RUNS * self.working_set // self._all_bytes))
        passes = -(-len(index) // most)
        return iter(index.tensor_split(passes))

    def chunks(self, slab: Slab, samples: int) -> Iterator[Chunk]:
        """Put candidates that first differ at the same step together, as many as the working set holds."""
        starts = self.starts(slab)
        differs = (slab.counts > 0) & (self._first < len(self.structure.steps))
        for start in np.unique(starts).tolist():
            if start == len(self.structure.steps):
                continue
            most = max(1, min(_MOST, self.working_set // max(1, self._bytes(start) * samples)))
            members = np.flatnonzero(starts == start)
            most = max(1, min(most, self._room_for_weights // self._largest(slab, members, start)))
            for part in np.array_split(members, -(-len(members) // most)):
                layers = np.flatnonzero(differs[part].any(0))
                yield Chunk(tuple(part.tolist()), tuple(layers.tolist()))

    def weights_of(self, chunks: Sequence[Chunk]) -> int:
        """Return the bytes of the weights of all candidates in all layers in which their chunks differ."""
        layers = self.units.layers
        return sum(len(chunk.numbers) * _bytes_of(layers[n]) for chunk in chunks for n in chunk.layers)

    @cached_property
    def _room_for_weights(self) -> int:
        """Return the bytes that the weights of all candidates of a pass may take in one layer."""
        return max(_LAYERS * self.working_set, sum(map(_bytes_of, self.units.layers)) // 2)

    def _largest(self, slab: Slab, members: NDArray[np.int64], start: int) -> int:
        """Return the bytes of the largest layer of which candidates need weights of their own, at least 1."""
        counts = slab.counts[members].max(0)
        sizes = [
            _bytes_of(layer)
            for n, layer in enumerate(self.units.layers)
            if counts[n] and (self._first[n] != start or SCATTERED * counts[n] >= layer.count)
        ]
        return max(sizes, default=1)

    @cached_property
    def _all_bytes(self) -> int:
        """Bytes of all results for one sample."""
        return max(1, _FLOAT * sum(step.numel for step in self.structure.steps) // self.samples)

    def _bytes(self, start: int) -> int:
        """Return the bytes of the largest result from a step on, for one sample."""
        return -(-_FLOAT * self.structure.largest_from(start) // self.samples)


def _bytes_of(layer: Layer) -> int:
    return layer.parameter.numel() * layer.parameter.element_size()
