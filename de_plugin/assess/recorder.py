"""Making a record of the student's run, and checking what the record allows to be overwritten."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from de_plugin.assess.attention import plain_attention
from de_plugin.assess.record import (
    Record,
    Step,
    Watching,
    channels_last,
    copied,
    flexible,
    is_product,
    normalised,
    tensors,
    version,
)
from de_plugin.assess.repair import Statistics

_FRESH = {"linear", *(f"conv{d}d" for d in (1, 2, 3))}
"""Functions whose result never shares memory with their arguments, as a batch norm's doesn't."""
_SHAPES = {"dim", "size", "numel", "nelement", "ndimension", "is_floating_point", "is_complex", "__len__"}
"""Functions that don't read the values of a tensor."""
_IN_PLACE: dict[Any, tuple[Callable[..., Tensor], int]] = {
    torch.relu: (torch.relu_, 1),
    Tensor.relu: (torch.relu_, 1),
    F.relu: (torch.relu_, 1),
    F.leaky_relu: (F.leaky_relu_, 2),
}
"""What overwrites its argument, and how many arguments it takes: new memory takes longer than computing."""


def overwriting(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Return the call that gives the same and overwrites its argument, where there is one."""
    if func not in _IN_PLACE:
        return func, args, dict(kwargs)
    overwrite, most = _IN_PLACE[func]
    return overwrite, args[:most], {k: v for k, v in kwargs.items() if k != "inplace"}


class Recorder(Watching):
    """Fills a record.

    Args:
        layers: the layer of each prunable parameter, by ``id``.
        record: what is filled.
        copy: keep copies, and of products with prunable weights alone: for models that work in place.
        statistics: as in `Watching`.
    """

    def __init__(
        self,
        layers: Mapping[int, int],
        record: Record,
        copy: bool,
        statistics: Mapping[int, Statistics] | None = None,
    ) -> None:
        super().__init__(layers, statistics)
        self._record = record
        self._copy = copy
        self._made: list[list[Tensor]] = []
        self._fresh: dict[int, int] = {}
        self._readers: defaultdict[int, list[int]] = defaultdict(list)

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make the call and note what it gave."""
        used = self.used(args, kwargs)
        steps, first = self._record.steps, self._record.first
        for x in used:
            first.setdefault(self._layers[id(x)], len(steps))
        name = getattr(func, "__name__", "")
        if name not in _SHAPES:
            for place in map(_place, tensors(args, kwargs)):
                self._readers[place].append(len(steps))
        target = args[0] if args and isinstance(args[0], Tensor) and len(tensors(args, kwargs)) > 1 else None
        before = 0 if target is None else version(target)
        result = channels_last(func, flexible(func, args, kwargs)(*args, **kwargs))
        if target is not None and version(target) != before:
            self._fill(target)
        found = tensors(result)
        self._made.append(found)
        if name in _FRESH or getattr(func, "func", None) is normalised:
            self._fresh.update((_place(x), len(steps)) for x in found)
        numel = sum(x.numel() for x in found)
        work = float(sum(x.numel() / max(1, x.shape[0]) for x in used) * numel)
        kept = result if found else None
        if self._copy:
            kept = copied(result) if used and is_product(func) else None
        steps.append(Step(kept, tuple(version(x) for x in tensors(kept)), work, numel))
        return result

    def _fill(self, target: Tensor) -> None:
        """Note for the steps that gave a tensor, or what it is a view of, that the present one fills it."""
        place = _place(target)
        for step, made in zip(self._record.steps, self._made, strict=True):
            if any(_place(x) == place for x in made):
                step.filled = len(self._made)

    def close(self) -> None:
        """Note which steps are the only readers of what others have made for them."""
        returned = {_place(x) for x in tree_leaves(self._record.outputs) if isinstance(x, Tensor)}
        for place, maker in self._fresh.items():
            readers = self._readers[place]
            if len(readers) == 1 and place not in returned:
                self._record.steps[readers[0]].spends = maker


def _place(x: Tensor) -> int:
    """Return where a tensor's memory begins: views of one another share it."""
    return x.untyped_storage().data_ptr() if x.layout == torch.strided else id(x)


def record(
    run: Callable[[], Any],
    layers: Mapping[int, int],
    copy: bool,
    statistics: Mapping[int, Statistics] | None = None,
) -> Record:
    """Run the student once and return what it did."""
    found = Record()
    recorder = Recorder(layers, found, copy, statistics)
    with torch.no_grad(), plain_attention(), recorder:
        found.outputs = run()
    if not copy:
        recorder.close()
    return found


class _Replay(Watching):
    """Runs the student as `Recorder` does, and overwrites what its record allows."""

    def __init__(
        self, layers: Mapping[int, int], steps: list[Step], statistics: Mapping[int, Statistics] | None
    ) -> None:
        super().__init__(layers, statistics)
        self._steps = iter(steps)

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make the call."""
        step = next(self._steps, None)
        if step is not None and step.spends >= 0:
            func, args, kwargs = overwriting(func, args, kwargs)
        return channels_last(func, flexible(func, args, kwargs)(*args, **kwargs))


def may_overwrite(
    run: Callable[[], Any],
    layers: Mapping[int, int],
    found: Record,
    statistics: Mapping[int, Statistics] | None = None,
) -> bool:
    """Tell whether the student gives the same when all is overwritten that its record allows.

    What reads a tensor unseen (compiled functions do) shows here.
    """
    with torch.no_grad(), plain_attention(), _Replay(layers, found.steps, statistics):
        outputs = run()
    pairs = zip(tree_leaves(outputs), tree_leaves(found.outputs), strict=True)
    return all(
        torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
        for a, b in pairs
        if isinstance(a, Tensor) and isinstance(b, Tensor)
    )
