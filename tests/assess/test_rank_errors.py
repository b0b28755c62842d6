"""An error on one rank is an error on all of them, at once; and no kind is mistaken for another."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from de_plugin import Problem
from de_plugin.assess.candidates import Flipped
from de_plugin.assess.chunks import Chunk
from de_plugin.assess.population import Population
from de_plugin.assess.ranks import Ranks
from de_plugin.errors import RankError

SCRIPT = Path(__file__).with_name("a_rank_that_fails.py")


@pytest.mark.parametrize("what", ["side by side", "one by one", "activation", "masks"])
def test_the_other_ranks_are_told_at_once(what: str, tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(tmp_path / "store"), str(rank), what],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    first, second = (p.communicate(timeout=60)[0] for p in processes)  # half of what gloo would wait
    assert first.startswith("RankError: another rank has failed")
    assert second.startswith("OSError: the disk is gone")


class FirstError(Exception):
    """The graver kind."""


class SecondError(Exception):
    """The lesser kind."""


@pytest.mark.parametrize(
    ("mine", "others", "expected"),
    [
        (None, [], None),
        (FirstError("a"), [], FirstError),
        (SecondError("a"), [0, 1, 0], FirstError),
        (FirstError("a"), [0, 0, 1], FirstError),
        (None, [0, 0, 1], SecondError),
        (None, [1, 1, 1], RankError),
        (OSError("a"), [0, 1, 1], OSError),
    ],
)
def test_the_gravest_error_counts(
    mine: Exception | None,
    others: list[int],
    expected: type[Exception] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ranks = Ranks(torch.device("cpu"))
    kinds: dict[type[Exception], Callable[[], Exception]] = {
        FirstError: lambda: FirstError("there"),
        SecondError: lambda: SecondError("there"),
    }

    def total(values: Tensor) -> Tensor:
        return values + torch.tensor([0.0, 0.0, *(others or [0, 0, 0])])

    def work() -> Tensor:
        if mine is not None:
            raise mine
        return torch.tensor([1.0, 2.0], dtype=torch.float64)

    monkeypatch.setattr(ranks, "total", total)
    if expected is None:
        assert ranks.run_shared(2, work, kinds).tolist() == [1, 2]
        return
    with pytest.raises(expected) as caught:
        ranks.run_shared(2, work, kinds)
    assert (caught.value is mine) == (type(mine) is expected)


def test_the_trial_measures_every_layer_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[Chunk] = []
    measure = Population._measure

    def counted(self: Population, chunk: Chunk, *rest: Any) -> Tensor:
        passes.append(chunk)
        return measure(self, chunk, *rest)

    monkeypatch.setattr(Population, "_measure", counted)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)).eval()
    problem = Problem(model, torch.randn(16, 5), granularity="channel", divergence="mse", holdout=0)
    assert sorted(n for chunk in passes for n in chunk.numbers) == [0, 1, 2]
    passes.clear()
    problem.assess(Flipped(problem.kept, (torch.tensor([7]),)), problem.search)
    assert not passes
