"""From a genome to levels: a step and a price of bits for each layer, around the equal-slope optimum.

At the optimum of bytes + divergence / slope every layer gains the same divergence a bit. With the error
``sensitivity x step² / 12`` a weight at high rates, that gives each layer the step ``sensitivity ** -½``
times a common one (Shoham and Gersho 1988). Genes are octaves away from there; their worth is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from de_plugin.encode.quantized import Quantized
from de_plugin.evolve.search import Genome
from de_plugin.quantize.cost import Scale
from de_plugin.quantize.entropy import HIGH_RATE, EntropyConstrained
from de_plugin.quantize.student import Part, Quantization, Student
from de_plugin.quantize.survivors import Survivors

STEP, PRICE = 0.2, 0.4
"""First deviations of the genes, in octaves."""

_TRIES = 12
_FINE = 0.005  # octaves between two scales that are not worth another try
_RANGE = 12.0  # octaves from the first guess within which a common step is looked for


@dataclass(frozen=True)
class Rates:
    """Levels for all weights of a student by genome.

    Attributes:
        student: whose weights they are.
        survivors: each part's.
        steps: the step of each part where genes and scale are zero.
        zeroing: of each part's codebook: what a place really costs, of its estimate.
        close: bytes below the target that are not worth another try, as a fraction of it.
        alone: whether a weight's levels depend on this weight alone.
    """

    student: Student
    survivors: tuple[Survivors, ...]
    steps: tuple[float, ...]
    zeroing: tuple[float, ...]
    close: float = 0.002
    alone: bool = True

    @classmethod
    def of(cls, student: Student) -> Rates:
        """Take a student's weights as they are now."""
        parts = student.parts
        survivors = tuple(part.survivors for part in parts)
        steps = tuple(_steps(parts, survivors, student.weighting != "none"))
        return cls(student, survivors, steps, (1.0,) * len(parts))

    def at_costs(self, size: Scale) -> Rates:
        """Return the same with the prices of places that a count has shown."""
        ratios = (size.ratios.get(part.name, 1.0) for part in self.student.parts)
        return replace(self, zeroing=tuple(min(1.0, r) for r in ratios))

    @property
    def genes(self) -> int:
        """Length of a genome: a step and a price for each part, in octaves."""
        return 2 * len(self.survivors)

    @property
    def deviation(self) -> Genome:
        """The first mutations' standard deviation."""
        return np.repeat([STEP, PRICE], len(self.survivors))

    def quantization(self, genome: Genome, scale: float, biases: Quantization) -> dict[str, Quantized]:
        """Return the levels of all weights, and those of the biases.

        Args:
            genome: (genes,).
            scale: octaves by which all steps are larger.
            biases: quantized already; part of the result.
        """
        weights = {
            part.name: self.student.exact(part, self.rule(n, genome, scale).of(survivors))
            for n, (part, survivors) in enumerate(zip(self.student.parts, self.survivors, strict=True))
        }
        return {**weights, **biases}

    def rule(self, number: int, genome: Genome, scale: float) -> EntropyConstrained:
        """Return the codebook that a genome gives to a part."""
        step = float(self.steps[number] * 2.0 ** (scale + genome[number]))
        price = float(HIGH_RATE * 2.0 ** genome[len(self.survivors) + number])
        return EntropyConstrained(step=step, price=price, zeroing=self.zeroing[number])

    def at_bytes(
        self, genome: Genome, target: float, size: Scale, biases: Quantization, start: float
    ) -> tuple[dict[str, Quantized], float] | None:
        """Return the levels of a genome at the smallest common scale that fits the bytes, and that scale.

        None where no scale fits.

        Args:
            genome: (genes,).
            target: bytes that the file may have, by `size`.
            size: estimates them.
            biases: quantized already; part of the result.
            start: a scale near the one that is sought.
        """
        low = high = None  # (scale, bytes): too large a file, and one that fits
        best: tuple[dict[str, Quantized], float] | None = None
        scale, width = start, 0.25
        for _ in range(_TRIES):
            found = self.quantization(genome, scale, biases)
            size_now = size(found)
            if size_now <= target:
                best, high = (found, scale), (scale, size_now)
                if size_now >= (1 - self.close) * target or scale <= -_RANGE:
                    break
            else:
                low = (scale, size_now)
            if low is None or high is None:
                if abs(scale) >= _RANGE:
                    break
                scale = min(max(scale + (width if high is None else -width), -_RANGE), _RANGE)
                width *= 2
            elif high[0] - low[0] < _FINE:
                break
            else:
                share = (low[1] - (1 - self.close / 2) * target) / (low[1] - high[1])
                scale = low[0] + min(max(share, 0.1), 0.9) * (high[0] - low[0])
        return best


def _steps(parts: tuple[Part, ...], survivors: tuple[Survivors, ...], known: bool) -> list[float]:
    """Return steps in the ratio of the equal-slope optimum, or of the weights' size if nothing is known."""
    sizes = [float(np.sqrt(np.mean(s.values**2))) if len(s.values) else 1.0 for s in survivors]
    if not known:
        return [size / 4 for size in sizes]
    steps = [max(part.sensitivity, 1e-30) ** -0.5 for part in parts]
    counts = np.array([max(1, len(s.values)) for s in survivors], dtype=float)
    ratio = np.log(np.array(sizes) / 4) - np.log(steps)
    common = float(np.exp(np.average(ratio, weights=counts)))
    # A layer whose sensitivity was measured as nil still has to tell its weights apart.
    return [
        float(np.clip(common * step, size / 64, 2 * size)) for step, size in zip(steps, sizes, strict=True)
    ]
