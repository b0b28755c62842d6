"""Small facts about single weights and their levels."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from de_plugin.encode.quantized import Quantized
from de_plugin.quantize.student import Part


def squared_error(part: Part, quantized: Quantized) -> float:
    """Return the squared error of a weight's levels."""
    return float((quantized.dequantize().double() - part.weight.double()).square().sum())


def weighed(part: Part, costs: Tensor) -> Part:
    """Return a part whose errors have costs."""
    alive = bool(part.kept.any())
    return replace(part, importance=costs, sensitivity=float(costs[part.kept].mean()) if alive else 1.0)


def layer_of(parameter: str) -> str:
    """Return the name of the layer that owns a parameter."""
    return parameter.rpartition(".")[0]
