"""What is compared on: a copy of the model, data read once, and which layers lose what."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from de_plugin.assess.batches import read
from de_plugin.assess.fingerprint import fingerprint
from de_plugin.assess.teacher import Forward
from de_plugin.assess.units import ParameterUnits, Pattern
from de_plugin.compare.measure import length
from de_plugin.errors import ArgumentError, SelectionError

Batches = list[tuple[Any, ...]]

_MEMORY = 4 << 30


@dataclass(frozen=True)
class Subject:
    """A model and its data, as every method gets them.

    Attributes:
        model: a copy of the user's, intact.
        batches: calibration data, ``[(inputs,) or (inputs, labels), ...]``.
        test: the same, held out; or None.
        weights: names of the prunable parameters.
        of_channels: those of them that lose channels.
        modules: names of the modules that lose channels.
        keep: names of the modules that keep all their channels.
        samples: of the calibration data.
    """

    model: nn.Module
    batches: Batches
    test: Batches | None
    weights: tuple[str, ...]
    of_channels: tuple[str, ...]
    modules: tuple[str, ...]
    keep: tuple[str, ...]
    samples: int

    @classmethod
    def of(
        cls,
        model: nn.Module,
        data: Any,
        test: Any,
        samples: int | None,
        batch_size: int,
        *,
        forward: Forward,
        include: Sequence[Pattern],
        exclude: Sequence[Pattern],
        keep: Sequence[str] | None,
    ) -> Subject:
        """Read the data and find the layers; see `compare` for the arguments.

        Raises:
            SelectionError: a pattern names nothing, or nothing is left to prune.
            DataError: there are no data.
        """
        own = copy.deepcopy(model)
        device = next((p.device for p in own.parameters()), torch.device("cpu"))
        batches = _read(data, samples, batch_size, device)
        held_out = None if test is None else _read(test, None, batch_size, device)
        weights = [x.name for x in ParameterUnits(own, "weight", include=include, exclude=exclude).layers]
        every = [x.name.rpartition(".")[0] for x in ParameterUnits(own, "weight").layers]
        kept = _last(own, batches[0][0], forward, every) if keep is None else _named(keep, every)
        modules = [n for w in weights if (n := w.rpartition(".")[0]) not in kept]
        return cls(
            own,
            batches,
            held_out,
            tuple(weights),
            tuple(w for w in weights if w.rpartition(".")[0] in modules),
            tuple(dict.fromkeys(modules)),
            tuple(n for n in dict.fromkeys(every) if n not in modules),
            sum(length(batch[0]) for batch in batches),
        )

    def weights_of(self, task: str) -> tuple[str, ...]:
        """Return the names of the parameters that a task prunes."""
        return self.of_channels if task == "channels" else self.weights

    def told(self) -> dict[str, Any]:
        """Return what the settings of a comparison say of it."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return {
            "keep": self.keep,
            "samples": self.samples,
            "measured_on": "calibration data" if self.test is None else "test data",
            "model": f"{type(self.model).__name__} {fingerprint(tensors):08x}",
            "data": _digest(self.batches),
            "test": "" if self.test is None else _digest(self.test),
        }


def _read(data: Any, samples: int | None, batch_size: int, device: torch.device) -> Batches:
    """Return data in batches of at most `batch_size`."""
    result: Batches = []
    for inputs, labels, size in read(data, samples=samples, memory=_MEMORY, device=device):
        whole = (inputs,) if labels is None else (inputs, labels)
        result += [_part(whole, start, start + batch_size, size) for start in range(0, size, batch_size)]
    return result


def _part(batch: tuple[Any, ...], start: int, stop: int, size: int) -> tuple[Any, ...]:
    def cut(x: Any) -> Any:
        return x[start:stop] if isinstance(x, Tensor) and x.dim() and len(x) == size else x

    return tuple(tree_map(cut, part) for part in batch)


def _digest(batches: Batches) -> str:
    tensors = [x for x in tree_flatten(batches)[0] if isinstance(x, Tensor)]
    return f"{sum(length(batch[0]) for batch in batches)} samples {fingerprint(tensors):08x}"


def _last(model: nn.Module, inputs: Any, forward: Forward, names: Sequence[str]) -> list[str]:
    """Return the name of the layer that is called last: it makes the outputs."""
    called: list[str] = []
    handles = [
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
        for name in dict.fromkeys(names)
    ]
    try:
        with torch.no_grad():
            forward(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return called[-1:]


def _named(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    if isinstance(patterns, str):
        raise ArgumentError(f"keep={patterns!r}: expected a list of name patterns, as in [{patterns!r}]")
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise SelectionError(f"keep: {pattern!r} names no layer; there are {', '.join(names)}")
    return [name for name in names if any(fnmatch.fnmatchcase(name, p) for p in patterns)]
