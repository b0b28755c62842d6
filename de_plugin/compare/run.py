"""`compare`: every method on a copy of the same model, with the same data, budget and seeds."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from de_plugin.assess.divergence import Divergence
from de_plugin.assess.divergence import divergence as resolved
from de_plugin.assess.guard import check_counts, require_eval
from de_plugin.assess.teacher import Forward, plain_forward
from de_plugin.assess.units import Pattern
from de_plugin.compare.case import Case, Loss, Method, cross_entropies
from de_plugin.compare.comparison import Comparison
from de_plugin.compare.hosts import chosen, found
from de_plugin.compare.measure import Metric, Ruler
from de_plugin.compare.runner import Job, Runner, Step
from de_plugin.compare.settings import Settings
from de_plugin.compare.subject import Subject
from de_plugin.errors import ArgumentError
from de_plugin.prune import Budget
from de_plugin.prune.checkpoint import described


def compare(
    model: nn.Module,
    data: Any,
    *,
    task: str | Sequence[str] = "weights",
    hosts: Sequence[str] | None = None,
    methods: Sequence[str | Method] | None = None,
    sparsities: Sequence[float] = (0.5, 0.7, 0.9),
    ratios: Sequence[float] = (0.25, 0.5, 0.75),
    bits: Sequence[float] = (4, 3, 2),
    budget: Budget | int | None = None,
    seeds: Sequence[int] = (0,),
    test: Any = None,
    metric: Metric | None = None,
    loss: Loss | None = None,
    granularity: str = "weight",
    include: Sequence[Pattern] = (),
    exclude: Sequence[Pattern] = (),
    keep: Sequence[str] | None = None,
    divergence: str | Divergence | Callable[[Any, Any], Any] = "kl",
    forward: Forward | None = None,
    samples: int | None = 2000,
    batch_size: int = 256,
    path: str | os.PathLike[str] | None = None,
    progress: Callable[[Step], None] | None = None,
) -> Comparison:
    """Compare Directed Evolution, its hybrids and other criteria with all that torch and hosts have built in.

    Every method prunes a copy of `model`. What it raises becomes the reason in its row, and the others go on.
    The model is not changed. Where `torch.distributed` is initialised the rows are shared out over the
    processes, and each returns all of them.

    Args:
        model: any module, in eval mode.
        data: calibration data as for `de_plugin.prune`; read once.
        task: "weights" (equal sparsity over the model), "channels" (each layer loses the same share, so
            that multiplications are equal), "bits"; one or several.
        hosts: installed frameworks such as "torch-pruning" and "nni"; None means all that are installed.
        methods: names or globs such as "de", "nest(*", "nni:*", or a `Method` of your own; None means all.
        sparsities: fractions of the weights that go, in [0, 1).
        ratios: fractions of each layer's channels that go, in [0, 1).
        bits: bits a weight.
        budget: of each search; a number stands for evaluations. None lets every search come to its end.
        seeds: of every draw; a row a seed.
        test: held-out data of the same form; divergence and accuracy are measured on it. None: the
            divergence is measured on the calibration data.
        metric: ``fn(model) -> float``, higher is better, instead of the accuracy.
        loss: ``fn(outputs, labels) -> (samples,)`` for methods that read labels; default: cross-entropy.
        granularity: of the engine's methods in the task "weights"; others than "weight" leave hosts out.
        include: name patterns and module types to prune; default all prunable weights.
        exclude: name patterns and module types to leave alone.
        keep: name patterns of layers that keep all their channels; None: the layer that is called last.
        divergence: "kl", "js", "mse", "cosine", or a callable on (student outputs, teacher outputs).
        forward: ``fn(model, inputs) -> outputs`` for models that need more than a call.
        samples: read at most this many calibration samples; None reads all.
        batch_size: samples in a forward pass.
        path: a JSON file, written after each row; rows that it has are not measured again.
        progress: called when a row begins and when it is there.

    Returns:
        The rows, those that the file had among them.

    Raises:
        FileError: the file cannot be written, is damaged, or belongs to another comparison.
        MissingDependencyError: a host that was named is not installed.
        DEError: another argument cannot work; the message says what to do.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4)).eval()
    >>> found = compare(model, torch.randn(64, 8), hosts=(), methods=["magnitude"], sparsities=[0.5])
    >>> found.rows[0].density
    0.5
    """
    require_eval(model)
    check_counts("compare", batch_size=batch_size, **({} if samples is None else {"samples": samples}))
    limit = Budget(budget) if isinstance(budget, int) and not isinstance(budget, bool) else budget
    limit = Budget() if limit is None else limit
    if not isinstance(limit, Budget):
        raise ArgumentError(f"budget={budget!r}: expected a number of evaluations, a Budget, or None")
    tasks = (task,) if isinstance(task, str) else tuple(task)
    measure, call = resolved(divergence), forward or plain_forward
    offered, missing = found(hosts)
    subject = Subject.of(
        model, data, test, samples, batch_size, forward=call, include=include, exclude=exclude, keep=keep
    )
    settings = Settings(
        task=tasks,
        hosts=tuple(host.name for host in offered),
        methods=tuple(m.name if isinstance(m, Method) else m for m in methods or ()),
        sparsities=tuple(sparsities),
        ratios=tuple(ratios),
        bits=tuple(bits),
        seeds=tuple(seeds),
        evaluations=limit.evaluations,
        seconds=limit.seconds,
        granularity=str(granularity),
        include=tuple(map(_pattern, include)),
        exclude=tuple(map(_pattern, exclude)),
        divergence=described(measure),
        score="",
        threads=torch.get_num_threads(),
        batch_size=batch_size,
        **subject.told(),
    )
    jobs = [
        Job(method, float(amount), seed)
        for method in chosen(offered, tasks, methods)
        for amount in settings.amounts(method.task)
        for seed in settings.seeds
    ]
    whole = Case(
        task=tasks[0],
        model=subject.model,
        batches=subject.batches,
        sparsity=0.0,
        seed=0,
        budget=limit,
        divergence=measure,
        forward=call,
        loss=loss or cross_entropies,
        granularity=granularity,
        include=tuple(include),
        exclude=tuple(exclude),
        weights=subject.weights,
        modules=subject.modules,
        keep=subject.keep,
        samples=subject.samples,
        batch_size=batch_size,
    )
    cases = {name: replace(whole, task=name, weights=subject.weights_of(name)) for name in tasks}
    rulers = {name: Ruler(case, subject.test, metric) for name, case in cases.items()}
    ruler = rulers[tasks[0]]
    size, (_, score) = ruler.size(subject.model), ruler.compared(subject.model)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for host in offered:
        versions |= host.versions
    empty = Comparison(
        rows=(),
        settings=replace(settings, score=ruler.scores),
        versions=versions,
        intact={"macs": size.macs, "params": size.params, "score": score},
        notes=(*(note for host in offered for note in host.notes), *missing),
    )
    return Runner(empty, jobs, cases, rulers, None if path is None else Path(path), progress).run()


def _pattern(pattern: Pattern) -> str:
    return pattern.__name__ if isinstance(pattern, type) else str(pattern)
