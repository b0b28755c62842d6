"""What a pruner of NNI measures, and what it tells afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from de_plugin.assess.divergence import Divergence
from de_plugin.assess.guard import check_counts
from de_plugin.assess.teacher import Forward


@dataclass(frozen=True)
class Asking:
    """What is measured, and on what.

    Attributes:
        divergence: between the teacher's outputs and the student's.
        forward: calls the model; None: just a call.
        samples: read at most this many.
        batch_size: samples in a forward pass.
        holdout: share of the samples that the gate decides on.
        align: whether candidates are measured without what a pruned channel would still add: its bias and
            its batch norm, which the speed-up removes too.
        seed: of every draw.
    """

    divergence: str | Divergence | Callable[[Any, Any], Any] = "kl"
    forward: Forward | None = None
    samples: int = 1024
    batch_size: int = 256
    holdout: float = 0.1
    align: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse counts that are not positive."""
        check_counts("DEPruner", samples=self.samples, batch_size=self.batch_size)


@dataclass(frozen=True)
class StepReport:
    """What one generation of masks has done.

    Attributes:
        step: its number, from 1.
        removed: units removed before and after, and all there are, by target or dependency group.
        before: divergence from the teacher with the masks as they were.
        after: the same with the new masks.
        evaluations: candidates that were measured.
        events: what the search has told.
    """

    step: int
    removed: dict[str, tuple[int, int, int]]
    before: float
    after: float
    evaluations: int
    events: list[dict[str, Any]] = field(repr=False, default_factory=list)
