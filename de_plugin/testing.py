"""Contract tests for your own criteria, granularities, units, divergences and recoveries.

Each function raises an AssertionError that names the broken promise, with any test runner or none.

>>> import de_plugin
>>> check_criterion(de_plugin.Magnitude())
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from de_plugin.assess.divergence import Curved, Divergence, leaves
from de_plugin.assess.granularity import Granularity
from de_plugin.assess.problem import Problem
from de_plugin.assess.units import Units
from de_plugin.criteria import Criterion
from de_plugin.errors import DEError
from de_plugin.prune.recover import Recovery
from de_plugin.types import PyTree

MakeProblem = Callable[[], Problem]

SHAPES: tuple[tuple[int, ...], ...] = ((3, 8), (5, 4, 3), (4, 8, 3, 2), (6, 5), (7, 3, 2))
"""Canonical weight shapes on which granularities are tried; an N:M pattern skips those that don't fit."""

_STEPS = 3
"""Forward passes after which a recovery is interrupted: late enough that it has begun to work."""


def small_problem(**options: Any) -> Problem:
    """Return a new problem of 80 weights with batch norm and labels, the same at every call.

    Args:
        options: passed on to `Problem`, as in ``small_problem(divergence="mse")``.
    """
    rng = torch.Generator().manual_seed(7)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=rng).abs() + 0.1)
        for parameter in model.parameters():
            parameter.mul_(torch.randn(parameter.shape, generator=rng).sign())
    inputs = torch.randn(48, 6, generator=rng)
    labels = torch.randint(4, (48,), generator=rng)
    return Problem(model, (inputs, labels), **{"batch_size": 16, "holdout": 0.25, **options})


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).clone()


def _same_bits(first: Tensor, second: Tensor) -> bool:
    return torch.equal(_bits(first), _bits(second))


def _state(model: nn.Module) -> dict[str, Tensor]:
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in named}


def _check_state(model: nn.Module, before: dict[str, Tensor], who: str, when: str) -> None:
    now = _state(model)
    assert list(now) == list(before), (
        f"{who}: {when} the model has the tensors {list(now)}, expected {list(before)}"
    )
    changed = [name for name in before if not _same_bits(before[name], now[name])]
    assert not changed, f"{who}: {when} {', '.join(changed)} differ; expected them bit-exact"


@contextmanager
def _untouched(problem: Problem, who: str) -> Iterator[None]:
    """Check that the block leaves values, gradients, flags, modes and `kept` as they were."""
    model, kept, quota = problem.model, problem.kept.clone(), problem.quota
    parameters = list(model.parameters())
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, 3.0) if number % 2 else None
    grads = [(p.grad, p.grad.clone() if p.grad is not None else None) for p in parameters]
    flags = [p.requires_grad for p in parameters]
    modes = [m.training for m in model.modules()]
    before = _state(model)
    yield
    _check_state(model, before, who, "after the call")
    for (name, parameter), (grad, value) in zip(model.named_parameters(), grads, strict=True):
        same = parameter.grad is grad and (grad is None or value is None or _same_bits(grad, value))
        assert same, f"{who}: {name}.grad was changed; use torch.autograd.grad"
    assert [p.requires_grad for p in parameters] == flags, f"{who}: requires_grad was changed"
    assert [m.training for m in model.modules()] == modes, f"{who}: train or eval mode was changed"
    assert torch.equal(problem.kept, kept), f"{who}: problem.kept was changed"
    assert problem.quota is quota, f"{who}: problem.quota was changed"


def _some(problem: Problem, fraction: float, key: int) -> Tensor:
    """Return a mask that is False for `fraction` of the units, N:M limits honoured."""
    scores = torch.rand(problem.units.count, generator=problem.generator(900, key))
    count = round(fraction * problem.units.count)
    return problem.select(scores, problem.eligible, count)


def check_criterion(criterion: Criterion, make_problem: MakeProblem | None = None) -> None:
    """Check what `de_plugin.Criterion` promises.

    Scores are finite for the eligible units and +inf for the rest; exactly as many units as asked for
    are chosen, all eligible; the model, ``problem.kept`` and ``.grad`` stay as they are; problems made
    alike give the same scores, whatever the state of torch's global generator.

    Args:
        criterion: what is tested.
        make_problem: returns a new problem, the same at every call; default `small_problem`.

    Raises:
        AssertionError: a promise is broken; the message says which.
    """
    make = make_problem or small_problem
    assert isinstance(criterion, Criterion), (
        f"{criterion!r}: expected name, needs_gradient and __call__(problem, eligible, count)"
    )
    assert isinstance(criterion.name, str), f"{criterion!r}: its name is no string"
    assert criterion.name, f"{criterion!r}: its name is empty"
    who = f"criterion {criterion.name!r}"
    assert isinstance(criterion.needs_gradient, bool), f"{who}: needs_gradient is no bool"
    for zeroed in (0.0, 0.2):
        runs = []
        with torch.random.fork_rng(devices=[]):
            for seed in (1, 2):
                torch.manual_seed(seed)
                runs.append(_scored(criterion, make(), zeroed, who))
        assert torch.equal(*runs), f"{who}: two problems made alike gave different scores"


