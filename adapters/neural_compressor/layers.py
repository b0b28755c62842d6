"""Which layers of a model have weights that get levels, and what users call them."""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from de_plugin.assess.layers import PRUNABLE, is_masked, usable, weight_names
from de_plugin.assess.units import ParameterUnits
from de_plugin.errors import SelectionError

Info = list[tuple[str, str]]
"""Name and type's name of each layer, in the model's order."""


def layer_info(model: nn.Module) -> Info:
    """Return the layers of a model that have weights to quantize.

    Raises:
        SelectionError: there is none.
    """
    found = [(name, _kind(m)) for name, m in model.named_modules() if _weights(m) or _computed(m)]
    if not found:
        raise SelectionError(
            f"model {type(model).__name__}: has no layer to quantize; expected one of "
            f"{', '.join(t.__name__ for t in PRUNABLE)}"
        )
    return found


def _kind(module: nn.Module) -> str:
    """Return the name of a module's type, without what a parametrization puts before it."""
    return type(module).__name__.removeprefix("Parametrized" if is_parametrized(module) else "")


def _computed(module: nn.Module) -> list[str]:
    """Return the names of the weights that a module computes of other parameters, masks aside."""
    return [
        own
        for own in weight_names(module)
        if is_parametrized(module, own)  # to look at it would compute it, and change some
        or (isinstance(module.__dict__.get(own), Tensor) and not is_masked(module, own))
    ]


def _weights(module: nn.Module) -> list[str]:
    """Return the names of the weights that a module itself has."""
    result = []
    for own in weight_names(module):
        parameter = module._parameters.get(own)
        if is_masked(module, own) or (parameter is not None and usable(parameter)):
            result.append(own)
    return result


def units_of(model: nn.Module, names: Iterable[str]) -> ParameterUnits:
    """Return the weights of some layers as units.

    Raises:
        SelectionError: a weight cannot be written to.
    """
    names = list(names)
    for name in names:
        if computed := _computed(model.get_submodule(name)):
            raise SelectionError(
                f"{name}: its {computed[0]} is computed by a parametrization or a norm of weights, so that "
                "levels would not last; call torch.nn.utils.parametrize.remove_parametrizations (or "
                "remove_weight_norm) first, or leave it out of the white_list"
            )
    modules = [model.get_submodule(name) for name in names]
    wanted = {id(_parameter(m, own)) for m in modules for own in _weights(m)}
    found: dict[int, str] = {}  # of those that several names mean, the engine knows the first
    for name, module in model.named_modules():
        for own in _weights(module):
            key = id(_parameter(module, own))
            if key in wanted:
                found.setdefault(key, f"{name}.{own}" if name else own)
    return ParameterUnits(model, include=[glob.escape(name) for name in found.values()])


def _parameter(module: nn.Module, own: str) -> Any:
    """Return a weight, or what is behind its mask."""
    return module._parameters.get(own, module._parameters.get(f"{own}_orig"))


def matches(key: Any, name: str, kind: str, names: Sequence[str]) -> bool:
    """Tell whether a key of a config means a layer.

    Args:
        key: a module type; a layer's name, which means that one alone; or a regular expression that its
            name begins with, as everywhere in the host. An empty one means no layer, not all.
        name: of the layer.
        kind: its type's name.
        names: all there are.
    """
    if not isinstance(key, str):
        return getattr(key, "__name__", "") == kind
    if key in names:
        return key == name
    try:
        return bool(key) and re.match(key, name) is not None
    except re.error as error:
        raise SelectionError(f"{key!r}: neither a layer nor a regular expression ({error})") from error


def check_keys(argument: str, keys: Iterable[Any], info: Info, *, exact: bool = False) -> None:
    """Refuse keys that mean no layer.

    Args:
        argument: where they were given.
        keys: names, patterns or types.
        info: the layers.
        exact: whether only names will do.

    Raises:
        SelectionError: one means none.
    """
    names = [name for name, _ in info]
    for key in keys:
        hit = key in names if exact else any(matches(key, name, kind, names) for name, kind in info)
        if hit:
            continue
        shown = key if isinstance(key, str) else getattr(key, "__name__", repr(key))
        kinds = sorted({kind for _, kind in info})
        near = difflib.get_close_matches(str(shown), [*names, *kinds], n=3, cutoff=0.3) or names[:3]
        hint = "; a type is given as a class" if isinstance(key, str) and key in kinds else ""
        raise SelectionError(
            f"{argument}: {shown!r} is none of the {len(names)} layers that can be quantized; did you mean "
            f"{', '.join(near)}?{hint}"
        )
