"""The contract of granularities: `expand` and `reduce` are adjoint and split all weights into units."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from de_plugin.assess.granularity import Granularity

SHAPES: tuple[tuple[int, ...], ...] = ((3, 8), (5, 4, 3), (4, 8, 3, 2), (6, 5), (7, 3, 2))
"""Canonical weight shapes on which granularities are tried; an N:M pattern skips those that don't fit."""


def check_granularity(granularity: Granularity, shapes: Sequence[tuple[int, ...]] = SHAPES) -> None:
    """Check what `Granularity` promises.

    `reduce` is the adjoint of `expand`, every weight belongs to exactly one unit, leading dimensions are
    carried through and masks stay bool.

    Args:
        granularity: what is tested.
        shapes: canonical weight shapes ``(out, in, *kernel)``.

    Raises:
        AssertionError: a promise is broken; the message says which.
    """
    assert isinstance(granularity, Granularity), f"{granularity!r}: expected name, count, expand and reduce"
    fits = getattr(granularity, "fits", lambda _: True)
    tried = [torch.Size(s) for s in shapes if fits(torch.Size(s))]
    assert tried, f"granularity {granularity.name!r}: fits none of the shapes {tuple(shapes)}"
    for shape in tried:
        _check_shape(granularity, shape, f"granularity {granularity.name!r} on {tuple(shape)}")


def _check_shape(granularity: Granularity, shape: torch.Size, who: str) -> None:
    count = granularity.count(shape)
    assert isinstance(count, int), f"{who}: count is {count!r}, expected a whole number"
    assert 0 < count <= math.prod(shape), f"{who}: {count} units for {math.prod(shape)} weights"
    rng = torch.Generator().manual_seed(0)
    for lead in ((), (2,), (2, 3)):
        units = torch.randn(*lead, count, generator=rng, dtype=torch.float64)
        values = torch.randn(*lead, *shape, generator=rng, dtype=torch.float64)
        spread, summed = granularity.expand(units, shape), granularity.reduce(values, shape)
        assert spread.shape == (*lead, *shape), (
            f"{who}: expand gave {tuple(spread.shape)}, expected {(*lead, *shape)}"
        )
        assert summed.shape == (*lead, count), (
            f"{who}: reduce gave {tuple(summed.shape)}, expected {(*lead, count)}"
        )
        left, right = float((spread * values).sum()), float((units * summed).sum())
        assert math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-9), (
            f"{who}: <expand(u), w> = {left} and <u, reduce(w)> = {right}; reduce must sum over the "
            "very weights to which expand spreads a unit"
        )
    numbers = granularity.expand(torch.arange(count), shape)
    assert torch.equal(numbers.unique(), torch.arange(count)), f"{who}: some unit has no weight"
    sizes = granularity.reduce(torch.ones(shape, dtype=torch.float64), shape)
    found = torch.bincount(numbers.reshape(-1), minlength=count).double()
    assert torch.equal(sizes, found), f"{who}: reduce and expand disagree on the sizes of the units"
    mask = granularity.expand(torch.arange(count) % 2 == 0, shape)
    assert mask.dtype == torch.bool, f"{who}: expand turned a bool mask into {mask.dtype}"
