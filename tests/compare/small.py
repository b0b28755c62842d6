"""A network that is compared in a second, its data, and methods that do as they are told."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from de_plugin.compare import Case, Method, Pruned


def network() -> nn.Sequential:
    """Return a convolution and two linear layers in eval mode, the same each time."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 3)
    ).eval()


def data(samples: int = 80, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return inputs and the network's own decisions as labels."""
    inputs = torch.randn(samples, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    return inputs, network()(inputs).argmax(1)


def zeroing(case: Case) -> Pruned:
    """Zero the first weights of each layer."""
    model = case.copy()
    for name in case.weights:
        weight = model.get_parameter(name).data
        weight.view(-1)[: round(case.sparsity * weight.numel())] = 0
    return Pruned(model, evaluations=1)


def broken(case: Case) -> Pruned:
    """Spoil what a method can reach, and fail."""
    for parameter in case.model.parameters():
        parameter.data.zero_()
    torch.manual_seed(99)
    torch.set_grad_enabled(False)
    raise RuntimeError("a host's <b>own</b> bug")


ZEROING = Method("weights", "mine", "zeroing", zeroing)
BROKEN = Method("weights", "mine", "broken", broken)
