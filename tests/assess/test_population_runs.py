"""The student's own runs are used again while they hold, and never longer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from de_plugin.assess import Problem
from de_plugin.assess.candidates import Candidates, Flipped, Listed
from de_plugin.assess.population import Population
from de_plugin.assess.serial import Serial
from de_plugin.assess.vectorised import BatchingError
from de_plugin.errors import DEWarning


class Net(nn.Module):
    """A convolution, batch norm and two heads; every other instance works in place."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(in_place)
        self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 3)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        y = self.relu(self.norm(self.conv(x))).mean((2, 3))
        out: Tensor = self.left(y) + self.right(y.relu())
        return out


def problem_of(in_place: bool = False, **options: Any) -> Problem:
    x = torch.randn(30, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    return Problem(Net(in_place).eval(), x, **{"evaluate": "serial", "holdout": 0, **options})


def few(problem: Problem) -> Candidates:
    """Return one candidate for each of four units, in different layers."""
    ends = [layer.stop - 1 for layer in problem.units.layers]
    return Flipped(problem.kept, tuple(torch.tensor([n]) for n in (0, *ends)))


def many(problem: Problem) -> Candidates:
    draw = torch.Generator().manual_seed(1)
    return Listed(torch.rand(5, problem.units.count, generator=draw) > 0.5)


def compare(fast: Population, population: Candidates, index: Tensor) -> None:
    expected = Serial(fast.problem)(population, index)
    torch.testing.assert_close(fast(population, index), expected, rtol=1e-5, atol=1e-6)


def runs(problem: Problem, fast: Population, population: Candidates, index: Tensor) -> int:
    """Return how often a call runs the model."""
    net = problem.model
    assert isinstance(net, Net)
    before = net.runs
    fast(population, index)
    return net.runs - before


def keep_others(problem: Problem) -> None:
    problem.kept = problem.kept.clone()
    problem.kept[1] = ~problem.kept[1]


def keep_others_in_place(problem: Problem) -> None:
    problem.kept[2] = ~problem.kept[2]


def change_a_weight(problem: Problem) -> None:
    with torch.no_grad():
        problem.units.layers[0].parameter.view(-1)[3] *= 1.5


def change_a_weight_behind_its_back(problem: Problem) -> None:
    problem.units.layers[1].parameter.data[0, 0] = 2.0


def change_a_bias(problem: Problem) -> None:
    problem.model.get_parameter("left.bias").data += 0.25


def change_a_buffer(problem: Problem) -> None:
    problem.model.get_buffer("norm.running_var").mul_(2)


def replace_a_buffer(problem: Problem) -> None:
    problem.model.get_submodule("norm").running_mean = torch.full((4,), 0.5)


def load(problem: Problem) -> None:
    problem.model.load_state_dict({k: v.clone() * 0.75 for k, v in problem.model.state_dict().items()})


CHANGES: dict[str, Callable[[Problem], None]] = {
    "kept": keep_others,
    "kept in place": keep_others_in_place,
    "weight": change_a_weight,
    "weight.data": change_a_weight_behind_its_back,
    "bias": change_a_bias,
    "buffer": change_a_buffer,
    "new buffer": replace_a_buffer,
    "state": load,
}


@pytest.mark.parametrize("in_place", [False, True])
def test_the_students_run_is_made_once(in_place: bool) -> None:
    problem = problem_of(in_place)
    fast, population = Population(problem), few(problem)
    first = runs(problem, fast, population, problem.search)
    again = runs(problem, fast, population, problem.search)
    assert again == first - 1
    assert runs(problem, fast, population, problem.search[:9]) == first
    assert runs(problem, fast, population, problem.search.clone()) == again
    forgetful = Population(problem, prefix_bytes=0)
    assert [runs(problem, forgetful, population, problem.search) for _ in range(2)] == [first] * 2


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_it_is_made_again_when_anything_has_changed(change: str, in_place: bool) -> None:
    problem = problem_of(in_place)
    fast, population = Population(problem), few(problem)
    first = runs(problem, fast, population, problem.search)
    assert runs(problem, fast, population, problem.search) < first
    CHANGES[change](problem)
    assert runs(problem, fast, few(problem), problem.search) == first
    compare(fast, few(problem), problem.search)


@settings(max_examples=40, deadline=None)
@given(
    in_place=st.booleans(),
    granularity=st.sampled_from(["weight", "1x2", "channel"]),
    prefix_bytes=st.sampled_from([0, 20_000, 256 << 20]),
    working_set=st.sampled_from([1, 1 << 14, 8 << 20]),
    steps=st.lists(
        st.tuples(st.sampled_from([None, *CHANGES]), st.booleans(), st.integers(1, 30)), max_size=6
    ),
)
def test_any_story_gives_the_serial_values(
    in_place: bool,
    granularity: str,
    prefix_bytes: int,
    working_set: int,
    steps: list[tuple[str | None, bool, int]],
) -> None:
    problem = problem_of(in_place, granularity=granularity)
    fast = Population(problem, working_set, prefix_bytes)
    for change, whole, samples in steps:
        if change is not None:
            CHANGES[change](problem)
        compare(fast, many(problem) if whole else few(problem), problem.search[:samples])


@settings(max_examples=30, deadline=None)
@given(granularity=st.sampled_from(["weight", "channel"]), data=st.data())
def test_a_candidates_value_does_not_depend_on_the_others(granularity: str, data: st.DataObject) -> None:
    problem = problem_of(granularity=granularity)
    fast, population = Population(problem), many(problem)
    everyone = fast(population, problem.search)
    some = data.draw(st.lists(st.integers(0, 4), max_size=7))
    found = fast(population.pick(some), problem.search)
    torch.testing.assert_close(found, everyone[some], rtol=1e-5, atol=1e-6)
    assert found.dtype == torch.float64


def test_large_populations_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of()
    masks = torch.rand(150, problem.units.count, generator=torch.Generator().manual_seed(2)) > 0.2
    expected = Population(problem)(Listed(masks), problem.search)
    monkeypatch.setattr("de_plugin.assess.slab._SLAB_BYTES", 2000)
    torch.testing.assert_close(Population(problem)(Listed(masks), problem.search), expected)
    compare(Population(problem), Listed(masks), problem.search)


def test_who_differs_in_nothing_is_the_student() -> None:
    problem = problem_of()
    problem.kept[::3] = False
    fast = Population(problem)
    same = Flipped(problem.kept, (torch.empty(0, dtype=torch.long),) * 3)
    compare(fast, same, problem.search)
    assert len(set(fast(same, problem.search).tolist())) == 1
    assert len(fast(Flipped(problem.kept, ()), problem.search)) == 0


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("granularity", ["weight", "channel"])
@pytest.mark.parametrize("population", [few, many])
def test_the_model_stays_bit_for_bit_as_it_is(
    in_place: bool,
    error: type[BaseException] | None,
    granularity: str,
    population: Callable[[Problem], Candidates],
) -> None:
    armed: list[int] = []

    def measure(outputs: Tensor, teacher: Tensor) -> Tensor:
        if error is not None and armed and armed.pop() == 0:
            raise error
        return (outputs - teacher).abs().mean()

    problem = problem_of(in_place, granularity=granularity, divergence=measure)
    problem.kept[::2] = False
    with torch.no_grad():
        raw = problem.units.layers[0].parameter
        raw.view(-1)[0] = -0.0
        raw.view(-1)[2] = 1e-42  # denormal
    net = problem.model
    before = {k: v.clone().numpy().tobytes() for k, v in net.state_dict().items()}
    flags = [p.requires_grad for p in net.parameters()]
    fast = Population(problem)
    for calls in range(3):
        armed[:] = [0, *[1] * calls]
        if error is None:
            fast(population(problem), problem.search)
        else:
            with pytest.raises(error):
                fast(population(problem), problem.search)
        assert {k: v.numpy().tobytes() for k, v in net.state_dict().items()} == before
        assert [p.requires_grad for p in net.parameters()] == flags
        assert all(p.grad is None for p in net.parameters())


# -- memory --------------------------------------------------------------------------------------


class Narrow(nn.Module):
    """Finds no room for more than so many samples at once."""

    def __init__(self, most: int, message: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 256), nn.Linear(256, 3)
        self.most, self.message, self.refused = most, message, 0

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            self.refused += 1
            kind = torch.OutOfMemoryError if "CUDA" in self.message else RuntimeError
            raise kind(self.message)
        out: Tensor = self.last(self.first(x).relu())
        return out


@pytest.mark.parametrize("message", ["CUDA out of memory", "DefaultCPUAllocator: can't allocate memory"])
def test_passes_are_halved_until_they_find_room(message: str) -> None:
    model = Narrow(600, message).eval()
    problem = Problem(model, torch.randn(4096, 4), divergence="mse", holdout=0)
    sets = Flipped(problem.kept, (torch.tensor([5]), torch.tensor([1030])))
    expected = Serial(problem)(sets, problem.search)
    found = problem.assess(sets, problem.search)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)
    assert 1 <= model.refused <= 6
    assert problem.state["evaluator"]["working_set"] < 4 << 20
    refused = model.refused
    assert torch.equal(problem.assess(sets, problem.search), found)
    assert model.refused == refused  # the smaller passes stay


def test_where_nothing_finds_room_the_serial_loop_goes_on() -> None:
    model = Narrow(10**9, "CUDA out of memory").eval()
    problem = Problem(model, torch.randn(64, 4), divergence="mse", holdout=0, batch_size=8)
    model.most = 8
    sets = Flipped(problem.kept, (torch.tensor([5]),))
    expected = Serial(problem)(sets, problem.search)
    with pytest.warns(DEWarning, match="one by one"):
        assert torch.equal(problem.assess(sets, problem.search), expected)


def test_a_rank_without_room_gives_up_where_another_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(Narrow(8, "CUDA out of memory").eval(), torch.randn(8, 4), divergence="mse", holdout=0)
    fast = Population(problem)

    def total(values: Tensor) -> Tensor:
        if values[-3:].tolist() == [0, 0, 1]:  # this rank has met no worse than a lack of room
            values[-2] = 1
        return values

    assert isinstance(problem.model, Narrow)
    problem.model.most = 0
    monkeypatch.setattr(problem.ranks, "total", total)
    with pytest.raises(BatchingError, match="another rank has failed"):
        fast(Flipped(problem.kept, (torch.tensor([5]),)), problem.search)
