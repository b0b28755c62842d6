"""A tensor as symbols of a codebook: what quantizing makes, and what encoding writes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from de_plugin.errors import ArgumentError


@dataclass(frozen=True)
class Quantized:
    """A tensor whose values are levels.

    Attributes:
        symbols: int32, of the tensor's shape; 0 stands for exactly zero.
        levels: float32 ``(groups, count)``, the value of symbol ``lowest + n`` in column n.
        lowest: the symbol of the first column, from ``1 - count`` to 0.
        axis: the dimension whose slices have a group of levels each; None: one group for all.

    Raises:
        ArgumentError: the parts don't fit together, or symbol 0 has a level other than zero.

    >>> levels = torch.tensor([[-0.5, 0.0, 0.25]])
    >>> Quantized(torch.tensor([0, 1, -1], dtype=torch.int32), levels, -1).dequantize()
    tensor([ 0.0000,  0.2500, -0.5000])
    """

    symbols: Tensor
    levels: Tensor
    lowest: int
    axis: int | None = None

    def __post_init__(self) -> None:
        """Refuse what could not be decoded."""
        symbols, levels = self.symbols, self.levels
        if symbols.dtype != torch.int32 or levels.dtype != torch.float32 or levels.dim() != 2:
            raise ArgumentError(
                f"symbols {symbols.dtype}, levels {levels.dtype} {tuple(levels.shape)}: expected int32 and "
                "float32 (groups, count)"
            )
        groups, count = levels.shape
        if self.axis is not None and not 0 <= self.axis < symbols.dim():
            raise ArgumentError(f"axis={self.axis}: the tensor has {symbols.dim()} dimensions")
        expected = 1 if self.axis is None else symbols.shape[self.axis]
        if groups != expected or not 0 <= -self.lowest < count:
            raise ArgumentError(
                f"levels {tuple(levels.shape)}, lowest={self.lowest}: expected {expected} group(s) that hold "
                "symbol 0"
            )
        if not bool(torch.isfinite(levels).all()) or bool((levels[:, -self.lowest] != 0).any()):
            raise ArgumentError("levels: expected finite values, and exactly zero for symbol 0")
        if symbols.numel():
            low, high = int(symbols.min()), int(symbols.max())
            if low < self.lowest or high >= self.lowest + count:
                raise ArgumentError(
                    f"symbols: {low} to {high}, expected {self.lowest} to {self.lowest + count - 1}"
                )

    def dequantize(self) -> Tensor:
        """Return the values, float32."""
        columns = self.symbols.long() - self.lowest
        if self.axis is None:
            return self.levels[0][columns]
        shape = [1] * self.symbols.dim()
        shape[self.axis] = -1
        rows = torch.arange(len(self.levels)).reshape(shape)
        return self.levels[rows, columns]
