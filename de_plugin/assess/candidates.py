"""A population of candidates, held as little as it takes: masks, flips of a parent, or a recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from de_plugin.types import Mask, Masks


@runtime_checkable
class Candidates(Protocol):
    """Sets of units to try, in order."""

    def __len__(self) -> int:
        """Return how many there are."""

    def mask(self, number: int) -> Mask:
        """Return what candidate `number` keeps, ``(units,)``."""

    def size(self, number: int) -> int:
        """Return about how many units candidate `number` may differ in from its parent."""

    def pick(self, some: Sequence[int]) -> Candidates:
        """Return the candidates `some`, in that order."""

    def flips(self, number: int, parent: Mask) -> Tensor:
        """Return the units, ascending, in which candidate `number` differs from `parent`."""


def _differing(kept: Mask, parent: Mask) -> Tensor:
    return (kept != parent).nonzero()[:, 0]


@dataclass(frozen=True)
class Listed:
    """Candidates written out.

    Args:
        masks: ``(candidates, units)``, True = kept.
    """

    masks: Masks

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.masks)

    def mask(self, number: int) -> Mask:
        """Return what candidate `number` keeps."""
        return self.masks[number]

    def size(self, number: int) -> int:
        """Return the number of units: any may differ."""
        return self.masks.shape[1]

    def pick(self, some: Sequence[int]) -> Candidates:
        """Return the candidates `some`."""
        return Listed(self.masks[list(some)])

    def flips(self, number: int, parent: Mask) -> Tensor:
        """Return the units in which candidate `number` differs from `parent`."""
        return _differing(self.mask(number), parent)


@dataclass(frozen=True)
class Flipped:
    """Candidates that differ from one parent in a few units.

    Args:
        parent: ``(units,)``.
        changes: for each candidate the units that are not as in the parent, ascending.
    """

    parent: Mask
    changes: tuple[Tensor, ...]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.changes)

    def mask(self, number: int) -> Mask:
        """Return what candidate `number` keeps."""
        result = self.parent.clone()
        at = self.changes[number]
        result[at] = ~result[at]
        return result

    def size(self, number: int) -> int:
        """Return the number of units that change."""
        return len(self.changes[number])

    def pick(self, some: Sequence[int]) -> Candidates:
        """Return the candidates `some`."""
        return Flipped(self.parent, tuple(self.changes[n] for n in some))

    def flips(self, number: int, parent: Mask) -> Tensor:
        """Return the units in which candidate `number` differs from `parent`."""
        if parent is self.parent or torch.equal(parent, self.parent):
            return self.changes[number]
        return _differing(self.mask(number), parent)


@dataclass(frozen=True)
class Made:
    """Candidates that are made when they are looked at, and not kept: large populations of large models.

    Args:
        make: returns the mask of a number; the same one each time.
        numbers: which ones, in order.
        units: how many there are.
    """

    make: Callable[[int], Mask]
    numbers: tuple[int, ...]
    units: int

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.numbers)

    def mask(self, number: int) -> Mask:
        """Return what candidate `number` keeps."""
        return self.make(self.numbers[number])

    def size(self, number: int) -> int:
        """Return the number of units: any may differ."""
        return self.units

    def pick(self, some: Sequence[int]) -> Candidates:
        """Return the candidates `some`."""
        return Made(self.make, tuple(self.numbers[n] for n in some), self.units)

    def flips(self, number: int, parent: Mask) -> Tensor:
        """Return the units in which candidate `number` differs from `parent`."""
        return _differing(self.mask(number), parent)


def candidates(given: Masks | Candidates) -> Candidates:
    """Return `given` as candidates."""
    return Listed(given) if isinstance(given, Tensor) else given
