"""What quantizing did: levels, bits a layer, and the curve of bytes and divergence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from de_plugin.encode.quantized import Quantized
from de_plugin.quantize.cost import counted


@dataclass(frozen=True)
class LayerBits:
    """One quantized tensor.

    Attributes:
        name: of the parameter.
        weights: its elements.
        survivors: those that are not zero in the end.
        zeroed: survivors before, that became zero.
        levels: values in use, zero among them.
        bytes: of its symbols and levels.
    """

    name: str
    weights: int
    survivors: int
    zeroed: int
    levels: int
    bytes: int

    @property
    def bits(self) -> float:
        """Bits a survivor, its place included; 0 where none is left."""
        return 8 * self.bytes / self.survivors if self.survivors else 0.0

    @classmethod
    def of(cls, name: str, quantized: Quantized, before: int) -> LayerBits:
        """Describe a tensor that had `before` survivors."""
        left = int((quantized.symbols != 0).sum())
        used = len(torch.unique(quantized.symbols)) if quantized.symbols.numel() else 0
        total = quantized.symbols.numel()
        return cls(name, total, left, before - left, used, counted(quantized))


@dataclass(frozen=True)
class Point:
    """One point of the rate-distortion curve.

    Attributes:
        name: how its levels came about.
        bytes: of the file; estimated, or counted up to a few bytes.
        divergence: on held-back data.
    """

    name: str
    bytes: float
    divergence: float


@dataclass(frozen=True)
class QuantizationReport:
    """The result of `quantize`.

    Attributes:
        quantization: quantized tensors by parameter name.
        state: the whole state dict with them in their places, for `de_plugin.encode.save`.
        dtypes: the quantized tensors' types where not float32; goes to `save` as well.
        layers: one entry a quantized tensor.
        goal: what was to be reached.
        winner: which alternative won on the held-back data.
        bytes: of the whole file.
        original_bytes: of the unquantized parameters and buffers.
        divergence: from the teacher, on held-back calibration data.
        start: the divergence before quantizing, on the same data.
        loss: of the user's metric, where there is one.
        curve: every alternative that met the held-back data, in order.
        evaluations: divergences measured.
        seconds: wall-clock time.
        advice: what to try next, in words.
    """

    quantization: Mapping[str, Quantized]
    state: Mapping[str, Tensor | Quantized] = field(repr=False)
    dtypes: Mapping[str, torch.dtype]
    layers: tuple[LayerBits, ...]
    goal: str
    winner: str
    bytes: int
    original_bytes: int
    divergence: float
    start: float
    loss: float | None
    curve: tuple[Point, ...]
    evaluations: int
    seconds: float
    advice: str

    @property
    def ratio(self) -> float:
        """How many times smaller the file is."""
        return self.original_bytes / self.bytes

    def to_dict(self) -> dict[str, Any]:
        """Return everything but tensors as plain data for JSON; None stands for infinite values."""
        left_out = ("quantization", "state", "dtypes", "layers", "curve")
        plain = {k: v for k, v in self.__dict__.items() if k not in left_out}
        layers = [{**asdict(x), "bits": x.bits} for x in self.layers]
        curve = [{k: _finite(v) for k, v in asdict(x).items()} for x in self.curve]
        return {
            **{k: _finite(v) for k, v in plain.items()},
            "ratio": self.ratio,
            "layers": layers,
            "curve": curve,
        }

    def __str__(self) -> str:
        """Return a table of the layers and a line of totals."""
        width = max((len(x.name) for x in self.layers), default=0)
        rows = [
            f"{x.name:<{width}}  {x.weights:>10,} weights  {x.survivors:>9,} left  {x.levels:>4} levels  "
            f"{x.bits:6.2f} bits each  {x.bytes:>9,} bytes"
            for x in self.layers
        ]
        total = (
            f"{self.goal}: {self.bytes:,} bytes, {self.ratio:.1f}x smaller, divergence {self.divergence:.4g} "
            f"(before {self.start:.4g}), {self.evaluations:,} evaluations in {self.seconds:.1f} s "
            f"({self.winner})"
        )
        return "\n".join([*rows, total, *([self.advice] if self.advice else [])])


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
