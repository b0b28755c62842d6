"""Reconstruction: conjugate gradients against the closed form, what matters against autograd, every layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from de_plugin.assess import Detector, Head, Problem
from de_plugin.assess.divergence import MSE
from de_plugin.assess.saliency import saliency
from de_plugin.errors import ArgumentError
from de_plugin.prune.recover import Reconstruction
from de_plugin.prune.recover.ridge import descend_rows, solve_rows
from tests.prune.test_recover_leastsquares import MODELS, cut


@pytest.mark.parametrize("rows", [1, 9])
def test_conjugate_gradients_come_to_the_closed_form(rows: int) -> None:
    draw = torch.Generator().manual_seed(rows)
    x = torch.randn(90, 14, generator=draw, dtype=torch.float64)
    y = torch.randn(90, rows, generator=draw, dtype=torch.float64)
    support = torch.rand(rows, 14, generator=draw) > 0.4
    support[0] = False
    old = torch.randn(rows, 14, generator=draw, dtype=torch.float64)
    gram, cross = x.T @ x / 90, y.T @ x / 90
    expected = solve_rows(gram, cross, support, old, 0.01)
    found = descend_rows(gram, cross, support, old, 0.01, 60)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert not found[~support].any()


def test_without_inputs_the_old_values_stay() -> None:
    old, support = torch.randn(3, 4), torch.tensor([[True, False, True, True]]).expand(3, 4)
    nothing = torch.zeros(4, 4)
    assert torch.equal(descend_rows(nothing, nothing[:3], support, old, 0.01, 5), old * support)


def test_what_matters_is_the_squared_gradient_of_each_place() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(48, 4)).eval()
    problem = Problem(model, torch.randn(20, 2, 6, 6), divergence="mse")
    batches = problem.pool.take(problem.search[:5])
    found = saliency(problem, batches, torch.Generator().manual_seed(3))
    x = batches[0].inputs
    conv, fc = model[0], model[3]
    first: Tensor = conv(x).detach().requires_grad_(True)
    last: Tensor = fc(first.relu().flatten(1))
    targets = MSE().draw(last, torch.Generator().manual_seed(3))
    loss = MSE().sampled_loss(last, targets)
    inner, outer = torch.autograd.grad(loss, [first, last])
    torch.testing.assert_close(found[0], inner.square().sum(1).flatten(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[1], outer.square().sum(1), rtol=1e-4, atol=1e-6)
    assert not any(p.grad is not None for p in model.parameters())


def test_layers_that_are_used_twice_are_left_out() -> None:
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(6, 2)).eval()
    problem = Problem(model, torch.randn(30, 6), divergence="mse")
    found = saliency(problem, problem.pool.take(problem.search), torch.Generator().manual_seed(0))
    assert [problem.units.layers[n].name for n in found] == ["3.weight"]


@pytest.mark.parametrize("name", list(MODELS))
def test_the_divergence_falls_and_zeroed_values_stay(name: str) -> None:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make().eval()
    x = torch.rand(240, *shape, generator=torch.Generator().manual_seed(1))
    problem = Problem(model, x, divergence="mse", batch_size=100)
    recover = Reconstruction(ridge=1e-4)
    recover.prepare(problem)
    cut(problem, 0.3)
    before, dense = problem(problem.kept), [v.clone() for v in problem.units.values()]
    recover(problem)
    assert problem(problem.kept) < 0.9 * before
    for old, new, mask in zip(dense, problem.units.values(), problem.units.expand(problem.kept), strict=True):
        assert torch.equal(old[~mask], new[~mask])


def test_layers_follow_one_another_in_one_pass() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 4)).eval()
    problem = Problem(model, torch.randn(800, 10))
    recover = Reconstruction(ridge=1e-4)
    recover.prepare(problem)
    cut(problem, 0.5)
    before = float(problem.gate(problem.kept[None])[0])
    recover(problem)
    told = problem.events[-1]
    assert told["layers"] == ["0.weight", "2.weight", "4.weight"]
    assert told["before"] == pytest.approx(before)
    assert float(problem.gate(problem.kept[None])[0]) == pytest.approx(told["after"])
    assert told["after"] < 0.5 * before


@pytest.mark.filterwarnings("ignore:.*measured one by one")  # the oldest torch has no batching rule for it
def test_queries_and_memories_of_different_lengths_are_solved_each() -> None:
    torch.manual_seed(0)
    model = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    batches = [((torch.randn(60, 6, 8), torch.randn(60, 3, 8)), None)]
    problem = Problem(model, batches, divergence="mse")
    recover = Reconstruction()
    recover.prepare(problem)
    cut(problem, 0.3)
    recover(problem)
    assert "multihead_attn.in_proj_weight" in problem.events[-1]["layers"]
    assert problem.events[-1]["accepted"]


def test_biases_of_living_channels_move_and_those_of_dead_ones_can_be_revived() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)).eval()
    batches = torch.randn(300, 8) + 1
    problem = Problem(model, batches, divergence="mse", granularity="channel", exclude=["4.*"])
    recover = Reconstruction()
    recover.prepare(problem)
    cut(problem, 0.3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    recover(problem)
    assert problem.events[-1]["accepted"]
    for layer in problem.units.layers:
        name, alive = layer.name.replace("weight", "bias"), problem.kept[layer.start : layer.stop]
        now = model.state_dict()[name]
        assert torch.equal(now[~alive], before[name][~alive])
        if layer.start > 0:  # what the first layer sees is as it was
            assert not torch.equal(now[alive], before[name][alive])


def normed() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 4, bias=False),
    ).eval()


def test_only_layers_before_a_batch_norm_leave_it_what_is_constant() -> None:
    images = torch.rand(200, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    problem = Problem(normed(), images, divergence="mse", include=["4.weight"])
    recover = Reconstruction(ridge=1e-3)
    recover.prepare(problem)
    cut(problem, 0.4)
    recover(problem)
    told = problem.events[-1]
    assert told["after"] < 0.8 * told["before"]
    assert recover._aims(problem).normed == set()
    assert recover._seen(Problem(normed(), images, divergence="mse")).normed == {0}


def test_batch_norms_stay_matched_where_a_reconstruction_is_undone() -> None:
    model = normed()
    problem = Problem(model, torch.randn(120, 2, 6, 6), divergence="mse")
    recover = Reconstruction(samples=1, ridge=1e-9)  # of one sample nothing is learnt
    recover.prepare(problem)
    cut(problem, 0.5)
    weights, norm = [v.clone() for v in problem.units.values()], model[1]
    before = norm.get_buffer("running_mean").clone()
    recover(problem)
    told = problem.events[-1]
    assert told["accepted"] is False
    assert all(torch.equal(a, b) for a, b in zip(weights, problem.units.values(), strict=True))
    assert not torch.equal(norm.get_buffer("running_mean"), before)
    assert float(problem.gate(problem.kept[None], repair=False)[0]) == pytest.approx(told["before"])


def test_a_detector_keeps_its_objects_better_where_places_are_weighed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 7, 1),
    ).eval()
    with torch.no_grad():
        model.get_parameter("4.weight").mul_(6)
        model.get_parameter("4.bias")[4] = -4.0  # nearly all places are empty
    images = torch.zeros(120, 1, 12, 12)
    spots = torch.randint(2, 10, (120, 2), generator=torch.Generator().manual_seed(1))
    for image, (y, x) in zip(images, spots.tolist(), strict=True):
        image[0, y - 1 : y + 2, x - 1 : x + 2] = (
            torch.randn(3, 3, generator=torch.Generator().manual_seed(y)) * 3
        )
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ends = []
    for focus in (0.0, 0.5):
        problem = Problem(model, images, divergence=Detector((Head(1, 2),)))
        recover = Reconstruction(focus=focus, positions=2000)
        recover.prepare(problem)
        cut(problem, 0.5)
        recover(problem)
        ends.append(float(problem.gate(problem.kept[None])[0]))
        model.load_state_dict(before)
    assert ends[1] < ends[0]


def test_a_reconstruction_that_does_harm_is_undone() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 3).eval()

    def crooked(student: Tensor, teacher: Tensor) -> Tensor:
        """Fall with the distance from the teacher: every true repair does harm."""
        return -(student - teacher).square().mean()

    problem = Problem(model, torch.randn(100, 6), divergence=crooked)
    recover = Reconstruction()
    recover.prepare(problem)
    cut(problem)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    recover(problem)
    assert problem.events[-1]["accepted"] is False
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_images_of_several_sizes_are_refused_with_a_way_out() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    problem = Problem(model, [torch.randn(8, 1, 8, 8), torch.randn(8, 1, 9, 9)], divergence="mse", holdout=0)
    with pytest.raises(ArgumentError, match="leastsquares"):
        Reconstruction().prepare(problem)


@pytest.mark.parametrize(
    "wrong", [{"samples": 0}, {"ridge": 0}, {"focus": -1}, {"iterations": 0}, {"memory": 0}]
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    [(name, value)] = wrong.items()
    with pytest.raises(ArgumentError, match=f"{name}={value}"):
        Reconstruction(**wrong)
