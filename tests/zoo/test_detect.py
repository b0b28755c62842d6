"""Letterbox, decoding and suppression: the C program's arithmetic, and laws that hold for all boxes."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from de_plugin.errors import ArgumentError, DataError
from de_plugin.zoo import Detection, Head, decode, detections, letterbox, nms

HEAD = Head(((16.0, 8.0), (4.0, 32.0)), 2)
OVERLAPS = st.sampled_from([0.0, 0.2, 0.45, 0.5, 1.0])
CORNER = st.integers(0, 8)
SIDE = st.integers(0, 6)
BOX = st.tuples(CORNER, CORNER, SIDE, SIDE).map(lambda v: (v[0], v[1], v[0] + v[2], v[1] + v[3]))
SCENES = st.lists(st.tuples(BOX, st.sampled_from([0.1, 0.5, 0.9]), st.integers(0, 1)), max_size=12)

Scene = list[tuple[tuple[int, int, int, int], float, int]]


def kept(scene: Scene, overlap: float) -> Scene:
    boxes = torch.tensor([box for box, _, _ in scene], dtype=torch.float32).reshape(-1, 4)
    scores = torch.tensor([score for _, score, _ in scene])
    labels = torch.tensor([label for _, _, label in scene], dtype=torch.int64)
    return [scene[index] for index in nms(boxes, scores, labels, overlap).tolist()]


def iou(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    width = max(min(one[2], other[2]) - max(one[0], other[0]), 0)
    height = max(min(one[3], other[3]) - max(one[1], other[1]), 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    union = sum(areas) - width * height
    return width * height / union if union else 0.0


@settings(deadline=None)
@given(SCENES, OVERLAPS)
def test_kept_boxes_of_a_class_do_not_overlap_and_cover_the_others(scene: Scene, overlap: float) -> None:
    found = kept(scene, overlap)
    assert [score for _, score, _ in found] == sorted((score for _, score, _ in found), reverse=True)
    for index, (box, _, label) in enumerate(found):
        assert all(other[2] != label or iou(box, other[0]) <= overlap for other in found[:index])
    for one in scene:
        assert one in found or any(
            other[2] == one[2] and other[1] >= one[1] and iou(one[0], other[0]) > overlap for other in found
        )


@settings(deadline=None)
@given(SCENES, OVERLAPS)
def test_suppressing_again_changes_nothing(scene: Scene, overlap: float) -> None:
    found = kept(scene, overlap)
    assert kept(found, overlap) == found


@settings(deadline=None)
@given(SCENES, OVERLAPS, st.randoms(use_true_random=False))
def test_the_order_does_not_matter(scene: Scene, overlap: float, draw: random.Random) -> None:
    other = list(scene)
    draw.shuffle(other)
    assert kept(other, overlap) == kept(scene, overlap)


@settings(deadline=None)
@given(SCENES, OVERLAPS)
def test_classes_do_not_see_each_other(scene: Scene, overlap: float) -> None:
    alone = [kept([one for one in scene if one[2] == label], overlap) for label in (0, 1)]
    assert sorted(kept(scene, overlap)) == sorted(alone[0] + alone[1])


def test_suppression_refuses_what_it_cannot_compare() -> None:
    box, one = torch.zeros(1, 4), torch.ones(1)
    with pytest.raises(ArgumentError, match="overlap is 1.5, expected 0 to 1"):
        nms(box, one, one, 1.5)
    with pytest.raises(DataError, match="labels \\(2,\\), expected \\(n, 4\\), \\(n,\\) and \\(n,\\)"):
        nms(box, one, torch.ones(2))
    with pytest.raises(DataError, match="not finite"):
        nms(box, one * math.nan, one)


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """The C program's resize_image, pixel by pixel: first along the rows, then along the columns."""

    def along(values: Tensor, count: int) -> Tensor:
        last = len(values) - 1
        scale = last / (count - 1)
        rows = []
        for index in range(count):
            place = min(int(index * scale), last)
            share = index * scale - place
            at_the_end = index == count - 1 or last == 0
            rows.append(
                values[last] if at_the_end else (1 - share) * values[place] + share * values[place + 1]
            )
        return torch.stack(rows)

    wide = along(image.permute(2, 0, 1), width).permute(1, 2, 0)
    return along(wide.permute(1, 0, 2), height).permute(1, 0, 2)


@pytest.mark.parametrize(
    ("image", "size", "inner"),
    [
        ((9, 20), (32, 32), (14, 32)),
        ((20, 9), (32, 32), (32, 14)),
        ((40, 40), (32, 32), (32, 32)),
        ((7, 13), (24, 40), (21, 40)),
        ((7, 1), (16, 16), (16, 2)),
    ],
)
def test_letterbox_as_the_c_program(
    image: tuple[int, int], size: tuple[int, int], inner: tuple[int, int]
) -> None:
    pixels = torch.rand(3, *image, generator=torch.Generator().manual_seed(0))
    boxed = letterbox(pixels, size)
    assert boxed.shape == (3, *size)
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    inside = torch.zeros(size, dtype=torch.bool)
    inside[top : top + inner[0], left : left + inner[1]] = True
    assert bool((boxed[:, ~inside] == 0.5).all())
    expected = resized(pixels, *inner)
    torch.testing.assert_close(boxed[:, inside].reshape(3, *inner), expected, rtol=0, atol=1e-5)


