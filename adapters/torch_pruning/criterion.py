"""Importances of Torch-Pruning as criteria of the engine, fed as their papers ask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional as F

from de_plugin.adapters.torch_pruning.ties import positions
from de_plugin.assess.granularity import Channel
from de_plugin.assess.problem import Problem
from de_plugin.criteria.scoring import finish
from de_plugin.errors import ArgumentError, GradientError
from de_plugin.types import Mask, Scores

GROUPS = "torch_pruning groups"
"""Under this key a problem remembers the host's groups: `Ranked` for each of its couplings, in order."""


@dataclass(frozen=True)
class Ranked:
    """A group, and how its channels make up units.

    Attributes:
        group: the host's, with all channels.
        parts: parts of one size; a unit is a channel of each.
        heads: whole heads are units; 0 for channels.
    """

    group: Any
    parts: int = 1
    heads: int = 0

    def units(self, scores: Tensor) -> Tensor:
        """Average scores of channels over units."""
        if self.heads:
            return scores.reshape(self.heads, -1).mean(1)
        return scores.reshape(self.parts, -1).mean(0)


@dataclass(frozen=True)
class HostCriterion:
    """An importance of Torch-Pruning that ranks units; made by `as_criterion`.

    Args:
        importance: the host's.
        samples: calibration samples for those that need gradients.
    """

    importance: Any
    samples: int = 512

    @property
    def name(self) -> str:
        """Return the importance's class name."""
        return type(self.importance).__name__

    @property
    def needs_gradient(self) -> bool:
        """Whether the importance reads gradients."""
        return isinstance(self.importance, tp.importance.GroupTaylorImportance | _HESSIAN)

    def __call__(self, problem: Problem, eligible: Mask, count: int) -> Scores:
        """Score every unit by the host's importance at the student, ``(units,)``.

        Raises:
            ArgumentError: the units are no channels, or the importance gives something else than scores.
            GradientError: gradients are needed, and outputs are no logits and there are no labels.
        """
        groups = problem.remember(GROUPS, lambda: _groups(problem))
        with problem.units.zeroed(problem.kept), self._fed(problem), _seeded(problem):
            parts = [self._score(ranked) for ranked in groups]
        return finish(problem, eligible, torch.cat(parts), self.name)

    def _score(self, ranked: Ranked) -> Tensor:
        with torch.no_grad():
            scores = self.importance(ranked.group)
        if not isinstance(scores, Tensor) or scores.shape != (positions(ranked.group),):
            shape = tuple(scores.shape) if isinstance(scores, Tensor) else scores
            raise ArgumentError(
                f"importance {self.name}: gave {shape} for a group of {positions(ranked.group)} channels; "
                "expected one score a channel"
            )
        return ranked.units(scores.detach().double().cpu())

    @contextmanager
    def _fed(self, problem: Problem) -> Iterator[None]:
        """Let `.grad` hold what the importance reads; the user's own come back."""
        if not self.needs_gradient:
            yield
            return
        parameters = list(problem.model.parameters())
        saved = [(p, p.grad, p.requires_grad) for p in parameters]
        try:
            for p in parameters:
                p.requires_grad_(p.is_floating_point())
            squared = isinstance(self.importance, _HESSIAN)
            for p, g in zip(parameters, _gradients(problem, parameters, self.samples, squared), strict=True):
                p.grad = g
            if squared:
                self.importance.zero_grad()
            yield
        finally:
            for p, grad, flag in saved:
                p.grad = grad
                p.requires_grad_(flag)


@contextmanager
def _seeded(problem: Problem) -> Iterator[None]:
    """Let importances that draw from torch's own generator do so from the problem's seed."""
    with torch.random.fork_rng(devices=[]):
        calls = problem.remember(_CALLS, lambda: [0])
        calls[0] += 1
        torch.default_generator.manual_seed(problem.generator(3, calls[0]).initial_seed())
        yield


_CALLS = "torch_pruning calls"
_HESSIAN = tp.importance.GroupHessianImportance


def as_criterion(importance: Any, *, samples: int = 512) -> HostCriterion:
    """Return an importance of Torch-Pruning as a criterion that nests and blends with the engine's.

    Taylor importances are fed the mean gradient of the loss, Hessian ones the mean squared gradient over
    samples; the loss is the cross-entropy with the batches' labels, or with the teacher's decisions.

    Args:
        importance: an instance, such as ``tp.importance.LAMPImportance()``.
        samples: calibration samples for gradients.

    Raises:
        ArgumentError: it is no importance of the host, or one that hooks into training.

    >>> import de_plugin, torch_pruning as tp
    >>> de_plugin.nest(de_plugin.DirectedEvolution(), as_criterion(tp.importance.LAMPImportance())).name
    'nest(de, LAMPImportance)'
    """
    if isinstance(importance, type) or not callable(importance):
        raise ArgumentError(f"importance={importance!r}: expected an instance, as in LAMPImportance()")
    if isinstance(importance, tp.importance.OBDCImportance) and not importance.Fisher:
        raise ArgumentError(
            "importance=OBDCImportance(): has seen no backward pass; run its _prepare_model and step on your "
            "data first, as the host's documentation shows"
        )
    return HostCriterion(importance, samples)


def _groups(problem: Problem) -> list[Ranked]:
    """Return the group of each layer of a problem whose units are output channels."""
    if not isinstance(problem.units.granularity, Channel):
        raise ArgumentError(
            f"granularity={problem.units.granularity.name!r}: importances of Torch-Pruning rank channels; "
            "use granularity='channel', or the pruners of de_plugin.adapters.torch_pruning"
        )
    [batch] = problem.pool.take(problem.search[:1])
    with torch.enable_grad():
        graph = tp.DependencyGraph().build_dependency(
            problem.model, example_inputs=batch.inputs, forward_fn=problem.forward
        )
    result = []
    for layer in problem.units.layers:
        pruner = graph.get_pruner_of_module(layer.module)
        channels = list(range(layer.count))
        result.append(Ranked(graph.get_pruning_group(layer.module, pruner.prune_out_channels, channels)))
    return result


def _gradients(problem: Problem, parameters: list[nn.Parameter], samples: int, squared: bool) -> list[Tensor]:
    """Return the mean gradient of the loss over samples, or the mean of its squares."""
    total = [torch.zeros_like(p) for p in parameters]
    index = problem.draw(samples)
    live = [n for n, p in enumerate(parameters) if p.requires_grad]
    for batch in problem.pool.take(index, 1 if squared else len(index)):
        with torch.enable_grad():
            outputs = problem.forward(problem.model, batch.inputs)
            loss = _loss(outputs, batch.labels, batch.teacher)
            found = torch.autograd.grad(loss, [parameters[n] for n in live], allow_unused=True)
        for n, g in zip(live, found, strict=True):
            if g is not None:
                total[n] += (g.square() if squared else g) * (batch.size / len(index))
    return total


def _loss(outputs: Any, labels: Any, teacher: Any) -> Tensor:
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:
        raise GradientError(
            "importance: needs gradients of a loss, and the outputs are no logits (samples, classes); use an "
            "importance that needs none, or Fisher() of the engine"
        )
    targets = labels if isinstance(labels, Tensor) else teacher.argmax(1)
    return F.cross_entropy(outputs, targets)
