"""How many bytes a quantized tensor takes: estimated in a moment, or counted."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from de_plugin.encode.quantized import Quantized
from de_plugin.encode.save import coded
from de_plugin.encode.tables import pack

K = TypeVar("K")
T = TypeVar("T")

_ADAPTING = 0.5
"""Symbols' worth of doubt with which an adaptive coder meets each value (Krichevsky and Trofimov 1981)."""


@dataclass(frozen=True)
class Estimate:
    """The bytes that independent symbols and short levels take, places and values coded apart, adaptively.

    Attributes:
        places: which symbols are not zero.
        values: what those are.
        table: the levels.
    """

    places: float
    values: float
    table: float

    @classmethod
    def of(cls, quantized: Quantized) -> Estimate:
        """Estimate a tensor in a moment; remembered for the object."""
        known = _ESTIMATES.get(id(quantized))
        if known is None or known[0]() is not quantized:
            known = _remember(_ESTIMATES, quantized, cls._new(quantized))
        return known[1]

    @classmethod
    def _new(cls, quantized: Quantized) -> Estimate:
        symbols = quantized.symbols.reshape(-1)
        values = symbols[symbols != 0].numpy()
        _, counts = np.unique(values, return_counts=True)
        places = _adaptive([len(values), symbols.numel() - len(values)])
        return cls(places / 8, _adaptive(counts.tolist()) / 8, _table(quantized))

    @property
    def total(self) -> float:
        """All bytes."""
        return self.places + self.values + self.table


def estimated(quantized: Quantized) -> float:
    """Return the bytes of a tensor if its symbols were independent; changes of it are what counts."""
    return Estimate.of(quantized).total


def table_bytes(quantized: Quantized) -> int:
    """Return the bytes of the level table."""
    return len(pack(quantized.levels, quantized.lowest, quantized.axis is not None))


def stream(quantized: Quantized) -> bytes:
    """Return the symbols as they stand in a file; remembered for the tensor, until it is written to."""
    symbols = quantized.symbols
    version = 0 if symbols.is_inference() else symbols._version
    known = _STREAMS.get(id(symbols))
    if known is None or known[0]() is not symbols or known[1][0] != version:
        known = _remember(_STREAMS, symbols, (version, coded(quantized)))
    return known[1][1]


def counted(quantized: Quantized) -> int:
    """Return the bytes that the symbols and their table really take in a file."""
    return len(stream(quantized)) + table_bytes(quantized)


@dataclass(frozen=True)
class Scale:
    """From quick estimates to a file's bytes, exact where it was made.

    Attributes:
        fixed: bytes beside the quantized tensors.
        ratios: by name: bytes that a place takes in the file for an estimated one; a coder that sees
            neighbours needs fewer. Values and tables are taken as estimated.
    """

    fixed: float
    ratios: Mapping[str, float]

    @classmethod
    def of(
        cls,
        fixed: float,
        quantization: Mapping[str, Quantized],
        count: Callable[[Quantized], int] = counted,
    ) -> Scale:
        """Count once, and take the estimates of others in proportion."""
        ratios = {}
        for name, quantized in quantization.items():
            guess = Estimate.of(quantized)
            real = count(quantized) - guess.values - guess.table
            ratios[name] = max(real, 0.0) / guess.places if guess.places > 1 else 1.0
        return cls(fixed, ratios)

    def __call__(self, quantization: Mapping[str, Quantized]) -> float:
        """Return about how many bytes the file has."""
        return self.fixed + sum(self.tensor(name, q) for name, q in quantization.items())

    def tensor(self, name: str, quantized: Quantized) -> float:
        """Return about how many bytes one tensor takes."""
        guess = Estimate.of(quantized)
        return guess.values + guess.table + self.ratios.get(name, 1.0) * guess.places


def _remember(memory: dict[int, tuple[weakref.ref[K], T]], key: K, value: T) -> tuple[weakref.ref[K], T]:
    """Keep a value as long as the object lives."""
    number = id(key)
    memory[number] = (weakref.ref(key, lambda _: memory.pop(number, None)), value)
    return memory[number]


_STREAMS: dict[int, tuple[weakref.ref[Tensor], tuple[int, bytes]]] = {}
_ESTIMATES: dict[int, tuple[weakref.ref[Quantized], Estimate]] = {}


def _table(quantized: Quantized) -> float:
    """Return about the bytes of a table: a step a group in four, or each level in two."""
    groups, count = quantized.levels.shape
    multiples = torch.arange(quantized.lowest, quantized.lowest + count)
    outer = int(multiples.abs().argmax())
    steps = quantized.levels[:, outer] / max(1, int(multiples[outer].abs())) * multiples[outer].sign()
    uniform = torch.allclose(steps[:, None] * multiples, quantized.levels, rtol=1e-6)
    return 3.0 + groups * (4 if uniform else 2 * (count - 1))


def _adaptive(counts: list[int]) -> float:
    """Return the bits of a sequence with these counts under the KT estimator."""
    total, kinds = sum(counts), len(counts)
    if total == 0:
        return 0.0
    code = sum(math.lgamma(_ADAPTING) - math.lgamma(n + _ADAPTING) for n in counts)
    code += math.lgamma(total + kinds * _ADAPTING) - math.lgamma(kinds * _ADAPTING)
    return code / math.log(2)
