"""What the host's criteria are fed with is what its examples feed them with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

tp = pytest.importorskip("torch_pruning", reason="pip install torch-pruning")

from de_plugin.adapters.torch_pruning.feeding import (  # noqa: E402
    SQUARED_SAMPLES,
    accumulate_squares,
    leave_gradient,
)

DRAW = torch.Generator().manual_seed(0)
INPUTS = torch.randn(SQUARED_SAMPLES + 20, 1, 6, 6, generator=DRAW)
LABELS = torch.randint(3, (len(INPUTS),), generator=DRAW)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).eval()


def losses(model: nn.Module, samples: slice) -> Tensor:
    return F.cross_entropy(model(INPUTS[samples]), LABELS[samples], reduction="none")


@pytest.mark.parametrize("count", [SQUARED_SAMPLES + 20, 7])
def test_squared_gradients_are_those_of_the_hosts_examples(count: int) -> None:
    model, importance = network(), tp.importance.GroupHessianImportance()
    importance.zero_grad()
    accumulate_squares(model, importance, lambda s: losses(model, s)[: max(0, count - s.start)])
    theirs, other = network(), tp.importance.GroupHessianImportance()
    other.zero_grad()
    for loss in losses(theirs, slice(0, min(count, SQUARED_SAMPLES))):
        theirs.zero_grad()
        loss.backward(retain_graph=True)
        other.accumulate_grad(theirs)
    for p, q in zip(model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(importance._accu_grad[p], other._accu_grad[q], rtol=1e-4, atol=1e-9)


def test_the_gradient_is_of_the_mean_loss() -> None:
    model, theirs = network(), network()
    leave_gradient(model, lambda s: losses(model, s))
    losses(theirs, slice(None)).mean().backward()
    for p, q in zip(model.parameters(), theirs.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, q.grad)
