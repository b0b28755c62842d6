"""`quantize`: levels for a whole network, from rates that evolve to a file of the size or loss asked for."""

from __future__ import annotations

import copy
import json
import math
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from de_plugin.assess.divergence import Divergence
from de_plugin.assess.guard import untouched_on_error
from de_plugin.assess.problem import Problem
from de_plugin.assess.teacher import Forward
from de_plugin.assess.units import Pattern
from de_plugin.errors import ArgumentError
from de_plugin.prune.checkpoint import Checkpoint, asked, code_text, described
from de_plugin.prune.masks import bake
from de_plugin.prune.target import Budget
from de_plugin.quantize.allocation import Allocation
from de_plugin.quantize.between import level_recoveries
from de_plugin.quantize.codebook import Codebook, codebook
from de_plugin.quantize.evolve import RateSearch
from de_plugin.quantize.goal import Goal, Metric
from de_plugin.quantize.journal import Journal, answered
from de_plugin.quantize.levels import LevelSearch
from de_plugin.quantize.report import LayerBits, Point, QuantizationReport
from de_plugin.quantize.retrain import StraightThrough
from de_plugin.quantize.rounding import Compensated, Rounding, compensation
from de_plugin.quantize.student import Biases, Student
from de_plugin.quantize.trial import Trial
from de_plugin.quantize.weighting import Weighting, check_weighting

_ALL_BITS = (2, 3, 4, 5, 6, 7, 8)


