"""Defects of the fast evaluator and of checkpoints that came up once and must not come back."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import de_plugin
from de_plugin import Fisher, Problem
from de_plugin.assess.candidates import Flipped
from de_plugin.assess.chunks import Chunk
from de_plugin.assess.population import Population
from de_plugin.assess.serial import Serial
from de_plugin.errors import CheckpointError, DEWarning

X = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(60) % 4


def network(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), activation(), nn.Linear(8, 4)).eval()


class Writing(nn.Module):
    """Keeps its last features in a buffer."""

    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.register_buffer("last", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.net[1](self.net[0](x))
        self.last = h.mean(0)
        y: Tensor = self.net[2](h)
        return y


def test_a_forward_that_replaces_a_buffer_is_measured_one_by_one() -> None:
    model = Writing().eval()
    with pytest.warns(DEWarning, match="replaces the buffer 'last'"):
        report = de_plugin.prune(model, X, 0.5, "de", schedule=2)
    assert report.sparsity == 0.5
    assert model.last.shape == (8,)


def test_a_replaced_buffer_comes_back_after_an_error() -> None:
    model = Writing().eval()
    before = model.last

    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.warns(DEWarning, match="replaces the buffer"), pytest.raises(KeyboardInterrupt):
        de_plugin.prune(model, X, 0.5, "magnitude", progress=stop)
    assert model.last is before
    assert torch.equal(before, torch.zeros(8))


@pytest.mark.parametrize("scale", [1.0, 1e-2])
def test_a_weight_that_cannot_be_seen_is_noticed_at_any_scale_of_the_outputs(scale: float) -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen, self.hidden = nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            with torch._C.DisableTorchFunction():
                other = x @ self.hidden.weight.t()
            y: Tensor = scale * (self.seen(x) + other)
            return y

    torch.manual_seed(0)
    with pytest.warns(DEWarning, match=r"hidden\.weight gives other results"):
        Problem(Hidden().eval(), X, divergence="mse")


def test_a_batch_that_cannot_be_cut_counts_all_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    batches = [torch.randn(20, 1, 6, 6), torch.randn(10, 1, 7, 7)]
    problem = Problem(model, batches, divergence="mse", holdout=0)
    population = Population(problem)
    chunks = population._chunks

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(chunks, name)

        def chunks(self, flips: Any, samples: int) -> list[Chunk]:
            seen.append(samples)
            return list(chunks.chunks(flips, samples))

    monkeypatch.setattr(population, "_chunks", Watched())
    sets = Flipped(problem.kept, (torch.tensor([0]), torch.tensor([5])))
    torch.testing.assert_close(population(sets, problem.search), Serial(problem)(sets, problem.search))
    assert sorted(seen) == [10, 20]


def test_an_infinite_channel_is_zeroed_as_the_serial_loop_zeroes_it() -> None:
    model = nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 2)).eval()
    problem = Problem(model, X, divergence="mse", granularity="channel", holdout=0)
    with torch.no_grad():
        model.get_parameter("0.weight")[1] = float("inf")
    sets = Flipped(problem.kept, (torch.tensor([1]),))
    found = Population(problem)(sets, problem.search)
    torch.testing.assert_close(found, Serial(problem)(sets, problem.search))
    assert bool(torch.isfinite(found).all())


class Mine:
    """A criterion that is no dataclass."""

    name = "mine"
    needs_gradient = False

    def __init__(self, power: float) -> None:
        self.power = power

    def __call__(self, problem: Problem, eligible: Tensor, count: int) -> Tensor:
        scores = torch.cat([w.abs().flatten() for w in problem.units.values()]).double() ** self.power
        return scores.masked_fill(~eligible, float("inf"))


def shrunk(student: Tensor, teacher: Tensor, by: float) -> Tensor:
    return (student - teacher).square().mean() * by


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        ({}, {"model": network(nn.GELU)}, "data was"),
        ({"batches": (X, Y)}, {"batches": (X, Y.flip(0))}, "data was"),
        ({"criterion": Mine(1.0)}, {"criterion": Mine(2.0)}, "criterion was"),
        (
            {"divergence": partial(shrunk, by=1.0)},
            {"divergence": partial(shrunk, by=2.0)},
            "divergence was",
        ),
    ],
)
def test_what_decides_the_result_is_in_the_checkpoint(
    first: dict[str, Any], second: dict[str, Any], what: str, tmp_path: Path
) -> None:
    call: dict[str, Any] = {"batches": X, "sparsity": 0.5, "criterion": "magnitude"}
    labelled = "batches" in first
    if labelled:
        call["criterion"] = Fisher(labels=True)
    de_plugin.prune(**{"model": network(), **call, **first}, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match=what):
        de_plugin.prune(**{"model": network(), **call, **second}, checkpoint=tmp_path)


def test_what_a_killed_search_left_half_written_is_removed(tmp_path: Path) -> None:
    stale = tmp_path / "search.123.tmp"
    stale.write_bytes(b"half")
    de_plugin.prune(network(), X, 0.5, "magnitude", checkpoint=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["search.safetensors"]
