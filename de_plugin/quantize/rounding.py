"""How values become levels: each to the nearest, or so that levels make good each other's errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from de_plugin.assess.batches import Batch
from de_plugin.assess.capture import one_pass
from de_plugin.assess.guard import check_counts
from de_plugin.assess.problem import Problem
from de_plugin.errors import ArgumentError

_KEY = 24


@dataclass(frozen=True)
class Compensated:
    """Round so that each level makes good the errors of those before it, in closed form, without gradients.

    Survivors whose bits cost more than they are worth become zero, so this prunes as well.

    Attributes:
        samples: calibration samples that show what the layers' inputs are; all in one forward pass, and
            fewer where that would take more memory than `memory`.
        positions: at most so many positions (of images, of sequences) a layer.
        ridge: pull towards the present weights, relative to the inputs' mean square; > 0.
        rounds: passes over all columns of a layer.
        sweeps: over single symbols afterwards, at most.
        memory: bytes of the layers' inputs in that pass, about.
        widest: layers of more inputs (times kernel) are rounded to the nearest: a matrix of this size takes
            ``16 * widest ** 2`` bytes.

    Raises:
        ArgumentError: a number is out of range.
    """

    samples: int = 8192
    positions: int = 8192
    ridge: float = 0.03
    rounds: int = 1
    sweeps: int = 6
    memory: int = 2 << 30
    widest: int = 8192

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        check_counts("Compensated", samples=self.samples, positions=self.positions, rounds=self.rounds)
        check_counts("Compensated", memory=self.memory, widest=self.widest)
        if self.sweeps < 0 or not 0 < self.ridge < float("inf"):
            raise ArgumentError(f"{self}: expected sweeps >= 0 and a finite ridge > 0")


Rounding = Literal["nearest", "compensated"] | Compensated


def samples_of(problem: Problem, how: Compensated) -> Batch:
    """Return calibration samples for one forward pass.

    Raises:
        ArgumentError: samples differ in shape.
    """
    index = one_pass(problem, how.samples, how.memory, problem.generator(_KEY))
    [batch] = problem.pool.take(index, len(index))
    return batch


def compensation(rounding: Rounding) -> Compensated | None:
    """Return how errors are made good; None where every weight gets its levels alone.

    Raises:
        ArgumentError: it is none of these.
    """
    if isinstance(rounding, Compensated):
        return rounding
    if rounding == "nearest":
        return None
    if rounding == "compensated":
        return Compensated()
    raise ArgumentError(f"rounding={rounding!r}: expected 'nearest', 'compensated' or Compensated(...)")
