"""Directed Evolution: never worse than its criteria, the same for a seed, for every kind of unit."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import de_plugin
from de_plugin import DirectedEvolution, Problem, Score, Swaps
from de_plugin.assess import KL, CalibratedKL
from de_plugin.errors import ArgumentError
from de_plugin.evolve import Halving
from de_plugin.prune.guides import choice, guides
from tests.hashing import printed_whatever_the_hashes

QUICK = DirectedEvolution(
    population=6,
    generations=2,
    samples=64,
    halving=Halving(2),
    swaps=Swaps(rounds=2, candidates=8, gradient_samples=32, window=40),
)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4)).eval()


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()


def data(*shape: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(96, *shape, generator=rng), torch.randint(4, (96,), generator=rng)


def accuracy(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs.argmax(-1) == labels).float().mean()


@pytest.mark.parametrize("seed", range(3))
def test_it_is_never_worse_than_its_pure_criteria_on_held_back_data(seed: int) -> None:
    asked = Problem(linear(), data(8), seed=seed)
    eligible, count = asked.eligible, 90
    kept = QUICK.evolve(asked, eligible, count, ~asked.protected)
    assert int((~kept).sum()) == count
    pure = torch.stack(
        [
            asked.select(de_plugin.criterion(n)(asked, eligible, count), eligible, count)
            for n in ("magnitude", "activation")
        ]
    )
    assert float(asked.gate(kept[None])[0]) <= float(asked.gate(pure).min()) + 1e-9
    [gate] = [e for e in asked.events if e["kind"] == "gate"]
    assert gate["divergence"][gate["chosen"]] == min(gate["divergence"].values())
    assert set(gate["divergence"]) == {"swapped", "evolved", "magnitude", "activation", "fisher"}


def test_it_beats_its_criteria_where_they_are_poor() -> None:
    asked = Problem(linear(), data(8), holdout=0.3)
    eligible, count = asked.eligible, 90
    blind = DirectedEvolution(("random",), population=12, generations=4, samples=64)
    kept = blind.evolve(asked, eligible, count, ~asked.protected)
    scores = de_plugin.criterion("random")(asked, eligible, count)
    start = asked.select(scores, eligible, count)
    assert asked(kept) < 0.7 * asked(start)


def test_generations_only_get_better() -> None:
    asked = Problem(linear(), data(8), holdout=0)
    patient = DirectedEvolution(population=6, generations=5, samples=96, swaps=Swaps(rounds=0))
    patient.evolve(asked, asked.eligible, 90, ~asked.protected)
    best = [e["best"] for e in asked.events if e["kind"] == "generation"]
    assert len(best) == 5
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in pairwise(best))


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("granularity", ["weight", "2:4", "4x4", "kernel", "channel"])
def test_every_granularity_and_scope(granularity: str, scope: Any) -> None:
    report = de_plugin.prune(
        convolutional(),
        data(4, 6, 6),
        0.4,
        QUICK,
        granularity=granularity,
        scope=scope,
        schedule=2,
    )
    units = sum(x.units for x in report.layers)
    if scope == "global":
        assert sum(x.zeroed for x in report.layers) == round(0.4 * units)
    else:
        assert [x.zeroed for x in report.layers] == [round(0.4 * x.units) for x in report.layers]
    if granularity == "2:4":
        for mask in report.masks.values():
            groups = mask.movedim(1, -1).reshape(-1, 4)
            assert int(groups.sum(-1).min()) >= 2


def test_a_plain_accuracy_is_enough() -> None:
    model = linear()
    report = de_plugin.prune(model, data(8), 0.5, QUICK, divergence=Score(accuracy), schedule=2)
    assert report.sparsity == 0.5
    gates = [e for e in report.events if e["kind"] == "gate"]
    assert gates
    assert all("fisher" not in e["divergence"] for e in gates)


def test_criteria_that_all_need_a_gradient_are_refused_without_one() -> None:
    only = DirectedEvolution(("fisher",))
    with pytest.raises(ArgumentError, match="criteria: all of them need a gradient"):
        de_plugin.prune(linear(), data(8), 0.5, only, divergence=Score(accuracy))


def masks(model: nn.Module, seed: int) -> dict[str, Tensor]:
    return de_plugin.prune(model, data(8), 0.8, QUICK, schedule=3, seed=seed).masks


def test_the_same_seed_gives_the_same_mask() -> None:
    first, second, other = (masks(linear(), s) for s in (5, 5, 6))
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert not all(torch.equal(first[n], other[n]) for n in first)


SCRIPT = """
import hashlib, torch, de_plugin
from de_plugin import DirectedEvolution, Swaps
torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.ReLU(), torch.nn.Linear(12, 4)).eval()
quick = DirectedEvolution(population=6, generations=2, swaps=Swaps(rounds=2, gradient_samples=32))
report = de_plugin.prune(model, torch.randn(64, 8), 0.8, quick, schedule=2)
for name, mask in report.masks.items():
    print(name, hashlib.sha256(mask.numpy().tobytes()).hexdigest())
