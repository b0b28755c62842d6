"""What a pruner of NNI measures, and what it tells afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nni.compression.utils import Evaluator
from torch import Tensor

from de_plugin.adapters.nni.targets import Group
from de_plugin.assess.asked import check_asked
from de_plugin.assess.divergence import Divergence
from de_plugin.assess.teacher import Forward
from de_plugin.errors import ArgumentError


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
        seed: of every draw, in [0, 2**31).

    Raises:
        ArgumentError: a value cannot work.
    """

    divergence: str | Divergence | Callable[[Any, Any], Any] = "kl"
    forward: Forward | None = None
    samples: int = 1024
    batch_size: int = 256
    holdout: float = 0.1
    align: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse here what would fail only when the model is wrapped."""
        counts = {"samples": self.samples, "batch_size": self.batch_size}
        check_asked("DEPruner", self.divergence, self.holdout, self.seed, **counts)


def check_evaluator(evaluator: Any) -> None:
    """Refuse what trains nothing, such as calibration data in an evaluator's place.

    Raises:
        ArgumentError: it is neither None nor an evaluator of NNI.
    """
    if evaluator is not None and not isinstance(evaluator, Evaluator):
        raise ArgumentError(
            f"DEPruner(evaluator=...): a {type(evaluator).__name__}, expected an evaluator of NNI, such as "
            "TorchEvaluator; calibration data go by name: DEPruner(model, config_list, batches=data)"
        )


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


def idle(groups: Sequence[Group], gone: Sequence[Tensor]) -> list[str]:
    """Return which settings ask for something and have removed nothing at all, with how they ask.

    Targets of a global group, or with the same threshold, count together: which of them lose is found.

    Args:
        groups: what is pruned.
        gone: of each, ``(units,)`` bool: whether a unit is removed.
    """
    found: dict[tuple[object, ...], list[int]] = {}
    for number, group in enumerate(groups):
        setting = group.setting
        shared = {"global": setting.global_group_id, "threshold": setting.sparse_threshold}
        found.setdefault((group.kind, shared.get(group.kind, number)), []).append(number)
    result = []
    for numbers in found.values():
        setting = groups[numbers[0]].setting
        asked = {
            key: getattr(setting, key)
            for key in ("sparse_ratio", "sparse_threshold", "min_sparse_ratio", "max_sparse_ratio")
        }
        wanted = any(asked[key] for key in ("sparse_ratio", "sparse_threshold", "min_sparse_ratio"))
        if wanted and not any(bool(gone[n].any()) for n in numbers):
            names = ", ".join(f"{groups[n].name} ({groups[n].count} units)" for n in numbers)
            said = ", ".join(f"{key}={value}" for key, value in asked.items() if value is not None)
            reason = "any unit" if asked["sparse_threshold"] else "one unit"
            result.append(f"{names} by {said}: {reason} is more")
    return result
