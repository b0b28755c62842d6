"""What is zeroed together inside one weight tensor: weights, N:M groups, blocks, kernels, channels.

Every granularity sees a weight in canonical form ``(out, in, *kernel)``, whatever its layer's own order of
dimensions, and carries any number of leading dimensions through (candidates, samples).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from de_plugin.errors import ArgumentError


@runtime_checkable
class Granularity(Protocol):
    """How a canonical weight tensor falls apart into units."""

    @property
    def name(self) -> str:
        """Short name, as written on the command line."""

    def count(self, shape: torch.Size) -> int:
        """Return the number of units in a canonical weight of this shape."""

    def expand(self, units: Tensor, shape: torch.Size) -> Tensor:
        """Spread one value a unit ``(..., units)`` over its weights ``(..., *shape)``."""

    def reduce(self, values: Tensor, shape: torch.Size) -> Tensor:
        """Sum ``(..., *shape)`` over the weights of each unit: ``(..., units)``."""


def _lead(values: Tensor, shape: torch.Size) -> torch.Size:
    return values.shape[: values.dim() - len(shape)]


@dataclass(frozen=True)
class Weight:
    """Single weights: unstructured sparsity."""

    @property
    def name(self) -> str:
        """Return "weight"."""
        return "weight"

    def count(self, shape: torch.Size) -> int:
        """Return the number of weights."""
        return math.prod(shape)

    def expand(self, units: Tensor, shape: torch.Size) -> Tensor:
        """Reshape: a unit is a weight."""
        return units.reshape(*units.shape[:-1], *shape)

    def reduce(self, values: Tensor, shape: torch.Size) -> Tensor:
        """Flatten: a unit is a weight."""
        return values.reshape(*_lead(values, shape), -1)


@dataclass(frozen=True)
class NM:
    """At most ``n`` survivors in every ``m`` consecutive inputs (2:4 is what sparse tensor cores run).

    Units are single weights, ordered so that a group is ``m`` consecutive units; the selection keeps to
    the limit of ``m - n`` zeros a group.
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        """Refuse patterns that keep nothing or everything."""
        if not 0 < self.n < self.m:
            raise ArgumentError(f"granularity NM(n={self.n}, m={self.m}): expected 0 < n < m, as in NM(2, 4)")

    @property
    def name(self) -> str:
        """Return "n:m"."""
        return f"{self.n}:{self.m}"

    def count(self, shape: torch.Size) -> int:
        """Return the number of weights."""
        return math.prod(shape)

    def fits(self, shape: torch.Size) -> bool:
        """Tell whether the inputs divide into groups of ``m``."""
        return shape[1] % self.m == 0

    def expand(self, units: Tensor, shape: torch.Size) -> Tensor:
        """Put the units, inputs last, back in canonical order."""
        lead = units.shape[:-1]
        moved = units.reshape(*lead, shape[0], *shape[2:], shape[1])
        return moved.movedim(-1, len(lead) + 1)

    def reduce(self, values: Tensor, shape: torch.Size) -> Tensor:
        """Move the inputs last and flatten."""
        lead = _lead(values, shape)
        return values.movedim(len(lead) + 1, -1).reshape(*lead, -1)


