"""Trains a classifier from scratch: AdamW under a one-cycle learning rate, the same for a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from de_plugin.errors import ArgumentError

Progress: TypeAlias = Callable[[int, int], None]
"""Called after every optimizer step with the steps done and the steps in all."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: passes over the training set, at least 1.
        learning_rate: the peak of the one-cycle schedule, above 0.
        weight_decay: decoupled, at least 0.
        batch_size: at least 1; the last, smaller batch of an epoch is used too.

    Raises:
        ArgumentError: a value is outside its range.
    """

    epochs: int
    learning_rate: float
    weight_decay: float = 0.01
    batch_size: int = 256

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("weight_decay", 0)):
            if getattr(self, name) < least:
                raise ArgumentError(f"{name} is {getattr(self, name)}, expected at least {least}")
        if not self.learning_rate > 0:
            raise ArgumentError(f"learning_rate is {self.learning_rate}, expected above 0")


def train(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    recipe: Recipe,
    seed: int,
    progress: Progress | None = None,
) -> None:
    """Train a model in place and leave it in eval mode.

    On the CPU the result is the same for the same seed, start, versions and number of threads.
    Torch's global generators are neither read nor moved, unless the model itself draws from them.

    Args:
        model: maps (n, ...) to logits (n, classes).
        inputs: (n, ...), on the model's device.
        labels: int64 (n,), on the model's device.
        recipe: how.
        seed: of the order of the samples.
        progress: see ``Progress``.
    """
    order = torch.Generator().manual_seed(seed)
    steps = recipe.epochs * -(-len(inputs) // recipe.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=max(steps, 2))
    model.train()
    done = 0
    for _ in range(recipe.epochs):
        for batch in torch.randperm(len(inputs), generator=order).split(recipe.batch_size):
            loss = F.cross_entropy(model(inputs[batch]), labels[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
            if progress is not None:
                progress(done, steps)
    optimizer.zero_grad(set_to_none=True)
    model.eval()
