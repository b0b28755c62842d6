"""Measuring a population in one go: prefix from the record, differences at the change, suffix as a batch."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from de_plugin.assess.batches import Batch
from de_plugin.assess.candidates import Candidates
from de_plugin.assess.changes import SCATTERED, Change, Channels, Weights
from de_plugin.assess.divergence import Custom, Score
from de_plugin.assess.granularity import Channel, Weight
from de_plugin.assess.record import Record, plain_attention, record
from de_plugin.assess.substitute import Substitution
from de_plugin.assess.vectorised import FAILURES, BatchingError
from de_plugin.types import Values

if TYPE_CHECKING:
    from de_plugin.assess.problem import Problem

Flips = dict[int, Tensor]
"""The units of each layer, counted from its first, in which a candidate differs from the student."""
_SLAB_BYTES = 128 << 20
_MOST = 64
"""Candidates in one pass at most."""
_FLOAT = 4
_SAMPLES = 4096
_FEWEST = 16
"""Samples in one pass at least."""


@dataclass(frozen=True)
class Chunk:
    """Candidates that are measured in one pass.

    Attributes:
        numbers: which ones.
        layers: the layers in which at least one of them differs from the student.
        start: how many steps of a run come before the first of these.
    """

    numbers: tuple[int, ...]
    layers: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Run:
    """The student's own run on a batch: where every candidate begins."""

    batch: Batch
    record: Record
    divergence: float


