"""A training that is kept half-way, and goes on bit for bit where it was cut off."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from de_plugin.assess.fingerprint import fingerprint
from de_plugin.assess.halfway import Halfway
from de_plugin.assess.problem import Problem

SECONDS = 60.0
"""Between two writes, at least; a look at the held-back data that comes sooner writes nothing."""


@dataclass
class Training:
    """How far a training is.

    Attributes:
        trained: what the optimizer changes.
        optimizer: with its moments.
        lowest: value at the best look at the held-back data.
        best: what there was; only lists of tensors, one for each of `trained`, can be kept.
        step: the next one.
        waited: looks since the best one.
    """

    trained: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer
    lowest: float
    best: Any
    step: int = 0
    waited: int = 0

    def look(self, value: float, keep: Callable[[], Any]) -> None:
        """Count a look at the held-back data; what there is now is kept where it is the best."""
        self.waited += 1
        if value < self.lowest:
            self.lowest, self.waited, self.best = value, 0, keep()

    def saved(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and plain data that `restore` needs."""
        tensors = {f"trained/{n}": p.detach() for n, p in enumerate(self.trained)}
        tensors |= {f"best/{n}": x for n, x in enumerate(self.best)}
        for n, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"moment/{n}/{key}": x for key, x in moments.items()}
        return tensors, {"step": self.step, "waited": self.waited, "lowest": self.lowest}

    def finish(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the best of a training of the same set-up that came to its end."""
        self.best = [tensors[f"best/{n}"].to(p.device) for n, p in enumerate(self.trained)]

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go to where `saved` found another training of the same set-up."""
        moments: dict[int, dict[str, Tensor]] = {}
        for n, p in enumerate(self.trained):
            p.data.copy_(tensors[f"trained/{n}"])
        for name, x in tensors.items():
            kind, _, rest = name.partition("/")
            if kind == "moment":
                number, _, key = rest.partition("/")
                moments.setdefault(int(number), {})[key] = x
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.finish(tensors)
        self.step, self.waited, self.lowest = state["step"], state["waited"], state["lowest"]


class Keeper:
    """Writes a training now and then, on the first rank, and reads it on all.

    Args:
        problem: whose training it is.
        training: at its starting point.
        place: None: nothing is kept.
    """

    def __init__(self, problem: Problem, training: Training, place: Halfway | None) -> None:
        self._ranks = problem.ranks
        self._training = training
        self._place = place
        self._last = time.monotonic()
        parts = [problem.kept, *(p.detach() for p in training.trained)]
        self._start = 0 if place is None else fingerprint(parts)

    def resume(self) -> bool:
        """Go to where the training was cut off, if it was, and if it began with the same numbers.

        Returns:
            Whether it came to its end.
        """
        if self._place is None:
            return False
        found = self._place.load()
        if found is not None and found[1]["start"] != self._start:
            found = None  # a budget of seconds, say, has made other masks this time
        self._ranks.check_equal("training kept half-way", -1 if found is None else found[1]["step"])
        if found is None:
            return False
        tensors, state = found
        if state.get("finished"):
            self._training.finish(tensors)
            return True
        self._training.restore(tensors, state)
        return False

    def keep(self) -> None:
        """Write how far the training is, unless that was done a moment ago."""
        if self._place is not None:
            self._ranks.on_first(partial(self._write, self._place))

    def _write(self, place: Halfway) -> None:
        now = time.monotonic()
        if now - self._last < SECONDS:
            return
        tensors, state = self._training.saved()
        place.save(tensors, {**state, "start": self._start})
        self._last = now

    def finish(self) -> None:
        """Write that the training has come to its end, and its best alone."""
        if self._place is None:
            return
        tensors = {f"best/{n}": x for n, x in enumerate(self._training.best)}
        state = {"step": self._training.step, "finished": True, "start": self._start}
        self._ranks.on_first(partial(self._place.save, tensors, state))
