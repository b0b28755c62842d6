"""The layers that a Darknet network is made of, computing what the C program computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "leaky": lambda: nn.LeakyReLU(0.1),
    "linear": nn.Identity,
    "logistic": nn.Sigmoid,
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "swish": nn.SiLU,
}
"""Constructors by the name in a cfg file."""


@dataclass(frozen=True)
class Head:
    """How the raw outputs of one [yolo] section are to be read.

    Attributes:
        anchors: (width, height) of each box of a cell, in pixels of the network's input.
        classes: how many there are.
        scale: by how much the range of a centre within its cell is stretched (``scale_x_y``).
    """

    anchors: tuple[tuple[float, float], ...]
    classes: int
    scale: float = 1.0

    @property
    def channels(self) -> int:
        """Channels of the raw outputs: x, y, width, height, objectness and classes for each anchor."""
        return len(self.anchors) * (5 + self.classes)


class Convolutional(nn.Module):
    """A convolution, batch norm or a bias, and an activation."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None, activation: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.Identity() if norm is None else norm
        self.activation = activation

    def forward(self, inputs: Tensor) -> Tensor:
        """Features (n, filters, h, w)."""
        features: Tensor = self.activation(self.norm(self.conv(inputs)))
        return features

    def file_order(self) -> list[Tensor]:
        """Parameters and statistics in the order in which a weights file holds them."""
        if isinstance(self.norm, nn.BatchNorm2d):
            found = [self.norm.bias, self.norm.weight, self.norm.running_mean, self.norm.running_var]
        else:
            found = [self.conv.bias]
        return [tensor for tensor in (*found, self.conv.weight) if tensor is not None]

    @torch.no_grad()
    def draw(self, generator: torch.Generator | None, gain: float = 1.0) -> None:
        """Draw the weights from a normal distribution of variance 2 / inputs; statistics are 0 and 1.

        Args:
            generator: None for torch's own.
            gain: scales the outputs.

        Source: He et al., Delving Deep into Rectifiers, 2015, equation 10.
        """
        self.conv.weight.normal_(0, math.sqrt(2 / self.conv.weight[0].numel()), generator=generator)
        if self.conv.bias is not None:
            self.conv.bias.zero_()
        if isinstance(self.norm, nn.BatchNorm2d):
            self.norm.reset_parameters()
            self.norm.weight.mul_(gain)
        else:
            self.conv.weight.mul_(gain)


class MaxPool(nn.Module):
    """The maximum of windows over inputs to which ``padding`` rows and columns were added in all.

    Half of them, rounded down, lie above and to the left; no maximum is ever one of them. So size 2
    with stride 1 keeps the height and the width.
    """

    def __init__(self, size: int, stride: int, padding: int) -> None:
        super().__init__()
        self.size = size
        self.stride = stride
        self.before = padding // 2
        # An odd row below is what rounding up adds at stride 2, and then nothing has to be copied.
        self.rounds_up = padding % 2 == 1 and stride == 2
        self.after = 0 if self.rounds_up else padding % 2

    def forward(self, inputs: Tensor) -> Tensor:
        """Features (n, channels, (h + padding - size) // stride + 1, likewise w)."""
        if self.after:
            inputs = F.pad(inputs, (0, self.after, 0, self.after), value=-math.inf)
        return F.max_pool2d(inputs, self.size, self.stride, self.before, ceil_mode=self.rounds_up)


class Upsample(nn.Module):
    """Every value becomes a square of equal values."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, inputs: Tensor) -> Tensor:
        """Features (n, channels, factor * h, factor * w)."""
        return F.interpolate(inputs, scale_factor=float(self.factor), mode="nearest")


class Route(nn.Module):
    """The channels of several layers side by side; of each layer all or one group of them."""

    def __init__(self, groups: int, group: int) -> None:
        super().__init__()
        self.groups = groups
        self.group = group

    def forward(self, *inputs: Tensor) -> Tensor:
        """Features (n, sum of channels / groups, h, w)."""
        parts = inputs
        if self.groups > 1:
            parts = tuple(tensor.chunk(self.groups, 1)[self.group] for tensor in inputs)
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


class Shortcut(nn.Module):
    """The sum of several layers of one shape, and an activation."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """Features of the shape of each input."""
        total = first
        for other in others:
            total = total + other
        features: Tensor = self.activation(total)
        return features


class Yolo(nn.Module):
    """Marks an output of the network, which is left raw: ``zoo.decode`` reads it."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, inputs: Tensor) -> Tensor:
        """The inputs (n, head.channels, h, w)."""
        return inputs
