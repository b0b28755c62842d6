"""Images in which a detector sees objects of all its classes, made from the detector itself, without labels.

Few photographs show few of a detector's classes. Starts, such as photographs or noise, are changed by
gradient until it sees objects that were drawn, and until what enters its batch norms has the statistics of
the images that it was trained on (DeepInversion, Yin et al., arXiv:1912.08795; for detectors, Chawla et al.,
"Data-free Knowledge Distillation for Object Detection", WACV 2021).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from de_plugin.errors import ArgumentError, DataError

from .darknet import Darknet
from .photos import as_bytes

_SIDES = 0.1
"""Weight of the squared logarithms of a box's sides, so that they stay near the anchor's."""
_SHIFT = 4
"""Pixels by which images are moved at most before they are looked at, so that no pixel counts alone."""


@dataclass(frozen=True)
class Impressions:
    """How starts are changed.

    Args:
        objects: wanted in each image; classes are drawn so that each comes as often as the others.
        steps: of Adam.
        lr: learning rate at the start, of the pixels' logits; falls to zero as a cosine.
        statistics: weight of the squared errors of what enters batch norms: means as shares of the
            deviation, and logarithms of variances; a mean over channels and layers.
        smoothness: weight of the mean difference of pixels that lie side by side, from 0 to 1.
        batch: images that are changed, and whose statistics are taken, at once.

    Raises:
        ArgumentError: a number is out of range.
    """

    objects: int = 3
    steps: int = 250
    lr: float = 0.05
    statistics: float = 10.0
    smoothness: float = 10.0
    batch: int = 128

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        for name, count in (("objects", self.objects), ("steps", self.steps), ("batch", self.batch)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ArgumentError(f"{name}={count!r}: expected a positive whole number")
        if not 0 < self.lr < math.inf:
            raise ArgumentError(f"lr={self.lr}: expected a finite number above 0")
        for name, weight in (("statistics", self.statistics), ("smoothness", self.smoothness)):
            if not 0 <= weight < math.inf:
                raise ArgumentError(f"{name}={weight}: expected a finite number >= 0")

    def __call__(self, model: Darknet, starts: Tensor, generator: torch.Generator) -> Tensor:
        """Return as many images as there are starts; neither starts nor model are changed.

        Args:
            model: a trained detector with batch norms, in eval mode.
            starts: uint8 ``(images, 3, height, width)``, sides multiples of the network's stride.
            generator: on the CPU, draws what is wanted where.

        Returns:
            uint8 of the same shape, on the CPU.

        Raises:
            ArgumentError: starts are no such images, or none, or the model is in training mode.
            DataError: the model has no batch norm with statistics.
        """
        if starts.dtype != torch.uint8 or starts.dim() != 4 or starts.shape[1] != model.channels:
            raise ArgumentError(
                f"starts: {starts.dtype} {tuple(starts.shape)}, expected uint8 (images, {model.channels}, "
                "height, width)"
            )
        if not len(starts):
            raise ArgumentError("starts: there is none, expected at least one")
        if model.training:
            raise ArgumentError("model: is in training mode, in which it would change; call model.eval()")
        with _frozen(model):
            return torch.cat([self._changed(model, part, generator) for part in starts.split(self.batch)])

    def _changed(self, model: Darknet, starts: Tensor, generator: torch.Generator) -> Tensor:
        device = next(model.parameters()).device
        logits = torch.logit(starts.to(device).float() / 255, 0.01).requires_grad_(True)
        try:
            with torch.no_grad():
                sides = [x.shape[-2:] for x in model(starts[:1].to(device).float() / 255)]
        except RuntimeError as error:
            raise ArgumentError(
                f"starts: the model cannot look at images of {tuple(starts.shape[-2:])} ({error}); give "
                "sides that are multiples of its stride, such as 32"
            ) from error
        wanted = _Wanted.drawn(model, sides, (len(starts), self.objects), generator)
        optimizer = torch.optim.Adam([logits], self.lr)
        for step in range(self.steps):
            optimizer.param_groups[0]["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * step / self.steps))
            shifts = torch.randint(-_SHIFT, _SHIFT + 1, (2,), generator=generator).tolist()
            with torch.enable_grad(), _errors_of_statistics(model) as errors:
                images = logits.sigmoid()
                outputs = model(images.roll(shifts, (2, 3)))
                loss = wanted.missing(outputs) + self.smoothness * _roughness(images)
                loss = loss + self.statistics * torch.stack(errors).mean()
                (logits.grad,) = torch.autograd.grad(loss, [logits])
            optimizer.step()
        return as_bytes(logits.detach().sigmoid()).cpu()


@dataclass(frozen=True)
class _Wanted:
    """Objects that are wanted in images.

    Attributes:
        heads: the output that is to show each, ``(images, objects)``.
        classes: of each.
        places: anchor, row and column of each in every output, ``(outputs, 3, images, objects)``.
        anchors: how many each output has.
    """

    heads: Tensor
    classes: Tensor
    places: Tensor
    anchors: tuple[int, ...]

    @classmethod
    def drawn(
        cls, model: Darknet, sides: list[Sequence[int]], shape: tuple[int, int], generator: torch.Generator
    ) -> _Wanted:
        """Draw outputs, classes and places; none at the edge, where there are others.

        Args:
            model: the detector.
            sides: rows and columns of each output.
            shape: images, and objects in each.
            generator: draws.
        """

        def between(low: int, high: int) -> Tensor:
            return torch.randint(low, high, shape, generator=generator)

        heads = between(0, len(model.heads))
        places = []
        for head, counts in zip(model.heads, sides, strict=True):
            inner = [(1, n - 1) if n > 2 else (0, n) for n in counts]
            places.append(torch.stack([between(0, len(head.anchors)), *(between(*pair) for pair in inner)]))
        kinds = min(head.classes for head in model.heads)
        total = shape[0] * shape[1]
        rounds = [torch.randperm(kinds, generator=generator) for _ in range(0, total, kinds)]
        classes = torch.cat(rounds)[:total].reshape(shape)
        device = next(model.parameters()).device
        anchors = tuple(len(head.anchors) for head in model.heads)
        return cls(heads.to(device), classes.to(device), torch.stack(places).to(device), anchors)

    def missing(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return the nats by which the outputs doubt what is wanted, a mean over images of sums."""
        count = len(self.heads)
        images = torch.arange(count, device=self.heads.device)[:, None].expand_as(self.heads)
        total = outputs[0].new_zeros(())
        for n, x in enumerate(outputs):
            anchor, row, column = self.places[n]
            boxes = x.reshape(count, self.anchors[n], -1, *x.shape[-2:])
            found = boxes[images, anchor, :, row, column]
            kinds = F.one_hot(self.classes, found.shape[-1] - 5).to(found)
            doubt = F.softplus(-found[..., 4]) + _SIDES * found[..., 2:4].square().sum(-1)
            named = F.binary_cross_entropy_with_logits(found[..., 5:], kinds, reduction="none")
            total = total + ((doubt + named.sum(-1)) * (self.heads == n)).sum() / count
        return total


def _roughness(images: Tensor) -> Tensor:
    across = (images[..., 1:] - images[..., :-1]).abs().mean()
    return across + (images[..., 1:, :] - images[..., :-1, :]).abs().mean()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Ask for no gradients of parameters inside the block."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        model.requires_grad_(False)
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)


@contextmanager
def _errors_of_statistics(model: nn.Module) -> Iterator[list[Tensor]]:
    """Yield how far what enters each batch norm, in what is run inside the block, is from its statistics.

    Raises:
        DataError: there is no batch norm with statistics.
    """
    errors: list[Tensor] = []

    def hook(norm: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        variance, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
        wanted = norm.running_var.clamp_min(1e-8)
        ratio = variance.clamp_min(1e-8).log() - wanted.log()
        errors.append((ratio.square() + (mean - norm.running_mean).square() / wanted).mean())

    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.running_var is not None]
    if not norms:
        raise DataError("model: has no batch norm with statistics, which impressions are made from")
    with ExitStack() as stack:
        for norm in norms:
            stack.callback(norm.register_forward_hook(hook).remove)
        yield errors
