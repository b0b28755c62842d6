"""The inputs that a network meets while the host calibrates it, as calibration batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from de_plugin.errors import DataError

_PLACE = "_de_recorder"


class Recorder:
    """Keeps what a network is called with, up to a number of samples.

    Args:
        model: the network; it carries the recorder until `taken`.
        samples: keep at most about so many.
    """

    def __init__(self, model: nn.Module, samples: int) -> None:
        self.batches: list[Any] = []
        self._left = samples
        self._handle = model.register_forward_pre_hook(self._record, with_kwargs=True)
        setattr(model, _PLACE, self)

    def _record(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._left <= 0:
            return
        if args and kwargs:
            raise DataError(
                "calibration: the model is called with positions and keywords; call it with one kind, or "
                "give DEQuantConfig(batches=..., forward=...)"
            )
        given = kwargs or (args[0] if len(args) == 1 else args)
        kept = tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, given)
        self.batches.append((kept,))
        tensors = [x for x in tree_flatten(kept)[0] if isinstance(x, torch.Tensor)]
        self._left -= int(tensors[0].shape[0]) if tensors and tensors[0].dim() else 1


def record(model: nn.Module, samples: int) -> None:
    """Let a network record its inputs from now on; what it has recorded before is forgotten."""
    taken(model)
    Recorder(model, samples)


def taken(model: nn.Module) -> list[Any] | None:
    """Take the recorder off and return what it has met; None where that is nothing."""
    recorder = getattr(model, _PLACE, None)
    if recorder is None:
        return None
    recorder._handle.remove()
    delattr(model, _PLACE)
    found: list[Any] = recorder.batches
    return found or None