@dataclass(frozen=True)
class Block:
    """Tiles of ``rows`` outputs by ``columns`` (inputs x kernel positions); tiles at the rim are smaller."""

    rows: int = 1
    columns: int = 4

    def __post_init__(self) -> None:
        """Refuse empty tiles."""
        if self.rows < 1 or self.columns < 1:
            raise ArgumentError(
                f"granularity Block(rows={self.rows}, columns={self.columns}): both must be >= 1"
            )

    @property
    def name(self) -> str:
        """Return "rowsxcolumns"."""
        return f"{self.rows}x{self.columns}"

    def _tiles(self, shape: torch.Size) -> tuple[int, int, int]:
        width = math.prod(shape[1:])
        return -(-shape[0] // self.rows), -(-width // self.columns), width

    def count(self, shape: torch.Size) -> int:
        """Return the number of tiles."""
        down, across, _ = self._tiles(shape)
        return down * across

    def expand(self, units: Tensor, shape: torch.Size) -> Tensor:
        """Repeat each unit over its tile and cut the rim."""
        down, across, width = self._tiles(shape)
        tiles = units.reshape(*units.shape[:-1], down, across)
        full = tiles.repeat_interleave(self.rows, -2).repeat_interleave(self.columns, -1)
        return full[..., : shape[0], :width].reshape(*units.shape[:-1], *shape)

    def reduce(self, values: Tensor, shape: torch.Size) -> Tensor:
        """Pad the rim with zeros and sum over tiles."""
        down, across, width = self._tiles(shape)
        lead = _lead(values, shape)
        flat = values.reshape(*lead, shape[0], width)
        padded = torch.nn.functional.pad(
            flat, (0, across * self.columns - width, 0, down * self.rows - shape[0])
        )
        tiles = padded.reshape(*lead, down, self.rows, across, self.columns)
        return tiles.sum((-3, -1)).reshape(*lead, -1)


@dataclass(frozen=True)
class Kernel:
    """All positions of one (output, input) pair; in a linear layer that is a single weight."""

    @property
    def name(self) -> str:
        """Return "kernel"."""
        return "kernel"

    def count(self, shape: torch.Size) -> int:
        """Return outputs x inputs."""
        return shape[0] * shape[1]

    def expand(self, units: Tensor, shape: torch.Size) -> Tensor:
        """Repeat each unit over the kernel positions."""
        lead = units.shape[:-1]
        ones = (1,) * (len(shape) - 2)
        return units.reshape(*lead, *shape[:2], *ones).expand(*lead, *shape)

    def reduce(self, values: Tensor, shape: torch.Size) -> Tensor:
        """Sum over the kernel positions."""
        lead = _lead(values, shape)
        return values.reshape(*lead, shape[0] * shape[1], -1).sum(-1)


@dataclass(frozen=True)
class Channel:
    """Output channels, with their bias: what remains can be cut out of the network."""

    @property
    def name(self) -> str:
        """Return "channel"."""
        return "channel"

    def count(self, shape: torch.Size) -> int:
        """Return the number of outputs."""
        return shape[0]

    def expand(self, units: Tensor, shape: torch.Size) -> Tensor:
        """Repeat each unit over its row."""
        lead = units.shape[:-1]
        ones = (1,) * (len(shape) - 1)
        return units.reshape(*lead, shape[0], *ones).expand(*lead, *shape)

    def reduce(self, values: Tensor, shape: torch.Size) -> Tensor:
        """Sum over each row."""
        return values.reshape(*_lead(values, shape), shape[0], -1).sum(-1)


_NAMED: dict[str, Granularity] = {"weight": Weight(), "kernel": Kernel(), "channel": Channel()}


def granularity(spec: str | Granularity) -> Granularity:
    """Return the granularity that a name stands for.

    Args:
        spec: ``"weight"``, ``"kernel"``, ``"channel"``, ``"2:4"`` (survivors:group), ``"4x4"``
            (outputs x inputs), or an object that implements `Granularity`.

    Raises:
        ArgumentError: the name is none of these.

    >>> granularity("2:4")
    NM(n=2, m=4)
    """
    if not isinstance(spec, str):
        if isinstance(spec, Granularity) and not isinstance(spec, type):
            return spec
        raise ArgumentError(f"granularity={spec!r}: expected a name or an object like Weight()")
    if spec in _NAMED:
        return _NAMED[spec]
    if match := re.fullmatch(r"(\d+)([:x])(\d+)", spec):
        first, second = int(match[1]), int(match[3])
        return NM(first, second) if match[2] == ":" else Block(first, second)
    raise ArgumentError(
        f"granularity={spec!r}: expected one of {', '.join(_NAMED)}, 'N:M' as in '2:4', or 'RxC' as in '4x4'"
    )
