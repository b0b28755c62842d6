"""Sizes: masked models are as large as those with the same channels really removed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from de_plugin.assess.teacher import plain_forward
from de_plugin.compare.sizes import size


class Net(nn.Module):
    """Two convolutions, batch norm, pooling, a flatten, two linear layers."""

    def __init__(self, first: int = 6, second: int = 8, hidden: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, first, 3)
        self.norm = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, second, 3)
        self.fc1 = nn.Linear(second * 4, hidden)
        self.fc2 = nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of images of 8x8."""
        x = F.relu(self.norm(self.conv1(x)))
        x = F.max_pool2d(self.conv2(x), 2)
        result: Tensor = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return result


def masked(first: int, second: int, hidden: int) -> Net:
    torch.manual_seed(0)
    net = Net().eval()
    for layer, gone in ((net.conv1, first), (net.conv2, second), (net.fc1, hidden), (net.norm, first)):
        for parameter in layer.parameters():
            parameter.data[:gone] = 0
    return net


@settings(max_examples=20, deadline=None)
@given(first=st.integers(0, 5), second=st.integers(0, 7), hidden=st.integers(0, 9))
def test_masked_channels_count_as_removed_ones(first: int, second: int, hidden: int) -> None:
    example = torch.zeros(1, 1, 8, 8)  # blank inputs have nothing to say about sizes
    net = masked(first, second, hidden)
    small = Net(6 - first, 8 - second, 10 - hidden).eval()
    macs = 36 * 9 * (6 - first) + 16 * 9 * (6 - first) * (8 - second)
    macs += 4 * (8 - second) * (10 - hidden) + 3 * (10 - hidden)
    assert size(small, example, plain_forward).macs == macs
    found = size(net, example, plain_forward)
    assert found.macs == macs
    removed = sum(p.numel() for n, p in small.named_parameters() if not n.startswith("norm"))
    kept = sum(p.numel() for n, p in net.named_parameters() if n.startswith("norm"))
    assert found.params == removed + kept


def test_zero_weights_and_parallel_calls_are_counted() -> None:
    layer = nn.Linear(4, 4, bias=False)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.layer(self.layer(x))
            return result

    layer.weight.data.fill_(1.0)
    layer.weight.data[0, :3] = 0
    found = size(Twice().eval(), torch.ones(1, 5, 4), plain_forward)
    assert found.macs == 2 * 5 * 13
    assert found.params == 13


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_and_transposed_convolutions(groups: int) -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.Conv2d(4, 8, 3, groups=groups), nn.ConvTranspose2d(8, 2, 2)
    )
    example = torch.randn(1, 2, 5, 5)
    whole = size(net.eval(), example, plain_forward).macs
    assert whole == 25 * 8 + 9 * 8 * 4 // groups * 9 + 9 * 8 * 2 * 4
    twin = copy.deepcopy(net)
    twin[0].weight.data[0] = 0
    twin[0].bias.data[0] = 0
    less = size(twin, example, plain_forward).macs
    assert whole - less == 25 * 2 + 9 * 8 // groups * 9
    assert size(net, example, plain_forward).macs == whole