def quantize(
    model: nn.Module | Problem,
    batches: Any = None,
    *,
    bits: int | None = None,
    target_bytes: int | None = None,
    max_divergence: float | None = None,
    max_loss: float | None = None,
    metric: Metric | None = None,
    teacher: nn.Module | None = None,
    codebooks: Sequence[str | Codebook] = ("uniform", "affine", "kmeans"),
    weighting: Weighting = "fisher",
    rounding: Rounding = "nearest",
    biases: Biases = 8,
    recovery: Any = None,
    search: RateSearch | None = None,
    levels: LevelSearch | None = LevelSearch(),  # noqa: B008
    budget: Budget | None = None,
    progress: Callable[[Point], None] | None = None,
    include: Sequence[Pattern] = (),
    exclude: Sequence[Pattern] = (),
    divergence: str | Divergence | Callable[[Any, Any], Any] = "kl",
    forward: Forward | None = None,
    samples: int | None = None,
    batch_size: int = 256,
    holdout: float | Tensor = 0.1,
    memory: int = 4 << 30,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
) -> QuantizationReport:
    """Give the survivors of a network a few levels, as many as a goal allows.

    Zeros stay zero, and some survivors join them. Each layer's step and price of bits evolve at equal
    bytes; networks of uniform bits take part, and data held back from the search decide between them.
    The model gets its levels in place. After any exception, Ctrl-C included, it is bit-exactly what it was.

    Args:
        model: any module, in eval mode, pruned or not; or a `Problem`, whose teacher then counts.
        batches: calibration data as for `de_plugin.prune`; None with a `Problem`.
        bits: the bytes of so many bits for each survivor, 2 to 8, with the least divergence.
        target_bytes: a file of at most so many bytes, all included, with the least divergence.
        max_divergence: the smallest file of at most this divergence on held-back data.
        max_loss: the smallest file whose `metric` is at most so much above the teacher's.
        metric: ``fn(model) -> float``, lower is better, such as the error on validation data.
        teacher: the network before it was pruned, in eval mode; None: the model as it is.
        codebooks: what gives uniform bits to every layer, for comparison: names or objects.
        weighting: of errors: "fisher", "activations" or "none"; the first needs a gradient.
        rounding: "nearest": each weight gets its level alone; "compensated": levels make good each other's
            errors, layer by layer, and survivors that are not worth their bits go: far smaller files, more
            time; or ``Compensated(samples=2000)``.
        biases: bits of bias vectors, 2 to 8, or "exact".
        recovery: after levels are chosen: None, "bias", "batchnorm", "levels", "straight-through",
            "distill", objects such as ``Distillation(steps=2000, labels=0.5)``, or a list of these.
        search: how long rates evolve.
        levels: what is tried for each layer after that at the same bytes, and how long it evolves, where
            rounding is "nearest"; under a bound on divergence or loss, where there is no `recovery`; None
            leaves it out.
        budget: bound on evaluations or seconds of the search.
        progress: called with each alternative that met held-back data, and with the best of each generation.
        include: name patterns and module types to quantize; default all prunable weights.
        exclude: name patterns and module types to leave exact.
        divergence: "kl", "js", "mse", "cosine", or a callable on (student outputs, teacher outputs).
        forward: ``fn(model, inputs) -> outputs`` for models that need more than a call.
        samples: read at most this many samples.
        batch_size: samples in a forward pass.
        holdout: fraction of the samples held back from the search, or which ones, bool ``(samples,)``.
        memory: bytes for the inputs, and again for the teacher's outputs.
        seed: of every draw; the same seed gives the same levels.
        checkpoint: a folder in which all that was measured and counted is kept, and a training now and then;
            the same call is soon where it was, and goes on from there.

    Returns:
        What was done, with all levels.

    Raises:
        TargetError: no levels that were tried keep to the goal.
        DEError: an argument cannot work; the message says what to do.
    """
    started = time.monotonic()
    goal = Goal(bits, target_bytes, max_divergence, max_loss, metric)
    check_weighting(weighting)
    books = _books(codebooks)
    if levels is not None:
        levels.check()
    steps = level_recoveries(recovery)
    how = check_rounding(rounding, recovery)
    limit = Budget() if budget is None else budget
    if isinstance(model, Problem):
        if batches is not None or teacher is not None:
            raise ArgumentError("batches, teacher: a Problem has its own; leave both out")
        network, problem = model.model, model
    else:
        network, problem = model, None
    with untouched_on_error(network):
        if problem is None:
            problem = Problem(
                network,
                batches,
                divergence=divergence,
                forward=forward,
                include=include,
                exclude=exclude,
                samples=samples,
                batch_size=batch_size,
                holdout=holdout,
                memory=memory,
                seed=seed,
                teacher=teacher,
            )
        rule = search or RateSearch()
        told = {
            "goal": str(goal),
            "metric": metric if metric is None else _named(metric),
            "codebooks": books,
            "weighting": weighting,
            "biases": biases,
            "rounding": how,
            "recovery": steps,
            "search": rule,
            "levels": levels,
        }
        with _unchanged_on_error(problem), _remembered(problem, checkpoint, told, started) as journal:
            original = problem.teacher
            whole = (
                None
                if metric is None
                else answered(journal, ["original"], lambda: _checked(metric, original))
            )
            bake(network, problem.units.masks(problem.kept.to(problem.device)))
            student = Student(problem, weighting, biases, journal)
            tell = partial(_tell, progress)
            choice = Allocation(student, goal, books, steps, rule, levels, how, limit, started, whole, tell)
            start = student.divergence({}, problem.held_back)
            found = choice.run()
            student.write(found.quantization, found.rest)
            return _report(choice, found, start)


@contextmanager
def _remembered(
    problem: Problem, folder: str | os.PathLike[str] | None, told: Mapping[str, Any], started: float
) -> Iterator[Journal | None]:
    """Yield the journal of a search in a folder, where each training has a file of its own.

    Args:
        problem: what is asked.
        folder: None: nothing is kept.
        told: what else decides the result.
        started: when, a `time.monotonic` reading.
    """
    if folder is None:
        yield None
        return
    texts = {name: described(value) for name, value in told.items()}
    identity = {
        **asked(problem),
        "kept": described(problem.kept),
        "searches before": f"{problem.evaluations} evaluations {described(problem.state)}",
        **texts,
    }
    problem.ranks.check_equal("arguments", zlib.crc32(json.dumps(identity).encode()))
    store = problem.ranks.all_or_none(lambda: Checkpoint(folder, identity, "levels"))
    before, problem.halfway = problem.halfway, store.part
    try:
        journal = Journal(store.path.with_suffix(".jsonl"), identity, problem.ranks, started)
        yield journal
        journal.close()
    finally:
        problem.halfway = before


