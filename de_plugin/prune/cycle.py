"""`prune`: cycles of ranking, zeroing and recovery, up to a target."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from de_plugin.assess.divergence import Divergence
from de_plugin.assess.granularity import Granularity
from de_plugin.assess.guard import untouched_on_error
from de_plugin.assess.problem import Problem
from de_plugin.assess.teacher import Forward
from de_plugin.assess.units import Pattern
from de_plugin.criteria import Criterion
from de_plugin.errors import ArgumentError
from de_plugin.prune.checkpoint import Checkpoint, identity, restore, saved
from de_plugin.prune.directed_evolution import Evolving
from de_plugin.prune.masks import apply as attach
from de_plugin.prune.masks import bake
from de_plugin.prune.plan import Plan
from de_plugin.prune.report import CycleReport, Report, report
from de_plugin.prune.target import Budget, Schedule, Scope
from de_plugin.types import Mask

Apply = Literal["bake", "buffers", "none"]


@dataclass(frozen=True)
class Progress:
    """What a progress callback is told after each cycle."""

    cycle: int
    cycles: int
    sparsity: float
    divergence: float
    evaluations: int
    seconds: float


def prune(
    model: nn.Module,
    batches: Any,
    sparsity: float | Mapping[str, float] | None = None,
    criterion: str | Criterion = "de",
    *,
    scope: Scope = "global",
    schedule: Schedule | int | None = None,
    recovery: Any = None,
    finish: Any = None,
    budget: Budget | None = None,
    progress: Callable[[Progress], None] | None = None,
    apply: Apply = "bake",
    granularity: str | Granularity = "weight",
    include: Sequence[Pattern] = (),
    exclude: Sequence[Pattern] = (),
    teacher: nn.Module | None = None,
    divergence: str | Divergence | Callable[[Any, Any], Any] = "kl",
    forward: Forward | None = None,
    samples: int | None = None,
    batch_size: int = 256,
    holdout: float | Tensor = 0.1,
    memory: int = 4 << 30,
    seed: int = 0,
    checkpoint: str | Path | None = None,
) -> Report:
    """Zero the units whose loss changes the model's outputs least.

    The model is changed in place. After any exception, Ctrl-C included, it is bit-exactly what it was.

    Args:
        model: any module, in eval mode.
        batches: calibration data: tensor, dict, ``(inputs, labels)``, or an iterable of these.
        sparsity: fraction of the units to zero, in [0, 1); a dict of layer name patterns to fractions;
            None for the pattern's own with an N:M granularity.
        criterion: a name (see `de_plugin.names`) or a `Criterion`; "de" is Directed Evolution.
        scope: "global" lets the search find each layer's share, "layer" gives all the same.
        schedule: a `Schedule`, or a number of cycles. Default: 10 cycles for Directed Evolution, else 1.
        recovery: after each cycle: None, "obs", "batchnorm", "bias", "leastsquares", "reconstruct",
            "distill", a `Recovery`, or a list of these.
        finish: the same, once at the end; default: nothing more.
        budget: bound on evaluations or seconds; the target is reached all the same.
        progress: called after each cycle.
        apply: "bake" zeroes the weights, "buffers" attaches `torch.nn.utils.prune` masks (undone by
            `remove`; torch can't deep-copy a model until then), "none" leaves the model as it was.
        granularity: "weight", "2:4", "4x4", "kernel", "channel", or a `Granularity`.
        include: name patterns and module types to prune; default all prunable weights.
        exclude: name patterns and module types to leave alone.
        teacher: what the divergence is measured from and distillation learns from, in eval mode, such as the
            original of a network that was pruned before, whose zeros the cycles then begin at; None: the
            model as it is. What recoveries match layer by layer is what the model's own layers gave.
        divergence: "kl", "js", "mse", "cosine", or a callable on (student outputs, teacher outputs) that
            is 0 for equals. A score for which more is better, such as accuracy, goes in as ``Score(fn)``.
        forward: ``fn(model, inputs) -> outputs`` for models that need more than a call.
        samples: read at most this many samples.
        batch_size: samples in a forward pass.
        holdout: fraction of the samples held back from the search, or which ones, bool ``(samples,)``.
        memory: bytes for the inputs, and again for the teacher's outputs before they go to a file.
        seed: of every draw; the same seed gives the same masks, on any number of ranks.
        checkpoint: a folder in which the search is kept after each cycle, and a distillation now and then;
            the same call goes on from there.

    Returns:
        What was done, with the masks.

    Raises:
        DEError: an argument cannot work; the message says what to do.
    """
    if apply not in ("bake", "buffers", "none"):
        raise ArgumentError(f"apply={apply!r}: expected 'bake', 'buffers' or 'none'")
    started = time.monotonic()
    with untouched_on_error(model) as snapshot:
        problem = Problem(
            model,
            batches,
            divergence=divergence,
            forward=forward,
            granularity=granularity,
            include=include,
            exclude=exclude,
            samples=samples,
            batch_size=batch_size,
            holdout=holdout,
            memory=memory,
            seed=seed,
            teacher=teacher,
        )
        plan = Plan.of(
            problem,
            sparsity,
            criterion,
            scope=scope,
            schedule=schedule,
            recovery_=recovery,
            finish=finish,
            budget=budget,
        )
        plan.prepare(problem)
        store = None
        if checkpoint is not None or problem.ranks.world > 1:
            mine = identity(problem, plan)
            problem.ranks.check_equal("arguments", zlib.crc32(json.dumps(mine).encode()))
            store = None if checkpoint is None else Checkpoint(checkpoint, mine)
        result = Cycles(problem, plan, started, store).run(progress)
        if apply == "none":
            snapshot.restore()
        elif apply == "bake":
            bake(model, result.masks)
        else:
            attach(model, result.masks)
    return result


@dataclass
class Cycles:
    """The loop over a plan's cycles, and what it has to tell so far.

    Args:
        problem: what is asked.
        plan: what is done.
        started: when, a `time.monotonic` reading.
        store: where it is kept after each cycle.
    """

    problem: Problem
    plan: Plan
    started: float
    store: Checkpoint | None = None
    done: int = 0
    history: list[CycleReport] = field(default_factory=list)
    cut_short: bool = False

    def run(self, progress: Callable[[Progress], None] | None = None) -> Report:
        """Go through all cycles that are left and finish."""
        problem, plan = self.problem, self.plan
        count = problem.units.count
        fractions = plan.schedule.fractions(plan.total / count, self._gone() / count)
        last = len(fractions)
        problem.halfway = None if self.store is None else self.store.part
        self._resume()
        for number, fraction in enumerate(fractions[self.done :], self.done + 1):
            problem.out_of_budget = partial(self._spent, number / last)
            if number < last and self._spent():
                self.cut_short = True
                continue
            aim = plan.total if number == last else round(fraction * count)
            self._cycle(number, aim)
            self._keep(number)
            if progress is not None:
                progress(self._progress(last))
        problem.out_of_budget = self._spent
        plan.finish(problem)
        return report(problem, plan, self.history, self.cut_short or self._spent(), self._seconds())

    def _gone(self) -> int:
        """Return how many units are zeroed already; with a teacher of its own the model may bring some."""
        problem = self.problem
        found = int((~problem.kept).sum())
        if problem.teacher is problem.model:
            return found
        if problem.units.granularity.name != "weight":  # patterns say themselves how many may go
            return found
        zeros = problem.units.reduce([(x == 0).float() for x in problem.units.values()]).bool()
        counts = torch.stack([x.sum() for x in zeros.split([layer.count for layer in problem.units.layers])])
        if self.plan.quota is not None:
            counts = torch.minimum(counts, self.plan.quota.to(counts))
        return max(found, min(int(counts.sum()), self.plan.total))

    def _spent(self, share: float = 1.0) -> bool:
        spent = self.plan.budget.spent(self.problem.evaluations, self.started, share)
        return spent if self.plan.budget.seconds is None else self.problem.ranks.agreed(spent)

    def _seconds(self) -> float:
        return time.monotonic() - self.started

    def _cycle(self, number: int, aim: int) -> None:
        """Bring the number of zeroed units to `aim`, and recover."""
        problem, plan = self.problem, self.plan
        gone = int((~problem.kept).sum())
        count = max(0, aim - gone)
        if plan.quota is not None:
            part = 1.0 if aim == plan.total else aim / max(1, plan.total)
            problem.quota = torch.round(plan.quota * part).long()
            count = int(problem.quota.sum()) - gone
        if count > 0:
            problem.kept = self._choose(count)
        cut = float(problem.gate(problem.kept[None])[0])
        plan.recovery(problem)
        after = float(problem.gate(problem.kept[None], repair=False)[0])
        sparsity = 1 - int(problem.kept.sum()) / problem.units.count
        self.history.append(CycleReport(number, sparsity, cut, after, problem.evaluations, self._seconds()))

    def _keep(self, number: int) -> None:
        """Write the search as it stands to its checkpoint."""
        self.done = number
        if self.store is None:
            return
        self.problem.ranks.on_first(partial(self._write, self.store))

    def _write(self, store: Checkpoint) -> None:
        tensors, state = saved(self.problem)
        own = {
            "done": self.done,
            "cut_short": self.cut_short,
            "seconds": self._seconds(),
            "history": [asdict(x) for x in self.history],
        }
        store.save(tensors, {**state, "cycles": own})
        store.forget_parts()

    def _resume(self) -> None:
        """Go back to where the checkpoint is, if there is one."""
        found = None if self.store is None else self.store.load()
        self.problem.ranks.check_equal("checkpoint", -1 if found is None else found[1]["cycles"]["done"])
        if found is None:
            return
        tensors, state = found
        restore(self.problem, tensors, state)
        own = state["cycles"]
        self.done, self.cut_short = own["done"], own["cut_short"]
        self.started -= own["seconds"]
        self.history = [CycleReport(**x) for x in own["history"]]

    def _choose(self, count: int) -> Mask:
        problem, rank = self.problem, self.plan.criterion
        if isinstance(rank, Evolving):
            return rank.evolve(problem, problem.eligible, count, ~problem.protected)
        return problem.select(rank(problem, problem.eligible, count), problem.eligible, count)

    def _progress(self, cycles: int) -> Progress:
        record = self.history[-1]
        return Progress(
            record.cycle, cycles, record.sparsity, record.divergence, record.evaluations, record.seconds
        )
