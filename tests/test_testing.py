"""The contract suites: the built-ins pass, and every broken promise is noticed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import de_plugin
from de_plugin import testing
from de_plugin.assess import Problem, granularity
from de_plugin.prune.recover import recovery


@pytest.mark.parametrize("name", ["magnitude", "activation", "taylor", "fisher", "obs", "random", "de"])
def test_builtin_criteria_keep_their_promises(name: str) -> None:
    testing.check_criterion(de_plugin.criterion(name))


def test_combined_criteria_keep_their_promises() -> None:
    testing.check_criterion(de_plugin.nest("magnitude", "fisher"))
    testing.check_criterion(de_plugin.blend({"magnitude": 1, "taylor": 0.5}))


@pytest.mark.parametrize("name", ["weight", "2:4", "1x4", "4x4", "kernel", "channel"])
def test_builtin_granularities_and_units_keep_their_promises(name: str) -> None:
    testing.check_granularity(granularity(name))
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ConvTranspose2d(8, 4, 3), nn.Linear(4, 4))
    testing.check_units(de_plugin.ParameterUnits(model, name))


@pytest.mark.parametrize(
    "measure",
    [
        de_plugin.KL(),
        de_plugin.KL(temperature=3),
        de_plugin.JS(),
        de_plugin.MSE(),
        de_plugin.Cosine(),
        de_plugin.Custom(lambda s, t: (s - t).abs().mean()),
        de_plugin.Score(lambda x, y: (x.argmax(-1) == y).float().mean()),
    ],
    ids=lambda m: str(m.name),
)
def test_builtin_divergences_keep_their_promises(measure: de_plugin.Divergence) -> None:
    testing.check_divergence(measure)


@pytest.mark.parametrize("name", ["none", "batchnorm", "bias", "leastsquares", "reconstruct", "distill"])
def test_builtin_recoveries_keep_their_promises(name: str) -> None:
    testing.check_recovery(recovery(name))


# -- broken ones ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Spoilt:
    spoil: Callable[[Problem, Tensor, Tensor], Tensor]
    name: str = "spoilt"
    needs_gradient: bool = False

    def __call__(self, problem: Problem, eligible: Tensor, count: int) -> Tensor:
        scores = de_plugin.Magnitude()(problem, eligible, count)
        return self.spoil(problem, eligible, scores)


def _grows(problem: Problem, eligible: Tensor, scores: Tensor) -> Tensor:
    problem.units.values()[0].add_(1)
    return scores


def _leaves_gradients(problem: Problem, eligible: Tensor, scores: Tensor) -> Tensor:
    problem.measure(problem.pool.take(problem.search)).backward()
    return scores


def _moves_kept(problem: Problem, eligible: Tensor, scores: Tensor) -> Tensor:
    problem.kept = ~problem.kept
    return scores


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p, e, s: s[:-1], "expected \\(80,\\)"),
        (lambda p, e, s: s.masked_fill(e, float("nan")), "not finite"),
        (lambda p, e, s: s.nan_to_num(posinf=0.0), "not \\+inf"),
        (lambda p, e, s: s + torch.rand(len(s)), "different scores"),
        (_grows, "bit-exact"),
        (_leaves_gradients, "grad was changed"),
        (_moves_kept, "problem.kept was changed"),
    ],
)
def test_broken_criteria_are_noticed(spoil: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        testing.check_criterion(Spoilt(spoil))


class Means(de_plugin.Channel):
    def reduce(self, values: Tensor, shape: torch.Size) -> Tensor:
        return super().reduce(values, shape) / 2


def test_a_granularity_whose_reduce_is_no_sum_is_noticed() -> None:
    with pytest.raises(AssertionError, match="must sum"):
        testing.check_granularity(Means())


class Leaky(de_plugin.ParameterUnits):
    @contextmanager
    def zeroed(self, kept: Tensor) -> Iterator[Mapping[int, Tensor]]:
        saved = [v.clone() for v in self.values()]
        for value, mask in zip(self.values(), self.expand(kept), strict=True):
            value.mul_(mask)
        yield {}
        for value, old in zip(self.values(), saved, strict=True):
            value.copy_(old)


class Lossy(de_plugin.ParameterUnits):
    @contextmanager
    def zeroed(self, kept: Tensor) -> Iterator[Mapping[int, Tensor]]:
        with super().zeroed(kept) as outside:
            yield outside
        for value in self.values():
            value.mul_(1 + 1e-6)


class Idle(de_plugin.ParameterUnits):
    @contextmanager
    def zeroed(self, kept: Tensor) -> Iterator[Mapping[int, Tensor]]:
        yield {}


@pytest.mark.parametrize(
    ("kind", "message"),
    [(Leaky, "after an exception"), (Lossy, "after the block"), (Idle, "changed nothing")],
)
def test_broken_units_are_noticed(kind: type[de_plugin.ParameterUnits], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        testing.check_units(kind(nn.Linear(5, 4)))


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda s, t: (s - t).abs().mean() + 1, "expected 0"),
        (lambda s, t: (s - t).abs().sum(), "mean over samples"),
        (lambda s, t: (s - t).abs().mean() * float("inf") if s is not t else 0.0, "finite outputs"),
    ],
)
def test_broken_divergences_are_noticed(fn: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        testing.check_divergence(de_plugin.Custom(fn))


class Reviving:
    name = "reviving"

    def prepare(self, problem: Problem) -> None:
        pass

    def __call__(self, problem: Problem) -> None:
        for value in problem.units.values():
            value.mul_(2)

    def in_assessment(self) -> None:
        return None


class Careless(Reviving):
    def __call__(self, problem: Problem) -> None:
        problem.model.get_parameter("0.bias").data.add_(1)
        for _ in range(5):
            problem.measure(problem.pool.take(problem.search[:4]))


def test_broken_recoveries_are_noticed() -> None:
    with pytest.raises(AssertionError, match="revivable"):
        testing.check_recovery(Reviving())
    with pytest.raises(AssertionError, match="after an exception"):
        testing.check_recovery(Careless())
