"""The model that masks stand for: nothing is left of a pruned channel, in batch norms and biases too."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from de_plugin.adapters.nni.student import unwrapped
from de_plugin.errors import ArgumentError, StructureError

Masks = Mapping[str, Mapping[str, Tensor | None]]
Checked = dict[str, dict[str, Tensor]]

HALF = (torch.float16, torch.bfloat16)
_MIXING = (nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)
"""Norms behind which a channel of zeros is none any more."""


def arguments(model: nn.Module, example: Any) -> tuple[Any, ...]:
    """Return the example as positional arguments of ``model.forward``.

    Raises:
        ArgumentError: the keys of a dict are not the arguments of forward.
    """
    if isinstance(example, (tuple, list)):
        return tuple(example)
    if not isinstance(example, dict):
        return (example,)
    try:
        bound = inspect.signature(model.forward).bind(**example)
    except TypeError as error:
        raise ArgumentError(f"example: keys {', '.join(map(str, example))}: {error}") from error
    names = list(bound.signature.parameters)
    last = max((names.index(n) for n in bound.arguments), default=-1)
    bound.apply_defaults()
    return tuple(bound.arguments[n] for n in names[: last + 1])


def checked(model: nn.Module, masks: Masks) -> Checked:
    """Return a copy of the masks, on the parameters' devices, without those that are None.

    Raises:
        ArgumentError: a mask names nothing in the model, has another shape, is not of zeros and ones,
            or masks inputs or outputs; or there is none at all.
        StructureError: a layer keeps no output.
    """
    if not isinstance(masks, Mapping):
        raise ArgumentError(
            f"masks: a {type(masks).__name__}, expected what the pruner's compress() returns; the example "
            "comes after them: speedup(model, masks, example)"
        )
    modules = dict(model.named_modules())
    result: Checked = {}
    for name, targets in masks.items():
        if name not in modules:
            raise ArgumentError(f"masks[{name!r}]: the model has no such module")
        parameters = dict(modules[name].named_parameters(recurse=False))
        for target, mask in targets.items():
            if mask is None:
                continue
            what = f"masks[{name!r}][{target!r}]"
            if target not in parameters:
                raise ArgumentError(
                    f"{what}: expected one of the module's parameters ({', '.join(parameters) or 'none'}); "
                    "set target_names to 'weight' and 'bias' in the config list"
                )
            if mask.shape != parameters[target].shape:
                raise ArgumentError(
                    f"{what}: shape {tuple(mask.shape)}, expected that of the parameter, "
                    f"{tuple(parameters[target].shape)}"
                )
            if not bool(((mask == 0) | (mask == 1)).all()):
                raise ArgumentError(f"{what}: expected zeros and ones only")
            empty = emptied(modules[name], mask) if target == "weight" else None
            if empty is not None and bool(empty.all()):
                raise StructureError(
                    f"{what}: masks every output of {type(modules[name]).__name__}; keep at least one, or "
                    "take the layer out of the model"
                )
            mask = mask.detach().to(parameters[target].device, torch.float32, copy=True)
            result.setdefault(name, {})[target] = mask
    if not result:
        raise ArgumentError("masks: there is none; give what the pruner's compress() returns")
    return result


def aligned(model: nn.Module, masks: Masks, example: Any) -> nn.Module:
    """Return a copy with the masks applied and whatever a pruned channel would still add set to zero.

    That is: the bias of an output whose weights are all masked, and weight and bias (without them:
    the running mean) of a batch norm at each channel that the masks have left without input. This is the
    model that :func:`speedup` makes small.

    Args:
        model: wrapped by NNI or not; left as it is.
        masks: ``{module: {"weight": mask, "bias": mask or None}}``, each of its parameter's shape.
        example: input of one forward pass: a tensor, a tuple of arguments or a dict of them.

    Raises:
        ArgumentError, StructureError: see :func:`unwrapped`, :func:`arguments` and :func:`checked`.
    """
    copy = unwrapped(model)
    given = checked(copy, masks)
    inputs = arguments(copy, example)
    align(copy, given, positive(copy), inputs)
    return copy


@torch.no_grad()
def align(model: nn.Module, masks: Checked, twin: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Do what :func:`aligned` says to the model itself; extend the masks to depthwise layers.

    Args:
        model: changed in place.
        masks: extended in place where a depthwise layer gets nothing from a pruned channel.
        twin: ``positive(model)``, left as it is.
        inputs: positional arguments of one forward pass.
    """
    whole = _alive(twin, inputs)
    masked = deepcopy(twin)
    _apply(masked, masks)
    left = _alive(masked, inputs)
    _apply(model, masks)
    for name, module in model.named_modules():
        if name not in left:
            continue
        gone = whole[name] & ~left[name]
        if not bool(gone.any()):
            continue
        if isinstance(module, _BatchNorm):
            if module.affine:
                module.weight.masked_fill_(gone, 0)
                module.bias.masked_fill_(gone, 0)
            elif module.running_mean is not None:
                module.running_mean.masked_fill_(gone, 0)
        elif module.bias is None:
            rows = gone.repeat_interleave(module.out_channels // module.in_channels)
            weight = masks.setdefault(name, {}).setdefault(
                "weight", torch.ones_like(module.weight, dtype=torch.float32)
            )
            weight[rows] = 0
            module.weight[rows] = 0


@torch.no_grad()
def positive(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode whose weights are all above zero: there, only masks make zeros.

    It computes in float32 where the model does in half precision. No ReLU of it is dead and nothing
    cancels, so that its zeros tell which channels the masks empty.
    """
    twin = deepcopy(model).eval()
    generator = torch.Generator().manual_seed(0)
    if any(t.dtype in HALF for t in (*twin.parameters(), *twin.buffers())):
        twin.float()
    for parameter in twin.parameters():
        if not parameter.is_floating_point():
            continue
        fan = max(1, parameter[0].numel() if parameter.dim() > 1 else 1)
        drawn = torch.rand(parameter.shape, generator=generator) + 0.5
        parameter.copy_(drawn / fan)
    return twin


def _alive(twin: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    """Which input channels of each batch norm and depthwise convolution are not all zero, ``(channels,)``."""
    alive: dict[str, Tensor] = {}
    handles: list[Any] = []

    def look(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
            seen = (given[0].detach().transpose(0, 1).flatten(1) != 0).any(1)
            alive[name] = alive[name] | seen if name in alive else seen

        return hook

    for name, module in twin.named_modules():
        if isinstance(module, _BatchNorm) or _is_depthwise(module):
            handles.append(module.register_forward_pre_hook(look(name)))
        if isinstance(module, _BatchNorm):
            handles.append(module.register_forward_hook(_scaled))
        if isinstance(module, _MIXING):
            handles.append(module.register_forward_hook(_lifted))
    try:
        with torch.no_grad():
            twin(*(_lively(x) for x in inputs))
    finally:
        for handle in handles:
            handle.remove()
    return alive


def _lively(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return torch.full_like(value, 0.5, dtype=torch.float32 if value.dtype in HALF else None)
    return value


def _scaled(module: Any, given: tuple[Tensor, ...], _output: Tensor) -> Tensor:
    unit = given[0] / given[0].amax().clamp_min(torch.finfo(given[0].dtype).tiny)  # deep ones underflow
    return unit if module.weight is None else unit * module.weight.view(-1, *(1,) * (unit.dim() - 2))


def _lifted(_module: nn.Module, given: tuple[Tensor, ...], _output: Tensor) -> Tensor:
    return given[0].abs() + 1


def _is_depthwise(module: nn.Module) -> bool:
    return (
        isinstance(module, _ConvNd)
        and not isinstance(module, _ConvTransposeNd)
        and module.groups == module.in_channels > 1
    )


@torch.no_grad()
def _apply(model: nn.Module, masks: Checked) -> None:
    modules = dict(model.named_modules())
    for name, targets in masks.items():
        module = modules[name]
        for target, mask in targets.items():
            getattr(module, target).masked_fill_(mask == 0, 0)
        bias = getattr(module, "bias", None)
        if "weight" in targets and isinstance(bias, Tensor):
            empty = emptied(module, targets["weight"])
            if empty is not None and empty.shape == bias.shape:
                bias.masked_fill_(empty, 0)


def emptied(module: nn.Module, mask: Tensor) -> Tensor | None:
    """Return which outputs of a module keep none of their weights, ``(outputs,)``; None if unknown."""
    kept = mask != 0
    if isinstance(module, _ConvTransposeNd):
        grouped = kept.view(module.groups, -1, kept.shape[1], kept[0, 0].numel())
        return ~grouped.any(3).any(1).flatten()
    if isinstance(module, (_ConvNd, nn.Linear)):
        return ~kept.flatten(1).any(1)
    return ~kept if kept.dim() == 1 else None


def names_of(model: nn.Module) -> dict[int, list[str]]:
    """Return all names of each module, by its id: a shared module has several."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    return names


def replace(model: nn.Module, names: Iterable[str], module: nn.Module) -> None:
    """Put a module in the place of those that have these names."""
    for name in names:
        parent, _, child = name.rpartition(".")
        with suppress(AttributeError):  # the parent itself was replaced
            setattr(model.get_submodule(parent), child, module)
