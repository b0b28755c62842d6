"""Every criterion against a second, plainly written computation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from de_plugin.assess import Problem
from de_plugin.criteria import Activation, Fisher, Magnitude, Random, Taylor, diagonal
from de_plugin.criteria.scoring import noise
from de_plugin.errors import ArgumentError, DataError


def masked(problem: Problem) -> list[Tensor]:
    flags = problem.units.expand(problem.kept)
    return [w.clone() * m for w, m in zip(problem.units.values(), flags, strict=True)]


def per_sample(problem: Problem, targets: Tensor) -> Iterator[list[Tensor]]:
    """Yield cross-entropy gradients of one sample after the other, by a plain loop."""
    parameters = [layer.parameter for layer in problem.units.layers]
    stacked: Any = problem.pool.stacked
    (inputs, _, _) = stacked
    with problem.units.zeroed(problem.kept):
        for x, y in zip(inputs, targets, strict=True):
            loss = F.cross_entropy(problem.model(x[None]), y[None])
            yield [g.clone() for g in torch.autograd.grad(loss, parameters)]


def drawn(problem: Problem, key: int, *, at_once: bool = False) -> Tensor:
    """Return the classes that the criterion with this noise key draws first on a fresh problem.

    Factored gradients of linear layers draw for all samples at once, others chunk by chunk.
    """
    stacked: Any = problem.pool.stacked
    (inputs, _, _) = stacked
    with torch.no_grad(), problem.units.zeroed(problem.kept):
        generator = noise(problem, key)
        if not at_once:
            generator = torch.Generator().manual_seed(int(torch.randint(1 << 62, (), generator=generator)))
        measure: Any = problem.divergence
        targets: Tensor = measure.draw(problem.model(inputs), generator)[0]
        return targets


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=2e-4, atol=1e-9)


def test_magnitude_of_single_weights_is_the_absolute_value(build: Any) -> None:
    problem = build()
    flat = torch.cat([w.flatten() for w in masked(problem)])
    close(Magnitude()(problem, problem.eligible, 1), flat.abs())
    close(Magnitude(p=1)(problem, problem.eligible, 1), flat.abs())


@pytest.mark.parametrize("p", [0.5, 1, 2, 3, 200])
def test_magnitude_of_channels_is_the_p_norm(build: Any, p: float) -> None:
    problem = build(granularity="channel")
    rows = [row.double() for w in masked(problem) for row in w]
    expected = torch.stack([torch.linalg.vector_norm(row, p) for row in rows])
    close(Magnitude(p)(problem, problem.eligible, 1), expected)


def test_magnitude_neither_overflows_nor_fails_on_zeros(build: Any) -> None:
    problem = build()
    for layer in problem.units.layers:
        layer.parameter.data.fill_(1e38)
    assert float(Magnitude(10)(problem, problem.eligible, 1).max()) == pytest.approx(1e38)
    for layer in problem.units.layers:
        layer.parameter.data.zero_()
    assert float(Magnitude(10)(problem, problem.eligible, 1).max()) == 0


@pytest.mark.parametrize("granularity", ["weight", "channel"])
def test_activation_is_wanda_on_linear_layers(build: Any, thinned: Any, granularity: str) -> None:
    problem = thinned(build(granularity=granularity))
    seen: list[Tensor] = []
    modules = [layer.module for layer in problem.units.layers]
    hooks = [m.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for m in modules]
    (inputs, _, _) = problem.pool.stacked
    with torch.no_grad(), problem.units.zeroed(problem.kept):
        problem.model(inputs)
    for hook in hooks:
        hook.remove()
    parts = []
    for w, x in zip(masked(problem), seen, strict=True):
        product = w.square() * x.square().sum(0) / len(x)
        parts.append((product if granularity == "weight" else product.sum(1)).flatten().sqrt())
    close(Activation()(problem, torch.ones_like(problem.kept), 1), torch.cat(parts))


def test_activation_on_convolutions_agrees_with_unfold(build: Any) -> None:
    problem = build("mixed", samples=10, include=["first", "second"])
    (inputs, _, _) = problem.pool.stacked
    model = problem.model
    with torch.no_grad():
        middle = torch.relu(model.first(inputs))
    energy = []
    for x, module in ((inputs, model.first), (middle, model.second)):
        patches = F.unfold(x, 3, padding=module.padding, stride=module.stride)
        each = patches.square().sum((0, 2)) / len(x)
        groups = each.reshape(module.groups, -1)
        rows = groups.repeat_interleave(module.out_channels // module.groups, 0)
        energy.append((module.weight.detach().flatten(1).square() * rows).sqrt().flatten())
    close(Activation()(problem, problem.eligible, 1), torch.cat(energy))


@pytest.mark.parametrize("granularity", ["weight", "channel", "2x2"])
@pytest.mark.parametrize("labels", [True, False])
def test_taylor_agrees_with_a_loop(build: Any, thinned: Any, granularity: str, labels: bool) -> None:
    problem = thinned(build(granularity=granularity))
    twin = thinned(build(granularity=granularity))
    targets = problem.pool.stacked[1] if labels else drawn(twin, 1)
    changes = [
        problem.units.reduce([g * w for g, w in zip(found, masked(problem), strict=True)]).abs()
        for found in per_sample(problem, targets)
    ]
    ours = Taylor(labels=labels)(problem, problem.eligible, 1)
    expected = torch.stack(changes).mean(0)
    close(ours[problem.eligible], expected[problem.eligible])


@pytest.mark.parametrize("labels", [True, False])
def test_fisher_agrees_with_a_loop(build: Any, thinned: Any, labels: bool) -> None:
    problem = thinned(build(granularity="channel"))
    targets = (
        problem.pool.stacked[1] if labels else drawn(thinned(build(granularity="channel")), 2, at_once=True)
    )
    squares = [[g.square() for g in found] for found in per_sample(problem, targets)]
    mean = [torch.stack(column).mean(0) for column in zip(*squares, strict=True)]
    expected = problem.units.reduce(
        [0.5 * f * w.square() for f, w in zip(mean, masked(problem), strict=True)]
    )
    ours = Fisher(labels=labels)(problem, problem.eligible, 1)
    close(ours[problem.eligible], expected[problem.eligible])


def test_sampled_fisher_converges_to_the_enumerated_one(build: Any) -> None:
    problem = build(samples=5)
    (inputs, _, _) = problem.pool.stacked
    exact = [torch.zeros_like(w) for w in masked(problem)]
    with torch.no_grad():
        p = F.softmax(problem.model(inputs), -1)
    for label in range(3):
        targets = torch.full((5,), label)
        for row, found in enumerate(per_sample(problem, targets)):
            for into, g in zip(exact, found, strict=True):
                into += p[row, label] * g.square() / 5
    index = problem.search.repeat(4000)
    sampled = diagonal(problem, index, problem.generator(9))
    for ours, theirs in zip(sampled, exact, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 0.03


def test_random_depends_on_its_seed_alone(build: Any) -> None:
    problem = build()
    first = Random(3)(problem, problem.eligible, 1)
    assert torch.equal(first, Random(3)(build(seed=5), problem.eligible, 1))
    assert not torch.equal(first, Random(4)(problem, problem.eligible, 1))
    ours, other = (Random()(build(seed=s), problem.eligible, 1) for s in (0, 1))
    assert not torch.equal(ours, other)


def test_labels_that_are_missing_are_asked_for() -> None:
    model = torch.nn.Linear(3, 2).eval()
    problem = Problem(model, torch.randn(4, 3), holdout=0.0)
    with pytest.raises(DataError, match="labels"):
        Fisher(labels=True)(problem, problem.eligible, 1)


def test_fresh_samples_and_targets_at_each_call(build: Any) -> None:
    problem = build()
    one = Fisher(samples=10)
    assert not torch.equal(one(problem, problem.eligible, 1), one(problem, problem.eligible, 1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Magnitude(0),
        lambda: Magnitude(float("inf")),
        lambda: Magnitude(float("nan")),
        lambda: Activation(0),
        lambda: Taylor(-1),
        lambda: Fisher(0),
        lambda: Random(-1),
    ],
)
def test_options_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(ArgumentError, match="expected"):
        make()
