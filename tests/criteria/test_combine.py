"""The laws of nest and blend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from de_plugin.assess import Problem
from de_plugin.criteria import Blend, Magnitude, Nest, Random, blend, criterion, nest
from de_plugin.errors import ArgumentError


@dataclass(frozen=True)
class Table:
    """Scores written down beforehand; remembers what it was asked."""

    scores: tuple[float, ...]
    name: str = "table"
    needs_gradient: bool = False

    def __call__(self, problem: Problem, eligible: Tensor, count: int) -> Tensor:
        problem.events.append({"asked": int(eligible.sum()), "count": count})
        return torch.tensor(self.scores).double().masked_fill(~eligible, float("inf"))


def table(seed: int, count: int = 42, low: float = 0.0) -> Table:
    values = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    return Table(tuple((values + low).tolist()), name=f"table{seed}")


def gone(problem: Problem, scores: Tensor, count: int) -> Tensor:
    return (problem.kept & ~problem.select(scores, problem.eligible, count)).nonzero()[:, 0]


def test_nest_of_one_is_itself() -> None:
    one = Magnitude()
    assert nest(one) is one
    assert nest("magnitude") == one


def test_the_sets_shrink_geometrically(build: Any) -> None:
    problem = build()
    nest(table(1), table(2), table(3), widen=4)(problem, problem.eligible, 5)
    assert problem.events == [
        {"asked": 42, "count": 20},
        {"asked": 20, "count": 10},
        {"asked": 10, "count": 5},
    ]


def test_two_steps_agree_with_a_plain_computation(build: Any) -> None:
    problem = build()
    outer, inner = table(1), table(2)
    scores = nest(outer, inner, widen=2)(problem, problem.eligible, 6)
    a, b = torch.tensor(outer.scores), torch.tensor(inner.scores)
    order = a.argsort()
    wide, rest = order[:12], order[12:]
    wide = wide[b[wide].argsort()]
    assert scores.argsort().tolist() == [*wide.tolist(), *rest.tolist()]
    assert sorted(scores.tolist()) == list(range(42))


def test_without_widening_the_outer_one_decides(build: Any) -> None:
    problem = build()
    scores = nest(table(1), table(2), widen=1)(problem, problem.eligible, 9)
    alone = table(1)(problem, problem.eligible, 9)
    assert gone(problem, scores, 9).tolist() == gone(problem, alone, 9).tolist()


def test_with_all_of_it_the_inner_one_decides(build: Any) -> None:
    problem = build()
    scores = nest(table(1), table(2), widen=1e6)(problem, problem.eligible, 9)
    alone = table(2)(problem, problem.eligible, 9)
    assert gone(problem, scores, 9).tolist() == gone(problem, alone, 9).tolist()


def test_depth_three_and_its_name(build: Any) -> None:
    deep = nest("random", nest("magnitude", nest("activation", "fisher")))
    assert deep.name == "nest(random, nest(magnitude, nest(activation, fisher)))"
    assert deep.needs_gradient
    assert not nest("random", "magnitude").needs_gradient
    problem = build()
    scores = deep(problem, problem.eligible, 7)
    assert sorted(scores.tolist()) == list(range(42))


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(0, 60),
    widen=st.floats(1, 5),
    depth=st.integers(1, 4),
    seed=st.integers(0, 99),
    granularity=st.sampled_from(["weight", "channel", "1:4", "2:4", "3:4"]),
)
def test_the_final_set_is_valid_and_comes_first(
    build: Any, count: int, widen: float, depth: int, seed: int, granularity: str
) -> None:
    problem = build("mixed", samples=2, granularity=granularity)
    units = problem.units.count
    problem.kept = torch.rand(units, generator=problem.generator(seed)) > 0.1
    problem.protected = torch.rand(units, generator=problem.generator(seed, 1)) < 0.1
    if granularity[1] == ":":
        m = int(granularity[2])
        problem.kept = problem.kept | (torch.arange(units) % m != 0)
        zeros = (~problem.kept).reshape(-1, m).sum(-1)
        left = m - int(granularity[0]) - zeros
        free = problem.eligible.reshape(-1, m).sum(-1)
        possible = int(torch.minimum(left.clamp_min(0), free).sum())
        count = count * possible // 60
    else:
        possible = int(problem.eligible.sum())
    parts = [table(seed + n, units) for n in range(depth + 1)]
    scores = nest(*parts, widen=widen)(problem, problem.eligible, count)
    assert bool(torch.isfinite(scores[problem.eligible]).all())
    assert bool((scores[~problem.eligible] == float("inf")).all())
    wanted = min(count, possible)
    chosen = gone(problem, scores, wanted)
    assert len(chosen) == wanted
    assert bool(problem.eligible[chosen].all())
    assert sorted(scores[chosen].tolist()) == list(range(wanted))


@pytest.mark.parametrize("granularity", ["weight", "2:4"])
def test_quotas_are_widened_layer_by_layer(build: Any, granularity: str) -> None:
    problem = build("mixed", samples=2, granularity=granularity)
    quota = problem.units.layer_counts // 4
    problem.quota = quota
    units = problem.units.count
    # The outer one wants the first layer alone, which the quotas forbid.
    outer = Table(tuple(torch.arange(units).double().tolist()), name="outer")
    inner = table(3, units)
    scores = nest(outer, inner)(problem, problem.eligible, int(quota.sum()))
    chosen = ~problem.select(scores, problem.eligible, 0)
    for layer, wanted in zip(problem.units.layers, quota.tolist(), strict=True):
        part = chosen[layer.start : layer.stop]
        assert int(part.sum()) == wanted
        if granularity == "weight":
            wide = torch.tensor(inner.scores)[layer.start : layer.start + 2 * wanted]
            assert part.nonzero()[:, 0].tolist() == sorted(wide.argsort()[:wanted].tolist())
    assert torch.equal(problem.quota, quota)


@dataclass(frozen=True)
class Chooser:
    """Writes down the quotas it finds and how many units a selection under them takes."""

    name: str = "chooser"
    needs_gradient: bool = False

    def __call__(self, problem: Problem, eligible: Tensor, count: int) -> Tensor:
        assert problem.quota is not None
        scores = torch.arange(len(eligible)).double()
        chosen = problem.kept & ~problem.select(scores, eligible, 0)
        problem.events.append(
            {"quota": problem.quota.tolist(), "chosen": int(chosen.sum()), "count": count},
        )
        return scores.masked_fill(~eligible, float("inf"))


@dataclass(frozen=True)
class Failing:
    """Gives up where it stands in a nest."""

    name: str = "failing"
    needs_gradient: bool = False

    def __call__(self, problem: Problem, eligible: Tensor, count: int) -> Tensor:
        raise KeyboardInterrupt


@pytest.mark.parametrize(("granularity", "room"), [("weight", 35), ("2:4", 15)])
def test_parts_find_the_quotas_they_are_to_reach(
    build: Any, thinned: Any, granularity: str, room: int
) -> None:
    problem = thinned(build("mixed", samples=2, granularity=granularity))
    gone = torch.tensor([int((~problem.kept[x.start : x.stop]).sum()) for x in problem.units.layers])
    # The last layer has no room to be widened twofold.
    problem.quota = quota = gone + torch.tensor([10, 6, room - 3])
    nest(nest(Chooser(), Chooser()), Chooser())(problem, problem.eligible, 13 + room)
    expected = [[40, 24, room], [20, 12, room], [10, 6, room - 3]]
    assert problem.events == [
        {"quota": (gone + torch.tensor(more)).tolist(), "chosen": sum(more), "count": sum(more)}
        for more in expected
    ]
    assert problem.quota is quota


@pytest.mark.parametrize("failing", [lambda: nest(Failing(), "random"), lambda: nest("random", Failing())])
def test_quotas_are_back_after_an_exception(build: Any, failing: Any) -> None:
    problem = build("mixed", samples=2)
    problem.quota = quota = problem.units.layer_counts // 4
    before = quota.clone()
    with pytest.raises(KeyboardInterrupt):
        failing()(problem, problem.eligible, int(quota.sum()))
    assert problem.quota is quota
    assert torch.equal(quota, before)


def test_full_2_4_leaves_the_inner_one_a_choice(build: Any) -> None:
    problem = build("mixed", samples=2, granularity="2:4")
    units = problem.units.count
    scores = nest(table(1, units), table(2, units))(problem, problem.eligible, units // 2)
    inner = table(2, units)(problem, problem.eligible, units // 2)
    ours = gone(problem, scores, units // 2)
    assert ours.tolist() == gone(problem, inner, units // 2).tolist()
    # No part is asked for more than the limit lets go.
    assert all(event["count"] == units // 2 for event in problem.events)


def test_nothing_to_choose_is_no_error(build: Any) -> None:
    problem = build()
    none = torch.zeros_like(problem.kept)
    for one in (nest("magnitude", "random"), blend({"magnitude": 1, "random": 1})):
        assert bool((one(problem, none, 3) == float("inf")).all())


@pytest.mark.parametrize("widen", [0.5, float("inf"), float("nan"), -1])
def test_widen_out_of_range(widen: float) -> None:
    with pytest.raises(ArgumentError, match="widen"):
        nest("magnitude", "random", widen=widen)
    with pytest.raises(ArgumentError, match="widen"):
        Nest(Magnitude(), (Random(),), widen)


def test_parts_must_be_criteria() -> None:
    with pytest.raises(ArgumentError, match="at least one"):
        Nest(Magnitude(), ())
    name: Any = "magnitude"
    with pytest.raises(ArgumentError, match="expected a criterion"):
        Nest(name, (Random(),))
    kind: Any = Magnitude
    with pytest.raises(ArgumentError, match="expected a criterion"):
        Blend(((kind, 1.0),))


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 99))
def test_blend_does_not_depend_on_scale(build: Any, scale: float, seed: int) -> None:
    problem = build(samples=2)
    first, second = table(seed), table(seed + 1)
    scaled = Table(tuple(scale * s for s in first.scores))
    ours = blend({first: 1, second: 0.5})(problem, problem.eligible, 3)
    theirs = blend({scaled: 1, second: 0.5})(problem, problem.eligible, 3)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_blend_agrees_with_a_plain_computation(build: Any) -> None:
    problem = build()
    eligible = problem.eligible.clone()
    eligible[::4] = False
    first, second = table(1), table(2)
    ours = blend({first: 2, second: -0.5})(problem, eligible, 3)[eligible]
    logs = [torch.tensor(t.scores).double()[eligible].log() for t in (first, second)]
    a, b = ((x - x.mean()) / x.std(correction=0) for x in logs)
    torch.testing.assert_close(ours, 2 * a - 0.5 * b)


def test_blend_of_one_keeps_its_order(build: Any) -> None:
    problem = build()
    for low in (0.0, -0.5):
        one = table(1, low=low)
        ours = blend({one: 3})(problem, problem.eligible, 3)
        assert torch.equal(ours.argsort(), torch.tensor(one.scores).argsort())


def test_zeros_come_first_and_constants_count_nothing(build: Any) -> None:
    problem = build()
    values = list(table(1).scores)
    values[5] = values[6] = 0.0
    ours = blend({Table(tuple(values)): 1, Table((0.3,) * 42, name="flat"): 9})(problem, problem.eligible, 1)
    assert sorted(ours.argsort()[:2].tolist()) == [5, 6]
    nothing = blend({Table((0.0,) * 42): 1})(problem, problem.eligible, 1)
    assert bool((nothing == 0).all())


def test_ties_stay_ties_among_negative_scores(build: Any) -> None:
    problem = build()
    ours = blend({Table((-1.0, -1.0, *range(40))): 1})(problem, problem.eligible, 1)
    assert float(ours[0]) == float(ours[1]) < float(ours[2])


def test_blend_names_and_gradients() -> None:
    assert blend({"magnitude": 1, Random(2): 0.5}).name == "blend(1*magnitude + 0.5*random)"
    assert blend({"magnitude": 1, "fisher": 1}).needs_gradient
    assert not blend({"magnitude": 1}).needs_gradient
    assert blend({"magnitude": 1}) == blend({criterion("magnitude"): 1})


@pytest.mark.parametrize(
    "weights", [{}, {"magnitude": 0}, {"magnitude": float("nan")}, {"magnitude": float("inf")}]
)
def test_weights_out_of_range(weights: dict[Any, float]) -> None:
    with pytest.raises(ArgumentError, match="blend weights"):
        blend(weights)
