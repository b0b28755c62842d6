"""Batch-norm matching: outputs keep the teacher's moments, and a tentative one leaves no trace."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from de_plugin.assess.problem import Problem
from de_plugin.errors import ArgumentError
from de_plugin.prune.recover import BatchNormMatching


def network(affine: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6, affine=affine),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 10),
        nn.BatchNorm1d(10),
    )
    for module in model:
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.eval()


def problem_of(model: nn.Module, count: int = 300) -> Problem:
    x = torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    return Problem(model, x, divergence="mse", batch_size=64)


def cut(problem: Problem, fraction: float = 0.5) -> None:
    scores = problem.units.reduce([v.abs() for v in problem.units.values()])
    count = int(fraction * problem.units.count)
    problem.kept = problem.select(scores, problem.eligible, count)


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    hooks = [m.register_forward_hook(lambda _m, _a, y: found.append(y.detach())) for m in norms]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return [y.movedim(1, 0).flatten(1) for y in found]


@pytest.mark.parametrize("affine", [True, False])
def test_outputs_have_the_teachers_mean_and_variance(affine: bool) -> None:
    model = network(affine)
    problem = problem_of(model)
    assert isinstance(problem.pool.stacked, tuple)
    x = problem.pool.stacked[0][problem.search]
    before = outputs(model, x)
    recover = BatchNormMatching(samples=10_000)
    recover.prepare(problem)
    cut(problem)
    with problem.units.zeroed(problem.kept):
        worse = outputs(model, x)
    recover(problem)
    with problem.units.zeroed(problem.kept):
        after = outputs(model, x)
    for teacher, student, plain in zip(before, after, worse, strict=True):
        torch.testing.assert_close(student.mean(1), teacher.mean(1), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(student.var(1), teacher.var(1), rtol=1e-3, atol=1e-4)
        assert not torch.allclose(plain.var(1), teacher.var(1), rtol=1e-2)


def test_divergence_falls_and_weights_stay() -> None:
    problem = problem_of(network())
    recover = BatchNormMatching()
    recover.prepare(problem)
    cut(problem)
    before = problem(problem.kept)
    weights = [p.detach().clone() for p in problem.model.parameters()]
    recover(problem)
    assert problem(problem.kept) < before
    assert all(torch.equal(a, b) for a, b in zip(weights, problem.model.parameters(), strict=True))


def test_an_untouched_student_keeps_its_statistics() -> None:
    problem = problem_of(network())
    before = [b.clone() for b in problem.model.buffers()]
    BatchNormMatching(samples=10_000)(problem)
    for live, old in zip(problem.model.buffers(), before, strict=True):
        torch.testing.assert_close(live, old, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fails", [True, False])
def test_a_tentative_matching_restores_bit_exactly(fails: bool) -> None:
    problem = problem_of(network())
    recover = BatchNormMatching()
    recover.prepare(problem)
    problem.repair = recover.in_assessment()
    cut(problem)
    before = [b.clone() for b in problem.model.buffers()]
    batches = problem.pool.take(problem.search)

    def ask() -> None:
        with problem.units.zeroed(problem.kept), problem.repaired(batches):
            live = list(problem.model.buffers())
            assert not all(torch.equal(a, b) for a, b in zip(before, live, strict=True))
            if fails:
                raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            ask()
    else:
        ask()
    assert all(torch.equal(a, b) for a, b in zip(before, problem.model.buffers(), strict=True))


def test_the_repair_in_an_assessment_lowers_the_divergence() -> None:
    problem = problem_of(network())
    recover = BatchNormMatching()
    recover.prepare(problem)
    problem.repair = recover.in_assessment()
    cut(problem)
    masks = problem.kept[None]
    plain = problem.assess(masks, problem.search, repair=False)
    repaired = problem.assess(masks, problem.search)
    assert repaired < plain


def test_dead_channels_and_nil_gains_stay_finite() -> None:
    model = network()
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        norm.weight[0] = 0
    old = float(norm.running_mean[0])
    problem = problem_of(model)
    recover = BatchNormMatching(samples=10_000)
    recover.prepare(problem)
    teacher = outputs(model, problem.pool.take(problem.search, 1000)[0].inputs)
    kept = problem.kept.clone()
    kept[2 * 9 : 2 * 2 * 9] = False  # all of the second filter
    problem.kept = kept
    recover(problem)
    assert all(bool(torch.isfinite(b).all()) for b in model.buffers())
    assert float(norm.running_mean[0]) == old
    assert bool((norm.running_var >= 0).all())
    with problem.units.zeroed(problem.kept):
        student = outputs(model, problem.pool.take(problem.search, 1000)[0].inputs)
    torch.testing.assert_close(student[0][1].mean(), teacher[0][1].mean(), rtol=1e-4, atol=1e-4)


def test_without_batch_norm_nothing_happens() -> None:
    model = nn.Linear(4, 3).eval()
    problem = Problem(model, torch.randn(50, 4))
    BatchNormMatching()(problem)
    repair = BatchNormMatching().in_assessment()
    with repair(problem, problem.pool.take(problem.search)):
        pass


def test_norms_without_running_statistics_or_used_twice_are_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.norm = nn.BatchNorm1d(4)
            self.free = nn.BatchNorm1d(4, track_running_stats=False)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.free(self.norm(self.layer(self.norm(x))))
            return y

    problem = Problem(Twice().eval(), torch.randn(100, 4), divergence="mse", evaluate="serial")
    recover = BatchNormMatching()
    recover.prepare(problem)
    before = [b.clone() for b in problem.model.buffers()]
    cut(problem)
    recover(problem)
    assert all(torch.equal(a, b) for a, b in zip(before, problem.model.buffers(), strict=True))


def test_batches_of_several_sizes_are_matched_too() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    x = [torch.randn(20, 1, size, size) for size in (5, 6, 7, 8)]
    problem = Problem(model, x, divergence="mse", holdout=0.25)
    recover = BatchNormMatching()
    recover.prepare(problem)
    data = [b.inputs for b in problem.pool.take(problem.search)]
    teacher = torch.cat([outputs(model, part)[0] for part in data], 1)
    cut(problem, 0.7)
    recover(problem)
    with problem.units.zeroed(problem.kept):
        student = torch.cat([outputs(model, part)[0] for part in data], 1)
    torch.testing.assert_close(student.mean(1), teacher.mean(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(student.var(1), teacher.var(1), rtol=1e-3, atol=1e-4)


def test_an_exception_in_the_model_restores_the_buffers() -> None:
    class Fragile(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()
            self.fail = False

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.body(x)
            if self.fail:
                raise RuntimeError("stop")
            return y

    model = Fragile().eval()
    problem = problem_of(model)
    recover = BatchNormMatching()
    recover.prepare(problem)
    cut(problem)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.fail = True
    with pytest.raises(RuntimeError, match="stop"):
        recover(problem)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_late_preparation_and_wrong_numbers_are_refused() -> None:
    problem = problem_of(network())
    cut(problem)
    with pytest.raises(ArgumentError, match="prepare"):
        BatchNormMatching()(problem)
    with pytest.raises(ArgumentError, match="samples=0"):
        BatchNormMatching(samples=0)


def test_matching_happens_in_the_order_of_execution() -> None:
    """A later norm sees what the earlier ones were given: matching twice changes nothing more."""
    problem = problem_of(network())
    recover = BatchNormMatching(samples=10_000)
    recover.prepare(problem)
    cut(problem)
    states = []
    for _ in range(2):
        recover(problem)
        states.append([b.clone() for b in problem.model.buffers()])
    for first, second in pairwise(states):
        for a, b in zip(first, second, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_a_tentative_matching_keeps_to_the_problems_memory() -> None:
    sizes: list[int] = []

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        sizes.append(len(x))
        found: Tensor = model(x)
        return found

    x = torch.randn(300, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    model = network()
    problem = Problem(model, x, divergence="mse", batch_size=64, forward=forward)
    recover = BatchNormMatching()
    recover.prepare(problem)
    cut(problem)
    batches = problem.pool.take(problem.search)
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    old, means = norm.running_mean.clone(), []
    for memory in (1 << 30, 100 * 6 * 6 * 6 * 4 * 4):
        problem.memory = memory
        problem._memory.pop("bytes of a matched sample", None)
        sizes.clear()
        with problem.units.zeroed(problem.kept), recover.in_assessment()(problem, batches):
            means.append(norm.running_mean.clone())
        assert max(sizes) == (sum(b.size for b in batches) if memory == 1 << 30 else 64)
        assert torch.equal(norm.running_mean, old)
    torch.testing.assert_close(*means)
