"""Swaps: exchanges at fixed sparsity, proposed by estimates that are exact where they claim to be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from de_plugin import Problem, Score, Swaps
from de_plugin.assess.capture import grams
from de_plugin.errors import ArgumentError
from de_plugin.prune.estimates import _greedy, by_scores, cells, gram, joint
from de_plugin.prune.swap import swap

FEW = Swaps(rounds=4, candidates=10, window=40, gradient_samples=48, patience=4)


def problem(**options: Any) -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4)).eval()
    inputs = torch.randn(80, 8)
    return Problem(model, (inputs, torch.randint(4, (80,))), **options)


def scores_of(asked: Problem) -> Tensor:
    return torch.rand(asked.units.count, generator=asked.generator(77)).double()


def started(asked: Problem, fraction: float = 0.5) -> Tensor:
    count = round(fraction * asked.units.count)
    return asked.select(scores_of(asked), asked.eligible, count)


def accuracy(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs.argmax(-1) == labels).float().mean()


def everything(asked: Problem) -> Tensor:
    return torch.ones(asked.units.count, dtype=torch.bool)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"divergence": "mse"},
        {"divergence": Score(accuracy)},
        {"divergence": lambda s, t: float((s - t).abs().mean())},
        {"granularity": "2:4"},
        {"granularity": "4x4"},
        {"granularity": "channel"},
    ],
    ids=["kl", "mse", "score", "number", "2:4", "4x4", "channel"],
)
def test_swaps_lower_the_divergence_at_the_same_sparsity(options: dict[str, Any]) -> None:
    asked = problem(**options)
    start = started(asked, 0.4)
    before = asked.units.masks(start)
    kept = swap(asked, start, everything(asked), scores_of(asked), FEW)
    assert int(kept.sum()) == int(start.sum())
    assert asked(kept) <= asked(start)
    assert bool(asked.kept.all())
    assert all(torch.equal(before[n], m) for n, m in asked.units.masks(start).items())
    swaps = [e for e in asked.events if e["kind"] == "swap"]
    assert swaps
    assert all(e["measured"] < 0 for e in swaps if e["accepted"])
    assert torch.equal(kept, start) == (not any(e["accepted"] for e in swaps))


def test_swaps_find_something() -> None:
    asked = problem()
    start = started(asked)
    kept = swap(asked, start, everything(asked), scores_of(asked), FEW)
    assert asked(kept) < 0.9 * asked(start)


def test_without_a_gradient_only_measured_sources_propose() -> None:
    asked = problem(divergence=Score(accuracy))
    swap(asked, started(asked), everything(asked), scores_of(asked), FEW)
    assert {e["source"] for e in asked.events} == {"gram", "scores"}


def test_quotas_are_kept() -> None:
    asked = problem()
    asked.quota = torch.tensor([60, 20])
    start = started(asked)
    kept = swap(asked, start, everything(asked), scores_of(asked), FEW)
    assert not torch.equal(kept, start)
    assert torch.bincount(asked.units.layer_of[~kept]).tolist() == [60, 20]


def test_nm_limits_are_kept() -> None:
    asked = problem(granularity="2:4")
    start = started(asked)
    kept = swap(asked, start, everything(asked), scores_of(asked), FEW)
    assert not torch.equal(kept, start)
    assert bool((kept.reshape(-1, 4).sum(-1) == 2).all())


def test_what_is_not_free_stays() -> None:
    asked = problem()
    start = started(asked)
    free = torch.arange(asked.units.count) % 3 != 0
    kept = swap(asked, start, free, scores_of(asked), FEW)
    assert torch.equal(kept[~free], start[~free])
    assert torch.equal(swap(asked, start, ~everything(asked), scores_of(asked), FEW), start)


def test_a_spent_budget_ends_it() -> None:
    asked = problem()
    asked.out_of_budget = lambda: True
    start = started(asked)
    assert torch.equal(swap(asked, start, everything(asked), scores_of(asked), FEW), start)
    assert asked.evaluations == 0


def test_an_exception_gives_kept_back() -> None:
    asked = problem()
    start = started(asked)

    def spent() -> bool:
        raise KeyboardInterrupt

    asked.out_of_budget = spent
    with pytest.raises(KeyboardInterrupt):
        swap(asked, start, everything(asked), scores_of(asked), FEW)
    assert bool(asked.kept.all())


@pytest.mark.parametrize(
    "options",
    [{"rounds": -1}, {"candidates": 0}, {"share": 0.0}, {"share": 1.5}, {"window": 0}, {"patience": 0}],
)
def test_settings_that_swap_nothing(options: Any) -> None:
    with pytest.raises(ArgumentError, match=next(iter(options))):
        Swaps(**options)


# -- estimates -----------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 8), st.integers(1, 3))
def test_the_greedy_path_costs_what_the_quadratic_model_says(
    seed: int, removable: int, revivable: int, kinds: int
) -> None:
    rng = np.random.default_rng(seed)
    units = removable + revivable
    root = rng.standard_normal((units, units))
    matrix, linear = root @ root.T / units, rng.standard_normal(units)
    cell = rng.integers(kinds, size=units)
    path, costs = _greedy(linear, matrix, removable, cell, units)
    z = np.zeros(units)
    last = 0.0
    for (out, into), cost in zip(path, costs, strict=True):
        assert out < removable <= into
        assert cell[out] == cell[into]
        assert z[out] == z[into] == 0
        z[out] = z[into] = 1
        assert cost == pytest.approx(linear @ z + z @ matrix @ z / 2)
        assert cost < last
        last = cost


def test_the_greedy_path_begins_with_the_best_pair_of_a_diagonal_model() -> None:
    linear = np.array([-1.0, -3.0, 2.0, 0.5, 1.0])
    path, costs = _greedy(linear, np.eye(5), 2, np.zeros(5, dtype=int), 5)
    assert path[0] == (1, 3)
    assert costs[0] == pytest.approx(-3 + 0.5 + 1)


@pytest.mark.parametrize("divergence", ["kl", "mse"])
def test_joint_predictions_agree_with_small_changes(divergence: str) -> None:
    asked = problem(divergence=divergence)
    with torch.no_grad():
        for layer in asked.units.layers:
            layer.parameter[::2] *= 0.02
    stacked: Any = asked.pool.stacked
    asked = Problem(asked.model, stacked[0], divergence=divergence, holdout=0)
    asked.kept = started(asked, 0.3)
    path = joint(asked, everything(asked), 20, samples=80, window=60, key=1)
    assert path
    assert [s.size for s in path] == list(range(1, len(path) + 1))
    masks = asked.kept.expand(len(path) + 1, -1).clone()
    for row, found in zip(masks[1:], path, strict=True):
        assert bool(row[found.remove].all())
        assert not bool(row[found.revive].any())
        row[found.remove], row[found.revive] = False, True
    values = asked.assess(masks, asked.search)
    measured = (values[1:] - values[0]).numpy()
    predicted = np.array([s.predicted for s in path])
    assert np.corrcoef(measured, predicted)[0, 1] > 0.5
    assert measured[0] < 0


def test_gram_costs_are_the_true_change_of_the_layers_error() -> None:
    asked = problem(holdout=0)
    asked.kept = started(asked)
    found = gram(asked, everything(asked), 100, samples=80)
    assert found
    parts = grams(asked, asked.search, range(2))
    before = 0.0
    for proposal in found:
        out, into = int(proposal.remove[-1]), int(proposal.revive[-1])
        layer = asked.units.layers[int(asked.units.layer_of[out])]
        [(_, matrix)] = parts[int(asked.units.layer_of[out])]
        kept = asked.kept.clone()
        kept[out], kept[into] = False, True
        dense = layer.parameter.detach()
        row = (out - layer.start) // layer.shape[1]
        assert row == (into - layer.start) // layer.shape[1]

        def error(
            mask: Tensor, w: Tensor = dense[row], layer: Any = layer, row: int = row, h: Tensor = matrix
        ) -> float:
            lost = w * ~mask[layer.start : layer.stop].reshape(layer.shape)[row]
            return float(lost @ h @ lost)

        change = (error(kept) - error(asked.kept)) / float(dense[row] @ matrix @ dense[row])
        assert proposal.predicted - before == pytest.approx(change, rel=1e-3, abs=1e-5)
        assert change < 0
        before = proposal.predicted


def test_gram_leaves_coarser_units_alone() -> None:
    asked = problem(granularity="4x4")
    assert gram(asked, everything(asked), 5, samples=16) == []


def test_drawn_exchanges_stay_inside_their_cells() -> None:
    asked = problem(granularity="2:4")
    asked.kept = started(asked)
    where = cells(asked)
    found = by_scores(asked, scores_of(asked), everything(asked), 8, count=6, window=100, key=1)
    assert found
    for proposal in found:
        assert torch.equal(where[proposal.remove], where[proposal.revive])
        assert len(proposal.remove.unique()) == len(proposal.revive.unique()) == proposal.size
