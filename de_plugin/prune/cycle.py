"""`prune`: cycles of ranking, zeroing and recovery, up to a target."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from de_plugin.assess.divergence import Divergence
from de_plugin.assess.granularity import Granularity
from de_plugin.assess.guard import untouched_on_error
from de_plugin.assess.problem import Forward, Problem
from de_plugin.assess.units import Pattern
from de_plugin.criteria import Criterion, criterion
from de_plugin.errors import ArgumentError
from de_plugin.prune.directed_evolution import Evolving
from de_plugin.prune.masks import apply, bake
from de_plugin.prune.recover import Recovery, recovery
from de_plugin.prune.report import CycleReport, LayerReport, Report
from de_plugin.prune.target import Budget, Schedule, Scope, totals

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
    divergence: str | Divergence | Callable[[Any, Any], Any] = "kl",
    forward: Forward | None = None,
    samples: int | None = None,
    batch_size: int = 256,
    holdout: float = 0.1,
    memory: int = 4 << 30,
    seed: int = 0,
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
        recovery: after each cycle: None, "batchnorm", "bias", "leastsquares", "distill", a `Recovery`,
            or a list of these.
        finish: the same, once at the end; default: nothing more.
        budget: bound on evaluations or seconds; the target is reached all the same.
        progress: called after each cycle.
        apply: "bake" zeroes the weights, "buffers" attaches `torch.nn.utils.prune` masks, "none" leaves
            the model as it was and only reports.
        granularity: "weight", "2:4", "4x4", "kernel", "channel", or a `Granularity`.
        include: name patterns and module types to prune; default all prunable weights.
        exclude: name patterns and module types to leave alone.
        divergence: "kl", "js", "mse", "cosine", or a callable on (student outputs, teacher outputs).
        forward: ``fn(model, inputs) -> outputs`` for models that need more than a call.
        samples: read at most this many samples.
        batch_size: samples in a forward pass.
        holdout: fraction of the samples held back from the search.
        memory: bytes for the inputs, and again for the teacher's outputs before they go to a file.
        seed: of every draw; the same seed gives the same masks.

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
        )
        report = _cycles(
            problem,
            sparsity,
            criterion,
            scope,
            schedule,
            recovery,
            finish,
            budget,
            progress,
            started,
        )
        if apply == "none":
            snapshot.restore()
        elif apply == "bake":
            bake(model, report.masks)
        else:
            _attach(model, report)
    return report


def _attach(model: nn.Module, report: Report) -> None:
    apply(model, report.masks)


def _cycles(
    problem: Problem,
    sparsity: float | Mapping[str, float] | None,
    spec: str | Criterion,
    scope: Scope,
    schedule: Schedule | int | None,
    between: Any,
    finish: Any,
    budget: Budget | None,
    progress: Callable[[Progress], None] | None,
    started: float,
) -> Report:
    rank = criterion(spec)
    evolving = isinstance(rank, Evolving)
    if schedule is None:
        schedule = Schedule(10 if evolving else 1)
    elif isinstance(schedule, int) and not isinstance(schedule, bool):
        schedule = Schedule(schedule)
    elif not isinstance(schedule, Schedule):
        raise ArgumentError(f"schedule={schedule!r}: expected a Schedule or a number of cycles")
    total, quota = totals(problem, sparsity, scope)
    repairs, last = recovery(between), recovery(finish)
    _prepare(problem, repairs, last)
    limit = Budget() if budget is None else budget
    if not isinstance(limit, Budget):
        raise ArgumentError(f"budget={budget!r}: expected Budget(evaluations=..., seconds=...) or None")
    history: list[CycleReport] = []
    fractions = schedule.fractions(total / problem.units.count)
    cut_short = False
    for number, fraction in enumerate(fractions, 1):
        share = number / len(fractions)
        problem.out_of_budget = lambda s=share: limit.spent(problem.evaluations, started, s)  # type: ignore[misc]
        if number < len(fractions) and limit.spent(problem.evaluations, started):
            cut_short = True
            continue
        aim = total if number == len(fractions) else round(fraction * problem.units.count)
        count = max(0, aim - int((~problem.kept).sum()))
        if quota is not None:
            part = 1.0 if aim == total else aim / max(1, total)
            problem.quota = torch.round(quota * part).long()
            count = int(problem.quota.sum()) - int((~problem.kept).sum())
        if count > 0:
            problem.kept = _choose(problem, rank, count)
        cut = float(problem.gate(problem.kept[None])[0])
        repairs(problem)
        after = float(problem.gate(problem.kept[None], repair=False)[0])
        history.append(
            CycleReport(
                number,
                1 - int(problem.kept.sum()) / problem.units.count,
                cut,
                after,
                problem.evaluations,
                time.monotonic() - started,
            )
        )
        if progress is not None:
            record = history[-1]
            progress(
                Progress(
                    number,
                    len(fractions),
                    record.sparsity,
                    after,
                    problem.evaluations,
                    record.seconds,
                )
            )
    last(problem)
    spent = cut_short or (budget is not None and limit.spent(problem.evaluations, started))
    return _report(problem, rank.name, total, history, spent, started)


def _prepare(problem: Problem, *stages: Recovery) -> None:
    for stage in stages:
        stage.prepare(problem)
    for stage in stages:
        problem.repair = problem.repair or stage.in_assessment()


def _choose(problem: Problem, rank: Criterion, count: int) -> torch.Tensor:
    if isinstance(rank, Evolving):
        return rank.evolve(problem, problem.eligible, count, ~problem.protected)
    return problem.select(rank(problem, problem.eligible, count), problem.eligible, count)


def _report(
    problem: Problem,
    name: str,
    total: int,
    history: list[CycleReport],
    spent: bool,
    started: float,
) -> Report:
    units, kept = problem.units, problem.kept
    masks = {n: m.clone() for n, m in units.masks(kept.to(units.device)).items()}
    layers = tuple(
        LayerReport(
            x.name,
            x.count,
            int((~kept[x.start : x.stop]).sum()),
            x.parameter.numel(),
            int((~masks[x.name]).sum()),
        )
        for x in units.layers
    )
    divergence = float(problem.gate(kept[None], repair=False)[0])
    return Report(
        masks=masks,
        layers=layers,
        criterion=name,
        target=total / units.count,
        sparsity=1 - int(kept.sum()) / units.count,
        weight_sparsity=units.weight_sparsity(kept),
        divergence=divergence,
        history=tuple(history),
        events=tuple(problem.events),
        evaluations=problem.evaluations,
        sample_evaluations=problem.sample_evaluations,
        seconds=time.monotonic() - started,
        outcome="budget" if spent else "complete",
        advice=_advice(layers, spent, divergence),
    )


def _advice(layers: tuple[LayerReport, ...], spent: bool, divergence: float) -> str:
    empty = [x.name for x in layers if x.zeroed == x.units]
    if empty:
        return (
            f"{', '.join(empty)}: nothing is left in these layers; lower the sparsity, or protect them "
            "with exclude= or a dict of targets"
        )
    if not divergence < torch.finfo(torch.float64).max:
        return "the result's outputs are not finite; lower the sparsity or add a recovery"
    if spent:
        return "the budget ended the search early; a larger one would find a better set"
    return ""