def _scored(criterion: Criterion, problem: Problem, zeroed: float, who: str) -> Tensor:
    problem.kept = _some(problem, zeroed, 1)
    problem.protected = torch.arange(problem.units.count) % 7 == 3
    eligible = problem.eligible
    count = max(1, int(eligible.sum()) // 4)
    with _untouched(problem, who):
        scores = criterion(problem, eligible, count)
    wanted = (problem.units.count,)
    assert isinstance(scores, Tensor), f"{who}: returned {type(scores).__name__}, expected a tensor"
    assert scores.shape == wanted, f"{who}: returned {tuple(scores.shape)}, expected {wanted}"
    assert scores.is_floating_point(), f"{who}: returned {scores.dtype}, expected floats"
    assert scores.device.type == "cpu", f"{who}: scores are on {scores.device}, expected the CPU"
    broken = int((~torch.isfinite(scores[eligible])).sum())
    assert not broken, f"{who}: {broken} scores of eligible units are not finite"
    finite = int((scores[~eligible] != math.inf).sum())
    assert not finite, f"{who}: {finite} scores of units that may not go are not +inf"
    kept = problem.select(scores, eligible, count)
    gone = problem.kept & ~kept
    assert int(gone.sum()) == count, f"{who}: {int(gone.sum())} units chosen, expected {count}"
    assert not bool((gone & ~eligible).any()), f"{who}: chose units that may not go"
    return scores


def check_granularity(granularity: Granularity, shapes: Sequence[tuple[int, ...]] = SHAPES) -> None:
    """Check what `Granularity` promises.

    `reduce` is the adjoint of `expand`, every weight belongs to exactly one unit, leading dimensions are
    carried through and masks stay bool.

    Args:
        granularity: what is tested.
        shapes: canonical weight shapes ``(out, in, *kernel)``.

    Raises:
        AssertionError: a promise is broken; the message says which.
    """
    assert isinstance(granularity, Granularity), f"{granularity!r}: expected name, count, expand and reduce"
    fits = getattr(granularity, "fits", lambda _: True)
    tried = [torch.Size(s) for s in shapes if fits(torch.Size(s))]
    assert tried, f"granularity {granularity.name!r}: fits none of the shapes {tuple(shapes)}"
    for shape in tried:
        _check_shape(granularity, shape, f"granularity {granularity.name!r} on {tuple(shape)}")


def _check_shape(granularity: Granularity, shape: torch.Size, who: str) -> None:
    count = granularity.count(shape)
    assert isinstance(count, int), f"{who}: count is {count!r}, expected a whole number"
    assert 0 < count <= math.prod(shape), f"{who}: {count} units for {math.prod(shape)} weights"
    rng = torch.Generator().manual_seed(0)
    for lead in ((), (2,), (2, 3)):
        units = torch.randn(*lead, count, generator=rng, dtype=torch.float64)
        values = torch.randn(*lead, *shape, generator=rng, dtype=torch.float64)
        spread, summed = granularity.expand(units, shape), granularity.reduce(values, shape)
        assert spread.shape == (*lead, *shape), (
            f"{who}: expand gave {tuple(spread.shape)}, expected {(*lead, *shape)}"
        )
        assert summed.shape == (*lead, count), (
            f"{who}: reduce gave {tuple(summed.shape)}, expected {(*lead, count)}"
        )
        left, right = float((spread * values).sum()), float((units * summed).sum())
        assert math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-9), (
            f"{who}: <expand(u), w> = {left} and <u, reduce(w)> = {right}; reduce must sum over the "
            "very weights to which expand spreads a unit"
        )
    numbers = granularity.expand(torch.arange(count), shape)
    assert torch.equal(numbers.unique(), torch.arange(count)), f"{who}: some unit has no weight"
    sizes = granularity.reduce(torch.ones(shape, dtype=torch.float64), shape)
    found = torch.bincount(numbers.reshape(-1), minlength=count).double()
    assert torch.equal(sizes, found), f"{who}: reduce and expand disagree on the sizes of the units"
    mask = granularity.expand(torch.arange(count) % 2 == 0, shape)
    assert mask.dtype == torch.bool, f"{who}: expand turned a bool mask into {mask.dtype}"


