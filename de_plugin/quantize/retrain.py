"""Training with levels: their values while assignments are frozen, or the weights behind them.

Both go on where `de_plugin.prune.recover.Distillation` stops: its loss, its batches and its looks at
the held-back data are used.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from de_plugin.assess.guard import untouched_on_error
from de_plugin.encode.quantized import Quantized
from de_plugin.prune.recover import Distillation
from de_plugin.quantize.journal import digest
from de_plugin.quantize.rates import Rates
from de_plugin.quantize.student import Student
from de_plugin.quantize.survivors import Survivors, two_bytes
from de_plugin.quantize.trial import Trial


class Latent(ABC):
    """What is trained in a quantized tensor's place."""

    value: Tensor

    @abstractmethod
    def quantized(self) -> Quantized:
        """Return the levels as they are now."""

    @abstractmethod
    def pull(self, gradient: Tensor) -> Tensor:
        """Turn the gradient of the tensor into that of `value`."""


class Levels(Latent):
    """The levels of a tensor: the gradient of each is the sum of its members' (Han et al., sec. 3.3)."""

    def __init__(self, quantized: Quantized) -> None:
        self._old = quantized
        self.value = quantized.levels.clone()
        groups, count = self.value.shape
        column = quantized.symbols.long() - quantized.lowest
        if quantized.axis is not None:
            spread = [1] * column.dim()
            spread[quantized.axis] = -1
            column = column + count * torch.arange(groups).reshape(spread)
        self._at = column.reshape(-1)

    def quantized(self) -> Quantized:
        """Return the same symbols with two-byte levels."""
        return replace(self._old, levels=two_bytes(self.value))

    def pull(self, gradient: Tensor) -> Tensor:
        """Sum over the members; zero stays zero."""
        total = torch.zeros(self.value.numel()).index_add_(
            0, self._at, gradient.detach().cpu().float().reshape(-1)
        )
        total = total.reshape(self.value.shape)
        total[:, -self._old.lowest] = 0.0
        return total


class Stepped(Latent):
    """A tensor on multiples of a fixed step, trained straight through (Bengio et al., arXiv:1308.3432)."""

    def __init__(self, quantized: Quantized, value: Tensor) -> None:
        self._old = quantized
        beside = -quantized.lowest + (1 if quantized.levels.shape[1] > 1 - quantized.lowest else -1)
        self._step = abs(float(quantized.levels[0, beside])) if quantized.levels.shape[1] > 1 else 1.0
        exact, now = value.detach().cpu().float(), quantized.dequantize()
        self.value = torch.where((exact - now).abs() <= self._step / 2, exact, now)

    def quantized(self) -> Quantized:
        """Return the nearest multiples within the old range."""
        low = self._old.lowest
        high = low + self._old.levels.shape[1] - 1
        return replace(self._old, symbols=torch.round(self.value / self._step).clamp(low, high).int())

    def pull(self, gradient: Tensor) -> Tensor:
        """Pass it through."""
        return gradient.detach().cpu().float()


class Weights(Latent):
    """The survivors behind a tensor's levels, assigned anew at each step, trained straight through."""

    def __init__(self, survivors: Survivors, assign: Callable[[Survivors], Quantized]) -> None:
        self._survivors = survivors
        self._assign = assign
        self._places = torch.from_numpy(survivors.places)
        self.value = torch.from_numpy(survivors.values).float().clone()

    @property
    def survivors(self) -> Survivors:
        """The survivors with their values as they are now; none becomes exactly zero."""
        values = self.value.double()
        tiny = torch.finfo(torch.float32).tiny
        return replace(self._survivors, values=torch.where(values == 0, tiny, values).numpy())

    def quantized(self) -> Quantized:
        """Assign all survivors."""
        return self._assign(self.survivors)

    def pull(self, gradient: Tensor) -> Tensor:
        """Pass the survivors' part through."""
        return gradient.detach().cpu().float().reshape(-1)[self._places]


