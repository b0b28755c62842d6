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

from de_plugin.assess.batches import Batch
from de_plugin.assess.divergence import leaves, wide
from de_plugin.assess.problem import Problem
from de_plugin.errors import ArgumentError, OutputError
from de_plugin.prune.recover.base import prepared

_CONSTANT = 1e-8
"""Share of the mean square below which a variance is rounding."""

Features = list[list[Tensor]]
"""What watched modules gave, in the order of the modules; a module that is called twice gives two."""


@dataclass(frozen=True)
class Hints:
    """Squared errors of modules' outputs, each as a share of the teacher's variance; a mean over outputs.

    The teacher is asked at every step, which costs a forward pass more, and copied unless it is a model of
    its own. Outputs that do not vary are left out. Where what follows a module works in place, its output is
    compared after that.

    Args:
        modules: name patterns of the modules whose outputs are compared: best blocks or norms, whose outputs
            a later batch norm does not scale. ``*`` stands for dots, too: ``"layers.?"`` are the layers
            themselves, ``"layers.*"`` also all that is in them.
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
                f"Hints(modules={self.modules!r}): expected a tuple of name patterns, such as ('layers.?',)"
            )
        object.__setattr__(self, "modules", tuple(self.modules))
        if not 0 <= self.weight < math.inf:
            raise ArgumentError(f"Hints(weight={self.weight!r}): expected a finite number >= 0")

    def teacher(self, problem: Problem) -> Teacher:
        """Return the teacher and the modules that tell; the teacher is copied once a problem.

        Raises:
            ArgumentError: the patterns match no module that both networks have, the model cannot be copied,
                or units are zeroed already and the teacher was never copied.
        """
        names = [name for name, _ in problem.model.named_modules() if name and self._match(name)]
        theirs = dict(problem.teacher.named_modules())
        missing = [name for name in names if name not in theirs]
        if not names or missing:
            reason = f"the teacher has no {missing[0]}" if names else "no module matches"
            raise ArgumentError(
                f"Hints(modules={self.modules}): {reason}; expected modules of both networks, "
                f"such as {', '.join([n for n in theirs if n][:5])}"
            )
        return Teacher(untouched(problem), tuple(names), self.weight)

    def _match(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.modules)


def untouched(problem: Problem) -> nn.Module:
    """Return the teacher as it was, a model of its own; copied once a problem, before anything changes.

    Raises:
        ArgumentError: the model cannot be copied, or units are zeroed already and it never was; or the
            teacher shares tensors with it.
    """
    own = problem.teacher is not problem.model
    if own:
        _check_apart(problem)
    return problem.teacher if own else prepared(problem, "distill", lambda: _copied(problem.model))


def _check_apart(problem: Problem) -> None:
    """Refuse a teacher that is to be asked while it changes together with the model."""
    mine = {id(x) for x in (*problem.model.parameters(), *problem.model.buffers())}
    named = (*problem.teacher.named_parameters(), *problem.teacher.named_buffers())
    both = [name for name, x in named if id(x) in mine]
    if both:
        raise ArgumentError(
            f"teacher: shares {len(both)} tensor(s) with the model, such as {both[0]!r}, and would change "
            "while it is asked; give copy.deepcopy(...) of the network as it was"
        )


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model).requires_grad_(False)
    except (RuntimeError, TypeError) as error:
        raise ArgumentError(
            f"model: cannot be copied, as hints and fresh inputs need it ({error}); give an untouched copy "
            "as the teacher, or leave hints= and augment= out"
        ) from error


@dataclass(eq=False)
class Teacher:
    """The teacher as it was, and the modules that tell.

    Attributes:
        model: in eval mode.
        names: of the modules.
        weight: of their errors.
        finite: whether all answers that were noted are, a 0-dim bool tensor; None before there is one.
    """

    model: nn.Module
    names: tuple[str, ...]
    weight: float
    finite: Tensor | None = None

    def ask(self, problem: Problem, inputs: Any) -> tuple[Any, Features]:
        """Return the teacher's outputs for one batch, and what its modules gave."""
        with torch.no_grad(), watched(self.model, self.names) as features:
            outputs = problem.forward(self.model, inputs)
        return outputs, features

    def note(self, problem: Problem, outputs: Any) -> None:
        """Remember whether answers are finite, without waiting for them; `check_finite` tells."""
        for x in leaves(outputs):
            fine = torch.isfinite(x).all().to(problem.device)
            self.finite = fine if self.finite is None else self.finite & fine

    def check_called(self, problem: Problem, batch: Batch) -> None:
        """Refuse a forward that asks another model where the teacher is meant.

        Raises:
            ArgumentError: it does.
        """
        calls: list[Any] = []
        with ExitStack() as stack:
            for module in self.model.modules():  # a forward may call parts of it alone
                stack.callback(module.register_forward_hook(lambda *call: calls.append(call[0])).remove)
            self.ask(problem, batch.inputs)
        if not calls:
            raise ArgumentError(
                "forward: does not call the teacher that it is given, so nothing could be learnt from fresh "
                "inputs; call the model that the function is given"
            )

    def check_finite(self) -> None:
        """Refuse answers that were not finite.

        Raises:
            OutputError: there were some.
        """
        if self.finite is not None and not bool(self.finite):
            raise OutputError(
                "augment: the teacher's outputs for inputs that it made hold NaN or infinite values; keep "
                "the inputs in the range of the data"
            )

    def errors(self, problem: Problem, ours: Features, theirs: Features) -> Tensor:
        """Return the weighted errors of a student's features, a 0-dim tensor.

        Args:
            problem: on whose device the errors are added up.
            ours: of the student, from `watched`.
            theirs: of the teacher, for the same inputs.

        Raises:
            OutputError: the networks' modules don't give the same shapes, what the teacher's give is not
                finite, or nothing of it varies.
        """
        parts: list[Tensor] = []
        measured: list[Tensor] = []
        owners: list[str] = []
        for name, mine, yours in zip(self.names, ours, theirs, strict=True):
            shapes = [[tuple(x.shape) for x in calls] for calls in (mine, yours)]
            if shapes[0] != shapes[1]:
                raise OutputError(
                    f"Hints: {name} gives {shapes[0]} in the student and {shapes[1]} in the teacher; "
                    "expected the same; a forward= has to call the model that it is given"
                )
            for x, y in zip(map(wide, mine), map(wide, yours), strict=True):
                variance = y.var(correction=0)
                measured.append(torch.stack([y.square().mean(), variance]).to(problem.device))
                parts.append(((x - y).square().mean() / variance).to(problem.device))
                owners.append(name)
        # What decides is read at once: each reading waits for all that a device has been given to do.
        sizes = torch.stack(measured).tolist() if measured else []
        for owner, (size, _) in zip(owners, sizes, strict=True):
            if not math.isfinite(size):
                raise OutputError(
                    f"Hints: {owner} gives numbers in the teacher that are not finite; name other modules"
                )
        varying = [x for x, (size, variance) in zip(parts, sizes, strict=True) if variance > _CONSTANT * size]
        if not varying:
            raise OutputError(
                f"Hints: nothing that {', '.join(self.names[:5])} give in the teacher varies, so nothing can "
                "be learnt from it; name other modules"
            )
        return torch.stack(varying).mean() * self.weight


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
