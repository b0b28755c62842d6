"""Which candidates are measured in one pass, and on how many samples: what the working set holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from de_plugin.assess.changes import SCATTERED, scattered_work
from de_plugin.assess.layers import Layer
from de_plugin.assess.record import Record
from de_plugin.assess.slab import Slab
from de_plugin.assess.units import ParameterUnits

_FLOAT = 4
_MOST = 64
"""Candidates in one pass at most."""
_SAMPLES = 4096
"""Samples in one pass at most."""
_FEWEST = 16
"""Samples in one pass at least, where the student's own run on them finds room."""
_LITTLE = 0.1
"""A share of the student's run that is not worth the detour."""
_LAYERS = 2
"""The working sets that the candidates' weights in one layer may take."""
_RUNS = 8
"""The working sets that one run of the student may take."""


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

    @cached_property
    def before(self) -> NDArray[np.float64]:
        """About how long what comes before each step takes, and all of it, in multiplications."""
        return np.array(self.structure.cost_before)

    def start(self, layers: Sequence[int], record: Record) -> int:
        """Return the number of the step that uses one of the layers first."""
        return min([record.first[n] for n in layers if n in record.first], default=len(record.steps))

    def starts(self, slab: Slab) -> NDArray[np.int64]:
        """Return the step at which each candidate first differs; behind the last one for nowhere."""
        steps = len(self.structure.steps)
        starts: NDArray[np.int64] = np.where(slab.counts > 0, self._first, steps).min(1, initial=steps)
        return starts

    def alone(self, slab: Slab) -> NDArray[np.int64]:
        """Return the candidates with which nothing is gained side by side.

        They differ densely from a layer near the beginning on, or share less with the student, all of
        them together, than its own run takes.
        """
        dense = SCATTERED * slab.counts.sum(1) > self.units.count
        shared = self.before[self.starts(slab)]
        if dense.all() and shared.sum() < self.before[-1]:
            return np.arange(len(slab))
        return np.flatnonzero(dense & (shared <= _LITTLE * self.before[-1]))

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
        counts = slab.counts[members].max(0).tolist()
        sizes = [
            _bytes_of(layer)
            for first, flips, layer in zip(self._first, counts, self.units.layers, strict=True)
            if flips and (first != start or scattered_work(flips, layer.count, layer.shape[0]) >= layer.count)
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
