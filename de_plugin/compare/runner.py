"""The rows one after the other: each in isolation, kept as soon as it is there, shared out over processes."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from de_plugin.assess.ranks import Ranks, alone
from de_plugin.compare.case import Case, Method
from de_plugin.compare.comparison import Comparison
from de_plugin.compare.measure import Ruler
from de_plugin.compare.ranks import gathered
from de_plugin.compare.row import Key, Row
from de_plugin.errors import ArgumentError, DEError, FileError


@dataclass(frozen=True)
class Step:
    """What a progress callback is told: when a row begins, and when it is there.

    Attributes:
        done: rows that are there.
        total: rows that were asked for.
        method: whose turn it is.
        sparsity: what it is asked for.
        seed: of its draws.
        row: what came of it; None at its beginning.
    """

    done: int
    total: int
    method: Method
    sparsity: float
    seed: int
    row: Row | None


@dataclass(frozen=True)
class Job:
    """A row to come."""

    method: Method
    sparsity: float
    seed: int

    @property
    def key(self) -> Key:
        """Return the row's key."""
        return self.method.task, self.method.host, self.method.name, self.sparsity, self.seed


class Runner:
    """Measures the rows that are missing.

    Args:
        empty: the comparison without its rows.
        jobs: the rows that were asked for, in order.
        cases: what methods get, by task.
        rulers: what measures, by task.
        path: where the rows are kept; None keeps them nowhere.
        progress: is told.
    """

    def __init__(
        self,
        empty: Comparison,
        jobs: Sequence[Job],
        cases: Mapping[str, Case],
        rulers: Mapping[str, Ruler],
        path: Path | None,
        progress: Callable[[Step], None] | None,
    ) -> None:
        self.empty, self.jobs, self.cases, self.rulers = empty, jobs, cases, rulers
        self.path, self.progress = path, progress
        ranks = Ranks(torch.device("cpu"))
        self.rank, self.world = ranks.rank, ranks.world
        self.rows: dict[Key, Row] = {}

    def run(self) -> Comparison:
        """Return all rows: those of the file, and the others, a round of one row a process at a time.

        Raises:
            FileError: the file is another comparison's, or cannot be read or written.
            ArgumentError: the processes were asked different things.
            RankError: a process has died.
        """
        self._open()
        missing = [job for job in self.jobs if job.key not in self.rows]
        self._keep()
        for start in range(0, len(missing), self.world):
            turn = missing[start : start + self.world]
            row = None
            if self.rank < len(turn):
                job = turn[self.rank]
                self._tell(job, None)
                row = measured(job, self.cases[job.method.task], self.rulers[job.method.task])
            for job, found in zip(turn, gathered(row), strict=False):
                self.rows[job.key] = found
                self._tell(job, found)
            self._keep()
        return self._comparison()

    def _open(self) -> None:
        """Take over the rows of the file, where there is one; all processes or none go on."""
        found: dict[Key, Row] | DEError = {}
        if self.rank == 0:
            try:
                found = self._known()
            except DEError as error:
                found = error
        every = gathered((found, self.empty.settings, [job.key for job in self.jobs]))
        first = every[0]
        if isinstance(first[0], DEError):
            raise first[0]
        if other := [rank for rank, (_, *asked) in enumerate(every) if asked != list(first[1:])]:
            raise ArgumentError(f"arguments: rank(s) {other} were asked something else than rank 0")
        self.rows = dict(first[0])

    def _known(self) -> dict[Key, Row]:
        if self.path is None or not self.path.exists():
            return {}
        old, fresh = Comparison.from_json(self.path), self.empty
        wrong = fresh.settings.differences(old.settings)
        both = sorted(set(old.versions) & set(fresh.versions))
        wrong += [
            f"{n} was {old.versions[n]}, is {fresh.versions[n]}"
            for n in both
            if old.versions[n] != fresh.versions[n]
        ]
        if wrong:
            raise FileError(
                f"path={self.path}: its rows cannot stand beside these: {'; '.join(wrong)}. Repeat that "
                "comparison with the same arguments, or give another file"
            )
        self.empty = replace(
            fresh,
            versions={**old.versions, **fresh.versions},
            notes=tuple(dict.fromkeys((*old.notes, *fresh.notes))),
        )
        return {row.key: row for row in old.rows}

    def _tell(self, job: Job, row: Row | None) -> None:
        if self.progress is None or self.rank > 0:
            return
        keys = [x.key for x in self.jobs]
        done = sum(key in self.rows for key in keys)
        self.progress(Step(done, len(keys), job.method, job.sparsity, job.seed, row))

    def _keep(self) -> None:
        """Write all rows, whole or not at all."""
        if self.path is not None and self.rank == 0:
            self._comparison().save(self.path)

    def _comparison(self) -> Comparison:
        """Return the rows in the order in which they were asked for, and after them others of the file."""
        asked = [job.key for job in self.jobs if job.key in self.rows]
        others = sorted(set(self.rows) - set(asked))
        return replace(self.empty, rows=tuple(self.rows[key] for key in (*asked, *others)))


def measured(job: Job, case: Case, ruler: Ruler) -> Row:
    """Let a method prune a copy, and measure it; what goes wrong becomes the reason in the row."""
    began = replace(case, model=case.copy(), sparsity=job.sparsity, seed=job.seed)
    row = Row(*job.key)
    started = time.monotonic()
    devices = sorted({p.device.index or 0 for p in case.model.parameters() if p.device.type == "cuda"})
    grad = torch.is_grad_enabled()
    try:
        with alone(), torch.random.fork_rng(devices), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # hosts are older than the torch they run on
            torch.manual_seed(job.seed)
            pruned = job.method.run(began)
            row = replace(row, seconds=time.monotonic() - started)
            model, small = pruned.model.eval(), (pruned.small or pruned.model).eval()
            size = ruler.size(small)
            divergence, score = ruler.compared(model)
            return replace(
                row,
                density=ruler.density(model),
                macs=size.macs,
                params=size.params,
                bits=pruned.bits,
                bytes=None if pruned.bits is None else pruned.bits * began.weight_count / 8,
                divergence=divergence,
                score=score,
                evaluations=pruned.evaluations,
                layers=pruned.layers or ruler.layers(model),
                curve=pruned.curve,
            )
    except (Exception, SystemExit) as error:  # a method may raise anything, and the others shall still run
        reason = f"{type(error).__name__}: {error}".strip()
        return replace(row, seconds=time.monotonic() - started, error=reason)
    finally:
        torch.set_grad_enabled(grad)
