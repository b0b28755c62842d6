"""Small networks to write to files."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from de_plugin.encode import Quantized


class Network(nn.Module):
    """A convolution, batch norm and a tied linear layer."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, width)
        self.again = nn.Linear(width, width)
        self.again.weight = self.fc.weight
        self.register_buffer("seen", torch.tensor([True, False, True]))


def quantize(
    tensor: Tensor, axis: int | None = None, highest: int = 3, density: float = 0.2, seed: int = 0
) -> Quantized:
    """Random symbols of a tensor's shape with levels that are no multiples of a step."""
    generator = torch.Generator().manual_seed(seed)
    symbols = torch.randint(-highest, highest + 1, tensor.shape, generator=generator, dtype=torch.int32)
    symbols *= torch.rand(tensor.shape, generator=generator) < density
    groups = 1 if axis is None else tensor.shape[axis]
    levels = torch.rand(groups, 2 * highest + 1, generator=generator).sort().values - 0.5
    levels[:, highest] = 0
    return Quantized(symbols, levels, -highest, axis)


def state(seed: int = 0) -> dict[str, Tensor | Quantized]:
    """The state of a network, some of it quantized, one layer with levels of its own for each channel."""
    torch.manual_seed(seed)
    dense = Network().state_dict()
    mixed: dict[str, Tensor | Quantized] = dict(dense)
    mixed["conv.weight"] = quantize(dense["conv.weight"], axis=0, seed=seed)
    mixed["fc.weight"] = mixed["again.weight"] = quantize(dense["fc.weight"], seed=seed)
    return mixed


def dense(value: Tensor | Quantized) -> Tensor:
    """The values."""
    return value.dequantize() if isinstance(value, Quantized) else value


def same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are equal bit for bit, in type and shape too."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    both = (side.contiguous().reshape(-1).view(torch.uint8) for side in (left, right))
    return torch.equal(*both)
