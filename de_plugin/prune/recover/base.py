"""What a recovery is, and which one a name stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from de_plugin.assess.problem import Problem
from de_plugin.assess.repair import Repair
from de_plugin.errors import ArgumentError

T = TypeVar("T")


@runtime_checkable
class Recovery(Protocol):
    """Changes what survived a cut, so that the student comes closer to its teacher again.

    The model holds dense values; a recovery changes those that `problem.kept` keeps, biases and
    buffers, and leaves every zeroed value as it is, so that it can be revived.
    """

    @property
    def name(self) -> str:
        """Short name, as written on the command line."""

    def prepare(self, problem: Problem) -> None:
        """Store what is needed of the teacher; called once, before anything changes."""

    def __call__(self, problem: Problem) -> None:
        """Change the survivors for good, in place; on an exception the model is as it was."""

    def in_assessment(self) -> Repair | None:
        """Return the part that is cheap enough for every candidate, undone on exit; or None."""


@dataclass(frozen=True)
class Sequence:
    """Recoveries one after the other; without any, nothing happens.

    Args:
        steps: applied in this order.
    """

    steps: tuple[Recovery, ...] = ()

    @property
    def name(self) -> str:
        """Return the steps' names joined by "+", or "none"."""
        return "+".join(step.name for step in self.steps) or "none"

    def prepare(self, problem: Problem) -> None:
        """Prepare every step."""
        for step in self.steps:
            step.prepare(problem)

    def __call__(self, problem: Problem) -> None:
        """Apply every step."""
        for step in self.steps:
            step(problem)

    def in_assessment(self) -> Repair | None:
        """Return the first step's repair that there is."""
        repairs = (step.in_assessment() for step in self.steps)
        return next((repair for repair in repairs if repair is not None), None)


def prepared(problem: Problem, recovery_: Recovery | str, make: Callable[[], T]) -> T:
    """Return what `recovery_`, or a part of some, stores of the teacher, made now if nothing is zeroed yet.

    Raises:
        ArgumentError: units are zeroed already and `prepare` was never called.
    """

    def late() -> T:
        if not bool(problem.kept.all()):
            name = recovery_ if isinstance(recovery_, str) else recovery_.name
            raise ArgumentError(
                f"recovery={name!r}: {int((~problem.kept).sum())} unit(s) are "
                "zeroed and the teacher was not measured; call recovery.prepare(problem) before anything "
                "changes"
            )
        return make()

    result: T = problem.remember(("recover", recovery_), late)
    return result


def _named() -> dict[str, Callable[[], Recovery]]:
    from de_plugin.prune.recover.batchnorm import BatchNormMatching
    from de_plugin.prune.recover.bias import BiasCorrection
    from de_plugin.prune.recover.distill import Distillation
    from de_plugin.prune.recover.leastsquares import LeastSquares
    from de_plugin.prune.recover.obs import SurgeonUpdate
    from de_plugin.prune.recover.reconstruct import Reconstruction

    return {
        "none": Sequence,
        "obs": SurgeonUpdate,
        "batchnorm": BatchNormMatching,
        "bias": BiasCorrection,
        "leastsquares": LeastSquares,
        "reconstruct": Reconstruction,
        "distill": Distillation,
    }


def recoveries() -> list[str]:
    """Return the names that `recovery` knows, in the order in which they are shown."""
    return list(_named())


def recovery(spec: str | Recovery | Iterable[str | Recovery] | None) -> Recovery:
    """Return the recovery that a specification stands for.

    Args:
        spec: None or "none", "obs", "batchnorm", "bias", "leastsquares", "reconstruct", "distill", an
            object that implements `Recovery`, or a list of these, applied in order.

    Raises:
        ArgumentError: it is none of these.

    >>> recovery(["batchnorm", "distill"]).name
    'batchnorm+distill'
    """
    if spec is None:
        return Sequence()
    if isinstance(spec, str):
        names = _named()
        if spec not in names:
            raise ArgumentError(
                f"recovery={spec!r}: expected one of {', '.join(names)}, an object like "
                "Distillation(steps=100), or a list of these"
            )
        return names[spec]()
    if isinstance(spec, Recovery) and not isinstance(spec, type):
        return spec
    return Sequence(tuple(recovery(part) for part in _parts(spec)))


def _parts(spec: Any) -> Iterable[Any]:
    if isinstance(spec, list | tuple):
        return spec
    raise ArgumentError(
        f"recovery={spec!r}: expected one of {', '.join(_named())}, an object with prepare, "
        "__call__ and in_assessment, or a list of these"
    )
