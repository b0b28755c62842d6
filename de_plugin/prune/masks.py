"""Masks on a model: baked in, or as buffers that `torch.nn.utils.prune` understands and can remove."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.utils.prune as torch_prune
from torch import Tensor, nn

from de_plugin.errors import ArgumentError


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    prefix, _, own = name.rpartition(".")
    try:
        return model.get_submodule(prefix), own
    except AttributeError:
        raise ArgumentError(
            f"masks: {name!r} is no parameter of {type(model).__name__}; apply masks to the model (or a "
            "copy of the model) that they were made for"
        ) from None


def _checked(model: nn.Module, masks: Mapping[str, Tensor]) -> list[tuple[nn.Module, str, Tensor]]:
    found = []
    for name, mask in masks.items():
        module, own = _owner(model, name)
        value = module._parameters.get(own)
        if value is None or value.shape != mask.shape or mask.dtype != torch.bool:
            has = "no such parameter" if value is None else f"a parameter {tuple(value.shape)}"
            raise ArgumentError(
                f"masks[{name!r}]: {mask.dtype} {tuple(mask.shape)}, but {type(model).__name__} has {has}; "
                "masks are bool and of the parameter's shape"
            )
        found.append((module, own, mask))
    return found


def bake(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Zero in place what the masks (bool, True = kept, by parameter name) don't keep.

    Raises:
        ArgumentError: a mask fits no parameter; nothing is changed then.
    """
    for module, own, mask in _checked(model, masks):
        value = module.get_parameter(own).data
        value.masked_fill_(~mask.to(value.device), 0)


def apply(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Attach the masks as `torch.nn.utils.prune` does: ``weight_orig``, ``weight_mask``, a pre-hook.

    A parameter that several modules share is masked in all of them.

    Raises:
        ArgumentError: a mask fits no parameter; nothing is changed then.
    """
    found = [(module.get_parameter(own), mask) for module, own, mask in _checked(model, masks)]
    for parameter, mask in found:
        places = [(m, n) for m in model.modules() for n, p in m._parameters.items() if p is parameter]
        for module, own in places:
            torch_prune.custom_from_mask(module, own, mask.to(parameter.device))


def remove(model: nn.Module) -> None:
    """Make attached masks permanent: every ``weight_orig`` becomes a plain ``weight`` again."""
    for module in model.modules():
        attached = [n[: -len("_mask")] for n in module._buffers if n.endswith("_mask")]
        for name in [n for n in attached if f"{n}_orig" in module._parameters]:
            torch_prune.remove(module, name)
