"""Hints: a student that is trained repeats what the teacher has in its middle, too.

Outputs tell a student little of what its first layers should do, the less the fewer samples there are. A
student with the teacher's own architecture can be told at every layer (FitNets, arXiv:1412.6550).
"""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from de_plugin.assess.divergence import leaves, wide
from de_plugin.assess.problem import Problem
from de_plugin.errors import ArgumentError, OutputError

Features = list[list[Tensor]]
"""What watched modules gave, in the order of the modules; a module that is called twice gives two."""


@dataclass(frozen=True)
class Hints:
    """Squared errors of modules' outputs, each as a share of the teacher's variance, a mean over modules.

    The teacher is copied and asked at every step, which costs a forward pass more.

    Args:
        modules: name patterns of the modules whose outputs are compared, such as ``("layers.*",)``: best
            blocks or norms, whose outputs a later batch norm does not scale.
        weight: what takes the errors into the loss, in units of the divergence; >= 0.

    Raises:
        ArgumentError: the weight is out of range, or there is no pattern.
    """

    modules: tuple[str, ...]
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be followed."""
        if isinstance(self.modules, str) or not self.modules or not all(map(_is_text, self.modules)):
            raise ArgumentError(
                f"Hints(modules={self.modules!r}): expected a tuple of name patterns, such as ('layers.*',)"
            )
        object.__setattr__(self, "modules", tuple(self.modules))
        if not 0 <= self.weight < math.inf:
            raise ArgumentError(f"Hints(weight={self.weight!r}): expected a finite number >= 0")

    def teacher(self, problem: Problem) -> Teacher:
        """Return the teacher's frozen copy, made the first time.

        Raises:
            ArgumentError: the patterns match no module that both networks have, or units are zeroed already
                and the teacher was never copied.
        """
        found: Teacher = problem.remember(("hints", self), lambda: self._copied(problem))
        return found

    def _copied(self, problem: Problem) -> Teacher:
        if problem.teacher is problem.model and not bool(problem.kept.all()):
            raise ArgumentError(
                f"Hints(modules={self.modules}): {int((~problem.kept).sum())} unit(s) are zeroed and the "
                "teacher was not copied; call recovery.prepare(problem) before anything changes"
            )
        names = [name for name, _ in problem.model.named_modules() if name and self._match(name)]
        theirs = dict(problem.teacher.named_modules())
        missing = [name for name in names if name not in theirs]
        if not names or missing:
            reason = f"the teacher has no {missing[0]}" if names else "no module matches"
            raise ArgumentError(
                f"Hints(modules={self.modules}): {reason}; expected modules of both networks, "
                f"such as {', '.join([n for n in theirs if n][:5])}"
            )
        frozen = copy.deepcopy(problem.teacher).requires_grad_(False).eval()
        return Teacher(frozen, tuple(names), self.weight)

    def _match(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.modules)


@dataclass(frozen=True, eq=False)
class Teacher:
    """The teacher as it was, and the modules that tell.

    Attributes:
        model: frozen, in eval mode.
        names: of the modules.
        weight: of their errors.
    """

    model: nn.Module
    names: tuple[str, ...]
    weight: float

    def errors(self, problem: Problem, inputs: Any, features: Features) -> Tensor:
        """Return the weighted errors of a student's features on some inputs, a 0-dim tensor.

        Args:
            problem: that tells how a model is called.
            inputs: of one batch.
            features: of the student, from `watched`.

        Raises:
            OutputError: the networks' modules don't give the same shapes.
        """
        with torch.no_grad(), watched(self.model, self.names) as wanted:
            problem.forward(self.model, inputs)
        shapes = [[[tuple(x.shape) for x in calls] for calls in part] for part in (features, wanted)]
        if shapes[0] != shapes[1] or not any(features):
            name = next((n for n, a, b in zip(self.names, *shapes, strict=True) if a != b), self.names[0])
            raise OutputError(
                f"Hints: {name} gives {shapes[0][self.names.index(name)]} in the student and "
                f"{shapes[1][self.names.index(name)]} in the teacher; expected the same, and tensors"
            )
        pairs = [
            pair
            for mine, theirs in zip(features, wanted, strict=True)
            for pair in zip(mine, theirs, strict=True)
        ]
        total = torch.zeros((), device=problem.device)
        for mine, theirs in pairs:
            y = wide(theirs)
            scale = y.var(correction=0).clamp_min(torch.finfo(y.dtype).tiny)
            total = total + ((wide(mine) - y).square().mean() / scale).to(total)
        return total * (self.weight / len(pairs))


@contextmanager
def watched(model: nn.Module, names: Sequence[str]) -> Iterator[Features]:
    """Yield what modules give in what is run inside the block; outputs that hold no number are left out."""
    found: Features = [[] for _ in names]

    def keeping(calls: list[Tensor]) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            calls.extend(x for x in leaves(output) if x.is_floating_point())

        return hook

    with ExitStack() as stack:
        for name, calls in zip(names, found, strict=True):
            stack.callback(model.get_submodule(name).register_forward_hook(keeping(calls)).remove)
        yield found


def _is_text(pattern: Any) -> bool:
    return isinstance(pattern, str) and bool(pattern)
