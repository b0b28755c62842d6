"""Least squares: the closed form against NumPy, every kind of layer, and the gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from de_plugin.assess.problem import Problem
from de_plugin.errors import ArgumentError
from de_plugin.prune.recover import LeastSquares
from de_plugin.prune.recover.ridge import solve_rows


def cut(problem: Problem, fraction: float = 0.5) -> None:
    scores = torch.rand(problem.units.count, generator=torch.Generator().manual_seed(2))
    problem.kept = problem.select(scores, problem.eligible, int(fraction * problem.units.count))


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_rows_equal_numpy_on_their_support(rows: int) -> None:
    draw = torch.Generator().manual_seed(rows)
    x = torch.randn(80, 12, generator=draw, dtype=torch.float64)
    y = torch.randn(80, rows, generator=draw, dtype=torch.float64)
    support = torch.rand(rows, 12, generator=draw) > 0.5
    support[0] = False
    old = torch.randn(rows, 12, generator=draw, dtype=torch.float64)
    found = solve_rows(x.T @ x / 80, y.T @ x / 80, support, old, 0.0)
    for row in range(rows):
        expected = np.zeros(12)
        at = support[row].numpy()
        if at.any():
            expected[at] = np.linalg.lstsq(x[:, support[row]].numpy(), y[:, row].numpy(), None)[0]
        np.testing.assert_allclose(found[row].numpy(), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("same", [True, False])
def test_a_large_ridge_keeps_the_old_values(same: bool) -> None:
    x = torch.randn(50, 6, dtype=torch.float64)
    support = torch.ones(4, 6, dtype=torch.bool)
    if not same:
        support[1, 2] = False
    old = torch.randn(4, 6, dtype=torch.float64)
    cross = torch.randn(4, 6, dtype=torch.float64)
    found = solve_rows(x.T @ x / 50, cross, support, old, 1e9)
    torch.testing.assert_close(found, old * support, rtol=1e-6, atol=1e-6)


def test_dead_inputs_change_nothing() -> None:
    old = torch.randn(3, 4, dtype=torch.float64)
    nothing = torch.zeros(4, 4, dtype=torch.float64)
    support = torch.ones(3, 4, dtype=torch.bool)
    torch.testing.assert_close(solve_rows(nothing, nothing[:3], support, old, 0.0), old)


def test_one_linear_layer_equals_numpy_with_the_bias() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 3).eval()
    x = torch.randn(200, 6) + 1
    problem = Problem(model, x, divergence="mse", batch_size=64)
    recover = LeastSquares(samples=10_000, ridge=0.0)
    recover.prepare(problem)
    data = x[problem.search]
    y = model(data).detach()
    dense = model.weight.detach().clone()
    cut(problem)
    recover(problem)
    mask = problem.kept.reshape(3, 6)
    assert torch.equal(model.weight[~mask], dense[~mask])
    for row in range(3):
        design = np.hstack([data[:, mask[row]].numpy(), np.ones((len(data), 1))])
        expected = np.linalg.lstsq(design, y[:, row].numpy(), None)[0]
        ours = [*model.weight[row][mask[row]].tolist(), float(model.bias.detach()[row])]
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4)
    assert problem.events[-1]["accepted"]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(x, x, x)[0]
        return y


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(8, 6), (8,)),
    "no bias": (lambda: nn.Linear(8, 6, bias=False), (8,)),
    "grouped conv": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 6, 6)),
    "depthwise": (lambda: nn.Conv1d(4, 8, 3, groups=4), (4, 12)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 5, 5)),
    "attention": (Attention, (5, 8)),
}


GRANULARITIES = [(name, kind) for name in MODELS for kind in ("weight", "channel", "1x2")]
GRANULARITIES += [(name, "2:4") for name in ("linear", "no bias", "attention")]  # whose inputs come in fours


@pytest.mark.parametrize(("name", "granularity"), GRANULARITIES)
def test_the_error_falls_and_zeroed_values_stay(name: str, granularity: str) -> None:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make().eval()
    x = torch.rand(240, *shape, generator=torch.Generator().manual_seed(1))
    problem = Problem(model, x, divergence="mse", granularity=granularity, batch_size=100)
    recover = LeastSquares(ridge=1e-4, positions=2000)
    recover.prepare(problem)
    cut(problem, 0.3)
    before = problem(problem.kept)
    dense = [v.clone() for v in problem.units.values()]
    modes = [m.training for m in model.modules()]
    recover(problem)
    after = problem(problem.kept)
    if granularity == "channel" and name != "attention":
        assert after <= before * (1 + 1e-6)
    else:
        assert after < 0.9 * before
    masks = problem.units.expand(problem.kept)
    for old, new, mask in zip(dense, problem.units.values(), masks, strict=True):
        assert torch.equal(old[~mask], new[~mask])
    assert modes == [m.training for m in model.modules()]


def test_layers_follow_one_another_and_the_gate_speaks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 4)).eval()
    problem = Problem(model, torch.randn(500, 10))
    recover = LeastSquares()
    recover.prepare(problem)
    cut(problem, 0.6)
    before = float(problem.gate(problem.kept[None]))
    recover(problem)
    after = float(problem.gate(problem.kept[None]))
    assert after < before
    assert [e["layer"] for e in problem.events] == ["0.weight", "2.weight", "4.weight"]
    taken = [e["after"] if e["accepted"] else e["before"] for e in problem.events]
    assert taken == sorted(taken, reverse=True)
    assert after == pytest.approx(taken[-1])


def test_a_layer_that_does_harm_is_put_back() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 3).eval()

    def crooked(student: Tensor, teacher: Tensor) -> Tensor:
        """Fall with the distance from the teacher: every true repair does harm."""
        return -(student - teacher).square().mean()

    problem = Problem(model, torch.randn(100, 6), divergence=crooked)
    recover = LeastSquares()
    recover.prepare(problem)
    cut(problem)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    recover(problem)
    assert [e["accepted"] for e in problem.events] == [False]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_embeddings_are_skipped() -> None:
    model = nn.Sequential(nn.Embedding(10, 6), nn.Flatten(), nn.Linear(12, 3)).eval()
    problem = Problem(model, torch.randint(0, 10, (100, 2)), divergence="mse")
    recover = LeastSquares()
    recover.prepare(problem)
    cut(problem)
    recover(problem)
    assert [e["layer"] for e in problem.events] == ["2.weight"]


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"ridge": -1}, {"positions": 0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        LeastSquares(**wrong)
