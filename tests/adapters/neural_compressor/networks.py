"""What Neural Compressor's tests quantize: small networks of every kind, and their data."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import de_plugin.adapters.neural_compressor  # noqa: F401

logging.getLogger("neural_compressor").setLevel("ERROR")  # the host tells every step


class Attention(nn.Module):
    """Embedded tokens, one layer of torch's own transformer, and classes."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.block(self.tokens(x)).mean(1))
        return out


class Named(nn.Module):
    """Layers whose names begin alike."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc10 = nn.Linear(12, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.fc10(self.fc1(x).relu()).relu())
        return out


class Tied(nn.Module):
    """An embedding that is the classifier as well."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.tokens(x).mean(1))
        return out


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 9, 16), nn.ReLU(), nn.Linear(16, 5)).eval()


def conv1d() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv1d(2, 6, 3), nn.ReLU(), nn.ConvTranspose1d(6, 4, 3), nn.Flatten(), nn.Linear(4 * 12, 5)]
    return nn.Sequential(*layers).eval()


def conv3d() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 27, 5)).eval()


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return Named().eval()


def transformer() -> nn.Module:
    torch.manual_seed(0)
    return Attention().eval()


def tied() -> nn.Module:
    torch.manual_seed(0)
    return Tied().eval()


NETWORKS: dict[str, Any] = {
    "cnn": (cnn, (1, 9, 9)),
    "conv1d": (conv1d, (2, 12)),
    "conv3d": (conv3d, (1, 4, 4, 4)),
    "mlp": (mlp, (12,)),
    "transformer": (transformer, None),
    "tied": (tied, None),
}


def made(name: str) -> tuple[nn.Module, Tensor]:
    """Return a network and samples for it."""
    build, shape = NETWORKS[name]
    draw = torch.Generator().manual_seed(1)
    if shape is None:
        return build(), torch.randint(0, 20, (96, 7), generator=draw)
    return build(), torch.randn(96, *shape, generator=draw)


def values(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all tensors of a model."""
    return {name: x.detach().clone() for name, x in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    """Tell whether a model is bit-exactly what it was."""
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[n], before[n]) for n in before)


def levels(weight: Tensor) -> int:
    """Count different values."""
    return len(weight.detach().unique())
