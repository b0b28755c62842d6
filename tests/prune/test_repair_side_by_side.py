"""Batch norms matched for many candidates at once: the serial loop's values, and its fallbacks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from de_plugin import Problem
from de_plugin.assess.candidates import Flipped, Listed
from de_plugin.assess.population import Population
from de_plugin.assess.serial import Serial
from de_plugin.errors import DEWarning
from de_plugin.prune.recover.batchnorm import BatchNormMatching


class Branches(nn.Module):
    """A residual network with batch norms of images and of vectors, one of them without a gain."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.free = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4, affine=False)
        self.head, self.last = nn.Linear(4, 5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = (x + self.free(self.second(x))).relu().mean((2, 3))
        out: Tensor = self.last(self.head(x))
        return out


def network() -> nn.Module:
    torch.manual_seed(0)
    model = Branches().train()
    for _ in range(20):
        model(torch.randn(32, 2, 6, 6))
    return model.eval()


def asked(granularity: str = "weight", evaluate: str = "auto") -> Problem:
    torch.manual_seed(1)
    problem = Problem(
        network(),
        torch.randn(60, 2, 6, 6),
        divergence="mse",
        granularity=granularity,
        batch_size=16,
        holdout=0,
        evaluate=evaluate,
    )
    matching = BatchNormMatching()
    matching.prepare(problem)
    problem.repair = matching.in_assessment()
    problem.kept = torch.rand(problem.units.count) > 0.2
    return problem


def some(problem: Problem) -> list[Any]:
    few = [layer.start + torch.randperm(layer.count)[:2].sort().values for layer in problem.units.layers]
    everywhere = problem.kept ^ (torch.rand(5, problem.units.count) < 0.06)
    return [Flipped(problem.kept, tuple(few)), Listed(everywhere)]


@pytest.mark.parametrize("granularity", ["weight", "channel"])
@pytest.mark.parametrize("room", [1 << 12, 16 << 20])
def test_repaired_candidates_have_the_values_of_the_serial_loop(granularity: str, room: int) -> None:
    problem = asked(granularity)
    fast = Population(problem, working_set=room)
    for sets in some(problem):
        expected = Serial(problem)(sets, problem.search, problem.repair)
        plain = Serial(problem)(sets, problem.search)
        torch.testing.assert_close(fast(sets, problem.search, problem.repair), expected, rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(fast(sets, problem.search), plain, rtol=1e-5, atol=1e-9)
        assert not torch.allclose(plain, expected, rtol=1e-3)


def test_assessing_leaves_the_statistics_alone_and_is_not_serial(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = asked()
    before = [x.clone() for x in problem.model.buffers()]
    sets = some(problem)[1]
    expected = Serial(problem)(sets, problem.search, problem.repair)
    problem.assess(sets, problem.search)  # its trial measures one by one
    monkeypatch.setattr(Serial, "__call__", lambda *_: pytest.fail("measured one by one"))
    torch.testing.assert_close(problem.assess(sets, problem.search), expected, rtol=1e-5, atol=1e-9)
    assert all(torch.equal(a, b) for a, b in zip(before, problem.model.buffers(), strict=True))


def test_a_norm_without_running_statistics_in_the_call_is_seen_by_the_trial() -> None:
    class Own(nn.Module):
        """Normalises by hand with the statistics of a batch norm, which no function call shows."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(x)
            if self.norm.running_mean is None or self.norm.running_var is None:
                raise RuntimeError("no statistics")
            y: Tensor = self.norm(x) + (x - self.norm.running_mean) / self.norm.running_var.sqrt()
            return y

    torch.manual_seed(0)
    model = Own().train()
    for _ in range(10):
        model(torch.randn(32, 4))
    problem = Problem(model.eval(), torch.randn(40, 4), divergence="mse", holdout=0)
    matching = BatchNormMatching()
    matching.prepare(problem)
    problem.repair = matching.in_assessment()
    sets = Listed(torch.rand(3, problem.units.count) > 0.4)
    with pytest.warns(DEWarning, match="gives other results side by side"):
        found = problem.assess(sets, problem.search)
    torch.testing.assert_close(found, Serial(problem)(sets, problem.search, problem.repair))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        problem.assess(sets, problem.search)


def test_any_other_repair_is_made_one_by_one() -> None:
    problem = asked()
    seen: list[int] = []

    @contextmanager
    def repair(_problem: Problem, batches: list[Any]) -> Iterator[None]:
        seen.append(len(batches))
        yield

    problem.repair = repair
    problem.assess(Listed(torch.rand(3, problem.units.count) > 0.4), problem.search)
    assert len(seen) == 3
