"""OBS and its update against dense linear algebra."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from de_plugin.assess import Problem
from de_plugin.criteria import OBS
from de_plugin.criteria import obs as module
from de_plugin.errors import ArgumentError

DAMPING = 0.05


def dense(problem: Problem, layer: int) -> Tensor:
    """Return one layer's damped empirical Fisher with labels, in canonical order, float64."""
    stacked: Any = problem.pool.stacked
    (inputs, labels, _) = stacked
    found = problem.units.layers[layer]
    rows = []
    with problem.units.zeroed(problem.kept):
        for x, y in zip(inputs, labels, strict=True):
            loss = F.cross_entropy(problem.model(x[None]), y[None])
            (g,) = torch.autograd.grad(loss, found.parameter)
            rows.append(found.canonical(g).flatten().double())
    g = torch.stack(rows)
    h = g.T @ g / len(g)
    alive = found.canonical(problem.units.expand(problem.kept)[layer]).flatten()
    h += DAMPING * h.diagonal()[alive].mean() * torch.eye(len(h))
    return h


def flat(problem: Problem, layer: int, units: Tensor) -> Tensor:
    return problem.units.layers[layer].canonical(problem.units.expand(units)[layer]).flatten()


@pytest.mark.parametrize("thin", [False, True])
def test_one_block_agrees_with_the_dense_inverse(build: Any, thinned: Any, thin: bool) -> None:
    problem = build()
    if thin:
        thinned(problem)
    scores = OBS(block=64, damping=DAMPING, labels=True)(problem, problem.eligible, 1)
    for number, layer in enumerate(problem.units.layers):
        alive = flat(problem, number, problem.kept)
        h = dense(problem, number)[alive][:, alive]
        w = layer.parameter.detach().flatten().double()[alive]
        expected = w.square() / (2 * torch.linalg.inv(h).diagonal())
        ours = scores[layer.start : layer.stop][alive]
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-12)


def test_blocks_are_blocks_of_the_dense_matrix(build: Any) -> None:
    problem = build()
    scores = OBS(block=7, damping=DAMPING, labels=True)(problem, problem.eligible, 1)
    layer = problem.units.layers[0]
    h = dense(problem, 0)
    w = layer.parameter.detach().flatten().double()
    for start in range(0, 24, 7):
        at = slice(start, min(24, start + 7))
        expected = w[at].square() / (2 * torch.linalg.inv(h[at, at]).diagonal())
        torch.testing.assert_close(scores[:24][at], expected, rtol=1e-3, atol=1e-12)


def test_units_of_several_weights_get_the_sum(build: Any) -> None:
    one, rows = build(), build(granularity="channel")
    criterion = OBS(damping=DAMPING, labels=True)
    single = criterion(one, one.eligible, 1)
    expected = torch.cat([single[:24].reshape(6, 4).sum(1), single[24:].reshape(3, 6).sum(1)])
    torch.testing.assert_close(criterion(rows, rows.eligible, 1), expected)


@pytest.mark.parametrize("granularity", ["weight", "channel", "2x2"])
@pytest.mark.parametrize("thin", [False, True])
def test_update_solves_the_quadratic_problem(build: Any, thinned: Any, granularity: str, thin: bool) -> None:
    problem = build(granularity=granularity)
    if thin:
        thinned(problem)
    removed = torch.zeros_like(problem.kept)
    removed[::3] = True
    changes = OBS(block=64, damping=DAMPING, labels=True).update(problem, removed)
    for number, layer in enumerate(problem.units.layers):
        alive = flat(problem, number, problem.kept)
        gone = flat(problem, number, removed)[alive]
        h = dense(problem, number)[alive][:, alive]
        w = layer.parameter.detach().flatten().double()[alive]
        inverse = torch.linalg.inv(h)
        expected = -inverse[:, gone] @ torch.linalg.solve(inverse[gone][:, gone], w[gone])
        torch.testing.assert_close(expected[gone], -w[gone])
        ours = changes[number].flatten().double()
        assert changes[number].shape == layer.parameter.shape
        assert bool((ours[~alive] == 0).all())
        assert bool((ours[alive][gone] == 0).all())
        torch.testing.assert_close(ours[alive][~gone], expected[~gone], rtol=2e-3, atol=1e-6)
        # No other change of the survivors costs less.
        best = torch.where(gone, -w, ours[alive])
        cost = best @ h @ best
        for seed in range(5):
            step = torch.randn(len(w), generator=torch.Generator().manual_seed(seed)).double()
            other = best + 0.05 * step.masked_fill(gone, 0)
            assert float(other @ h @ other) > float(cost)


def test_update_of_grouped_and_transposed_layers_keeps_their_layout() -> None:
    torch.manual_seed(1)
    model = torch.nn.Sequential(
        torch.nn.ConvTranspose1d(4, 6, 3, groups=2),
        torch.nn.Tanh(),
        torch.nn.Conv1d(6, 4, 2, groups=2),
    ).eval()
    problem = Problem(model, torch.randn(10, 4, 5), divergence="mse", holdout=0.0)
    removed = torch.rand(problem.units.count, generator=problem.generator(1)) < 0.5
    changes = OBS(block=5).update(problem, removed)
    for layer, change, gone in zip(problem.units.layers, changes, problem.units.expand(removed), strict=True):
        assert change.shape == layer.parameter.shape
        assert bool((change[gone] == 0).all())
        assert bool((change[~gone] != 0).any())


def test_nothing_removed_nothing_changed(build: Any) -> None:
    problem = build()
    assert all(bool((change == 0).all()) for change in OBS().update(problem, torch.zeros_like(problem.kept)))


def test_a_malformed_removal_is_refused(build: Any) -> None:
    problem = build()
    with pytest.raises(ArgumentError, match="removed"):
        OBS().update(problem, torch.zeros(2, dtype=torch.bool))


def test_layers_without_gradient_cost_next_to_nothing(build: Any) -> None:
    problem = build()
    problem.model[2].weight.data.zero_()
    scores = OBS()(problem, problem.eligible, 1)
    assert float(scores[:24].max()) < 1e-20
    assert all(bool(torch.isfinite(c).all()) for c in OBS().update(problem, problem.eligible.clone()))


def test_blocks_shrink_to_fit_in_memory(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = build()
    monkeypatch.setattr(module, "_STORED_BYTES", 42 * 4 * 8)
    scores = OBS(block=64)(problem, problem.eligible, 1)
    assert bool(torch.isfinite(scores).all())
    assert problem.events[-1]["criterion"] == "obs"
    assert "block=64 reduced to" in problem.events[-1]["message"]


def test_pieces_make_no_difference(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = OBS(block=4)(build(), torch.ones(42, dtype=torch.bool), 1)
    monkeypatch.setattr(module, "_PIECE_BYTES", 1)
    torch.testing.assert_close(OBS(block=4)(build(), torch.ones(42, dtype=torch.bool), 1), whole)


@pytest.mark.parametrize(
    "options",
    [{"samples": 0}, {"block": 0}, {"damping": 0.0}, {"damping": float("inf")}, {"damping": -1.0}],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="expected"):
        OBS(**options)
