"""The teacher's answers: computed once, batch by batch, before anything changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from de_plugin.assess.batches import Batch, Spill, read
from de_plugin.assess.divergence import Divergence, leaves
from de_plugin.assess.layout import channels_last, takes_channels_last
from de_plugin.errors import ArgumentError, DataError, DEError, OutputError
from de_plugin.types import PyTree

Forward = Callable[[nn.Module, Any], Any]


def plain_forward(model: nn.Module, inputs: PyTree) -> PyTree:
    """Call the model: a dict as keywords, a tuple or list as positions, anything else as it is."""
    if isinstance(inputs, dict):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


@dataclass(frozen=True)
class Autocast:
    """A forward that computes in half precision where torch holds that to be safe.

    For devices whose half-precision arithmetic is faster; outputs come back in single precision.

    Args:
        dtype: `torch.bfloat16` or `torch.float16`.
        forward: how the model is called.

    Raises:
        ArgumentError: `dtype` is another one.

    >>> import de_plugin
    >>> model = torch.nn.Linear(8, 4).eval()
    >>> report = de_plugin.prune(model, torch.randn(64, 8), 0.5, forward=de_plugin.Autocast())
    """

    dtype: torch.dtype = torch.bfloat16
    forward: Forward = plain_forward

    def __post_init__(self) -> None:
        """Refuse other precisions."""
        if self.dtype not in (torch.bfloat16, torch.float16):
            raise ArgumentError(f"dtype={self.dtype}: expected torch.bfloat16 or torch.float16")

    def __call__(self, model: nn.Module, inputs: PyTree) -> PyTree:
        """Call the model."""
        device = next(model.parameters()).device.type
        with torch.autocast(device, self.dtype, cache_enabled=False):
            outputs = self.forward(model, inputs)
        return tree_map(_single, outputs)


def _single(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.is_floating_point() else x


def ask(
    forward: Forward,
    model: nn.Module,
    student: nn.Module,
    batches: Any,
    samples: int | None,
    batch_size: int,
    memory: int,
    spill: Spill,
    device: torch.device,
) -> list[Batch]:
    """Read the calibration data and let the teacher answer it.

    Images lie in memory as `takes_channels_last` says of teacher and student.

    Args:
        forward: calls the model.
        model: the teacher.
        student: gets the same inputs; may be the teacher itself.
        batches: see `de_plugin.assess.batches.read`.
        samples: read at most this many; None reads all.
        batch_size: samples in a forward pass.
        memory: bytes for the inputs.
        spill: holds the outputs.
        device: where the inputs go.

    Raises:
        DataError: there are no samples, or the model can't take them.
        OutputError: the outputs hold no floating-point tensor, or NaN or infinite values.
    """
    result: list[Batch] = []
    laid = False
    for inputs, labels, size in read(batches, samples=samples, memory=memory, device=device):
        for whole, targets, count in _chunks((inputs, labels), size, batch_size):
            if not result:
                call = partial(_answer, forward)
                laid = all(takes_channels_last(call, m, whole) for m in dict.fromkeys((model, student)))
            part = channels_last(whole) if laid and isinstance(whole, Tensor) and whole.dim() == 4 else whole
            outputs = _answer(forward, model, part)
            _check_outputs(outputs)
            kept = tree_map(lambda x: spill.keep(x.detach()) if isinstance(x, Tensor) else x, outputs)
            result.append(Batch(part, targets, kept, count))
    return result


def _answer(forward: Forward, model: nn.Module, inputs: PyTree) -> PyTree:
    try:
        with torch.no_grad():
            return forward(model, inputs)
    except DEError:
        raise
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(
            f"batches: {type(model).__name__} cannot take the inputs {_shapes(inputs)} ({reason}); give what "
            "the model is called with, or forward=fn(model, inputs)"
        ) from error


def _shapes(inputs: PyTree) -> str:
    return str(tree_map(lambda x: f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else x, inputs))


def _check_outputs(outputs: PyTree) -> None:
    tensors = leaves(outputs)
    if not tensors:
        raise OutputError(
            f"model: its output is a {type(outputs).__name__} without floating-point tensors; "
            "give forward=fn(model, inputs) that returns what is to be compared"
        )
    for x in tensors:
        if not bool(torch.isfinite(x).all()):
            raise OutputError(
                "model: the teacher's outputs hold NaN or infinite values; check the weights, the "
                "inputs' normalisation and the precision"
            )


def check_zero(divergence: Divergence, batch: Batch) -> None:
    """Refuse a measure that isn't zero between the teacher and itself.

    Raises:
        OutputError: it is not.
    """
    value = float(divergence(batch.teacher, batch.teacher, batch.labels))
    if not abs(value) <= 1e-4:
        raise OutputError(
            f"divergence={divergence.name!r}: the teacher's divergence from itself is {value}, "
            "expected 0; where a larger value is better wrap the function: Score(fn, against='teacher')"
        )


def _chunks(pair: tuple[PyTree, Any], size: int, batch_size: int) -> list[tuple[PyTree, Any, int]]:
    """Cut ``(inputs, labels)`` along the samples where every tensor allows it."""
    tensors: list[Tensor] = []
    tree_map(lambda x: tensors.append(x) if isinstance(x, Tensor) else None, pair)
    if size <= batch_size or any(x.dim() == 0 or x.shape[0] != size for x in tensors):
        return [(*pair, size)]
    result = []
    for start in range(0, size, batch_size):
        stop = min(size, start + batch_size)
        inputs, labels = tree_map(lambda x, a=start, b=stop: x[a:b] if isinstance(x, Tensor) else x, pair)
        result.append((inputs, labels, stop - start))
    return result
