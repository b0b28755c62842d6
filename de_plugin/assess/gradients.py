"""First and second order at the student: gradients of the divergence and samples of its Fisher."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_map

from de_plugin.assess.batches import Batch
from de_plugin.assess.divergence import MSE, Curved, leaves
from de_plugin.assess.functional import Call, places
from de_plugin.assess.labels import check_labels, cross_entropy
from de_plugin.errors import DEError, DEWarning, GradientError

if TYPE_CHECKING:
    from de_plugin.assess.problem import Problem

_CHUNK_BYTES = 32 << 20


def mean_gradient(problem: Problem, index: Tensor) -> list[Tensor]:
    """Return the divergence's gradient at the student, for zeroed weights too; one tensor a layer.

    Args:
        problem: whose student is asked, with `problem.kept` in force.
        index: the samples.

    Raises:
        GradientError: the divergence or the model has no gradient.
    """
    parameters = [layer.parameter for layer in problem.units.layers]
    flags = [p.requires_grad for p in parameters]
    batches = problem.batches(index)
    samples = sum(b.size for b in batches)

    def part(numbers: Sequence[int]) -> list[Tensor]:
        total = [torch.zeros_like(p) for p in parameters]
        for batch in (batches[n] for n in numbers):
            value = problem.measure([batch])
            if not value.requires_grad:
                raise GradientError(
                    f"divergence={problem.divergence.name!r}: no gradient reaches the weights; use "
                    "criteria without gradients (magnitude, activation, random)"
                )
            found = torch.autograd.grad(value, parameters, allow_unused=True)
            for into, g in zip(total, found, strict=True):
                if g is not None:
                    into += g * (batch.size / samples)
        return total

    try:
        for p in parameters:
            p.requires_grad_(True)
        with torch.enable_grad(), problem.units.zeroed(problem.kept), problem.repaired(batches):
            return [x.detach() for x in problem.ranks.sum_in_order(len(batches), part)]
    finally:
        for p, flag in zip(parameters, flags, strict=True):
            p.requires_grad_(flag)


def mean_over_samples(
    problem: Problem,
    index: Tensor,
    generator: torch.Generator,
    reduce: Callable[[list[Tensor]], list[Tensor]],
    *,
    labels: bool = False,
) -> list[Tensor]:
    """Return the mean over samples of what `reduce` sums up of their gradients; ranks share the samples.

    Args:
        problem: whose student is asked.
        index: the samples.
        generator: draws the targets.
        reduce: returns sums over the samples of gradients ``(samples, *parameter.shape)`` a layer.
        labels: use the batches' labels.

    Raises:
        GradientError: the model or the divergence has no usable gradient.
        DataError: labels are asked for and there are none.
    """
    seed = int(torch.randint(1 << 62, (), generator=generator))
    chunks = index.split(_chunk(problem)) if problem.pool.stacked is not None else index.split(1)
    nothing = reduce([torch.zeros_like(layer.parameter)[None] for layer in problem.units.layers])

    def part(numbers: Sequence[int]) -> list[Tensor]:
        total = [torch.zeros_like(x) for x in nothing]
        for n in numbers:
            targets = torch.Generator().manual_seed(seed + n)
            for found in sample_gradients(problem, chunks[n], targets, labels=labels):
                total = [a.add_(b) for a, b in zip(total, reduce(found), strict=True)]
        return total

    return [x.div_(len(index)) for x in problem.ranks.sum_in_order(len(chunks), part)]


def _chunk(problem: Problem) -> int:
    """Return how many samples' gradients fit in memory."""
    weights = sum(layer.parameter.numel() for layer in problem.units.layers)
    return max(1, min(problem.pool.batch_size, _CHUNK_BYTES // (4 * weights)))


def sample_gradients(
    problem: Problem, index: Tensor, generator: torch.Generator, *, labels: bool = False
) -> Iterator[list[Tensor]]:
    """Yield per-sample gradients ``(samples, *parameter.shape)`` a layer, in chunks that fit in memory.

    Without labels the targets are drawn from the student's own outputs, so that the mean of the
    squares is the divergence's Fisher information; with labels it is the cross-entropy's.

    Raises:
        GradientError: the model or the divergence has no usable gradient.
        DataError: labels are asked for and there are none.
    """
    if labels:
        problem.require_labels("labels=True")
    curved = problem.divergence if isinstance(problem.divergence, Curved) else MSE()
    call = Call(problem).eval()
    with problem.units.zeroed(problem.kept):
        for batch in problem.pool.take(index, _chunk(problem)):
            with torch.no_grad():
                outputs = problem.forward(problem.model, batch.inputs)
            if not leaves(outputs):
                raise GradientError("model: no floating-point output to differentiate")
            if labels:
                check_labels(outputs, batch.labels)
            targets = [batch.labels] if labels else curved.draw(outputs, generator)
            yield _gradients(problem, call, curved, batch, targets, labels)


def _gradients(
    problem: Problem, call: Call, curved: Curved, batch: Batch, targets: list[Tensor], labels: bool
) -> list[Tensor]:
    names = [f"model.{layer.name}" for layer in problem.units.layers]
    live = {name: layer.parameter.detach() for name, layer in zip(names, problem.units.layers, strict=True)}

    held = {
        name: [f"model.{p}" for p in places(problem.model, layer.parameter)]
        for name, layer in zip(names, problem.units.layers, strict=True)
    }

    def loss(weights: dict[str, Tensor], inputs: object, target: list[Tensor]) -> Tensor:
        one = tree_map(lambda x: x[None] if isinstance(x, Tensor) else x, inputs)
        spread = {place: weights[name] for name, at in held.items() for place in at}
        outputs = functional_call(call, spread, (one,), tie_weights=False)
        aim = [t[None] for t in target]
        if labels:
            return cross_entropy(outputs, aim[0])
        return curved.sampled_loss(outputs, aim)

    if problem.pool.stacked is not None and problem.remember("vmap_gradients", lambda: True):
        try:
            with warnings.catch_warnings():  # the user can do nothing about it
                warnings.filterwarnings("ignore", message="There is a performance drop")
                found = vmap(grad(loss), in_dims=(None, 0, 0))(live, batch.inputs, targets)
            return [found[name].detach() for name in names]
        except DEError:
            raise
        except (RuntimeError, ValueError) as error:
            problem.store("vmap_gradients", False)
            warnings.warn(
                f"model: {type(problem.model).__name__} cannot be differentiated sample by sample at once "
                f"({str(error).splitlines()[0]}); one sample after the other is slower",
                DEWarning,
                stacklevel=2,
            )
    return _one_by_one(problem, curved, batch, targets, labels)


def _one_by_one(
    problem: Problem, curved: Curved, batch: Batch, targets: list[Tensor], labels: bool
) -> list[Tensor]:
    """Differentiate sample by sample, for models that `vmap` cannot run."""
    parameters = [layer.parameter for layer in problem.units.layers]
    flags = [p.requires_grad for p in parameters]
    rows: list[list[Tensor]] = [[] for _ in parameters]
    single = problem.pool.stacked is not None
    try:
        for p in parameters:
            p.requires_grad_(True)
        for i in range(batch.size if single else 1):
            part = slice(i, i + 1) if single else slice(None)
            inputs = tree_map(lambda x, s=part: x[s] if isinstance(x, Tensor) else x, batch.inputs)
            with torch.enable_grad():
                outputs = problem.forward(problem.model, inputs if single else batch.inputs)
                aim = [t[part] for t in targets]
                value = (
                    cross_entropy(outputs, aim[0])
                    if labels
                    else curved.sampled_loss(outputs, aim) * (1 if single else batch.size**-0.5)
                )
                found = torch.autograd.grad(value, parameters, allow_unused=True)
            for row, p, g in zip(rows, parameters, found, strict=True):
                row.append(torch.zeros_like(p) if g is None else g)
    except RuntimeError as error:
        raise GradientError(f"model: cannot be differentiated ({error})") from error
    finally:
        for p, flag in zip(parameters, flags, strict=True):
            p.requires_grad_(flag)
    return [torch.stack(row) for row in rows]
