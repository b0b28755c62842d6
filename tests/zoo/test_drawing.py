"""Drawing: boxes where the objects are, in the colour of their class, and two networks side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from de_plugin.errors import ArgumentError
from de_plugin.zoo import Detection, drawn, side_by_side

PHOTO = torch.full((3, 60, 80), 0.5)
ONE = Detection(0, 0.9, (10.0, 20.0, 50.0, 40.0))


def test_nothing_found_leaves_the_photograph_as_it_is() -> None:
    assert (np.asarray(drawn(PHOTO, [])) == 128).all()


def test_a_box_stands_where_the_object_is() -> None:
    pixels = np.asarray(drawn(PHOTO, [ONE], ["dog"]))
    red = (pixels == (0xE6, 0x19, 0x4B)).all(2)
    assert red[30, 10]
    assert red[40, 30]
    assert not red[30, 30]
    assert not red[50:, :].any()


def test_classes_have_colours_of_their_own_and_need_no_name() -> None:
    both = [np.asarray(drawn(PHOTO, [Detection(n, 0.9, ONE.box)])) for n in (0, 1)]
    assert not np.array_equal(both[0][30, 10], both[1][30, 10])


def test_two_networks_stand_side_by_side() -> None:
    whole = side_by_side(PHOTO, [ONE], [], ["dog"])
    assert whole.size == (2 * 80 + 8, 60 + 16)
    pixels = np.asarray(whole)
    assert (pixels[16:, 88:] == 128).all()
    assert not (pixels[16:, :80] == 128).all()
    wrong: Any = ("one",)
    with pytest.raises(ArgumentError, match="two"):
        side_by_side(PHOTO, [], [], titles=wrong)
