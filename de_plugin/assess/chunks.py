"""Which candidates are measured in one pass, and on how many samples: what the working set holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from de_plugin.assess.changes import SCATTERED
from de_plugin.assess.record import Record
from de_plugin.assess.units import ParameterUnits

Flips = dict[int, Tensor]
"""The units of each layer, counted from its first, in which a candidate differs from the student."""

_FLOAT = 4
_MOST = 64
"""Candidates in one pass at most."""
_SAMPLES = 4096
"""Samples in one pass at most."""
_FEWEST = 16
"""Samples in one pass at least."""


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
    def _edges(self) -> Tensor:
        return torch.tensor([*(layer.start for layer in self.units.layers), self.units.count])

    def split(self, flips: Tensor) -> Flips:
        """Return a candidate's flips, ascending, by layer."""
        layers = self.units.layers
        bounds = torch.searchsorted(flips, self._edges).tolist()
        return {n: flips[a:b] - layers[n].start for n, (a, b) in enumerate(pairwise(bounds)) if a < b}

    def start(self, layers: Sequence[int], record: Record) -> int:
        """Return the number of the step that uses one of the layers first."""
        return min([record.first[n] for n in layers if n in record.first], default=len(record.steps))

    def used(self, layers: Iterable[int]) -> list[int]:
        """Return those of the layers that a run of the student uses."""
        return [n for n in layers if n in self.structure.first]

    def everything(self, flips: Sequence[Flips]) -> bool:
        """Tell whether the student's own run is of no use: no candidate leaves anything of it."""
        first = min(self.structure.first.values(), default=0)
        return all(
            SCATTERED * sum(map(len, x.values())) > self.units.count
            and self.start([*x], self.structure) == first
            for x in flips
        )

    def one_pass(self) -> int:
        """Return how many samples of one candidate the working set holds, all activations counted."""
        held = _FLOAT * sum(step.numel for step in self.structure.steps) // self.samples
        return max(1, min(_SAMPLES, self.working_set // max(1, held)))

    def parts(self, index: Tensor, flips: Sequence[Flips]) -> Iterator[Tensor]:
        """Cut samples into passes of equal size, as many as the working set holds for all candidates."""
        start = min([self.start([*x], self.structure) for x in flips], default=0)
        held = max(1, self._bytes(start) * min(_MOST, len(flips)))
        most = min(max(self.working_set // held, _FEWEST), _SAMPLES)
        passes = -(-len(index) // most)
        return iter(index.tensor_split(passes))

    def chunks(self, flips: Sequence[Flips], samples: int) -> Iterator[Chunk]:
        """Put candidates that first differ at the same step together, as many as the working set holds."""
        grouped: dict[int, list[int]] = {}
        for number, mine in enumerate(flips):
            if used := self.used(mine):
                grouped.setdefault(self.start(used, self.structure), []).append(number)
        for start in sorted(grouped):
            most = max(1, min(_MOST, self.working_set // max(1, self._bytes(start) * samples)))
            members = grouped[start]
            for at in range(0, len(members), most):
                part = members[at : at + most]
                layers = {n for number in part for n in self.used(flips[number])}
                yield Chunk(tuple(part), tuple(sorted(layers)))

    def _bytes(self, start: int) -> int:
        """Return the bytes of the largest result from a step on, for one sample."""
        return -(-_FLOAT * self.structure.largest_from(start) // self.samples)
