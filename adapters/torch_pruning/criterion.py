"""Importances of Torch-Pruning as criteria of the engine, fed as their papers ask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from de_plugin.adapters.torch_pruning.seeing import activations_seen, loss_of, squares_seen
from de_plugin.adapters.torch_pruning.ties import positions
from de_plugin.assess.granularity import Channel
from de_plugin.assess.guard import check_counts
from de_plugin.assess.problem import Problem
from de_plugin.criteria.scoring import finish
from de_plugin.errors import ArgumentError
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
        samples: calibration samples for those that need data.
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
        return isinstance(self.importance, tp.importance.GroupTaylorImportance | _HESSIAN | _KRONECKER)

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
                f"importance {self.name}: gave {shape} for a group of {positions(ranked.group)} channels of "
                f"{ranked.group[0].dep.target.name}; expected one score each. Leave layers out that have "
                "nothing that it reads, such as a batch norm or a layer behind them"
            )
        return ranked.units(scores.detach().double().cpu())

    @contextmanager
    def _fed(self, problem: Problem) -> Iterator[None]:
        """Let the importance see what it reads; the user's gradients, and the model, come back."""
        if isinstance(self.importance, tp.importance.ActivationImportance):
            with activations_seen(problem, self.importance, self.samples):
                yield
            return
        if not self.needs_gradient:
            yield
            return
        parameters = list(problem.model.parameters())
        saved = [(p, p.grad, p.requires_grad) for p in parameters]
        unfed = isinstance(self.importance, _KRONECKER) and not self.importance.Fisher
        try:
            for p in parameters:
                p.requires_grad_(p.is_floating_point())
            squared = isinstance(self.importance, _HESSIAN) or unfed
            found = _gradients(problem, parameters, self.samples, squared)
            for p, g in zip(parameters, found, strict=True):
                p.grad = g
            if isinstance(self.importance, _HESSIAN):
                self.importance.zero_grad()
            squares = {id(p): g for p, g in zip(parameters, found, strict=True)}
            with squares_seen(problem, self.importance, squares) if unfed else nullcontext():
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
_KRONECKER = tp.importance.OBDCImportance


def as_criterion(importance: Any, *, samples: int = 512) -> HostCriterion:
    """Return an importance of Torch-Pruning as a criterion that nests and blends with the engine's.

    Taylor importances are fed the mean gradient of the loss, Hessian ones and OBDC the mean squared gradient
    over samples; the loss is the cross-entropy with the batches' labels, or with the teacher's decisions.
    Activation is fed the inputs of all layers. An OBDC that has seen a backward pass keeps what it saw;
    it gives no scores for the channels of attention.

    Args:
        importance: an instance, such as ``tp.importance.LAMPImportance()``.
        samples: calibration samples for those that need data.

    Raises:
        ArgumentError: it is no importance, or `samples` is no positive number.

    >>> import de_plugin, torch_pruning as tp
    >>> de_plugin.nest(de_plugin.DirectedEvolution(), as_criterion(tp.importance.LAMPImportance())).name
    'nest(de, LAMPImportance)'
    """
    if isinstance(importance, type) or not callable(importance):
        raise ArgumentError(f"importance={importance!r}: expected an instance, as in LAMPImportance()")
    check_counts("as_criterion", samples=samples)
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
            loss = loss_of(outputs, batch.labels, batch.teacher)
            found = torch.autograd.grad(loss, [parameters[n] for n in live], allow_unused=True)
        for n, g in zip(live, found, strict=True):
            if g is not None:
                total[n] += (g.square() if squared else g) * (batch.size / len(index))
    return total
