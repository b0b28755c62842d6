"""A network's levels, what they cost and what was measured of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from de_plugin.encode.quantized import Quantized
from de_plugin.evolve.search import Genome
from de_plugin.quantize.codebook import Codebook
from de_plugin.quantize.student import Quantization, Student


@dataclass(frozen=True)
class Trial:
    """Levels of a whole network.

    Attributes:
        name: how they came about.
        quantization: by parameter name.
        bytes: of the file; an estimate until it is counted.
        divergence: on the samples it was last measured on.
        value: by which trials are compared: the divergence, or a mixture with the labels' cross-entropy.
        genome: of which they are, where there is one.
        scale: that goes with the genome.
        rest: other values by name, where a recovery has changed them.
    """

    name: str
    quantization: Quantization
    bytes: float
    divergence: float = math.nan
    value: float = math.nan
    genome: Genome | None = None
    scale: float = 0.0
    rest: Mapping[str, Tensor] = field(default_factory=dict)

    def measured(self, student: Student, index: Tensor, *, repair: bool = True) -> Trial:
        """Return the same with its divergence on the samples `index`."""
        found = student.divergence(self.quantization, index, self.rest, repair=repair)
        return replace(self, divergence=found, value=found)

    def sized(self, student: Student) -> Trial:
        """Return the same with the bytes of its file, up to a few."""
        return replace(self, bytes=float(student.size(self.quantization, self.rest)))

    def packed(self, student: Student) -> Trial:
        """Return the same with exactly the bytes of its file."""
        return replace(self, bytes=float(student.bytes(self.quantization, self.rest)))


def applied(student: Student, book: Codebook, biases: Quantization) -> dict[str, Quantized]:
    """Return the levels that one codebook gives to every weight."""
    weights = {
        part.name: student.exact(part, book.fit(part.weight, part.kept, part.importance))
        for part in student.parts
    }
    return {**weights, **biases}


def best(trials: list[Trial]) -> Trial:
    """Return the trial of least value; the first one of equals."""
    return trials[int(np.argmin([t.value for t in trials]))]