"""


def test_the_same_seed_gives_the_same_mask_in_every_process() -> None:
    assert "0.weight" in printed_whatever_the_hashes(SCRIPT)


def test_a_brief_search_is_as_large_as_it_is_asked_to_be() -> None:
    usual, more = DirectedEvolution.brief(), DirectedEvolution.brief(5120)
    assert usual == replace(usual, criteria=("magnitude", "activation", "fisher", "taylor"))
    assert (usual.samples, usual.swaps.samples, usual.swaps.gradient_samples) == (1024, 1024, 512)
    assert (more.samples, more.swaps.samples, more.swaps.gradient_samples) == (5120, 5120, 2560)
    plain: Any
    for plain, many in zip(usual.criteria[1:], more.criteria[1:], strict=True):
        assert many == replace(plain, samples=5 * plain.samples)
    least = de_plugin.prune(linear(), data(8), 0.5, DirectedEvolution.brief(samples=2))
    assert least.sparsity == 0.5
    wrong: Any
    for wrong in (1, 0, 1000.5, "a", float("nan"), True):
        with pytest.raises(ArgumentError, match=f"samples={wrong!r}"):
            DirectedEvolution.brief(wrong)


def test_a_brief_search_makes_as_many_rounds_as_it_may() -> None:
    def swaps(search: DirectedEvolution) -> int:
        asked = Problem(linear(), data(8))
        search.evolve(asked, asked.eligible, 60, asked.eligible)
        turns: int = asked.state_of("swap").get("turn", 0)
        return turns

    usual, long = DirectedEvolution.brief(), DirectedEvolution.brief(rounds=40)
    assert long == replace(usual, swaps=replace(usual.swaps, rounds=40, patience=8))
    plain = {n: swaps(replace(DirectedEvolution.brief(rounds=n), guides=False)) for n in (2, 6, 40)}
    assert plain[2] == 2
    assert 3 <= plain[6] <= 6 < plain[40] <= 40
    wrong: Any
    for wrong in (0, -1, 1.5, "a", True):
        with pytest.raises(ArgumentError, match=f"rounds={wrong!r}"):
            DirectedEvolution.brief(rounds=wrong)


def test_it_is_a_criterion_inside_others() -> None:
    nested = de_plugin.nest(QUICK, "magnitude")
    mixed = de_plugin.blend({QUICK: 1.0, "magnitude": 0.5})
    deep = de_plugin.nest(de_plugin.blend({"random": 1, QUICK: 1}), de_plugin.nest("activation", "fisher"))
    inside = DirectedEvolution((nested, "magnitude"), population=4, generations=1, swaps=Swaps(rounds=0))
    for combined in (nested, mixed, deep, inside):
        report = de_plugin.prune(linear(), data(8), 0.5, combined, schedule=2)
        assert report.sparsity == 0.5
    assert "de" in nested.name


def test_its_ranking_begins_with_the_evolved_set() -> None:
    asked, twin = (Problem(linear(), data(8)) for _ in range(2))
    scores = QUICK(asked, asked.eligible, 60)
    kept = QUICK.evolve(twin, twin.eligible, 60, twin.eligible)
    assert torch.equal(asked.select(scores, asked.eligible, 60), kept)


def test_protected_units_stay() -> None:
    asked = Problem(linear(), data(8))
    asked.protected[::3] = True
    kept = QUICK.evolve(asked, asked.eligible, 60, ~asked.protected)
    assert bool(kept[::3].all())


def test_units_that_went_can_be_revived() -> None:
    asked = Problem(linear(), data(8), holdout=0)
    worst = -de_plugin.Magnitude()(asked, asked.eligible, 40)
    asked.kept = asked.select(worst, asked.eligible, 40)
    gone = ~asked.kept
    kept = QUICK.evolve(asked, asked.eligible, 20, ~asked.protected)
    assert int((~kept).sum()) == 60
    assert bool((gone & kept).any())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criteria": ()}, "criteria="),
        ({"criteria": "magnitude"}, "criteria="),
        ({"criteria": ("magnitud",)}, "magnitud"),
        ({"population": 3}, "population=3"),
        ({"generations": -1}, "generations=-1"),
        ({"samples": 0}, "samples=0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"offset": float("nan")}, "offset=nan"),
    ],
)
def test_settings_that_cannot_work(options: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        DirectedEvolution(**options)


@pytest.mark.parametrize(("count", "tried"), [(100, True), (4, False)])
def test_other_guides_are_tried_where_much_is_lost(count: int, tried: bool) -> None:
    guided = replace(QUICK, guides=True)
    found: dict[bool, Problem] = {}
    for search in (QUICK, guided):
        asked = Problem(linear(), 3 * data(8)[0])
        asked.kept = search.evolve(asked, asked.eligible, count, ~asked.protected)
        found[search.guides] = asked
    events = [e for e in found[True].events if e["kind"] == "guides"]
    assert len(events) == tried
    values = {guides: float(asked.gate(asked.kept[None])[0]) for guides, asked in found.items()}
    assert values[True] <= values[False] + 0.05
    if tried:
        assert len(events[0]["divergence"]) == len(events[0]["disagreement"]) == 3
        assert events[0]["divergence"][events[0]["chosen"]] == pytest.approx(values[True])
    else:
        assert torch.equal(found[True].kept, found[False].kept)
    assert found[True].divergence == de_plugin.KL()


def test_a_guide_that_finds_more_wins() -> None:
    won = []
    for seed in range(4):
        asked = Problem(linear(), 3 * data(8)[0], seed=seed)
        replace(QUICK, guides=True).evolve(asked, asked.eligible, 100, ~asked.protected)
        [event] = [e for e in asked.events if e["kind"] == "guides"]
        won.append(event["chosen"])
    assert any(won)


def test_choices_that_are_as_good_as_equal_are_told_apart_by_agreement() -> None:
    asked = Problem(linear(), 3 * data(8)[0])
    masks = torch.rand(12, asked.units.count, generator=torch.Generator().manual_seed(0)) < 0.5
    values = asked.gate(masks).tolist()
    best = min(values)
    chosen, told = choice(asked, KL(), masks, values)
    assert told["divergence"] == values
    inputs = asked.pool.take(asked.held_back)[0]
    for mask, wrong in zip(masks, told["disagreement"], strict=True):
        with torch.no_grad(), asked.units.zeroed(mask):
            answers = asked.model(inputs.inputs).argmax(1)
        assert wrong == pytest.approx(float((answers != inputs.teacher.argmax(1)).float().mean()))
    rivals = [n for n, value in enumerate(values) if value <= best + 1e-12]
    assert values[chosen] <= best + 0.01 * float(KL().uninformed(inputs.teacher))
    assert all(told["disagreement"][chosen] <= told["disagreement"][n] for n in rivals)
    equal, _ = choice(asked, KL(), masks, [1.0] * len(masks))
    assert told["disagreement"][equal] == min(told["disagreement"])


def test_guides_read_outputs_as_the_measure_does() -> None:
    measure = KL(dim=1, logits=F.logsigmoid)
    assert [(x.dim, x.logits) for x in guides(measure)] == [(1, F.logsigmoid)] * 2
    asked = Problem(linear(), 3 * data(8)[0], divergence=measure)
    kept = replace(QUICK, guides=True).evolve(asked, asked.eligible, 100, ~asked.protected)
    [event] = [e for e in asked.events if e["kind"] == "guides"]
    assert len(event["divergence"]) == len(event["disagreement"]) == 3
    [held_back] = asked.pool.take(asked.held_back)
    with torch.no_grad(), asked.units.zeroed(kept):
        answers = F.logsigmoid(asked.model(held_back.inputs)), F.logsigmoid(held_back.teacher)
    wrong = float((answers[0].argmax(1) != answers[1].argmax(1)).float().mean())
    assert event["divergence"][event["chosen"]] == pytest.approx(float(KL(dim=1)(*answers)), rel=1e-4)
    assert event["disagreement"][event["chosen"]] == pytest.approx(wrong)
    assert wrong > 0
    assert asked.divergence == measure


def test_a_guide_leaves_no_measure_behind() -> None:
    asked = Problem(linear(), 3 * data(8)[0])
    truth = float(asked.gate(asked.kept[None])[0]), float(asked(asked.kept))
    masks = torch.rand(3, asked.units.count, generator=torch.Generator().manual_seed(0)) < 0.5
    asked.kept = masks[0]
    plain = asked.assess(masks, asked.search)
    asked.kept = masks[1]
    with asked.guided(CalibratedKL()):
        asked.assess(masks, asked.search)
    with pytest.raises(RuntimeError, match="more dimensions|size|shape"), asked.guided(CalibratedKL()):
        asked.assess(masks[:, :3], asked.search)
    torch.testing.assert_close(asked.assess(masks, asked.search), plain, rtol=1e-5, atol=1e-7)
    asked.kept = torch.ones_like(asked.kept)
    assert (float(asked.gate(asked.kept[None])[0]), float(asked(asked.kept))) == truth


def test_guides_leave_other_divergences_alone() -> None:
    asked = Problem(linear(), data(8)[0], divergence="js")
    replace(QUICK, guides=True).evolve(asked, asked.eligible, 100, ~asked.protected)
    assert not [e for e in asked.events if e["kind"] == "guides"]