def test_an_image_of_the_size_is_left_as_it_is() -> None:
    image = torch.rand(3, 24, 16)
    assert torch.equal(letterbox(image, (24, 16)), image)


def test_images_that_cannot_be_boxed() -> None:
    with pytest.raises(DataError, match="the type torch.uint8, expected floats .*: divide bytes by 255"):
        letterbox(torch.zeros(3, 4, 4, dtype=torch.uint8), (32, 32))
    with pytest.raises(DataError, match="shape \\(4, 4\\)"):
        letterbox(torch.zeros(4, 4), (32, 32))
    for shape in [(3, 1, 100), (3, 0, 4)]:
        with pytest.raises(DataError, match="nothing is left in 32 x 32: leave it out"):
            letterbox(torch.zeros(shape), (32, 32))
    with pytest.raises(ArgumentError, match="size is \\(0, 32\\)"):
        letterbox(torch.zeros(3, 4, 4), (0, 32))


def outputs() -> Tensor:
    """One head of 2 x 3 cells where the second anchor of the cell (row 1, column 2) has an object."""
    raw = torch.full((1, HEAD.channels, 2, 3), -20.0)
    raw[0, 7:, 1, 2] = torch.tensor([0.0, math.log(3), math.log(2), 0.0, 20.0, -20.0, math.log(4)])
    return raw


def test_decoding_as_the_paper_has_it() -> None:
    decoded = decode([outputs()], [HEAD], (64, 96))
    assert decoded.shape == (1, 12, 7)
    box = decoded[0, 6 + 3 + 2]
    torch.testing.assert_close(box[:4], torch.tensor([2.5 / 3, 1.75 / 2, 2 * 4 / 96, 32 / 64]))
    torch.testing.assert_close(box[4:], torch.tensor([1.0, 0.0, 0.8]), rtol=0, atol=1e-6)
    assert float(decoded[0, :-1, 4].max()) < 1e-6


def test_heads_are_read_in_their_order_and_stretched_centres_differ() -> None:
    stretched = Head(HEAD.anchors, HEAD.classes, 2.0)
    decoded = decode([outputs(), outputs()], [HEAD, stretched], (64, 96))
    assert decoded.shape == (1, 24, 7)
    assert torch.equal(decoded[:, :12], decode([outputs()], [HEAD], (64, 96)))
    torch.testing.assert_close(
        decoded[0, 23, :2], torch.tensor([(2 * 0.5 - 0.5 + 2) / 3, (1.5 - 0.5 + 1) / 2])
    )


def test_decoding_is_differentiable() -> None:
    raw = torch.randn(2, HEAD.channels, 2, 3, requires_grad=True)
    decode([raw], [HEAD], (64, 96)).square().sum().backward()
    assert raw.grad is not None
    assert bool((raw.grad != 0).all())


def test_outputs_of_another_network_are_refused() -> None:
    with pytest.raises(DataError, match="with the channels \\[14\\]"):
        decode([torch.zeros(1, 15, 2, 3)], [HEAD], (64, 96))
    with pytest.raises(DataError, match="with the channels \\[14, 14\\]"):
        decode([outputs()], [HEAD, HEAD], (64, 96))
    with pytest.raises(DataError, match="\\[2, 9\\] classes, expected one number"):
        decode([outputs(), torch.zeros(1, 14, 2, 3)], [HEAD, Head(((1.0, 1.0),), 9)], (64, 96))


def predicted(*rows: list[float]) -> Tensor:
    return torch.tensor([rows])


def test_boxes_are_in_pixels_of_the_image_and_within_it() -> None:
    # A 200 x 100 image fills the middle half of a 64 x 64 input.
    rows = [[0.5, 0.5, 0.5, 0.25, 0.9, 1.0, 0.0], [0.0, 0.75, 0.5, 0.5, 1.0, 0.0, 0.6]]
    (found,) = detections(predicted(*rows), [(100, 200)], (64, 64))
    for one, other in zip(
        found, [Detection(0, 0.9, (50, 25, 150, 75)), Detection(1, 0.6, (0, 50, 50, 100))], strict=True
    ):
        assert one.label == other.label
        assert one.score == pytest.approx(other.score)
        assert one.box == pytest.approx(other.box)


def test_a_box_counts_once_for_every_class_above_the_threshold() -> None:
    row = [0.5, 0.5, 0.5, 0.5, 1.0, 0.75, 0.625]
    found = detections(predicted(row, row), [(64, 64)], (64, 64), threshold=0.5)
    assert [(one.label, one.score) for one in found[0]] == [(0, 0.75), (1, 0.625)]
    assert detections(predicted(row, row), [(64, 64)], (64, 64), threshold=0.75) == [[]]


def test_what_detections_refuse() -> None:
    row = [0.5, 0.5, 0.5, 0.5, 1.0, 0.75, 0.625]
    with pytest.raises(ArgumentError, match="threshold is 2"):
        detections(predicted(row), [(64, 64)], (64, 64), threshold=2)
    with pytest.raises(DataError, match="images 2 sizes, expected \\(n, boxes, 5 \\+ classes\\) and n sizes"):
        detections(predicted(row), [(64, 64)] * 2, (64, 64))
    with pytest.raises(DataError, match="not finite: check the network's weights"):
        detections(predicted([*row[:4], math.nan, 1.0, 1.0]), [(64, 64)], (64, 64))
