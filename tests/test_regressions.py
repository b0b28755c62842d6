"""Uses that once failed: narrow types, tied weights, the memory bound, what a report measures."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import de_plugin
from de_plugin import DirectedEvolution, Swaps
from de_plugin.prune.recover import Distillation

SHORT = DirectedEvolution(generations=1, population=4, swaps=Swaps(rounds=3))


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.embed(x))
        return out


def test_bfloat16_models_are_pruned_with_every_divergence() -> None:
    for divergence in ("kl", "js", "mse", "cosine"):
        report = de_plugin.prune(
            mlp().bfloat16(),
            torch.randn(96, 8).bfloat16(),
            0.5,
            SHORT,
            schedule=1,
            divergence=divergence,
        )
        assert report.sparsity == 0.5


def test_an_embedding_tied_to_a_linear_layer() -> None:
    torch.manual_seed(0)
    for recovery in (None, "leastsquares"):
        report = de_plugin.prune(
            Tied().eval(), torch.randint(0, 20, (64, 5)), 0.5, SHORT, schedule=1, recovery=recovery
        )
        assert report.sparsity == 0.5


def test_teacher_outputs_beyond_the_bound_are_in_a_file() -> None:
    torch.manual_seed(0)
    data = torch.randn(4000, 1)
    small = de_plugin.Problem(nn.Linear(1, 1000).eval(), data, memory=1 << 20, batch_size=100)
    large = de_plugin.Problem(small.model, data, batch_size=100)
    assert small.pool.stacked is not None
    assert large.pool.stacked is not None
    mapped, held = small.pool.stacked[2], large.pool.stacked[2]
    assert mapped.untyped_storage().filename is not None
    assert held.untyped_storage().filename is None
    assert torch.equal(mapped, held)


def test_the_reported_divergence_is_the_delivered_model_s() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)
    ).eval()
    data = torch.randn(40, 1, 8, 8)
    with torch.no_grad():
        teacher = model(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = de_plugin.prune(
            model,
            data,
            0.5,
            "magnitude",
            recovery=["batchnorm", Distillation(steps=50, lr=1e-2)],
            holdout=0.0,
        )
    with torch.no_grad():
        found = de_plugin.KL()(model(data), teacher)
    assert abs(report.divergence - float(found)) < 1e-5


def test_a_large_holdout_leaves_something_to_search_on() -> None:
    report = de_plugin.prune(mlp(), torch.randn(10, 8), 0.5, "magnitude", holdout=0.99)
    assert report.sparsity == 0.5


def test_an_unused_layer_survives_distillation() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.a(x)
            return out

    report = de_plugin.prune(
        Unused().eval(), torch.randn(64, 8), 0.5, "random", recovery=Distillation(steps=5)
    )
    assert report.sparsity == 0.5


@pytest.mark.parametrize(
    "options",
    [
        {"criterion": de_plugin.Fisher(labels=True)},
        {"criterion": "magnitude", "recovery": Distillation(steps=3, labels=0.5)},
    ],
)
def test_labels_of_sequences_and_labels_that_are_no_classes(options: dict[str, Any]) -> None:
    data = torch.randn(32, 5, 8)
    classes = torch.randint(0, 4, (32, 5))
    report = de_plugin.prune(mlp(), (data, classes), 0.5, **options)
    assert report.sparsity == 0.5
    with pytest.raises(de_plugin.DEError, match=r"\[0, 4\)"):
        de_plugin.prune(mlp(), (data, classes + 7), 0.5, **options)
    with pytest.raises(de_plugin.DEError, match="labels"):
        de_plugin.prune(mlp(), (data, classes[:, :3]), 0.5, **options)