class Population:
    """Candidates measured side by side, in what they differ from the student.

    Args:
        problem: whose student is asked.
        working_set: bytes of activations of a pass that are worth holding at once.
        prefix_bytes: bytes of the student's own activations that are kept from one call to the next.
    """

    def __init__(self, problem: Problem, working_set: int = 8 << 20, prefix_bytes: int = 256 << 20) -> None:
        self.problem = problem
        self.working_set = working_set
        self.prefix_bytes = prefix_bytes
        self._runs: dict[bytes, list[Run]] = {}
        self._held = 0
        self._state: tuple[int, ...] = ()
        self._layers = {id(x.parameter): n for n, x in enumerate(problem.units.layers)}
        self._in_place = False
        starts = [layer.start for layer in problem.units.layers]
        self._edges = torch.tensor([*starts, problem.units.count])
        self._structure = self._record(problem.pool.take(problem.search[:1])[0])
        for step in self._structure.steps:
            step.result = None

    @property
    def samples(self) -> int:
        """Samples of one candidate that the working set holds."""
        held = _FLOAT * sum(step.numel for step in self._structure.steps)
        return max(1, min(_SAMPLES, self.working_set // max(1, held)))

    # -- measuring -------------------------------------------------------------------------------

    def __call__(self, population: Candidates, index: Tensor) -> Values:
        """Return one divergence a candidate.

        Candidates are looked at in slabs, so that what they differ in takes a bounded room.
        """
        self._forget_if_changed()
        values: list[Values] = []
        slab: list[Flips] = []
        held = 0
        for number in range(len(population)):
            slab.append(self._split(population.flips(number, self.problem.kept)))
            held += sum(8 * len(x) for x in slab[-1].values())
            if held > _SLAB_BYTES:
                values.append(self._slab(slab, index))
                slab, held = [], 0
        if slab:
            values.append(self._slab(slab, index))
        return torch.cat(values) if values else torch.empty(0, dtype=torch.float64)

    def _slab(self, flips: list[Flips], index: Tensor) -> Values:
        problem = self.problem
        first = self._structure.first
        starts = [min([first[x] for x in mine if x in first], default=len(first)) for mine in flips]
        whole = self._changes_everything(flips, starts)
        total = torch.zeros(len(flips), dtype=torch.float64)
        samples = 0
        changes: dict[Chunk, dict[int, Change]] = {}
        with torch.no_grad(), problem.units.zeroed(problem.kept) as dense:
            for part in self._parts(index, starts):
                for run in self._runs_on(part, whole):
                    values = torch.full((len(flips),), run.divergence, dtype=torch.float64)
                    for chunk in self._chunks(run.record, flips):
                        if chunk not in changes:
                            changes[chunk] = {n: self._change(n, chunk, flips, dense) for n in chunk.layers}
                        values[list(chunk.numbers)] = self._measure(chunk, changes[chunk], run)
                    total += values * run.batch.size
                    samples += run.batch.size
        return total / samples

    def _changes_everything(self, flips: list[Flips], starts: list[int]) -> bool:
        """Tell whether the student's own run would be of no use: nothing of it is left in any candidate."""
        at = min(self._structure.first.values(), default=0)
        many = all(SCATTERED * sum(map(len, x.values())) > self.problem.units.count for x in flips)
        return many and all(start == at for start in starts)

    # -- the student's own runs ------------------------------------------------------------------

    def _forget_if_changed(self) -> None:
        """Drop the runs of a student that is no more: other units are kept, or weights have changed."""
        state = (*(_fingerprint(x) for x in _values(self.problem.model)), _fingerprint(self.problem.kept))
        if state != self._state:
            self._state = state
            self._runs.clear()
            self._held = 0

    def _parts(self, index: Tensor, starts: list[int]) -> Iterator[Tensor]:
        """Cut samples into passes: as many as the working set holds for all candidates."""
        if self.problem.pool.stacked is None:
            return iter(index.split(1))
        held = _FLOAT * self._structure.largest_from(min(starts, default=0))
        wanted = self.working_set // (held * max(1, min(_MOST, len(starts))))
        return iter(index.split(min(max(wanted, _FEWEST), _SAMPLES)))

    def _runs_on(self, part: Tensor, whole: bool) -> list[Run]:
        """Return the student's runs on some samples, from memory where they have been asked for before."""
        if whole:
            return [Run(b, self._structure, float("nan")) for b in self.problem.pool.take(part, len(part))]
        key = part.numpy().tobytes()
        if key in self._runs:
            return self._runs[key]
        runs = []
        for batch in self.problem.pool.take(part, len(part)):
            found = self._record(batch)
            runs.append(Run(batch, found, self._divergence(found.outputs, batch)))
        size = sum(run.record.bytes for run in runs)
        if self._held + size <= self.prefix_bytes:
            self._runs[key] = runs
            self._held += size
        return runs

    def _record(self, batch: Batch) -> Record:
        """Run the student once; again with copies where it turns out to work in place."""
        call = partial(self.problem.forward, self.problem.model, batch.inputs)
        run = record(call, self._layers, self._in_place)
        if not self._in_place and run.in_place:
            self._in_place = True
            run = record(call, self._layers, True)
        return run

    def _divergence(self, outputs: Any, batch: Batch) -> float:
        return float(self.problem.divergence(outputs, batch.teacher, batch.labels))

    # -- chunks ----------------------------------------------------------------------------------

    def _split(self, flips: Tensor) -> Flips:
        """Return a candidate's flips by layer, counted from the layer's first unit."""
        bounds = torch.searchsorted(flips, self._edges).tolist()
        layers = self.problem.units.layers
        return {n: flips[a:b] - layers[n].start for n, (a, b) in enumerate(pairwise(bounds)) if a < b}

    def _chunks(self, run: Record, flips: list[Flips]) -> Iterator[Chunk]:
        """Put candidates that first differ at the same step together, as many as the working set holds."""
        grouped: dict[int, list[int]] = {}
        for number, mine in enumerate(flips):
            used = [run.first[layer] for layer in mine if layer in run.first]
            if used:
                grouped.setdefault(min(used), []).append(number)
        for start in sorted(grouped):
            most = max(1, min(_MOST, self.working_set // (_FLOAT * run.largest_from(start))))
            members = grouped[start]
            for at in range(0, len(members), most):
                part = members[at : at + most]
                layers = {layer for n in part for layer in flips[n] if layer in run.first}
                yield Chunk(tuple(part), tuple(sorted(layers)), start)

    def _measure(
        self,
        chunk: Chunk,
        changes: Mapping[int, Change],
        run: Run,
    ) -> Values:
        problem, batch = self.problem, run.batch
        weights: dict[int, Callable[[], Tensor]] = {}
        for number, change in changes.items():
            layer = problem.units.layers[number]
            weights[id(layer.parameter)] = change.weights
            if isinstance(change, Channels) and layer.bias is not None:
                weights[id(layer.bias)] = change.biases
        shape: list[Any] = []

        def one(marker: Tensor) -> list[Tensor]:
            mode = Substitution(
                run.record,
                self._layers,
                changes,
                weights,
                chunk.start,
                marker,
                self._in_place,
            )
            with plain_attention(), mode:
                flat, spec = tree_flatten(problem.forward(problem.model, batch.inputs))
            shape[:] = [spec, [None if isinstance(x, Tensor) else x for x in flat]]
            return [x for x in flat if isinstance(x, Tensor)]

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            try:
                found = vmap(one)(torch.arange(len(chunk.numbers), device=problem.device))
            except FAILURES as error:
                raise BatchingError(error) from error
        spec, rest = shape

        def outputs(tensors: list[Tensor]) -> Any:
            left = iter(tensors)
            return tree_unflatten([next(left) if x is None else x for x in rest], spec)

        if isinstance(problem.divergence, Custom | Score):
            rows = [
                self._divergence(outputs([x[n] for x in found]), batch) for n in range(len(chunk.numbers))
            ]
            return torch.tensor(rows, dtype=torch.float64)
        values = vmap(lambda x: problem.divergence(outputs(x), batch.teacher, batch.labels))(found)
        return values.double().cpu()

    def _change(
        self,
        number: int,
        chunk: Chunk,
        flips: list[Flips],
        dense: Mapping[int, Tensor],
    ) -> Change:
        """Return how a layer differs between the candidates of a chunk."""
        units = self.problem.units
        layer = units.layers[number]
        weight = dense.get(id(layer.parameter), layer.parameter.detach())
        kept = self.problem.kept[layer.start : layer.stop]
        nothing = torch.empty(0, dtype=torch.long)
        own = [flips[n].get(number, nothing) for n in chunk.numbers]
        sizes = torch.tensor([len(x) for x in own])
        owner = torch.repeat_interleave(torch.arange(len(own)), sizes)
        flipped = torch.cat(own)

        def rows() -> Tensor:
            result = kept.repeat(len(own), 1)
            result[owner, flipped] ^= True
            return result.to(weight.device)

        if isinstance(units.granularity, Channel) and len(layer.shape) == layer.parameter.dim():
            bias = None if layer.bias is None else dense.get(id(layer.bias), layer.bias.detach())
            return Channels(layer, weight, bias, rows())
        signs = 1 - 2 * kept[flipped].int()
        places: tuple[Tensor, ...] = (owner, flipped)
        if not isinstance(units.granularity, Weight):
            changed = torch.zeros(len(own), layer.count, dtype=torch.int8)
            changed[places] = signs.to(torch.int8)
            spread = units.granularity.expand(changed, layer.shape).flatten(1)
            places = spread.nonzero(as_tuple=True)
            signs = spread[places].int()
        return Weights(
            layer, weight, lambda: units.expand_layer(layer, rows()), len(own), places[0], places[1], signs
        )


def _values(model: nn.Module) -> Iterator[Tensor]:
    yield from (x.detach() for x in model.parameters())
    yield from model.buffers()


def _fingerprint(x: Tensor) -> int:
    """Return a number that changes, but for a small chance, when a value does."""
    raw = x.contiguous().reshape(-1).view(torch.uint8)
    if raw.device.type == "cpu":
        return zlib.crc32(raw.numpy().data)
    weights = torch.arange(1, 1 + len(raw), device=x.device, dtype=torch.int32)
    return int((raw * weights).sum())
