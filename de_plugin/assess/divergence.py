"""How far the student's outputs are from the teacher's: kl, js, mse, cosine, or a user's measure.

A divergence is a mean over samples, zero at the teacher. Those with curvature (`Curved`) also say how to
draw targets whose squared gradient has the divergence's Hessian as expectation: that is the Fisher
information, label-free (Martens, arXiv:1412.1193, sec. 9).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from de_plugin.errors import ArgumentError, OutputError
from de_plugin.types import PyTree


@runtime_checkable
class Divergence(Protocol):
    """A measure of the student's distance from its teacher."""

    @property
    def name(self) -> str:
        """Short name for tables."""

    @property
    def differentiable(self) -> bool:
        """Whether a gradient flows from the result to the student's outputs."""

    def __call__(self, student: PyTree, teacher: PyTree, labels: Any = None) -> Tensor:
        """Return the mean over samples, a 0-dim tensor, zero when student equals teacher."""


@runtime_checkable
class Curved(Protocol):
    """A divergence whose Hessian at the teacher can be sampled."""

    def draw(self, outputs: PyTree, generator: torch.Generator) -> list[Tensor]:
        """Draw targets for outputs ``(samples, ...)``; one tensor an output."""

    def sampled_loss(self, outputs: PyTree, targets: list[Tensor]) -> Tensor:
        """Return the sum over samples of the loss whose squared gradient is the Fisher."""


def leaves(outputs: PyTree) -> list[Tensor]:
    """Return the floating-point tensors of a pytree in its order."""
    flat, _ = tree_flatten(outputs)
    return [x for x in flat if isinstance(x, Tensor) and x.is_floating_point()]


def _pairs(student: PyTree, teacher: PyTree) -> list[tuple[Tensor, Tensor]]:
    ours, theirs = leaves(student), leaves(teacher)
    if [x.shape for x in ours] != [x.shape for x in theirs]:
        raise OutputError(
            f"outputs: the student gives {[tuple(x.shape) for x in ours]}, the teacher "
            f"{[tuple(x.shape) for x in theirs]}; both must have the same shapes in the same order"
        )
    if not ours:
        raise OutputError("outputs: the model returns no floating-point tensor; use forward=")
    return [(wide(x), wide(y)) for x, y in zip(ours, theirs, strict=True)]


