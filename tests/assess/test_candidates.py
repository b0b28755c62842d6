"""Candidates are the same population however they are held: written out, as flips, or as a recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from de_plugin.assess.candidates import Candidates, Flipped, Listed, Made, candidates
from de_plugin.types import Mask, Masks

FORMS: dict[str, Callable[[Mask, Masks], Candidates]] = {
    "listed": lambda parent, masks: Listed(masks),
    "flipped": lambda parent, masks: Flipped(parent, tuple((row != parent).nonzero()[:, 0] for row in masks)),
    "made": lambda parent, masks: Made(lambda n: masks[n].clone(), tuple(range(len(masks))), len(parent)),
    "made in another order": lambda parent, masks: Made(
        lambda n: masks[-1 - n].clone(), tuple(range(len(masks)))[::-1], len(parent)
    ),
    "picked": lambda parent, masks: Listed(torch.cat([~masks, masks])).pick(
        range(len(masks), 2 * len(masks))
    ),
}
forms = st.sampled_from(sorted(FORMS))


@st.composite
def populations(draw: st.DrawFn) -> tuple[Mask, Masks]:
    """Draw a parent and masks that differ from it in no unit, in a few, or in all."""
    units, rows = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    bits = st.lists(st.booleans(), min_size=units, max_size=units)
    parent = torch.tensor(draw(bits))
    masks = torch.tensor([draw(st.one_of(bits, st.just(parent.tolist()))) for _ in range(rows)])
    return parent, masks


def same(left: Candidates, masks: Masks, parent: Mask) -> None:
    """Assert that candidates have these masks, and the flips that follow from them."""
    assert isinstance(left, Candidates)
    assert len(left) == len(masks)
    for number, mask in enumerate(masks):
        assert torch.equal(left.mask(number), mask)
        assert left.mask(number).dtype == torch.bool
        flips = left.flips(number, parent)
        assert flips.dtype == torch.int64
        assert torch.equal(flips, (mask != parent).nonzero()[:, 0])
        assert bool((flips.diff() > 0).all())


@settings(deadline=None)
@given(population=populations(), form=forms)
def test_any_form_holds_the_same_masks_and_flips(population: tuple[Mask, Masks], form: str) -> None:
    parent, masks = population
    held = FORMS[form](parent, masks)
    same(held, masks, parent)
    same(held, masks, parent.clone())
    same(held, masks, ~parent)
    same(held, masks, masks[0])


@settings(deadline=None)
@given(population=populations(), form=forms, data=st.data())
def test_picks_are_the_picked_masks_in_their_order(
    population: tuple[Mask, Masks], form: str, data: st.DataObject
) -> None:
    parent, masks = population
    held = FORMS[form](parent, masks)
    some = data.draw(st.lists(st.integers(0, len(masks) - 1), max_size=8))
    picked = held.pick(some)
    same(picked, masks[some], parent)
    again = data.draw(st.permutations(range(len(some))))
    same(picked.pick(again), masks[some][list(again)], parent)
    same(held, masks, parent)


@settings(deadline=None)
@given(population=populations(), form=forms)
def test_what_is_handed_out_can_be_changed(population: tuple[Mask, Masks], form: str) -> None:
    """A candidate's mask, other than a written-out one, is nobody else's."""
    parent, masks = population
    before = parent.clone(), masks.clone()
    held = FORMS[form](parent, masks)
    if not isinstance(held, Listed):
        held.mask(0).fill_(False)
    flips = held.flips(0, ~parent)
    flips.fill_(0)
    assert torch.equal(parent, before[0])
    same(held, before[1], parent)


@settings(deadline=None)
@given(population=populations())
def test_flipping_the_flips_gives_the_parent(population: tuple[Mask, Masks]) -> None:
    parent, masks = population
    held = FORMS["flipped"](parent, masks)
    for number in range(len(held)):
        back = Flipped(held.mask(number), (held.flips(number, parent),))
        assert torch.equal(back.mask(0), parent)


def test_recipes_are_followed_when_they_are_looked_at() -> None:
    asked: list[int] = []

    def make(number: int) -> Tensor:
        asked.append(number)
        return torch.arange(4) == number

    population = Made(make, (3, 1, 2), 4).pick([2, 0])
    assert len(population) == 2
    assert asked == []
    assert population.mask(1).tolist() == [False, False, False, True]
    assert population.flips(0, torch.zeros(4, dtype=torch.bool)).tolist() == [2]
    assert asked == [3, 2]


def test_masks_are_candidates() -> None:
    masks = torch.rand(3, 5) > 0.5
    listed = candidates(masks)
    assert isinstance(listed, Listed)
    assert listed.masks is masks
    flipped = Flipped(masks[0], (torch.tensor([1]),))
    assert candidates(flipped) is flipped


@pytest.mark.parametrize("form", FORMS)
def test_nobody_is_a_population_too(form: str) -> None:
    masks = torch.rand(2, 5) > 0.5
    held = FORMS[form](masks[0], masks).pick([])
    assert len(held) == 0


@pytest.mark.parametrize("other", [None, 3, [True], "masks"])
def test_other_things_are_no_candidates(other: Any) -> None:
    assert not isinstance(other, Candidates)
