"""Batch-norm matching: running statistics that give every channel its teacher's mean and variance.

Recalibration would put the student's own statistics into the layer, which normalises its outputs
but keeps nothing of the teacher's; here the outputs themselves are matched, as REPAIR does with
interpolated networks (Jordan et al., arXiv:2211.08403).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from de_plugin.assess.batches import Batch
from de_plugin.assess.guard import untouched_on_error
from de_plugin.assess.problem import Problem
from de_plugin.assess.repair import Repair, Statistics
from de_plugin.prune.recover.matching import MomentMatching
from de_plugin.prune.recover.moments import Moments, calibration, joined

_Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


def _norms(model: nn.Module) -> dict[str, _Norm]:
    """Return the batch norms that use running statistics, by name."""
    return {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, _Norm) and m.running_mean is not None and not m.training
    }


_ALIVE = 4
"""Tensors of the largest size that are there at once in a forward pass."""


@dataclass(frozen=True)
class BatchNormMatching(MomentMatching):
    """Choose running statistics so that each batch norm's output keeps its teacher's moments.

    Layers are matched in the order of execution, each on inputs that the earlier ones have shaped
    already, in one forward pass. Batches that cannot be joined (images of several sizes) are
    matched on those seen so far. Norms that are used more than once in a pass are left alone.

    Args:
        samples: how many search samples the moments are measured on.

    Raises:
        ArgumentError: `samples` is not positive.
    """

    @property
    def name(self) -> str:
        """Return "batchnorm"."""
        return "batchnorm"

    def __call__(self, problem: Problem) -> None:
        """Set the running statistics for good."""
        teacher = self._teacher(problem)
        batches = problem.pool.take(calibration(problem, self.samples), self.samples)
        with untouched_on_error(problem.model), problem.units.zeroed(problem.kept):
            _match(problem, batches, teacher)

    def in_assessment(self) -> Repair:
        """Return the matching on a candidate's own batches, undone on exit."""
        return Tentative(self)

    def watched(self, problem: Problem) -> Sequence[str]:
        """Return the names of the batch norms that are matched."""
        return list(self._teacher(problem))

    def matching(self, problem: Problem) -> AbstractContextManager[None]:
        """Match each batch norm for good just before it runs, in what is run inside the block."""
        return _matching(problem.model, self._teacher(problem))

    def _watched(self, model: nn.Module) -> dict[str, tuple[nn.Module, int]]:
        return {name: (norm, 1) for name, norm in _norms(model).items()}


@dataclass(frozen=True)
class Tentative:
    """The matching of one candidate, or of many side by side.

    Args:
        matching: which holds the teacher's moments.
    """

    matching: BatchNormMatching

    @contextmanager
    def __call__(self, problem: Problem, batches: list[Batch]) -> Iterator[None]:
        """Match on the given batches; the old statistics are back on exit."""
        teacher = self.matching._teacher(problem)
        saved = [
            (buffer, buffer.clone())
            for norm in _norms(problem.model).values()
            for buffer in (norm.running_mean, norm.running_var)
            if buffer is not None
        ]
        try:
            if teacher:
                _match(problem, joined(batches) if self._fit(problem, batches) else batches, teacher)
            yield
        finally:
            with torch.no_grad():
                for live, value in saved:
                    live.copy_(value)

    def _fit(self, problem: Problem, batches: list[Batch]) -> bool:
        """Say whether one pass over all batches keeps to the memory that the problem may take."""

        def measured() -> int:
            sizes = [0]
            with ExitStack() as stack, torch.no_grad():
                for norm in _norms(problem.model).values():
                    stack.callback(
                        norm.register_forward_pre_hook(lambda _, args: sizes.append(args[0].nbytes)).remove
                    )
                problem.forward(problem.model, problem.pool.take(problem.search[:1])[0].inputs)
            return _ALIVE * max(sizes)

        a_sample: int = problem.remember("bytes of a matched sample", measured)
        return len(batches) == 1 or a_sample * sum(b.size for b in batches) <= problem.memory

    @contextmanager
    def on_copy(self, problem: Problem, model: nn.Module, gone: Mapping[str, Tensor]) -> Iterator[None]:
        """Match a copy of the student that has really lost channels, as it runs.

        On a single batch the outputs are those of the matched model already.

        Args:
            problem: whose teacher is matched.
            model: the copy; its batch norms get statistics of their own.
            gone: the channels that each of its batch norms has lost, int64, by name.
        """
        teacher = dict(self.matching._teacher(problem))
        for name, norm in _norms(model).items():
            if name in teacher:
                for own in ("running_mean", "running_var"):
                    setattr(norm, own, getattr(norm, own).clone())
                if len(gone.get(name, ())):
                    teacher[name] = teacher[name].without(gone[name])
        with _matching(model, teacher):
            yield

    def statistics(self, problem: Problem) -> Mapping[int, Statistics]:
        """Return what matches each batch norm on its inputs, by ``id`` of its running mean."""
        teacher = self.matching._teacher(problem)
        return {
            id(norm.running_mean): partial(
                _statistics, norm, teacher[name], norm.running_mean, norm.running_var
            )
            for name, norm in _norms(problem.model).items()
            if name in teacher and norm.running_mean is not None and norm.running_var is not None
        }


