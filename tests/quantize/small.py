"""A small network that was really trained and pruned, shared by the tests of `quantize`."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn

from de_plugin import Problem
from de_plugin.quantize import KMeans, LevelSearch, QuantizationReport, RateSearch, quantize

QUICK = RateSearch(generations=2, population=5, samples=300, rounds=1)
QUICK_LEVELS = LevelSearch(generations=1, population=4, samples=300)
BOOKS = ("uniform", KMeans(bits=3))


@functools.cache
def _trained() -> tuple[nn.Sequential, nn.Sequential]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 6))
    x, y = data(2000)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(60):
        loss = nn.functional.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    pruned = copy.deepcopy(network)
    with torch.no_grad():
        for number in (0, 2, 4):
            weight = pruned.get_parameter(f"{number}.weight")
            weight[weight.abs() < weight.abs().flatten().kthvalue(weight.numel() // 4).values] = 0
    return network.eval(), pruned.eval()


def teacher() -> nn.Sequential:
    return copy.deepcopy(_trained()[0])


def pruned() -> nn.Sequential:
    return copy.deepcopy(_trained()[1])


def data(count: int = 800) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(count, 12, generator=rng)
    return x, (x @ torch.randn(12, 6, generator=torch.Generator().manual_seed(2))).argmax(1)


def problem(**options: Any) -> Problem:
    return Problem(pruned(), data(), **{"teacher": teacher(), "holdout": 0.25, **options})


def quick(model: nn.Module, **options: Any) -> QuantizationReport:
    rules = {"search": QUICK, "levels": QUICK_LEVELS, "codebooks": BOOKS, "holdout": 0.25}
    return quantize(model, data(), **{"teacher": teacher(), **rules, **options})


def state(model: nn.Module) -> dict[str, Tensor]:
    return {n: x.clone() for n, x in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[n], second[n]) for n in first)
