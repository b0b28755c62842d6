"""Directed Evolution as a method of `torch.nn.utils.prune`, for who uses no other framework."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypedDict

import torch
import torch.nn.utils.prune as torch_prune
from torch import Tensor, nn

from de_plugin.assess.divergence import Divergence
from de_plugin.assess.problem import Problem
from de_plugin.assess.teacher import Forward
from de_plugin.criteria import Criterion
from de_plugin.errors import ArgumentError, SelectionError, TargetError
from de_plugin.prune import Budget, Report, Schedule, remove
from de_plugin.prune.cycle import Cycles
from de_plugin.prune.plan import Plan
from de_plugin.prune.target import check_sparsity

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["DEUnstructured", "Options", "de_unstructured", "global_unstructured"]

Pairs = Sequence[tuple[nn.Module, str]]


class Options(TypedDict, total=False):
    """What `de_plugin.prune` takes too, and means the same by."""

    criterion: str | Criterion
    schedule: Schedule | int | None
    budget: Budget | None
    divergence: str | Divergence | Callable[[Any, Any], Any]
    forward: Forward | None
    samples: int | None
    batch_size: int
    holdout: float
    memory: int
    seed: int


class DEUnstructured(torch_prune.BasePruningMethod):
    """A mask on single weights, found by Directed Evolution; `apply` finds one and puts it on.

    It keeps to torch's ways: ``weight_orig``, ``weight_mask``, a hook before the forward; it goes on top of
    earlier pruning, and `torch.nn.utils.prune.remove` makes it permanent.

    Args:
        mask: of the parameter's shape, True = kept.

    >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    >>> method = DEUnstructured.apply(model[0], "weight", model, torch.randn(64, 8), amount=0.5)
    >>> int(model[0].weight_mask.sum())
    32
    """

    PRUNING_TYPE = "global"  # its masks are of the whole parameter, not of what earlier pruning has left

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """Return what is kept of what earlier pruning has kept, in the parameter's shape and type."""
        return default_mask * self.mask.to(device=default_mask.device, dtype=default_mask.dtype)

    @classmethod
    def apply(
        cls, module: nn.Module, name: str, *args: Any, importance_scores: Any = None, **kwargs: Any
    ) -> Any:
        """Find a mask and put it on.

        Args:
            module: whose parameter it is.
            name: of the parameter, such as "weight".
            args: those of `de_unstructured` that follow.
            importance_scores: of no use here; give ``criterion=``.
            kwargs: those of `de_unstructured`, or a finished ``mask=`` alone.

        Returns:
            The hook, as torch does.

        Raises:
            DEError: an argument cannot work; the message says what to do.
        """
        if importance_scores is not None:
            raise ArgumentError("importance_scores: weights are ranked by measuring; give criterion= instead")
        if "mask" not in kwargs:
            de_unstructured(module, name, *args, **kwargs)
            return next(
                h for h in module._forward_pre_hooks.values() if getattr(h, "_tensor_name", "") == name
            )
        host: Any = super()
        return host.apply(module, name, *args, **kwargs)


def de_unstructured(
    module: nn.Module,
    name: str,
    model: nn.Module,
    batches: Any,
    amount: float,
    **options: Unpack[Options],
) -> Report:
    """Mask those weights of one parameter whose loss changes the model's outputs least.

    Args:
        module: whose parameter it is, in `model`.
        name: of the parameter, such as "weight".
        model: this and the rest as for `global_unstructured`.
        batches: calibration data.
        amount: a fraction, or a number of weights.
        options: see `Options`.

    Raises:
        DEError: an argument cannot work; the message says what to do.
    """
    return global_unstructured([(module, name)], model, batches, amount, **options)


def global_unstructured(
    parameters: Iterable[tuple[nn.Module, str]],
    model: nn.Module,
    batches: Any,
    amount: float,
    **options: Unpack[Options],
) -> Report:
    """Mask those weights of some parameters, taken together, whose loss changes the model's outputs least.

    What `torch.nn.utils.prune.global_unstructured` does by size, by measuring. The search runs on a copy;
    after any exception, Ctrl-C included, the model is what it was.

    Args:
        parameters: ``[(module, name), ...]``, weights of modules of `model`.
        model: what the divergence is measured of, in eval mode; earlier masks of torch are kept.
        batches: calibration data, see `de_plugin.prune`.
        amount: a fraction in [0, 1) of the weights that are left, or a number of weights.
        options: see `Options` and `de_plugin.prune`.

    Returns:
        What was done; its masks hold earlier pruning as well.

    Raises:
        SelectionError: a pair is no prunable weight of the model.
        TargetError: more weights are to go than there are.
        DEError: another argument cannot work; the message says what to do.

    >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    >>> pairs = [(model[0], "weight"), (model[2], "weight")]
    >>> report = global_unstructured(pairs, model, torch.randn(64, 8), 0.5)
    >>> int(model[0].weight_mask.sum() + model[2].weight_mask.sum())
    40
    """
    pairs = _checked(parameters)
    found = _searched(pairs, model, batches, amount, **options)
    with _undone_on_error(pairs):
        for (module, own), name in zip(pairs, _names(pairs, model), strict=True):
            DEUnstructured.apply(module, own, mask=found.masks[name])
    return found