def wide(x: Tensor) -> Tensor:
    """Measure half-precision outputs in single precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _mean(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).mean()


def _uniform(x: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.rand(x.shape, generator=generator, dtype=torch.float64)
    return noise.to(x.device)


def _normal(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator).to(x)


@dataclass(frozen=True)
class KL:
    """Kullback-Leibler divergence KL(teacher || student) of softmax outputs.

    Args:
        temperature: both logits are divided by it; > 0. Of several the mean is taken: at high ones the
            small probabilities count as well (Hinton et al., arXiv:1503.02531, sec. 2).
        dim: the class dimension of every output, of what `logits` returns where it is given.
        logits: turns every output into finite logits, each sample by itself; None: outputs are logits.
            ``F.logsigmoid`` where sigmoids compete, such as those of bins around a pitch,
            ``lambda p: p.clamp_min(1e-12).log()`` for probabilities. Gets half precision as single.
    """

    temperature: float | tuple[float, ...] = 1.0
    dim: int = -1
    name: str = "kl"
    differentiable: bool = True
    curvature: float = 1.0
    logits: Callable[[Tensor], Tensor] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse temperatures that are not positive, and logits that nothing makes."""
        fine = all(isinstance(t, Real) and t > 0 and math.isfinite(t) for t in self._temperatures)
        if not (self._temperatures and fine):
            raise ArgumentError(
                f"temperature={self.temperature!r}: expected a finite number > 0, or a tuple of several"
            )
        if self.logits is not None and (isinstance(self.logits, type) or not callable(self.logits)):
            raise ArgumentError(
                f"logits={self.logits!r}: expected a function of one output, such as "
                "torch.nn.functional.logsigmoid, or None where outputs are logits"
            )

    def __call__(self, student: PyTree, teacher: PyTree, labels: Any = None) -> Tensor:
        """Return the mean over samples and positions, in nats."""
        return _mean(
            [
                self._between(self._log(ours, t), self._log(theirs, t))
                for ours, theirs in _pairs(student, teacher)
                for t in self._temperatures
            ]
        )

    def disagreement(self, student: PyTree, teacher: PyTree) -> Tensor:
        """Return how often the student's likeliest class is another one than the teacher's, in [0, 1]."""
        pairs = _pairs(student, teacher)
        likeliest = [[self._scaled(x, 1.0).argmax(self.dim) for x in pair] for pair in pairs]
        return _mean([(ours != theirs).float().mean() for ours, theirs in likeliest])

    def uninformed(self, teacher: PyTree) -> Tensor:
        """Return the divergence of a student that gives every sample the teacher's mean answer."""
        parts = []
        for theirs in leaves(teacher):
            for t in self._temperatures:
                log_p = self._log(wide(theirs), t)
                mean = log_p.exp().mean(0, keepdim=True).clamp_min(1e-30).log()
                parts.append(self._between(mean.expand_as(log_p), log_p))
        return _mean(parts)

    def draw(self, outputs: PyTree, generator: torch.Generator) -> list[Tensor]:
        """Draw classes from the softmax of each output; of several temperatures side by side, last."""
        targets = []
        for x in leaves(outputs):
            drawn = []
            for t in self._temperatures:
                p = F.softmax(self._scaled(x, t), self.dim).double().cumsum(self.dim)
                u = _uniform(p.narrow(self.dim, 0, 1), generator)
                index = (p < u * p.narrow(self.dim, -1, 1)).sum(self.dim)
                drawn.append(index.clamp(max=p.shape[self.dim] - 1))
            targets.append(torch.stack(drawn, -1) if len(drawn) > 1 else drawn[0])
        return targets

    def sampled_loss(self, outputs: PyTree, targets: list[Tensor]) -> Tensor:
        """Return the negative log-likelihood of the drawn classes."""
        parts = []
        for x, drawn in zip(leaves(outputs), targets, strict=True):
            classes = drawn.unbind(-1) if len(self._temperatures) > 1 else (drawn,)
            for t, y in zip(self._temperatures, classes, strict=True):
                log_p = self._log(x, t)
                nll = -log_p.gather(self.dim, y.unsqueeze(self.dim)).squeeze(self.dim)
                positions = max(1, nll[0].numel() if nll.dim() else 1)
                parts.append(nll.sum() * (self.curvature / positions) ** 0.5)
        total: Tensor = torch.stack(parts).sum() / len(parts) ** 0.5
        return total

    @property
    def _temperatures(self) -> tuple[float, ...]:
        return self.temperature if isinstance(self.temperature, tuple) else (self.temperature,)

    def _scaled(self, x: Tensor, temperature: float) -> Tensor:
        return (x if self.logits is None else self.logits(wide(x))) / temperature

    def _log(self, x: Tensor, temperature: float) -> Tensor:
        """Return log probabilities."""
        return F.log_softmax(self._scaled(x, temperature), self.dim)

    def _between(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """Return the mean divergence of log probabilities, the student's first."""
        return (log_p.exp() * (log_p - log_q)).sum(self.dim).mean()


@dataclass(frozen=True)
class JS(KL):
    """Jensen-Shannon divergence of softmax outputs: bounded by ln 2, a quarter of KL's curvature."""

    name: str = "js"
    curvature: float = 0.25

    def _between(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        log_m = torch.logaddexp(log_p, log_q) - math.log(2)
        both = log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)
        return 0.5 * both.sum(self.dim).mean()


_SCALES = tuple(0.1 * 1.38**n for n in range(13))
"""Factors of the student's logits, from a tenth to about five."""


@dataclass(frozen=True)
class CalibratedKL(KL):
    """KL as it is, mixed with KL after the student's logits got the scale that fits best.

    A network that has lost much is often only too sure or too unsure of the right answers, which one number
    mends (temperature scaling, Guo et al., arXiv:1706.04599, sec. 4.2). The scale is fitted to each output of
    each batch, so that this is no mean over samples: a guide for a search, not a measure to report.

    Args:
        temperature: of both logits, before.
        dim: the class dimension of every output.
        logits: turns an output into logits, see `KL`.
        share: weight of the calibrated term, in [0, 1].
    """

    name: str = "calibrated kl"
    share: float = 0.5

    def __post_init__(self) -> None:
        """Refuse temperatures that are not positive, and shares out of range."""
        super().__post_init__()
        if not 0 <= self.share <= 1:
            raise ArgumentError(f"share={self.share}: expected a number in [0, 1]")

    def _between(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        plain = super()._between(log_q, log_p)
        scaled = [
            super(CalibratedKL, self)._between(F.log_softmax(a * log_q, self.dim), log_p) for a in _SCALES
        ]
        return (1 - self.share) * plain + self.share * torch.stack([plain, *scaled]).amin(0)


@dataclass(frozen=True)
class MSE:
    """Mean squared error of the outputs, a mean over all their elements."""

    name: str = "mse"
    differentiable: bool = True

    def __call__(self, student: PyTree, teacher: PyTree, labels: Any = None) -> Tensor:
        """Return the mean over samples and elements, in squared output units."""
        return _mean([(ours - theirs).square().mean() for ours, theirs in _pairs(student, teacher)])

    def draw(self, outputs: PyTree, generator: torch.Generator) -> list[Tensor]:
        """Draw standard normal directions."""
        return [_normal(x, generator) for x in leaves(outputs)]

    def sampled_loss(self, outputs: PyTree, targets: list[Tensor]) -> Tensor:
        """Return the outputs along the drawn directions, scaled to the Hessian of the mean."""
        parts = [
            (x * e).sum() * (2 / max(1, x[0].numel())) ** 0.5
            for x, e in zip(leaves(outputs), targets, strict=True)
        ]
        total: Tensor = torch.stack(parts).sum() / len(parts) ** 0.5
        return total


@dataclass(frozen=True)
class Cosine:
    """One minus the cosine between student's and teacher's outputs along `dim`, in [0, 2]."""

    dim: int = -1
    name: str = "cosine"
    differentiable: bool = True

    def __call__(self, student: PyTree, teacher: PyTree, labels: Any = None) -> Tensor:
        """Return the mean over samples and positions."""
        parts = []
        for ours, theirs in _pairs(student, teacher):
            both_zero = (ours == 0).all(self.dim) & (theirs == 0).all(self.dim)
            away = 1 - F.cosine_similarity(ours, theirs, self.dim)
            parts.append(away.masked_fill(both_zero, 0).mean())
        return _mean(parts)

    def draw(self, outputs: PyTree, generator: torch.Generator) -> list[Tensor]:
        """Draw normal directions across the output, scaled by its length."""
        targets = []
        for x in leaves(outputs):
            unit = F.normalize(x.detach(), dim=self.dim)
            e = _normal(x, generator)
            across = e - unit * (unit * e).sum(self.dim, keepdim=True)
            targets.append(across / x.detach().norm(dim=self.dim, keepdim=True).clamp_min(1e-12))
        return targets

    def sampled_loss(self, outputs: PyTree, targets: list[Tensor]) -> Tensor:
        """Return the outputs along the drawn directions."""
        parts = []
        for x, e in zip(leaves(outputs), targets, strict=True):
            positions = max(1, x[0].numel() // x.shape[self.dim])
            parts.append((x * e).sum() * positions**-0.5)
        total: Tensor = torch.stack(parts).sum() / len(parts) ** 0.5
        return total


@dataclass(frozen=True)
class Custom:
    """A user's measure ``fn(student outputs, teacher outputs) -> number``, lower is better."""

    fn: Callable[[Any, Any], Any]
    name: str = "custom"

    @property
    def differentiable(self) -> bool:
        """True: found out when a gradient is asked for."""
        return True

    def __call__(self, student: PyTree, teacher: PyTree, labels: Any = None) -> Tensor:
        """Return what `fn` returns, as a tensor."""
        plain = (tree_map(_contiguous, outputs) for outputs in (student, teacher))  # for those that call view
        return torch.as_tensor(self.fn(*plain)).float().mean()


def _contiguous(x: Any) -> Any:
    return x.contiguous() if isinstance(x, Tensor) else x


@dataclass(frozen=True)
class Score:
    """The drop of a score that is better when larger, such as plain accuracy; needs no gradient.

    Args:
        fn: ``fn(outputs, reference) -> number``.
        against: what `fn` gets as reference: the batch's "labels" or the "teacher"'s outputs.
    """

    fn: Callable[[Any, Any], Any]
    against: Literal["labels", "teacher"] = "labels"
    name: str = "score"
    differentiable: bool = False

    def __post_init__(self) -> None:
        """Refuse unknown references."""
        if self.against not in ("labels", "teacher"):
            raise ArgumentError(f"against={self.against!r}: expected 'labels' or 'teacher'")

    def __call__(self, student: PyTree, teacher: PyTree, labels: Any = None) -> Tensor:
        """Return teacher's score minus student's."""
        if self.against == "labels" and labels is None:
            raise ArgumentError("Score(against='labels'): the calibration batches hold no labels")
        reference = labels if self.against == "labels" else teacher
        drop = torch.as_tensor(self.fn(teacher, reference)).double()
        return (drop - torch.as_tensor(self.fn(student, reference)).double()).mean().float()


_NAMED: dict[str, Divergence] = {"kl": KL(), "js": JS(), "mse": MSE(), "cosine": Cosine()}


def divergence(spec: str | Divergence | Callable[[Any, Any], Any]) -> Divergence:
    """Return the divergence that a name or a plain callable stands for.

    Args:
        spec: "kl", "js", "mse", "cosine"; an object such as ``KL(temperature=2)``; or a callable
            ``fn(student outputs, teacher outputs)`` that is zero at the teacher, lower is better
            (where larger is better, wrap it: ``Score(fn)``).

    Raises:
        ArgumentError: it is none of these.
    """
    if isinstance(spec, str):
        if spec not in _NAMED:
            raise ArgumentError(f"divergence={spec!r}: expected one of {', '.join(_NAMED)} or a callable")
        return _NAMED[spec]
    if isinstance(spec, Divergence) and not isinstance(spec, type):
        return spec
    if callable(spec) and not isinstance(spec, type):
        return Custom(spec)
    raise ArgumentError(f"divergence={spec!r}: expected a name, a divergence or a callable")
