"""A small network, its data and a quick search, shared by the tests of `prune`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from de_plugin import DirectedEvolution, Swaps

QUICK = DirectedEvolution(
    population=6,
    generations=2,
    samples=64,
    swaps=Swaps(rounds=2, candidates=8, gradient_samples=32, window=40),
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4)).eval()


def data(count: int = 80) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(1))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {n: x.clone() for n, x in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[n], second[n]) for n in first)