class _Interrupt(BaseException):
    """Raised inside a block; like KeyboardInterrupt it is no Exception."""


def check_units(units: Units, model: nn.Module | None = None) -> None:
    """Check what `Units` promises: `zeroed` changes the model and restores it bit-exactly.

    Args:
        units: what is tested.
        model: whose units they are; default ``units.model``.

    Raises:
        AssertionError: a promise is broken; the message says which.
    """
    assert isinstance(units, Units), f"{units!r}: expected count and zeroed(kept)"
    who = f"units {type(units).__name__}"
    model = model if model is not None else getattr(units, "model", None)
    assert isinstance(model, nn.Module), f"{who}: have no model attribute; pass model="
    assert units.count > 0, f"{who}: count is {units.count}, expected a positive number"
    before = _state(model)
    with units.zeroed(torch.ones(units.count, dtype=torch.bool)):
        _check_state(model, before, who, "with every unit kept")
    rng = torch.Generator().manual_seed(0)
    for kept in (torch.zeros(units.count, dtype=torch.bool), torch.rand(units.count, generator=rng) < 0.5):
        for error in (None, ValueError(), _Interrupt()):
            inside: dict[str, Tensor] = {}
            try:
                with units.zeroed(kept):
                    inside.update(_state(model))
                    if error is not None:
                        raise error
            except (ValueError, _Interrupt) as caught:
                if caught is not error:
                    raise AssertionError(f"{who}: zeroed raised {caught!r}") from caught
            else:
                assert error is None, f"{who}: zeroed swallowed {type(error).__name__}"
            when = "after the block" if error is None else "after an exception in the block"
            _check_state(model, before, who, when)
            if not bool(kept.any()):
                same = all(_same_bits(inside[n], before[n]) for n in before)
                assert not same, f"{who}: zeroing every unit changed nothing"
    for wrong in (torch.ones(units.count + 1, dtype=torch.bool), torch.ones(units.count)):
        try:
            with units.zeroed(wrong):
                pass
        except DEError:
            _check_state(model, before, who, "after a refused mask")
        else:
            raise AssertionError(
                f"{who}: took a mask {wrong.dtype} {tuple(wrong.shape)}; expected a DEError unless it "
                f"is torch.bool ({units.count},)"
            )


