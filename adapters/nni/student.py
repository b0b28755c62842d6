"""A copy of a model that NNI has wrapped, as it computes without the wrappers; the model keeps them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from de_plugin.assess.teacher import Forward
from de_plugin.errors import ArgumentError

_MULTIPLYING = ("mul", "movement_mul", "slim_mul")
_RUNNERS = ("_trainer", "_fabric")
"""Where a module of Lightning keeps what trains it, which holds the evaluator and its data."""


def student(model: nn.Module, own: Collection[Any] = ()) -> nn.Module:
    """Return an unwrapped copy in eval mode, with the masks of other pruners applied.

    Args:
        model: wrapped or not; nothing in it is touched.
        own: pruning target spaces whose masks are not applied.

    Raises:
        ArgumentError: the model cannot be copied.
    """
    result = unwrapped(model)
    copies = dict(result.named_modules())
    skipped = {id(space) for space in own}
    for name, wrapper in _wrappers(model).items():
        for target, space in wrapper.pruning_target_spaces.items():
            value = getattr(copies[name], target, None)
            if id(space) in skipped or space.mask is None or space.apply_method not in _MULTIPLYING:
                continue
            if isinstance(value, Tensor):
                value.data.mul_(space.mask.to(value.device, value.dtype))
    return result.eval()


def unwrapped(model: nn.Module) -> nn.Module:
    """Return a copy without wrappers and masks, in the modes that the model is in.

    It can be taken in the middle of training: wrappers hold tensors then that no copy can be made of, and are
    left out, as is Lightning's trainer.

    Args:
        model: wrapped or not; nothing in it is touched.

    Raises:
        ArgumentError: the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    wrappers = _wrappers(model)
    for name, module in model.named_modules():
        if "_nni_wrapper" in name.split("."):
            continue
        if name in wrappers:
            memo[id(wrappers[name])] = nn.Identity()
            memo[id(vars(module)["forward"])] = _gone
        for runner in _runners(module).values():
            memo[id(runner)] = _gone
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    try:
        with torch.no_grad():
            result = copy.deepcopy(model, memo)
    except Exception as error:  # copying runs code of the user's classes, which may raise anything
        raise ArgumentError(
            f"model: {type(model).__name__} cannot be copied ({type(error).__name__}: {error}), and "
            "a copy is what is worked on; keep what cannot be copied out of its attributes, or call "
            "unwrap_model() of the compressor that has wrapped it first"
        ) from error
    copies = dict(result.named_modules())
    for name, wrapper in wrappers.items():
        _unwrap(copies[name], wrapper, memo)
    for module in copies.values():
        vars(module).update(dict.fromkeys(_runners(module)))
    return result


def _runners(module: nn.Module) -> dict[str, Any]:
    """Return what trains a module, by the name of the attribute that holds it."""
    if all(cls.__name__ != "LightningModule" for cls in type(module).__mro__):
        return {}
    return {name: vars(module)[name] for name in _RUNNERS if vars(module).get(name) is not None}


def _wrappers(model: nn.Module) -> dict[str, Any]:
    """Return the wrapper of each module that has one, by the module's name."""
    return {
        name: module._modules["_nni_wrapper"]
        for name, module in model.named_modules()
        if "_nni_wrapper" not in name.split(".") and "_nni_wrapper" in module._modules
    }


def _gone(*_: Any, **__: Any) -> None:
    """Stand in for a wrapped forward until the copy gets its own back, and for a trainer."""


def _unwrap(module: Any, wrapper: Any, memo: dict[int, Any]) -> None:
    """Give a copied module the parameters and the forward that its wrapper keeps."""
    del module._modules["_nni_wrapper"]
    del module.__dict__["forward"]
    inner = wrapper.module_forward
    if getattr(inner, "__func__", None) is not type(module).forward:
        module.forward = copy.deepcopy(inner, memo)
    held: dict[str, Any] = {}
    for spaces in (wrapper.pruning_target_spaces, wrapper.quantization_target_spaces):
        held.update({name: s.target for name, s in spaces.items() if isinstance(s.target, Tensor)})
    if getattr(wrapper, "is_register_bias", False):
        held["bias"] = wrapper.bias
    elif wrapper.fused_modules and getattr(wrapper, "is_bias", "") == "None":
        module._buffers.pop("bias", None)
        module.register_parameter("bias", None)
    for name, value in held.items():
        module._buffers.pop(name, None)
        module._parameters.pop(name, None)
        plain = value.detach().clone()
        if isinstance(value, nn.Parameter):
            module.register_parameter(name, nn.Parameter(plain, requires_grad=value.requires_grad))
        else:
            module.register_buffer(name, plain)


def teacher(model: nn.Module) -> nn.Module:
    """Return a copy that only answers: in eval mode, without gradients.

    Raises:
        ArgumentError: `model` is no module, or cannot be copied.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model={model!r}: expected the torch.nn.Module that is to be pruned")
    return student(model).requires_grad_(False)


def followers(model: nn.Module, inputs: Any, forward: Forward) -> dict[str, list[str]]:
    """Return the batch norms that take the very output of another module, by that module's name.

    A batch norm that is fed from several places is left out.

    Args:
        model: unwrapped.
        inputs: of one forward pass, which is watched.
        forward: calls the model.
    """
    made: dict[int, tuple[str, Tensor]] = {}
    sources: dict[str, set[str | None]] = {}
    handles: list[Any] = []

    def after(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _given: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                made[id(output)] = (name, output)  # held, so that no other tensor gets its id

        return hook

    def before(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, given: tuple[Any, ...]) -> None:
            known = made.get(id(given[0])) if given else None
            sources.setdefault(name, set()).add(known[0] if known else None)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            handles.append(module.register_forward_pre_hook(before(name)))
        if not any(True for _ in module.children()):
            handles.append(module.register_forward_hook(after(name)))
    try:
        with torch.no_grad():
            forward(model, inputs)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):
        return {}  # the engine will fail here too, and says why
    finally:
        for handle in handles:
            handle.remove()
    result: dict[str, list[str]] = {}
    for norm, names in sources.items():
        [*found] = names
        if len(found) == 1 and found[0] is not None:
            result.setdefault(found[0], []).append(norm)
    return result
