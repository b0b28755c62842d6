"""Turns the sections of a cfg file into layers, and checks that each fits what it reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import nn

from .darknet_cfg import Section
from .darknet_layers import ACTIVATIONS, Convolutional, Head, MaxPool, Route, Shortcut, Upsample, Yolo

_MAX_EXTENT = 1 << 20
_MAX_WINDOW = 255


class Shape(NamedTuple):
    """Of one image's features."""

    channels: int
    height: int
    width: int


class Plan:
    """The layers so far, on the meta device, where they take no memory.

    Attributes:
        layers: a module for each section.
        sources: the layers that each of them reads, in order; -1 is the images.
        shapes: of each layer's outputs if the images have the size that the cfg names.
    """

    def __init__(self, channels: int, height: int, width: int, eps: float) -> None:
        self.layers: list[nn.Module] = []
        self.sources: list[tuple[int, ...]] = []
        self.shapes: list[Shape] = []
        self.eps = eps
        self._images = Shape(channels, height, width)

    def add(self, section: Section) -> None:
        """Append the layer that a section describes.

        Raises:
            DataError: the kind or an option is not known, or the layer doesn't fit what it reads.
        """
        if section.kind not in _LAYERS:
            raise section.error(
                f"the layer is not known, expected one of {', '.join(_LAYERS)}: give a network of these"
            )
        layer, sources, shape = _LAYERS[section.kind](section, self)
        if min(shape) < 1 or max(shape) > _MAX_EXTENT:
            raise section.error(
                f"its output has {shape.channels} channels of {shape.height} x {shape.width}, expected 1 to "
                f"{_MAX_EXTENT:,} of each: change width and height in [net], or this layer"
            )
        self.layers.append(layer)
        self.sources.append(sources)
        self.shapes.append(shape)

    def previous(self, section: Section) -> tuple[int, Shape]:
        """The layer in front of the next one, and its shape."""
        return self._read(section, len(self.layers) - 1)

    def chosen(self, section: Section, option: str) -> list[tuple[int, Shape]]:
        """The layers that an option names: from the first one on or, below 0, back from the next one."""
        index = len(self.layers)
        found = []
        for number in section.integers(option):
            source = number if number >= 0 else index + number
            if not 0 <= source < index:
                expected = f"0 to {index - 1}, or -{index} to -1" if index else "a layer in front"
                raise section.error(f"{option} has {number} in layer {index}, expected {expected}", option)
            found.append(self._read(section, source))
        return found

    def _read(self, section: Section, source: int) -> tuple[int, Shape]:
        if source < 0:
            return source, self._images
        if isinstance(self.layers[source], Yolo):
            raise section.error(
                f"it reads layer {source}, which is a [yolo] layer: put a [route] to an earlier one in front"
            )
        return source, self.shapes[source]


_Layer = tuple[nn.Module, tuple[int, ...], Shape]


class _Build(Protocol):
    def __call__(self, section: Section, plan: Plan, /) -> _Layer: ...


