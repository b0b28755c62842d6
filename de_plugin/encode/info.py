"""What a compressed network is made of: layers, levels, sparsity, and where the bytes went."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from de_plugin.encode.container import Parts
from de_plugin.encode.entry import Entry

_COUNTED = 2**16  # a wider range of symbols is sorted instead of counted
_CHUNK = 2**22  # symbols counted at a time


@dataclass(frozen=True)
class Layer:
    """One entry.

    Attributes:
        name: its key in the state dict.
        shape: its shape.
        dtype: its type, as torch names it.
        kind: "quantized", "exact", or "tied": the memory of an earlier entry.
        nonzero: how many values are not zero.
        levels: how many symbols are in use, zero among them; None where it is not quantized.
        bytes: of its stream in the file; 0 where it is tied.
        dense_bytes: as a tensor, floating point in 32 bits; 0 where it is tied.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    nonzero: int
    levels: int | None
    bytes: int
    dense_bytes: int

    @property
    def elements(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    @property
    def sparsity(self) -> float:
        """The share of zeros, from 0 to 1; 0 where it is empty."""
        return 1 - self.nonzero / self.elements if self.elements else 0.0

    @property
    def bits(self) -> float | None:
        """The logarithm of the levels to base 2; None where it is not quantized."""
        return math.log2(max(self.levels, 1)) if self.levels is not None else None

    @property
    def ratio(self) -> float:
        """How many times smaller its stream is than the tensor; infinite where it has no bytes."""
        return self.dense_bytes / self.bytes if self.bytes else math.inf

    def tied(self, name: str) -> Layer:
        """Return the layer of this name that shares this one's memory."""
        return replace(self, name=name, kind="tied", bytes=0, dense_bytes=0)


@dataclass(frozen=True)
class Info:
    """A file: its layers, and where its bytes went.

    Attributes:
        layers: in the state dict's order.
        metadata: the user's.
        file_bytes: the length of the file.
        parts: where its bytes went that are no layer's stream.

    ``str()`` makes a table of it.
    """

    layers: tuple[Layer, ...]
    metadata: Mapping[str, str]
    file_bytes: int
    parts: Parts

    @property
    def dense_bytes(self) -> int:
        """Bytes of all tensors, floating point in 32 bits, tied ones once."""
        return sum(layer.dense_bytes for layer in self.layers)

    @property
    def overhead(self) -> int:
        """Bytes of the file that are no layer's stream."""
        return self.parts.frame + self.parts.manifest + self.parts.checks

    @property
    def ratio(self) -> float:
        """How many times smaller the file is than the tensors."""
        return self.dense_bytes / self.file_bytes

    @property
    def sparsity(self) -> float:
        """The share of zeros among the values of quantized layers, from 0 to 1."""
        quantized = [layer for layer in self.layers if layer.kind == "quantized"]
        elements = sum(layer.elements for layer in quantized)
        return 1 - sum(layer.nonzero for layer in quantized) / elements if elements else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        layers = [
            {**asdict(x), "sparsity": x.sparsity, "bits": x.bits, "ratio": x.ratio if x.bytes else None}
            for x in self.layers
        ]
        return {
            "bytes": self.file_bytes,
            "dense_bytes": self.dense_bytes,
            "ratio": self.ratio,
            "overhead": self.overhead,
            "metadata": dict(self.metadata),
            "layers": layers,
        }

    def __str__(self) -> str:
        """Return a table: a line a layer, then the totals."""
        rows = [("name", "shape", "type", "kind", "sparsity", "levels", "bits", "bytes", "ratio")]
        rows += [
            (
                layer.name,
                "x".join(map(str, layer.shape)) or "scalar",
                layer.dtype,
                layer.kind,
                f"{layer.sparsity:.2%}",
                "" if layer.levels is None else str(layer.levels),
                "" if layer.bits is None else f"{layer.bits:.1f}",
                f"{layer.bytes:,}",
                f"{layer.ratio:,.1f}x" if layer.bytes else "",
            )
            for layer in self.layers
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if place < 4 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        lines.append(
            f"{self.file_bytes:,} bytes, {self.ratio:,.1f}x smaller than {self.dense_bytes:,}; "
            f"{self.overhead:,} of them describe the rest (safetensors {self.parts.frame:,}, manifest and "
            f"levels {self.parts.manifest:,}, checksums {self.parts.checks:,})"
        )
        return "\n".join(lines)


def describe(entry: Entry, held: Tensor) -> Layer:
    """Return what is told of an entry that is not tied.

    Args:
        entry: its description in the manifest.
        held: its int32 symbols where it is quantized, else its tensor.
    """
    quantized = entry.table is not None
    width = 4 if entry.dtype.is_floating_point else 8 if entry.dtype.is_complex else entry.dtype.itemsize
    return Layer(
        name=entry.name,
        shape=entry.shape,
        dtype=str(entry.dtype).removeprefix("torch."),
        kind="quantized" if quantized else "exact",
        nonzero=_nonzero(held),
        levels=_levels(held) if quantized else None,
        bytes=entry.length,
        dense_bytes=entry.elements * width,
    )


def _nonzero(held: Tensor) -> int:
    """Count what is not zero; NaN is not."""
    if held.dtype.is_floating_point and held.dtype.itemsize == 1:
        held = held.float()  # these have no comparison
    return int((held != 0).sum())


def _levels(symbols: Tensor) -> int:
    """Count the different symbols."""
    if not symbols.numel():
        return 0
    low, high = int(symbols.min()), int(symbols.max())
    if high - low >= _COUNTED:
        return len(symbols.unique())
    counts = torch.zeros(high - low + 1, dtype=torch.int64)
    for chunk in symbols.reshape(-1).split(_CHUNK):
        counts += torch.bincount(chunk.long() - low, minlength=high - low + 1)
    return int((counts > 0).sum())
