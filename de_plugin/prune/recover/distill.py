"""Distillation: the survivors are trained to the teacher's answers, without labels or with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from de_plugin.assess.batches import Batch
from de_plugin.assess.guard import untouched_on_error
from de_plugin.assess.halfway import Halfway
from de_plugin.assess.labels import check_labels, cross_entropy
from de_plugin.assess.problem import Problem
from de_plugin.errors import ArgumentError, GradientError
from de_plugin.prune.recover.hints import Hints, Teacher, untouched, watched
from de_plugin.prune.recover.resume import Keeper, Training

T = TypeVar("T")


@dataclass(frozen=True)
class Distillation:
    """Train what survives with Adam, to the teacher's outputs (Hinton et al., arXiv:1503.02531).

    Every parameter that requires a gradient is trained (all of them where none does), prunable
    weights only where they are kept. The model stays in eval mode, so batch-norm statistics don't
    move. The best state on the held-back data is what remains; the starting point takes part, so
    that a distillation never ends worse there than it began; hints take no part in that look.

    Args:
        steps: of Adam; >= 0.
        lr: learning rate at the start; > 0.
        batch_size: search samples a step; each call of the recovery draws fresh ones.
        labels: weight of the labels' cross-entropy, in [0, 1]; the divergence weighs the rest.
        schedule: "cosine" to zero, or "constant".
        weight_decay: of Adam; >= 0.
        validate_every: steps between two looks at the held-back data.
        patience: stop after so many looks without a better one; None never stops early.
        hints: modules in the middle whose outputs the student repeats as well; None: outputs alone.
        augment: ``fn(inputs, generator) -> inputs`` makes as many other inputs of a batch at each step, such
            as images turned over, for which the teacher is asked anew; labels stay. It costs a forward pass
            more a step, and a copy of the model unless the teacher is one of its own. All chance must come
            from the generator, on the CPU, that depends on the seed, the call and the step; a checkpoint
            tells functions and dataclasses apart by what they hold, other objects by their class. None:
            the data as they are.

    Raises:
        ArgumentError: a number is out of range, or `hints` or `augment` is none.
    """

    steps: int = 500
    lr: float = 1e-3
    batch_size: int = 256
    labels: float = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = 0.0
    validate_every: int = 50
    patience: int | None = None
    hints: Hints | None = None
    augment: Callable[[Any, torch.Generator], Any] | None = field(default=None, metadata={"called": True})

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        if self.steps < 0 or self.batch_size < 1 or self.validate_every < 1:
            raise ArgumentError(
                f"steps={self.steps}, batch_size={self.batch_size}, validate_every="
                f"{self.validate_every}: expected steps >= 0 and the others positive"
            )
        if not 0 < self.lr < math.inf or not 0 <= self.weight_decay < math.inf:
            raise ArgumentError(
                f"lr={self.lr}, weight_decay={self.weight_decay}: expected lr > 0 and a decay >= 0"
            )
        if not 0 <= self.labels <= 1:
            raise ArgumentError(f"labels={self.labels}: expected a weight in [0, 1]")
        if str(self.schedule) not in ("cosine", "constant"):
            raise ArgumentError(f"schedule={self.schedule!r}: expected 'cosine' or 'constant'")
        if self.patience is not None and self.patience < 1:
            raise ArgumentError(f"patience={self.patience}: expected a positive number or None")
        if self.hints is not None and not isinstance(self.hints, Hints):
            raise ArgumentError(f"hints={self.hints!r}: expected Hints(modules=(...)) or None")
        if self.augment is not None and not callable(self.augment):
            raise ArgumentError(f"augment={self.augment!r}: expected fn(inputs, generator) or None")

    @property
    def name(self) -> str:
        """Return "distill"."""
        return "distill"

    def prepare(self, problem: Problem) -> None:
        """Check early that there is what training needs.

        Raises:
            GradientError: the divergence has no gradient.
            DataError: labels are asked for and the calibration data have none.
            ArgumentError: hints name no module, or the teacher cannot be copied and has to be.
        """
        self._teacher(problem)
        if self.labels > 0:
            problem.require_labels(f"Distillation(labels={self.labels})")
        if not problem.has_gradient:
            raise GradientError(
                f"divergence={problem.divergence.name!r}: no gradient reaches the weights, so "
                "nothing can be distilled; use a differentiable divergence or recovery='batchnorm'"
            )

    def in_assessment(self) -> None:
        """Return None: training is not cheap."""
        return

    def __call__(self, problem: Problem) -> None:
        """Train the survivors; zeroed values, gradients and flags come back as they were.

        Raises:
            GradientError: the divergence has no gradient.
            DataError: labels are asked for and the calibration data have none.
            ArgumentError: hints name no module, a teacher was not copied in time, or `augment` gives other
                inputs than the model takes.
            OutputError: hinted modules of student and teacher give other shapes, or nothing to learn from;
                the teacher's outputs for what `augment` gives are not finite.
        """
        self.prepare(problem)
        parameters = _trainable(problem.model)
        masks = _masks(problem, parameters)
        grads = [(p, p.grad, p.requires_grad) for p in parameters]
        with untouched_on_error(problem.model):
            try:
                with problem.units.zeroed(problem.kept):
                    best = self._train(problem, parameters, masks)
            finally:
                for p, grad, flag in grads:
                    p.requires_grad_(flag)
                    p.grad = grad
            for p, value, mask in zip(parameters, best, masks, strict=True):
                p.data.copy_(value if mask is None else torch.where(mask, value, p.data))

    def _train(
        self, problem: Problem, parameters: list[nn.Parameter], masks: list[Tensor | None]
    ) -> list[Tensor]:
        """Return the best values on the held-back data, the starting point among them."""

        def pull(found: Sequence[Tensor | None]) -> list[Tensor | None]:
            pairs = zip(found, masks, strict=True)
            return [g if g is None or mask is None else g * mask for g, mask in pairs]

        return self.descend(
            problem,
            parameters,
            parameters,
            pull=pull,
            put=lambda: None,
            keep=lambda: [p.detach().clone() for p in parameters],
            place=None if problem.halfway is None else problem.halfway(f"distill-{self._calls(problem)}"),
        )

    def descend(
        self,
        problem: Problem,
        live: Sequence[Tensor],
        trained: Sequence[nn.Parameter],
        *,
        pull: Callable[[Sequence[Tensor | None]], Sequence[Tensor | None]],
        put: Callable[[], None],
        keep: Callable[[], T],
        place: Halfway | None = None,
    ) -> T:
        """Train, and return what there was at the best look at the held-back data, the first among them.

        Args:
            problem: whose student is trained.
            live: the model's parameters, whose gradients are taken; they are made to require them.
            trained: what the optimizer changes; may be the same.
            pull: turns gradients of `live` into those of `trained`.
            put: brings `live` up to date with `trained`; called before each use of the model but the first.
            keep: returns what is worth keeping of the present state.
            place: where the training is kept half-way; `keep` must return copies of `trained` then.
        """
        held_back = problem.pool.take(problem.held_back)
        optimizer = _adam(list(trained), self.lr, self.weight_decay)
        training = Training(trained, optimizer, self.validate(problem, held_back), keep())
        for p in live:
            p.requires_grad_(True)
        keeper = Keeper(problem, training, place)
        finished = keeper.resume()
        call = problem.state_of("distill")["calls"] = self._calls(problem)  # also where there is none left
        sources = self._batches(problem, call, training.step)
        teacher = self._teacher(problem)
        if teacher is not None and self.augment is not None:
            teacher.check_called(problem, problem.pool.take(problem.search[:1])[0])
        while (
            not finished
            and training.step < self.steps
            and (self.patience is None or training.waited < self.patience)
        ):
            optimizer.param_groups[0]["lr"] = self._rate(training.step)
            put()
            with torch.enable_grad():
                batches = self._fresh(problem, next(sources), problem.generator(17, call, training.step))
                loss = self._loss(problem, batches, teacher)
                found = torch.autograd.grad(loss, live, allow_unused=True)
            for p, g in zip(trained, pull(found), strict=True):
                p.grad = None if g is None else _laid_out(g, p)
            optimizer.step()
            training.step += 1
            if training.step % self.validate_every and training.step < self.steps:
                continue
            put()
            if teacher is not None and self.augment is not None:
                teacher.check_finite()
            training.look(self.validate(problem, held_back), keep)
            keeper.keep()
        if not finished:
            keeper.finish()
        best: T = training.best
        return best

    def _rate(self, step: int) -> float:
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def _calls(self, problem: Problem) -> int:
        """Return how many trainings of this problem there were before."""
        return int(problem.state_of("distill").get("calls", -1)) + 1

    def _batches(self, problem: Problem, call: int, done: int = 0) -> Iterator[list[Batch]]:
        """Yield the batches of one step after the other, in epochs of shuffled search samples.

        Those of the steps that are done already are drawn, and not read.
        """
        generator = problem.generator(3, call)
        items = round(self.batch_size * problem.pool.count / problem.pool.samples)
        items = max(1, min(items, len(problem.search)))
        while True:
            order = problem.search[torch.randperm(len(problem.search), generator=generator)]
            for start in range(0, len(order) - items + 1, items):
                if done > 0:
                    done -= 1
                    continue
                yield problem.pool.take(order[start : start + items], items)

    def _teacher(self, problem: Problem) -> Teacher | None:
        """Return the teacher where it is asked at each step."""
        if self.hints is not None:
            return self.hints.teacher(problem)
        asked = self.augment is not None and self.labels < 1
        return Teacher(untouched(problem), (), 0.0) if asked else None

    def _fresh(self, problem: Problem, batches: list[Batch], generator: torch.Generator) -> list[Batch]:
        """Return batches of inputs that were not there before, where asked; their answers are still old."""
        if self.augment is None:
            return batches
        result = []
        for batch in batches:
            inputs = batch.inputs
            if problem.pool.stacked is None:  # else they are a copy
                inputs = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, inputs)
            with torch.no_grad():
                made = self.augment(inputs, generator)
            sizes, given = _sizes(made), _sizes(batch.inputs)
            if sizes[:1] != given[:1]:
                raise ArgumentError(
                    f"augment: gave a {type(made).__name__} of tensors with {sizes} samples for {given}; "
                    "expected as many samples, in what the model takes"
                )
            result.append(replace(batch, inputs=made))
        return result

    def _loss(self, problem: Problem, batches: list[Batch], teacher: Teacher | None = None) -> Tensor:
        """Return the mixture of divergence and cross-entropy, a mean over samples, with hints if asked."""
        total = torch.zeros((), device=problem.device)
        samples = sum(b.size for b in batches)
        for batch in batches:
            answers, wanted = batch.teacher, list[list[Tensor]]()
            if teacher is not None:
                asked, wanted = teacher.ask(problem, batch.inputs)
                if self.augment is not None:
                    answers = asked
                    teacher.note(problem, asked)
            with watched(problem.model, () if teacher is None else teacher.names) as features:
                outputs = problem.forward(problem.model, batch.inputs)
            part = total.new_zeros(())
            if self.labels < 1:
                measured = problem.divergence(outputs, answers, batch.labels)
                part = measured.to(problem.device) * (1 - self.labels)
            if teacher is not None and teacher.names:
                part = part + teacher.errors(problem, features, wanted)
            if self.labels > 0:
                check_labels(outputs, batch.labels)
                part = part + self.labels * cross_entropy(outputs, batch.labels)
            total = total + part * (batch.size / samples)
        return total

    def validate(self, problem: Problem, batches: list[Batch]) -> float:
        """Return the loss without hints, on some batches; infinity where it is not finite."""
        with torch.no_grad():
            value = float(self._loss(problem, batches))
        return value if math.isfinite(value) else math.inf


def _sizes(inputs: Any) -> list[int]:
    """Return the length of each tensor's first dimension."""
    return [len(x) for x in tree_leaves(inputs) if isinstance(x, Tensor) and x.dim()]


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    every = [p for p in model.parameters() if p.is_floating_point()]
    return [p for p in every if p.requires_grad] or every


def _masks(problem: Problem, parameters: list[nn.Parameter]) -> list[Tensor | None]:
    """Return each parameter's mask in its own shape, None where nothing of it is zeroed."""
    named = problem.units.masks(problem.kept)
    by_id = {id(p): named[name] for name, p in problem.units.parameters().items()}
    result: list[Tensor | None] = []
    for p in parameters:
        mask = by_id.get(id(p))
        partial = mask is not None and not bool(mask.all())
        result.append(mask.to(p.device).contiguous() if partial and mask is not None else None)
    return result


def _laid_out(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Return the gradient in the parameter's own layout in memory.

    A convolution of images with channels last has a gradient with channels last, whatever its weight is; the
    fused Adam reads both as they lie in memory, and would give each weight another one's gradient.
    """
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _adam(parameters: list[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Adam:
    """Return the fused Adam where this torch has one for the device, else the foreach one."""
    try:
        return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    except RuntimeError:
        return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, foreach=True)