def _statistics(norm: _Norm, teacher: Moments, mean: Tensor, var: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the running statistics that match a norm on inputs ``(samples, channels, ...)``."""
    own_var, own_mean = torch.var_mean(x.movedim(1, 0).flatten(1).double(), 1, correction=0)
    return matched(norm, (own_mean, own_var), teacher, mean, var)


def _match(problem: Problem, batches: list[Batch], teacher: Mapping[str, Moments]) -> None:
    """Run the student as it stands; a batch norm gets its statistics just before it runs."""
    with _matching(problem.model, teacher), torch.no_grad():
        for batch in batches:
            problem.forward(problem.model, batch.inputs)


@contextmanager
def _matching(model: nn.Module, teacher: Mapping[str, Moments]) -> Iterator[None]:
    """Give each batch norm its statistics just before it runs, from all it has seen inside."""
    seen: dict[str, Moments] = {}
    norms = {name: norm for name, norm in _norms(model).items() if name in teacher}
    before = {
        name: (norm.running_mean.clone(), norm.running_var.clone())
        for name, norm in norms.items()
        if norm.running_mean is not None and norm.running_var is not None
    }

    def adjust(name: str) -> Any:
        def hook(norm: Any, args: tuple[Tensor, ...]) -> None:
            moments = seen.setdefault(name, Moments()).add(args[0], 1)
            mean, var = matched(norm, (moments.mean, moments.var), teacher[name], *before[name])
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(var)

        return hook

    with ExitStack() as stack:
        for name, norm in norms.items():
            stack.callback(norm.register_forward_pre_hook(adjust(name)).remove)
        yield


def matched(
    norm: _Norm, student: tuple[Tensor, Tensor], teacher: Moments, mean: Tensor, var: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the running mean and variance that give the student's output the teacher's moments.

    From ``g (x - mean) / sqrt(var + eps) + b``: the output's variance is the teacher's when
    ``var + eps = g^2 v_x / v_T``, its mean when ``mean = m_x - (m_T - b) sqrt(var + eps) / g``.
    Where the input or the teacher's output is constant the old variance stays; where ``g`` is nil,
    both.

    Args:
        norm: whose ``weight``, ``bias`` and ``eps`` count.
        student: mean and variance of its input ``(channels,)``.
        teacher: moments of the teacher's output ``(channels,)``.
        mean: the running mean until now.
        var: the running variance until now.
    """
    old_mean, old_var = mean.double(), var.double()
    weight, bias = norm._parameters.get("weight"), norm._parameters.get("bias")
    gain = torch.ones_like(old_mean) if weight is None else weight.detach().double()
    shift = torch.zeros_like(old_mean) if bias is None else bias.detach().double()
    nil = gain.abs() < 1e-8
    student_mean, student_var = student
    rounding = 1e-12 * (student_mean.square() + old_var + norm.eps)
    nothing = 1e-12 * (gain.square() + teacher.mean.square())
    constant = (student_var <= rounding) | (teacher.var <= nothing)
    scaled = gain.square() * student_var / teacher.var.clamp_min(1e-300) - norm.eps
    new_var = torch.where(constant | nil, old_var, scaled.clamp_min(0))
    safe = torch.where(nil, torch.ones_like(gain), gain)
    new_mean = student_mean - (teacher.mean - shift) * (new_var + norm.eps).sqrt() / safe
    return torch.where(nil, old_mean, new_mean), new_var