def check_divergence(
    divergence: Divergence, outputs: PyTree | None = None, labels: Tensor | None = None
) -> None:
    """Check what `de_plugin.Divergence` promises.

    The teacher's divergence from itself is zero; the result is a 0-dim tensor, finite, and a mean over
    samples; what is drawn for the Fisher information depends on the generator alone.

    Args:
        divergence: what is tested.
        outputs: the teacher's, tensors ``(samples, ...)`` with an even number of samples; default
            ``(8, 5)`` logits.
        labels: one a sample; default class numbers.

    Raises:
        AssertionError: a promise is broken; the message says which.
    """
    assert isinstance(divergence, Divergence), (
        f"{divergence!r}: expected name, differentiable and __call__(student, teacher, labels)"
    )
    who = f"divergence {divergence.name!r}"
    rng = torch.Generator().manual_seed(0)
    teacher = torch.randn(8, 5, generator=rng) if outputs is None else outputs
    labels = torch.randint(5, (8,), generator=rng) if labels is None else labels
    zero = divergence(teacher, teacher, labels)
    assert isinstance(zero, Tensor), f"{who}: returned {type(zero).__name__}, expected a tensor"
    assert zero.dim() == 0, f"{who}: returned {tuple(zero.shape)}, expected a 0-dim tensor"
    assert abs(float(zero)) <= 1e-6, f"{who}: the teacher's from itself is {float(zero)}, expected 0"

    def moved(x: Any) -> Any:
        noise = torch.randn(x.shape, generator=rng).to(x) if isinstance(x, Tensor) else x
        return x + noise if isinstance(x, Tensor) and x.is_floating_point() else x

    student = torch.utils._pytree.tree_map(moved, teacher)
    whole = float(divergence(student, teacher, labels))
    assert math.isfinite(whole), f"{who}: is {whole} for finite outputs"
    samples = len(leaves(teacher)[0])

    def part(tree: PyTree, at: slice) -> PyTree:
        return torch.utils._pytree.tree_map(lambda x: x[at] if isinstance(x, Tensor) else x, tree)

    halves = [
        float(divergence(part(student, at), part(teacher, at), part(labels, at)))
        for at in (slice(0, samples // 2), slice(samples // 2, None))
    ]
    assert math.isclose(whole, sum(halves) / 2, rel_tol=1e-4, abs_tol=1e-6), (
        f"{who}: is {whole} for all samples and {halves} for the halves; expected a mean over samples"
    )
    if isinstance(divergence, Curved):
        _check_curved(divergence, student, who)


def _check_curved(divergence: Curved, outputs: PyTree, who: str) -> None:
    first, second = (divergence.draw(outputs, torch.Generator().manual_seed(5)) for _ in range(2))
    assert len(first) == len(leaves(outputs)), f"{who}: draw gave {len(first)} targets"
    same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert same, f"{who}: draw gave different targets for generators of the same seed"
    loss = divergence.sampled_loss(outputs, first)
    assert loss.dim() == 0, f"{who}: sampled_loss returned {tuple(loss.shape)}, expected 0-dim"
    assert bool(torch.isfinite(loss)), f"{who}: sampled_loss is {float(loss)}"


def check_recovery(recovery: Recovery, make_problem: MakeProblem | None = None) -> None:
    """Check what `Recovery` promises.

    Zeroed units keep their dense values, so that they can be revived; ``problem.kept``, modes and flags
    stay; values stay finite; an exception leaves the model as it was; the part used in assessments is
    undone on exit; problems made alike end alike.

    Args:
        recovery: what is tested.
        make_problem: returns a new problem, the same at every call; default `small_problem`.

    Raises:
        AssertionError: a promise is broken; the message says which.
    """
    make = make_problem or small_problem
    assert isinstance(recovery, Recovery), f"{recovery!r}: expected name, prepare, __call__ and in_assessment"
    who = f"recovery {recovery.name!r}"
    ends = []
    for _ in range(2):
        problem = _cut(recovery, make(), who)
        _check_assessment(recovery, problem, who)
        _check_survivors(recovery, problem, who)
        ends.append(_state(problem.model))
    same = all(_same_bits(ends[0][n], ends[1][n]) for n in ends[0])
    assert same, f"{who}: two problems made alike ended with different values"
    _check_interrupted(recovery, _cut(recovery, make(), who), who)


def _cut(recovery: Recovery, problem: Problem, who: str) -> Problem:
    before = _state(problem.model)
    recovery.prepare(problem)
    _check_state(problem.model, before, who, "after prepare")
    problem.kept = _some(problem, 0.4, 2)
    return problem


def _check_assessment(recovery: Recovery, problem: Problem, who: str) -> None:
    repair = recovery.in_assessment()
    if repair is None:
        return
    batches = problem.pool.take(problem.search[:8])
    before = _state(problem.model)
    with torch.no_grad(), problem.units.zeroed(problem.kept):
        with repair(problem, batches):
            pass
        try:
            with repair(problem, batches):
                raise _Interrupt
        except _Interrupt:
            pass
    _check_state(problem.model, before, who, "after its part of an assessment")


def _check_survivors(recovery: Recovery, problem: Problem, who: str) -> None:
    kept, model = problem.kept.clone(), problem.model
    flags = [p.requires_grad for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    before = [v.clone() for v in problem.units.values()]
    recovery(problem)
    assert torch.equal(problem.kept, kept), f"{who}: problem.kept was changed"
    assert [p.requires_grad for p in model.parameters()] == flags, f"{who}: requires_grad was changed"
    assert [m.training for m in model.modules()] == modes, f"{who}: train or eval mode was changed"
    masks = problem.units.expand(kept)
    for layer, old, mask in zip(problem.units.layers, before, masks, strict=True):
        now, gone = layer.parameter.detach(), ~mask.to(old.device)
        assert _same_bits(now[gone], old[gone]), (
            f"{who}: dense values of zeroed units of {layer.name} were changed; they must be revivable"
        )
    broken = [n for n, x in _state(model).items() if not bool(torch.isfinite(x).all())]
    assert not broken, f"{who}: {', '.join(broken)} hold NaN or infinite values"


def _check_interrupted(recovery: Recovery, problem: Problem, who: str) -> None:
    before, forward, calls = _state(problem.model), problem.forward, 0

    def interrupted(model: nn.Module, inputs: PyTree) -> PyTree:
        nonlocal calls
        calls += 1
        if calls == _STEPS:
            raise _Interrupt
        return forward(model, inputs)

    problem.forward = interrupted
    try:
        recovery(problem)
    except _Interrupt:
        _check_state(problem.model, before, who, "after an exception")
    finally:
        problem.forward = forward