@contextmanager
def _unchanged_on_error(problem: Problem) -> Iterator[None]:
    """Put back what searches have learnt and counted so far where the block ends with an exception."""
    state = copy.deepcopy(problem.state)
    counts = problem.evaluations, problem.sample_evaluations, len(problem.events)
    try:
        yield
    except BaseException:
        problem.state.clear()
        problem.state.update(state)
        problem.evaluations, problem.sample_evaluations = counts[:2]
        del problem.events[counts[2] :]
        raise


def _named(metric: Metric) -> str:
    """Return a text that tells a metric's code, not what it holds, which may change whenever it is called."""
    code = getattr(metric, "__code__", None)
    name = getattr(metric, "__qualname__", type(metric).__qualname__)
    return name if code is None else f"{name} {zlib.crc32(code_text(code).encode()):08x}"


def check_rounding(rounding: Rounding, recovery: Any) -> Compensated | None:
    """Return how errors are made good, if they are; see `quantize` for the arguments.

    Raises:
        ArgumentError: an argument is unknown, or the recovery would undo the rounding.
    """
    how = compensation(rounding)
    if how is not None and any(isinstance(x, StraightThrough) for x in level_recoveries(recovery)):
        raise ArgumentError(
            f"rounding={rounding!r}, recovery={recovery!r}: training the weights behind the levels would "
            "undo what compensation has done; use recovery='levels' or rounding='nearest'"
        )
    return how


def _checked(metric: Metric, model: nn.Module) -> float:
    """Return the metric of the original network."""
    value = float(metric(model))
    if not math.isfinite(value):
        raise ArgumentError(f"metric: gives {value} for the original network; return a finite number")
    return value


def _books(spec: Sequence[str | Codebook]) -> list[Codebook]:
    """Return every codebook that takes part, names at all numbers of bits."""
    if isinstance(spec, str):
        raise ArgumentError(f"codebooks={spec!r}: expected a list, as in [{spec!r}]")
    uniform = [codebook("uniform", bits=n) for n in _ALL_BITS]
    named = [codebook(x, bits=n) for x in spec if isinstance(x, str) and x != "uniform" for n in _ALL_BITS]
    return [*uniform, *named, *(codebook(x) for x in spec if not isinstance(x, str))]


def _point(trial: Trial) -> Point:
    return Point(trial.name, trial.bytes, trial.divergence)


def _tell(progress: Callable[[Point], None] | None, trial: Trial) -> None:
    if progress is not None:
        progress(_point(trial))


def _report(bits: Allocation, found: Trial, start: float) -> QuantizationReport:
    student = bits.student
    before = {part.name: int(part.kept.sum()) for part in student.parts}
    tensors = {id(x): x for x in student.tensors().values()}
    layers = tuple(
        LayerBits.of(name, q, before.get(name, int((student.tensor(name) != 0).sum())))
        for name, q in found.quantization.items()
    )
    spent = bits.spent()
    return QuantizationReport(
        quantization=dict(found.quantization),
        state=student.state(found.quantization, found.rest),
        dtypes=student.dtypes(found.quantization),
        layers=layers,
        goal=str(bits.goal),
        winner=found.name,
        bytes=round(found.bytes),
        original_bytes=sum(x.numel() * x.element_size() for x in tensors.values()),
        divergence=found.divergence,
        start=start,
        loss=None if bits.goal.metric is None else bits.loss(found),
        curve=tuple(_point(t) for t in bits.met),
        evaluations=student.problem.evaluations,
        seconds=bits.seconds,
        advice="the budget ended the search early; a larger one would find better levels" if spent else "",
    )
