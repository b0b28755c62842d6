"""From an image to a detector's input, and from its raw outputs to boxes, as Darknet does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from de_plugin.errors import ArgumentError, DataError

from .darknet_layers import Head

GREY = 0.5
"""What lies outside a photograph."""


@dataclass(frozen=True)
class Detection:
    """One object that a detector found.

    Attributes:
        label: the class, from 0.
        score: objectness times the probability of the class, 0 to 1.
        box: (left, top, right, bottom) in pixels of the image, within the image.
    """

    label: int
    score: float
    box: tuple[float, float, float, float]


def letterbox(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The image as large as it fits into a size with its aspect kept, between grey bars.

    Resized bilinearly, with the centres of the corner pixels kept in the corners.

    Args:
        image: floats (channels, height, width) from 0 to 1.
        size: (height, width).

    Returns:
        (channels, *size).

    Raises:
        ArgumentError: ``size`` has a side below 1.
        DataError: the image isn't as above, or so narrow that nothing of it would be left.
    """
    if image.ndim != 3 or not image.is_floating_point():
        raise DataError(
            f"image has the shape {tuple(image.shape)} and the type {image.dtype}, expected floats "
            "(channels, height, width): divide bytes by 255"
        )
    inner = _inner_size((image.shape[1], image.shape[2]), size)
    resized = F.interpolate(image[None], inner, mode="bilinear", align_corners=True)[0]
    top, left = ((outside - inside) // 2 for outside, inside in zip(size, inner, strict=True))
    below, right = size[0] - inner[0] - top, size[1] - inner[1] - left
    return F.pad(resized, (left, right, top, below), value=GREY)


def decode(outputs: Sequence[Tensor], heads: Sequence[Head], size: tuple[int, int]) -> Tensor:
    """Boxes and probabilities out of a detector's raw outputs; differentiable.

    Args:
        outputs: of ``Darknet``, one (n, channels, h, w) a head.
        heads: ``Darknet.heads``.
        size: (height, width) of the images that the network was given.

    Returns:
        (n, boxes, 5 + classes): centre x, centre y, width and height as shares of ``size``,
        objectness, and the probability of each class if there is an object.

    Raises:
        DataError: the outputs don't belong to the heads.

    Source: Redmon and Farhadi, YOLOv3: An Incremental Improvement, 2018, section 2.1.
    """
    shapes = [tuple(tensor.shape) for tensor in outputs]
    wanted = [head.channels for head in heads]
    if [shape[1] if len(shape) == 4 else None for shape in shapes] != wanted or not heads:
        raise DataError(
            f"outputs have the shapes {shapes}, expected (n, channels, h, w) with the channels {wanted}: "
            "give the outputs and the heads of one network"
        )
    if len({head.classes for head in heads}) > 1:
        raise DataError(f"heads have {[head.classes for head in heads]} classes, expected one number for all")
    return torch.cat([_boxes(*pair, size) for pair in zip(outputs, heads, strict=True)], 1)


def detections(
    decoded: Tensor,
    images: Sequence[tuple[int, int]],
    size: tuple[int, int],
    threshold: float = 0.5,
    overlap: float = 0.45,
) -> list[list[Detection]]:
    """The objects in each image, those with the highest scores first.

    Args:
        decoded: (n, boxes, 5 + classes), by ``decode``.
        images: (height, width) of each image before ``letterbox``.
        size: (height, width) after it.
        threshold: scores must be above it, 0 to 1. A box counts once for every class that is.
        overlap: see ``nms``, which compares boxes before they are cut at the image's edges.

    Raises:
        ArgumentError: ``threshold`` or ``overlap`` is not from 0 to 1.
        DataError: there is not one size for each of the decoded images, or a score is not finite.
    """
    if not 0 <= threshold <= 1:
        raise ArgumentError(f"threshold is {threshold}, expected 0 to 1")
    if decoded.ndim != 3 or decoded.shape[2] < 6 or len(images) != len(decoded):
        raise DataError(
            f"decoded has the shape {tuple(decoded.shape)} and images {len(images)} sizes, expected "
            "(n, boxes, 5 + classes) and n sizes: give what decode returns"
        )
    found = []
    for predicted, (height, width) in zip(decoded.detach().cpu().float(), images, strict=True):
        scores = predicted[:, 4:5] * predicted[:, 5:]
        if not bool(scores.isfinite().all()):
            raise DataError("decoded has scores that are not finite: check the network's weights")
        rows, labels = (scores > threshold).nonzero(as_tuple=True)
        inner = _inner_size((height, width), size)
        # Shares of the network's input; minus the bars; in pixels of the image.
        outside = torch.tensor([size[1], size[0]])
        inside = torch.tensor([inner[1], inner[0]])
        pixels = torch.tensor([width, height]) / inside
        centres = (predicted[rows, :2] * outside - (outside - inside) / 2) * pixels
        halves = predicted[rows, 2:4] * outside * pixels / 2
        boxes = torch.cat([centres - halves, centres + halves], 1)
        kept = nms(boxes, scores[rows, labels], labels, overlap)
        edges = torch.tensor([width, height, width, height])
        cut = torch.minimum(boxes.clamp(min=0), edges)[kept].tolist()
        values = zip(labels[kept].tolist(), scores[rows, labels][kept].tolist(), cut, strict=True)
        found.append(
            [Detection(label, score, (box[0], box[1], box[2], box[3])) for label, score, box in values]
        )
    return found


def nms(boxes: Tensor, scores: Tensor, labels: Tensor, overlap: float = 0.45) -> Tensor:
    """Of boxes of one class that overlap, the ones with the highest scores (greedy non-maximum suppression).

    The boxes of equal scores are ordered by their corners, so that the order given doesn't matter.

    Args:
        boxes: (n, 4), each (left, top, right, bottom).
        scores: (n,).
        labels: (n,), the class of each.
        overlap: the largest intersection over union that two boxes of one class may have, 0 to 1.

    Returns:
        The indices of the boxes kept, the highest score first, on the boxes' device.

    Raises:
        ArgumentError: ``overlap`` is not from 0 to 1.
        DataError: the shapes are not as above, or a box or a score is not finite.
    """
    if not 0 <= overlap <= 1:
        raise ArgumentError(f"overlap is {overlap}, expected 0 to 1")
    if boxes.shape != (len(scores), 4) or scores.ndim != 1 or labels.shape != scores.shape:
        raise DataError(
            f"boxes have the shape {tuple(boxes.shape)}, scores {tuple(scores.shape)} and labels "
            f"{tuple(labels.shape)}, expected (n, 4), (n,) and (n,)"
        )
    device = boxes.device
    boxes, scores, labels = boxes.detach().cpu().double(), scores.detach().cpu(), labels.cpu()
    if not bool(boxes.isfinite().all()) or not bool(scores.isfinite().all()):
        raise DataError("boxes or scores are not finite: check the network's weights")
    order = torch.arange(len(scores))
    for key in (*boxes.unbind(1), labels, -scores):
        order = order[key[order].argsort(stable=True)]
    kept = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        covered = (labels[rest] == labels[best]) & (overlaps(boxes[best], boxes[rest]) > overlap)
        order = rest[~covered]
    return (torch.stack(kept) if kept else order).to(device)


def overlaps(box: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union of a box (4,) with boxes (n, 4); 0 where both are empty."""
    sides = torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])
    common = sides.clamp(min=0).prod(1)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - common
    return torch.where(union > 0, common / union, 0.0)


def _boxes(features: Tensor, head: Head, size: tuple[int, int]) -> Tensor:
    """(n, anchors * h * w, 5 + classes) out of one head's raw outputs."""
    n, _, h, w = features.shape
    raw = features.reshape(n, len(head.anchors), 5 + head.classes, h, w).permute(0, 1, 3, 4, 2)
    places = raw.sigmoid()
    column = torch.arange(w, dtype=raw.dtype, device=raw.device)
    row = torch.arange(h, dtype=raw.dtype, device=raw.device)[:, None]
    stretched = places[..., :2] * head.scale - (head.scale - 1) / 2
    x = (stretched[..., 0] + column) / w
    y = (stretched[..., 1] + row) / h
    anchors = raw.new_tensor(head.anchors)[:, None, None] / raw.new_tensor([size[1], size[0]])
    sides = raw[..., 2:4].exp() * anchors
    return torch.cat([x[..., None], y[..., None], sides, places[..., 4:]], -1).reshape(
        n, -1, 5 + head.classes
    )


def _inner_size(image: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a letterboxed image without its bars, with the C program's rounding."""
    if min(size) < 1:
        raise ArgumentError(f"size is {size}, expected a height and a width of at least 1")
    height, width = image
    inner = (0, 0)
    if min(image) >= 1:
        by_width = np.float32(size[1]) / np.float32(width) < np.float32(size[0]) / np.float32(height)
        inner = (height * size[1] // width, size[1]) if by_width else (size[0], width * size[0] // height)
    if min(inner) < 1:
        raise DataError(
            f"an image has the size {height} x {width}, of which nothing is left in {size[0]} x {size[1]}: "
            "leave it out"
        )
    return inner