@dataclass(frozen=True)
class Retraining(ABC):
    """What both ways of training share.

    Args:
        training: steps, learning rate, weight of the labels and so on; label-free by default.
    """

    training: Distillation = field(default_factory=Distillation)

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name for tables."""

    @property
    def labels(self) -> float:
        """Weight of the labels' cross-entropy."""
        return self.training.labels

    def prepare(self, student: Student) -> None:
        """Check early that there is what training needs; see `Distillation.prepare`."""
        self.training.prepare(student.problem)

    def __call__(self, rates: Rates, trial: Trial) -> tuple[Rates, Trial]:
        """Return the trial after training, the best on the held-back data; the model is left as it is."""
        student = rates.student
        latents = self._latents(rates, trial)
        with untouched_on_error(student.problem.model) as before:
            try:
                found = _train(student, self.training, trial, latents)
            finally:
                before.restore()
        return self._after(rates, replace(found, name=f"{trial.name}+{self.name}"), latents)

    @abstractmethod
    def _latents(self, rates: Rates, trial: Trial) -> dict[str, Latent]:
        """Return what is trained for each quantized tensor."""

    def _after(self, rates: Rates, trial: Trial, latents: dict[str, Latent]) -> tuple[Rates, Trial]:
        return rates, trial


@dataclass(frozen=True)
class LevelTraining(Retraining):
    """Trains level values, biases and norms; who has which level stays (Han et al., arXiv:1510.00149)."""

    @property
    def name(self) -> str:
        """Return "levels"."""
        return "levels"

    def _latents(self, rates: Rates, trial: Trial) -> dict[str, Latent]:
        weights = {part.name for part in rates.student.parts}
        return {
            name: Levels(q) if name in weights else Stepped(q, rates.student.tensor(name))
            for name, q in trial.quantization.items()
        }


@dataclass(frozen=True)
class StraightThrough(Retraining):
    """Trains the weights behind the levels; assignments, zeros among them, follow at each step."""

    @property
    def name(self) -> str:
        """Return "straight-through"."""
        return "straight-through"

    def _latents(self, rates: Rates, trial: Trial) -> dict[str, Latent]:
        if trial.genome is None:
            return LevelTraining._latents(LevelTraining(self.training), rates, trial)
        result: dict[str, Latent] = {}
        for n, part in enumerate(rates.student.parts):
            rule = replace(rates.rule(n, trial.genome, trial.scale), rounds=2)

            def assign(survivors: Survivors, rule: Any = rule, part: Any = part) -> Quantized:
                return rates.student.exact(part, rule.of(survivors))

            result[part.name] = Weights(rates.survivors[n], assign)
        for name, q in trial.quantization.items():
            if name not in result:
                result[name] = Stepped(q, rates.student.tensor(name))
        return result

    def _after(self, rates: Rates, trial: Trial, latents: dict[str, Latent]) -> tuple[Rates, Trial]:
        found = [latents[part.name] for part in rates.student.parts]
        moved = tuple(
            x.survivors if isinstance(x, Weights) else old
            for x, old in zip(found, rates.survivors, strict=True)
        )
        return replace(rates, survivors=moved), trial


def _train(student: Student, rule: Distillation, trial: Trial, latents: dict[str, Latent]) -> Trial:
    """Return the best of the training, and leave the latent values at it."""
    problem = student.problem
    student.write(trial.quantization, trial.rest)
    named = student.tensors()
    quantized = [(name, named[name], latent) for name, latent in latents.items()]
    own = {id(x) for _, x, _ in quantized}
    free = [
        x
        for x in named.values()
        if isinstance(x, nn.Parameter) and id(x) not in own and x.is_floating_point()
    ]
    now = dict(trial.quantization)

    def put() -> None:
        now.update({name: latent.quantized() for name, _, latent in quantized})
        student.write(now)

    def pull(found: Sequence[Tensor | None]) -> list[Tensor | None]:
        mine = [
            None if g is None else latent.pull(g) for g, (_, _, latent) in zip(found, quantized, strict=False)
        ]
        return [*mine, *found[len(mine) :]]

    values = [*(latent.value for latent in latents.values()), *(p.data for p in free)]
    start = [x.clone() for x in values]
    place = None
    if problem.halfway is not None:  # a place for each start: other budgets lead to other ones
        before = problem.state_of("distill").get("calls")
        place = problem.halfway(
            f"levels-{digest([before, trial.name, trial.quantization, trial.rest, *values])}"
        )
    best = rule.descend(
        problem,
        [*(x for _, x, _ in quantized), *free],
        [nn.Parameter(x) for x in values],
        pull=pull,
        put=put,
        keep=lambda: [x.clone() for x in values],
        place=place,
    )
    for value, found in zip(values, best, strict=True):
        value.copy_(found)
    if not all(map(torch.equal, start, best)):  # else the trial's own levels were the best
        put()
    else:
        now = dict(trial.quantization)
    return replace(trial, quantization=now, rest=student.rest(now), divergence=math.nan, value=math.nan)