# -- the search ------------------------------------------------------------------------------------


def _searched(
    pairs: Pairs,
    model: nn.Module,
    batches: Any,
    amount: float,
    *,
    criterion: str | Criterion = "de",
    schedule: Schedule | int | None = None,
    budget: Budget | None = None,
    **asked: Any,
) -> Report:
    """Search on a copy in which earlier masks are permanent."""
    started = time.monotonic()
    twin, names = _unmasked_copy(model), _names(pairs, model)
    problem = Problem(twin, batches, include=names, **asked)
    _check_layers(problem, names)
    masks = {n: _mask(module, own) for n, (module, own) in zip(names, pairs, strict=True)}
    kept = problem.units.reduce([masks[x.name].to(x.parameter) for x in problem.units.layers]).cpu() > 0
    problem.kept, problem.protected = kept, ~kept  # what went earlier stays away
    gone, count = int((~kept).sum()), len(kept)
    target = (gone + _number(amount, count - gone)) / count
    plan = Plan.of(
        problem,
        target,
        criterion,
        scope="global",
        schedule=schedule,
        recovery_=None,
        finish=None,
        budget=budget,
    )
    plan.prepare(problem)
    return Cycles(problem, plan, started).run()


def _number(amount: float, left: int) -> int:
    """Return how many weights go."""
    if isinstance(amount, int) and not isinstance(amount, bool):
        number = amount
        if number < 0:
            raise ArgumentError(f"amount={amount}: expected a fraction in [0, 1) or a number of weights")
    else:
        number = round(check_sparsity(amount, "amount") * left)
    if number and number >= left:
        raise TargetError(f"amount={amount}: {number} weights are to go and {left} are left; lower it")
    return number


def _unmasked_copy(model: nn.Module) -> nn.Module:
    """Return a copy whose masked weights are plain parameters again, zeros and all."""
    known: dict[int, Any] = {}
    for module in model.modules():
        for name in [n[: -len("_mask")] for n in module._buffers if n.endswith("_mask")]:
            if f"{name}_orig" in module._parameters and name in module.__dict__:
                value = module.__dict__[name]
                known[id(value)] = value.detach().clone()  # torch can't copy what has a gradient's history
    twin = copy.deepcopy(model, known)
    remove(twin)
    return twin


def _mask(module: nn.Module, name: str) -> Tensor:
    mask = module._buffers.get(f"{name}_mask")
    if mask is None:
        return torch.ones_like(module.get_parameter(name), dtype=torch.bool)
    return mask != 0


# -- checks ----------------------------------------------------------------------------------------


def _checked(parameters: Iterable[tuple[nn.Module, str]]) -> list[tuple[nn.Module, str]]:
    try:
        pairs = [(module, name) for module, name in parameters]
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"parameters={parameters!r:.200}: expected pairs as in [(model.fc1, 'weight'), ...]"
        ) from error
    if not pairs:
        raise ArgumentError("parameters=[]: expected at least one pair, as in [(model.fc1, 'weight')]")
    if len({(id(module), name) for module, name in pairs}) < len(pairs):
        raise ArgumentError("parameters: a pair is there twice; name each once")
    return pairs


def _names(pairs: Pairs, model: nn.Module) -> list[str]:
    """Return the full name of each parameter."""
    prefixes = {id(module): prefix for prefix, module in model.named_modules()}
    names = []
    for module, own in pairs:
        prefix = prefixes.get(id(module))
        if prefix is None or not any(n in module._parameters for n in (own, f"{own}_orig")):
            raise SelectionError(
                f"parameters: ({type(module).__name__}, {own!r}) is no parameter of {type(model).__name__}"
            )
        names.append(f"{prefix}.{own}" if prefix else own)
    return names


def _check_layers(problem: Problem, names: Sequence[str]) -> None:
    """Refuse what cannot be pruned weight by weight, and half of a weight that modules share."""
    layers = {layer.name: layer for layer in problem.units.layers}
    for name in names:
        if name not in layers:
            raise SelectionError(
                f"parameters: {name} is no prunable weight, or shares one with another pair; there are "
                f"{', '.join(layers)}"
            )
        if layers[name].aliases:
            raise SelectionError(
                f"parameters: {name} is shared with {', '.join(layers[name].aliases)} and torch masks one "
                "module at a time; use de_plugin.prune(apply='buffers')"
            )


@contextmanager
def _undone_on_error(pairs: Pairs) -> Iterator[None]:
    """Put modules back as they were when the block raises anything."""
    saved = []
    for module, name in pairs:
        parts = (module._parameters, module._buffers, module._forward_pre_hooks)
        containers = [
            (hook, hook._pruning_methods)
            for hook in module._forward_pre_hooks.values()
            if isinstance(hook, torch_prune.PruningContainer)
        ]
        saved.append((module, name, [(x, dict(x)) for x in parts], module.__dict__.get(name), containers))
    try:
        yield
    except BaseException:
        for module, name, parts, value, containers in reversed(saved):
            for part, before in parts:
                part.clear()
                part.update(before)
            module.__dict__.pop(name, None)
            if value is not None:
                module.__dict__[name] = value
            for hook, methods in containers:
                hook._pruning_methods = methods
        raise
