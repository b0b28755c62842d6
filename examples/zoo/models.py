"""Five small networks for 28x28 grey images and ten classes, of the kinds the literature prunes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from .transformer import ViT

_PIXELS = 28 * 28
_CLASSES = 10


class MLP(nn.Module):
    """Three linear layers with ReLU between them; images (n, 1, 28, 28) are flattened."""

    def __init__(self, first: int, second: int, bias: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(_PIXELS, first, bias)
        self.fc2 = nn.Linear(first, second, bias)
        self.fc3 = nn.Linear(second, _CLASSES, bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (n, 10) of inputs (n, ...) with 784 values each."""
        hidden = F.relu(self.fc1(inputs.flatten(1)))
        logits: Tensor = self.fc3(F.relu(self.fc2(hidden)))
        return logits


class LeNet5(nn.Module):
    """LeNet-5 as Caffe has it: two pooled convolutions without ReLU, then two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, _CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (n, 10) of inputs (n, 1, 28, 28)."""
        features = F.max_pool2d(self.conv1(inputs), 2)
        features = F.max_pool2d(self.conv2(features), 2)
        logits: Tensor = self.fc2(F.relu(self.fc1(features.flatten(1))))
        return logits


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the input or to its 1x1 projection."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, inputs: Tensor) -> Tensor:
        """Features (n, channels_out, height / stride, width / stride)."""
        hidden = F.relu(self.norm1(self.conv1(inputs)))
        return F.relu(self.norm2(self.conv2(hidden)) + self.shortcut(inputs))


class ResNet(nn.Module):
    """A residual network with batch norm: pooled stem, four blocks, global average, one linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.block1 = ResidualBlock(16, 16)
        self.block2 = ResidualBlock(16, 32, stride=2)
        self.block3 = ResidualBlock(32, 32)
        self.block4 = ResidualBlock(32, 64)
        self.fc = nn.Linear(64, _CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (n, 10) of inputs (n, 1, 28, 28)."""
        features = F.max_pool2d(F.relu(self.norm(self.conv(inputs))), 2)
        features = self.block2(self.block1(features))
        features = self.block4(self.block3(features))
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits


def mlpnet() -> MLP:
    """784-40-20-10 without bias, 32,360 weights: the network of the WoodFisher and CHITA tables."""
    return MLP(40, 20, bias=False)


def lenet300() -> MLP:
    """LeNet-300-100: 784-300-100-10 with bias, 266,610 parameters."""
    return MLP(300, 100, bias=True)


def lenet5() -> LeNet5:
    """LeNet-5 in Caffe's form, 431,080 parameters."""
    return LeNet5()


def resnet() -> ResNet:
    """A small residual network with batch norm, 96,314 parameters."""
    return ResNet()


def vit() -> ViT:
    """A vision transformer of three blocks, 16 tokens of width 64 and four heads, 154,954 parameters."""
    return ViT(patch=7, dim=64, num_heads=4, depth=3)


MODELS: Mapping[str, Callable[[], nn.Module]] = {
    "lenet300": lenet300,
    "lenet5": lenet5,
    "mlpnet": mlpnet,
    "resnet": resnet,
    "vit": vit,
}
"""Constructors by the name that users write; each call draws new weights from torch's generator."""
