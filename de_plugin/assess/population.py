"""Measuring a population in one go: prefix from the record, differences at the change, suffix as a batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from de_plugin.assess.attention import plain_attention
from de_plugin.assess.batches import Batch
from de_plugin.assess.candidates import Candidates
from de_plugin.assess.changes import Change, Channels
from de_plugin.assess.chunks import Chunk, Chunks
from de_plugin.assess.detector import Detector
from de_plugin.assess.divergence import JS, KL, MSE, CalibratedKL, Cosine
from de_plugin.assess.fingerprint import fingerprint
from de_plugin.assess.record import Record
from de_plugin.assess.recorder import may_overwrite, record
from de_plugin.assess.repair import Repair, SideBySide, Statistics
from de_plugin.assess.serial import Pieces
from de_plugin.assess.slab import Slab, change, differences, slabs
from de_plugin.assess.substitute import Substitution
from de_plugin.assess.vectorised import BatchingError, RoomError, buffers_stay, failures
from de_plugin.types import Values

if TYPE_CHECKING:
    from de_plugin.assess.problem import Problem

_SMALLEST_BYTES = 64 << 10
"""A working set that is not halved any more."""
_PASS = 5e7
"""What a pass takes besides, in multiplications."""
_KEPT_BYTES = 64 << 20
"""The masked weights of all candidates are held over the passes where they take no more than this."""
_EXPECTED = {
    BatchingError: lambda: BatchingError(RuntimeError("another rank has failed")),
    RoomError: lambda: RoomError("another rank is out of memory"),
}
"""What may go wrong on one rank, the graver first, and what it is on the others."""
_BLOCK_BYTES = (32 << 20) - (8 << 10)
"""The largest block whose release makes glibc keep memory of that order for the next request
(mallopt(3), M_MMAP_THRESHOLD). Otherwise each pass has its memory mapped anew, page by page, which
takes longer than computing what goes there."""

_PLAIN = (KL, JS, CalibratedKL, MSE, Cosine, Detector)
"""Divergences that are measured for many candidates at once."""


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

    def __init__(self, problem: Problem, working_set: int = 32 << 20, prefix_bytes: int = 512 << 20) -> None:
        self.problem = problem
        self.prefix_bytes = prefix_bytes
        torch.empty(_BLOCK_BYTES, dtype=torch.uint8)  # freed at once, see there
        self._runs: dict[bytes, Run] = {}
        self._held = 0
        self._state: tuple[int, Any] = (-1, None)
        self._layers = {id(x.parameter): n for n, x in enumerate(problem.units.layers)}
        self._in_place = False
        self._overwriting: dict[tuple[int, ...], bool] = {}
        [batch] = problem.pool.take(problem.search[:1])
        self._structure = self._record(batch)
        for step in self._structure.steps:
            step.result = None
        self.unseen = [n for n in range(len(self._layers)) if n not in self._structure.first]
        """The layers that the student's run does not show."""
        if problem.pool.stacked is None:  # other batches may take other paths through the model
            self._structure.first.update(dict.fromkeys(self.unseen, 0))
        self._chunks = Chunks(problem.units, self._structure, batch.size, working_set)

    @property
    def samples(self) -> int:
        """Samples of one candidate that the working set holds."""
        return self._chunks.one_pass()

    # -- measuring -------------------------------------------------------------------------------

    def __call__(self, population: Candidates, index: Tensor, repair: Repair | None = None) -> Values:
        """Return one divergence a candidate.

        Candidates are looked at in slabs, so that what they differ in takes a bounded room. Where the
        device has less memory than a pass takes, passes are halved from then on, on all ranks.

        Raises:
            BatchingError: the model cannot be run for many candidates at once, or not with that repair.
        """
        return self._in_slabs(population, index, repair, self._chunks.alone)

    def side_by_side(self, population: Candidates, index: Tensor, repair: Repair | None = None) -> Values:
        """Return one divergence a candidate, all measured side by side, whether that is faster or not.

        Raises:
            BatchingError: as above.
        """
        return self._in_slabs(population, index, repair, lambda _: np.empty(0, dtype=np.int64))

    def _in_slabs(
        self, population: Candidates, index: Tensor, repair: Repair | None, alone: Callable[[Slab], Any]
    ) -> Values:
        self._forget_if_changed()
        self._resize(self.problem.state.get("evaluator", {}).get("working_set", self._chunks.working_set))
        values = [
            self._measured(population.pick(numbers), index, repair, alone) for numbers in slabs(population)
        ]
        return torch.cat(values) if values else torch.empty(0, dtype=torch.float64)

    def _measured(
        self, population: Candidates, index: Tensor, repair: Repair | None, choose: Callable[[Slab], Any]
    ) -> Values:
        """Measure one by one what `choose` names, the rest side by side."""
        problem = self.problem
        slab = Slab(
            problem.units, len(population), partial(differences, population, problem.kept), problem.ranks
        )
        alone = choose(slab)
        rest = np.setdiff1d(np.arange(len(slab)), alone)
        pieces = Pieces(problem, population.pick(alone.tolist()), index, repair)
        values = torch.empty(len(slab), dtype=torch.float64)
        slab = slab.pick(rest.tolist())  # what the others differ in is not held any longer
        values[alone], values[rest] = self._within_memory(pieces, slab, index, repair)
        return values

    def _within_memory(
        self, pieces: Pieces, slab: Slab, index: Tensor, repair: Repair | None
    ) -> tuple[Values, Values]:
        while True:
            try:
                return self._measured_together(pieces, slab, index, repair)
            except RoomError as error:
                if self._chunks.working_set < _SMALLEST_BYTES:
                    raise BatchingError(RuntimeError(str(error))) from None
            self._resize(self._chunks.working_set // 2)  # the error is gone, and what it held of memory
            self.problem.state_of("evaluator")["working_set"] = self._chunks.working_set

    def _resize(self, working_set: int) -> None:
        """Take passes of another size from now on."""
        if working_set == self._chunks.working_set:
            return
        self._chunks = replace(self._chunks, working_set=working_set)
        self._forget()
        if self.problem.device.type == "cuda":
            torch.cuda.empty_cache()

    def _measured_together(
        self, pieces: Pieces, slab: Slab, index: Tensor, repair: Repair | None
    ) -> tuple[Values, Values]:
        """Measure some candidates one by one, others side by side; the ranks share the work out.

        Returns:
            The values of the former and of the latter.
        """
        problem = self.problem
        stacked = problem.pool.stacked is not None
        statistics = None if repair is None or len(slab) == 0 else self._statistics(repair)
        parts = list(self._chunks.parts(index, slab) if stacked else index.split(1))
        if statistics is not None:  # they are those of all samples together
            parts = [index]
        sizes = [max(map(len, parts))] * len(parts) if stacked else [problem.pool.size(int(p)) for p in index]
        weights = torch.tensor([len(p) for p in parts] if stacked else sizes, dtype=torch.float64)[:, None]
        same = (self._chunks.starts(slab) == len(self._structure.steps)).nonzero()[0]
        student = [Chunk(tuple(same.tolist()), ())] if len(same) else []
        chunks = {size: [*student, *self._chunks.chunks(slab, size)] for size in sorted({*sizes})}
        keep = self._chunks.weights_of(chunks[sizes[0]]) <= _KEPT_BYTES
        passes = [(n, chunk) for n, size in enumerate(sizes) for chunk in chunks[size]]
        mine = self._own(pieces, slab, [(n, sizes[n], chunk) for n, chunk in passes])

        def work() -> Tensor:
            own = [passes[n - len(pieces.sizes)] for n in mine if n >= len(pieces.sizes)]
            table = torch.zeros(len(parts), len(slab), dtype=torch.float64)
            changes: dict[Chunk, dict[int, Change]] = {}
            run: tuple[int, Run] | None = None
            with torch.no_grad(), problem.units.zeroed(problem.kept) as dense:
                for number, chunk in own:
                    row = table[number]
                    if run is None or run[0] != number:
                        run = (number, self._run_on(parts[number], statistics))
                    if not chunk.layers:  # what differs in nothing that is used is the student itself
                        row[list(chunk.numbers)] = run[1].divergence
                        continue
                    if chunk not in changes:
                        changes[chunk] = {
                            n: change(problem.units, problem.kept, n, chunk.numbers, slab, dense, keep)
                            for n in chunk.layers
                        }
                    row[list(chunk.numbers)] = self._measure(chunk, changes[chunk], run[1], statistics)
            # These come last: a pass that finds no room is found out before they are measured in vain.
            return torch.cat((pieces.measure([n for n in mine if n < len(pieces.sizes)]), table.flatten()))

        found = problem.ranks.run_shared(len(pieces.sizes) + len(parts) * len(slab), work, _EXPECTED)
        table = found[len(pieces.sizes) :].reshape(len(parts), len(slab))
        return pieces.values(found[: len(pieces.sizes)]), (table * weights).sum(0) / weights.sum()

    def _own(self, pieces: Pieces, slab: Slab, passes: Sequence[tuple[int, int, Chunk]]) -> list[int]:
        """Return what this rank does: numbers of pieces, and behind them of passes.

        A pass is the number of its part of the samples, how many those are, and the chunk.
        """
        starts = self._chunks.starts(slab)
        before = self._chunks.before / self._chunks.samples
        cost = before[-1] - before[starts]
        costs = [_PASS + size * before[-1] for size in pieces.sizes]
        part = -1
        for number, size, chunk in passes:
            run = before[-1] if number != part else 0.0  # the student's own, unless it is remembered
            costs.append(_PASS + size * (run + cost[list(chunk.numbers)].sum()))
            part = number
        ranks = self.problem.ranks
        return [n for n, owner in enumerate(ranks.shares(costs)) if owner == ranks.rank]

    def _statistics(self, repair: Repair) -> Mapping[int, Statistics]:
        found = repair.statistics(self.problem) if isinstance(repair, SideBySide) else None
        if found is None or self.problem.pool.stacked is None:
            raise BatchingError(RuntimeError(f"{repair} works on one candidate at a time"))
        return found

    # -- the student's own runs ------------------------------------------------------------------

    def _forget_if_changed(self) -> None:
        """Drop the runs of a student that is no more, or that another measure was taken of."""
        model = self.problem.model
        state = (
            fingerprint((*model.parameters(), *model.buffers(), self.problem.kept)),
            self.problem.divergence,
        )
        if state[0] != self._state[0] or state[1] is not self._state[1]:
            self._state = state
            self._forget()

    def _forget(self) -> None:
        self._runs.clear()
        self._held = 0

    def _run_on(self, part: Tensor, statistics: Mapping[int, Statistics] | None) -> Run:
        """Return the student's run on some samples, from memory where it has been asked for before."""
        key = part.numpy().tobytes() + (b"" if statistics is None else b"repaired")
        if key not in self._runs:
            [batch] = self.problem.pool.take(part, len(part))
            found = self._record(batch, statistics)
            run = Run(batch, found, self._divergence(found.outputs, batch))
            size = found.bytes
            if self._held + size > self.prefix_bytes:
                return run
            self._runs[key] = run
            self._held += size
        return self._runs[key]

    def _record(self, batch: Batch, statistics: Mapping[int, Statistics] | None = None) -> Record:
        """Run the student once; again with copies where it turns out to work in place."""
        call = partial(self.problem.forward, self.problem.model, batch.inputs)
        with failures():
            run = record(call, self._layers, self._in_place, statistics)
            if not self._in_place and run.in_place:
                self._in_place = True
                run = record(call, self._layers, True, statistics)
            self._check_overwriting(call, run, statistics)
        return run

    def _check_overwriting(
        self, call: Callable[[], Any], run: Record, statistics: Mapping[int, Statistics] | None
    ) -> None:
        """Take back what the record allows to be overwritten where the student then gives something else.

        It is tried once for each way that the student takes; where every sample may take another, nothing
        is overwritten.
        """
        way = tuple(step.spends for step in run.steps)
        if max(way, default=-1) < 0:
            return
        if self.problem.pool.stacked is not None and way not in self._overwriting:
            self._overwriting[way] = may_overwrite(call, self._layers, run, statistics)
        if not self._overwriting.get(way, False):
            for step in run.steps:
                step.spends = -1

    def _divergence(self, outputs: Any, batch: Batch) -> float:
        return float(self.problem.divergence(outputs, batch.teacher, batch.labels))

    # -- one pass --------------------------------------------------------------------------------

    def _measure(
        self,
        chunk: Chunk,
        changes: Mapping[int, Change],
        run: Run,
        statistics: Mapping[int, Statistics] | None,
    ) -> Values:
        problem, batch = self.problem, run.batch
        weights: dict[int, Callable[[], Tensor]] = {}
        for number, differing in changes.items():
            layer = problem.units.layers[number]
            weights[id(layer.parameter)] = differing.weights
            if isinstance(differing, Channels) and differing.bias is not None:
                weights[id(layer.bias)] = partial(differing.biases, differing.bias)
        start = self._chunks.start(chunk.layers, run.record)
        shape: list[Any] = []

        def one(marker: Tensor) -> list[Tensor]:
            mode = Substitution(
                run.record,
                self._layers,
                changes,
                weights,
                start,
                marker,
                self._in_place,
                statistics,
            )
            with plain_attention(), mode:
                flat, spec = tree_flatten(problem.forward(problem.model, batch.inputs))
            shape[:] = [spec, [Tensor if isinstance(x, Tensor) else x for x in flat]]
            return [x for x in flat if isinstance(x, Tensor)]

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            with failures(), buffers_stay(problem.model):
                found = vmap(one)(torch.arange(len(chunk.numbers), device=problem.device))
        spec, rest = shape

        def outputs(tensors: list[Tensor]) -> Any:
            left = iter(tensors)
            return tree_unflatten([next(left) if x is Tensor else x for x in rest], spec)

        if type(problem.divergence) not in _PLAIN:  # a user's may need real numbers
            rows = [
                self._divergence(outputs([x[n] for x in found]), batch) for n in range(len(chunk.numbers))
            ]
            return torch.tensor(rows, dtype=torch.float64)
        values = vmap(lambda x: problem.divergence(outputs(x), batch.teacher, batch.labels))(found)
        return values.double().cpu()
