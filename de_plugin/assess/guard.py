"""The user's model comes back bit-exact, whatever happens: snapshots of parameters, buffers and modes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral

import torch
from torch import Tensor, nn

from de_plugin.errors import ArgumentError, ModeError


class Snapshot:
    """All that de_plugin may change in a model: values, modes and `requires_grad` flags."""

    def __init__(self, model: nn.Module) -> None:
        self._tensors: list[tuple[Tensor, Tensor]] = [
            (x, x.detach().clone()) for x in (*model.parameters(), *model.buffers())
        ]
        self._grads = [(p, p.grad, p.requires_grad) for p in model.parameters()]
        self._buffers = [(m, dict(m._buffers)) for m in model.modules()]
        self._modes = [(m, m.training) for m in model.modules()]

    def restore(self) -> None:
        """Write every value back in place, and put buffers that were replaced back in their places."""
        for module, buffers in self._buffers:
            module._buffers.update(buffers)
        with torch.no_grad():
            for live, saved in self._tensors:
                live.data.copy_(saved)
        for parameter, grad, flag in self._grads:
            parameter.requires_grad_(flag)
            parameter.grad = grad
        for module, mode in self._modes:
            module.training = mode


@contextmanager
def untouched_on_error(model: nn.Module) -> Iterator[Snapshot]:
    """Restore the model when the block raises anything, KeyboardInterrupt included."""
    snapshot = Snapshot(model)
    try:
        yield snapshot
    except BaseException:
        snapshot.restore()
        raise


def check_counts(who: str = "", /, **values: object) -> None:
    """Refuse what is no positive whole number.

    Args:
        who: whose arguments they are, where a name tells more than the argument's alone.
        values: by the arguments' names.

    Raises:
        ArgumentError: a value is not one.
    """
    for argument, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            given = f"{argument}={value!r}"
            raise ArgumentError(f"{f'{who}({given})' if who else given}: expected a positive whole number")


def require_gradients_possible(model: nn.Module) -> None:
    """Refuse to work where torch has switched gradients off for good.

    Raises:
        ModeError: inference mode is on, or the weights were made in it.
    """
    if torch.is_inference_mode_enabled():
        raise ModeError(
            "model: torch.inference_mode() is on, and in it no gradient can be taken; leave that block, "
            "or use torch.no_grad() there"
        )
    if any(p.is_inference() for p in model.parameters()):
        raise ModeError(
            "model: its weights were made inside torch.inference_mode() and cannot be changed; build or "
            "load the model outside of it"
        )


def require_eval(model: nn.Module, argument: str = "model") -> None:
    """Refuse a model in train mode: dropout and batch statistics would drown what is measured.

    Raises:
        ModeError: a module is in train mode.
    """
    training = [name or type(model).__name__ for name, m in model.named_modules() if m.training]
    if training:
        raise ModeError(
            f"{argument}: {len(training)} module(s) are in train mode (such as {training[0]!r}); dropout "
            f"and batch statistics would drown what is measured: call {argument}.eval() first"
        )
