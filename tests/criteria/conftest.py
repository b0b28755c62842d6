"""Small problems that the tests of criteria ask about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from de_plugin.assess import Problem

Build = Callable[..., Problem]


class Mixed(nn.Module):
    """Convolutions, plain and grouped, then linear layers; every shape divides by 4."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, stride=2, groups=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


@pytest.fixture(scope="session")
def build() -> Build:
    """Return ``build(kind, samples=, **options)``, which makes the same problem every time."""

    def make(kind: str = "perceptron", samples: int = 40, **options: Any) -> Problem:
        torch.manual_seed(7)
        model = (perceptron() if kind == "perceptron" else Mixed()).eval()
        shape = (4,) if kind == "perceptron" else (4, 6, 6)
        inputs = torch.randn(samples, *shape)
        labels = torch.randint(0, 3, (samples,))
        return Problem(model, (inputs, labels), **{"holdout": 0.0, **options})

    return make


@pytest.fixture(scope="session")
def thinned() -> Callable[[Problem], Problem]:
    """Return a function that zeroes a few units for good, at most one in every four."""

    def thin(problem: Problem) -> Problem:
        problem.kept = problem.kept.clone()
        problem.kept[1::8] = False
        return problem

    return thin
