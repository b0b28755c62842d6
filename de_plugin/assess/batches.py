"""Calibration data: whatever the user has, read once, held as samples that can be drawn by index."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from de_plugin.assess.layout import cat, is_channels_last, selected
from de_plugin.errors import ArgumentError, DataError
from de_plugin.types import PyTree

LABEL_KEYS = ("labels", "label")
"""Keys of a dict batch that hold labels and are not passed to the model."""

_DIGESTED = 64 << 20
"""Bytes of each input tensor that tell one data set from another."""


@dataclass(frozen=True)
class Batch:
    """Inputs of one forward pass, with labels where there are any and the teacher's outputs."""

    inputs: PyTree
    labels: Any
    teacher: PyTree
    size: int


def _tensors(tree: PyTree) -> list[Tensor]:
    return [x for x in tree_flatten(tree)[0] if isinstance(x, Tensor)]


def _split(item: Any, where: str) -> tuple[PyTree, Any]:
    """Tell inputs from labels: ``x``, ``(x,)``, ``(x, labels)``, or a dict with a "labels" key."""
    if isinstance(item, Mapping):
        labels = next((item[k] for k in LABEL_KEYS if k in item), None)
        return {k: v for k, v in item.items() if k not in LABEL_KEYS}, labels
    if isinstance(item, tuple | list):
        if len(item) not in (1, 2):
            raise DataError(
                f"batches: {where} is a {type(item).__name__} of {len(item)} items; expected "
                "(inputs,) or (inputs, labels). For a model with several inputs give "
                "((first, second), labels) or a dict"
            )
        return item[0], (item[1] if len(item) == 2 else None)
    return item, None


def _size(inputs: PyTree, where: str) -> int:
    tensors = _tensors(inputs)
    if not tensors:
        raise DataError(f"batches: {where} holds no tensor; expected tensors, tuples or dicts of them")
    return int(tensors[0].shape[0]) if tensors[0].dim() else 1


def _whole(batches: Any) -> Any | None:
    """Return the batch when `batches` is a single one, None when it is to be iterated."""
    if isinstance(batches, Tensor | Mapping):
        return batches
    if isinstance(batches, tuple) and 1 <= len(batches) <= 2:
        first = batches[0]
        second = batches[1] if len(batches) == 2 else None
        labels = second is None or not isinstance(second, tuple | list | Mapping)
        if isinstance(first, Tensor | Mapping) and labels:
            same = second is None or not isinstance(second, Tensor) or _like_labels(first, second)
            return batches if same else None
        if isinstance(first, tuple | list) and isinstance(second, Tensor):
            return batches
    return None


def _like_labels(first: Any, second: Tensor) -> bool:
    tensors = _tensors(first)
    return (
        bool(tensors)
        and second.dim() > 0
        and tensors[0].shape[:1] == second.shape[:1]
        and (tensors[0].shape != second.shape or not second.is_floating_point())
    )


def read(
    batches: Any, *, samples: int | None, memory: int, device: torch.device
) -> list[tuple[PyTree, Any, int]]:
    """Read calibration data once.

    Args:
        batches: a tensor or dict ``(samples, ...)``, a tuple ``(inputs, labels)``, or an iterable of
            any of these (a DataLoader, a list, a generator).
        samples: stop after as many samples; None reads everything.
        memory: bytes that the inputs may take.
        device: where the model is.

    Returns:
        One ``(inputs, labels, size)`` a batch.

    Raises:
        DataError: nothing can be read, a batch is empty, or the data outgrow `memory`.
        ArgumentError: `samples` is not positive.
    """
    if samples is not None and samples < 1:
        raise ArgumentError(f"samples={samples}: expected a positive number, or None for all")
    single = _whole(batches)
    if single is None and not isinstance(batches, Iterable):
        raise DataError(
            f"batches: got {type(batches).__name__}; expected a tensor, a dict, (inputs, labels) or "
            "an iterable of these"
        )
    source: Iterator[Any] = iter([single] if single is not None else batches)
    found: list[tuple[PyTree, Any, int]] = []
    held = total = 0
    for number in itertools.count():
        if samples is not None and total >= samples:
            break
        try:
            item = next(source)
        except StopIteration:
            break
        where = f"batch {number}"
        inputs, labels = _split(item, where)
        size = _size(inputs, where)
        if size == 0:
            raise DataError(f"batches: {where} is empty; every batch needs at least one sample")
        if samples is not None and total + size > samples:
            cut = samples - total
            inputs, labels = _head(inputs, size, cut), _head(labels, size, cut)
            size = cut
        inputs, labels = _to(inputs, device), _to(labels, device)
        _check_finite(inputs, where)
        held += sum(x.numel() * x.element_size() for x in _tensors(inputs))
        if held > memory:
            raise DataError(
                f"batches: {total + size} samples take {held >> 20} MiB, more than "
                f"memory={memory >> 20} MiB; give samples=N to stop earlier or raise memory"
            )
        found.append((inputs, labels, size))
        total += size
    if not found:
        raise DataError(
            "batches: nothing to read (an empty list, or a generator already used up); DE needs at "
            "least one batch of calibration data"
        )
    return found


def _head(tree: PyTree, size: int, cut: int) -> PyTree:
    return tree_map(
        lambda x: x[:cut] if isinstance(x, Tensor) and x.dim() and x.shape[0] == size else x, tree
    )


def _to(tree: PyTree, device: torch.device) -> PyTree:
    return tree_map(lambda x: x.detach().to(device) if isinstance(x, Tensor) else x, tree)


