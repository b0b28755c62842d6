"""Small networks, one for each way in which channels hang together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Make = Callable[[], nn.Module]


@dataclass(frozen=True)
class Case:
    """A network, the shape of one sample, what its pruner has to be told, and what it cannot cut."""

    make: Make
    shape: tuple[int, ...]
    options: Callable[[Any], dict[str, Any]] = field(default=lambda model: {})
    whole: tuple[str, ...] = ()

    def ignored(self, model: nn.Module) -> list[nn.Module]:
        """Return the layers that keep all their outputs."""
        return [last_layer(model), *(model.get_submodule(name) for name in self.whole)]

    def build(self) -> Any:
        torch.manual_seed(0)
        model: Any = self.make().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.1)
                nn.init.normal_(module.bias, 0, 0.1)
        return model

    def inputs(self, count: int = 48) -> Tensor:
        return torch.randn(count, *self.shape, generator=torch.Generator().manual_seed(1))


def head(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.one, self.two = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.tail = nn.Sequential(*head(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        logits: Tensor = self.tail((x + self.two(self.one(x).relu())).relu())
        return logits


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 10, 1)
        self.both, self.tail = nn.Conv2d(16, 8, 3, padding=1), nn.Sequential(*head(8))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.tail(self.both(torch.cat((self.left(x), self.right(x)), 1).relu()).relu())
        return logits


class Split(nn.Module):
    """The host takes the parts of a split in the order in which it meets their readers: last one first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1)
        self.tail = nn.Sequential(*head(6))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.stem(x).relu().split([self.one.in_channels, self.two.in_channels], 1)
        logits: Tensor = self.tail((self.two(second) + self.one(first)).relu())
        return logits


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.tail = nn.Sequential(*head(8))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.tail(self.again(self.again(self.stem(x).relu()).relu()).relu())
        return logits


class Attention(nn.Module):
    """Self-attention as vision transformers write it, with one projection to queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.mT) * self.head_dim**-0.5).softmax(-1) @ v
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(n, length, -1))
        return out


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(6, 16), nn.Parameter(torch.randn(1, 4, 16))
        self.norm, self.attention = nn.LayerNorm(16), Attention(16, 4)
        self.norm2, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.place
        x = x + self.attention(self.norm(x))
        x = x + self.down(self.up(self.norm2(x)).relu())
        logits: Tensor = self.head(x.mean(1))
        return logits


class GroupedQueries(nn.Module):
    """Attention in which two heads of queries share one of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 16), nn.LayerNorm(16)
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8)
        self.proj, self.head = nn.Linear(16, 16), nn.Linear(16, 5)
        self.heads, self.shared = 4, 2

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x)
        n, length, _ = x.shape
        q = self.q(y).reshape(n, length, self.heads, -1).transpose(1, 2)
        k, v = (part(y).reshape(n, length, self.shared, -1).transpose(1, 2) for part in (self.k, self.v))
        k, v = (
            part[:, :, None].expand(-1, -1, self.heads // self.shared, -1, -1).reshape(*q.shape)
            for part in (k, v)
        )
        mixed = (q @ k.mT * 0.5).softmax(-1) @ v
        logits: Tensor = self.head((x + self.proj(mixed.transpose(1, 2).reshape(n, length, -1))).mean(1))
        return logits


class Recurrent(nn.Module):
    """An LSTM between two linear layers; the host cuts what goes in, and fails at what comes out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Linear(6, 12), nn.LSTM(12, 8, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.lstm(self.embed(x).relu())[0][:, -1])
        return logits


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 5))


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), *head(12))


def normed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.PReLU(8), nn.Conv2d(8, 12, 3),
        nn.BatchNorm2d(12), nn.ReLU(), *head(12),
    )  # fmt: skip


def flattened() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 9, 16),
        nn.ReLU(), nn.Linear(16, 5),
    )  # fmt: skip


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 1), nn.ReLU(), *head(12),
    )  # fmt: skip


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=2), nn.BatchNorm2d(12), nn.ReLU(), *head(12)
    )


def transposed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), *head(12)
    )


def group_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 8, 3), *head(8))


def _place(model: Any) -> dict[str, Any]:
    return {"unwrapped_parameters": [(model.place, 2)], "num_heads": {model.attention.qkv: 4}}


def _queries(model: Any) -> dict[str, Any]:
    return {"num_heads": {model.q: 4, model.k: 2, model.v: 2}}


image = (3, 6, 6)
CASES: dict[str, Case] = {
    "mlp": Case(mlp, (6,)),
    "plain": Case(plain, image),
    "normed": Case(normed, image),
    "flattened": Case(flattened, image),
    "residual": Case(Residual, image),
    "concat": Case(Concat, image),
    "split": Case(Split, image),
    "depthwise": Case(depthwise, image),
    "grouped": Case(grouped, image),
    "transposed": Case(transposed, image),
    "shared": Case(Shared, image),
    "group_norm": Case(group_norm, image),
    "vit": Case(ViT, (4, 6), _place),
    "gqa": Case(GroupedQueries, (4, 6), _queries),
    "lstm": Case(Recurrent, (4, 6), whole=("lstm",)),
}


def last_layer(model: nn.Module) -> nn.Module:
    """Return the layer that gives the classes."""
    return [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