def _convolutional(section: Section, plan: Plan) -> _Layer:
    section.allow(
        *("filters", "size", "stride", "pad", "padding", "groups", "batch_normalize", "activation"),
        "stopbackward",  # where training ends
    )
    source, (channels, height, width) = plan.previous(section)
    filters = section.integer("filters", 1)
    size = section.integer("size", 1, most=_MAX_WINDOW)
    stride = section.integer("stride", 1, most=_MAX_WINDOW)
    padding = section.integer("padding", 0, least=0, most=_MAX_WINDOW)
    if section.integer("pad", 0, least=0):
        padding = size // 2
    groups = section.integer("groups", 1)
    if channels % groups or filters % groups:
        raise section.error(
            f"groups is {groups}, expected a divisor of {channels} channels and {filters} filters", "groups"
        )
    normalized = bool(section.integer("batch_normalize", 0, least=0))
    activation = ACTIVATIONS[section.choice("activation", "logistic", ACTIVATIONS)]()
    conv = nn.Conv2d(
        channels, filters, size, stride, padding, groups=groups, bias=not normalized, device="meta"
    )
    norm = nn.BatchNorm2d(filters, plan.eps, momentum=0.01, device="meta") if normalized else None
    height, width = ((side + 2 * padding - size) // stride + 1 for side in (height, width))
    return Convolutional(conv, norm, activation), (source,), Shape(filters, height, width)


def _maxpool(section: Section, plan: Plan) -> _Layer:
    section.allow("size", "stride", "padding")
    source, (channels, height, width) = plan.previous(section)
    stride = section.integer("stride", 1, most=_MAX_WINDOW)
    size = section.integer("size", stride, most=_MAX_WINDOW)
    padding = section.integer("padding", size - 1, least=0, most=size - 1)
    height, width = ((side + padding - size) // stride + 1 for side in (height, width))
    return MaxPool(size, stride, padding), (source,), Shape(channels, height, width)


def _upsample(section: Section, plan: Plan) -> _Layer:
    section.allow("stride")
    source, (channels, height, width) = plan.previous(section)
    factor = section.integer("stride", 2, most=_MAX_WINDOW)
    return Upsample(factor), (source,), Shape(channels, factor * height, factor * width)


def _route(section: Section, plan: Plan) -> _Layer:
    section.allow("layers", "groups", "group_id")
    found = plan.chosen(section, "layers")
    groups = section.integer("groups", 1)
    group = section.integer("group_id", 0, least=0, most=groups - 1)
    _, (_, height, width) = found[0]
    total = 0
    for source, shape in found:
        if shape[1:] != (height, width):
            raise section.error(
                f"layer {source} has {shape.height} x {shape.width} outputs a channel and layer "
                f"{found[0][0]} {height} x {width}, expected the same: name layers of one size",
                "layers",
            )
        if shape.channels % groups:
            raise section.error(
                f"groups is {groups}, expected a divisor of the {shape.channels} channels of layer {source}",
                "groups",
            )
        total += shape.channels // groups
    return Route(groups, group), tuple(source for source, _ in found), Shape(total, height, width)


def _shortcut(section: Section, plan: Plan) -> _Layer:
    section.allow("from", "activation")
    found = [plan.previous(section), *plan.chosen(section, "from")]
    _, shape = found[0]
    for source, other in found:
        if other != shape:
            raise section.error(
                f"layer {source} has the shape {tuple(other)} and the layer in front {tuple(shape)}, "
                "expected the same: name a layer of that shape",
                "from",
            )
    activation = ACTIVATIONS[section.choice("activation", "linear", ACTIVATIONS)]()
    return Shortcut(activation), tuple(source for source, _ in found), shape


def _yolo(section: Section, plan: Plan) -> _Layer:
    """All options but these concern training, so any are allowed."""
    source, shape = plan.previous(section)
    sides = section.numbers("anchors")
    pairs = tuple(zip(sides[::2], sides[1::2], strict=False))
    if len(sides) % 2 or len(pairs) != section.integer("num", len(pairs)):
        raise section.error(
            f"anchors has {len(sides)} numbers, expected two for each of the anchors that num counts",
            "anchors",
        )
    mask = section.integers("mask", tuple(range(len(pairs))))
    if outside := [number for number in mask if not 0 <= number < len(pairs)]:
        raise section.error(f"mask has {outside[0]}, expected 0 to {len(pairs) - 1}", "mask")
    if section.integer("new_coords", 0, least=0):
        raise section.error("new_coords is not supported: give a network without it", "new_coords")
    scale = section.numbers("scale_x_y", (1.0,))[0]
    head = Head(tuple(pairs[number] for number in mask), section.integer("classes", 20), scale)
    if head.channels != shape.channels:
        raise section.error(
            f"the layer in front has {shape.channels} channels, expected {head.channels} for {len(mask)} "
            f"anchors and {head.classes} classes: correct its filters, or mask and classes"
        )
    return Yolo(head), (source,), shape


_LAYERS: Mapping[str, _Build] = {
    "conv": _convolutional,
    "convolutional": _convolutional,
    "max": _maxpool,
    "maxpool": _maxpool,
    "route": _route,
    "shortcut": _shortcut,
    "upsample": _upsample,
    "yolo": _yolo,
}
