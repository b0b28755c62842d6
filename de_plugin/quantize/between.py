"""What follows the choice of levels: the recoveries of `prune` where they fit, and training with levels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from de_plugin.assess.guard import untouched_on_error
from de_plugin.assess.repair import Repair
from de_plugin.errors import ArgumentError
from de_plugin.prune.recover import BatchNormMatching, BiasCorrection, Distillation, Recovery
from de_plugin.quantize.rates import Rates
from de_plugin.quantize.retrain import LevelTraining, StraightThrough
from de_plugin.quantize.student import Student
from de_plugin.quantize.trial import Trial


@runtime_checkable
class LevelRecovery(Protocol):
    """Brings a network with levels closer to its teacher."""

    @property
    def name(self) -> str:
        """Short name for tables."""

    @property
    def labels(self) -> float:
        """Weight of the labels' cross-entropy in what it minimises, in [0, 1]."""

    def prepare(self, student: Student) -> None:
        """Store what is needed of the network before it has levels, and check the rest."""

    def __call__(self, rates: Rates, trial: Trial) -> tuple[Rates, Trial]:
        """Return rates that know new weights, and the trial after recovery; the model stays as it is."""


@dataclass(frozen=True)
class Around:
    """A recovery of `de_plugin.prune.recover` that changes biases or buffers, not weights.

    Args:
        recovery: `BiasCorrection` or `BatchNormMatching`; what it matches is the network without levels.
    """

    recovery: Recovery

    @property
    def name(self) -> str:
        """Return the recovery's name."""
        return self.recovery.name

    @property
    def labels(self) -> float:
        """Return 0."""
        return 0.0

    def prepare(self, student: Student) -> None:
        """Measure the moments that are to be kept."""
        self.recovery.prepare(student.problem)

    def in_assessment(self) -> Repair | None:
        """Return what is cheap enough for every candidate."""
        return self.recovery.in_assessment()

    def __call__(self, rates: Rates, trial: Trial) -> tuple[Rates, Trial]:
        """Apply it to the network with levels and quantize the biases anew."""
        student = rates.student
        with untouched_on_error(student.problem.model) as before:
            try:
                student.write(trial.quantization, trial.rest)
                self.recovery(student.problem)
                biases = student.quantized_biases()
                found = replace(
                    trial,
                    name=f"{trial.name}+{self.name}",
                    quantization={**trial.quantization, **biases},
                    rest=student.rest(trial.quantization),
                    divergence=math.nan,
                    value=math.nan,
                )
            finally:
                before.restore()
        return rates, found


def level_recoveries(spec: Any) -> tuple[LevelRecovery, ...]:
    """Return the recoveries that a specification stands for.

    Args:
        spec: None, "bias", "batchnorm", "levels" (train level values), "straight-through" (train the
            weights behind them), "distill" (the latter, then the former), an object, or a list of these.

    Raises:
        ArgumentError: it is none of these.
    """
    if spec is None or spec == "none":
        return ()
    if isinstance(spec, list | tuple):
        return tuple(step for part in spec for step in level_recoveries(part))
    named: dict[str, tuple[LevelRecovery, ...]] = {
        "bias": (Around(BiasCorrection()),),
        "batchnorm": (Around(BatchNormMatching()),),
        "levels": (LevelTraining(),),
        "straight-through": (StraightThrough(),),
        "distill": (StraightThrough(), LevelTraining()),
    }
    if isinstance(spec, str) and spec in named:
        return named[spec]
    if isinstance(spec, Distillation):
        return (StraightThrough(spec), LevelTraining(spec))
    if isinstance(spec, BiasCorrection | BatchNormMatching):
        return (Around(spec),)
    if isinstance(spec, LevelRecovery) and not isinstance(spec, type) and not isinstance(spec, Recovery):
        return (spec,)
    raise ArgumentError(
        f"recovery={spec!r}: expected one of {', '.join(named)}, Distillation(...), LevelTraining(...), "
        "StraightThrough(...), or a list of these; what changes weights would undo their levels"
    )
