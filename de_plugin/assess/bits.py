"""Zeroing by bits: exact for every number, NaN and infinity too, and as fast as memory is."""

from __future__ import annotations

import torch
from torch import Tensor

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_BLOCK = 1 << 20
"""Numbers that are zeroed at a time: the mask takes as much memory as they do."""


def _as_integers(x: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bits of `x`, and ones in all bits of what is kept."""
    kind = _INTEGERS[x.element_size()]
    return x.view(kind), kept.to(kind).neg_()


def zeroed(x: Tensor, kept: Tensor) -> Tensor:
    """Return `x` where the bool tensor `kept` is true, else 0, broadcast."""
    if kept.numel() > _BLOCK and x.dim() == kept.dim() - 1:  # large weights: no mask as large as they are
        result = x.expand(kept.shape).clone(memory_format=torch.contiguous_format)
        zero_(result, kept)
        return result
    bits, mask = _as_integers(x, kept)
    return (bits & mask).view(x.dtype)


def zero_(x: Tensor, kept: Tensor) -> None:
    """Set `x` to 0 in place where `kept`, of the same shape, is false."""
    if not (x.is_contiguous() and kept.is_contiguous()):
        bits, mask = _as_integers(x, kept)
        bits &= mask
        return
    for part, mask in zip(x.view(-1).split(_BLOCK), kept.view(-1).split(_BLOCK), strict=True):
        bits, mask = _as_integers(part, mask)
        bits &= mask