def _check_finite(inputs: PyTree, where: str) -> None:
    for x in _tensors(inputs):
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise DataError(f"batches: {where} holds NaN or infinite inputs; clean the data first")


def _stackable(trees: list[PyTree], sizes: list[int]) -> bool:
    """Tell whether the trees are one tree cut along the first dimension of every tensor."""
    first, spec = tree_flatten(trees[0])
    for tree, size in zip(trees, sizes, strict=True):
        flat, other = tree_flatten(tree)
        if other != spec:
            return False
        for x, y in zip(first, flat, strict=True):
            if not isinstance(y, Tensor):
                if y is not None:
                    return False
            elif (
                not isinstance(x, Tensor)
                or y.dim() == 0
                or y.shape[0] != size
                or y.shape[1:] != x.shape[1:]
                or y.dtype != x.dtype
            ):
                return False
    return True


class Pool:
    """Samples with their teacher outputs, drawn by index.

    Where every tensor's first dimension is the sample, an index is a sample; otherwise (images of
    several sizes, recurrent states) an index is a batch as the user gave it.
    """

    def __init__(self, batches: list[Batch], batch_size: int, spill: Spill) -> None:
        sizes = [b.size for b in batches]
        trees = [(b.inputs, b.labels, b.teacher) for b in batches]
        self.batch_size = batch_size
        self._spill = spill
        self.stacked: PyTree | None = None
        self._batches = batches
        self.count = len(batches)
        if _stackable(trees, sizes):
            self.count = sum(sizes)
            self._batches = []
            spec = tree_flatten(trees[0])[1]
            columns = list(zip(*(tree_flatten(t)[0] for t in trees), strict=True))
            own = len(tree_flatten(trees[0][:2])[0])
            self.stacked = tree_unflatten(
                [
                    c[0] if c[0] is None or len(c) == 1 else cat(c) if n < own else spill.cat(list(c))
                    for n, c in enumerate(columns)
                ],
                spec,
            )
        self.samples = sum(sizes)

    def size(self, item: int) -> int:
        """Return how many samples an item of the pool holds."""
        return 1 if self.stacked is not None else self._batches[item].size

    @property
    def digest(self) -> int:
        """A number that tells data sets apart: inputs, labels, teacher outputs, by their first bytes."""
        own = [(b.inputs, b.labels, b.teacher) for b in self._batches]
        trees = own if self.stacked is None else [self.stacked]
        result = self.samples
        for x in _tensors(trees):
            each = x[:1].numel() * x.element_size() if x.dim() else x.element_size()
            some = (
                x[: -(-_DIGESTED // max(1, each))] if x.dim() else x
            )  # a whole copy of it would take memory
            head = some.reshape(-1)[: _DIGESTED // x.element_size()].cpu().contiguous()
            result = zlib.crc32(head.view(torch.uint8).numpy().data, result)
        return result

    @property
    def has_labels(self) -> bool:
        """Whether every sample has a label."""
        if self.stacked is not None:
            return self.stacked[1] is not None
        return all(b.labels is not None for b in self._batches)

    def take(self, index: Tensor, batch_size: int | None = None) -> list[Batch]:
        """Return the batches that hold the items `index` (int64, 1-D), in its order."""
        if self.stacked is None:
            return [self._batches[int(i)] for i in index]
        result = []
        for part in index.split(batch_size or self.batch_size):
            inputs, labels, teacher = tree_map(partial(_picked, index=part), self.stacked)
            result.append(Batch(inputs, labels, teacher, len(part)))
        return result


def _picked(x: Tensor | None, index: Tensor) -> Tensor | None:
    if x is None:
        return None
    at = index.to(x.device)
    return selected(x, at) if is_channels_last(x) else x.index_select(0, at)


class Spill:
    """Keeps tensors in memory up to a bound and in a temporary mapped file beyond it."""

    def __init__(self, memory: int) -> None:
        self.left = memory
        self._folder: Path | None = None
        self._counted: set[int] = set()  # addresses of what takes room in memory

    def _empty(self, shape: torch.Size, like: Tensor) -> Tensor:
        needed = like.element_size() * shape.numel()
        if needed <= self.left or like.device.type != "cpu":
            self.left -= needed
            return torch.empty(shape, dtype=like.dtype, device=like.device)
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="de_plugin-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = self._folder / f"{len(list(self._folder.iterdir()))}.bin"
        mapped = torch.from_file(str(path), shared=True, size=shape.numel(), dtype=like.dtype)
        return mapped.reshape(shape)

    def keep(self, tensor: Tensor) -> Tensor:
        """Return `tensor` itself while there is room, else a mapped copy."""
        needed = tensor.numel() * tensor.element_size()
        if needed <= self.left or tensor.device.type != "cpu" or tensor.numel() == 0:
            self.left -= needed
            self._counted.add(tensor.data_ptr())
            return tensor
        return self._empty(tensor.shape, tensor).copy_(tensor)

    def cat(self, parts: list[Tensor]) -> Tensor:
        """Concatenate along the first dimension and take the parts' room back."""
        shape = torch.Size((sum(p.shape[0] for p in parts), *parts[0].shape[1:]))
        self.left += sum(p.numel() * p.element_size() for p in parts if p.data_ptr() in self._counted)
        out = self._empty(shape, parts[0])
        at = 0
        for part in parts:
            out[at : at + part.shape[0]].copy_(part)
            at += part.shape[0]
        return out
