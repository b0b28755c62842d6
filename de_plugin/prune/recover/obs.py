"""The surgeon's update: survivors change by the second-order model to make up for what went."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from de_plugin.assess.guard import untouched_on_error
from de_plugin.assess.problem import Problem
from de_plugin.assess.repair import Repair
from de_plugin.criteria import OBS


@dataclass(frozen=True)
class SurgeonUpdate:
    """Update the survivors as Optimal Brain Surgeon does (Hassibi and Stork, 1992), block by block.

    What went since the last call is made up for with the inverse Fisher information of the student
    before it went. The update stays only if the divergence on the held-back data doesn't rise.

    Args:
        criterion: gives the blocked Fisher information.
    """

    criterion: OBS = field(default_factory=OBS)

    @property
    def name(self) -> str:
        """Return "obs"."""
        return "obs"

    def prepare(self, problem: Problem) -> None:
        """Remember what is kept now."""
        problem.state_of(self)["before"] = problem.kept.clone()

    def __call__(self, problem: Problem) -> None:
        """Change the survivors for good where that helps.

        Raises:
            GradientError: the divergence has no gradient.
        """
        kept = problem.kept
        state = problem.state_of(self)
        before = state.get("before", torch.ones_like(kept))
        state["before"] = kept.clone()
        removed = before & ~kept
        if not bool(removed.any()):
            return
        first = float(problem.gate(kept[None])[0])
        with untouched_on_error(problem.model) as snapshot:
            try:
                problem.kept = before | kept
                changes = self.criterion.update(problem, removed)
            finally:
                problem.kept = kept
            with torch.no_grad():
                for layer, change in zip(problem.units.layers, changes, strict=True):
                    layer.parameter.add_(change)
            after = float(problem.gate(kept[None])[0])
            accepted = after <= first
            if not accepted:
                snapshot.restore()
        problem.events.append({"kind": "obs", "before": first, "after": after, "accepted": accepted})

    def in_assessment(self) -> Repair | None:
        """Return None: an inverse for every candidate isn't cheap."""
        return None
