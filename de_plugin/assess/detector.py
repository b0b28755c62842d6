"""How far a detector's raw outputs are from its teacher's: what the teacher sees counts, background doesn't.

A dense detector answers at thousands of places, nearly all of them empty. Here each place's objectness is
compared, and classes and boxes as much as the teacher believes in an object there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from de_plugin.assess.divergence import leaves, wide
from de_plugin.errors import ArgumentError, OutputError
from de_plugin.types import PyTree


@dataclass(frozen=True)
class Head:
    """How one output ``(samples, anchors x fields, *places)`` of a dense detector is to be read.

    Args:
        anchors: predictions a place.
        classes: logits of classes in each prediction, each on its own (sigmoids).
        objectness: field that holds the logit of an object; None: the largest class tells.
        first_class: field of the first class.
        centres: fields of the box's centre, as logits within the place.
        sides: fields of the box's sides, as logarithms or plain numbers.
        fields: numbers in each prediction; 0: classes are the last of them.

    Raises:
        ArgumentError: fields overlap or lie outside.

    >>> Head(3, 80).fields  # YOLOv3 on COCO: x, y, width, height, objectness, 80 classes
    85
    """

    anchors: int
    classes: int
    objectness: int | None = 4
    first_class: int = 5
    centres: tuple[int, ...] = (0, 1)
    sides: tuple[int, ...] = (2, 3)
    fields: int = 0

    def __post_init__(self) -> None:
        """Refuse a layout that cannot be."""
        if self.fields == 0:
            object.__setattr__(self, "fields", self.first_class + self.classes)
        single = [*self.centres, *self.sides, *([] if self.objectness is None else [self.objectness])]
        every = [*single, *range(self.first_class, self.first_class + self.classes)]
        if self.anchors < 1 or self.classes < 1 or len(set(every)) != len(every):
            raise ArgumentError(f"{self}: expected anchors and classes >= 1 and fields that don't overlap")
        if min(every) < 0 or max(every) >= self.fields:
            raise ArgumentError(
                f"{self}: fields {min(every)} to {max(every)}, expected 0 to {self.fields - 1}"
            )


@dataclass(frozen=True)
class Detector:
    """The divergence of a dense detector, a mean over samples of sums over all places, in nats.

    With o the teacher's probability of an object, each prediction adds ``1 + objects o`` times the Bernoulli
    divergence of objectness, and o times those of its classes and `boxes` times its box's squared error
    (centres as shares of their place, sides as they are).

    Args:
        heads: layout of each output, in the order of the model's outputs.
        boxes: weight of squared errors of boxes, >= 0.
        objects: how much more objectness counts where there is an object, >= 0: a student that is trained
            doubts less of what its teacher sees, and sees more that its teacher does not.

    Raises:
        ArgumentError: there is no head, a weight is out of range, or no head has the objectness that is to
            count more.
        OutputError: when measuring: outputs don't have the layout.
    """

    heads: tuple[Head, ...]
    boxes: float = 1.0
    objects: float = 0.0
    name: str = "detector"
    differentiable: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if (
            not isinstance(self.heads, tuple)
            or not self.heads
            or not all(isinstance(h, Head) for h in self.heads)
        ):
            raise ArgumentError(
                f"heads={self.heads!r}: expected a tuple of Head(anchors, classes), one an output"
            )
        for name, weight in (("boxes", self.boxes), ("objects", self.objects)):
            if not 0 <= weight < math.inf:
                raise ArgumentError(f"{name}={weight}: expected a finite weight >= 0")
        if self.objects > 0 and all(h.objectness is None for h in self.heads):
            raise ArgumentError(
                f"objects={self.objects}: no head has objectness, so nothing would count more"
            )

    def __call__(self, student: PyTree, teacher: PyTree, labels: Any = None) -> Tensor:
        """Return the divergence, a 0-dim tensor."""
        shapes = [[tuple(x.shape) for x in leaves(outputs)] for outputs in (student, teacher)]
        if shapes[0] != shapes[1]:
            raise OutputError(
                f"outputs: the student gives {shapes[0]}, the teacher {shapes[1]}; expected the same"
            )
        total: Tensor | None = None
        for head, ours, theirs in zip(self.heads, self._read(student), self._read(teacher), strict=True):
            value = self._divergence(head, ours, theirs) / len(theirs)
            total = value if total is None else total + value
        assert total is not None  # there is a head
        return total

    def draw(self, outputs: PyTree, generator: torch.Generator) -> list[Tensor]:
        """Draw objects and classes as the outputs believe in them, and directions for boxes."""
        targets = []
        for head, x in zip(self.heads, self._read(outputs), strict=True):
            noise = torch.rand(x.shape, generator=generator).to(x)
            drawn = (noise < x.sigmoid()).to(x.dtype)
            lines = [*head.centres, *head.sides]
            drawn[:, :, lines] = torch.randn(drawn[:, :, lines].shape, generator=generator).to(x)
            targets.append(drawn)
        return targets

    def sampled_loss(self, outputs: PyTree, targets: list[Tensor]) -> Tensor:
        """Return the sum over samples of the loss whose squared gradient is the Fisher information."""
        total: Tensor | None = None
        for head, x, y in zip(self.heads, self._read(outputs), targets, strict=True):
            belief = _belief(head, x.detach())
            root = belief.sqrt()
            nll = F.binary_cross_entropy_with_logits(x, y, reduction="none")
            value = (root[:, :, None] * nll[:, :, _classes(head)]).sum()
            if head.objectness is not None:
                value = value + ((1 + self.objects * belief).sqrt() * nll[:, :, head.objectness]).sum()
            for field, values in _lines(head, x):
                value = value + ((2 * self.boxes) ** 0.5 * root * y[:, :, field] * values).sum()
            total = value if total is None else total + value
        assert total is not None  # there is a head
        return total

    def _divergence(self, head: Head, ours: Tensor, theirs: Tensor) -> Tensor:
        belief = _belief(head, theirs)
        value = (
            belief[:, :, None] * _bernoulli(ours[:, :, _classes(head)], theirs[:, :, _classes(head)])
        ).sum()
        if head.objectness is not None:
            found = _bernoulli(ours[:, :, head.objectness], theirs[:, :, head.objectness])
            value = value + ((1 + self.objects * belief) * found).sum()
        for (_, mine), (_, yours) in zip(_lines(head, ours), _lines(head, theirs), strict=True):
            value = value + self.boxes * (belief * (mine - yours).square()).sum()
        return value

    def _read(self, outputs: PyTree) -> list[Tensor]:
        """Return each head's outputs as ``(samples, anchors, fields, places)``."""
        found = leaves(outputs)
        wanted = [head.anchors * head.fields for head in self.heads]
        shapes = [tuple(x.shape) for x in found]
        if [shape[1] if len(shape) > 2 else None for shape in shapes] != wanted:
            raise OutputError(
                f"outputs have the shapes {shapes}, expected (samples, channels, ...) with the channels "
                f"{wanted} of heads={self.heads}: give one Head an output, in their order"
            )
        return [
            wide(x).reshape(len(x), head.anchors, head.fields, -1)
            for head, x in zip(self.heads, found, strict=True)
        ]


def _classes(head: Head) -> slice:
    return slice(head.first_class, head.first_class + head.classes)


def _belief(head: Head, x: Tensor) -> Tensor:
    """Return the probability of an object ``(samples, anchors, places)``."""
    if head.objectness is None:
        return x[:, :, _classes(head)].sigmoid().amax(2)
    return x[:, :, head.objectness].sigmoid()


def _lines(head: Head, x: Tensor) -> list[tuple[int, Tensor]]:
    """Return each number of a box by its field: centres within their place, sides as they are."""
    centres = [(field, x[:, :, field].sigmoid()) for field in head.centres]
    return [*centres, *((field, x[:, :, field]) for field in head.sides)]


def _bernoulli(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return KL(theirs || ours) of independent sigmoids, elementwise, from logits."""
    p = theirs.sigmoid()
    found = p * (F.logsigmoid(theirs) - F.logsigmoid(ours))
    return found + (1 - p) * (F.logsigmoid(-theirs) - F.logsigmoid(-ours))
