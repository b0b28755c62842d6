"""The engine's question about groups of Torch-Pruning, asked without a trace in the user's model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from de_plugin.assess.asked import check_asked
from de_plugin.assess.batches import read
from de_plugin.assess.coupled import CoupledUnits, Coupling
from de_plugin.assess.divergence import Divergence, leaves
from de_plugin.assess.evaluate import Evaluator
from de_plugin.assess.problem import Problem
from de_plugin.assess.teacher import Forward
from de_plugin.errors import ArgumentError, DEWarning


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode with gradients possible; modes come back."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with torch.enable_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@dataclass(frozen=True)
class Asking:
    """What is measured, and on what: all that importances and pruners have in common.

    Attributes:
        teacher: a copy of the network as it was.
        batches: calibration data, see `de_plugin.prune`.
        divergence: between the teacher's outputs and the student's.
        forward: calls the model.
        samples: read at most this many.
        batch_size: samples in a forward pass.
        holdout: share of the samples that the gate decides on.
        seed: of every draw, in [0, 2**31).

    Raises:
        ArgumentError: a value cannot work.
    """

    teacher: nn.Module
    batches: Any
    divergence: str | Divergence | Callable[[Any, Any], Any] = "kl"
    forward: Forward | None = None
    samples: int | None = None
    batch_size: int = 256
    holdout: float = 0.1
    seed: int = 0
    _read: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse here what would fail only within a step, which the host counts as done."""
        counts = {"batch_size": self.batch_size}
        if self.samples is not None:
            counts["samples"] = self.samples
        check_asked("Directed Evolution", self.divergence, self.holdout, self.seed, **counts)

    def problem(
        self,
        model: nn.Module,
        couplings: Sequence[Coupling],
        evaluate: str | Callable[[Problem], Evaluator] = "auto",
    ) -> Problem:
        """Return the question what of some couplings can go; the model must be in eval mode.

        Where earlier steps have removed outputs of the network itself, the teacher's cannot be compared
        with those that are left: the model as it is now is the teacher then.
        """
        problem = self._problem(model, couplings, evaluate, self.teacher)
        if _comparable(problem):
            return problem
        warnings.warn(
            "model: its outputs have other shapes than before pruning, so it is compared with itself as it "
            "is now; add the layers that make its outputs to ignored_layers",
            DEWarning,
            stacklevel=2,
        )
        return self._problem(model, couplings, evaluate, teacher_of(model))

    def _problem(
        self,
        model: nn.Module,
        couplings: Sequence[Coupling],
        evaluate: str | Callable[[Problem], Evaluator],
        teacher: nn.Module,
    ) -> Problem:
        return Problem(
            model,
            self._data(model),
            divergence=self.divergence,
            forward=self.forward,
            samples=self.samples,
            batch_size=self.batch_size,
            holdout=self.holdout,
            seed=self.seed,
            evaluate=evaluate,
            units=CoupledUnits(model, couplings),
            teacher=teacher,
        )

    def _data(self, model: nn.Module) -> list[Any]:
        """Return the calibration data, read once: a generator must do for all groups and steps."""
        if not self._read:
            found = read(self.batches, samples=self.samples, memory=4 << 30, device=device_of(model))
            self._read.extend(
                (inputs,) if labels is None else (inputs, labels) for inputs, labels, _ in found
            )
        return self._read


def _comparable(problem: Problem) -> bool:
    """Tell whether the student's outputs have the shapes of its teacher's."""
    [batch] = problem.pool.take(problem.search[:1])
    with torch.no_grad():
        outputs = problem.forward(problem.model, batch.inputs)
    return [x.shape for x in leaves(outputs)] == [x.shape for x in leaves(batch.teacher)]


def teacher_of(model: Any) -> nn.Module:
    """Return a copy of a model in eval mode, without gradients.

    Raises:
        ArgumentError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model={model!r}: expected the torch.nn.Module that is to be pruned")
    with torch.no_grad():
        teacher = copy.deepcopy(model).eval()
    for parameter in teacher.parameters():
        parameter.grad = None
        parameter.requires_grad_(False)
    return teacher


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's first parameter is."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))
