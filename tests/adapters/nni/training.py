"""What NNI's tests train: a small network with a grouped convolution in a sum, on data of its own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from de_plugin.evolve import Halving
from de_plugin.prune import DirectedEvolution, Swaps

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import nni
    from nni.compression.utils import TorchEvaluator

SMALL = DirectedEvolution(
    population=6,
    generations=1,
    samples=64,
    halving=Halving(1),
    swaps=Swaps(rounds=1, candidates=4, samples=64, gradient_samples=32),
)


GROUPED: list[dict[str, Any]] = [
    {"op_names": ["conv2"], "sparse_ratio": 0.5, "dependency_group_id": "sum", "internal_metric_block": 4},
    {"op_names": ["conv3"], "sparse_ratio": 0.5, "dependency_group_id": "sum"},
]
WEIGHT: dict[str, Any] = {"op_names": ["conv1"], "target_names": ["weight"]}


class Simple(nn.Module):
    """A grouped and a plain convolution meet in a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 8, 3, groups=4), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8)
        self.fc1, self.fc2 = nn.Linear(8 * 4 * 4, 20), nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)) + self.bn3(self.conv3(x))
        return F.log_softmax(self.fc2(self.fc1(x.flatten(1)).relu()), -1)


def simple() -> Any:
    torch.manual_seed(0)
    model = Simple()
    with torch.no_grad():
        model.fc2.weight.mul_(8)  # logits that differ
    return model


def images(count: int = 64) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def config(sparsity: float = 0.75) -> list[dict[str, Any]]:
    return [
        {"op_types": ["Linear"], "sparse_ratio": sparsity, "exclude_op_names": ["fc2"]},
        {"op_names": ["conv1", "conv2", "conv3"], "sparse_ratio": sparsity},
    ]


def evaluator(
    model: nn.Module,
    seen: list[Any] | None = None,
    batch: int = 16,
    step: Callable[..., Any] = F.nll_loss,
    dummy: Any = None,
    lr: float = 0.01,
) -> Any:
    """Return an evaluator whose training steps take ``(logits, labels)``, as NNI's own tests do."""
    x = images(128)
    labels = torch.arange(128) % 10

    def train(
        student: nn.Module,
        optimizer: Any,
        criterion: Any,
        scheduler: Any = None,
        max_steps: int | None = None,
        max_epochs: int | None = None,
    ) -> None:
        student.train()
        order = torch.randperm(128)
        for number in range(max_steps or 8 * (max_epochs or 1)):
            at = order[torch.arange(number * batch, (number + 1) * batch) % 128]
            optimizer.zero_grad()
            loss = criterion(student(x[at]), labels[at])
            loss.backward()
            optimizer.step()
            if seen is not None:
                seen.append(float(loss.detach()))

    optimizer = nni.trace(torch.optim.SGD)(model.parameters(), lr=lr)
    return TorchEvaluator(train, optimizer, step, dummy_input=dummy)
