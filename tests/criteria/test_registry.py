"""Finding criteria by name, and what is said when that fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from de_plugin.assess import Problem
from de_plugin.criteria import (
    OBS,
    Activation,
    Magnitude,
    base,
    criterion,
    describe,
    names,
    register,
)
from de_plugin.errors import ArgumentError


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base._REGISTRY, "_factories", dict(base._REGISTRY._factories))


def test_names_stand_for_classes() -> None:
    assert criterion("magnitude") == Magnitude()
    assert criterion("magnitude", p=1) == Magnitude(1)
    assert criterion("wanda", samples=5) == criterion("activation", samples=5) == Activation(5)
    assert criterion("obs", block=8) == OBS(block=8)


def test_objects_pass_through() -> None:
    one = Magnitude()
    assert criterion(one) is one


def test_every_name_is_described() -> None:
    assert set(describe()) == set(names())
    assert all(line.endswith(".") for line in describe().values())
    assert list(names()) == sorted(names())


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ArgumentError, match="magnitud.*activation, .*fisher, magnitude, .*taylor"):
        criterion("magnitud")


def test_an_unknown_option_lists_the_known() -> None:
    with pytest.raises(ArgumentError, match="q.*options are: p"):
        criterion("magnitude", q=2)


def test_options_need_a_name() -> None:
    with pytest.raises(ArgumentError, match="options p"):
        criterion(Magnitude(), p=1)


@pytest.mark.parametrize("wrong", [None, 3, Magnitude, print])
def test_what_is_no_criterion_is_refused(wrong: Any) -> None:
    with pytest.raises(ArgumentError, match="expected one of"):
        criterion(wrong)


@pytest.mark.usefixtures("scratch")
def test_anyone_may_register_one() -> None:
    @register("first")
    @dataclass(frozen=True)
    class First:
        """The first units go first."""

        step: int
        name: str = "first"
        needs_gradient: bool = False

        def __call__(self, problem: Problem, eligible: torch.Tensor, count: int) -> torch.Tensor:
            return torch.arange(len(eligible)).double() * self.step

    assert criterion("first", step=2) == First(2)
    assert describe()["first"] == "The first units go first."
    with pytest.raises(ArgumentError, match="missing.*step"):
        criterion("first")
    with pytest.raises(ArgumentError, match="taken"):
        register("first")(First)


@pytest.mark.usefixtures("scratch")
def test_names_must_be_names() -> None:
    with pytest.raises(ArgumentError, match="expected a name"):
        register("")(Magnitude)
