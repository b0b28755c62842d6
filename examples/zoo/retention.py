"""Which objects a compressed detector still finds, and which it makes up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from de_plugin.errors import ArgumentError, DataError

from .detect import Detection, overlaps


@dataclass(frozen=True)
class Retention:
    """How a compressed detector's findings compare with the original's.

    Attributes:
        found: of the original's objects, those that the compressed network finds as well.
        objects: that the original finds with more than the confidence asked for.
        extra: detections of the compressed network that are none of the original's.
        detections: of the original, with any confidence above the threshold.
    """

    found: int
    objects: int
    extra: int
    detections: int

    @property
    def share(self) -> float:
        """Part of the objects that is still found; 1 where there are none."""
        return self.found / self.objects if self.objects else 1.0


@dataclass(frozen=True)
class Missed:
    """An object that the original finds and the compressed network does not.

    Attributes:
        image: which, from 0.
        wanted: what the original finds.
        score: the highest that the compressed network gives the same class there, 0 where it has none; at
            least the threshold where another object has taken that detection.
    """

    image: int
    wanted: Detection
    score: float


def retention(
    original: Sequence[Sequence[Detection]],
    compressed: Sequence[Sequence[Detection]],
    confidence: float = 0.8,
    threshold: float = 0.5,
    overlap: float = 0.5,
) -> Retention:
    """Compare the detections of two networks in the same images.

    Objects are those that the original finds with a score above ``confidence``. One is found again where the
    compressed network has a detection of its class with a score of at least ``threshold`` and an intersection
    over union of at least ``overlap``; a detection counts for one object, the most confident choose first.

    Args:
        original: detections by image, those above ``threshold`` at least.
        compressed: the same images', in the same order.
        confidence: of the objects, 0 to 1.
        threshold: of a finding, 0 to 1; also of what is extra.
        overlap: 0 to 1.

    Raises:
        ArgumentError: a number is not from 0 to 1.
        DataError: the two don't have as many images.
    """
    _check(original, compressed, confidence, threshold, overlap)
    found = objects = extra = detections = 0
    for theirs, ours in zip(original, compressed, strict=True):
        seen = [x for x in theirs if x.score >= threshold]
        mine = [x for x in ours if x.score >= threshold]
        wanted = [x for x in seen if x.score > confidence]
        objects, detections = objects + len(wanted), detections + len(seen)
        found += len(wanted) - len(_unmatched(wanted, mine, overlap))
        extra += len(mine) - (len(seen) - len(_unmatched(seen, mine, overlap)))
    return Retention(found, objects, extra, detections)


def missed(
    original: Sequence[Sequence[Detection]],
    compressed: Sequence[Sequence[Detection]],
    confidence: float = 0.8,
    threshold: float = 0.5,
    overlap: float = 0.5,
) -> list[Missed]:
    """Return the objects that `retention` does not count as found again.

    Args:
        original: as in `retention`.
        compressed: as in `retention`; of those below ``threshold``, which are none, the scores are told.
        confidence: as in `retention`.
        threshold: as in `retention`.
        overlap: as in `retention`.

    Returns:
        One for each object, by image, the original's most confident first.

    Raises:
        ArgumentError: as `retention`.
        DataError: as `retention`.
    """
    _check(original, compressed, confidence, threshold, overlap)
    result = []
    for image, (theirs, ours) in enumerate(zip(original, compressed, strict=True)):
        wanted = [x for x in theirs if x.score >= threshold and x.score > confidence]
        for one in _unmatched(wanted, [x for x in ours if x.score >= threshold], overlap):
            same = [x for x in ours if x.label == one.label]
            there = (_overlaps(one, same) >= overlap).tolist() if same else []
            scores = [x.score for x, near in zip(same, there, strict=True) if near]
            result.append(Missed(image, one, max(scores, default=0.0)))
    return result


def _check(
    original: Sequence[object],
    compressed: Sequence[object],
    confidence: float,
    threshold: float,
    overlap: float,
) -> None:
    for name, value in (("confidence", confidence), ("threshold", threshold), ("overlap", overlap)):
        if not 0 <= value <= 1:
            raise ArgumentError(f"{name} is {value}, expected 0 to 1")
    if len(original) != len(compressed):
        raise DataError(
            f"original has {len(original)} images and compressed {len(compressed)}: give those of the "
            "same images"
        )


def _overlaps(one: Detection, others: Sequence[Detection]) -> Tensor:
    return overlaps(torch.tensor(one.box), torch.tensor([x.box for x in others]))


def _unmatched(wanted: Sequence[Detection], mine: Sequence[Detection], overlap: float) -> list[Detection]:
    """Return those of the wanted that have no partner of their own, the most confident first."""
    free, alone = list(mine), []
    for one in sorted(wanted, key=lambda x: -x.score):
        same = [x for x in free if x.label == one.label]
        shares = _overlaps(one, same) if same else torch.empty(0)
        if (shares >= overlap).any():
            free.remove(same[int(shares.argmax())])
        else:
            alone.append(one)
    return alone
